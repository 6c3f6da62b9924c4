//! A durable bus over streams.

mod background;
mod builder;
mod claim;
mod delayed;
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
use tokio::sync::watch;

pub use self::builder::RedisStreamBusBuilder;
use self::{
    delayed::{CANCEL_SCRIPT, DELAY_SCRIPT, of_delayed},
    entry::{Entry, Id, dead_letter},
    member::{LIFE, Member, SETTLED},
    reader::Live,
    scripts::*,
};
use super::{
    command::Command,
    commands::{Commands, batches},
    error::RedisError,
    reply::Reply,
    values::{items, millis, number, text},
};
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
    live: Live,
    /// Changes when a consumer may find something.
    changed: watch::Sender<()>,
    /// Changes when there may be another delayed event.
    delayed: watch::Sender<()>,
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
    /// Identifies the data of the server: where it comes back empty, they have another name.
    data: String,
    gap: Option<Gap>,
}

impl Shared {
    /// `known` is the name of the data in which the member was before.
    async fn join(
        &self,
        group: &str,
        pattern: &Pattern,
        from_start: bool,
        member: &str,
        known: &str,
    ) -> Result<Joined, BusError> {
        let mut call = of_group(&JOIN_SCRIPT, &self.keys, group);
        call.arg(pattern.to_string())
            .arg(if from_start { "1" } else { "0" })
            .arg(member)
            .number(millis(LIFE));
        call.arg(known).arg(uuid());
        let answer = self.commands.invoke(&call).await?;
        let Ok([joined, with, gap]) = <[Reply; 3]>::try_from(items(answer)) else {
            return Err(unexpected().into());
        };
        match number(&joined) {
            0 => Err(BusError::OtherPattern { group: group.to_owned(), pattern: text(with) }),
            1 => {
                let gap = (number(&gap) == 1).then(|| Gap::Trimmed { event_ids: Vec::new() });
                Ok(Joined { data: text(with), gap })
            }
            _ => Err(BusError::UnknownGroup { group: group.to_owned() }),
        }
    }
}

/// Room in a command for the names of fields, lengths, and the attributes that [`Event::size`] leaves out.
const ADDED_BYTES: usize = 512;

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
        RedisStreamBusBuilder::new(url)
    }

    /// Ends the subscriptions and consumers of this handle and its clones. Deliveries can still be settled. Closing twice has no
    /// effect.
    pub fn close(&self) {
        self.shared().closed.send_replace(true);
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Checks an event. Returns its size.
    fn check(&self, event: &Event) -> Result<usize, BusError> {
        if *self.shared().closed.borrow() {
            return Err(BusError::Closed);
        }
        let (size, limit) = (event.size(), self.0.max_event_bytes);
        if size > limit {
            return Err(BusError::TooLarge { size, limit });
        }
        Ok(size)
    }

    /// Appends the fields of an event.
    fn append(&self, event: &Event, mut add: impl FnMut(&[u8])) -> Result<(), BusError> {
        let add = |name: &'static str, value: &[u8]| {
            add(name.as_bytes());
            add(value);
        };
        self.shared().encoding.each_field(event, add).map_err(|error| RedisError::failed(error).into())
    }

    /// The command that publishes an event.
    fn add_command(&self, event: &Event) -> Result<Command, BusError> {
        let mut command = Command::with_capacity("XADD", self.check(event)? + ADDED_BYTES);
        command.arg(self.shared().keys.log()).arg("*");
        self.append(event, |word| {
            command.arg(word);
        })?;
        Ok(command)
    }
}

impl fmt::Debug for RedisStreamBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreamBus").field("prefix", &self.shared().keys.prefix).finish_non_exhaustive()
    }
}

#[async_trait]
impl EventBus for RedisStreamBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        let command = self.add_command(&event)?;
        // Its memory is used again by the next event, while this one waits.
        drop(event);
        self.shared().commands.execute(&command).await?;
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
        let mut results = Vec::with_capacity(events.len());
        for batch in batches(&events) {
            let mut commands = Vec::with_capacity(batch.len());
            let add = |event: &Event| self.add_command(event).map(|command| commands.push(command));
            let encoded: Vec<_> = batch.iter().map(add).collect();
            let mut answers = self.shared().commands.execute_each(&commands).await.into_iter();
            let mut next = || answers.next().unwrap_or_else(|| Err(unexpected())).map_err(BusError::from);
            results.extend(encoded.into_iter().map(|encoded| encoded.and_then(|()| next())));
        }
        results
    }
}

#[async_trait]
impl DelayBus for RedisStreamBus {
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        let mut call = of_delayed(&DELAY_SCRIPT, &self.shared().keys);
        call.arg(event.id()).number(millis(delay)).number(self.0.delayed);
        self.check(&event)?;
        self.append(&event, |word| {
            call.arg(word);
        })?;
        let stored = self.shared().commands.invoke(&call).await?;
        if number(&stored) == 0 {
            return Err(BusError::Full { events: self.0.delayed, bytes: usize::MAX });
        }
        Ok(())
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        let mut call = of_delayed(&CANCEL_SCRIPT, &self.shared().keys);
        call.arg(event_id);
        let found = self.shared().commands.invoke(&call).await?;
        Ok(number(&found) > 0)
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
        let joined = self.shared().join(group, &pattern, options.from_start, &name, "").await?;
        let member = Member::new(self.shared().clone(), group, pattern, options, name, joined);
        Consumer::batched(member, options.lease, SETTLED)
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        let mut call = of_group(&STATUS_SCRIPT, &self.shared().keys, group);
        call.number(self.shared().dead_letters).arg("");
        let answer = self.shared().commands.invoke(&call).await?;
        let numbers: Vec<_> =
            items(answer).iter().map(|one| u64::try_from(number(one)).unwrap_or(0)).collect();
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
        let call = of_group(&REMOVE_SCRIPT, &self.shared().keys, group);
        let removed = self.shared().commands.invoke(&call).await?;
        Ok(number(&removed) > 0)
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
        let mut command = Command::new("XRANGE");
        command
            .arg(self.shared().keys.of_group(group, "dead"))
            .arg(from)
            .arg("+")
            .arg("COUNT")
            .arg(limit.to_string());
        let found = self.shared().commands.execute(&command).await?;
        Ok(Entry::list(found).into_iter().map(|entry| dead_letter(self.shared().encoding, entry)).collect())
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        let unknown = || BusError::UnknownDeadLetter { entry: entry.to_owned() };
        let id = Id::parse(entry).ok_or_else(unknown)?;
        let mut read = Command::new("XRANGE");
        read.arg(self.shared().keys.of_group(group, "dead")).arg(id.to_string()).arg(id.to_string());
        let found = self.shared().commands.execute(&read).await?;
        let is_event = |found: Entry| dead_letter(self.shared().encoding, found).event.is_ok();
        let is_replayable = Entry::list(found).pop().is_none_or(is_event);
        if !is_replayable {
            return Err(unknown());
        }
        let mut call = of_group(&REPLAY_SCRIPT, &self.shared().keys, group);
        call.arg(id.to_string());
        let replayed = self.shared().commands.invoke(&call).await?;
        match number(&replayed) {
            1 => Ok(()),
            0 => Err(unknown()),
            _ => Err(BusError::UnknownGroup { group: group.to_owned() }),
        }
    }
}
