//! The bus on both databases, as the suite opens it.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use octollm_core::{
    bus::{DelayBus, DurableBus, EventBus},
    conformance::{BrokerFault, BusSubject},
};
use octollm_events::sql::{
    SqlBus, SqlDatabase,
    sqlx::{self, Connection, SqliteConnection},
};

use crate::postgres::Postgres;

/// Opens a handle of its own, as another process has.
async fn open(url: &str) -> Arc<SqlBus> {
    let database = SqlDatabase::open(url).await.unwrap();
    Arc::new(SqlBus::open(&database).await.unwrap())
}

pub(crate) struct Sqlite(tempfile::TempDir);

impl Sqlite {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.0.path().join("bus.db").display())
    }

    async fn bus(&self) -> Arc<SqlBus> {
        open(&self.url()).await
    }

    /// Executes statements as another process does.
    async fn execute(&self, statements: &str) {
        let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
        let script = format!("BEGIN IMMEDIATE; {statements}; COMMIT");
        sqlx::raw_sql(sqlx::AssertSqlSafe(script)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

fn trim(channel: &str) -> String {
    format!("DELETE FROM octollm_bus_log WHERE channel = '{channel}'")
}

/// Leaves a database as it was before a bus was opened in it.
const EMPTY: &str = "DROP TABLE octollm_bus; DROP TABLE octollm_bus_log; DROP TABLE octollm_bus_group; DROP TABLE octollm_bus_member; \
    DROP TABLE octollm_bus_delivery; DROP TABLE octollm_bus_dead; DROP TABLE octollm_bus_delayed; DROP TABLE octollm_schema";

#[async_trait]
impl BusSubject for Sqlite {
    async fn open(&self) -> Arc<dyn EventBus> {
        self.bus().await
    }

    async fn durable(&self) -> Option<Arc<dyn DurableBus>> {
        Some(self.bus().await)
    }

    async fn delay(&self) -> Option<Arc<dyn DelayBus>> {
        Some(self.bus().await)
    }

    /// It has no broker. Its file can be changed.
    async fn broker(&self, fault: BrokerFault<'_>) -> bool {
        match fault {
            BrokerFault::Trim { channel } => self.execute(&trim(channel)).await,
            BrokerFault::Empty => self.execute(EMPTY).await,
            _ => return false,
        }
        true
    }
}

/// The cases that do something to the broker.
const FAULTS: [&str; 9] =
    ["case_18", "case_27", "case_28", "case_29", "case_30", "case_31", "case_35", "case_36", "case_37"];

/// A database of the shared server, or of one of its own once it is to fail.
pub(crate) struct OnPostgres {
    /// `None` for the shared one.
    server: Option<Mutex<Postgres>>,
    url: String,
}

impl OnPostgres {
    /// The cases of faults have a server of their own.
    pub(crate) fn new() -> Self {
        let case = std::thread::current().name().unwrap_or_default().to_owned();
        if !FAULTS.iter().any(|fault| case.contains(fault)) {
            return Self { server: None, url: Postgres::shared().database() };
        }
        let server = Postgres::start(&[]);
        let url = server.database();
        Self { server: Some(Mutex::new(server)), url }
    }

    fn execute(server: &Postgres, url: &str, statement: &str) {
        server.execute(url.rsplit('/').next().unwrap(), statement);
    }
}

#[async_trait]
impl BusSubject for OnPostgres {
    async fn open(&self) -> Arc<dyn EventBus> {
        open(&self.url).await
    }

    async fn durable(&self) -> Option<Arc<dyn DurableBus>> {
        Some(open(&self.url).await)
    }

    async fn delay(&self) -> Option<Arc<dyn DelayBus>> {
        Some(open(&self.url).await)
    }

    async fn broker(&self, fault: BrokerFault<'_>) -> bool {
        let server = self.server.as_ref().expect("a case of faults");
        let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            BrokerFault::Kill => server.kill(),
            BrokerFault::Start => server.restart(),
            BrokerFault::Stop => server.stop(),
            BrokerFault::Continue => server.resume(),
            BrokerFault::Disconnect => Self::execute(
                &server,
                "postgres",
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL",
            ),
            BrokerFault::Garbage { channel, bytes } => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let entity = channel.split(':').nth(1).unwrap();
                let statement = format!(
                    "WITH number AS (UPDATE octollm_bus SET last = last + 1, events = events + 1 RETURNING last), \
                     entry AS (INSERT INTO octollm_bus_log SELECT last, '{channel}', 0, 1, 0, '\\x{hex}' FROM number RETURNING seq), \
                     counted AS (UPDATE octollm_bus_group SET events = events + 1, bytes = bytes + 1 \
                     WHERE pattern LIKE 'events:{entity}:%' RETURNING id) \
                     INSERT INTO octollm_bus_delivery (group_id, seq, key, size, expires, due) \
                     SELECT counted.id, entry.seq, 0, 1, 0, 0 FROM counted, entry"
                );
                Self::execute(&server, &self.url, &statement);
            }
            BrokerFault::Trim { channel } => Self::execute(&server, &self.url, &trim(channel)),
            BrokerFault::Empty => Self::execute(&server, &self.url, EMPTY),
            _ => return false,
        }
        true
    }
}
