//! A durable bus over streams.

mod entry;
mod member;
mod reader;
mod scripts;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    bus::{
        BusError, Capability, ConsumeOptions, Consumer, DeadLetter, DelayBus, DurableBus, EventBus, Gap,
        GroupStatus, Overflow, Subscription,
    },
    error::ConfigError,
    event::{Event, Pattern},
};
use redis::Value;
use tokio::{sync::watch, time::timeout};

use self::{
    entry::{Entry, Id, items, number, raw, text},
    member::{LIFE, Member, SETTLED, millis},
    reader::Live,
    scripts::*,
};
use super::{bus::connection_settings, commands::Commands, connection::Settings, error::RedisError};
use crate::Encoding;

/// A [`DurableBus`] over the streams of a Redis server, for all processes that use the server. Clones are handles of the same bus.
///
/// Events are entries of one stream. Leases and delays follow the clock of the server, and what a consumer settles is checked by the token of its
/// lease. Events of a partition key have no order within a group. Subscriptions follow the stream: after an outage they receive a
/// [`ConnectionLost`](Gap::ConnectionLost), and what was published meanwhile.
///
/// What the server acknowledges survives it as far as its own settings say: `appendonly yes` with `appendfsync always` loses nothing,
/// `everysec` up to a second. The bus warns where nothing is persistent, or where `maxmemory-policy` lets the server delete keys.
///
/// When the last clone is dropped, its subscriptions and consumers end.
///
/// ```no_run
/// use octollm_core::{bus::{ConsumeOptions, DurableBus, EventBus}, event::Event};
/// use octollm_events::redis::RedisStreamBus;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = RedisStreamBus::connect("redis://127.0.0.1/").await?;
/// let mut worker = bus.consume("billing", "events:task:completed".parse()?, ConsumeOptions::default()).await?;
/// bus.publish(Event::new("task.completed", "brain", "done")?).await?;
/// while let Some(delivery) = worker.next().await {
///     delivery?.ack().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStreamBus(Arc<Owner>);

/// Builds a [`RedisStreamBus`]. The processes on one server set the same prefix and limits.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisStreamBusBuilder {
    settings: Result<Settings, ConfigError>,
    encoding: Encoding,
    prefix: String,
    max_event_bytes: usize,
    block_timeout: Duration,
    history: usize,
    delayed: usize,
    dead_letters: usize,
}

struct Owner {
    shared: Arc<Shared>,
    max_event_bytes: usize,
    delayed: usize,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.closed.send_replace(true);
    }
}

/// What the consumers and the background tasks have.
struct Shared {
    commands: Commands,
    keys: Keys,
    encoding: Encoding,
    block_timeout: Duration,
    heartbeat: Duration,
    dead_letters: usize,
    /// Identifies the data of the server: where it comes back empty, there is another one.
    data: std::sync::Mutex<String>,
    live: Live,
    /// Changes when a consumer may find something.
    changed: watch::Sender<()>,
    closed: watch::Sender<bool>,
}

/// The keys of a bus. All are in one slot of a cluster.
struct Keys {
    prefix: String,
}

impl Keys {
    fn of(&self, part: &str) -> String {
        format!("{{{}}}:{part}", self.prefix)
    }

    fn log(&self) -> String {
        self.of("log")
    }

    fn wake(&self) -> String {
        self.of("wake")
    }

    /// Those that each script has.
    fn of_bus(&self) -> [String; 4] {
        [self.log(), self.of("groups"), self.wake(), self.of("trimmed")]
    }

    fn of_group(&self, group: &str, part: &str) -> String {
        self.of(&format!("group:{group}:{part}"))
    }
}

struct Joined {
    gap: Option<Gap>,
}

/// Time between two looks for what can be trimmed, and for delayed events without a notification.
const INTERVAL: Duration = Duration::from_secs(1);
const LONG_INTERVAL: Duration = Duration::from_secs(5);
/// Events that are sent to the server in one write.
const BATCH: usize = 512;

impl Shared {
    async fn join(
        &self,
        group: &str,
        pattern: &Pattern,
        from_start: bool,
        member: &str,
    ) -> Result<Joined, BusError> {
        let mut call = of_group(&JOIN_SCRIPT, &self.keys, group);
        call.arg(pattern.to_string()).arg(if from_start { "1" } else { "0" }).arg(member).arg(millis(LIFE));
        let answer: Value = self.commands.invoke(&call).await?;
        let Ok([joined, with]) = <[Value; 2]>::try_from(items(answer)) else {
            return Err(unexpected().into());
        };
        if number(&joined) == 0 {
            return Err(BusError::OtherPattern { group: group.to_owned(), pattern: text(with) });
        }
        let gap = (number(&with) == 1).then(|| Gap::Trimmed { event_ids: Vec::new() });
        Ok(Joined { gap })
    }

