//! The events of tasks as a service handles them: from a group of the durable bus, once behind an inbox.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use octollm::{
    bus::{ConsumeOptions, Consumer, Delivery, DurableBus},
    event::Event,
    sql::{
        Inbox, SqlBus, SqlDatabase,
        sqlx::{self, PgPool, SqlitePool},
    },
    task::Timestamp,
};
use tokio::task::JoinHandle;

use crate::Result;

/// A delivery of an event.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) event_type: String,
    pub(super) source: String,
    pub(super) task: String,
    pub(super) at: Timestamp,
}

/// The deliveries of a group. It ends with the value.
pub(super) struct Events {
    seen: Arc<Mutex<Vec<Seen>>>,
    pool: Pool,
    handling: JoinHandle<()>,
    _bus: SqlBus,
}

/// Of so many deliveries one is not acknowledged after it was handled, as if its handler had died.
const UNACKNOWLEDGED: u64 = 50;

impl Events {
    pub(super) async fn follow(database: &SqlDatabase, url: &str) -> Result<Self> {
        let bus = SqlBus::open(database).await?;
        let pool = Pool::open(url).await?;
        let inbox = Inbox::open(database, "storm").await?;
        let options = ConsumeOptions {
            lease: Duration::from_secs(2),
            max_attempts: 100,
            max_in_flight: 64,
            ..ConsumeOptions::default()
        };
        let consumer = bus.consume("storm", "events:task:*".parse()?, options).await?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handling = tokio::spawn(handle(consumer, pool.clone(), inbox, seen.clone()));
        Ok(Self { seen, pool, handling, _bus: bus })
    }

    /// All deliveries so far, in their order.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many events were handled, and how many of them are different ones.
    pub(super) async fn handled(&self) -> Result<(i64, i64)> {
        const COUNT: &str = "SELECT count(*), (SELECT count(*) FROM (SELECT DISTINCT source, id FROM storm_handled) AS each) FROM storm_handled";
        Ok(match &self.pool {
            Pool::Sqlite(pool) => sqlx::query_as(COUNT).fetch_one(pool).await?,
            Pool::Postgres(pool) => sqlx::query_as(COUNT).fetch_one(pool).await?,
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.handling.abort();
    }
}

async fn handle(mut consumer: Consumer, pool: Pool, inbox: Inbox, seen: Arc<Mutex<Vec<Seen>>>) {
    let number = AtomicU64::new(0);
    // A gap is a lost connection: what was not delivered is delivered later.
    while let Some(delivery) = consumer.next().await {
        let Ok(delivery) = delivery else { continue };
        let event = delivery.event();
        let delivered = Seen {
            id: event.id().to_owned(),
            event_type: event.event_type().to_owned(),
            source: event.source().to_owned(),
            task: event.subject().unwrap_or_default().to_owned(),
            at: event.timestamp(),
        };
        // Nothing is stored where this fails, and the event is delivered again.
        if pool.handle(&inbox, event).await.is_ok() {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(delivered);
            settle(delivery, number.fetch_add(1, Ordering::Relaxed)).await;
        }
    }
}

async fn settle(delivery: Delivery, number: u64) {
    let is_lost = delivery.attempt() == 1 && number % UNACKNOWLEDGED == UNACKNOWLEDGED - 1;
    if !is_lost {
        let _ = delivery.ack().await;
    }
}

/// Connections of the service's own.
#[derive(Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Pool {
    async fn open(url: &str) -> Result<Self> {
        const TABLE: &str = "CREATE TABLE IF NOT EXISTS storm_handled (source TEXT, id TEXT)";
        Ok(if url.starts_with("sqlite:") {
            let pool = SqlitePool::connect(url).await?;
            sqlx::query(TABLE).execute(&pool).await?;
            Self::Sqlite(pool)
        } else {
            let pool = PgPool::connect(url).await?;
            sqlx::query(TABLE).execute(&pool).await?;
            Self::Postgres(pool)
        })
    }

    /// The effect and the mark of the inbox in one transaction.
    async fn handle(&self, inbox: &Inbox, event: &Event) -> Result<()> {
        const INSERT: &str = "INSERT INTO storm_handled (source, id) VALUES ($1, $2)";
        match self {
            Self::Sqlite(pool) => {
                let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
                if inbox.once(&mut tx, event).await? {
                    sqlx::query(INSERT).bind(event.source()).bind(event.id()).execute(&mut *tx).await?;
                }
                tx.commit().await?;
            }
            Self::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                if inbox.once(&mut tx, event).await? {
                    sqlx::query(INSERT).bind(event.source()).bind(event.id()).execute(&mut *tx).await?;
                }
                tx.commit().await?;
            }
        }
        Ok(())
    }
}
