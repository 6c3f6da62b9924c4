//! A brain's whole outside: store, arms and bus, in front of which every call is counted, and at one of which the brain
//! dies or stalls.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    bus::{BusError, Capability, EventBus, MemoryBus, Overflow, Subscription},
    card::ArmCard,
    contract::ContractRef,
    error::CallError,
    event::{Event, Pattern},
    id::{StepKey, TaskId},
    parts::Caller,
    store::{JournalEntry, MemoryStore, Run, SideEffects, StoreError, TaskStore, Topic},
    task::{TaskQuery, TaskRecord, TaskUpdate},
    transport::{Call, IdempotencyKey, Reply, Transport},
};
use tokio::sync::watch;

/// When a brain dies: before its n-th call takes effect, or after that and before it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Before(u64),
    After(u64),
    Never,
}

/// What happens to one brain. From its moment on no call of it takes effect and none returns, which is all that the outside
/// sees of a process that died; one that stalled is released again.
pub(crate) struct Fate {
    moment: Moment,
    calls: AtomicU64,
    halted: watch::Sender<bool>,
    met: watch::Sender<bool>,
}

impl Fate {
    pub(crate) fn new(moment: Moment) -> Arc<Self> {
        let (halted, met) = (watch::Sender::new(false), watch::Sender::new(false));
        Arc::new(Self { moment, calls: AtomicU64::new(0), halted, met })
    }

    /// Whether the moment has come.
    pub(crate) fn is_met(&self) -> bool {
        *self.met.borrow()
    }

    pub(crate) fn release(&self) {
        self.halted.send_replace(false);
    }

    fn halt(&self) {
        self.met.send_replace(true);
        self.halted.send_replace(true);
    }

    async fn goes_on(&self) {
        // The sender is ours.
        let _ = self.halted.subscribe().wait_for(|halted| !halted).await;
    }

    async fn meet<T>(&self, call: impl Future<Output = T>) -> T {
        self.goes_on().await;
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.moment == Moment::Before(number) {
            self.halt();
            self.goes_on().await;
        }
        let answer = call.await;
        if self.moment == Moment::After(number) {
            self.halt();
        }
        self.goes_on().await;
        answer
    }
}

/// What the outside has seen, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Answered(StepKey),
    Called(StepKey, Option<IdempotencyKey>),
}

pub(crate) type Sight = Arc<Mutex<Vec<Seen>>>;

pub(crate) struct Doomed<T> {
    pub(crate) fate: Arc<Fate>,
    pub(crate) inner: T,
    pub(crate) sight: Sight,
}

impl<T> Doomed<T> {
    /// A call that arrives even when its caller has given it up by then.
    async fn on_its_way<A: Send + 'static>(&self, call: impl Future<Output = A> + Send + 'static) -> A {
        let fate = self.fate.clone();
        tokio::spawn(async move { fate.meet(call).await }).await.unwrap()
    }
}

#[async_trait]
impl<T: Transport> Transport for Doomed<T> {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let made = async {
            self.sight.lock().unwrap().push(Seen::Called(call.step.clone(), call.key.clone()));
            self.inner.call(call).await
        };
        self.fate.meet(made).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.fate.meet(self.inner.cards()).await
    }
}

#[async_trait]
impl EventBus for Doomed<MemoryBus> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        self.fate.meet(self.inner.publish(event)).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.inner.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        self.inner.capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        self.inner.max_event_bytes()
    }
}

#[async_trait]
impl TaskStore for Doomed<Arc<MemoryStore>> {
    async fn create(
        &self,
        record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<(), StoreError> {
        self.fate.meet(self.inner.create(record, effects, max_queued, max_queued_bytes)).await
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError> {
        self.fate.meet(self.inner.get(id)).await
    }

    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<(), StoreError> {
        let store = self.inner.clone();
        self.on_its_way(async move { store.commit(record, effects).await }).await
    }

    async fn claim(
        &self,
        holder: &str,
        contracts: &[ContractRef],
        lease: Duration,
        limit: usize,
        effects: &(dyn for<'r> Fn(&'r TaskRecord) -> SideEffects + Send + Sync),
    ) -> Result<Vec<(Arc<TaskRecord>, Duration)>, StoreError> {
        self.fate.meet(self.inner.claim(holder, contracts, lease, limit, effects)).await
    }

    async fn renew(&self, holder: &str, lease: Duration, runs: &[Run]) -> Result<Vec<Run>, StoreError> {
        self.fate.meet(self.inner.renew(holder, lease, runs)).await
    }

    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError> {
        self.fate.meet(self.inner.list(query, owner)).await
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        self.fate.meet(self.inner.journal(id)).await
    }

    async fn append(&self, run: &Run, entry: JournalEntry) -> Result<(), StoreError> {
        let (store, sight, run) = (self.inner.clone(), self.sight.clone(), run.clone());
        let written = async move {
            let answered = entry.is_answered().then(|| Seen::Answered(entry.step.clone()));
            store.append(&run, entry).await?;
            sight.lock().unwrap().extend(answered);
            Ok(())
        };
        self.on_its_way(written).await
    }

    async fn append_updates(
        &self,
        run: &Run,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError> {
        self.fate.meet(self.inner.append_updates(run, first, updates)).await
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        self.fate.meet(self.inner.updates_after(id, after, limit)).await
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.fate.meet(self.inner.pending_events(relay, limit)).await
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        self.fate.meet(self.inner.published(event_ids)).await
    }

    fn changes(&self, topic: Topic) -> watch::Receiver<()> {
        self.inner.changes(topic)
    }
}
