//! Consume and settle.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{BusError, ConsumeOptions, Consumer, EventBus};
use crate::event::{Event, Pattern};

/// Delivers every event to every group at least once, until a member of the group has settled it.
///
/// ```
/// use octollm_core::bus::{Arrival, ConsumeOptions, DurableBus, EventBus, MemoryDurableBus};
/// use octollm_core::event::Event;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # async fn store(_: &Event) -> Result<(), &'static str> { Ok(()) }
/// let bus = MemoryDurableBus::new();
/// let mut worker = bus.consume("billing", "events:task:completed".parse()?, ConsumeOptions::default()).await?;
/// bus.publish(Event::new("task.completed", "brain", "done")?).await?;
/// if let Some(Arrival::Delivery(delivery)) = worker.next().await {
///     store(delivery.event()).await?;
///     delivery.ack().await?; // dropped instead, it would come again
/// }
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait DurableBus: EventBus {
    /// Joins a group, which is made if there is none of this name, to consume what is published on the channels that any
    /// of the patterns matches. It resolves when the bus has confirmed.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`], [`BusError::OtherPattern`] when the group was made with others,
    /// [`BusError::Unsupported`] when the group is to start where the bus cannot, [`BusError::Unavailable`] and
    /// [`BusError::Closed`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the group may have been made; no member has joined it.
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError>;

    /// The numbers of a group.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// It only reads.
    async fn group(&self, group: &str) -> Result<GroupStatus, BusError>;

    /// Removes a group with all that waits in it and its dead letters; its consumers end with
    /// [`Ended::GroupRemoved`](super::Ended::GroupRemoved). `false` when there is none.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the group may or may not be removed.
    async fn remove_group(&self, group: &str) -> Result<bool, BusError>;

    /// The dead letters of a group, oldest first: at most `limit`, and only those after the entry `after`.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::UnknownDeadLetter`] when `after` is no entry's name,
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// It only reads.
    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError>;

    /// Delivers a dead letter again: the same event, at attempt 1, to this group alone. Its expiry is lifted, so that an
    /// event which has expired meanwhile is delivered too.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::UnknownDeadLetter`] when there is none or it is no event,
    /// [`BusError::Full`], [`BusError::Unavailable`]. Then it is still a dead letter.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it is still a dead letter or it is delivered.
    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError>;
}

/// Room for events: at most this many, and at most this many bytes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Number of events.
    pub events: usize,
    /// Sum of their [`Event::size`]s.
    pub bytes: usize,
}

impl Bound {
    /// Room for this many events, of this many bytes in all.
    pub const fn new(events: usize, bytes: usize) -> Self {
        Self { events, bytes }
    }

    /// Whether there is room for as many.
    pub const fn holds(self, events: usize, bytes: usize) -> bool {
        events <= self.events && bytes <= self.bytes
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events of {} bytes in all", self.events, self.bytes)
    }
}

/// The numbers of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStatus {
    /// Its consumers.
    pub members: usize,
    /// Deliveries that are handed out and not settled.
    pub pending: usize,
    /// Events to be delivered, now or later.
    pub waiting: usize,
    /// Dead letters.
    pub dead_letters: usize,
}

/// An event that a group has given up. It stays until it is replayed or its group is removed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The bus's name for it, unique in its group.
    pub entry: String,
    /// What was to be delivered.
    pub body: DeadLetterBody,
    /// Why it was given up.
    pub reason: String,
    /// Number of its deliveries.
    pub attempts: u32,
}

/// The contents of a [`DeadLetter`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DeadLetterBody {
    /// An event.
    Event(Event),
    /// Bytes that are no event, as they were found.
    Undecodable(Bytes),
}

impl DeadLetter {
    /// A dead letter that was an event.
    pub fn of_event(
        entry: impl Into<String>,
        event: Event,
        reason: impl Into<String>,
        attempts: u32,
    ) -> Self {
        Self { entry: entry.into(), body: DeadLetterBody::Event(event), reason: reason.into(), attempts }
    }

    /// A dead letter that never was an event.
    pub fn undecodable(entry: impl Into<String>, bytes: Bytes, reason: impl Into<String>) -> Self {
        Self {
            entry: entry.into(),
            body: DeadLetterBody::Undecodable(bytes),
            reason: reason.into(),
            attempts: 0,
        }
    }

    /// The event, if it is one.
    pub fn event(&self) -> Option<&Event> {
        match &self.body {
            DeadLetterBody::Event(event) => Some(event),
            DeadLetterBody::Undecodable(_) => None,
        }
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
