//! Publish and subscribe.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::engine::{Capabilities, Counts};
use super::{BusError, Overflow, Subscription};
use crate::event::{Event, Pattern};

/// Publishes events to those who have subscribed, at most once.
///
/// There is nothing to acknowledge here: code that needs guaranteed delivery asks for a
/// [`DurableBus`](super::DurableBus).
#[async_trait]
pub trait EventBus: Send + Sync + 'static {
    /// Publishes an event to all that are subscribed to its channel now. It is `Ok` once the bus has taken it.
    ///
    /// One subscriber never costs another an event: under [`Overflow::Block`] it is waited for after all others have the
    /// event, and what it loses is an item of its own stream alone.
    ///
    /// # Errors
    /// [`BusError::TooLarge`], [`BusError::Unavailable`], [`BusError::Full`] and [`BusError::Closed`]; then nobody receives
    /// it, except that a broker which went away half way may have taken it.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the event may or may not be published. On a bus in memory, all subscribers that have room
    /// receive it or none, and those under [`Overflow::Block`] that have none receive the loss.
    async fn publish(&self, event: Event) -> Result<(), BusError>;

    /// Subscribes to the channels that any of the patterns matches; each event is received once. It resolves when the bus
    /// has confirmed: whatever is published from then on is received.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when the overflow has room for no event, [`BusError::Unavailable`] and
    /// [`BusError::Closed`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, there is no subscription.
    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError>;

    /// What the bus can do.
    fn capabilities(&self) -> Capabilities;

    /// What the bus has counted so far.
    fn counts(&self) -> Counts;

    /// Publishes each event as [`publish`](Self::publish) does, in order, and returns a result for each at its index. One
    /// that fails does not hold back the others.
    ///
    /// # Cancel safety
    /// Dropped before it is done, events from some index on are not published.
    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let mut outcomes = Vec::with_capacity(events.len());
        for event in events {
            outcomes.push(self.publish(event).await);
        }
        outcomes
    }
}

/// A bus that can publish an event later.
///
/// A bus that cannot does not implement it, so that code which needs delays does not compile there:
///
/// ```compile_fail,E0277
/// use octollm_core::bus::{DelayBus, MemoryBus};
///
/// fn remind(bus: impl DelayBus) {}
/// remind(MemoryBus::new());
/// ```
#[async_trait]
pub trait DelayBus: EventBus {
    /// Publishes an event once `delay` has passed, with what was subscribed by then. Until then
    /// [`cancel_publish`](Self::cancel_publish) takes it back by its id.
    ///
    /// # Errors
    /// As [`publish`](EventBus::publish).
    ///
    /// # Cancel safety
    /// Dropped before it is done, the event may or may not be published later.
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError>;

    /// Takes back every event of this id that waits for [`publish_after`](Self::publish_after). `false` when there is none:
    /// it was published, taken back, or never was.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the event may or may not be taken back.
    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError>;
}

#[async_trait]
impl<B: EventBus + ?Sized> EventBus for Arc<B> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        (**self).publish(event).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        (**self).subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn counts(&self) -> Counts {
        (**self).counts()
    }

    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        (**self).publish_all(events).await
    }
}

#[async_trait]
impl<B: DelayBus + ?Sized> DelayBus for Arc<B> {
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        (**self).publish_after(event, delay).await
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        (**self).cancel_publish(event_id).await
    }
}