    /// The name of the data of the server, which the first process gives.
    async fn name_data(&self) -> Result<String, RedisError> {
        let key = self.keys.of("data");
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(uuid()).arg("NX");
        let _: Value = self.commands.execute(&set).await?;
        let found: Value = self.commands.execute(redis::cmd("GET").arg(&key)).await?;
        Ok(text(found))
    }

    /// Whether the server has other data than when this was asked before.
    async fn has_lost_data(&self) -> Result<bool, RedisError> {
        let found = self.name_data().await?;
        let mut known = self.data.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_other = !known.is_empty() && *known != found;
        *known = found;
        Ok(is_other)
    }
}

/// A text that no other process has.
fn uuid() -> String {
    octollm_core::id::RequestId::new().to_string()
}

fn unexpected() -> RedisError {
    RedisError::failed("the server answered something else than was expected")
}

impl RedisStreamBus {
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
    pub fn builder(url: &str) -> RedisStreamBusBuilder {
        RedisStreamBusBuilder {
            settings: Settings::parse(url),
            encoding: Encoding::Native,
            prefix: "octollm".to_owned(),
            max_event_bytes: 1024 * 1024,
            block_timeout: Duration::from_secs(5),
            history: 65_536,
            delayed: 65_536,
            dead_letters: 65_536,
        }
    }

    /// Ends the subscriptions and consumers of this handle and its clones. Deliveries can still be settled. Closing twice has no
    /// effect.
    pub fn close(&self) {
        self.shared().closed.send_replace(true);
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Checks an event, and makes it fields.
    fn fields(&self, event: &Event) -> Result<Vec<(&'static str, bytes::Bytes)>, BusError> {
        if *self.shared().closed.borrow() {
            return Err(BusError::Closed);
        }
        let (size, limit) = (event.size(), self.0.max_event_bytes);
        if size > limit {
            return Err(BusError::TooLarge { size, limit });
        }
        self.shared().encoding.to_fields(event).map_err(|error| RedisError::failed(error).into())
    }
}

impl fmt::Debug for RedisStreamBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreamBus").field("prefix", &self.shared().keys.prefix).finish_non_exhaustive()
    }
}

impl RedisStreamBusBuilder {
    /// Sets the prefix of all keys (default `octollm`). Buses with other prefixes have other events.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the size of the largest event that is accepted (default 1 MiB).
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets the time for which the subscriptions of this handle wait for one under [`Overflow::Block`] (default 5 s).
    pub fn block_timeout(mut self, timeout: Duration) -> Self {
        self.block_timeout = timeout;
        self
    }

    /// Limits the events that are stored for later groups and slow subscriptions (default 65 536). Events that a group has not settled are
    /// stored beside. The limit is approximate: the server deletes about a hundred at a time.
    pub fn history(mut self, events: usize) -> Self {
        self.history = events;
        self
    }

    /// Limits the events that are to be published later (default 65 536). Adding another one returns [`BusError::Full`].
    pub fn delayed(mut self, events: usize) -> Self {
        self.delayed = events;
        self
    }

    /// Limits the dead letters of a group (default 65 536). The oldest are deleted to make room.
    pub fn dead_letters(mut self, events: usize) -> Self {
        self.dead_letters = events;
        self
    }

    connection_settings! {}

    /// Connects.
    ///
    /// # Errors
    /// [`RedisError::Setting`] for the first setting that is not valid, and those of [`RedisStreamBus::connect`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the connection is closed.
    pub async fn connect(self) -> Result<RedisStreamBus, RedisError> {
        let Self {
            settings,
            encoding,
            prefix,
            max_event_bytes,
            block_timeout,
            history,
            delayed,
            dead_letters,
        } = self;
        if max_event_bytes == 0 {
            return Err(ConfigError::new("max_event_bytes", "is 0").into());
        }
        if prefix.is_empty() || prefix.contains(['{', '}']) {
            return Err(ConfigError::new("prefix", "is a text without braces, and not empty").into());
        }
        let connector = Arc::new(settings?.connector().await?);
        let heartbeat = connector.settings.heartbeat;
        let commands = Commands::connect(connector.clone()).await?;
        let shared = Arc::new(Shared {
            commands,
            keys: Keys { prefix },
            encoding,
            block_timeout,
            heartbeat,
            dead_letters,
            data: std::sync::Mutex::default(),
            live: Live::default(),
            changed: watch::Sender::new(()),
            closed: watch::Sender::new(false),
        });
        shared.has_lost_data().await?;
        warn_of_settings(&shared.commands).await;
        let waiting = Commands::connect(Arc::new(connector.waiting(heartbeat))).await?;
        let from = reader::last(&shared.commands, &shared.keys).await?;
        tokio::spawn(work(shared.clone(), waiting, from, history));
        Ok(RedisStreamBus(Arc::new(Owner { shared, max_event_bytes, delayed })))
    }
}

