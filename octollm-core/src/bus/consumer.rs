//! A member of a group.

use std::fmt;
use std::time::Duration;

use super::delivery::{EngineSource, Source};
use super::engine::ConsumerEngine;
use super::{BusError, Delivery, Gap};
use crate::error::ConfigError;

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
