//! Rates of requests that all instances count together.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    __private::Counters,
    error::ConfigError,
    limit::{MemoryRateLimiter, RateCount, RateLimit, RateLimiter, RateState},
};
use tokio::time::{sleep, timeout};

use super::{
    command::{Command, LazyScript, Script},
    commands::Commands,
    connection::{Settings, check_prefix, connection_settings, pause},
    error::RedisError,
    values::{items, number},
};

/// Counts requests in a Redis server, so that a limit holds over all instances together. Clones share the connection.
///
/// All limits of a request are counted by one script, by the clock of the server, in one round trip. Times between two requests are rounded up to
/// whole microseconds. A key expires once all its requests have come back.
///
/// **While the server is away**, which is after one command without an answer [in time](RedisRateLimiterBuilder::timeout), each instance counts
/// by itself, with the same limits: requests do not wait, and all instances together allow as many times the limit. It is logged once as a
/// warning, and counted by `octollm_rate_limiter_fallbacks_total`. The server is asked again in the background, after 100 ms to 3.2 s.
///
/// ```no_run
/// use octollm_events::redis::RedisRateLimiter;
///
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = RedisRateLimiter::connect("redis://127.0.0.1/").await?;
/// // A server counts by it: `server.rate_limiter(limiter).rate_limit(..)`.
/// # let _ = limiter; Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisRateLimiter(Arc<Shared>);

struct Shared {
    commands: Commands,
    prefix: String,
    timeout: Duration,
    /// Counts while the server is away.
    own: MemoryRateLimiter,
    is_away: AtomicBool,
}

/// Builds a [`RedisRateLimiter`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisRateLimiterBuilder {
    settings: Result<Settings, ConfigError>,
    prefix: String,
    timeout: Duration,
}

/// Time for the answer to a request. A server allows what takes its limiter longer than 500 ms.
const TIMEOUT: Duration = Duration::from_millis(250);
/// A request that is counted as others are, so that it shows whether they can be.
const PROBE: RateCount<'_> =
    RateCount { key: "probe", limit: &RateLimit::new(1_000, Duration::from_secs(1)), requests: 1 };
/// Doublings of the pause between two attempts to reach the server.
const MAX_FAILURES: u32 = 6;

static FALLBACKS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Requests whose rate was counted in this process alone, because the shared store was away.";
    Counters::new("octollm_rate_limiter_fallbacks_total", help, &["store"])
});

