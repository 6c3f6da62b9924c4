//! A store in front of another one, which is slow and fails on demand.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use octollm_core::{
    contract::ContractRef,
    id::TaskId,
    store::{JournalEntry, MemoryStore, StoreError, TaskFilter, TaskStore},
    task::TaskRecord,
};

type Fails = dyn FnMut(&str, Option<&TaskRecord>) -> Option<StoreError> + Send;

/// Asks `fails` before each operation: by its name, and for an update with the record that is to be kept.
pub(crate) struct Trouble {
    inner: Arc<MemoryStore>,
    fails: Mutex<Box<Fails>>,
    slow: AtomicU64,
}

impl Trouble {
    pub(crate) fn new() -> Arc<Self> {
        Self::over(Arc::new(MemoryStore::new()))
    }

    pub(crate) fn over(inner: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self { inner, fails: Mutex::new(Box::new(|_, _| None)), slow: AtomicU64::new(0) })
    }

    pub(crate) fn slow(&self, by: Duration) {
        self.slow.store(by.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn fails(
        &self,
        fails: impl FnMut(&str, Option<&TaskRecord>) -> Option<StoreError> + Send + 'static,
    ) {
        *self.fails.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(fails);
    }

    async fn pass(&self, operation: &str, record: Option<&TaskRecord>) -> Result<(), StoreError> {
        let slow = self.slow.load(Ordering::Relaxed);
        if slow > 0 {
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
        match (self.fails.lock().unwrap_or_else(PoisonError::into_inner))(operation, record) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

pub(crate) fn away() -> StoreError {
    StoreError::Unavailable("away".into())
}

#[async_trait]
impl TaskStore for Trouble {
    async fn create(&self, record: TaskRecord) -> Result<(), StoreError> {
        self.pass("create", Some(&record)).await?;
        self.inner.create(record).await
    }

    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError> {
        self.pass("get", None).await?;
        self.inner.get(id).await
    }

    async fn update(&self, record: &mut TaskRecord) -> Result<(), StoreError> {
        self.pass("update", Some(record)).await?;
        self.inner.update(record).await
    }

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError> {
        self.pass("list", None).await?;
        self.inner.list(filter).await
    }

    async fn free(
        &self,
        contracts: &[ContractRef],
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<TaskRecord>, StoreError> {
        self.pass("free", None).await?;
        self.inner.free(contracts, now, limit).await
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        self.pass("journal", None).await?;
        self.inner.journal(id).await
    }

    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError> {
        self.pass("append", None).await?;
        self.inner.append(id, run, entry).await
    }

    async fn forget_failures(&self, id: &TaskId) -> Result<(), StoreError> {
        self.pass("forget_failures", None).await?;
        self.inner.forget_failures(id).await
    }
}
