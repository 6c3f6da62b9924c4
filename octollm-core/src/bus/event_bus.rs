//! Publish and subscribe.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::engine::{Capabilities, Capability, Counts};
use super::{BusError, Overflow, Subscription};
use crate::event::{Event, Pattern, Patterns};

/// Tells events to whoever listens, at most once.
///
/// There is nothing to acknowledge here: code that needs delivery guaranteed asks for a `DurableBus`.
#[async_trait]
pub trait EventBus: Send + Sync + 'static {
    /// Tells an event to all that listen on its channel now. It is `Ok` once the bus has taken it.
    ///
    /// # Errors
    /// [`BusError::TooLarge`], [`BusError::Unavailable`], [`BusError::Full`] and [`BusError::Closed`]; then nobody hears it,
    /// save that a broker which went away half way may have taken it.
    ///
    /// # Cancel safety
    /// Dropped before it is done, some listeners may hear the event and others not.
    async fn publish(&self, event: Event) -> Result<(), BusError>;

    /// Hears what is told on the channels that any of the patterns means, each event once. It resolves when the bus has
    /// confirmed: whatever is published from then on is heard.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when the overflow has room for no event, [`BusError::Unavailable`] and
    /// [`BusError::Closed`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, there is no subscription.
    async fn subscribe_any(&self, patterns: Patterns, overflow: Overflow) -> Result<Subscription, BusError>;

    /// What the bus can do.
    fn capabilities(&self) -> Capabilities;

    /// What the bus has counted so far.
    fn counts(&self) -> Counts;

    /// Hears what is told on the channels that one pattern means, as [`subscribe_any`](Self::subscribe_any) does.
    ///
    /// # Errors
    /// As [`subscribe_any`](Self::subscribe_any).
    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.subscribe_any(pattern.into(), overflow).await
    }

    /// Tells each event as [`publish`](Self::publish) does, and answers for each at its index. One that fails does not
    /// keep the others back.
    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let mut outcomes = Vec::with_capacity(events.len());
        for event in events {
            outcomes.push(self.publish(event).await);
        }
        outcomes
    }

    /// Tells an event once `delay` has passed. Until then [`cancel_publish`](Self::cancel_publish) takes it back by its id.
    ///
    /// # Errors
    /// As [`publish`](Self::publish), and [`BusError::Unsupported`] by a bus that does not claim [`Capability::Delay`].
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        let _ = (event, delay);
        Err(BusError::Unsupported { capability: Capability::Delay })
    }

    /// Takes back an event that [`publish_after`](Self::publish_after) is to tell. `false` when none of this id waits:
    /// it was told, taken back, or never was.
    ///
    /// # Errors
    /// [`BusError::Unavailable`], and [`BusError::Unsupported`] by a bus that does not claim [`Capability::Delay`].
    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        let _ = event_id;
        Err(BusError::Unsupported { capability: Capability::Delay })
    }
}

#[async_trait]
impl<B: EventBus + ?Sized> EventBus for Arc<B> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        (**self).publish(event).await
    }

    async fn subscribe_any(&self, patterns: Patterns, overflow: Overflow) -> Result<Subscription, BusError> {
        (**self).subscribe_any(patterns, overflow).await
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

    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        (**self).publish_after(event, delay).await
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        (**self).cancel_publish(event_id).await
    }
}
