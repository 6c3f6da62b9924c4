//! How the events of task changes reach the bus: the store holds them until the relay has published them.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{limited, scheduler::store_changed};
use crate::{
    bus::{BusError, EventBus},
    event::Event,
    panics::{Panicked, caught},
    store::{SideEffects, TaskStore, Topic},
    task::{TaskError, TaskEvent, TaskRecord, TaskUpdate},
    update::Progress,
};

/// The event and the update of a task's new status.
pub(super) fn of_change(record: &TaskRecord, source: &str) -> SideEffects {
    let mut effects = SideEffects::default();
    let task = record.task();
    let mut event = TaskEvent::of_status(task.task_id.clone(), record.contract().clone(), task.status);
    if let Some(error) = &task.error {
        event = event.with_error(brief(error));
    }
    if task.status.is_finished() {
        event = event.with_arms_used(task.metadata.arms_used.clone());
        if let Some(usage) = record.usage() {
            let duration = Duration::try_from_secs_f64(task.metadata.duration_seconds);
            event = event.with_usage(usage).with_duration(duration.unwrap_or_default());
        }
    }
    effects.events.extend(written(record, &event, source));
    effects.updates.push(TaskUpdate::Status {
        task_id: task.task_id.clone(),
        seq: 0,
        status: task.status,
        result: task.result.clone(),
        error: task.error.clone(),
    });
    effects
}

/// The event of a task's progress.
pub(super) fn of_progress(record: &TaskRecord, progress: Progress, source: &str) -> Option<Event> {
    let message = shortened(progress.message.clone());
    let event = TaskEvent::of_progress(record.id().clone(), Progress { message, ..progress });
    written(record, &event, source)
}

/// The longest message of an event in bytes, and the longest details of an error. A bus refuses larger events, and no
/// subscriber would receive the end of the task.
const MESSAGE: usize = 4 * 1024;
const DETAILS: usize = 16 * 1024;

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE {
        let end = (0..=MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
        message.truncate(end);
        message.push('…');
    }
    message
}

/// An error as an event carries it. The task has the whole of it.
fn brief(error: &TaskError) -> TaskError {
    let details = error.details.clone().filter(|details| details.to_string().len() <= DETAILS);
    TaskError { message: shortened(error.message.clone()), details, ..error.clone() }
}

fn written(record: &TaskRecord, event: &TaskEvent, source: &str) -> Option<Event> {
    match event.to_event(source) {
        Ok(event) => {
            let event = event.with_correlation_id(record.correlation_id().as_str());
            Some(match record.trace() {
                Some(trace) => event.with_traceparent(trace.traceparent()),
                None => event,
            })
        }
        Err(error) => {
            tracing::error!(task = %record.id(), %error, "the event of a task cannot be written");
            None
        }
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
/// The store is asked at this interval also without a change.
const INTERVAL: Duration = Duration::from_secs(5);

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
}

/// After so many batches in a row there is a backlog.
const BACKLOG: u64 = 16;
/// How long a submission waits at most for a backlog.
const CATCHING_UP: Duration = Duration::from_millis(100);

impl Relay {
    pub(super) fn new(name: String, store: Arc<dyn TaskStore>, bus: Arc<dyn EventBus>) -> Self {
        let (ended, crashed) = (CancellationToken::new(), CancellationToken::new());
        let (turn, backlog) = (tokio::sync::Mutex::default(), watch::Sender::new(false));
        Self { name, store, bus, turn, ended, crashed, backlog }
    }

    /// Returns when few events wait, or after 100 ms. Without this pause, tasks that come as fast as they can run would leave the
    /// relay no time, until the store is full of events.
    pub(super) async fn caught_up(&self) {
        if *self.backlog.borrow() {
            let _ = timeout(CATCHING_UP, self.backlog.subscribe().wait_for(|backlog| !backlog)).await;
        }
    }

    pub(super) async fn run(self: Arc<Self>) {
        let mut changes = self.store.changes(Topic::Events);
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
            let wait = match drained {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    INTERVAL
                }
                Err(error) => {
                    tracing::warn!(error, ?pause, "events not published yet");
                    let wait = pause;
                    pause = (pause * 2).min(LAST_PAUSE);
                    wait
                }
            };
            tokio::select! {
                () = store_changed(&mut changes), if drained_well(pause) => {}
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

/// Ends the backlog when the relay stops, also by a panic.
struct EndBacklog<'a>(&'a watch::Sender<bool>);

impl Drop for EndBacklog<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// After a failure the next change in the store is no reason to try again sooner.
fn drained_well(pause: Duration) -> bool {
    pause == FIRST_PAUSE
}

/// Publishes an event that may be lost.
pub(super) async fn publish_once(bus: &dyn EventBus, event: Event) {
    let event_type = event.event_type().to_owned();
    if let Err(problem) = publish(bus, event, Duration::from_secs(1)).await {
        tracing::debug!(event_type, %problem, "event not published");
    }
}

/// The reason why an event was not published.
#[derive(Debug, thiserror::Error)]
enum Unpublished {
    #[error(transparent)]
    Refused(BusError),
    #[error("the bus did not take it within {0:?}")]
    TooSlow(Duration),
    #[error("the bus panicked")]
    Panicked,
}

async fn publish(bus: &dyn EventBus, event: Event, limit: Duration) -> Result<(), Unpublished> {
    // Within a future of its own: a bus may also panic before it returns its future.
    match caught(timeout(limit, async { bus.publish(event).await })).await {
        Ok(Ok(taken)) => taken.map_err(Unpublished::Refused),
        Ok(Err(_)) => Err(Unpublished::TooSlow(limit)),
        Err(Panicked) => Err(Unpublished::Panicked),
    }
}
