//! What a subscriber receives, and what happens when it is too slow.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::BusError;
use super::feed::Shared;
use crate::event::Event;

/// A stream of [`Signal`]s in order. Dropping it ends the subscription.
#[derive(Debug)]
#[must_use = "a subscription that is dropped receives nothing"]
pub struct Subscription {
    shared: Arc<Shared>,
}

/// An item of a [`Subscription`].
#[derive(Debug, Clone)]
pub enum Signal {
    /// An event.
    Event(Event),
    /// Events may be missing at this point. Their number is not known.
    Gap(Gap),
    /// The subscriber was too slow, and exactly this number of events is missing at this point.
    Lagged(u64),
}

/// The reason why events may be missing at a point of a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Gap {
    /// The connection to the broker was lost.
    #[error("the connection to the broker was lost")]
    ConnectionLost,
    /// Events were deleted before they were delivered, to stay within the limits of the bus.
    #[error("events were deleted before they were delivered")]
    Trimmed {
        /// The known ids of deleted events, at most [`Gap::MAX_EVENT_IDS`]. Others may be missing too.
        event_ids: Vec<String>,
    },
    /// The group was lost, and was created again.
    #[error("the group was lost and created again")]
    GroupRecreated,
}

/// What happens to an event for which a subscription has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The publisher waits for room, for at most the block timeout of the bus (default 5 s). After that the event is
    /// dropped and the subscriber receives [`Signal::Lagged`].
    ///
    /// The capacity is [`Overflow::BLOCK_CAPACITY`]. A publisher does not wait for a subscriber that has received
    /// nothing for the block timeout, until the subscriber receives again.
    Block,
    /// The oldest of this number of events is dropped. The subscriber receives [`Signal::Lagged`] before the events
    /// that are left.
    DropOldest(usize),
    /// The new event is dropped once this number of events waits. The subscriber receives [`Signal::Lagged`] after
    /// those events.
    DropNewest(usize),
    /// The subscription ends with [`BusError::SlowConsumer`] once this number of events waits. Those events are still
    /// received.
    Disconnect(usize),
}

impl Subscription {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Waits for the next signal. Returns `None` once the subscription has ended and all waiting signals are received.
    ///
    /// # Cancel safety
    /// If the future is dropped, no signal is lost.
    pub async fn next(&mut self) -> Option<Signal> {
        poll_fn(|cx| self.poll_signal(cx)).await
    }

    /// Returns why the subscription has ended, or `None` if it has not. Signals may still wait.
    pub fn ended(&self) -> Option<BusError> {
        self.shared.ended()
    }

    fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        // Without this, a subscriber that always finds an event would never yield to other tasks.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let signal = ready!(self.shared.poll_take(cx));
        budget.made_progress();
        Poll::Ready(signal)
    }
}

impl Stream for Subscription {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        self.poll_signal(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

impl Gap {
    /// Maximum number of ids in [`Gap::Trimmed`].
    pub const MAX_EVENT_IDS: usize = 1024;

    pub(super) fn truncated(mut self) -> Self {
        if let Self::Trimmed { event_ids } = &mut self {
            event_ids.truncate(Self::MAX_EVENT_IDS);
        }
        self
    }

    /// Merges two gaps at the same point of a stream. `Trimmed` is the narrowest one, because it can name what is
    /// missing.
    pub(super) fn merged(self, later: Self) -> Self {
        match (self, later) {
            (Self::Trimmed { mut event_ids }, Self::Trimmed { event_ids: more }) => {
                event_ids.extend(more);
                Self::Trimmed { event_ids }.truncated()
            }
            (Self::Trimmed { .. }, wider) | (wider, _) => wider,
        }
    }
}

impl Overflow {
    /// Capacity of a subscription under [`Overflow::Block`].
    pub const BLOCK_CAPACITY: usize = 1024;

    /// Returns the number of events that can wait.
    pub fn capacity(self) -> usize {
        match self {
            Self::Block => Self::BLOCK_CAPACITY,
            Self::DropOldest(events) | Self::DropNewest(events) | Self::Disconnect(events) => events,
        }
    }
}
