//! Stores of tasks, with their journals, their live updates, and the events of their changes.

mod change;
mod journal;
mod memory;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;

pub(crate) use self::{
    change::progress_event,
    journal::{Draft, Recorded, outcome_unknown, own_times, replay, served_by},
};
pub use self::{
    change::{Claim, Claimed, SideEffects, Start},
    journal::JournalEntry,
    memory::MemoryStore,
};
use crate::{
    error::{ErrorKind, Failure},
    event::Event,
    id::TaskId,
    parts::Caller,
    task::{TaskQuery, TaskRecord, TaskUpdate},
};

/// A store of tasks, their journals, their live updates, and the events of their changes.
///
/// Several brains may share a store. Two numbers separate them: the store refuses a change that was not made from the latest
/// revision of the task, and a journal entry or an update that does not come from its latest run. The store's own clock sets
/// and judges leases and deadlines, so that the clocks of brains may differ.
///
/// A brain gives each operation ten seconds, and treats one that panics as [`StoreError::Unavailable`].
///
/// # Cancel safety
/// Every operation takes effect as a whole or not at all. A caller that drops the future does not know which, and a store
/// must not hold a lock or a transaction after that. A brain repeats an operation or reads the task again.
#[async_trait]
pub trait TaskStore: Send + Sync + 'static {
    /// Stores a new task together with its effects, and returns it as it is stored. Where it has a
    /// [uniqueness key](TaskRecord::unique_key) that a task which is not finished has too, the store returns that task, and stores
    /// nothing. No two tasks with one key are stored.
    ///
    /// With [`SideEffects::start`] it may start the first run of the task.
    ///
    /// Otherwise refuses it when `max_queued` tasks are queued, delayed ones included, or when those and this one have more than
    /// `max_queued_bytes` bytes by [`TaskRecord::size`].
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a task has this id, [`StoreError::Full`] when a limit is reached, and
    /// [`StoreError::Unavailable`] when the task may or may not have been stored.
    ///
    /// # Cancel safety
    /// The task may or may not be stored when the future is dropped. If it is, its effects are too.
    async fn create(
        &self,
        record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<Arc<TaskRecord>, StoreError>;

    /// Whether [`create`](Self::create) heeds [`SideEffects::start`]. By default it does not.
    fn starts(&self) -> bool {
        false
    }

    /// Returns the task with this id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError>;

    /// Stores a changed task together with the effects of the change, under the next revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the task has changed since `record` was read, [`StoreError::NotFound`] when it is gone,
    /// [`StoreError::NotUnique`] when a finished task would be queued again while another one with its
    /// [uniqueness key](TaskRecord::unique_key) is not finished, and [`StoreError::Unavailable`] when the change may or may not have been stored.
    ///
    /// # Cancel safety
    /// The change may or may not be stored when the future is dropped. If it is, its effects are too.
    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<(), StoreError>;

    /// Claims free tasks for a brain: [starts](Claim::start) a run of each, and stores the changed record with the effects.
    ///
    /// A task is free as [`TaskRecord::is_free`] defines. Tasks of the highest priority come first, and the oldest of those, by the
    /// time of submission. No two brains claim the same run. A lease expires unless it is [renewed](Self::renew).
    ///
    /// Tasks of a contract that has reached its [limit](Claim::max_running) are passed over, and hold up none of other contracts.
    /// A store counts and claims in one step: brains that claim at the same time do not exceed a limit together.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]. Tasks that were claimed all the same are free again when their leases expire.
    ///
    /// # Cancel safety
    /// Tasks may be claimed when the future is dropped. They are free again when their leases expire.
    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError>;

    /// Renews the leases of these runs, each a task and the number of its run, and returns those that still hold their task.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    /// Each lease may or may not be renewed when the future is dropped.
    async fn renew(
        &self,
        holder: &str,
        lease: Duration,
        runs: &[(TaskId, u32)],
    ) -> Result<Vec<(TaskId, u32)>, StoreError>;

    /// Returns the tasks of `owner`, or of everybody, newest first. The limit of the query applies as it is, also above
    /// [`TaskQuery::MAX_LIMIT`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError>;

    /// Returns at most `limit` entries of the journal of a task, in the order of [`JournalEntry::seq`]: the first ones, or those
    /// after position `after`. There are none where the task is gone.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError>;

    /// Writes a journal entry of a run in place of an earlier one of the same step, and sets [`JournalEntry::at`] by the store's clock.
    /// Writing an entry twice has the effect of writing it once.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `run` is not the number of the latest run of the task or the task is not processing,
    /// [`StoreError::NotFound`] when the task is gone, and [`StoreError::Unavailable`] when the entry may or may not have been
    /// written.
    ///
    /// # Cancel safety
    /// The entry may or may not be written when the future is dropped. The caller writes it again.
    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError>;

    /// Appends live updates of a run. The store numbers them, over all runs of a task without repetition, and may drop the
    /// oldest.
    ///
    /// `first` is the position of the first of them among the updates of this run, from 0. The store skips those that it has
    /// appended before, so that a repeated call appends nothing twice.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Cancel safety
    /// The updates may or may not be appended when the future is dropped. The caller appends them again with the same `first`.
    async fn append_updates(
        &self,
        id: &TaskId,
        run: u32,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError>;

    /// Returns at most `limit` updates of a task after number `after`, in order. Where some of them are no longer stored, a
    /// [`TaskUpdate::Gap`] comes first. A number that no update has yet is read as 0.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError>;

    /// Returns at most `limit` events that are not published yet, in the order in which their changes were stored.
    ///
    /// `relay` names the caller. A store returns no events to other relays until this one has published all, or has not called
    /// for ten seconds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    /// No event is lost when the future is dropped: it stays until it is [published](Self::published).
    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError>;

    /// Deletes events that were published.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    ///
    /// # Cancel safety
    /// An event that is not deleted when the future is dropped is published again.
    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError>;

    /// Returns a receiver that changes whenever a task is queued, also one that is delayed, and whenever a change
    /// [makes room](SideEffects::makes_room), from now on. It does not change when the time of a delayed task comes, which brains
    /// know from [`Claimed::free_in`]. A store without notifications sends at intervals.
    fn queue_changes(&self) -> watch::Receiver<()>;

    /// Returns a receiver that changes whenever there are further events to publish: see
    /// [`queue_changes`](Self::queue_changes).
    fn event_changes(&self) -> watch::Receiver<()>;

    /// Returns a receiver that changes whenever a task or its updates change: see [`queue_changes`](Self::queue_changes).
    fn task_changes(&self, id: &TaskId) -> watch::Receiver<()>;
}

#[async_trait]
impl<S: TaskStore + ?Sized> TaskStore for Arc<S> {
    async fn create(
        &self,
        record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<Arc<TaskRecord>, StoreError> {
        (**self).create(record, effects, max_queued, max_queued_bytes).await
    }

    fn starts(&self) -> bool {
        (**self).starts()
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError> {
        (**self).get(id).await
    }

    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<(), StoreError> {
        (**self).commit(record, effects).await
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError> {
        (**self).claim(claim).await
    }

    async fn renew(
        &self,
        holder: &str,
        lease: Duration,
        runs: &[(TaskId, u32)],
    ) -> Result<Vec<(TaskId, u32)>, StoreError> {
        (**self).renew(holder, lease, runs).await
    }

    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError> {
        (**self).list(query, owner).await
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        (**self).journal(id, after, limit).await
    }

    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError> {
        (**self).append(id, run, entry).await
    }

    async fn append_updates(
        &self,
        id: &TaskId,
        run: u32,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError> {
        (**self).append_updates(id, run, first, updates).await
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

    fn queue_changes(&self) -> watch::Receiver<()> {
        (**self).queue_changes()
    }

    fn event_changes(&self) -> watch::Receiver<()> {
        (**self).event_changes()
    }

    fn task_changes(&self, id: &TaskId) -> watch::Receiver<()> {
        (**self).task_changes(id)
    }
}

/// The error of an operation of a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another change came first.
    #[error("another change of the task came first")]
    Conflict,
    /// The task does not exist.
    #[error("there is no such task")]
    NotFound,
    /// Another task with the same uniqueness key is not finished.
    #[error("another task with the same uniqueness key is not finished")]
    NotUnique,
    /// A limit of queued tasks is reached.
    #[error("too many tasks are waiting")]
    Full,
    /// The store failed or is not reachable. A change may have been stored.
    #[error("the task store failed")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Conflict | StoreError::NotUnique => Self::new(ErrorKind::Conflict, message),
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
