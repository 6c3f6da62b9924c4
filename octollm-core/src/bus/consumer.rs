//! A member of a group, and the loop that handles its events.

use std::fmt;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::delivery::{EngineSource, Lease, Source};
use super::engine::ConsumerEngine;
use super::{BusError, Delivery, Gap, Nack};
use crate::error::ConfigError;
use crate::event::Event;

/// Receives the events of a group. At most [`max_in_flight`](ConsumeOptions::max_in_flight) deliveries are unsettled at
/// a time.
///
/// Dropping the consumer leaves the group. Its deliveries can still be settled; otherwise their events go to another
/// consumer when the leases expire.
#[must_use = "a consumer that is dropped leaves its group"]
pub struct Consumer {
    source: Box<dyn Source>,
    ended: Option<BusError>,
}

/// Handles the events of a [`Consumer`] that [`run`](Consumer::run)s.
#[async_trait]
pub trait EventHandler: Send + Sync + 'static {
    /// Handles an event. `Ok` acknowledges it; a panic is [`Nack::retry`].
    ///
    /// The lease is extended while the method runs, in a separate task: also while it blocks its thread, if the runtime
    /// has another one. If the event goes to another consumer nevertheless, the future is dropped.
    ///
    /// # Errors
    /// What happens to an event that was not handled.
    ///
    /// # Cancel safety
    /// The future is dropped when the lease is lost or [`Consumer::run`] is dropped, and the event is delivered again.
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack>;

    /// Handles a point at which events may be missing. The next event is received after that.
    ///
    /// # Cancel safety
    /// The future is dropped when [`Consumer::run`] is dropped.
    async fn gap(&self, gap: Gap);
}

/// Settings of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumeOptions {
    /// Maximum number of unsettled deliveries (default 16).
    pub max_in_flight: usize,
    /// Duration of a lease (default 30 s). After that another consumer can receive the event.
    pub lease: Duration,
    /// Number of deliveries after which an event becomes a dead letter (default 5).
    pub max_attempts: u32,
    /// Delay before the second attempt (default 100 ms). It doubles with each attempt.
    pub min_backoff: Duration,
    /// Maximum delay before an attempt (default 30 s).
    pub max_backoff: Duration,
    /// Whether a new group starts with the oldest stored event, and not with the next one that is published (default
    /// `false`). An existing group continues where it is.
    ///
    /// A bus without [`Capability::History`](super::Capability::History) returns [`BusError::Unsupported`].
    pub from_start: bool,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 16,
            lease: Duration::from_secs(30),
            max_attempts: 5,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            from_start: false,
        }
    }
}

impl ConsumeOptions {
    /// Checks the settings. Every bus does this in [`consume`](super::DurableBus::consume).
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that is not valid.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |setting, reason| Err(ConfigError::new(setting, reason));
        if self.max_in_flight == 0 {
            return invalid("max_in_flight", "is 0");
        }
        if self.lease.is_zero() {
            return invalid("lease", "is 0");
        }
        if self.max_attempts == 0 {
            return invalid("max_attempts", "is 0");
        }
        if self.min_backoff > self.max_backoff {
            return invalid("min_backoff", "is greater than max_backoff");
        }
        Ok(())
    }

    /// Returns the delay after an attempt, counted from 1.
    pub fn backoff(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.min_backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }
}

impl Consumer {
    /// Creates the consumer of an engine, which settles each delivery in a call of its own. For the author of a bus.
    pub fn new(engine: impl ConsumerEngine, lease: Duration) -> Self {
        Self { source: Box::new(EngineSource::new(engine, lease)), ended: None }
    }

    /// Creates the consumer of an engine, which settles at most `max_batch` deliveries in one call. For the author of a
    /// bus.
    ///
    /// Deliveries that are settled during a call are settled together by the next one. A single delivery does not wait
    /// for others.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when `max_batch` is 0, [`BusError::Unavailable`] outside a tokio runtime.
    pub fn batched(engine: impl ConsumerEngine, lease: Duration, max_batch: usize) -> Result<Self, BusError> {
        let source = EngineSource::batched(engine, lease, max_batch)?;
        Ok(Self { source: Box::new(source), ended: None })
    }

    /// Waits for the next delivery. An `Err` is a point at which events may be missing. Returns `None` once the
    /// consumer has ended.
    ///
    /// # Cancel safety
    /// If the future is dropped, no delivery is lost.
    pub async fn next(&mut self) -> Option<Result<Delivery, Gap>> {
        if self.ended.is_some() {
            return None;
        }
        match self.source.next().await {
            Ok(next) => Some(next),
            Err(reason) => {
                self.ended = Some(reason);
                None
            }
        }
    }

    /// Returns why the consumer has ended, once [`next`](Self::next) has returned `None` or it was closed.
    pub fn ended(&self) -> Option<&BusError> {
        self.ended.as_ref()
    }

