//! A durable bus in the database.

mod builder;
mod claim;
mod delay;
mod group;
mod live;
mod member;
mod publish;
mod settle;
mod state;
mod tables;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    bus::{
        BusError, Capability, ConsumeOptions, Consumer, DeadLetter, DelayBus, DurableBus, EventBus,
        GroupStatus, Overflow, Subscription,
    },
    error::ConfigError,
    event::{Event, Pattern},
};
use tokio::sync::watch;

pub use self::builder::SqlBusBuilder;
use self::{
    delay::{Cancel, Delay},
    group::{Advance, Join, Remove, Replay},
    live::Live,
    member::Member,
    publish::{Entry, Limits, Publish},
    state::{Limit, read_history},
    tables::TABLES,
};
use super::{database::SqlDatabase, error::SqlError, statement::Sql};
use crate::Encoding;

/// A [`DurableBus`] in a database, for all processes that use the database. Clones are handles of the same bus.
///
/// Each group handles the events of one partition key one at a time, in the order of publication. Leases and delays follow the
/// clock of the database. What is written at the same time is one transaction; the writes of all processes to the bus follow one
/// another. Subscriptions follow the log of the events: after an outage of Postgres they receive a
/// [`ConnectionLost`](octollm_core::bus::Gap::ConnectionLost), and what was published meanwhile.
///
/// When the last clone is dropped, its subscriptions and consumers end.
///
/// ```no_run
/// use octollm_core::{bus::{ConsumeOptions, DurableBus, EventBus}, event::Event};
/// use octollm_events::sql::{SqlBus, SqlDatabase};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let database = SqlDatabase::open("sqlite:tasks.db").await?;
/// let bus = SqlBus::open(&database).await?;
/// let mut worker = bus.consume("billing", "events:task:completed".parse()?, ConsumeOptions::default()).await?;
/// bus.publish(Event::new("task.completed", "brain", "done")?).await?;
/// while let Some(delivery) = worker.next().await {
///     delivery?.ack().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqlBus(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    max_event_bytes: usize,
    limits: Limits,
    delayed: Limit,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// What the consumers and the background tasks have.
struct Shared {
    database: SqlDatabase,
    block_timeout: Duration,
    dead_letters: Limit,
    live: Live,
    closed: watch::Sender<bool>,
    /// Whether the tables are being created again.
    is_creating: Arc<AtomicBool>,
}

impl Shared {
    fn close(&self) {
        self.closed.send_replace(true);
    }

    /// The error of the bus. Tables that are gone, as in a database that was set up anew, are created for the next attempt.
    fn unavailable(&self, error: SqlError) -> BusError {
        if error.is_without_tables() && !self.is_creating.swap(true, Ordering::Relaxed) {
            let (database, is_creating) = (self.database.clone(), self.is_creating.clone());
            tokio::spawn(async move {
                if let Err(error) = database.migrate(&TABLES).await {
                    tracing::debug!(%error, "tables of the bus not created");
                }
                is_creating.store(false, Ordering::Relaxed);
            });
        }
        match error {
            SqlError::Closed => BusError::Closed,
            error => BusError::Unavailable { source: Some(Arc::new(error)) },
        }
    }
}

impl SqlBus {
    /// Opens the bus of a database with the default limits. Creates its tables where there are none.
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables are created wholly or not at all.
    pub async fn open(database: &SqlDatabase) -> Result<Self, SqlError> {
        Self::builder(database).open().await
    }

    /// Returns a builder, to set the limits.
    pub fn builder(database: &SqlDatabase) -> SqlBusBuilder {
        SqlBusBuilder::new(database)
    }

    /// Ends the subscriptions and consumers of this handle and its clones. Deliveries can still be settled. Closing twice has no
    /// effect.
    pub fn close(&self) {
        self.shared().close();
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Checks an event and makes it an entry.
    fn entry(&self, event: &Event) -> Result<Entry, BusError> {
        if *self.shared().closed.borrow() {
            return Err(BusError::Closed);
        }
        let (size, limit) = (event.size(), self.0.max_event_bytes);
        if size > limit { Err(BusError::TooLarge { size, limit }) } else { Entry::of(event, size) }
    }

    /// The number of a group, brought up to the present time.
    async fn present(&self, group: &str) -> Result<i64, BusError> {
        static FIND: Sql = Sql::new("SELECT id FROM octollm_bus_group WHERE name = $1");
        let (database, dead_letters) = (&self.shared().database, self.shared().dead_letters);
        let rows = database
            .fetch(&FIND, [group.replace('\0', "").into()])
            .await
            .map_err(|error| self.shared().unavailable(error))?;
        let Some(row) = rows.first() else { return Err(BusError::UnknownGroup { group: group.to_owned() }) };
        let group = row.int(0).map_err(|error| self.shared().unavailable(error.into()))?;
        database
            .write(Advance { group, dead_letters })
            .await
            .map_err(|error| self.shared().unavailable(error))?;
        Ok(group)
    }
}

impl fmt::Debug for SqlBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlBus").field("database", &self.shared().database).finish_non_exhaustive()
    }
}

