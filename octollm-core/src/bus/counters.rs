//! What a bus has counted.

use std::sync::atomic::{AtomicU64, Ordering};

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
