//! Limits on the rate of requests, and the store that counts them.
//!
//! A [`RateLimit`] is a number of requests in a period. A [`RateLimiter`] counts requests by key: [`MemoryRateLimiter`] in this
//! process, another one in a store that several processes share.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::error::ConfigError;

/// A number of requests in a period, evenly refilled.
///
/// A key starts with [`burst`](Self::burst) requests. Each request takes one, and one comes back after every `period / requests`.
/// It is the generic cell rate algorithm.
///
/// ```
/// use std::time::Duration;
/// use octollm_core::limit::RateLimit;
///
/// // One request every 600 ms, and 20 at once after a rest.
/// let limit = RateLimit::new(100, Duration::from_secs(60)).burst(20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateLimit {
    requests: u32,
    period: Duration,
    burst: u32,
}

/// The least time between two requests, so that the rounding to nanoseconds is below a thousandth.
const SHORTEST_INTERVAL: Duration = Duration::from_micros(1);
/// The longest time in which all requests of a burst come back.
const LONGEST_REFILL: Duration = Duration::from_secs(365 * 24 * 3600);

impl RateLimit {
    /// A limit of this many requests in this period: at least 1 request, and at most one each microsecond. The burst is the same
    /// number.
    pub const fn new(requests: u32, period: Duration) -> Self {
        Self { requests, period, burst: requests }
    }

    /// Sets the most requests at once, after a rest. At least 1. By default as many as in a period.
    #[must_use]
    pub const fn burst(mut self, burst: u32) -> Self {
        self.burst = burst;
        self
    }

    /// Requests in a period.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// The period.
    pub const fn period(&self) -> Duration {
        self.period
    }

    /// The most requests at once.
    pub const fn most_at_once(&self) -> u32 {
        self.burst
    }

    /// The time after which a request comes back.
    pub fn interval(&self) -> Duration {
        self.period / self.requests.max(1)
    }

    /// Checks the limit; `setting` is its name in the error. A server checks its limits when it is built.
    ///
    /// # Errors
    /// `requests` or the burst is 0, the interval is shorter than a microsecond, or the burst takes longer than a year to come back.
    pub fn check(&self, setting: &str) -> Result<(), ConfigError> {
        let refused = |problem: &str| Err(ConfigError::new(setting.to_owned(), problem.to_owned()));
        if self.requests == 0 || self.burst == 0 {
            return refused("allows no request: set requests and burst to at least 1");
        }
        if self.interval() < SHORTEST_INTERVAL {
            return refused("is above one request each microsecond: set fewer requests or a longer period");
        }
        match self.interval().checked_mul(self.burst) {
            Some(refill) if refill <= LONGEST_REFILL => Ok(()),
            _ => refused("takes more than a year to refill: set a shorter period or a smaller burst"),
        }
    }
}

/// The state of a key after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateState {
    /// Requests that are allowed at once from now on.
    pub remaining: u32,
    /// Time until all requests of the burst are allowed again.
    pub reset: Duration,
    /// The wait until the request would be allowed. `None` if it was allowed.
    pub retry_after: Option<Duration>,
}

impl RateState {
    /// The state of a key whose request was allowed.
    pub const fn allowed(remaining: u32, reset: Duration) -> Self {
        Self { remaining, reset, retry_after: None }
    }

    /// The state of a key whose request was refused, and would be allowed after this wait.
    pub const fn refused(remaining: u32, reset: Duration, retry_after: Duration) -> Self {
        Self { remaining, reset, retry_after: Some(retry_after) }
    }
}

