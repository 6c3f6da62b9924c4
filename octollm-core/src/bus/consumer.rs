//! The consumers of a group, and the deliveries that they settle.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::engine::{ConsumerEngine, EngineSource};
use super::{BusError, Gap};
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

/// One delivery of an event to one consumer, which holds a lease on the event.
///
/// It is settled once, by [`ack`](Self::ack), [`nack`](Self::nack) or [`release`](Self::release). If it is dropped, the
/// event is delivered again when the lease expires, as the next attempt.
///
/// ```compile_fail,E0382
/// # use octollm_core::bus::{BusError, Delivery};
/// async fn settle_twice(delivery: Delivery) -> Result<(), BusError> {
///     delivery.ack().await?;
///     delivery.ack().await
/// }
/// ```
#[must_use = "the event of a dropped delivery is delivered again when the lease expires"]
pub struct Delivery {
    pub(super) event: Event,
    pub(super) attempt: u32,
    pub(super) lease_time: Duration,
    pub(super) lease: Arc<dyn Lease>,
}

/// What happens to an event that was not handled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nack {
    /// The event is delivered again. After the last attempt it becomes a dead letter.
    Retry {
        /// Delay before the next delivery. `None` is the backoff of the [`ConsumeOptions`].
        ///
        /// A bus without [`Capability::DelayedNack`](super::Capability::DelayedNack) returns
        /// [`BusError::Unsupported`] for a delay, and retries at once without one.
        after: Option<Duration>,
    },
    /// The event is delivered again at once, and this attempt does not count. For an event that was not begun.
    Release,
    /// The event is not delivered again.
    Drop,
    /// The event becomes a dead letter.
    DeadLetter {
        /// Reason for the reader of the dead letters.
        reason: String,
    },
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
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Nack {
    /// Retries after the backoff of the consumer.
    pub fn retry() -> Self {
        Self::Retry { after: None }
    }

    /// Retries after a delay.
    pub fn retry_after(delay: Duration) -> Self {
        Self::Retry { after: Some(delay) }
    }

    /// Makes the event a dead letter.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter { reason: reason.into() }
    }
}

impl Delivery {
    /// Returns the event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Returns the number of this delivery among those of the event to the group, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the duration of the lease.
    pub fn lease_time(&self) -> Duration {
        self.lease_time
    }

    /// Acknowledges the event, which is not delivered again. After the lease has expired, this is possible until the
    /// event goes to another consumer.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when another consumer has or had the event, and [`BusError::Unavailable`]. The event may
    /// be delivered again.
    ///
    /// # Cancel safety
    /// If the future is dropped, the delivery may or may not be settled.
    pub async fn ack(self) -> Result<(), BusError> {
        self.lease.settle(Ok(())).await
    }

    /// Acknowledges several events concurrently. Returns a result for each delivery, by index. A bus that settles in
    /// batches receives them together.
    ///
    /// # Errors
    /// For each delivery as [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// If the future is dropped, each delivery may or may not be settled.
    pub async fn ack_all(deliveries: impl IntoIterator<Item = Self>) -> Vec<Result<(), BusError>> {
        join_all(deliveries.into_iter().map(Self::ack)).await
    }

    /// Refuses the event.
    ///
    /// # Errors
    /// As [`ack`](Self::ack), and [`BusError::Unsupported`] for a delay on a bus without delayed nacks. After that the
    /// event is delivered again when the lease expires.
    ///
    /// # Cancel safety
    /// If the future is dropped, the delivery may or may not be settled.
    pub async fn nack(self, nack: Nack) -> Result<(), BusError> {
        self.lease.settle(Err(nack)).await
    }

    /// Returns the event to the group without counting this attempt. For an event that was not begun.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// If the future is dropped, the delivery may or may not be settled.
    pub async fn release(self) -> Result<(), BusError> {
        self.nack(Nack::Release).await
    }

    /// Extends the lease to `time` from now on. A lease that has expired is renewed if no other consumer has received
    /// the event and this consumer has room for another delivery.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when the lease cannot be renewed, [`BusError::Unsupported`] on a bus without lease
    /// extension, and [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the lease may or may not be extended.
    pub async fn extend(&self, time: Duration) -> Result<(), BusError> {
        self.lease.extend(time).await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("event", &self.event)
            .field("attempt", &self.attempt)
            .field("lease_time", &self.lease_time)
            .finish_non_exhaustive()
    }
}

/// The lease of one delivery.
#[async_trait]
pub(super) trait Lease: Send + Sync {
    async fn settle(&self, outcome: Result<(), Nack>) -> Result<(), BusError>;
    async fn extend(&self, time: Duration) -> Result<(), BusError>;
}

/// A [`ConsumerEngine`] of any type.
#[async_trait]
pub(super) trait Source: Send + Sync {
    async fn next(&self) -> Result<Result<Delivery, Gap>, BusError>;
    async fn close(&self) -> Result<(), BusError>;
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
