//! Consume and settle.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{BusError, ConsumeOptions, Consumer, EventBus};
use crate::event::{Event, Pattern, Patterns};

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
    /// of the patterns means. It resolves when the bus has confirmed.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`], [`BusError::OtherPatterns`] when the group was made with others,
    /// [`BusError::Unsupported`] when it is to begin where the bus cannot, [`BusError::Unavailable`] and
    /// [`BusError::Closed`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the group may have been made; no member has joined it.
    async fn consume_any(
        &self,
        group: &str,
        patterns: Patterns,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError>;

    /// How a group stands.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::Unavailable`].
    async fn group(&self, group: &str) -> Result<GroupStatus, BusError>;

    /// Ends a group with all that waits in it and its dead letters; its members end. `false` when there is none.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    async fn remove_group(&self, group: &str) -> Result<bool, BusError>;

    /// The dead letters of a group, oldest first: at most `limit`, and only those behind the entry `after`.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::UnknownDeadLetter`] when `after` is no entry's name,
    /// [`BusError::Unavailable`].
    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError>;

    /// Puts a dead letter back: the same event, at attempt 1, to this group alone.
    ///
    /// # Errors
    /// [`BusError::UnknownGroup`], [`BusError::UnknownDeadLetter`] when there is none or it is no event,
    /// [`BusError::Unavailable`].
    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError>;

    /// Joins a group, as [`consume_any`](Self::consume_any) does, for one pattern.
    ///
    /// # Errors
    /// As [`consume_any`](Self::consume_any).
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        self.consume_any(group, pattern.into(), options).await
    }
}

/// How a group stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStatus {
    /// Its members.
    pub members: usize,
    /// Deliveries that are handed out and not settled.
    pub pending: usize,
    /// Events to be delivered, now or later.
    pub waiting: usize,
    /// Dead letters kept.
    pub dead_letters: usize,
}

/// An event that a group gave up. It stays until it is replayed or its group is removed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The bus's own name for it, unique in its group.
    pub entry: String,
    /// What was to be delivered.
    pub body: DeadLetterBody,
    /// Why it was given up.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
}

/// The contents of a [`DeadLetter`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DeadLetterBody {
    /// An event.
    Event(Arc<Event>),
    /// Bytes that are no event, as they were found.
    Undecodable(Bytes),
}

impl DeadLetter {
    /// A dead letter that was an event.
    pub fn of_event(
        entry: impl Into<String>,
        event: Arc<Event>,
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
    pub fn event(&self) -> Option<&Arc<Event>> {
        match &self.body {
            DeadLetterBody::Event(event) => Some(event),
            DeadLetterBody::Undecodable(_) => None,
        }
    }
}

#[async_trait]
impl<B: DurableBus + ?Sized> DurableBus for Arc<B> {
    async fn consume_any(
        &self,
        group: &str,
        patterns: Patterns,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        (**self).consume_any(group, patterns, options).await
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
