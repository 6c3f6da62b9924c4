//! Records of calls with an idempotency key.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use octollm_core::{
    contract::Keys,
    error::{ConfigError, ErrorKind, Failure},
    idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun},
};

use super::{
    command::{Call, LazyScript, Script},
    commands::Commands,
    connection::{Settings, check_prefix, connection_settings},
    error::RedisError,
    reply::Reply,
    values::{items, millis, text},
    warnings::warn_of_settings,
};

/// The records of calls with an idempotency key, in a Redis server that all instances of an arm share. Clones share the connection.
///
/// Each operation is one script, which judges leases by the clock of the server. A record expires by itself after its retention.
///
/// A record is as durable as the server stores it. One that the server loses, as it can by `appendfsync everysec`, in a failover to a
/// replica or by a `maxmemory-policy` other than `noeviction`, lets a repeated call run again. The store warns of settings by which it can. Where
/// that must not happen, use a database, or `appendfsync always` without failovers.
///
/// ```no_run
/// use octollm_events::redis::RedisIdempotencyStore;
///
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = RedisIdempotencyStore::connect("redis://127.0.0.1/").await?;
/// # let _ = keys; Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisIdempotencyStore(Arc<Shared>);

struct Shared {
    commands: Commands,
    prefix: String,
    retention: Duration,
}

/// Builds a [`RedisIdempotencyStore`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisIdempotencyStoreBuilder {
    settings: Result<Settings, ConfigError>,
    prefix: String,
    retention: Duration,
}

// A record is a hash: the digest of the input, the run, the state, the end of its lease in ms since 1970, and the answer.
const BEGIN: &str = r"
-- A part of a millisecond has passed: no lease ends early.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local found = redis.call('HMGET', KEYS[1], 'input', 'state', 'until', 'answer')
local input, state = found[1], found[2]
if not state then
  if ARGV[5] == '1' then return {'unknown'} end
elseif input ~= ARGV[1] then
  return {'other'}
elseif state == 'running' then
  return {now < tonumber(found[3]) and 'running' or 'unknown'}
elseif state ~= 'released' then
  return {state, found[4] or ''}
end
redis.call('HSET', KEYS[1], 'input', ARGV[1], 'run', ARGV[2], 'state', 'running', 'until', now + 1 + tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[3]) + tonumber(ARGV[4]))
return {'run'}
";

const END: &str = r"
local found = redis.call('HMGET', KEYS[1], 'run', 'state')
if found[1] ~= ARGV[1] or found[2] ~= 'running' then return 0 end
if ARGV[2] == 'none' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'state', ARGV[2], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
";

static BEGIN_SCRIPT: LazyScript = LazyScript::new(|| Script::new(BEGIN));
static END_SCRIPT: LazyScript = LazyScript::new(|| Script::new(END));

/// How a run ends.
enum End {
    Answered(Vec<u8>),
    Released,
    Unknown,
    /// Without a record.
    Withdrawn,
}

impl RedisIdempotencyStore {
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

    /// Returns a builder, to set the retention and the limits.
    pub fn builder(url: &str) -> RedisIdempotencyStoreBuilder {
        RedisIdempotencyStoreBuilder {
            settings: Settings::parse(url),
            prefix: "octollm".to_owned(),
            retention: Duration::from_secs(24 * 3600),
        }
    }

    fn call<'a>(&self, script: &'a Script, run: &KeyedRun) -> Call<'a> {
        script.call(&[format!("{{{}}}:key:{}", self.0.prefix, run.record)])
    }

    async fn end(&self, run: &KeyedRun, end: End) -> Result<(), RedisError> {
        let mut call = self.call(&END_SCRIPT, run);
        call.arg(run.run.to_string());
        let retention = millis(self.0.retention);
        match end {
            End::Answered(answer) => call.arg("answered").number(retention).arg("answer").arg(answer),
            End::Released => call.arg("released").number(retention),
            End::Unknown => call.arg("unknown").number(retention),
            End::Withdrawn => call.arg("none").number(retention),
        };
        self.0.commands.invoke(&call).await.map(drop)
    }

    /// Ends a run for which nobody waits. Where it fails, the lease of the run ends it.
    fn end_later(&self, run: &KeyedRun, end: End) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, run) = (self.clone(), run.clone());
            runtime.spawn(async move { drop(store.end(&run, end).await) });
        }
    }
}