/// Counts requests by key.
///
/// A store that several processes share implements it by one atomic operation, with the clock of the store.
#[async_trait]
pub trait RateLimiter: Send + Sync + 'static {
    /// Counts requests under a key if the limit allows all of them, and else none. With 0 requests nothing is counted: the state
    /// is that of one more request.
    ///
    /// A key is at most 512 characters of ASCII, and is always used with the same limit.
    ///
    /// # Errors
    /// The store failed. A server then allows the request, and logs the error.
    ///
    /// # Cancel safety
    /// If the future is dropped, the requests may or may not be counted. A server drops it after 500 ms.
    async fn take(
        &self,
        key: &str,
        limit: &RateLimit,
        requests: u32,
    ) -> Result<RateState, Box<dyn Error + Send + Sync>>;

    /// Counts requests under several keys, one after the other, up to the first that refuses them. Returns the states up to that one.
    /// By default each is a [`take`](Self::take). A store that several processes share implements it by one round trip.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    ///
    /// # Cancel safety
    /// If the future is dropped, the requests may be counted under some of the keys.
    async fn take_each(
        &self,
        counts: &[RateCount<'_>],
    ) -> Result<Vec<RateState>, Box<dyn Error + Send + Sync>> {
        let mut states = Vec::with_capacity(counts.len());
        for count in counts {
            let state = self.take(count.key, count.limit, count.requests).await?;
            states.push(state);
            if state.retry_after.is_some() {
                break;
            }
        }
        Ok(states)
    }
}

/// Requests that are counted under a key.
#[derive(Debug, Clone, Copy)]
pub struct RateCount<'a> {
    /// The key, as [`RateLimiter::take`] has it.
    pub key: &'a str,
    /// The limit of the key.
    pub limit: &'a RateLimit,
    /// How many requests are counted.
    pub requests: u32,
}

#[async_trait]
impl<L: RateLimiter + ?Sized> RateLimiter for Arc<L> {
    async fn take(
        &self,
        key: &str,
        limit: &RateLimit,
        requests: u32,
    ) -> Result<RateState, Box<dyn Error + Send + Sync>> {
        (**self).take(key, limit, requests).await
    }

    async fn take_each(
        &self,
        counts: &[RateCount<'_>],
    ) -> Result<Vec<RateState>, Box<dyn Error + Send + Sync>> {
        (**self).take_each(counts).await
    }
}

/// Counts the requests to this process, by tokio's clock. Clones share the counts.
///
/// It holds a bounded number of keys. A key is dropped once all its requests have come back, which is as if it had never been
/// there, and never before: nobody is freed of its limit by the number of others. While there is no room, new keys share 256 counts
/// for each limit, chosen by a random hash of the key. So many keys at once can slow down new ones, but not those that are known.
#[derive(Clone)]
pub struct MemoryRateLimiter(Arc<Memory>);

struct Memory {
    max_keys: usize,
    counts: Mutex<Counts>,
    hasher: RandomState,
}

/// Each count is the time at which all its requests have come back.
#[derive(Default)]
struct Counts {
    own: HashMap<Box<str>, Instant>,
    shared: HashMap<(RateLimit, u64), Instant>,
    swept: Option<Instant>,
}

/// Counts of one limit that keys without a place share.
const SHARED: u64 = 256;
/// The least time between two searches for keys that can be dropped.
const SWEEP: Duration = Duration::from_secs(1);

impl MemoryRateLimiter {
    /// A limiter of at most 65,536 keys, of about 150 bytes each.
    pub fn new() -> Self {
        Self::with_max_keys(65_536)
    }

    /// A limiter of at most this many keys. With 0 all keys share counts.
    pub fn with_max_keys(max_keys: usize) -> Self {
        let (counts, hasher) = (Mutex::default(), RandomState::new());
        Self(Arc::new(Memory { max_keys, counts, hasher }))
    }
}

impl Default for MemoryRateLimiter {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRateLimiter").field("max_keys", &self.0.max_keys).finish_non_exhaustive()
    }
}

#[async_trait]
impl RateLimiter for MemoryRateLimiter {
    async fn take(
        &self,
        key: &str,
        limit: &RateLimit,
        requests: u32,
    ) -> Result<RateState, Box<dyn Error + Send + Sync>> {
        let slot = self.0.hasher.hash_one(key) % SHARED;
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(counts.take(self.0.max_keys, (key, slot), limit, requests, Instant::now()))
    }
}

