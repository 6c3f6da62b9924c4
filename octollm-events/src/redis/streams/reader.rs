//! Follows the log: feeds subscriptions, and wakes the consumers.

use std::{sync::Arc, time::Duration};

use octollm_core::{
    bus::{
        BusError, Gap, Overflow, Subscription,
        engine::{Feed, deliver},
    },
    event::{Event, Pattern},
};
use tokio::{sync::Mutex, time::sleep};

use super::{
    Keys, Shared,
    entry::{Entry, Id, streams},
};
use crate::redis::{command::Command, commands::Commands, connection::pause, error::RedisError};

/// Most entries that are read at once.
const BATCH: usize = 512;
/// Consumers are woken at most this often while nobody subscribes.
const COALESCED: Duration = Duration::from_millis(1);

/// The subscriptions of one handle, which follow the log together.
#[derive(Default)]
pub(super) struct Live {
    subscribers: Mutex<Vec<Arc<Subscriber>>>,
}

struct Subscriber {
    pattern: Pattern,
    /// It receives what comes after this entry.
    after: Id,
    feed: Feed,
}

impl Live {
    pub(super) async fn subscribe(
        &self,
        shared: &Shared,
        pattern: Pattern,
        overflow: Overflow,
    ) -> Result<Subscription, BusError> {
        let (feed, subscription) = Feed::new(overflow, shared.block_timeout)?;
        let after = last(&shared.commands, &shared.keys).await?;
        // What is published from now on is read after that.
        self.subscribers.lock().await.push(Arc::new(Subscriber { pattern, after, feed }));
        Ok(subscription)
    }

    /// The subscriptions that have not ended.
    async fn open(&self) -> Vec<Arc<Subscriber>> {
        let mut subscribers = self.subscribers.lock().await;
        subscribers.retain(|subscriber| !subscriber.feed.is_closed());
        subscribers.clone()
    }

    async fn gap(&self, gap: &Gap) {
        for subscriber in self.open().await {
            subscriber.feed.gap(gap.clone());
        }
    }

    pub(super) async fn end(&self) {
        for subscriber in self.subscribers.lock().await.drain(..) {
            subscriber.feed.end(BusError::Closed);
        }
    }

    async fn deliver(&self, id: Id, event: &Event) {
        let subscribers = self.open().await;
        let receives =
            subscribers.iter().filter(|one| one.after < id && one.pattern.matches(event.channel()));
        let feeds: Vec<&Feed> = receives.map(|subscriber| &subscriber.feed).collect();
        if !feeds.is_empty() {
            deliver(feeds, event).await;
        }
    }
}

/// The last entry of the log.
pub(super) async fn last(commands: &Commands, keys: &Keys) -> Result<Id, RedisError> {
    edge(commands, "XREVRANGE", [&keys.log(), "+", "-"]).await
}

/// The first one.
async fn first(commands: &Commands, keys: &Keys) -> Result<Id, RedisError> {
    edge(commands, "XRANGE", [&keys.log(), "-", "+"]).await
}

async fn edge(commands: &Commands, command: &str, range: [&str; 3]) -> Result<Id, RedisError> {
    let mut command = Command::new(command);
    for word in range {
        command.arg(word);
    }
    let found = commands.execute(command.arg("COUNT").arg("1")).await?;
    Ok(Entry::list(found).first().map(|entry| entry.id).unwrap_or_default())
}

/// Reads the log until the bus is closed.
pub(super) async fn follow(shared: Arc<Shared>, waiting: Commands, from: Id) {
    let changed = &shared.changed;
    let wait = shared.heartbeat;
    let (mut after, mut woken) = (from, Id::default());
    let (mut failures, mut lags) = (0_u32, false);
    loop {
        let has_subscribers = !shared.live.open().await.is_empty();
        let count = if has_subscribers { BATCH } else { 1 };
        let read = waiting.execute(&read_command(&shared.keys, wait, count, after, woken)).await;
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the log of events in Redis cannot be read: it is tried again"
                    );
                    shared.live.gap(&Gap::ConnectionLost).await;
                }
                sleep(pause(failures)).await;
                continue;
            }
        };
        if failures > 0 {
            (failures, lags) = (0, true);
            // What was to be done may have been missed.
            changed.send_replace(());
            shared.delayed.send_replace(());
        }
        let (entries, wakes) = streams(read, &shared.keys.log());
        if let Some(wake) = wakes.last() {
            woken = wake.id;
            shared.delayed.send_replace(());
        }
        if !entries.is_empty() || !wakes.is_empty() {
            changed.send_replace(());
        }
        if !has_subscribers {
            after = skip(&shared, after, entries.last().map(|entry| entry.id)).await;
            // Consumers that are woken find all that is published meanwhile.
            sleep(COALESCED).await;
            continue;
        }
        if lags
            && first(&shared.commands, &shared.keys).await.is_ok_and(|first| first > after)
            && after > Id::default()
        {
            shared.live.gap(&Gap::Trimmed { event_ids: Vec::new() }).await;
        }
        lags = entries.len() == BATCH;
        for entry in entries {
            after = entry.id;
            // What is no event is none for a subscriber.
            if let Ok(event) = shared.encoding.from_fields(entry.fields) {
                shared.live.deliver(after, &event).await;
            }
        }
    }
}

fn read_command(keys: &Keys, wait: Duration, count: usize, after: Id, woken: Id) -> Command {
    let mut command = Command::new("XREAD");
    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    command.arg("COUNT").arg(count.to_string()).arg("BLOCK").arg(wait.to_string()).arg("STREAMS");
    command.arg(keys.log()).arg(keys.wake()).arg(after.to_string()).arg(woken.to_string());
    command
}

/// Nobody subscribes: goes to the end of the log, so that entries need not be read one by one.
async fn skip(shared: &Shared, after: Id, read: Option<Id>) -> Id {
    let Some(read) = read else { return after };
    let last = last(&shared.commands, &shared.keys).await;
    let subscribers = shared.live.subscribers.lock().await;
    // A subscriber that came meanwhile receives what follows its own position.
    match last {
        Ok(last) if subscribers.is_empty() => last.max(read),
        _ => after,
    }
}
