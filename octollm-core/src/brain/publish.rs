//! How the live updates of a task reach its watchers, and the events of its changes the bus: both by way of the store.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::stream;
use serde_json::Value;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    limited,
    scheduler::{Run, store_changed},
};
use crate::{
    budget::Usage,
    bus::{BusError, EventBus},
    context::{Context, WeakContext},
    event::Event,
    id::TaskId,
    json::RawJson,
    orchestrator::TaskUpdates,
    panics::{Panicked, caught},
    store::{StoreError, TaskStore},
    task::TaskUpdate,
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
    pub(super) fn new(task_id: TaskId, progress: Progress) -> Self {
        let progress = Progress { current_step: Phase::Execution, ..progress };
        let state = Mutex::new(Unstored { progress, pending: Vec::new(), first: 0, ended: false });
        Self { task_id, state, version: watch::Sender::new(0), context: OnceLock::new() }
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
        // A chunk after the end, from work that the arm has left running, is dropped.
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

/// Updates that are read from the store at a time.
const PAGE: usize = 64;
/// The store is asked at this interval also without a change.
const STORE_INTERVAL: Duration = Duration::from_secs(5);

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
                self.ended = update.is_last() && self.ready.is_empty() && self.is_over().await;
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

/// Events that are read from the store at a time.
const BATCH: usize = 64;
/// After so long the store is asked again, which prolongs the turn of this relay.
const BATCH_TIME: Duration = Duration::from_secs(2);
/// Time limit of one publication.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);
/// Pauses after a failure: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Publishes the events of a store on a bus, each at least once and in order.
pub(super) struct Relay {
    name: String,
    store: Arc<dyn TaskStore>,
    bus: Arc<dyn EventBus>,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
    /// The brain is gone, or closes: the relay ends when it has published what waits.
    pub(super) ended: CancellationToken,
    /// The relay ends at once, as by a crash.
    pub(super) crashed: CancellationToken,
    /// Whether more events come than the bus takes.
    backlog: watch::Sender<bool>,
    /// Whether it runs.
    awake: AtomicBool,
}

/// After so many batches in a row there is a backlog.
const BACKLOG: u64 = 16;
/// How long a submission waits at most for a backlog.
const CATCHING_UP: Duration = Duration::from_millis(100);

impl Relay {
    pub(super) fn new(name: String, store: Arc<dyn TaskStore>, bus: Arc<dyn EventBus>) -> Self {
        let (ended, crashed) = (CancellationToken::new(), CancellationToken::new());
        let (turn, backlog) = (tokio::sync::Mutex::default(), watch::Sender::new(false));
        Self { name, store, bus, turn, ended, crashed, backlog, awake: AtomicBool::new(false) }
    }

    /// Publishes in the background from now on. After its end it publishes once more what waits.
    pub(super) fn wake(self: &Arc<Self>) {
        if self.awake.load(Ordering::Acquire) && !self.ended.is_cancelled() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.awake.swap(true, Ordering::AcqRel) || self.ended.is_cancelled() {
            let awake = Awake(self.clone());
            runtime.spawn(async move { awake.0.run().await });
        }
    }

    /// Wakes the relay when it is dropped.
    pub(super) fn wakes(self: &Arc<Self>) -> Wakes<'_> {
        Wakes(self)
    }

    /// Returns when few events wait, or after 100 ms. Without this pause, tasks that come as fast as they can run would leave the
    /// relay no time, until the store is full of events.
    pub(super) async fn caught_up(&self) {
        if *self.backlog.borrow() {
            let _ = timeout(CATCHING_UP, self.backlog.subscribe().wait_for(|backlog| !backlog)).await;
        }
    }

    async fn run(&self) {
        let mut changes = self.store.event_changes();
        let mut pause = FIRST_PAUSE;
        loop {
            let drained = tokio::select! {
                biased;
                () = self.crashed.cancelled() => return,
                drained = self.drain() => drained,
            };
            if self.ended.is_cancelled() {
                return;
            }
            let mut wait = STORE_INTERVAL;
            match drained {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    tracing::warn!(error, ?pause, "events not published yet");
                    (wait, pause) = (pause, (pause * 2).min(LAST_PAUSE));
                }
            }
            tokio::select! {
                // After a failure the next change is no reason to try again sooner.
                () = store_changed(&mut changes), if pause == FIRST_PAUSE => {}
                () = self.ended.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Publishes all that waits.
    ///
    /// # Errors
    /// The problem of the first event that is not published.
    pub(super) async fn drain(&self) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let _backlog = EndBacklog(&self.backlog);
        for batch in 0_u64.. {
            let events = limited(self.store.pending_events(&self.name, BATCH))
                .await
                .map_err(|error| error.to_string())?;
            if events.is_empty() {
                break;
            }
            if batch == BACKLOG {
                self.backlog.send_replace(true);
            }
            let (published, problem) = self.publish(&events).await;
            if !published.is_empty() {
                limited(self.store.published(&published)).await.map_err(|error| error.to_string())?;
            }
            if let Some(problem) = problem {
                return Err(problem);
            }
        }
        Ok(())
    }

    async fn publish(&self, events: &[Event]) -> (Vec<String>, Option<String>) {
        let (mut published, begun) = (Vec::with_capacity(events.len()), Instant::now());
        for event in events {
            match publish(&*self.bus, event.clone(), PUBLISH_LIMIT).await {
                Ok(()) => {}
                // A further attempt cannot succeed, and would delay all later events.
                Err(Unpublished::Refused(error)) if !error.retryable() => {
                    tracing::error!(event = event.id(), event_type = event.event_type(), %error, "event refused");
                }
                Err(problem) => return (published, Some(problem.to_string())),
            }
            published.push(event.id().to_owned());
            if begun.elapsed() >= BATCH_TIME {
                break;
            }
        }
        (published, None)
    }
}

/// A relay that runs. It may be woken anew once it has ended, as when its runtime was shut down.
struct Awake(Arc<Relay>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.awake.store(false, Ordering::Release);
    }
}

/// See [`Relay::wakes`].
pub(super) struct Wakes<'a>(&'a Arc<Relay>);

impl Drop for Wakes<'_> {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// Ends the backlog when the relay stops, also by a panic.
struct EndBacklog<'a>(&'a watch::Sender<bool>);

impl Drop for EndBacklog<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// The reason why an event was not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unpublished {
    #[error(transparent)]
    Refused(BusError),
    #[error("the bus did not take it within {0:?}")]
    TooSlow(Duration),
    #[error("the bus panicked")]
    Panicked,
}

pub(super) async fn publish(bus: &dyn EventBus, event: Event, limit: Duration) -> Result<(), Unpublished> {
    // Within a future of its own: a bus may also panic before it returns its future.
    match caught(timeout(limit, async { bus.publish(event).await })).await {
        Ok(Ok(taken)) => taken.map_err(Unpublished::Refused),
        Ok(Err(_)) => Err(Unpublished::TooSlow(limit)),
        Err(Panicked) => Err(Unpublished::Panicked),
    }
}
