//! How the live updates of a task reach its watchers: by way of the store.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{STORE_INTERVAL, limited, running::Run, scheduler::store_changed};
use crate::{
    budget::Usage,
    context::{Context, WeakContext},
    id::TaskId,
    json::RawJson,
    orchestrator::TaskUpdates,
    store::{StoreError, TaskStore},
    task::{TaskStatus, TaskUpdate},
    update::{Phase, Progress, Update, UpdateSink},
};

/// Updates of a run that are not stored yet. Above this number the latest progress replaces the one before, and chunks wait.
const PENDING: usize = 64;
/// Pause after a failure of the store.
const UPDATE_PAUSE: Duration = Duration::from_millis(250);

/// The updates of one run on their way into the store.
#[derive(Debug)]
pub(super) struct UpdateLog {
    task_id: TaskId,
    state: Mutex<Unstored>,
    /// Changes with the state.
    version: watch::Sender<u64>,
    /// The context of the run, which has this log for its updates, and the number of its calls in flight.
    context: OnceLock<(WeakContext, Arc<AtomicUsize>)>,
    /// The context of a caller in this process, which reports the progress and the chunks of the task as its own.
    caller: Option<WeakContext>,
}

#[derive(Debug)]
struct Unstored {
    progress: Progress,
    pending: Vec<TaskUpdate>,
    /// How many updates of the run come before those.
    first: u64,
    ended: bool,
}

impl UpdateLog {
    /// The log of a run that begins. Its phase is execution until the arm sets another.
    pub(super) fn new(task_id: TaskId, progress: Progress, caller: Option<WeakContext>) -> Self {
        let progress = Progress { current_step: Phase::Execution, ..progress };
        let state = Mutex::new(Unstored { progress, pending: Vec::new(), first: 0, ended: false });
        Self { task_id, state, version: watch::Sender::new(0), context: OnceLock::new(), caller }
    }

    /// Sets the context of the run.
    pub(super) fn runs_in(&self, cx: &Context, in_flight: Arc<AtomicUsize>) {
        // A log has one run.
        let _ = self.context.set((cx.downgrade(), in_flight));
    }

    /// The usage of the run so far. Each call in flight counts as unmetered.
    pub(super) fn used(&self) -> Usage {
        let Some((context, in_flight)) = self.context.get() else { return Usage::ZERO };
        let unmetered = in_flight.load(Ordering::Relaxed).try_into().unwrap_or(u64::MAX);
        context.used().plus(Usage { unmetered, ..Usage::ZERO })
    }

    fn state(&self) -> MutexGuard<'_, Unstored> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(super) fn progress(&self) -> Progress {
        self.state().progress.clone()
    }

    /// Ends the log when the arm has ended.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.moved();
    }

    /// Changes whenever there is an update.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Takes the updates that may not be stored, and returns how many of the run come before them.
    pub(super) fn take_pending(&self) -> (u64, Vec<TaskUpdate>) {
        let mut state = self.state();
        (state.first, std::mem::take(&mut state.pending))
    }

    /// Writes updates to the store until the run has ended. Returns whether the run still holds its task.
    pub(super) async fn write(&self, store: &dyn TaskStore, run: &Run) -> bool {
        let mut version = self.version.subscribe();
        // A batch that may or may not have been stored is written again as it is, so that the store can skip it.
        let mut batch = Vec::new();
        loop {
            version.mark_unchanged();
            let first = {
                let mut state = self.state();
                if state.ended {
                    // The rest is stored together with the end of the task.
                    state.pending.splice(..0, batch);
                    return true;
                }
                if batch.is_empty() {
                    batch = std::mem::take(&mut state.pending);
                }
                state.first
            };
            if batch.is_empty() {
                let _ = version.changed().await;
                continue;
            }
            self.moved();
            match limited(store.append_updates(&run.0, run.1, first, batch.clone())).await {
                Ok(()) => {
                    self.state().first += batch.len() as u64;
                    batch.clear();
                }
                Err(StoreError::Unavailable(source)) => {
                    tracing::warn!(task = %self.task_id, %source, "updates not stored yet");
                    sleep(UPDATE_PAUSE).await;
                }
                Err(_) => return false,
            }
        }
    }

    /// Adds an update without waiting. Where there is no room, it replaces progress just before it, or is dropped.
    fn push(&self, update: impl FnOnce(&TaskId, &Unstored) -> TaskUpdate) {
        let mut state = self.state();
        let update = update(&self.task_id, &state);
        if state.pending.len() < PENDING {
            state.pending.push(update);
        } else if let Some(last @ TaskUpdate::Progress { .. }) = state.pending.last_mut() {
            *last = update;
        }
        drop(state);
        self.moved();
    }
}

