//! The retry budget: how many further attempts a target gets.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::sync::{AtomicBool, AtomicU64, Mutex, Ordering, PoisonError};

/// Bounds the retries and hedges at one target, so that they cannot multiply its load when it fails.
///
/// It is a bucket of tokens, and each further attempt takes one. Each first attempt adds a fifth of a token, each second adds
/// ten, and it has at most what ten seconds add: over any time T there are at most `0.2 · calls + 10 · T + 100` further
/// attempts. It starts full. Clones share their tokens.
///
/// Where a [`RetryLayer`](super::RetryLayer) and a [`HedgeLayer`](super::HedgeLayer) share a budget, the retry counts the first attempts,
/// so that each is counted once.
///
/// ```
/// use octollm_core::resilience::{RetryBudget, RetryLayer};
///
/// let layer = RetryLayer::new().budget(RetryBudget::new(20, 10));
/// ```
#[derive(Clone)]
pub struct RetryBudget(Arc<Bucket>);

struct Bucket {
    /// What a first attempt adds.
    share: u64,
    /// What a second adds.
    per_second: u64,
    /// What it has at most.
    most: u64,
    /// What first attempts have added since the last withdrawal.
    deposited: AtomicU64,
    /// Whether a retry counts the first attempts.
    is_fed_by_retry: AtomicBool,
    level: Mutex<Level>,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    parts: u64,
    /// When the seconds were added; `None` while it is full.
    at: Option<Instant>,
}

/// Parts of a token.
const TOKEN: u64 = 1_000_000_000;

impl RetryBudget {
    /// A budget of so many percent of the calls, at most 1 000, and of so many further attempts per second besides. It holds at least one
    /// token, and starts full: with 0 and 0 there is one further attempt.
    pub fn new(percent: u32, per_second: u32) -> Self {
        let per_second = u64::from(per_second) * TOKEN;
        // At least one, for a budget without a reserve.
        let most = per_second.saturating_mul(10).max(TOKEN);
        let level = Mutex::new(Level { parts: most, at: None });
        let share = u64::from(percent.min(1_000)) * (TOKEN / 100);
        let (deposited, is_fed_by_retry) = (AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Bucket { share, per_second, most, deposited, is_fed_by_retry, level }))
    }

    /// Declares that a retry counts the first attempts. What is below it would count them twice.
    pub(super) fn feed_by_retry(&self) {
        self.0.is_fed_by_retry.store(true, Ordering::Relaxed);
    }

    /// Counts a first attempt, unless a retry does.
    pub(super) fn deposit_unless_retried(&self) {
        if !self.0.is_fed_by_retry.load(Ordering::Relaxed) {
            self.deposit();
        }
    }

    /// Counts a first attempt, without reading the clock.
    #[inline]
    pub fn deposit(&self) {
        // Beyond the most that it has, nothing is lost: the rest is cut at the next withdrawal.
        self.0.deposited.fetch_add(self.0.share, Ordering::Relaxed);
    }

    /// Takes a token for a further attempt. Returns whether there was one.
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut level = self.0.level.lock().unwrap_or_else(PoisonError::into_inner);
        *level = self.0.filled(*level, self.0.deposited.swap(0, Ordering::Relaxed), now);
        let left = level.parts.checked_sub(TOKEN);
        level.parts = left.unwrap_or(level.parts);
        left.is_some()
    }

    /// Further attempts that are left.
    pub fn left(&self, now: Instant) -> u32 {
        let level = self.0.level.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = self.0.filled(*level, self.0.deposited.load(Ordering::Relaxed), now);
        u32::try_from(filled.parts / TOKEN).unwrap_or(u32::MAX)
    }
}

impl Bucket {
    fn filled(&self, level: Level, deposited: u64, now: Instant) -> Level {
        let at = level.at.unwrap_or(now);
        let passed = now.saturating_duration_since(at).min(Duration::from_secs(10));
        // A nanosecond adds a whole number of parts.
        let reserve = (passed.as_nanos() as u64).saturating_mul(self.per_second / TOKEN);
        let parts = level.parts.saturating_add(deposited).saturating_add(reserve).min(self.most);
        Level { parts, at: Some(at.max(now)) }
    }
}

/// 20 % of the calls, and ten per second besides.
impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(20, 10)
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget").field("most", &(self.0.most / TOKEN)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn withdrawn(budget: &RetryBudget, now: Instant) -> u32 {
        (0..10_000).take_while(|_| budget.withdraw(now)).count() as u32
    }

    #[test]
    fn starts_full_and_fills_by_calls_and_by_time() {
        let (budget, now) = (RetryBudget::default(), Instant::now());
        assert_eq!((budget.left(now), withdrawn(&budget, now)), (100, 100));
        (0..50).for_each(|_| budget.deposit());
        assert_eq!((budget.left(now), withdrawn(&budget, now)), (10, 10));
        let next = now + Duration::from_millis(1_550);
        assert_eq!((budget.left(next), withdrawn(&budget, next)), (15, 15));
        let day = next + Duration::from_secs(86_400);
        (0..10_000).for_each(|_| budget.deposit());
        assert_eq!((budget.left(day), withdrawn(&budget.clone(), day), budget.left(day)), (100, 100, 0));
    }

    #[test]
    fn a_clock_that_is_behind_adds_nothing_twice() {
        let (budget, now) = (RetryBudget::default(), Instant::now());
        let later = now + Duration::from_secs(20);
        assert_eq!(withdrawn(&budget, later), 100);
        assert_eq!((withdrawn(&budget, now), withdrawn(&budget, later)), (0, 0));
    }

    #[test]
    fn no_budget_is_invalid() {
        let now = Instant::now();
        for (percent, per_second) in [(0, 0), (u32::MAX, u32::MAX), (0, u32::MAX), (u32::MAX, 0)] {
            let budget = RetryBudget::new(percent, per_second);
            (0..5).for_each(|_| budget.deposit());
            assert!(budget.withdraw(now));
            assert!(budget.left(now + Duration::from_secs(1 << 40)) >= u32::from(per_second > 0));
        }
    }

    proptest! {
        #[test]
        fn does_what_a_bucket_of_exact_numbers_does(
            steps in prop::collection::vec((0_u64..50, 0_u32..30, 0_u32..10), 0..200),
        ) {
            let (budget, begun) = (RetryBudget::default(), Instant::now());
            // In fiftieths of a token: ten per second is one in two milliseconds.
            let (mut now, mut left) = (begun, 5_000_u64);
            let (mut calls, mut attempts) = (0.0, 0.0);
            for (ticks, deposits, withdrawals) in steps {
                now += Duration::from_millis(2 * ticks);
                left = (left + ticks).min(5_000);
                for _ in 0..deposits {
                    budget.deposit();
                    calls += 1.0;
                }
                left = (left + 10 * u64::from(deposits)).min(5_000);
                prop_assert_eq!(u64::from(budget.left(now)), left / 50);
                for _ in 0..withdrawals {
                    let expected = left >= 50;
                    left -= if expected { 50 } else { 0 };
                    attempts += if expected { 1.0 } else { 0.0 };
                    prop_assert_eq!(budget.withdraw(now), expected);
                }
                prop_assert!(attempts <= 0.2 * calls + 10.0 * (now - begun).as_secs_f64() + 100.0);
            }
        }
    }
}
