//! What a subscriber receives, and what happens when it is too slow.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::BusError;
use super::feed::Line;
use crate::event::Event;

/// A stream of [`Signal`]s in the order in which they came. Dropping it ends the subscription.
#[derive(Debug)]
#[must_use = "a subscription that is dropped receives nothing"]
pub struct Subscription {
    line: Arc<Line>,
}

impl Subscription {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { line }
    }

    /// The next signal, or `None` when the subscription has ended and all that waited was delivered.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it has taken nothing.
    pub async fn next(&mut self) -> Option<Signal> {
        poll_fn(|cx| self.poll_signal(cx)).await
    }

    /// How it ended, and `None` while it goes on. It may have ended while signals still wait.
    pub fn ended(&self) -> Option<Ended> {
        self.line.ended()
    }

    fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        // A subscriber that always finds something must still let others run.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let signal = ready!(self.line.poll_take(cx));
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
        self.line.abandon();
    }
}

/// One item of a [`Subscription`](super::Subscription): an event, or where some are missing.
#[derive(Debug, Clone)]
pub enum Signal {
    /// An event. Its attributes are shared with the other subscribers.
    Event(Event),
    /// Something may be missing here; how much is not known.
    Gap(Gap),
    /// The subscriber was too slow, and exactly this many events are missing here.
    Lagged(u64),
}

/// A place in a stream where events may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Why they may be missing.
    pub reason: GapReason,
    /// The ids of events that are known to be missing, at most [`Gap::MAX_EVENT_IDS`]. Mostly none is known.
    pub event_ids: Vec<String>,
}

impl Gap {
    /// Number of ids in one gap; more are left out.
    pub const MAX_EVENT_IDS: usize = 1024;

    /// A gap of which no ids are known.
    pub fn new(reason: GapReason) -> Self {
        Self { reason, event_ids: Vec::new() }
    }

    /// Names the events that are missing.
    #[must_use]
    pub fn with_event_ids(mut self, mut ids: Vec<String>) -> Self {
        ids.truncate(Self::MAX_EVENT_IDS);
        self.event_ids = ids;
        self
    }
}

/// Why events may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// The connection was away.
    ConnectionLost,
    /// They were deleted before they were delivered, to keep the bus within its bounds.
    Trimmed,
    /// The group was gone and had to be made anew.
    GroupRecreated,
}

/// Why a subscription or a consumer has ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Ended {
    /// The bus was closed, or nothing that could publish on it is left.
    Closed,
    /// The consumer was closed.
    ConsumerClosed,
    /// The consumer's group was removed.
    GroupRemoved,
    /// The subscriber was too slow, under [`Overflow::Disconnect`].
    SlowConsumer,
    /// The bus has given up on it.
    Failed(Arc<BusError>),
}

/// What a subscription does with an event for which it has no room. It is always chosen; nothing waits without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The publisher waits for room, of which there is for [`Overflow::BLOCK_CAPACITY`] events, after the event has gone to
    /// all other subscribers. It waits at most for the bus's block timeout (by default 5 s); then, or when it gives up
    /// earlier, the loss is a [`Signal::Lagged`] of this subscription. A subscriber that has taken nothing for that time is
    /// not waited for until it takes something.
    Block,
    /// The oldest of this many events is dropped. The subscriber receives the number of those dropped before what is left.
    DropOldest(usize),
    /// The new event is dropped once this many wait. The subscriber receives the number of those dropped after what waited.
    DropNewest(usize),
    /// The subscription ends with [`Ended::SlowConsumer`] once this many events wait and one more comes. Those that waited
    /// are still delivered.
    Disconnect(usize),
}

impl Overflow {
    /// Number of events that wait under [`Overflow::Block`].
    pub const BLOCK_CAPACITY: usize = 1024;

    /// Number of events that may wait.
    pub fn capacity(self) -> usize {
        match self {
            Self::Block => Self::BLOCK_CAPACITY,
            Self::DropOldest(events) | Self::DropNewest(events) | Self::Disconnect(events) => events,
        }
    }

    /// # Errors
    /// [`BusError::InvalidSetting`] when there would be room for no event.
    pub(super) fn validate(self) -> Result<(), BusError> {
        if self.capacity() == 0 {
            return Err(BusError::InvalidSetting { setting: "overflow", problem: "has room for no event" });
        }
        Ok(())
    }
}
