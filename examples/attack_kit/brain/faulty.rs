//! A store and a bus that fail: before an operation takes effect, after it, or by not returning.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use octollm::{
    bus::{BusError, Capability, MemoryBus, Overflow, Subscription},
    context::Caller,
    event::{Event, Pattern},
    id::TaskId,
    prelude::*,
    store::{Claim, Claimed, JournalEntry, MemoryStore, SideEffects, StoreError, TaskStore},
    task::{TaskQuery, TaskRecord, TaskUpdate},
};
use tokio::{sync::watch, time::sleep};

/// Numbers that look random, the same for the same seed.
#[derive(Debug, Clone)]
pub(super) struct Dice(Arc<Mutex<u64>>);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
    }

    pub(super) fn below(&self, limit: u64) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) % limit.max(1)
    }

    pub(super) async fn pause(&self, ms: u64) {
        sleep(Duration::from_micros(self.below(ms * 1000))).await;
    }
}

/// What may go wrong in an operation, in percent of all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// It fails, and has no effect.
    pub(super) before: u64,
    /// It takes effect, and fails.
    pub(super) after: u64,
    /// It takes effect after a while: so many milliseconds.
    pub(super) late: u64,
    pub(super) ms: u64,
}

/// A store in front of a sound one.
#[derive(Clone)]
pub(super) struct Faulty {
    inner: Arc<MemoryStore>,
    dice: Dice,
    faults: Arc<Mutex<Faults>>,
    count: Arc<AtomicU64>,
}

impl Faulty {
    pub(super) fn new(inner: Arc<MemoryStore>, dice: Dice) -> Self {
        Self { inner, dice, faults: Arc::default(), count: Arc::default() }
    }

    pub(super) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// How many operations went wrong.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn strikes(&self, percent: u64) -> bool {
        let strikes = percent > 0 && self.dice.below(100) < percent;
        self.count.fetch_add(u64::from(strikes), Ordering::Relaxed);
        strikes
    }

    async fn pass<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let faults = *self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let away = || StoreError::Unavailable("the attack".into());
        if self.strikes(faults.before) {
            return Err(away());
        }
        if self.strikes(faults.late) {
            sleep(Duration::from_millis(faults.ms)).await;
        }
        let done = work.await?;
        if self.strikes(faults.after) { Err(away()) } else { Ok(done) }
    }
}

#[async_trait]
impl TaskStore for Faulty {
    async fn create(
        &self,
        record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<Arc<TaskRecord>, StoreError> {
        self.pass(self.inner.create(record, effects, max_queued, max_queued_bytes)).await
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError> {
        self.pass(self.inner.get(id)).await
    }

    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<(), StoreError> {
        self.pass(self.inner.commit(record, effects)).await
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError> {
        self.pass(self.inner.claim(claim)).await
    }

    async fn renew(
        &self,
        holder: &str,
        lease: Duration,
        runs: &[(TaskId, u32)],
    ) -> Result<Vec<(TaskId, u32)>, StoreError> {
        self.pass(self.inner.renew(holder, lease, runs)).await
    }

    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError> {
        self.pass(self.inner.list(query, owner)).await
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        self.pass(self.inner.journal(id, after, limit)).await
    }

    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError> {
        self.pass(self.inner.append(id, run, entry)).await
    }

    async fn append_updates(
        &self,
        id: &TaskId,
        run: u32,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError> {
        self.pass(self.inner.append_updates(id, run, first, updates)).await
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        self.pass(self.inner.updates_after(id, after, limit)).await
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.pass(self.inner.pending_events(relay, limit)).await
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        self.pass(self.inner.published(event_ids)).await
    }

    fn queue_changes(&self) -> watch::Receiver<()> {
        self.inner.queue_changes()
    }

    fn event_changes(&self) -> watch::Receiver<()> {
        self.inner.event_changes()
    }

    fn task_changes(&self, id: &TaskId) -> watch::Receiver<()> {
        self.inner.task_changes(id)
    }
}

/// A bus that is full until it is opened, and slow.
#[derive(Clone)]
pub(super) struct FullBus {
    pub(super) inner: MemoryBus,
    dice: Dice,
    is_open: Arc<AtomicBool>,
}

impl FullBus {
    pub(super) fn new(dice: Dice) -> Self {
        Self { inner: MemoryBus::new(), dice, is_open: Arc::default() }
    }

    pub(super) fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl EventBus for FullBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        if !self.is_open.load(Ordering::Relaxed) {
            self.dice.pause(5).await;
            match self.dice.below(3) {
                0 => return Err(BusError::Full { events: 1, bytes: 1 }),
                1 => return Err(BusError::Unavailable { source: None }),
                _ => {}
            }
        }
        self.inner.publish(event).await
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
