//! A store in front of another one, which is slow and fails on demand.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    contract::ContractRef,
    event::Event,
    id::TaskId,
    parts::Caller,
    store::{JournalEntry, MemoryStore, Run, SideEffects, StoreError, TaskStore, Topic},
    task::{TaskQuery, TaskRecord, TaskUpdate},
};
use tokio::{sync::watch, time::Instant};

type Fails = dyn FnMut(&str, Option<&TaskRecord>) -> Option<StoreError> + Send;

/// Asks `fails` before each operation: by its name, and for a change with the record that is to be stored. An operation
/// that is named with `after ` in front has taken effect by then.
pub(crate) struct Trouble {
    inner: Arc<MemoryStore>,
    fails: Mutex<Box<Fails>>,
    slow: AtomicU64,
    hanging: Mutex<Option<Hanging>>,
}

/// Operations that hang, from when until when.
struct Hanging(&'static str, Instant, Option<Instant>);

impl Trouble {
    pub(crate) fn new() -> Arc<Self> {
        Self::over(Arc::new(MemoryStore::new()))
    }

    pub(crate) fn over(inner: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fails: Mutex::new(Box::new(|_, _| None)),
            slow: AtomicU64::new(0),
            hanging: Mutex::new(None),
        })
    }

    pub(crate) fn slow(&self, by: Duration) {
        self.slow.store(by.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn inner(&self) -> &Arc<MemoryStore> {
        &self.inner
    }

    /// Has an operation hang, for ever even when it is healed.
    pub(crate) fn hang(&self, operation: &'static str) {
        *self.hanging.lock().unwrap() = Some(Hanging(operation, Instant::now(), None));
    }

    /// Has operations that begin in this time return at its end. A renewal takes effect then, the others at once.
    pub(crate) fn hang_after(&self, operations: &'static str, after: Duration, time: Duration) {
        let from = Instant::now() + after;
        *self.hanging.lock().unwrap() = Some(Hanging(operations, from, Some(from + time)));
    }

    pub(crate) fn heal(&self) {
        *self.hanging.lock().unwrap() = None;
    }

    /// Until when an operation hangs that begins now: `None` for ever.
    fn hangs(&self, operation: &str) -> Option<Option<Instant>> {
        let now = Instant::now();
        let hanging = self.hanging.lock().unwrap_or_else(PoisonError::into_inner);
        let Hanging(name, from, until) = hanging.as_ref()?;
        let hangs = name.split('+').any(|name| name == operation)
            && *from <= now
            && until.is_none_or(|until| now < until);
        hangs.then_some(*until)
    }

    pub(crate) fn fails(
        &self,
        fails: impl FnMut(&str, Option<&TaskRecord>) -> Option<StoreError> + Send + 'static,
    ) {
        *self.fails.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(fails);
    }

    fn ask(&self, operation: &str, record: Option<&TaskRecord>) -> Result<(), StoreError> {
        match (self.fails.lock().unwrap_or_else(PoisonError::into_inner))(operation, record) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn pass(&self, operation: &str, record: Option<&TaskRecord>) -> Result<(), StoreError> {
        let slow = self.slow.load(Ordering::Relaxed);
        if slow > 0 {
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
        self.ask(operation, record)?;
        match self.hangs(operation) {
            Some(None) => std::future::pending().await,
            _ => Ok(()),
        }
    }

    /// Returns the answer of an operation that began now, when it is done.
    async fn answer<T>(&self, operation: &str, work: impl Future<Output = T>) -> T {
        let until = self.hangs(operation).flatten();
        let answer = work.await;
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
        answer
    }
}

pub(crate) fn away() -> StoreError {
    StoreError::Unavailable("away".into())
}

#[async_trait]
impl TaskStore for Trouble {
    async fn create(
        &self,
        record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<(), StoreError> {
        self.pass("create", Some(&record)).await?;
        self.inner.create(record.clone(), effects, max_queued, max_queued_bytes).await?;
        self.ask("after create", Some(&record))
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError> {
        self.pass("get", None).await?;
        self.inner.get(id).await
    }

    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<(), StoreError> {
        self.pass("commit", Some(&record)).await?;
        self.inner.commit(record.clone(), effects).await?;
        self.ask("after commit", Some(&record))
    }

    async fn claim(
        &self,
        holder: &str,
        contracts: &[ContractRef],
        lease: Duration,
        limit: usize,
        effects: &(dyn for<'r> Fn(&'r TaskRecord) -> SideEffects + Send + Sync),
    ) -> Result<Vec<(Arc<TaskRecord>, Duration)>, StoreError> {
        self.pass("claim", None).await?;
        self.answer("claim", self.inner.claim(holder, contracts, lease, limit, effects)).await
    }

    async fn renew(&self, holder: &str, lease: Duration, runs: &[Run]) -> Result<Vec<Run>, StoreError> {
        self.pass("renew", None).await?;
        if let Some(until) = self.hangs("renew").flatten() {
            tokio::time::sleep_until(until).await;
        }
        self.inner.renew(holder, lease, runs).await
    }

    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError> {
        self.pass("list", None).await?;
        self.inner.list(query, owner).await
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        self.pass("journal", None).await?;
        self.inner.journal(id).await
    }

    async fn append(&self, run: &Run, entry: JournalEntry) -> Result<(), StoreError> {
        self.pass("append", None).await?;
        self.answer("append", self.inner.append(run, entry)).await?;
        self.ask("after append", None)
    }

    async fn append_updates(
        &self,
        run: &Run,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError> {
        self.pass("append_updates", None).await?;
        self.inner.append_updates(run, first, updates).await?;
        self.ask("after append_updates", None)
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        self.pass("updates_after", None).await?;
        self.inner.updates_after(id, after, limit).await
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.pass("pending_events", None).await?;
        self.inner.pending_events(relay, limit).await
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        self.pass("published", None).await?;
        self.inner.published(event_ids).await
    }

    fn changes(&self, topic: Topic) -> watch::Receiver<()> {
        self.inner.changes(topic)
    }
}
