//! Deliver at least once, to groups.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{BusError, ConsumeOptions, Consumer, EventBus};
use crate::event::{Event, Pattern};

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
    /// applies.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::UnknownDeadLetter`] when there is none or it is not an event,
    /// [`BusError::Full`] and [`BusError::Unavailable`]. After an error it is still a dead letter.
    ///
    /// # Cancel safety
    /// If the future is dropped, the event is delivered or is still a dead letter.
    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError>;
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
}

impl DeadLetter {
    /// Creates a dead letter.
    pub fn new(
        entry: impl Into<String>,
        event: Result<Event, Bytes>,
        reason: impl Into<String>,
        attempts: u32,
    ) -> Self {
        Self { entry: entry.into(), event, reason: reason.into(), attempts }
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
