//! Deliver at least once, to groups.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BusError, Consumer, EventBus};
use crate::error::ConfigError;
use crate::event::{Event, Pattern};
use crate::size;

/// Delivers every event to every group at least once, until a consumer of the group has settled it.
///
/// ```
/// use octollm_core::bus::{ConsumeOptions, DurableBus, EventBus, MemoryDurableBus};
/// use octollm_core::event::Event;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # async fn store(_: &Event) -> Result<(), &'static str> { Ok(()) }
/// let bus = MemoryDurableBus::new();
/// let mut worker = bus.consume("billing", "events:task:completed".parse()?, ConsumeOptions::default()).await?;
/// bus.publish(Event::new("task.completed", "brain", "done")?).await?;
/// if let Some(delivery) = worker.next().await {
///     let delivery = delivery?; // an error is a `Gap`: events are missing
///     store(delivery.event()).await?;
///     delivery.ack().await?; // without it, the event is delivered again
/// }
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait DurableBus: EventBus {
    /// Joins a group, which consumes the channels that `pattern` matches. The group is created if it does not exist.
    /// Returns once the bus has confirmed.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`], [`BusError::OtherPattern`] when the group exists with another pattern,
    /// [`BusError::Unsupported`] when the bus has no history to start from, [`BusError::Closed`] and
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the group may have been created, and no consumer has joined it.
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError>;

    /// Returns the status of a group.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// The call only reads.
    async fn group(&self, group: &str) -> Result<GroupStatus, BusError>;

    /// Removes a group with its waiting events and dead letters. Returns `false` if there is no such group. Its
    /// consumers end with [`BusError::UnknownGroup`].
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the group may or may not be removed.
    async fn remove_group(&self, group: &str) -> Result<bool, BusError>;

    /// Returns the dead letters of a group, oldest first: at most `limit`, after the entry `after`.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::UnknownDeadLetter`] when `after` is not the id of an entry,
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// The call only reads.
    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError>;

    /// Delivers a dead letter to its group again, as attempt 1 of the same event. An expiry of the event no longer
    /// applies: it is delivered [without](Event::without_expiry) one.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::UnknownDeadLetter`] when there is none or it is not an event,
    /// [`BusError::Full`] and [`BusError::Unavailable`]. After an error it is still a dead letter.
    ///
    /// # Cancel safety
    /// If the future is dropped, the event is delivered or is still a dead letter.
    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError>;
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

/// The numbers of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStatus {
    /// Number of consumers.
    pub members: usize,
    /// Number of deliveries that are not settled.
    pub pending: usize,
    /// Number of events that wait for delivery or for a retry.
    pub waiting: usize,
    /// Number of dead letters.
    pub dead_letters: usize,
    /// Number of events that had expired before they were delivered.
    pub expired: u64,
    /// Number of dead letters that were deleted for lack of room.
    pub discarded: u64,
}

/// An event that is no longer delivered to a group. It is stored until it is replayed or the group is removed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Id of the entry, unique in its group.
    pub entry: String,
    /// The event, or the bytes that could not be decoded.
    pub event: Result<Event, Bytes>,
    /// Reason why it is no longer delivered.
    pub reason: String,
    /// Number of deliveries.
    pub attempts: u32,
    /// The last deliveries, oldest first: at most [`MAX_HISTORY`](Self::MAX_HISTORY). Empty where the bus has no
    /// [`Capability::AttemptCounts`](super::Capability::AttemptCounts).
    pub history: Vec<FailedAttempt>,
}

/// A delivery of an event that became a dead letter. It counted as an attempt, and was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FailedAttempt {
    /// Time of the delivery, by the clock of the bus.
    pub at: Timestamp,
    /// The consumer that received the event: its [`name`](Consumer::name).
    pub consumer: String,
    /// Reason why it was not acknowledged: that of the [`Nack`](super::Nack), or that the lease expired. At most
    /// [`MAX_REASON_BYTES`](Self::MAX_REASON_BYTES).
    pub reason: String,
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
    /// Checks the settings. Every bus does this in [`consume`](DurableBus::consume).
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

impl DeadLetter {
    /// Maximum length of [`history`](Self::history).
    pub const MAX_HISTORY: usize = 16;

    /// Creates a dead letter without a history.
    pub fn new(
        entry: impl Into<String>,
        event: Result<Event, Bytes>,
        reason: impl Into<String>,
        attempts: u32,
    ) -> Self {
        Self { entry: entry.into(), event, reason: reason.into(), attempts, history: Vec::new() }
    }

    /// Sets the [`history`](Self::history), of which the last deliveries are retained.
    #[must_use]
    pub fn with_history(mut self, mut history: Vec<FailedAttempt>) -> Self {
        history.drain(..history.len().saturating_sub(Self::MAX_HISTORY));
        self.history = history;
        self
    }
}

impl FailedAttempt {
    /// Maximum length of a reason in bytes. Longer ones are cut.
    pub const MAX_REASON_BYTES: usize = 256;
    /// Reason of a delivery that was refused without one.
    pub const REFUSED: &'static str = "refused";
    /// Reason of a delivery that was not settled in time.
    pub const LEASE_EXPIRED: &'static str = "the lease expired";

    /// Creates the record of a delivery.
    pub fn new(at: Timestamp, consumer: impl Into<String>, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        size::cut(&mut reason, Self::MAX_REASON_BYTES);
        Self { at, consumer: consumer.into(), reason }
    }
}

#[async_trait]
impl<B: DurableBus + ?Sized> DurableBus for Arc<B> {
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        (**self).consume(group, pattern, options).await
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        (**self).group(group).await
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        (**self).remove_group(group).await
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        (**self).dead_letters(group, after, limit).await
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        (**self).replay(group, entry).await
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
