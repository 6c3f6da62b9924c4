//! What a connection and the calls on it know of each other.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the calls of a connection. All of it happens in the connection's own task for HTTP/1, where the order of
/// calls is that of the heads.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    begun: AtomicU64,
    ended: AtomicU64,
    refused: AtomicU64,
}

/// A call that runs; it has ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Running<'c>(&'c Calls);

impl Calls {
    /// The next call begins. Tells its number, from 1.
    pub(crate) fn begin(&self) -> (u64, Running<'_>) {
        (self.begun.fetch_add(1, Ordering::Relaxed) + 1, Running(self))
    }

    /// How many run now.
    pub(crate) fn running(&self) -> u64 {
        let ended = self.ended.load(Ordering::Relaxed);
        self.begun.load(Ordering::Relaxed).saturating_sub(ended)
    }

    /// The call of this number must not be carried out.
    pub(crate) fn refuse(&self, number: u64) {
        self.refused.store(number, Ordering::Relaxed);
    }

    /// Whether the call of this number must not be carried out.
    pub(crate) fn is_refused(&self, number: u64) -> bool {
        self.refused.load(Ordering::Relaxed) == number
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}
