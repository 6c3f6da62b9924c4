//! How busy an endpoint is.

use std::time::Duration;

use tokio::time::Instant;

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, PoisonError};

/// The load of one endpoint: a moving average of its latencies, which rises at once to a peak and decays with ten seconds, times
/// the calls that are running there.
#[derive(Debug)]
pub struct Load {
    pending: AtomicU64,
    average: Mutex<Average>,
}

#[derive(Debug, Clone, Copy)]
struct Average {
    /// Nanoseconds.
    latency: f64,
    at: Option<Instant>,
    /// When an endpoint that has failed, or was late, gets a call again; `None` where neither has happened since the last recovery.
    again: Option<Instant>,
}

/// Until the first answer, while calls are running.
const FIRST_LATENCY: Duration = Duration::from_millis(30);
/// Nanoseconds in which a latency loses most of its weight.
const DECAY: f64 = 10e9;
/// After a failure an endpoint attracts no calls for this long, and then one at a time until one is answered. Its average alone would
/// keep it away for longer than it fails: next to endpoints that answer in a millisecond, for 85 s. The same holds after a peak.
const AGAIN: Duration = Duration::from_secs(3);
/// After a peak it is at least so many times its latency, so that a slow endpoint gets few calls.
const AGAIN_AFTER_PEAK: u32 = 50;
/// Nanoseconds that an idle endpoint costs at least, so that the calls that are running there count.
const LEAST: f64 = 1e3;

impl Load {
    /// What a failure or a 429 counts at least, so that an endpoint that fails fast attracts no calls.
    const PENALTY: Duration = Duration::from_secs(5);

    /// The load of an endpoint that has not answered yet.
    pub fn new() -> Self {
        let average = Average { latency: FIRST_LATENCY.as_nanos() as f64, at: None, again: None };
        Self { pending: AtomicU64::new(0), average: Mutex::new(average) }
    }

    /// Counts a call that begins. [`end`](Self::end) or another of these must follow.
    pub fn begin(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the latency of a call that has ended well.
    pub fn end(&self, latency: Duration, now: Instant) {
        self.cancel();
        let mut average = self.average();
        let nanoseconds = latency.as_nanos() as f64;
        let is_peak = average.at.is_some() && nanoseconds > average.latency;
        *average = if average.is_tried_again(now) {
            Average::of(latency, now)
        } else {
            average.after(nanoseconds, now)
        };
        if is_peak {
            let rest = latency.saturating_mul(AGAIN_AFTER_PEAK).max(AGAIN);
            average.again = now.checked_add(rest);
        }
    }

    /// Counts a failure, or an answer that has to attract no further calls.
    pub fn fail(&self, latency: Duration, now: Instant) {
        self.cancel();
        let mut average = self.average();
        let again = now.checked_add(AGAIN);
        *average = Average { again, ..average.after(latency.max(Self::PENALTY).as_nanos() as f64, now) };
    }

    /// Counts the latency of a call that has ended well, and forgets what was before it: an endpoint that has recovered gets its
    /// share at once.
    pub fn renew(&self, latency: Duration, now: Instant) {
        self.cancel();
        *self.average() = Average::of(latency, now);
    }

    /// Counts a call that was given up after a time without an answer. It would have taken longer than that: where so much is a peak, it
    /// counts as one, so that an endpoint that hangs attracts no further calls.
    pub fn give_up(&self, elapsed: Duration, now: Instant) {
        self.cancel();
        let mut average = self.average();
        let nanoseconds = elapsed.as_nanos() as f64;
        if nanoseconds >= average.latency * average.weight(now) {
            let rest = elapsed.saturating_mul(AGAIN_AFTER_PEAK).max(AGAIN);
            *average = Average { again: now.checked_add(rest), ..Average::of(elapsed, now) };
        }
    }

    /// Counts a call that has ended without an answer, such as one that was not sent.
    pub fn cancel(&self) {
        // A call that has not begun is none less.
        let _ =
            self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pending| pending.checked_sub(1));
    }