#[async_trait]
impl UpdateSink for UpdateLog {
    fn update(&self, update: Update) {
        if let Update::Chunk(data) = update {
            return self.push(|task_id, _| chunk(task_id, data));
        }
        self.state().progress.apply(&update);
        self.push(|task_id, state| TaskUpdate::Progress {
            task_id: task_id.clone(),
            seq: 0,
            progress: state.progress.percentage,
            phase: state.progress.current_step,
            message: state.progress.message.clone(),
        });
        if let Some(caller) = self.caller.as_ref().and_then(WeakContext::upgrade) {
            let Progress { current_step, percentage, message, .. } = self.progress();
            caller.phase(current_step);
            caller.progress(percentage, message);
        }
    }

    async fn chunk(&self, data: Value) {
        let mut version = self.version.subscribe();
        let has_room = |_: &u64| {
            let state = self.state();
            state.pending.len() < PENDING || state.ended
        };
        let _ = version.wait_for(has_room).await;
        let caller = self.caller.as_ref().and_then(WeakContext::upgrade).and_then(|caller| caller.reader());
        let to_caller = caller.map(|caller| (caller, data.clone()));
        let update = chunk(&self.task_id, data);
        {
            let mut state = self.state();
            // A chunk after the end, from work that the arm has left running, is dropped.
            if state.ended {
                return;
            }
            state.pending.push(update);
        }
        self.moved();
        if let Some((caller, data)) = to_caller {
            caller.chunk(data).await;
        }
    }
}

fn chunk(task_id: &TaskId, data: Value) -> TaskUpdate {
    TaskUpdate::Chunk { task_id: task_id.clone(), seq: 0, data: RawJson::from(data) }
}

/// Updates that are read from the store at a time.
const PAGE: usize = 64;

/// The updates of a task after number `after`, as they are stored. They end after the final status.
pub(super) fn watch(store: Arc<dyn TaskStore>, id: TaskId, after: Option<u64>) -> TaskUpdates {
    let changes = store.task_changes(&id);
    let reader =
        Reader { store, id, changes, after: after.unwrap_or(0), ready: VecDeque::new(), ended: false };
    TaskUpdates::new(stream::unfold(reader, |mut reader| async move {
        let update = reader.next().await?;
        Some((update, reader))
    }))
}

struct Reader {
    store: Arc<dyn TaskStore>,
    id: TaskId,
    changes: watch::Receiver<()>,
    after: u64,
    ready: VecDeque<TaskUpdate>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<TaskUpdate> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                self.after = update.seq();
                // A failed task that runs again has updates after its final status.
                self.ended = update.is_last()
                    && self.ready.is_empty()
                    && (!matches!(update, TaskUpdate::Status { status: TaskStatus::Failed, .. })
                        || self.is_over().await);
                return Some(update);
            }
            if self.ended {
                return None;
            }
            match limited(self.store.updates_after(&self.id, self.after, PAGE)).await {
                Ok(page) if page.is_empty() => {
                    if self.is_over().await {
                        return None;
                    }
                    let _ = timeout(STORE_INTERVAL, store_changed(&mut self.changes)).await;
                }
                Ok(page) => self.ready.extend(page),
                Err(error) => {
                    tracing::warn!(task = %self.id, %error, "updates not read");
                    sleep(UPDATE_PAUSE).await;
                }
            }
        }
    }

    /// Whether the task is finished or gone, and all of its updates have been read.
    async fn is_over(&self) -> bool {
        let finished = match limited(self.store.get(&self.id)).await {
            Ok(record) => record.is_none_or(|record| record.status().is_finished()),
            Err(_) => false,
        };
        finished
            && matches!(limited(self.store.updates_after(&self.id, self.after, 1)).await, Ok(page) if page.is_empty())
    }
}
