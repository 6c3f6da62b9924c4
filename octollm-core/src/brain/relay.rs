//! How the events of tasks reach the bus: by way of the store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{STORE_INTERVAL, limited, scheduler::store_changed};
use crate::{
    bus::{BusError, EventBus},
    event::Event,
    panics::{Panicked, caught},
    store::TaskStore,
};

/// Events that are read from the store at a time.
const BATCH: usize = 512;
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
const BACKLOG: u64 = 2;
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
