//! When a name is looked up again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// The time to the next lookup. It decides without a clock.
pub(super) struct Refresh {
    least: Duration,
    most: Duration,
    /// Number of errors since the last answer.
    errors: u32,
}

impl Refresh {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, errors: 0 }
    }

    /// The time after an answer whose records live for `ttl`: up to a tenth less than that, so that clients that began together
    /// do not ask together. `random` is at least 0 and below 1.
    pub(super) fn after_answer(&mut self, ttl: Duration, random: f64) -> Duration {
        self.errors = 0;
        let time = ttl.clamp(self.least, self.most);
        time.mul_f64(1.0 - 0.1 * random).max(self.least)
    }

    /// The time after an error: it is doubled with each one, and half of it is random.
    pub(super) fn after_error(&mut self, random: f64) -> Duration {
        let backoff = self.least.saturating_mul(2_u32.saturating_pow(self.errors)).min(self.most);
        self.errors = self.errors.saturating_add(1);
        backoff.mul_f64(0.5 + 0.5 * random)
    }
}

/// A random number from 0 to below 1.
pub(super) fn random() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(30);

    #[test]
    fn the_time_to_live_holds_within_the_limits() {
        let mut refresh = Refresh::new(LEAST, MOST);
        for (ttl, least, most) in
            [(0, 1.0, 1.0), (1, 1.0, 1.0), (5, 4.5, 5.0), (30, 27.0, 30.0), (3600, 27.0, 30.0)]
        {
            for random in [0.0, 0.5, 0.999] {
                let time = refresh.after_answer(Duration::from_secs(ttl), random).as_secs_f64();
                assert!((least..=most).contains(&time), "{ttl} s: {time}");
            }
        }
    }

    #[test]
    fn errors_double_the_time_until_an_answer() {
        let mut refresh = Refresh::new(LEAST, MOST);
        let times: Vec<_> = (0..7).map(|_| refresh.after_error(0.999_999_9).as_secs_f64().round()).collect();
        assert_eq!(times, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        refresh.after_answer(LEAST, 0.0);
        assert_eq!(refresh.after_error(0.0), LEAST / 2);
    }

    proptest! {
        #[test]
        fn no_sequence_leads_to_a_time_out_of_the_limits(
            steps in prop::collection::vec((prop::option::of(0..u64::from(u32::MAX)), 0.0..1.0_f64), 0..200)
        ) {
            let mut refresh = Refresh::new(LEAST, MOST);
            for (ttl, random) in steps {
                let (time, least) = match ttl {
                    Some(ttl) => (refresh.after_answer(Duration::from_secs(ttl), random), LEAST),
                    None => (refresh.after_error(random), LEAST / 2),
                };
                prop_assert!(least <= time && time <= MOST, "{time:?}");
            }
        }
    }
}
