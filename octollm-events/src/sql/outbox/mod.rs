//! Events that are stored with the changes of the program's own tables, and published after that.

mod relay;
mod write;

use std::{sync::Arc, time::Duration};

use octollm_core::{
    bus::{BusError, DeadLetter, EventBus},
    event::Event,
};

use self::write::{INSERT, Retry, TABLES};
pub(super) use self::write::{hash, row};
use super::{
    changes::Topic, database::SqlDatabase, error::SqlError, statement::Sql, transaction::SqlTransaction,
};
use crate::Encoding;

/// Stores events in the transactions of the program, and publishes them on a bus.
///
/// An event is stored if its transaction is committed, and not otherwise. [`relay`](Self::relay) publishes it at least once, each
/// time with the same id. Any number of processes can relay at once. Events with one partition key are published in the order
/// in which they were stored, by transactions of which one began after the other was committed; events without a key are
/// published in any order.
///
/// The tables are in the database of the program's own tables. A clone is the same outbox.
///
/// ```no_run
/// use octollm_core::{bus::MemoryBus, event::Event};
/// use octollm_events::sql::{Outbox, SqlDatabase};
///
/// # async fn example(pool: sqlx::PgPool, bus: MemoryBus) -> Result<(), Box<dyn std::error::Error>> {
/// let database = SqlDatabase::open("postgres://me@localhost/shop").await?;
/// let outbox = Outbox::open(&database).await?;
/// tokio::spawn(outbox.relay(bus));
///
/// let mut tx = pool.begin().await?;
/// sqlx::query("UPDATE orders SET state = 'paid' WHERE id = 7").execute(&mut *tx).await?;
/// outbox.enqueue(&mut tx, &Event::new("order.paid", "shop", 7)?.with_partition_key("7")).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Outbox {
    database: SqlDatabase,
    max_event_bytes: usize,
    lease: Duration,
}

/// Wakes the relays.
const TOPIC: &str = "outbox";
/// Events of one partition are published by one relay at a time.
const PARTITIONS: u64 = 16;

impl Outbox {
    /// Opens the outbox of a database. Creates its tables where there are none.
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables are created wholly or not at all.
    pub async fn open(database: &SqlDatabase) -> Result<Self, SqlError> {
        database.migrate(&TABLES).await?;
        let database = database.clone();
        Ok(Self { database, max_event_bytes: 1024 * 1024, lease: Duration::from_secs(10) })
    }

    /// Sets the size of the largest event that is stored, as [`Event::size`] (default 1 MiB). It is at most that of the bus.
    #[must_use]
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets for how long a relay has a part of the events without renewing it (default 10 s, at least 100 ms). After that,
    /// another relay publishes them, by the clock of the database.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(100));
        self
    }

    /// Stores an event in a transaction.
    ///
    /// # Errors
    /// [`SqlError::TooLarge`], and the error of the database, after which the transaction is to be rolled back.
    ///
    /// # Cancel safety
    /// If the future is dropped, the event may or may not be stored in the transaction.
    pub async fn enqueue(&self, tx: impl Into<SqlTransaction<'_>>, event: &Event) -> Result<(), SqlError> {
        let (size, limit) = (event.size(), self.max_event_bytes);
        if size > limit {
            return Err(SqlError::TooLarge { size, limit });
        }
        let SqlTransaction(mut conn) = tx.into();
        conn.execute(&INSERT, write::row(event, size)?).await?;
        // The transaction is not committed yet: the relays look several times.
        self.database.changes().publish(vec![topic()]);
        Ok(())
    }

    /// Publishes the stored events on a bus, until the bus or the database is closed. Returns why it ended.
    ///
    /// A closed bus is noticed when the next event is published: a relay with nothing to publish goes on. To end one, drop
    /// the future or abort its task.
    ///
    /// A bus that is away or full is tried again, at growing intervals of at most 5 s. What it refuses for ever, such as an event
    /// that is too large for it, becomes a dead letter of the outbox, and the later events of its key are published.
    ///
    /// # Cancel safety
    /// If the future is dropped, no event is lost: it is published by another relay, perhaps a second time.
    pub fn relay<B: EventBus>(&self, bus: B) -> impl Future<Output = BusError> + Send + use<B> {
        relay::run(self.clone(), Arc::new(bus))
    }

    /// Returns the number of events that wait to be published.
    ///
    /// # Errors
    /// The error of the database.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn waiting(&self) -> Result<u64, SqlError> {
        static COUNT: Sql = Sql::new("SELECT count(*) FROM octollm_outbox WHERE refused IS NULL");
        let rows = self.database.fetch(&COUNT, []).await?;
        Ok(rows.first().map(|row| row.count(0)).transpose()?.unwrap_or(0))
    }

    /// Returns the events that the bus has refused for ever, oldest first: at most `limit`, after the entry `after`.
    ///
    /// # Errors
    /// The error of the database.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, SqlError> {
        static READ: Sql = Sql::new(
            "SELECT id, event, refused FROM octollm_outbox WHERE refused IS NOT NULL AND id > $1 ORDER BY id LIMIT $2",
        );
        let after = after.map_or(0, |after| after.parse().unwrap_or(i64::MAX));
        let mut letters = Vec::new();
        for row in self.database.fetch(&READ, [after.into(), limit.into()]).await? {
            let bytes = row.bytes(1)?;
            let event = Encoding::Native.decode(&bytes).map_err(|_| bytes.into());
            letters.push(DeadLetter::new(row.int(0)?.to_string(), event, row.text(2)?, 1));
        }
        Ok(letters)
    }

    /// Publishes a dead letter again. Returns `false` if there is none with this entry.
    ///
    /// # Errors
    /// The error of the database.
    ///
    /// # Cancel safety
    /// If the future is dropped, the event is published or is still a dead letter.
    pub async fn replay(&self, entry: &str) -> Result<bool, SqlError> {
        let Ok(id) = entry.parse() else { return Ok(false) };
        self.database.write(Retry(id)).await
    }
}

pub(super) fn topic() -> Topic {
    TOPIC.into()
}
