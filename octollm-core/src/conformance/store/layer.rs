//! What happens around the operations of a store.

use std::future::Future;

use octollm_core::{
    store::{JournalEntry, StoreError},
    task::TaskRecord,
};

/// What an operation stores.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "not each layer reads them all")]
pub(crate) enum Stores<'a> {
    Nothing,
    Record(&'a TaskRecord),
    Entry(&'a JournalEntry),
}

/// Runs around each operation of a store, by its name: see [`layered`].
pub(crate) trait Layer: Sync {
    fn around<T: Send>(
        &self,
        operation: &'static str,
        stores: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> impl Future<Output = Result<T, StoreError>> + Send;

    /// The same for an operation that may go on when its caller has gone.
    fn around_detached<T: Send + 'static>(
        &self,
        operation: &'static str,
        stores: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> impl Future<Output = Result<T, StoreError>> + Send {
        self.around(operation, stores, work)
    }
}

/// Implements `TaskStore` for a [`Layer`] over the shared store in its field `inner`. `Layer` and `Stores` are in scope.
macro_rules! layered {
    ($layer:ty) => {
        const _: () = {
            use std::{sync::Arc, time::Duration};

            use octollm_core::{
                event::Event,
                id::TaskId,
                parts::Caller,
                store::{Claim, Claimed, JournalEntry, SideEffects, StoreError, TaskStore},
                task::{TaskQuery, TaskRecord, TaskUpdate},
            };
            use tokio::sync::watch;

            type Answer<T> = Result<T, StoreError>;

            #[async_trait::async_trait]
            impl TaskStore for $layer {
                async fn create(
                    &self,
                    record: TaskRecord,
                    effects: SideEffects,
                    max_queued: usize,
                    max_queued_bytes: usize,
                ) -> Answer<Arc<TaskRecord>> {
                    let work = self.inner.create(record.clone(), effects, max_queued, max_queued_bytes);
                    self.around("create", Stores::Record(&record), work).await
                }

                async fn get(&self, id: &TaskId) -> Answer<Option<Arc<TaskRecord>>> {
                    self.around("get", Stores::Nothing, self.inner.get(id)).await
                }

                async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Answer<()> {
                    let (store, changed) = (self.inner.clone(), record.clone());
                    let work = async move { store.commit(changed, effects).await };
                    self.around_detached("commit", Stores::Record(&record), work).await
                }

                async fn claim(&self, claim: &Claim<'_>) -> Answer<Claimed> {
                    self.around("claim", Stores::Nothing, self.inner.claim(claim)).await
                }

                async fn renew(
                    &self,
                    holder: &str,
                    lease: Duration,
                    runs: &[(TaskId, u32)],
                ) -> Answer<Vec<(TaskId, u32)>> {
                    self.around("renew", Stores::Nothing, self.inner.renew(holder, lease, runs)).await
                }

                async fn list(
                    &self,
                    query: &TaskQuery,
                    owner: Option<&Caller>,
                ) -> Answer<Vec<Arc<TaskRecord>>> {
                    self.around("list", Stores::Nothing, self.inner.list(query, owner)).await
                }

                async fn journal(
                    &self,
                    id: &TaskId,
                    after: Option<u64>,
                    limit: usize,
                ) -> Answer<Vec<JournalEntry>> {
                    self.around("journal", Stores::Nothing, self.inner.journal(id, after, limit)).await
                }

                async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Answer<()> {
                    let (store, id, written) = (self.inner.clone(), id.clone(), entry.clone());
                    let work = async move { store.append(&id, run, written).await };
                    self.around_detached("append", Stores::Entry(&entry), work).await
                }

                async fn append_updates(
                    &self,
                    id: &TaskId,
                    run: u32,
                    first: u64,
                    updates: Vec<TaskUpdate>,
                ) -> Answer<()> {
                    let work = self.inner.append_updates(id, run, first, updates);
                    self.around("append_updates", Stores::Nothing, work).await
                }

                async fn updates_after(
                    &self,
                    id: &TaskId,
                    after: u64,
                    limit: usize,
                ) -> Answer<Vec<TaskUpdate>> {
                    let work = self.inner.updates_after(id, after, limit);
                    self.around("updates_after", Stores::Nothing, work).await
                }

                async fn pending_events(&self, relay: &str, limit: usize) -> Answer<Vec<Event>> {
                    let work = self.inner.pending_events(relay, limit);
                    self.around("pending_events", Stores::Nothing, work).await
                }

                async fn published(&self, event_ids: &[String]) -> Answer<()> {
                    self.around("published", Stores::Nothing, self.inner.published(event_ids)).await
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
        };
    };
}

pub(crate) use layered;
