//! What authors of a bus work with.

pub(super) mod feed;
pub(super) mod queue;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::feed::Feed;

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

/// How often a bus did what, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Events taken from publishers.
    pub published: u64,
    /// Deliveries withheld because the event had expired, counted once for each listener or group it was meant for.
    pub expired: u64,
    /// Deliveries withheld because a listener was too slow.
    pub lagged: u64,
    /// Dead letters thrown away because there was no more room for them.
    pub discarded: u64,
}

/// The counters behind [`Counts`], shared by a bus and its feeds.
#[derive(Debug, Default)]
pub struct Counters {
    published: AtomicU64,
    expired: AtomicU64,
    lagged: AtomicU64,
    discarded: AtomicU64,
}

impl Counters {
    /// An event was taken from a publisher.
    pub fn add_published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    /// So many deliveries were withheld because their event had expired.
    pub fn add_expired(&self, by: u64) {
        self.expired.fetch_add(by, Ordering::Relaxed);
    }

    /// So many deliveries were withheld because their listener was too slow.
    pub fn add_lagged(&self, by: u64) {
        self.lagged.fetch_add(by, Ordering::Relaxed);
    }

    /// So many dead letters were thrown away.
    pub fn add_discarded(&self, by: u64) {
        self.discarded.fetch_add(by, Ordering::Relaxed);
    }

    /// What they stand at.
    pub fn counts(&self) -> Counts {
        Counts {
            published: self.published.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            lagged: self.lagged.load(Ordering::Relaxed),
            discarded: self.discarded.load(Ordering::Relaxed),
        }
    }
}
