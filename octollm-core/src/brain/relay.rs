//! Publishes the events of task changes, which the store holds until then.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    bus::EventBus,
    event::Event,
    store::{StoreError, TaskStore, Topic},
};

/// Events that are taken from the store at a time.
const BATCH: usize = 64;
/// How long a bus may take over one event before it is tried again.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);
/// Pauses after a failure: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often the store is asked without having reported a change.
const INTERVAL: Duration = Duration::from_secs(5);

/// Carries events from a store to a bus, each at least once and in order.
pub(super) struct Relay {
    pub(super) name: String,
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) bus: Arc<dyn EventBus>,
    /// One at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// The brain is gone, or closes: what waits is published, and then this ends.
    pub(super) ended: CancellationToken,
    /// As a crash would end it: at once.
    pub(super) crashed: CancellationToken,
}

impl Relay {
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
        loop {
            let events =
                self.store.pending_events(&self.name, BATCH).await.map_err(|error| error.to_string())?;
            if events.is_empty() {
                return Ok(());
            }
            let (published, problem) = self.publish(&events).await;
            if !published.is_empty() {
                self.mark(&published).await.map_err(|error| error.to_string())?;
            }
            if let Some(problem) = problem {
                return Err(problem);
            }
        }
    }

    async fn publish(&self, events: &[Event]) -> (Vec<String>, Option<String>) {
        let mut published = Vec::with_capacity(events.len());
        for event in events {
            match timeout(PUBLISH_LIMIT, self.bus.publish(event.clone())).await {
                Ok(Ok(_)) => {}
                // Trying again would not help, and would hold up all that comes after it.
                Ok(Err(error)) if !error.retryable() => {
                    tracing::error!(event = event.id(), event_type = event.event_type(), %error, "event refused");
                }
                Ok(Err(error)) => return (published, Some(error.to_string())),
                Err(_) => {
                    return (published, Some(format!("the bus did not take it within {PUBLISH_LIMIT:?}")));
                }
            }
            published.push(event.id().to_owned());
        }
        (published, None)
    }

    async fn mark(&self, published: &[String]) -> Result<(), StoreError> {
        self.store.published(published).await
    }
}

/// After a failure the next change in the store is no reason to try again sooner.
fn drained_well(pause: Duration) -> bool {
    pause == FIRST_PAUSE
}

/// Publishes an event that nobody misses when it is lost.
pub(super) async fn publish_once(bus: &dyn EventBus, event: Event) {
    let event_type = event.event_type().to_owned();
    match timeout(Duration::from_secs(1), bus.publish(event)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(event_type, %error, "event not published"),
        Err(_) => tracing::debug!(event_type, "event not published in time"),
    }
}