    /// Calls that are running.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// What a further call costs: finite and above 0.
    pub fn cost(&self, now: Instant) -> f64 {
        let (average, pending) = (*self.average(), self.pending());
        if (average.at.is_none() || average.is_tried_again(now)) && pending == 0 {
            // An endpoint that is new, has failed or was late gets a call, and no further one before it has answered.
            return LEAST;
        }
        (average.latency * average.weight(now)).max(LEAST) * (pending as f64 + 1.0)
    }

    fn average(&self) -> MutexGuard<'_, Average> {
        self.average.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

impl Average {
    fn of(latency: Duration, now: Instant) -> Self {
        Self { latency: latency.as_nanos() as f64, at: Some(now), again: None }
    }

    fn is_tried_again(self, now: Instant) -> bool {
        self.again.is_some_and(|again| now >= again)
    }

    fn after(self, latency: f64, now: Instant) -> Self {
        let weight = self.weight(now);
        let latency = if latency > self.latency || self.at.is_none() {
            latency
        } else {
            self.latency * weight + latency * (1.0 - weight)
        };
        Self { latency, at: Some(self.at.map_or(now, |at| at.max(now))), again: self.again }
    }

    /// What is left of the weight of the average: from 0 to 1.
    fn weight(self, now: Instant) -> f64 {
        self.at.map_or(1.0, |at| (-(now.saturating_duration_since(at).as_nanos() as f64) / DECAY).exp())
    }
}

/// Two different positions of a list, of which the one that costs less gets the call. `random` is any number. Where the list has
/// fewer than two, both are 0.
pub fn two_choices(len: usize, random: u64) -> (usize, usize) {
    if len < 2 {
        return (0, 0);
    }
    // Each half of the bits chooses one: the product of a part and the length has its position in the upper half.
    let pick = |bits: u64, len: usize| ((u128::from(bits & 0xffff_ffff) * len as u128) >> 32) as usize;
    let first = pick(random, len);
    let second = pick(random >> 32, len - 1);
    (first, second + usize::from(second >= first))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn rises_at_once_to_a_peak_and_decays() {
        let (load, now) = (Load::new(), Instant::now());
        assert_eq!(load.cost(now), LEAST, "a new one gets a call");
        load.begin();
        assert_eq!(load.cost(now), 60e6);
        load.end(MS, now);
        assert_eq!(load.cost(now), 1e6, "the first answer counts alone");
        load.begin();
        load.end(100 * MS, now);
        assert_eq!(load.cost(now), 100e6, "a peak counts at once");
        load.begin();
        let later = now + 1_000 * MS;
        load.end(MS, later);
        assert!((load.cost(later) - 90.6e6).abs() < 1e5, "{}", load.cost(later));
        load.begin();
        load.fail(MS, later);
        load.begin();
        load.renew(2 * MS, later);
        assert_eq!((load.cost(later), load.pending()), (2e6, 0), "what was before a recovery does not count");
        let much_later = later + 600_000 * MS;
        assert_eq!(load.cost(much_later), LEAST);
        load.begin();
        assert_eq!(load.cost(much_later), 2.0 * LEAST);
        load.cancel();
        load.cancel();
        assert_eq!(load.pending(), 0);
    }

    #[test]
    fn an_endpoint_that_was_late_once_is_not_passed_over_for_long() {
        let (late, now) = (Load::new(), Instant::now());
        for latency in [MS, 100 * MS] {
            late.begin();
            late.end(latency, now);
        }
        assert_eq!(late.cost(now + 4_999 * MS), 100e6 * (-0.4999_f64).exp());
        let again = now + 5_000 * MS;
        assert_eq!(late.cost(again), LEAST, "50 times its latency later it gets a call");
        late.begin();
        assert!(late.cost(again) > 100e6, "and no second one before it has answered");
        late.end(MS, again);
        assert_eq!(late.cost(again), 1e6);
    }

    #[test]
    fn a_call_that_was_given_up_took_as_long_at_least() {
        let (load, now) = (Load::new(), Instant::now());
        load.begin();
        load.end(10 * MS, now);
        load.begin();
        load.give_up(MS, now);
        assert_eq!((load.cost(now), load.pending()), (10e6, 0), "it says nothing");
        load.begin();
        load.give_up(100 * MS, now);
        assert_eq!((load.cost(now), load.pending()), (100e6, 0));
        let again = now + 5_000 * MS;
        assert_eq!(load.cost(again), LEAST);
        load.begin();
        load.give_up(100 * MS, again);
        assert_eq!(load.cost(again), 100e6, "it still hangs");
    }

    /// Of three endpoints one fails in a millisecond, and the others answer in ten.
    #[test]
    fn fault_22_an_endpoint_that_fails_fast_attracts_no_calls() {
        let (loads, mut now) = ([Load::new(), Load::new(), Load::new()], Instant::now());
        let mut shares = [0; 3];
        for call in 0_u64..3_000 {
            let random = call.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (one, other) = two_choices(3, random ^ random >> 29);
            let chosen = if loads[one].cost(now) <= loads[other].cost(now) { one } else { other };
            shares[chosen] += 1;
            loads[chosen].begin();
            now += MS;
            if chosen == 0 { loads[0].fail(MS, now) } else { loads[chosen].end(10 * MS, now) }
        }
        assert!(shares[0] < 600 && shares[0] > 0, "{shares:?}");
    }

    #[test]
    fn an_endpoint_that_has_failed_gets_one_call_after_3_s_and_its_share_once_that_is_answered() {
        let (load, now) = (Load::new(), Instant::now());
        for _ in 0..2 {
            load.begin();
            load.fail(MS, now);
        }
        load.begin();
        load.end(MS, now);
        assert!(load.cost(now + 2_999 * MS) > 3e9);
        let later = now + 3_000 * MS;
        assert_eq!(load.cost(later), LEAST);
        load.begin();
        assert!(load.cost(later) > 6e9, "one at a time");
        load.fail(MS, later);
        assert!(load.cost(later) >= 5e9);
        let last = later + 3_000 * MS;
        load.begin();
        load.end(MS, last);
        assert_eq!((load.cost(last), load.pending()), (1e6, 0));
    }

    #[test]
    fn all_pairs_are_chosen_alike() {
        let mut counts = [[0; 4]; 4];
        for number in 0_u64..12_000 {
            let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (one, other) = two_choices(4, random ^ random.rotate_left(31));
            counts[one][other] += 1;
        }
        for (one, row) in counts.iter().enumerate() {
            for (other, &count) in row.iter().enumerate() {
                assert!(if one == other { count == 0 } else { (800..1_200).contains(&count) }, "{counts:?}");
            }
        }
        assert_eq!((two_choices(0, 7), two_choices(1, u64::MAX)), ((0, 0), (0, 0)));
    }

    proptest! {
        #[test]
        fn a_cost_is_finite_and_between_the_latencies(
            calls in prop::collection::vec((0_u64..10_000, 0_u64..20_000), 1..100),
        ) {
            let (load, mut now) = (Load::new(), Instant::now());
            // The naive reference: the same average, by its definition.
            let mut expected: Option<f64> = None;
            for (latency, wait) in calls {
                now += Duration::from_millis(wait);
                let (ns, weight) = (latency as f64 * 1e6, (-(wait as f64) / 10_000.0).exp());
                expected = Some(match expected {
                    Some(old) if ns <= old => old * weight + ns * (1.0 - weight),
                    _ => ns,
                });
                load.begin();
                load.end(Duration::from_millis(latency), now);
                let cost = load.cost(now);
                let expected = expected.unwrap_or_default().max(LEAST);
                prop_assert!(cost.is_finite() && (cost - expected).abs() <= expected * 1e-9 + 1.0, "{} {}", cost, expected);
            }
            prop_assert_eq!(load.pending(), 0);
        }
    }
}