/// What the bus does in the background, until it is closed.
async fn work(shared: Arc<Shared>, waiting: Commands, from: Id, history: usize) {
    let mut closed = shared.closed.subscribe();
    tokio::select! {
        _ = closed.wait_for(|closed| *closed) => {}
        () = reader::follow(shared.clone(), waiting, from) => {}
        () = publish_due(&shared) => {}
        () = trim(&shared, history) => {}
    }
    shared.live.end().await;
}

/// Publishes delayed events when they are due.
async fn publish_due(shared: &Shared) {
    let mut changed = shared.changed.subscribe();
    loop {
        changed.mark_unchanged();
        let next: Result<i64, _> = shared.commands.invoke(&of_delayed(&DELAYED_SCRIPT, &shared.keys)).await;
        let wait = match next {
            Ok(next) => u64::try_from(next)
                .map_or(LONG_INTERVAL, |next| Duration::from_millis(next).min(LONG_INTERVAL)),
            Err(_) => INTERVAL,
        };
        let _ = timeout(wait, changed.changed()).await;
    }
}

/// Deletes what no group needs, beyond the history.
async fn trim(shared: &Shared, history: usize) {
    loop {
        let mut call = of_group(&TRIM_SCRIPT, &shared.keys, "");
        call.arg(history);
        // Where it fails, the log is longer for a while.
        let _: Result<Value, _> = shared.commands.invoke(&call).await;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Warns of a server that deletes keys or stores nothing. One that does not say is not warned of.
async fn warn_of_settings(commands: &Commands) {
    let info: Result<Value, _> = commands.execute(&redis::cmd("INFO")).await;
    let Ok(info) = info.map(info_text) else { return };
    let find =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if let Some(policy) = find("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        tracing::warn!(policy, "Redis may delete events: its `maxmemory-policy` is not `noeviction`");
    }
    let save: Result<Value, _> = commands.execute(redis::cmd("CONFIG").arg("GET").arg("save")).await;
    let has_snapshots = !matches!(&save, Ok(Value::Map(found)) if found.iter().all(|(_, value)| text(value.clone()).is_empty()));
    if find("aof_enabled") == Some("0") && !has_snapshots {
        tracing::warn!("Redis stores nothing on its disk: events are lost when it ends");
    }
}

fn info_text(info: Value) -> String {
    match info {
        Value::VerbatimString { text, .. } => text,
        other => text(other),
    }
}

#[async_trait]
impl EventBus for RedisStreamBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        let fields = self.fields(&event)?;
        let mut command = redis::cmd("XADD");
        command.arg(self.shared().keys.log()).arg("*");
        for (name, value) in &fields {
            command.arg(*name).arg(&value[..]);
        }
        let _: Value = self.shared().commands.execute(&command).await?;
        Ok(())
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        if *self.shared().closed.borrow() {
            return Err(BusError::Closed);
        }
        self.shared().live.subscribe(self.shared(), pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        use Capability::{AttemptCounts, DelayedNack, FencedSettling, History, LeaseExtension, Persistence};
        &[History, Persistence, FencedSettling, AttemptCounts, DelayedNack, LeaseExtension]
    }

    fn max_event_bytes(&self) -> usize {
        self.0.max_event_bytes
    }

    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let (mut results, log) = (Vec::with_capacity(events.len()), self.shared().keys.log());
        for batch in events.chunks(BATCH) {
            let mut pipeline = redis::Pipeline::with_capacity(batch.len());
            let all: Vec<_> = batch.iter().map(|event| self.fields(event)).collect();
            for fields in all.iter().flatten() {
                let command = pipeline.cmd("XADD").arg(&log).arg("*");
                for (name, value) in fields {
                    command.arg(*name).arg(&value[..]);
                }
            }
            let mut answers = self.shared().commands.execute_each(&mut pipeline).await.into_iter();
            let mut next = || answers.next().unwrap_or_else(|| Err(unexpected())).map_err(BusError::from);
            results.extend(all.into_iter().map(|fields| fields.and_then(|_| next())));
        }
        results
    }
}

