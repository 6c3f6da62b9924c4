//! Where tasks, their journals, their updates and the events of their changes are stored.

mod changes;
mod journal;
mod memory;

use std::time::Duration;

use async_trait::async_trait;

pub use self::{
    changes::{ChangeHub, Changes, Topic},
    journal::{JournalEntry, Recorded},
    memory::{MemoryStore, MemoryStoreConfig},
};
use crate::{
    contract::ContractRef,
    error::{ErrorKind, Failure},
    event::Event,
    id::{StepKey, TaskId},
    parts::Caller,
    task::{TaskRecord, TaskStatus, TaskUpdate},
};

/// Stores tasks, the journal of the calls that each has made, its live updates, and the events of its changes until they
/// are published.
///
/// Several brains may share one store. It keeps them apart by two numbers: a change is refused unless it was made from
/// the latest revision, and a journal entry unless it comes from the latest run. Leases and deadlines are set and judged
/// by the store's own clock, so that the clocks of brains may differ.
///
/// # Cancel safety
/// A method whose future is dropped may or may not have taken effect, as a whole.
#[async_trait]
pub trait TaskStore: Send + Sync + 'static {
    /// Stores a new task and its effects, both or neither.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is one by that id, [`StoreError::Full`] when as much waits as `room` allows,
    /// [`StoreError::Unavailable`] when it is not known whether the task was stored.
    async fn create(&self, record: TaskRecord, effects: SideEffects, room: Room) -> Result<(), StoreError>;

    /// The task by that id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError>;

    /// Stores a changed task and the effects of the change, all or nothing, and returns the task under its new revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the task has changed since `record` was read, [`StoreError::NotFound`] when it
    /// is gone, [`StoreError::Unavailable`] when it is not known whether the change was stored.
    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<TaskRecord, StoreError>;

    /// Claims free tasks (see [`TaskRecord::is_free`]), the most urgent first and among those the oldest, and gives each
    /// to one brain alone.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn claim(&self, claim: Claim<'_>) -> Result<Vec<Claimed>, StoreError>;

    /// Renews the leases of these runs, and returns those that still hold their task.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn renew(&self, holder: &str, lease: Duration, runs: &[Run]) -> Result<Vec<Run>, StoreError>;

    /// Tasks, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError>;

    /// The journal of a task, in the order of [`JournalEntry::seq`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError>;

    /// Writes one journal entry, in place of an earlier one for the same step, with the time of the store's clock as
    /// [`JournalEntry::at`]. Writing the same entry twice is as good as once.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `run` is not the latest run of the task or the task is not being run any more,
    /// [`StoreError::NotFound`] when it is gone.
    async fn append(&self, run: &Run, entry: JournalEntry) -> Result<(), StoreError>;

    /// Appends updates of a task. The store gives them their numbers, which never repeat over the runs of a task; it may
    /// drop the oldest ones.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `run` is not the latest run of the task or the task is not being run any more,
    /// [`StoreError::NotFound`] when it is gone.
    async fn append_updates(&self, run: &Run, updates: Vec<TaskUpdate>) -> Result<(), StoreError>;

    /// At most `limit` updates of a task after number `after`, in order. Where some of them are no longer stored, a
    /// [`TaskUpdate::Gap`] comes first. A number that no update has had yet is read as 0.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError>;

    /// At most `limit` events that wait to be published, in the order in which their changes were stored. `relay` names who
    /// publishes them; others are given none until it is done, or has been silent for ten seconds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError>;

    /// These events were published.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError>;

    /// Wakes who waits for a change, from now on. A store without notifications returns changes at intervals.
    fn changes(&self, topic: Topic) -> Changes;
}

#[async_trait]
impl<S: TaskStore + ?Sized> TaskStore for std::sync::Arc<S> {
    async fn create(&self, record: TaskRecord, effects: SideEffects, room: Room) -> Result<(), StoreError> {
        (**self).create(record, effects, room).await
    }

    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError> {
        (**self).get(id).await
    }

    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<TaskRecord, StoreError> {
        (**self).commit(record, effects).await
    }

