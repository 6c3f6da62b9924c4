//! Where tasks and their journals are kept.

mod memory;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::memory::MemoryStore;
use crate::{
    budget::{Budget, Usage},
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::TaskId,
    parts::Caller,
    task::{TaskRecord, TaskStatus},
    transport::{StepKey, Trip},
};

/// Keeps tasks, and the journal of the calls that each has made.
///
/// Several brains may share one store. It keeps them apart by two numbers: a change is refused unless it was made
/// from the latest revision, and a journal entry unless it comes from the latest run.
#[async_trait]
pub trait TaskStore: Send + Sync + 'static {
    /// Keeps a new task.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is one by that id.
    async fn create(&self, record: TaskRecord) -> Result<(), StoreError>;

    /// The task by that id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError>;

    /// Keeps a changed task, and counts its revision up.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the task has changed since `record` was read, [`StoreError::NotFound`] when it
    /// is gone.
    async fn update(&self, record: &mut TaskRecord) -> Result<(), StoreError>;

    /// Tasks, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError>;

    /// Tasks of these contracts that a brain may take at `now`: see [`TaskRecord::is_free`]. Oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    async fn free(
        &self,
        contracts: &[ContractRef],
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<TaskRecord>, StoreError>;

    /// The calls that a task has made, in the order in which they were answered.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError>;

    /// Writes one answered call, in place of an earlier entry for the same step.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `run` is not the latest run of the task.
    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError>;

    /// Takes the failed calls out of a task's journal, so that its next run makes them again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]
    async fn forget_failures(&self, id: &TaskId) -> Result<(), StoreError>;
}

#[async_trait]
impl<S: TaskStore + ?Sized> TaskStore for std::sync::Arc<S> {
    async fn create(&self, record: TaskRecord) -> Result<(), StoreError> {
        (**self).create(record).await
    }

    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError> {
        (**self).get(id).await
    }

    async fn update(&self, record: &mut TaskRecord) -> Result<(), StoreError> {
        (**self).update(record).await
    }

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError> {
        (**self).list(filter).await
    }

    async fn free(
        &self,
        contracts: &[ContractRef],
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<TaskRecord>, StoreError> {
        (**self).free(contracts, now, limit).await
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        (**self).journal(id).await
    }

    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError> {
        (**self).append(id, run, entry).await
    }

    async fn forget_failures(&self, id: &TaskId) -> Result<(), StoreError> {
        (**self).forget_failures(id).await
    }
}

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TaskFilter {
    /// Only those of this status.
    pub status: Option<TaskStatus>,
    /// Only those older than this one.
    pub after: Option<TaskId>,
    /// Only those of this caller; `None` for those of anyone.
    pub owner: Option<Caller>,
    /// So many at most.
    pub limit: usize,
}

/// A call that a task has made, and its answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JournalEntry {
    /// Which call it was.
    pub step: StepKey,
    /// What was asked.
    pub contract: ContractRef,
    /// Digest of the input, whatever the order of its keys.
    pub input_digest: String,
    /// What came back.
    pub answer: Answer,
    /// Who answered, where, and at which attempt.
    pub trip: Trip,
    /// What it used up.
    pub used: Budget,
    /// What the task had left when the call was made.
    pub budget_left: Budget,
    /// How long the task still had then, in milliseconds.
    pub time_left_ms: Option<u64>,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// When it was answered.
    pub at: Timestamp,
}

/// What came back of a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The output's JSON, to the byte.
    Output(Box<RawValue>),
    /// Why there is none.
    Failure(Box<Failure>),
}

impl JournalEntry {
    /// What it used up.
    pub fn usage(&self) -> Usage {
        Usage::tokens(self.used.tokens.unwrap_or(0)).with_cost(self.used.cost.unwrap_or_default())
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else's change came first.
    #[error("the task has changed meanwhile")]
    Conflict,
    /// There is no such task.
    #[error("there is no such task")]
    NotFound,
    /// The store cannot be reached, or failed.
    #[error("the task store failed")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Conflict => Self::new(ErrorKind::Conflict, message),
            StoreError::NotFound => Self::of(ErrorKind::TaskNotFound),
            StoreError::Unavailable(source) => {
                tracing::error!(error = &*source as &dyn std::error::Error, "task store failed");
                Self::new(ErrorKind::Unavailable, message)
            }
        }
    }
}
