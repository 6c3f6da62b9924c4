//! Publishes the events of task changes, which the store holds until then.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    bus::{BusError, EventBus},
    event::Event,
    store::{StoreError, TaskStore, Topic},
};

/// Events that are taken from the store at a time.
const BATCH: usize = 64;
/// After so long the store is asked again, which holds this relay's turn.
const BATCH_TIME: Duration = Duration::from_secs(2);
/// How long a bus may take over one event before it is tried again.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);
/// Pauses after a failure: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often the store is asked without having reported a change.
const INTERVAL: Duration = Duration::from_secs(5);

/// Carries events from a store to a bus, each at least once and in order.
pub(super) struct Relay {
    name: String,
    store: Arc<dyn TaskStore>,
    bus: Arc<dyn EventBus>,
    /// One at a time.
    turn: tokio::sync::Mutex<()>,
    /// The brain is gone, or closes: what waits is published, and then this ends.
    pub(super) ended: CancellationToken,
    /// As a crash would end it: at once.
    pub(super) crashed: CancellationToken,
    /// Whether the bus takes events, but fewer than come.
    behind: watch::Sender<bool>,
}

/// A relay that has published so many batches in a row, and not come to the end, is behind.
const BEHIND: u64 = 16;
/// How long a submission waits at most for a relay that is behind.
const CATCHING_UP: Duration = Duration::from_millis(100);

impl Relay {
    pub(super) fn new(name: String, store: Arc<dyn TaskStore>, bus: Arc<dyn EventBus>) -> Self {
        let (ended, crashed) = (CancellationToken::new(), CancellationToken::new());
        let (turn, behind) = (tokio::sync::Mutex::default(), watch::Sender::new(false));
        Self { name, store, bus, turn, ended, crashed, behind }
    }

    /// Returns when few events wait, or after a moment: else tasks that come as fast as they can be run would leave the
    /// relay no time, until the store has no more room for events.
    pub(super) async fn caught_up(&self) {
        if *self.behind.borrow() {
            let _ = timeout(CATCHING_UP, self.behind.subscribe().wait_for(|behind| !behind)).await;
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
                () = changes.changed(), if drained_well(pause) => {}
                () = self.ended.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Publishes all that waits.
    ///
    /// # Errors
    /// What keeps the first event that is left from being published.
    pub(super) async fn drain(&self) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let _behind = Behind(&self.behind);
        for batch in 0_u64.. {
            let events =
                self.store.pending_events(&self.name, BATCH).await.map_err(|error| error.to_string())?;
            if events.is_empty() {
                break;
            }
            if batch == BEHIND {
                self.behind.send_replace(true);
            }
            let (published, problem) = self.publish(&events).await;
            if !published.is_empty() {
                self.mark(&published).await.map_err(|error| error.to_string())?;
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
                // Trying again would not help, and would hold up all that comes after it.
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

    async fn mark(&self, published: &[String]) -> Result<(), StoreError> {
        self.store.published(published).await
    }
}

/// However a relay ends, nobody waits for it any longer.
struct Behind<'a>(&'a watch::Sender<bool>);

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// After a failure the next change in the store is no reason to try again sooner.
fn drained_well(pause: Duration) -> bool {
    pause == FIRST_PAUSE
}

/// Publishes an event that nobody misses when it is lost.
pub(super) async fn publish_once(bus: &dyn EventBus, event: Event) {
    let event_type = event.event_type().to_owned();
    if let Err(problem) = publish(bus, event, Duration::from_secs(1)).await {
        tracing::debug!(event_type, %problem, "event not published");
    }
}

/// Why a bus did not take an event.
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
    match AssertUnwindSafe(timeout(limit, bus.publish(event))).catch_unwind().await {
        Ok(Ok(taken)) => taken.map_err(Unpublished::Refused),
        Ok(Err(_)) => Err(Unpublished::TooSlow(limit)),
        Err(_) => Err(Unpublished::Panicked),
    }
}