    async fn claim(&self, claim: Claim<'_>) -> Result<Vec<Claimed>, StoreError> {
        (**self).claim(claim).await
    }

    async fn renew(&self, holder: &str, lease: Duration, runs: &[Run]) -> Result<Vec<Run>, StoreError> {
        (**self).renew(holder, lease, runs).await
    }

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError> {
        (**self).list(filter).await
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        (**self).journal(id).await
    }

    async fn append(&self, run: &Run, entry: JournalEntry) -> Result<(), StoreError> {
        (**self).append(run, entry).await
    }

    async fn append_updates(&self, run: &Run, updates: Vec<TaskUpdate>) -> Result<(), StoreError> {
        (**self).append_updates(run, updates).await
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        (**self).updates_after(id, after, limit).await
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        (**self).pending_events(relay, limit).await
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        (**self).published(event_ids).await
    }

    fn changes(&self, topic: Topic) -> Changes {
        (**self).changes(topic)
    }
}

/// What a change of a task brings along. It is stored together with the change.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SideEffects {
    /// Events to be published, in this order.
    pub events: Vec<Event>,
    /// Live updates, which get their numbers from the store.
    pub updates: Vec<TaskUpdate>,
    /// Steps whose journal entries are discarded.
    pub discarded: Vec<StepKey>,
    /// Journal entries to be written after that.
    pub journal: Vec<JournalEntry>,
}

/// How much may wait in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Room {
    /// Queued tasks.
    pub tasks: usize,
    /// Bytes of what was submitted with them: see [`TaskRecord::size`].
    pub bytes: usize,
}

impl Room {
    /// Room for so many tasks of so many bytes in all.
    pub fn new(tasks: usize, bytes: usize) -> Self {
        Self { tasks, bytes }
    }
}

/// One run of a task: what a brain holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Run {
    /// The task.
    pub task: TaskId,
    /// The number of the run.
    pub number: u32,
}

impl Run {
    /// A run of a task.
    pub fn new(task: TaskId, number: u32) -> Self {
        Self { task, number }
    }
}

/// Which tasks a brain claims.
#[non_exhaustive]
pub struct Claim<'a> {
    /// The brain.
    pub holder: &'a str,
    /// The contracts that it runs.
    pub contracts: &'a [ContractRef],
    /// How long it holds a task without renewing the lease.
    pub lease: Duration,
    /// At most so many tasks.
    pub limit: usize,
    /// What is stored with each claim: called with the claimed task.
    pub effects: &'a (dyn Fn(&TaskRecord) -> SideEffects + Send + Sync),
}

impl std::fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim")
            .field("holder", &self.holder)
            .field("contracts", &self.contracts)
            .field("lease", &self.lease)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// A task that was claimed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Claimed {
    /// The task, whose run number is new.
    pub record: TaskRecord,
    /// How much of its time is left, by the store's clock.
    pub time_left: Duration,
}

impl Claimed {
    /// A claimed task.
    pub fn new(record: TaskRecord, time_left: Duration) -> Self {
        Self { record, time_left }
    }

    /// When it was claimed, by the store's clock.
    pub(crate) fn at(&self) -> Option<jiff::Timestamp> {
        self.record.deadline_at()?.checked_sub(self.time_left).ok()
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
    /// At most so many.
    pub limit: usize,
}

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another change came first.
    #[error("the task has changed meanwhile")]
    Conflict,
    /// There is no such task.
    #[error("there is no such task")]
    NotFound,
    /// As much waits as may.
    #[error("too many tasks are waiting")]
    Full,
    /// The store cannot be reached, or failed: a change may have been stored.
    #[error("the task store failed")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Conflict => Self::new(ErrorKind::Conflict, message),
            StoreError::NotFound => Self::of(ErrorKind::TaskNotFound),
            StoreError::Full => {
                let full = Self::new(ErrorKind::Overloaded, message).before_execution();
                Self { retry_after: Some(Duration::from_secs(1)), ..full }
            }
            StoreError::Unavailable(_) => Self::new(ErrorKind::Unavailable, message),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}
