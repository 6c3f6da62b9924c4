//! Subscriptions, which follow the log, and events that are published later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    bus::{
        BusError, Gap, Overflow, Subscription,
        engine::{Feed, deliver},
    },
    event::Pattern,
};
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use super::{
    Shared,
    delay::Due,
    publish::Limits,
    state::{DELAYED, LOG},
};
use crate::{
    Encoding,
    sql::{error::SqlError, statement::Sql},
};

/// The log is read this often without a notification.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a failure of the database.
const FAILURE: Duration = Duration::from_millis(200);
/// Most events that are read at once, and most bytes of them after the first one.
const EVENTS: usize = 512;
const BYTES: usize = 4 << 20;

/// The subscriptions of one handle, which follow the log together.
#[derive(Default)]
pub(super) struct Live {
    subscribers: Mutex<Vec<Arc<Subscriber>>>,
    is_following: AtomicBool,
}

struct Subscriber {
    pattern: Pattern,
    /// It receives what comes after this number of this epoch.
    after: u64,
    epoch: i64,
    feed: Feed,
}

static LAST: Sql = Sql::new("SELECT last, epoch FROM octollm_bus");

impl Shared {
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        pattern: Pattern,
        overflow: Overflow,
    ) -> Result<Subscription, BusError> {
        let (feed, subscription) = Feed::new(overflow, self.block_timeout)?;
        // No event is delivered between the two.
        let mut subscribers = self.live.subscribers.lock().await;
        let rows = self.database.fetch(&LAST, []).await.map_err(|error| self.unavailable(error))?;
        let last = rows.first().map(|row| Ok((row.count(0)?, row.int(1)?))).transpose();
        let last = last.map_err(|error: sqlx::Error| self.unavailable(error.into()))?;
        let (after, epoch) = last.unwrap_or_default();
        if *self.closed.borrow() {
            return Err(BusError::Closed);
        }
        subscribers.push(Arc::new(Subscriber { pattern, after, epoch, feed }));
        if !self.live.is_following.swap(true, Ordering::Relaxed) {
            tokio::spawn(until_closed(self.closed.subscribe(), follow(self.clone(), after, epoch)));
        }
        Ok(subscription)
    }

    /// The subscriptions that have not ended.
    async fn subscribers(&self) -> Vec<Arc<Subscriber>> {
        let mut subscribers = self.live.subscribers.lock().await;
        subscribers.retain(|subscriber| !subscriber.feed.is_closed());
        subscribers.clone()
    }

    /// Reports a gap to the subscriptions that follow the log from before this number, or from an earlier epoch.
    async fn gap(&self, gap: Gap, before: u64, epoch: i64) {
        for subscriber in self.subscribers().await {
            if subscriber.epoch != epoch || subscriber.after < before {
                subscriber.feed.gap(gap.clone());
            }
        }
    }
}

pub(super) async fn until_closed(mut closed: watch::Receiver<bool>, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
}

/// Ends the subscriptions of a bus that is closed.
pub(super) async fn end(live: &Live) {
    for subscriber in live.subscribers.lock().await.drain(..) {
        subscriber.feed.end(BusError::Closed);
    }
}

/// Delivers what is published after number `after`. The numbers are in the order of the commits, so that nothing is skipped.
async fn follow(shared: Arc<Shared>, mut after: u64, mut epoch: i64) {
    // One row at least, unless the tables are empty.
    static READ: Sql = Sql::new(
        "SELECT b.trimmed, b.epoch, l.seq, l.event FROM octollm_bus AS b LEFT JOIN ( \
         SELECT seq, event, sum(size) OVER (ORDER BY seq) - size AS before FROM ( \
         SELECT seq, event, size FROM octollm_bus_log WHERE seq > $1 ORDER BY seq LIMIT $2) AS first) AS l \
         ON l.before < $3{pg:::bigint} ORDER BY l.seq",
    );
    let changes = shared.database.changes();
    let (mut changed, mut listening) = (changes.subscribe(LOG.into()), changes.listening());
    let mut outages = listening.borrow_and_update().outages;
    loop {
        changed.mark_unchanged();
        let rows = shared.database.fetch(&READ, [after.into(), EVENTS.into(), BYTES.into()]).await;
        // It is before the events that were read after it.
        let connection = *listening.borrow_and_update();
        if connection.outages != outages {
            outages = connection.outages;
            shared.gap(Gap::ConnectionLost, u64::MAX, epoch).await;
        }
        if connection.is_lost {
            // An outage ends when changes are received again, so that the next one is another.
            let _ = timeout(INTERVAL, listening.wait_for(|connection| !connection.is_lost)).await;
        }
        let rows = match rows {
            Ok(rows) => rows,
            Err(SqlError::Closed) => return shared.close(),
            Err(error) => {
                shared.unavailable(error);
                let _ = timeout(FAILURE, listening.changed()).await;
                continue;
            }
        };
        let found = rows.first().and_then(|row| Some((row.count(0).ok()?, row.int(1).ok()?)));
        if let Some((_, found)) = found
            && found != epoch
        {
            // The data of the bus are gone. Its log begins anew.
            (after, epoch) = (0, found);
            shared.gap(Gap::Trimmed { event_ids: Vec::new() }, u64::MAX, epoch).await;
            continue;
        }
        let events =
            rows.iter().filter_map(|row| Some((row.int_or_null(2).ok()??, row.bytes_or_null(3).ok()??)));
        let events: Vec<_> = events.collect();
        if events.is_empty() {
            tokio::select! {
                _ = changed.changed() => {}
                _ = listening.changed() => {}
                () = sleep(INTERVAL) => {}
            }
            continue;
        }
        let trimmed = found.map_or(0, |(trimmed, _)| trimmed);
        let subscribers = shared.subscribers().await;
        for (seq, bytes) in events {
            let seq = u64::try_from(seq).unwrap_or(0);
            if trimmed > after && seq > trimmed {
                shared.gap(Gap::Trimmed { event_ids: Vec::new() }, trimmed, epoch).await;
            }
            after = seq;
            // What is no event is none for a subscriber.
            let Ok(event) = Encoding::Native.decode(&bytes) else { continue };
            let receives = |subscriber: &&Arc<Subscriber>| {
                let follows = subscriber.epoch != epoch || subscriber.after < seq;
                follows && subscriber.pattern.matches(event.channel())
            };
            let feeds = subscribers.iter().filter(receives).map(|subscriber| &subscriber.feed);
            deliver(feeds, &event).await;
        }
    }
}

/// Publishes delayed events when they are due.
pub(super) async fn publish_due(shared: Arc<Shared>, limits: Limits) {
    static NEXT: Sql = Sql::new("SELECT min(due) - {now} FROM octollm_bus_delayed");
    let mut changed = shared.database.changes().subscribe(DELAYED.into());
    loop {
        changed.mark_unchanged();
        let next = shared.database.fetch(&NEXT, []).await;
        let next =
            next.and_then(|rows| Ok(rows.first().map(|row| row.int_or_null(0)).transpose()?.flatten()));
        let time = match next {
            Ok(None) => INTERVAL,
            Ok(Some(time)) if time <= 0 => match shared.database.write(Due(limits)).await {
                Ok(()) => continue,
                Err(SqlError::Closed) => return,
                Err(_) => FAILURE,
            },
            // The clock of SQLite has milliseconds.
            Ok(Some(time)) => Duration::from_micros(u64::try_from(time).unwrap_or(0) + 1_000).min(INTERVAL),
            Err(SqlError::Closed) => return,
            Err(_) => FAILURE,
        };
        let _ = timeout(time, changed.changed()).await;
    }
}
