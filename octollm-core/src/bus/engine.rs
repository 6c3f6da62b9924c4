//! What authors of a bus work with. Users of a bus do not need it.
//!
//! | to | there is |
//! |---|---|
//! | feed a subscription, with the same overflow on every bus | [`Feed`], [`deliver`] |
//! | drive a consumer | [`ConsumerEngine`], [`CloseConsumer`], [`Consumer::new`](super::Consumer::new) |
//! | make deliveries and settle them, in batches where that pays | [`Settle`], [`Settler`] |
//! | leave out what has expired | [`Expiry`] |
//! | count | [`Counters`] |
//! | declare what the bus can do | [`Capability`], [`Capabilities`] |

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

pub use super::feed::{Blocked, Feed, Offer, deliver};
pub use super::settle::{Settle, Settlement, Settler};
use super::{Arrival, BusError, Ended};

/// What a bus does for a [`Consumer`](super::Consumer). Dropping it leaves the group.
#[async_trait]
pub trait ConsumerEngine: Send + Sync {
    /// The next arrival. After an error it is not called again.
    ///
    /// # Errors
    /// Why the consumer has ended.
    ///
    /// # Cancel safety
    /// It has to be cancel safe: dropped before it is done, it has taken nothing.
    async fn next(&mut self) -> Result<Arrival, Ended>;
}

/// What a bus does to close a [`Consumer`](super::Consumer) from elsewhere.
#[async_trait]
pub trait CloseConsumer: Send + Sync {
    /// Hands out nothing more, and waits until all that was handed out is settled or its lease has expired. Closing again
    /// is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, nothing more is handed out.
    async fn close(&self) -> Result<(), BusError>;
}

/// One thing that a bus can do or not. What it denies returns [`BusError::Unsupported`], and is never done by halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Capability {
    /// Events of one partition key reach a subscriber or a group in the order in which they were published.
    OrderPerKey,
    /// A new group may start with what was published before it.
    History,
    /// What was published is still there after the bus has ended and started again.
    Persistence,
    /// A delivery whose event has gone to another consumer cannot be settled: that is
    /// [`LeaseLost`](BusError::LeaseLost), and never taken for the other's answer.
    FencedSettling,
    /// [`Delivery::attempt`](super::Delivery::attempt) counts over nacks, crashes and expired leases, and
    /// [`max_attempts`](super::ConsumeOptions::max_attempts) holds. Without it every delivery is attempt 1.
    AttemptCounts,
    /// A [`Nack::Retry`](super::Nack::Retry) may name its delay.
    DelayedNack,
    /// A lease can be extended.
    LeaseExtension,
}

/// What a bus claims; it denies all else. Delayed publishing is not here: it is the trait
/// [`DelayBus`](super::DelayBus).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    claimed: &'static [Capability],
    /// The largest event it takes, in the bytes of [`Event::size`](crate::event::Event::size).
    pub max_event_bytes: usize,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::OrderPerKey,
        Self::History,
        Self::Persistence,
        Self::FencedSettling,
        Self::AttemptCounts,
        Self::DelayedNack,
        Self::LeaseExtension,
    ];
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OrderPerKey => "order per partition key",
            Self::History => "history",
            Self::Persistence => "persistence",
            Self::FencedSettling => "fenced settling",
            Self::AttemptCounts => "attempt counts",
            Self::DelayedNack => "delayed nacks",
            Self::LeaseExtension => "lease extension",
        })
    }
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

    /// Fails unless the bus can do it.
    ///
    /// # Errors
    /// [`BusError::Unsupported`].
    pub fn require(&self, capability: Capability) -> Result<(), BusError> {
        if self.claims(capability) { Ok(()) } else { Err(BusError::Unsupported { capability }) }
    }
}

/// Numbers that a bus has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Events taken from publishers.
    pub published: u64,
    /// Deliveries left out because the event had expired, counted once for each subscription or group.
    pub expired: u64,
    /// Deliveries left out because a subscriber was too slow.
    pub lagged: u64,
    /// Dead letters deleted because there was no more room for them.
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

    /// This many deliveries were left out because their event had expired.
    pub fn add_expired(&self, by: u64) {
        self.expired.fetch_add(by, Ordering::Relaxed);
    }

    /// This many deliveries were left out because their subscriber was too slow.
    pub fn add_lagged(&self, by: u64) {
        self.lagged.fetch_add(by, Ordering::Relaxed);
    }

    /// This many dead letters were deleted.
    pub fn add_discarded(&self, by: u64) {
        self.discarded.fetch_add(by, Ordering::Relaxed);
    }

    /// The numbers now.
    pub fn counts(&self) -> Counts {
        Counts {
            published: self.published.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            lagged: self.lagged.load(Ordering::Relaxed),
            discarded: self.discarded.load(Ordering::Relaxed),
        }
    }
}

/// The `expires_at` of an event on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// It is always worth delivering.
    Never,
    /// It is not worth delivering from this moment on.
    At(Instant),
    /// It was over before it came.
    Past,
}

impl Expiry {
    /// Translates a point of the wall clock, which shows `wall` while the monotonic one shows `now`.
    pub fn from_wall(expires_at: Timestamp, wall: Timestamp, now: Instant) -> Self {
        // No difference of two timestamps overflows, and a negative one is no `Duration`.
        match Duration::try_from(expires_at.duration_since(wall)) {
            Ok(Duration::ZERO) | Err(_) => Self::Past,
            // What lies beyond the clock's range is as good as never.
            Ok(left) => now.checked_add(left).map_or(Self::Never, Self::At),
        }
    }

    /// The expiry of an event. The clocks are read only where there is one.
    pub fn of(expires_at: Option<Timestamp>) -> Self {
        expires_at.map_or(Self::Never, |at| Self::from_wall(at, Timestamp::now(), Instant::now()))
    }

    /// Whether it is over at `now`, which is read only where it matters.
    pub fn is_over(self, now: impl FnOnce() -> Instant) -> bool {
        match self {
            Self::Never => false,
            Self::At(at) => now() >= at,
            Self::Past => true,
        }
    }
}

/// The moment `by` after `now`. What lies beyond the clock's range becomes 30 years from now.
pub(super) fn later(now: Instant, by: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    now.checked_add(by).unwrap_or(now + FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_becomes_the_monotonic_one() {
        let (wall, now) = (Timestamp::UNIX_EPOCH, Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(Expiry::from_wall(wall + second, wall, now), Expiry::At(now + second));
        assert_eq!(Expiry::from_wall(wall, wall, now), Expiry::Past);
        assert_eq!(Expiry::from_wall(wall - second, wall, now), Expiry::Past);
        assert_ne!(Expiry::from_wall(Timestamp::MAX, Timestamp::MIN, now), Expiry::Past);
    }

    #[test]
    fn it_is_over_from_the_very_moment() {
        let now = Instant::now();
        assert!(Expiry::At(now).is_over(|| now));
        assert!(!Expiry::At(now + Duration::from_millis(1)).is_over(|| now));
        assert!(Expiry::Past.is_over(|| now));
        assert!(!Expiry::Never.is_over(|| now));
    }
}
