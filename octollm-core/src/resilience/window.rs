//! Successes and failures of the last seconds, in buckets.

use std::time::Duration;

use tokio::time::Instant;

/// Buckets of a window: what is older than the window is dropped one bucket at a time.
const BUCKETS: usize = 10;

/// Counts successes and failures over a window. Each operation costs the same, however many calls are in the window.
#[derive(Debug)]
pub(crate) struct Window {
    width: Duration,
    /// The first reading of the clock.
    origin: Option<Instant>,
    /// The number of the current bucket since the origin.
    current: u64,
    buckets: [Counts; BUCKETS],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) successes: u64,
    pub(crate) failures: u64,
}

impl Counts {
    pub(crate) fn total(self) -> u64 {
        self.successes.saturating_add(self.failures)
    }

    /// Whether fewer than this many percent are successes.
    pub(crate) fn is_below(self, percent: u32) -> bool {
        u128::from(self.successes) * 100 < u128::from(self.total()) * u128::from(percent)
    }
}

impl Window {
    /// A window of zero contains nothing but its current bucket, which is one nanosecond.
    pub(crate) fn new(length: Duration) -> Self {
        let width = (length / BUCKETS as u32).max(Duration::from_nanos(1));
        Self { width, origin: None, current: 0, buckets: [Counts::default(); BUCKETS] }
    }

    /// Drops what is older than the window. A time before the last one has no effect.
    pub(crate) fn advance(&mut self, now: Instant) {
        let origin = *self.origin.get_or_insert(now);
        let bucket = now.saturating_duration_since(origin).as_nanos() / self.width.as_nanos();
        let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
        if bucket <= self.current {
            return;
        }
        let passed = usize::try_from(bucket - self.current).unwrap_or(BUCKETS);
        for step in 1..=passed.min(BUCKETS) {
            let position = (bucket % BUCKETS as u64) as usize + BUCKETS + 1 - step;
            self.buckets[position % BUCKETS] = Counts::default();
        }
        self.current = bucket;
    }

    /// The bucket of the last time.
    pub(crate) fn current(&mut self) -> &mut Counts {
        &mut self.buckets[(self.current % BUCKETS as u64) as usize]
    }

    /// The sum of the window.
    pub(crate) fn counts(&self) -> Counts {
        self.buckets.iter().fold(Counts::default(), |sum, bucket| Counts {
            successes: sum.successes.saturating_add(bucket.successes),
            failures: sum.failures.saturating_add(bucket.failures),
        })
    }

    pub(crate) fn clear(&mut self) {
        self.buckets = [Counts::default(); BUCKETS];
    }
}
