//! A member of a group, and what it asks for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::engine::{CloseConsumer, ConsumerEngine};
use super::{BusError, Delivery, Ended, Gap};

/// Receives events from a group, one delivery at a time, with as many unsettled at once as it may hold.
///
/// Dropped, it leaves the group. What it handed out can still be settled through the [`Delivery`], or comes again to
/// another member when its lease expires.
#[must_use = "a consumer that is dropped leaves its group"]
pub struct Consumer {
    engine: Box<dyn ConsumerEngine>,
    closer: ConsumerCloser,
    ended: Option<Ended>,
}

/// What a consumer yields.
#[derive(Debug)]
pub enum Arrival {
    /// An event to handle.
    Delivery(Delivery),
    /// Something is missing here that will not come.
    Gap(Gap),
}

/// Closes a [`Consumer`] from elsewhere. Clones close the same one.
#[derive(Clone)]
pub struct ConsumerCloser(Arc<dyn CloseConsumer>);

impl Consumer {
    /// A consumer that an engine drives.
    pub fn new(engine: Box<dyn ConsumerEngine>, closer: Arc<dyn CloseConsumer>) -> Self {
        Self { engine, closer: ConsumerCloser(closer), ended: None }
    }

    /// The next arrival, or `None` when the consumer has ended. It waits while as many deliveries as allowed are unsettled.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it has taken nothing.
    pub async fn next(&mut self) -> Option<Arrival> {
        if self.ended.is_some() {
            return None;
        }
        match self.engine.next().await {
            Ok(arrival) => Some(arrival),
            Err(reason) => {
                self.ended = Some(reason);
                None
            }
        }
    }

    /// Why it has ended, once [`next`](Self::next) has returned `None`.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// What closes it from elsewhere, such as a signal handler.
    pub fn closer(&self) -> ConsumerCloser {
        self.closer.clone()
    }

    /// Closes it, as [`ConsumerCloser::close`] does.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// As [`ConsumerCloser::close`].
    pub async fn close(&self) -> Result<(), BusError> {
        self.closer.close().await
    }
}

impl ConsumerCloser {
    /// Lets the consumer hand out nothing more, and waits until all that it handed out is settled or its lease has
    /// expired. Closing again changes nothing and is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, nothing more is handed out.
    pub async fn close(&self) -> Result<(), BusError> {
        self.0.close().await
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl fmt::Debug for ConsumerCloser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerCloser").finish_non_exhaustive()
    }
}

/// What a consumer asks of its group. Checked when the consumer is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumeOptions {
    /// Deliveries that this consumer may hold unsettled at once, by default 16.
    pub max_in_flight: usize,
    /// Time for which a delivery is this consumer's alone, by default 30 s; after that another one may receive it.
    pub lease: Duration,
    /// Number of deliveries after which an unacknowledged event is a dead letter, by default 5.
    pub max_attempts: u32,
    /// Delay before an event comes again, where its nack names none.
    pub backoff: Backoff,
    /// Where the group starts if this consumer is its first. A group that exists goes on where it is.
    pub start: Start,
}

/// A delay that doubles with each attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The delay after the first attempt, by default 100 ms.
    pub first: Duration,
    /// The longest delay, by default 30 s.
    pub longest: Duration,
}

/// Where a new group starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Start {
    /// With the first event published after it was made.
    #[default]
    Now,
    /// With the oldest event the bus still has. [`Unsupported`](BusError::Unsupported) by a bus that does not claim
    /// [`Capability::History`](super::engine::Capability::History).
    Beginning,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 16,
            lease: Duration::from_secs(30),
            max_attempts: 5,
            backoff: Backoff::default(),
            start: Start::default(),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(30) }
    }
}

impl ConsumeOptions {
    /// Checks each setting. Every bus does so before it uses them.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] names the first that is not valid.
    pub fn validate(&self) -> Result<(), BusError> {
        let invalid = |setting, problem| Err(BusError::InvalidSetting { setting, problem });
        if self.max_in_flight == 0 {
            return invalid("max_in_flight", "is zero");
        }
        if self.lease.is_zero() {
            return invalid("lease", "is zero");
        }
        if self.max_attempts == 0 {
            return invalid("max_attempts", "is zero");
        }
        if self.backoff.first > self.backoff.longest {
            return invalid("backoff", "begins with more than its longest delay");
        }
        Ok(())
    }
}

impl Backoff {
    /// The delay after an attempt, counted from 1.
    pub fn after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_doubles_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(1) };
        let rests: Vec<_> = (1..=5).map(|attempt| backoff.after(attempt).as_millis()).collect();
        assert_eq!(rests, [100, 200, 400, 800, 1000]);
        assert_eq!(backoff.after(u32::MAX), backoff.longest);
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let cases = [
            ("max_in_flight", ConsumeOptions { max_in_flight: 0, ..Default::default() }),
            ("lease", ConsumeOptions { lease: Duration::ZERO, ..Default::default() }),
            ("max_attempts", ConsumeOptions { max_attempts: 0, ..Default::default() }),
            (
                "backoff",
                ConsumeOptions {
                    backoff: Backoff { first: Duration::from_secs(2), longest: Duration::from_secs(1) },
                    ..Default::default()
                },
            ),
        ];
        for (name, options) in cases {
            assert!(
                matches!(options.validate(), Err(BusError::InvalidSetting { setting, .. }) if setting == name)
            );
        }
        assert!(ConsumeOptions::default().validate().is_ok());
    }
}
