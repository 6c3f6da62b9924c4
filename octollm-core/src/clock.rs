//! The time of day.

use std::{
    cell::Cell,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Returns the time of day. Once a test has paused tokio's clock, it follows that one.
pub fn now() -> Timestamp {
    static START: OnceLock<(Timestamp, std::time::Instant)> = OnceLock::new();
    let (at, started) = START.get_or_init(|| (Timestamp::now(), std::time::Instant::now()));
    let before = std::time::Instant::now();
    let tokio = Instant::now().into_std();
    // A clock is read in less than this. Where that took longer, it is read once more.
    const SOON: Duration = Duration::from_micros(1);
    let after = tokio.checked_duration_since(before);
    if after.is_some_and(|after| after <= SOON || tokio <= std::time::Instant::now()) {
        return Timestamp::now();
    }
    // The real clock is not between these: tokio's clock shows a time of a test, which may precede `started`.
    let passed = match tokio.checked_duration_since(*started) {
        Some(passed) => SignedDuration::try_from(passed),
        None => SignedDuration::try_from(started.duration_since(tokio)).map(|before| -before),
    };
    passed.ok().and_then(|passed| at.checked_add(passed).ok()).unwrap_or(*at)
}

/// Returns the time of day, or one that is up to 50 ms old: where whole seconds count. It reads one clock in place of four.
pub fn recent() -> Timestamp {
    const FRESH: Duration = Duration::from_millis(50);
    thread_local! {
        static LAST: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
    }
    let tokio = Instant::now();
    match LAST.get() {
        Some((at, time)) if tokio.checked_duration_since(at).is_some_and(|passed| passed < FRESH) => time,
        _ => {
            let time = now();
            LAST.set(Some((tokio, time)));
            time
        }
    }
}

/// The clock of a brain's records.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    pub(crate) fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.0)()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_of_day_follows_a_paused_clock_exactly() {
        let (real, start) = (Timestamp::now(), now());
        assert!(start.duration_since(real).abs() < SignedDuration::from_secs(5));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(now().duration_since(start), SignedDuration::from_secs(3600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_recent_time_of_day_is_less_than_50_ms_old() {
        let start = recent();
        for milliseconds in [0, 49] {
            tokio::time::advance(Duration::from_millis(milliseconds)).await;
            assert_eq!(recent(), start);
        }
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(recent().duration_since(start), SignedDuration::from_millis(50));
        assert_eq!(recent(), now());
    }

    #[test]
    fn the_time_of_day_is_that_of_the_system() {
        let before = Timestamp::now();
        let now = now();
        assert!(before <= now && now <= Timestamp::now());
    }
}