impl fmt::Debug for RedisIdempotencyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { prefix, retention, .. } = &*self.0;
        let mut store = f.debug_struct("RedisIdempotencyStore");
        store.field("prefix", prefix).field("retention", retention).finish_non_exhaustive()
    }
}

impl RedisIdempotencyStoreBuilder {
    /// Sets how long an answer is retained (default one day).
    pub fn retained_for(mut self, time: Duration) -> Self {
        self.retention = time;
        self
    }

    /// Sets the prefix of all keys (default `octollm`). Stores with other prefixes have other records. All keys of a prefix are on one node
    /// of a cluster.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    connection_settings! {}

    /// Connects.
    ///
    /// # Errors
    /// [`RedisError::Setting`] for the first setting that is not valid, and those of [`RedisIdempotencyStore::connect`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the connection is closed.
    pub async fn connect(self) -> Result<RedisIdempotencyStore, RedisError> {
        let Self { settings, prefix, retention } = self;
        check_prefix(&prefix)?;
        if retention.is_zero() {
            return Err(ConfigError::new("retained_for", "is 0").into());
        }
        let commands = Commands::connect(Arc::new(settings?.connector().await?)).await?;
        warn_of_settings(&commands).await;
        Ok(RedisIdempotencyStore(Arc::new(Shared { commands, prefix, retention })))
    }
}

#[async_trait]
impl IdempotencyStore for RedisIdempotencyStore {
    fn keys(&self) -> Keys {
        Keys::Shared
    }

    fn retention(&self) -> Duration {
        self.0.retention
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        let mut call = self.call(&BEGIN_SCRIPT, run);
        call.arg(&run.input).arg(run.run.to_string()).number(millis(lease)).number(millis(self.0.retention));
        call.arg(if must_exist { "1" } else { "0" });
        let begun = match self.0.commands.invoke(&call).await {
            Err(RedisError::Full(_)) => return Ok(Begun::Full),
            begun => begun?,
        };
        let mut begun = items(begun).into_iter();
        let state = begun.next().map(text).unwrap_or_default();
        match state.as_str() {
            "run" => Ok(Begun::Run),
            "running" => Ok(Begun::Running),
            "other" => Ok(Begun::OtherInput),
            "unknown" => Ok(Begun::Unknown),
            "answered" => {
                let answer = match begun.next() {
                    Some(Reply::Text(bytes)) => read(bytes),
                    _ => None,
                };
                answer.map(Begun::Answered).ok_or_else(|| Failure::of(ErrorKind::Internal))
            }
            _ => Err(Failure::of(ErrorKind::Internal)),
        }
    }

    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure> {
        let answer = written(answer).map_err(|_| Failure::of(ErrorKind::Internal))?;
        Ok(self.end(run, End::Answered(answer)).await?)
    }

    async fn release(&self, run: &KeyedRun, may_have_executed: bool) -> Result<(), Failure> {
        Ok(self.end(run, if may_have_executed { End::Released } else { End::Withdrawn }).await?)
    }

    fn abandon(&self, run: &KeyedRun) {
        self.end_later(run, End::Unknown);
    }

    fn withdraw(&self, run: &KeyedRun) {
        self.end_later(run, End::Withdrawn);
    }
}

/// An answer as bytes: a line of JSON with whether it is an output, what it used, when it began in µs since 1970, and how long it took in ns; then
/// the output, or the failure as JSON.
fn written(answer: KeyedAnswer) -> Result<Vec<u8>, serde_json::Error> {
    let KeyedAnswer { result, usage, began, took, .. } = answer;
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    let mut bytes = serde_json::to_vec(&(result.is_ok(), usage, began.as_microsecond(), took))?;
    bytes.push(b'\n');
    match result {
        Ok(output) => bytes.extend_from_slice(&output),
        Err(failure) => serde_json::to_writer(&mut bytes, &failure)?,
    }
    Ok(bytes)
}

fn read(bytes: Bytes) -> Option<KeyedAnswer> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (is_output, usage, began, took) = serde_json::from_slice(&bytes[..end]).ok()?;
    let rest = bytes.slice(end + 1..);
    let result = if is_output { Ok(rest) } else { Err(serde_json::from_slice(&rest).ok()?) };
    let began = Timestamp::from_microsecond(began).ok()?;
    Some(KeyedAnswer::new(result, usage, began, Duration::from_nanos(took)))
}