    /// Ends the consumer, and waits until its deliveries are settled or their leases have expired. Events that were not
    /// delivered go to other consumers. Closing twice is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the consumer has ended. The method can be called again to wait.
    pub async fn close(&mut self) -> Result<(), BusError> {
        self.ended.get_or_insert(BusError::Closed);
        self.source.close().await
    }

    /// Handles the events until the consumer ends, at most [`max_in_flight`](ConsumeOptions::max_in_flight) at a time,
    /// and settles them by the result of `handler`. Returns why the consumer has ended, once the running handlers have
    /// finished.
    ///
    /// # Cancel safety
    /// If the future is dropped, the running handlers are dropped too, and their events are delivered again when the
    /// leases expire. Use [`run_until`](Self::run_until) to let them finish.
    pub async fn run(self, handler: impl EventHandler) -> BusError {
        // `pending` never completes, so an `Ok` does not occur.
        self.run_until(handler, pending()).await.err().unwrap_or(BusError::Closed)
    }

    /// Handles the events as [`run`](Self::run) does, until `shutdown` completes. After that it [`close`](Self::close)s
    /// the consumer and returns once the running handlers have finished.
    ///
    /// # Errors
    /// The reason why the consumer ended before `shutdown` completed, and [`BusError::Unavailable`] when it could not
    /// be closed.
    ///
    /// # Cancel safety
    /// If the future is dropped, the running handlers are dropped too, and their events are delivered again when the
    /// leases expire.
    pub async fn run_until(
        mut self,
        handler: impl EventHandler,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), BusError> {
        let handler = Arc::new(handler);
        let mut shutdown = pin!(shutdown);
        let mut running = JoinSet::new();
        let result = loop {
            let next = tokio::select! {
                biased;
                () = &mut shutdown => break self.close().await,
                next = self.next() => next,
            };
            match next {
                // Bounded: a consumer returns no more deliveries than can be unsettled.
                Some(Ok(delivery)) => {
                    // Spawned before the handler, which may block the thread.
                    let extender = LeaseExtender::spawn(&delivery);
                    running.spawn(handle(delivery, Arc::clone(&handler), extender));
                }
                Some(Err(gap)) => handler.gap(gap).await,
                None => break Err(self.ended.clone().unwrap_or(BusError::Closed)),
            }
            while running.try_join_next().is_some() {}
        };
        while running.join_next().await.is_some() {}
        result
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("ended", &self.ended).finish_non_exhaustive()
    }
}

async fn handle(delivery: Delivery, handler: Arc<impl EventHandler>, mut extender: LeaseExtender) {
    let work = handler.handle(delivery.event().clone(), delivery.attempt());
    let outcome = tokio::select! {
        biased;
        outcome = AssertUnwindSafe(work).catch_unwind() => outcome,
        () = extender.lost() => return,
    };
    drop(extender);
    let event_id = delivery.event().id().to_owned();
    let settled = match outcome {
        Ok(Ok(())) => delivery.ack().await,
        Ok(Err(nack)) => delivery.nack(nack).await,
        Err(_panic) => delivery.nack(Nack::retry()).await,
    };
    if let Err(error) = settled {
        // The event is delivered again.
        tracing::warn!(event_id, %error, "event not settled");
    }
}

/// A task that extends a lease until this is dropped.
struct LeaseExtender(JoinHandle<()>);

impl LeaseExtender {
    fn spawn(delivery: &Delivery) -> Self {
        Self(tokio::spawn(extend_until_lost(delivery.lease(), delivery.lease_time())))
    }

    /// Waits until the lease is lost.
    async fn lost(&mut self) {
        // If the bus panics, the state of the lease is not known.
        if (&mut self.0).await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Drop for LeaseExtender {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Extends a lease at each third of its duration. Returns once it is lost.
async fn extend_until_lost(lease: Arc<dyn Lease>, lease_time: Duration) {
    let third = (lease_time / 3).max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now() + third, third);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match lease.extend(lease_time).await {
            Err(BusError::LeaseLost { .. }) => return,
            Err(BusError::Unsupported { .. }) => pending().await,
            // Other errors may pass before the lease expires.
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_maximum() {
        let options = ConsumeOptions { max_backoff: Duration::from_secs(1), ..ConsumeOptions::default() };
        let delays: Vec<_> = (1..=5).map(|attempt| options.backoff(attempt).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000]);
        assert_eq!(options.backoff(u32::MAX), options.max_backoff);
    }

    #[test]
    fn invalid_settings_are_refused_by_name() {
        let cases = [
            ("max_in_flight", ConsumeOptions { max_in_flight: 0, ..Default::default() }),
            ("lease", ConsumeOptions { lease: Duration::ZERO, ..Default::default() }),
            ("max_attempts", ConsumeOptions { max_attempts: 0, ..Default::default() }),
            ("min_backoff", ConsumeOptions { min_backoff: Duration::from_secs(60), ..Default::default() }),
        ];
        for (name, options) in cases {
            assert_eq!(options.check().unwrap_err().setting(), name);
        }
        assert!(ConsumeOptions::default().check().is_ok());
    }
}
