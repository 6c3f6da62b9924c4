//! Consume and settle.

use async_trait::async_trait;

use super::{BusError, ConsumeOptions, Consumer, DeadLetter, EventBus};
use crate::event::{Pattern, Patterns};

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