impl Counts {
    fn take(
        &mut self,
        max_keys: usize,
        (key, slot): (&str, u64),
        limit: &RateLimit,
        requests: u32,
        now: Instant,
    ) -> RateState {
        if let Some(full_at) = self.own.get_mut(key) {
            let (state, counted) = count(Some(*full_at), limit, requests, now);
            *full_at = counted.unwrap_or(*full_at);
            return state;
        }
        let has_room = self.own.len() < max_keys || self.sweep(max_keys, now);
        let shared = self.shared.get(&(*limit, slot)).copied().filter(|_| !has_room);
        let (state, counted) = count(shared, limit, requests, now);
        match counted {
            Some(full_at) if has_room => drop(self.own.insert(key.into(), full_at)),
            Some(full_at) => drop(self.shared.insert((*limit, slot), full_at)),
            None => {}
        }
        state
    }

    /// Drops the keys whose requests have all come back. Returns whether there is room now.
    fn sweep(&mut self, max_keys: usize, now: Instant) -> bool {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP) {
            self.swept = Some(now);
            self.own.retain(|_, full_at| *full_at > now);
            self.shared.retain(|_, full_at| *full_at > now);
        }
        self.own.len() < max_keys
    }
}

/// The generic cell rate algorithm: `full_at` is the time at which all requests have come back. Returns its new value if requests
/// are counted.
fn count(
    full_at: Option<Instant>,
    limit: &RateLimit,
    requests: u32,
    now: Instant,
) -> (RateState, Option<Instant>) {
    let (interval, burst) = (limit.interval(), u128::from(limit.burst));
    let owed = full_at.map_or(Duration::ZERO, |full_at| full_at.saturating_duration_since(now));
    // Part of a request that is still to come back is not there yet.
    let missing = owed.as_nanos().div_ceil(interval.as_nanos().max(1));
    let left = |missing: u128| u32::try_from(burst.saturating_sub(missing)).unwrap_or(u32::MAX);
    let capacity = interval.saturating_mul(limit.burst);
    let after = owed.saturating_add(interval.saturating_mul(requests.max(1)));
    if after > capacity {
        return (RateState::refused(left(missing), owed, after - capacity), None);
    }
    let counted = now.checked_add(after).filter(|_| requests > 0);
    match counted {
        Some(_) => (RateState::allowed(left(missing + u128::from(requests)), after), counted),
        None => (RateState::allowed(left(missing), owed), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn allowed(state: RateState) -> bool {
        state.retry_after.is_none()
    }

    proptest! {
        /// In no window are more allowed than the burst and what came back in it, and a key that waits for the returned time is allowed.
        #[test]
        fn no_window_has_more_than_the_burst_and_what_came_back(
            requests in 1_u32..50,
            period_ms in 50_u64..5_000,
            burst in 1_u32..50,
            steps in prop::collection::vec(0_u64..200, 1..200),
        ) {
            let limit = RateLimit::new(requests, Duration::from_millis(period_ms)).burst(burst);
            let (start, mut full_at, mut taken) = (Instant::now(), None, Vec::new());
            let mut now = start;
            for step in steps {
                now += Duration::from_millis(step);
                let (state, counted) = count(full_at, &limit, 1, now);
                prop_assert!(state.remaining <= burst);
                match state.retry_after {
                    None => {
                        taken.push(now);
                        full_at = counted;
                        prop_assert_eq!(state.reset, full_at.unwrap() - now);
                    }
                    Some(wait) => {
                        prop_assert!(allowed(count(full_at, &limit, 1, now + wait).0));
                        let just_before = now + wait - Duration::from_nanos(1);
                        prop_assert!(!allowed(count(full_at, &limit, 1, just_before).0));
                    }
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (last, to) in taken.iter().enumerate().skip(first) {
                    let back = (*to - *from).as_nanos() / limit.interval().as_nanos();
                    prop_assert!((last - first) as u128 <= u128::from(burst) + back);
                }
            }
        }

        /// A hundred thousand keys change nothing for one that is known.
        #[test]
        fn others_do_not_free_a_known_key(others in prop::collection::vec(0_u32..1_000, 0..300), max_keys in 1_usize..20) {
            let limit = RateLimit::new(3, SECOND * 1_000);
            let (mut counts, now) = (Counts::default(), Instant::now());
            let mut of_one = 0;
            for other in std::iter::once(0).chain(others) {
                let key = format!("{other}");
                let slot = (&*key, u64::from(other) % SHARED);
                counts.take(max_keys, slot, &limit, 1, now);
                of_one += u32::from(allowed(counts.take(max_keys, ("one", 7), &limit, 1, now)));
                prop_assert!(counts.own.len() <= max_keys);
            }
            prop_assert!(of_one <= 3);
        }
    }

    #[test]
    fn a_burst_and_then_one_each_interval() {
        let limit = RateLimit::new(10, SECOND).burst(3);
        let (now, mut full_at) = (Instant::now(), None);
        for remaining in [2, 1, 0] {
            let (state, counted) = count(full_at, &limit, 1, now);
            assert_eq!(state.remaining, remaining);
            full_at = counted;
        }
        let tenth = SECOND / 10;
        assert_eq!(count(full_at, &limit, 1, now), (RateState::refused(0, 3 * tenth, tenth), None));
        assert_eq!(count(full_at, &limit, 1, now + tenth).0, RateState::allowed(0, 3 * tenth));
        assert_eq!(count(full_at, &limit, 2, now + 2 * tenth).0, RateState::allowed(0, 3 * tenth));
        assert_eq!(count(full_at, &limit, 4, now + SECOND).0.retry_after, Some(tenth), "more than the burst");
        // A look counts nothing.
        assert_eq!(count(full_at, &limit, 0, now), (RateState::refused(0, 3 * tenth, tenth), None));
        assert_eq!(count(full_at, &limit, 0, now + tenth), (RateState::allowed(1, 2 * tenth), None));
    }

    #[test]
    fn keys_that_are_full_make_room_and_others_share() {
        let limit = RateLimit::new(2, SECOND * 2);
        let (mut counts, now) = (Counts::default(), Instant::now());
        let mut take =
            |key: &str, slot: u64, at: Instant| allowed(counts.take(2, (key, slot), &limit, 1, at));
        assert!(take("a", 1, now) && take("b", 2, now));
        // Without room: two keys of one slot share, one of another slot does not.
        assert!(take("c", 3, now) && take("d", 3, now) && !take("c", 3, now) && !take("d", 3, now));
        assert!(take("e", 4, now));
        assert!(take("a", 1, now) && !take("a", 1, now), "known keys have their own count");
        // A second later b has its request back, and a has not.
        let later = now + SECOND;
        assert!(take("c", 3, later) && take("c", 3, later) && !take("c", 3, later), "c has b's place");
        assert!(take("a", 1, later) && !take("a", 1, later), "a has the one that came back");
    }

    #[test]
    fn a_limit_that_cannot_be_counted_is_refused() {
        for (limit, is_good) in [
            (RateLimit::new(1, SECOND), true),
            (RateLimit::new(1_000_000, SECOND), true),
            (RateLimit::new(1, LONGEST_REFILL), true),
            (RateLimit::new(0, SECOND), false),
            (RateLimit::new(1, SECOND).burst(0), false),
            (RateLimit::new(1_000_001, SECOND), false),
            (RateLimit::new(1, Duration::ZERO), false),
            (RateLimit::new(1, Duration::MAX), false),
            (RateLimit::new(2, SECOND).burst(u32::MAX), false),
        ] {
            assert_eq!(limit.check("rate_limit").is_ok(), is_good, "{limit:?}");
            // Whatever it is, counting does not panic.
            let now = Instant::now();
            for requests in [0, 1, u32::MAX] {
                let (_, counted) = count(None, &limit, requests, now);
                count(counted, &limit, requests, now);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_follows_the_clock_of_tokio_and_clones_share() {
        let limiter = MemoryRateLimiter::new();
        let (clone, limit) = (limiter.clone(), RateLimit::new(1, SECOND));
        assert!(allowed(limiter.take("a", &limit, 1).await.unwrap()));
        assert_eq!(clone.take("a", &limit, 1).await.unwrap().retry_after, Some(SECOND));
        tokio::time::advance(SECOND).await;
        assert!(allowed(clone.take("a", &limit, 1).await.unwrap()));
        assert!(allowed(limiter.take("b", &limit, 1).await.unwrap()));
    }
}
