//! What a bus can do.

use std::fmt;

/// One thing a bus can do or not. What it cannot do it answers with
/// [`BusError::Unsupported`](super::BusError::Unsupported), never with half of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Capability {
    /// Events of one partition key reach a listener or a group in the order they were published.
    OrderPerKey,
    /// An event is delivered until it is settled: the bus is a `DurableBus`.
    Settling,
    /// A new group may start with what was published before it.
    History,
    /// An event may be published after a while, and taken back until then.
    Delay,
    /// What was published is still there after the bus has ended and started again.
    Persistence,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::OrderPerKey, Self::Settling, Self::History, Self::Delay, Self::Persistence];
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OrderPerKey => "order per partition key",
            Self::Settling => "settling",
            Self::History => "history",
            Self::Delay => "delayed publishing",
            Self::Persistence => "persistence",
        })
    }
}

/// What a bus claims; it denies all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    claimed: &'static [Capability],
    /// The largest event it takes, in the bytes of [`Event::size`](crate::event::Event::size).
    pub max_event_bytes: usize,
}

impl Capabilities {
    /// Claims these and no others.
    pub const fn new(claimed: &'static [Capability], max_event_bytes: usize) -> Self {
        Self { claimed, max_event_bytes }
    }

    /// Whether the bus can do it.
    pub fn claims(&self, capability: Capability) -> bool {
        self.claimed.contains(&capability)
    }
}
