//! Events in a database: outbox and inbox, audit log, bus. Each case runs on SQLite and on Postgres.
#![cfg(feature = "sql")]

#[path = "../support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod postgres;

mod audit;
mod bus;
mod inbox;
mod outbox;

use std::{collections::HashMap, sync::Arc, time::Duration};

use octollm_core::{
    bus::{EventBus, MemoryBus, Overflow, Signal, Subscription},
    event::{Event, Pattern},
};
use octollm_events::sql::{Inbox, Outbox, SqlDatabase, SqlError};
use sqlx::{PgPool, Sqlite, SqlitePool, Transaction, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};
use tokio::time::timeout;

use self::postgres::Postgres;

/// A database with a table of the program: `effects (name TEXT, number BIGINT)`.
struct Fixture {
    url: String,
    pool: Pool,
    _folder: Option<tempfile::TempDir>,
}

#[derive(Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction of the program.
enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, sqlx::Postgres>),
}

impl Fixture {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("shop.db").display());
        // Made first: it sets the journal of the file.
        SqlDatabase::open(&url).await.unwrap().close().await;
        let pool = SqlitePoolOptions::new().max_connections(8).connect(&url).await.unwrap();
        Self { url, pool: Pool::Sqlite(pool), _folder: Some(folder) }.with_table().await
    }

    async fn postgres() -> Self {
        let url = Postgres::shared().database();
        let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.unwrap();
        Self { url, pool: Pool::Postgres(pool), _folder: None }.with_table().await
    }

    async fn with_table(self) -> Self {
        let mut tx = self.begin().await;
        tx.execute("CREATE TABLE effects (name TEXT NOT NULL, number BIGINT NOT NULL)").await;
        tx.commit().await;
        self
    }

    fn is_postgres(&self) -> bool {
        matches!(self.pool, Pool::Postgres(_))
    }

    /// A handle of its own, as another process has.
    async fn database(&self) -> SqlDatabase {
        SqlDatabase::open(&self.url).await.unwrap()
    }

    async fn begin(&self) -> Tx {
        self.pool.begin().await
    }

    async fn count(&self, statement: &'static str) -> i64 {
        match &self.pool {
            Pool::Sqlite(pool) => sqlx::query_scalar(statement).fetch_one(pool).await.unwrap(),
            Pool::Postgres(pool) => sqlx::query_scalar(statement).fetch_one(pool).await.unwrap(),
        }
    }
}

impl Pool {
    async fn begin(&self) -> Tx {
        match self {
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await.unwrap()),
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await.unwrap()),
        }
    }
}

impl Tx {
    async fn execute(&mut self, statement: &'static str) {
        match self {
            Self::Sqlite(tx) => {
                sqlx::query(statement).execute(&mut **tx).await.unwrap();
            }
            Self::Postgres(tx) => {
                sqlx::query(statement).execute(&mut **tx).await.unwrap();
            }
        }
    }

    async fn enqueue(&mut self, outbox: &Outbox, event: &Event) {
        match self {
            Self::Sqlite(tx) => outbox.enqueue(tx, event).await.unwrap(),
            Self::Postgres(tx) => outbox.enqueue(tx, event).await.unwrap(),
        }
    }

    async fn once(&mut self, inbox: &Inbox, event: &Event) -> bool {
        match self {
            Self::Sqlite(tx) => inbox.once(tx, event).await.unwrap(),
            Self::Postgres(tx) => inbox.once(tx, event).await.unwrap(),
        }
    }

    async fn commit(self) {
        match self {
            Self::Sqlite(tx) => tx.commit().await.unwrap(),
            Self::Postgres(tx) => tx.commit().await.unwrap(),
        }
    }

    async fn rollback(self) {
        match self {
            Self::Sqlite(tx) => tx.rollback().await.unwrap(),
            Self::Postgres(tx) => tx.rollback().await.unwrap(),
        }
    }
}

/// Runs each case on both databases.
macro_rules! on_both {
    ($($case:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case($crate::Fixture::sqlite().await).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case($crate::Fixture::postgres().await).await;
            })*
        }
    };
}
use on_both;

/// How long a test waits for what has to come.
const LIMIT: Duration = Duration::from_secs(20);

/// An event that carries a number.
fn event(number: usize) -> Event {
    Event::new("order.paid", "shop", number).unwrap()
}

fn number(event: &Event) -> usize {
    event.data_as().unwrap()
}

async fn received(events: &mut Subscription) -> Event {
    match timeout(LIMIT, events.next()).await {
        Ok(Some(Signal::Event(event))) => event,
        other => panic!("no event but {other:?}"),
    }
}

async fn subscribed(bus: &impl EventBus) -> Subscription {
    bus.subscribe(Pattern::all(), Overflow::Block).await.unwrap()
}
