//! A member of a group.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{BusError, Delivery, Gap};

/// Takes events from a group, one delivery at a time and as many at once as it was allowed.
///
/// Dropped, it leaves the group. What it handed out is still settled through the [`Delivery`], or comes again to another
/// member when its lease runs out.
#[must_use = "a consumer that is dropped leaves its group"]
pub struct Consumer {
    engine: Box<dyn ConsumerEngine>,
    closer: ConsumerCloser,
}

/// What a consumer yields.
#[derive(Debug)]
pub enum Arrival {
    /// An event to work off.
    Delivery(Delivery),
    /// Something is missing here that will not come.
    Gap(Gap),
}

/// Closes a [`Consumer`] from elsewhere. Clones close the same one.
#[derive(Clone)]
pub struct ConsumerCloser(Arc<dyn CloseConsumer>);

/// What a bus does for a [`Consumer`]. Dropping it leaves the group.
#[async_trait]
pub trait ConsumerEngine: Send + Sync {
    /// The next arrival, or `None` once it is closed. It must be cancel safe: dropped before it is done, it has taken
    /// nothing.
    async fn next(&mut self) -> Option<Arrival>;
}

/// What a bus does to close a consumer.
#[async_trait]
pub trait CloseConsumer: Send + Sync {
    /// Hands out nothing more, and waits until all that was handed out is settled or its lease has run out. Closing again
    /// is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    async fn close(&self) -> Result<(), BusError>;
}

impl Consumer {
    /// A consumer that an engine drives.
    pub fn new(engine: Box<dyn ConsumerEngine>, closer: Arc<dyn CloseConsumer>) -> Self {
        Self { engine, closer: ConsumerCloser(closer) }
    }

    /// The next arrival, or `None` when the consumer or its bus was closed. It waits while as many deliveries as allowed
    /// are unsettled.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it has taken nothing.
    pub async fn next(&mut self) -> Option<Arrival> {
        self.engine.next().await
    }

    /// What closes it from elsewhere, from a signal handler for one.
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
    /// Lets the consumer hand out nothing more, and waits until all that it handed out is settled or its lease has run
    /// out. Closing again changes nothing and is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, nothing more is handed out all the same.
    pub async fn close(&self) -> Result<(), BusError> {
        self.0.close().await
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
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
    /// How many deliveries this consumer may hold unsettled at once. 16 unless told.
    pub max_in_flight: usize,
    /// How long a delivery is this consumer's alone; after that another one gets it. 30 s unless told.
    pub lease: Duration,
    /// After how many deliveries an event that was not settled well is a dead letter. 5 unless told.
    pub max_attempts: u32,
    /// How long an event rests before it comes again, where its nack does not say.
    pub backoff: Backoff,
    /// Where a group begins that this consumer is the first of. A group that exists goes on where it is.
    pub start: Start,
}

/// A rest that doubles with each attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The rest after the first attempt. 100 ms unless told.
    pub first: Duration,
    /// What it never exceeds. 30 s unless told.
    pub longest: Duration,
}

/// Where a new group begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Start {
    /// With the first event published after it was made.
    #[default]
    Now,
    /// With the oldest event the bus still has. [`Unsupported`](BusError::Unsupported) by a bus that does not claim
    /// [`Capability::History`](super::Capability::History).
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
    /// Checks that they make sense; every bus does before it takes them.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] names the first that does not.
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
            return invalid("backoff", "begins with more than its longest rest");
        }
        Ok(())
    }
}

impl Backoff {
    /// The rest after an attempt, counted from 1.
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
