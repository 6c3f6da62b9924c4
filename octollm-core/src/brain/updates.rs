//! The live updates of a task: written while it runs, and read by those who watch.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    id::TaskId,
    json::RawJson,
    orchestrator::TaskUpdates,
    store::{Changes, Run, StoreError, TaskStore, Topic},
    task::TaskUpdate,
    update::{Phase, Progress, Update, UpdateSink},
};

/// Updates of a run that are not stored yet; beyond that progress is joined, and chunks wait.
const PENDING: usize = 64;
/// A store that is away is tried again after so long.
const PAUSE: Duration = Duration::from_millis(250);

/// Takes the updates of one run, and writes them to the store as fast as it takes them.
#[derive(Debug)]
pub(super) struct UpdateLog {
    task_id: TaskId,
    state: Mutex<State>,
    /// Changes with the state.
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    pending: Vec<TaskUpdate>,
    ended: bool,
}

impl UpdateLog {
    /// The log of a run that begins: what it does is execution unless the arm says otherwise.
    pub(super) fn new(task_id: TaskId, progress: Progress) -> Self {
        let progress = Progress { current_step: Phase::Execution, ..progress };
        let state = Mutex::new(State { progress, pending: Vec::new(), ended: false });
        Self { task_id, state, version: watch::Sender::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(super) fn progress(&self) -> Progress {
        self.state().progress.clone()
    }

    /// The arm has ended: there are no further updates.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.moved();
    }

    /// Changes whenever there is an update.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Takes what is not stored.
    pub(super) fn take_pending(&self) -> Vec<TaskUpdate> {
        std::mem::take(&mut self.state().pending)
    }

    /// Writes updates to the store until the run has ended. Returns whether it was still this run's task.
    pub(super) async fn write(&self, store: &dyn TaskStore, run: &Run) -> bool {
        let mut version = self.version.subscribe();
        loop {
            version.mark_unchanged();
            let (batch, ended) = {
                let mut state = self.state();
                (std::mem::take(&mut state.pending), state.ended)
            };
            if ended {
                // The rest is stored together with the end of the task.
                self.state().pending.splice(..0, batch);
                return true;
            }
            if batch.is_empty() {
                let _ = version.changed().await;
                continue;
            }
            self.moved();
            match store.append_updates(run, batch.clone()).await {
                Ok(()) => {}
                Err(StoreError::Unavailable(source)) => {
                    tracing::warn!(task = %self.task_id, %source, "updates not stored yet");
                    self.state().pending.splice(..0, batch);
                    sleep(PAUSE).await;
                }
                Err(_) => return false,
            }
        }
    }

    /// Takes an update that nobody waits with: where there is no room, it takes the place of progress just before it, or is
    /// dropped.
    fn push(&self, update: impl FnOnce(&TaskId, &State) -> TaskUpdate) {
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
    }

    async fn chunk(&self, data: Value) {
        let mut version = self.version.subscribe();
        let has_room = |_: &u64| {
            let state = self.state();
            state.pending.len() < PENDING || state.ended
        };
        let _ = version.wait_for(has_room).await;
        let update = chunk(&self.task_id, data);
        let mut state = self.state();
        // What comes after the end, from work that the arm has left running, has no reader.
        if !state.ended {
            state.pending.push(update);
        }
        drop(state);
        self.moved();
    }
}

fn chunk(task_id: &TaskId, data: Value) -> TaskUpdate {
    TaskUpdate::Chunk { task_id: task_id.clone(), seq: 0, data: RawJson::from(data) }
}

/// Updates that are read at a time.
const PAGE: usize = 64;
/// A store is asked again after so long even if it reported no change.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// The updates of a task after number `after`, as they are stored. They end after the final status.
pub(super) fn watch(store: Arc<dyn TaskStore>, id: TaskId, after: Option<u64>) -> TaskUpdates {
    let changes = store.changes(Topic::Task(id.clone()));
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
    changes: Changes,
    after: u64,
    ready: VecDeque<TaskUpdate>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<TaskUpdate> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                self.after = update.seq();
                // A failed task that was run again has updates after its final status.
                self.ended = update.is_last() && self.ready.is_empty() && self.is_over().await;
                return Some(update);
            }
            if self.ended {
                return None;
            }
            match self.store.updates_after(&self.id, self.after, PAGE).await {
                Ok(page) if page.is_empty() => {
                    if self.is_over().await {
                        return None;
                    }
                    let _ = timeout(WATCH_INTERVAL, self.changes.changed()).await;
                }
                Ok(page) => self.ready.extend(page),
                Err(error) => {
                    tracing::warn!(task = %self.id, %error, "updates not read");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether the task is finished, or gone, and nothing was added after what has been read.
    async fn is_over(&self) -> bool {
        let finished = match self.store.get(&self.id).await {
            Ok(record) => record.is_none_or(|record| record.status().is_finished()),
            Err(_) => false,
        };
        finished
            && matches!(self.store.updates_after(&self.id, self.after, 1).await, Ok(page) if page.is_empty())
    }
}