#[async_trait]
impl EventBus for SqlBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        let publish = Publish { entries: vec![self.entry(&event)?], limits: self.0.limits };
        let mut results =
            self.shared().database.write(publish).await.map_err(|error| self.shared().unavailable(error))?;
        results.pop().unwrap_or(Err(BusError::Unavailable { source: None }))
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.shared().subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        &Capability::ALL
    }

    fn max_event_bytes(&self) -> usize {
        self.0.max_event_bytes
    }

    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let mut results: Vec<_> = events.iter().map(|event| self.entry(event)).collect();
        let entries: Vec<_> = results.iter_mut().filter_map(|result| result.as_ref().ok().cloned()).collect();
        if entries.is_empty() {
            return results.into_iter().map(|result| result.map(drop)).collect();
        }
        let publish = Publish { entries, limits: self.0.limits };
        let mut published = match self
            .shared()
            .database
            .write(publish)
            .await
            .map_err(|error| self.shared().unavailable(error))
        {
            Ok(published) => published.into_iter(),
            Err(error) => return results.into_iter().map(|result| result.and(Err(error.clone()))).collect(),
        };
        let next = |result: Result<Entry, BusError>| {
            result.and_then(|_| published.next().unwrap_or(Err(BusError::Unavailable { source: None })))
        };
        results.into_iter().map(next).collect()
    }
}

#[async_trait]
impl DelayBus for SqlBus {
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        let (event_id, entry) = (event.id().to_owned(), self.entry(&event)?);
        let delay = Delay { event_id, entry, delay, limit: self.0.delayed };
        self.shared().database.write(delay).await.map_err(|error| self.shared().unavailable(error))?
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        self.shared()
            .database
            .write(Cancel(event_id.to_owned()))
            .await
            .map_err(|error| self.shared().unavailable(error))
    }
}

#[async_trait]
impl DurableBus for SqlBus {
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        options.check()?;
        if group.is_empty() || group.contains('\0') {
            return Err(ConfigError::new("group", "is a text without NUL, and not empty").into());
        }
        if *self.shared().closed.borrow() {
            return Err(BusError::Closed);
        }
        let join = Join { name: group.to_owned(), pattern, from_start: options.from_start };
        let joined = self.shared().database.write(join.clone()).await;
        let joined = joined.map_err(|error| self.shared().unavailable(error))??;
        let member = Member::new(self.shared().clone(), join, options, joined);
        Ok(Consumer::new(member, options.lease))
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        static READ: Sql = Sql::new(
            "SELECT (SELECT count(*) FROM octollm_bus_member AS m WHERE m.group_id = g.id AND m.until > {now}), \
             (SELECT count(*) FROM octollm_bus_delivery AS d WHERE d.group_id = g.id AND d.leased = 1), \
             g.events, g.dead, g.expired, g.discarded FROM octollm_bus_group AS g WHERE g.id = $1",
        );
        let id = self.present(group).await?;
        let rows = self
            .shared()
            .database
            .fetch(&READ, [id.into()])
            .await
            .map_err(|error| self.shared().unavailable(error))?;
        let Some(row) = rows.first() else { return Err(BusError::UnknownGroup { group: group.to_owned() }) };
        let read = || {
            let count = |column| row.count(column).map(|count| usize::try_from(count).unwrap_or(usize::MAX));
            let (mut status, events) = (GroupStatus::default(), count(2)?);
            (status.members, status.pending) = (count(0)?, count(1)?);
            status.waiting = events.saturating_sub(status.pending);
            (status.dead_letters, status.expired, status.discarded) =
                (count(3)?, row.count(4)?, row.count(5)?);
            Ok(status)
        };
        read().map_err(|error: sqlx::Error| self.shared().unavailable(error.into()))
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        self.shared()
            .database
            .write(Remove(group.replace('\0', "")))
            .await
            .map_err(|error| self.shared().unavailable(error))
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        static READ: Sql = Sql::new(
            "SELECT seq, event, reason, attempts, history FROM octollm_bus_dead WHERE group_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        );
        let unknown = |entry: &str| BusError::UnknownDeadLetter { entry: entry.to_owned() };
        let after: i64 = after.map_or(Ok(0), |after| after.parse().map_err(|_| unknown(after)))?;
        let id = self.present(group).await?;
        let rows = self.shared().database.fetch(&READ, [id.into(), after.into(), limit.into()]).await;
        let read = |row: &super::connection::Row| {
            let bytes = row.bytes(1)?;
            let event = Encoding::Native.decode(&bytes).map_err(|_| bytes.into());
            let attempts = u32::try_from(row.int(3)?).unwrap_or(u32::MAX);
            let letter = DeadLetter::new(row.int(0)?.to_string(), event, row.text(2)?, attempts);
            Ok(letter.with_history(read_history(row, 4)?))
        };
        let letters = rows
            .map_err(|error| self.shared().unavailable(error))?
            .iter()
            .map(read)
            .collect::<Result<_, sqlx::Error>>();
        letters.map_err(|error| self.shared().unavailable(error.into()))
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        let id = self.present(group).await?;
        let replay = Replay { group: id, entry: entry.to_owned(), backlog: self.0.limits.backlog };
        self.shared().database.write(replay).await.map_err(|error| self.shared().unavailable(error))?
    }
}