// The generic cell rate algorithm. A key has the time at which all its requests have come back, in µs since 1970. Of each key follow the interval in
// µs, the burst, and how many requests are counted. Returns four numbers for each up to the first that is refused: whether it is, how many are
// left, and the times in µs until all have come back and until the request would be allowed.
const TAKE: &str = r"
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local states = {}
for at, key in ipairs(KEYS) do
  local interval, burst, requests = tonumber(ARGV[at * 3 - 2]), tonumber(ARGV[at * 3 - 1]), tonumber(ARGV[at * 3])
  local capacity = interval * burst
  -- The clock may have been set back.
  local owed = math.min(math.max((tonumber(redis.call('GET', key) or now)) - now, 0), capacity)
  local after = owed + interval * math.max(requests, 1)
  local is_refused = after > capacity
  if not is_refused and requests > 0 then
    owed = after
    redis.call('SET', key, string.format('%.0f', now + after), 'PX', math.ceil(after / 1000))
  end
  states[#states + 1] = is_refused and 1 or 0
  states[#states + 1] = burst - math.ceil(owed / interval)
  states[#states + 1] = owed
  states[#states + 1] = is_refused and after - capacity or 0
  if is_refused then break end
end
return states
";

static TAKE_SCRIPT: LazyScript = LazyScript::new(|| Script::new(TAKE));

impl RedisRateLimiter {
    /// Connects with the default settings. `url` is that of [`RedisBus::connect`](super::RedisBus::connect).
    ///
    /// # Errors
    /// A [`RedisError`] that names the reason, within 5 s for the connection and 5 s for each answer.
    ///
    /// # Cancel safety
    /// If the future is dropped, the connection is closed.
    pub async fn connect(url: &str) -> Result<Self, RedisError> {
        Self::builder(url).connect().await
    }

    /// Returns a builder, to set the limits.
    pub fn builder(url: &str) -> RedisRateLimiterBuilder {
        let (settings, prefix) = (Settings::parse(url), "octollm".to_owned());
        RedisRateLimiterBuilder { settings, prefix, timeout: TIMEOUT }
    }

    fn away(&self, error: &RedisError) {
        if self.0.is_away.swap(true, Ordering::AcqRel) {
            return;
        }
        let error: &dyn Error = error;
        tracing::warn!(error, "rates are counted by this process alone: Redis does not count them");
        tokio::spawn(return_to(Arc::downgrade(&self.0)));
    }
}

impl Shared {
    async fn ask(&self, counts: &[RateCount<'_>]) -> Result<Vec<RateState>, RedisError> {
        let key = |count: &RateCount<'_>| format!("{{{}}}:rate:{}", self.prefix, count.key);
        let mut call = TAKE_SCRIPT.call(&counts.iter().map(key).collect::<Vec<_>>());
        for count in counts {
            let interval = count.limit.interval().as_nanos().div_ceil(1_000);
            call.number(u64::try_from(interval).unwrap_or(u64::MAX));
            call.number(count.limit.most_at_once()).number(count.requests);
        }
        let numbers: Vec<_> = items(self.commands.invoke(&call).await?).iter().map(number).collect();
        let time = |micros: i64| Duration::from_micros(micros.unsigned_abs());
        let (states, _) = numbers.as_chunks();
        Ok(states
            .iter()
            .map(|&[is_refused, remaining, reset, wait]| {
                let remaining = u32::try_from(remaining).unwrap_or(0);
                match is_refused {
                    0 => RateState::allowed(remaining, time(reset)),
                    _ => RateState::refused(remaining, time(reset), time(wait)),
                }
            })
            .collect())
    }
}

/// Asks the server until it counts again.
async fn return_to(shared: Weak<Shared>) {
    for failures in 1.. {
        sleep(pause(MAX_FAILURES.min(failures))).await;
        let Some(shared) = shared.upgrade() else { return };
        // A connection may take longer than a count.
        let is_there = shared.commands.execute(&Command::new("PING")).await.is_ok();
        if is_there && matches!(timeout(shared.timeout, shared.ask(&[PROBE])).await, Ok(Ok(_))) {
            shared.is_away.store(false, Ordering::Release);
            tracing::info!("rates are counted in Redis again");
            return;
        }
    }
}

impl fmt::Debug for RedisRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut limiter = f.debug_struct("RedisRateLimiter");
        limiter.field("prefix", &self.0.prefix).field("is_away", &self.0.is_away).finish_non_exhaustive()
    }
}

impl RedisRateLimiterBuilder {
    /// Sets the prefix of all keys (default `octollm`). Limiters with other prefixes have other counts. All keys of a prefix are on one node
    /// of a cluster.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the time in which the server counts a request (default 250 ms). A server of octollm waits for at most 500 ms.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    connection_settings! { tls }

    /// Connects.
    ///
    /// # Errors
    /// [`RedisError::Setting`] for the first setting that is not valid, and those of [`RedisRateLimiter::connect`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the connection is closed.
    pub async fn connect(self) -> Result<RedisRateLimiter, RedisError> {
        let Self { settings, prefix, timeout } = self;
        check_prefix(&prefix)?;
        if timeout.is_zero() {
            return Err(ConfigError::new("timeout", "is 0").into());
        }
        let commands = Commands::connect(Arc::new(settings?.connector().await?)).await?;
        let (own, is_away) = (MemoryRateLimiter::new(), AtomicBool::new(false));
        let shared = Shared { commands, prefix, timeout, own, is_away };
        // Whether the user may count.
        shared.ask(&[PROBE]).await?;
        Ok(RedisRateLimiter(Arc::new(shared)))
    }
}

#[async_trait]
impl RateLimiter for RedisRateLimiter {
    async fn take(
        &self,
        key: &str,
        limit: &RateLimit,
        requests: u32,
    ) -> Result<RateState, Box<dyn Error + Send + Sync>> {
        let states = self.take_each(&[RateCount { key, limit, requests }]).await?;
        states.first().copied().ok_or_else(|| "the server did not answer the state of the key".into())
    }

    async fn take_each(
        &self,
        counts: &[RateCount<'_>],
    ) -> Result<Vec<RateState>, Box<dyn Error + Send + Sync>> {
        if !self.0.is_away.load(Ordering::Acquire) {
            let limit = self.0.timeout;
            let asked = timeout(limit, self.0.ask(counts)).await;
            match asked.unwrap_or(Err(RedisError::TimedOut(limit))) {
                Ok(states) => return Ok(states),
                Err(error) => self.away(&error),
            }
        }
        FALLBACKS.with(&["redis"]).count();
        self.0.own.take_each(counts).await
    }
}
