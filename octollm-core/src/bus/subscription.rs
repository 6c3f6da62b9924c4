//! The end of a subscription that a listener holds.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::BusError;
use super::engine::feed::Line;
use crate::event::Event;

/// What a listener hears: a stream of [`Signal`]s in the order they came. Dropping it ends it.
#[derive(Debug)]
#[must_use = "a subscription that is dropped hears nothing"]
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
        // A listener that always finds something must still let others run.
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
    /// An event. It is shared with the other listeners.
    Event(Arc<Event>),
    /// Something may be missing here; nobody knows how much.
    Gap(Gap),
    /// The listener was too slow, and exactly so many events are missing here.
    Lagged(u64),
}

/// A place in a stream where events may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Why they may be missing.
    pub reason: GapReason,
    /// The ids of those that are known to be missing. Mostly nobody knows, and it is empty.
    pub event_ids: Vec<String>,
}

impl Gap {
    /// A gap of which no ids are known.
    pub fn new(reason: GapReason) -> Self {
        Self { reason, event_ids: Vec::new() }
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

/// How a subscription or a consumer ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Ended {
    /// The bus was closed, or nothing that could publish on it is left.
    Closed,
    /// It was told to end rather than lose events, and it was too slow.
    SlowConsumer,
    /// The bus gave it up.
    Failed(Arc<BusError>),
}

/// What a subscription does with an event for which it has no room. It is always chosen; nothing waits without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The publisher waits for room: nothing is lost, and a slow listener slows its publishers down, the other listeners
    /// with them. There is room for [`Overflow::BLOCK_CAPACITY`] events.
    Block,
    /// The oldest of so many events goes. The listener is told how many went, before what is left of them.
    DropOldest(usize),
    /// The new event goes once so many wait. The listener is told how many went, after those that waited.
    DropNewest(usize),
    /// The subscription ends with [`Ended::SlowConsumer`](super::Ended::SlowConsumer), once so many events wait and one
    /// more comes. Those that waited are still delivered.
    Disconnect(usize),
}

impl Overflow {
    /// How many events wait under [`Overflow::Block`].
    pub const BLOCK_CAPACITY: usize = 1024;

    /// How many events may wait.
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
