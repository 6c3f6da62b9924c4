//! Which endpoints of a set are passed over, because they are worse than the others.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    sync::{Mutex, MutexGuard, PoisonError},
    window::{Counts, Window},
};

/// Whether one endpoint of a set is passed over, because far more of its calls fail than those of the others.
#[derive(Debug)]
pub struct Ejection(Mutex<Ejected>);

#[derive(Debug)]
struct Ejected {
    window: Window,
    until: Option<Instant>,
    /// Ejections in a row.
    times: u32,
}

/// Calls of the last ten seconds below which nothing is decided.
const LEAST_CALLS: u64 = 20;
/// An endpoint is ejected where less than this many percent of its calls succeed, measured by the share of the others.
const OF_THE_OTHERS: u128 = 80;
const WINDOW: Duration = Duration::from_secs(10);
/// How long the first ejection lasts. Each further one lasts as much longer, up to the second figure.
const EJECTED: Duration = Duration::from_secs(1);
const MOST_EJECTED: Duration = Duration::from_secs(5);

impl Ejection {
    /// An endpoint that takes part.
    pub fn new() -> Self {
        Self(Mutex::new(Ejected { window: Window::new(WINDOW), until: None, times: 0 }))
    }

    /// Counts the outcome of a call.
    pub fn record(&self, success: bool, now: Instant) {
        let mut ejected = self.lock();
        ejected.window.advance(now);
        let counts = ejected.window.current();
        if success { counts.successes += 1 } else { counts.failures += 1 }
    }

    /// Whether the endpoint is passed over now.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.lock().until.is_some_and(|until| now < until)
    }

    /// Ejects the endpoints that are worse than the others, the worst first. At most half of the endpoints are ejected at a time,
    /// and so the last one never. Returns the positions of those that are ejected by this call.
    pub fn eject<'a>(set: impl IntoIterator<Item = &'a Self>, now: Instant) -> Vec<usize> {
        let set: Vec<_> = set.into_iter().collect();
        let counts: Vec<_> = set.iter().map(|endpoint| endpoint.lock().counts(now)).collect();
        let all = counts.iter().flatten().fold(Counts::default(), |all, counts| all.plus(*counts));
        let mut worse: Vec<_> = counts
            .iter()
            .enumerate()
            .filter_map(|(position, counts)| counts.map(|counts| (position, counts)))
            .filter(|(_, counts)| counts.is_worse_than(all.minus(*counts)))
            .collect();
        // By the share of successes.
        worse.sort_by_key(|(_, counts)| {
            u128::from(counts.successes) * 1_000_000 / u128::from(counts.total().max(1))
        });
        let ejected = counts.iter().filter(|counts| counts.is_none()).count();
        worse.truncate((set.len() / 2).saturating_sub(ejected));
        for (position, _) in &worse {
            set[*position].lock().eject(now);
        }
        worse.into_iter().map(|(position, _)| position).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Ejected> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self::new()
    }
}

impl Ejected {
    /// The calls of the window; `None` while the endpoint is ejected.
    fn counts(&mut self, now: Instant) -> Option<Counts> {
        if self.until.is_some_and(|until| now < until) {
            return None;
        }
        self.window.advance(now);
        let counts = self.window.counts();
        if counts.total() >= LEAST_CALLS && counts.failures == 0 {
            self.times = 0;
        }
        Some(counts)
    }

    fn eject(&mut self, now: Instant) {
        self.times = self.times.saturating_add(1);
        let time = EJECTED.saturating_mul(self.times).min(MOST_EJECTED);
        self.until = now.checked_add(time);
        // After that, only later calls count.
        self.window.clear();
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            successes: self.successes.saturating_add(other.successes),
            failures: self.failures.saturating_add(other.failures),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            successes: self.successes.saturating_sub(other.successes),
            failures: self.failures.saturating_sub(other.failures),
        }
    }

    fn is_worse_than(self, others: Self) -> bool {
        let (own, theirs) = (self.total(), others.total());
        let enough = own >= LEAST_CALLS && theirs >= LEAST_CALLS;
        let scaled =
            |successes: u64, total: u64, percent: u128| u128::from(successes) * u128::from(total) * percent;
        enough && scaled(self.successes, theirs, 100) < scaled(others.successes, own, OF_THE_OTHERS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn set(count: usize) -> Vec<Ejection> {
        (0..count).map(|_| Ejection::new()).collect()
    }

    fn record(endpoint: &Ejection, successes: u32, failures: u32, now: Instant) {
        (0..successes).for_each(|_| endpoint.record(true, now));
        (0..failures).for_each(|_| endpoint.record(false, now));
    }

    #[test]
    fn an_endpoint_that_is_worse_than_the_others_is_ejected_for_longer_each_time() {
        let (set, mut now) = (set(3), Instant::now());
        for seconds in [1, 2, 3, 4, 5, 5] {
            record(&set[0], 20, 0, now);
            record(&set[1], 18, 2, now);
            record(&set[2], 10, 10, now);
            assert_eq!(Ejection::eject(&set, now), [2]);
            assert_eq!(Ejection::eject(&set, now), [0_usize; 0]);
            now += Duration::from_secs(seconds) - MS;
            assert!(set[2].is_ejected(now));
            now += MS;
            assert!(!set[2].is_ejected(now));
            assert_eq!(Ejection::eject(&set, now), [0_usize; 0], "only later calls count");
        }
        record(&set[2], 20, 0, now);
        Ejection::eject(&set, now);
        now += 11_000 * MS;
        record(&set[0], 20, 0, now);
        record(&set[2], 0, 20, now);
        assert_eq!(Ejection::eject(&set, now), [2]);
        assert!(!set[2].is_ejected(now + 1_000 * MS), "it starts anew after it was well");
    }

    #[test]
    fn where_all_fail_alike_none_is_ejected_and_few_calls_decide_nothing() {
        let (all, now) = (set(4), Instant::now());
        all.iter().for_each(|endpoint| record(endpoint, 5, 50, now));
        assert!(Ejection::eject(&all, now).is_empty());
        let few = set(2);
        record(&few[0], 100, 0, now);
        record(&few[1], 0, 19, now);
        assert!(Ejection::eject(&few, now).is_empty());
        record(&few[1], 0, 1, now);
        assert!(Ejection::eject(&few, now + 11_000 * MS).is_empty(), "old calls do not count");
    }

    #[test]
    fn fault_23_at_most_half_are_ejected_and_the_last_one_never() {
        let rounds = prop::collection::vec(prop::collection::vec((0_u32..40, 0_u32..40), 5), 1..8);
        proptest!(|(rounds in rounds, len in 1_usize..6, step in 0_u64..3_000)| {
            let (set, mut now) = (set(len), Instant::now());
            for round in rounds {
                for (endpoint, (successes, failures)) in set.iter().zip(round) {
                    record(endpoint, successes, failures, now);
                }
                Ejection::eject(&set, now);
                let ejected = set.iter().filter(|endpoint| endpoint.is_ejected(now)).count();
                prop_assert!(ejected <= len / 2 && ejected < len);
                now += Duration::from_millis(step);
            }
        });
    }
}