#[async_trait]
impl DelayBus for RedisStreamBus {
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        let fields = self.fields(&event)?;
        let mut call = of_delayed(&DELAY_SCRIPT, &self.shared().keys);
        call.arg(event.id()).arg(millis(delay)).arg(self.0.delayed);
        for (name, value) in &fields {
            call.arg(*name).arg(&value[..]);
        }
        let stored: i64 = self.shared().commands.invoke(&call).await?;
        if stored == 0 {
            return Err(BusError::Full { events: self.0.delayed, bytes: usize::MAX });
        }
        Ok(())
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        let mut call = of_delayed(&CANCEL_SCRIPT, &self.shared().keys);
        call.arg(event_id);
        let found: i64 = self.shared().commands.invoke(&call).await?;
        Ok(found > 0)
    }
}

#[async_trait]
impl DurableBus for RedisStreamBus {
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        options.check()?;
        if group.is_empty() {
            return Err(ConfigError::new("group", "is empty").into());
        }
        if *self.shared().closed.borrow() {
            return Err(BusError::Closed);
        }
        let name = uuid();
        let joined = self.shared().join(group, &pattern, options.from_start, &name).await?;
        let member = Member::new(self.shared().clone(), group, pattern, options, name, joined);
        Consumer::batched(member, options.lease, SETTLED)
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        let mut call = of_group(&STATUS_SCRIPT, &self.shared().keys, group);
        call.arg(self.shared().dead_letters).arg("");
        let answer: Value = self.shared().commands.invoke(&call).await?;
        let numbers: Vec<_> =
            items(answer).iter().map(|value| u64::try_from(number(value)).unwrap_or(0)).collect();
        let [members, pending, waiting, dead_letters, expired, discarded] = numbers[..] else {
            return Err(BusError::UnknownGroup { group: group.to_owned() });
        };
        let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let mut status = GroupStatus::default();
        (status.members, status.pending, status.waiting) = (count(members), count(pending), count(waiting));
        (status.dead_letters, status.expired, status.discarded) = (count(dead_letters), expired, discarded);
        Ok(status)
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        let removed: i64 =
            self.shared().commands.invoke(&of_group(&REMOVE_SCRIPT, &self.shared().keys, group)).await?;
        Ok(removed > 0)
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        let unknown = |entry: &str| BusError::UnknownDeadLetter { entry: entry.to_owned() };
        let from = match after {
            Some(after) => format!("({}", Id::parse(after).ok_or_else(|| unknown(after))?),
            None => "-".to_owned(),
        };
        // Brings the group up to the present time.
        self.group(group).await?;
        let mut command = redis::cmd("XRANGE");
        command.arg(self.shared().keys.of_group(group, "dead")).arg(from).arg("+").arg("COUNT").arg(limit);
        let found: Value = self.shared().commands.execute(&command).await?;
        Ok(Entry::list(found).into_iter().map(|entry| dead_letter(self.shared().encoding, entry)).collect())
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        let unknown = || BusError::UnknownDeadLetter { entry: entry.to_owned() };
        let id = Id::parse(entry).ok_or_else(unknown)?;
        let mut read = redis::cmd("XRANGE");
        read.arg(self.shared().keys.of_group(group, "dead")).arg(id.to_string()).arg(id.to_string());
        let found: Value = self.shared().commands.execute(&read).await?;
        let is_event = |found: Entry| dead_letter(self.shared().encoding, found).event.is_ok();
        let is_replayable = Entry::list(found).pop().is_none_or(is_event);
        if !is_replayable {
            return Err(unknown());
        }
        let mut call = of_group(&REPLAY_SCRIPT, &self.shared().keys, group);
        call.arg(id.to_string());
        let replayed: i64 = self.shared().commands.invoke(&call).await?;
        match replayed {
            1 => Ok(()),
            0 => Err(unknown()),
            _ => Err(BusError::UnknownGroup { group: group.to_owned() }),
        }
    }
}

fn dead_letter(encoding: Encoding, entry: Entry) -> DeadLetter {
    let (mut reason, mut attempts, mut event) = (String::new(), 0, Vec::new());
    for (name, value) in entry.fields {
        match &name[..] {
            b"reason" => reason = String::from_utf8_lossy(&value).into_owned(),
            b"attempts" => attempts = String::from_utf8_lossy(&value).parse().unwrap_or(0),
            [b'f', b':', name @ ..] => event.push((name.to_vec(), value)),
            _ => {}
        }
    }
    let decoded = encoding.from_fields(event.iter().map(|(name, value)| (name, value)));
    DeadLetter::new(entry.id.to_string(), decoded.map_err(|_| raw(&event).into()), reason, attempts)
}
