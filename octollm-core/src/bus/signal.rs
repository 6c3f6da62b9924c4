//! What a subscription yields.

use std::sync::Arc;

use super::BusError;
use crate::event::Event;

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
