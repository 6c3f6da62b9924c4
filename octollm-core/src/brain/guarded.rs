//! The store as a brain uses it: every operation ends.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;

use crate::{
    deadline::Deadline,
    event::Event,
    id::TaskId,
    store::{
        Changes, Claim, Claimed, JournalEntry, Room, Run, SideEffects, StoreError, TaskFilter, TaskStore,
        Topic,
    },
    task::{TaskRecord, TaskUpdate},
};

/// A store that hangs or panics fails as one that is away does. Whether the operation took effect is not known then, which
/// is what [`StoreError::Unavailable`] says.
pub(super) struct Guarded(pub(super) Arc<dyn TaskStore>);

/// How long an operation may take.
const LIMIT: Duration = Duration::from_secs(10);

async fn guarded<T>(operation: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match AssertUnwindSafe(Deadline::after(LIMIT).run(operation)).catch_unwind().await {
        Ok(Some(answer)) => answer,
        Ok(None) => Err(StoreError::Unavailable(format!("no answer came within {LIMIT:?}").into())),
        Err(_) => Err(StoreError::Unavailable("it panicked".into())),
    }
}

#[async_trait]
impl TaskStore for Guarded {
    async fn create(&self, record: TaskRecord, effects: SideEffects, room: Room) -> Result<(), StoreError> {
        guarded(self.0.create(record, effects, room)).await
    }

    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError> {
        guarded(self.0.get(id)).await
    }

    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<TaskRecord, StoreError> {
        guarded(self.0.commit(record, effects)).await
    }

    async fn claim(&self, claim: Claim<'_>) -> Result<Vec<Claimed>, StoreError> {
        guarded(self.0.claim(claim)).await
    }

    async fn renew(&self, holder: &str, lease: Duration, runs: &[Run]) -> Result<Vec<Run>, StoreError> {
        guarded(self.0.renew(holder, lease, runs)).await
    }

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError> {
        guarded(self.0.list(filter)).await
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        guarded(self.0.journal(id)).await
    }

    async fn append(&self, run: &Run, entry: JournalEntry) -> Result<(), StoreError> {
        guarded(self.0.append(run, entry)).await
    }

    async fn append_updates(&self, run: &Run, updates: Vec<TaskUpdate>) -> Result<(), StoreError> {
        guarded(self.0.append_updates(run, updates)).await
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        guarded(self.0.updates_after(id, after, limit)).await
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        guarded(self.0.pending_events(relay, limit)).await
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        guarded(self.0.published(event_ids)).await
    }

    fn changes(&self, topic: Topic) -> Changes {
        self.0.changes(topic)
    }
}
