//! A brain's whole outside: store, arms and bus, in front of which every call is counted, and at one of which the brain
//! dies or stalls.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use octollm_core::{
    bus::{BusError, Capability, EventBus, MemoryBus, Overflow, Subscription},
    card::ArmCard,
    error::CallError,
    event::{Event, Pattern},
    id::StepKey,
    store::{MemoryStore, StoreError},
    transport::{Call, IdempotencyKey, Reply, Transport},
};
use tokio::sync::watch;

use crate::layer::{Layer, Stores, layered};

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
            self.sight.lock().unwrap().push(Seen::Called(call.step.clone(), call.parts.key.clone()));
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

impl Layer for Doomed<Arc<MemoryStore>> {
    async fn around<T: Send>(
        &self,
        _: &'static str,
        _: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        self.fate.meet(work).await
    }

    async fn around_detached<T: Send + 'static>(
        &self,
        _: &'static str,
        stores: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let answered = match stores {
            Stores::Entry(entry) if entry.is_answered() => Some(Seen::Answered(entry.step.clone())),
            _ => None,
        };
        let sight = self.sight.clone();
        self.on_its_way(async move {
            let done = work.await?;
            sight.lock().unwrap().extend(answered);
            Ok(done)
        })
        .await
    }
}

layered!(Doomed<Arc<MemoryStore>>);
