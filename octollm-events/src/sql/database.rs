//! One handle to a database: its connections, and how it is opened.

use std::{fmt, sync::Arc, time::Duration};

use octollm_core::error::ConfigError;
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool,
    pool::{PoolConnection, PoolOptions},
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::time::{Instant, timeout};

use super::{
    changes::{self, Changes},
    connection::{Conn, Row},
    error::{Class, SqlError, class, is_connection_lost},
    migration::{self, Part},
    statement::{Sql, Value},
    url,
    writer::{self, Operation, Queue},
};

/// A database, SQLite or Postgres: its connections, which every clone shares.
///
/// It is opened from a URL: `sqlite:tasks.db` is a file, which is created where there is none, and
/// `postgres://user:password@host/name` a database of a server. Stores and buses over one handle share its connections and its
/// transactions: what they write at the same time is written by one transaction.
///
/// It belongs to the tokio runtime that it was opened in, whose background tasks end with the last clone.
#[derive(Clone)]
pub struct SqlDatabase(Arc<Inner>);

struct Inner {
    source: Arc<Source>,
    readers: Readers,
    queue: Arc<Queue>,
    /// Writes that are one statement, on Postgres.
    statements: Arc<Queue>,
    lookups: Arc<Queue>,
    changes: Arc<Changes>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        self.statements.close();
        self.lookups.close();
        self.changes.close();
    }
}

impl fmt::Debug for SqlDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_postgres() { "postgres" } else { "sqlite" };
        f.debug_struct("SqlDatabase").field("kind", &kind).finish_non_exhaustive()
    }
}

impl SqlDatabase {
    /// Opens a database with the default settings: see [`builder`](Self::builder).
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason: within five seconds where nobody answers.
    ///
    /// # Cancel safety
    /// Nothing is open when the future is dropped. A file may have been created.
    pub async fn open(url: &str) -> Result<Self, SqlError> {
        Self::builder(url).open().await
    }

    /// The settings of a database, to be opened.
    pub fn builder(url: &str) -> SqlDatabaseBuilder {
        SqlDatabaseBuilder { url: url.to_owned(), settings: Settings::default() }
    }

    /// Writes what waits, and closes all connections. Later operations fail with [`SqlError::Closed`]. Where the server does not answer, what
    /// waits fails after the [time of a transaction](SqlDatabaseBuilder::operation_time), and connections are given up after 5 s.
    ///
    /// # Cancel safety
    /// The database ends all the same when the future is dropped.
    pub async fn close(&self) {
        for queue in [&self.0.queue, &self.0.statements, &self.0.lookups] {
            queue.close();
            queue.ended().await;
        }
        self.0.changes.close();
        let closed = async {
            match &self.0.readers {
                Readers::Sqlite(pool) => pool.close().await,
                Readers::Postgres(pool) => pool.close().await,
            }
        };
        // The pool waits for answers without a limit.
        let _ = timeout(CLOSING, closed).await;
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(*self.0.source, Source::Postgres(..))
    }

    /// Creates or updates the tables of a part.
    pub(crate) async fn migrate(&self, part: &Part) -> Result<(), SqlError> {
        let mut connection = self.0.source.connect(false).await?;
        let limit = self.0.source.settings().migration_time;
        let migrated = timeout(limit, migration::migrate(connection.conn(), part)).await;
        connection.close().await;
        migrated.map_err(|_| SqlError::TimedOut(limit))?
    }

    /// Runs one operation in a transaction, together with others that wait.
    pub(crate) async fn write<O: Operation>(&self, operation: O) -> Result<O::Output, SqlError> {
        self.0.queue.run(operation).await
    }

    /// Runs one operation that is a single statement, together with others that wait. On Postgres it is a transaction by itself,
    /// which does not wait for those of other operations.
    pub(crate) async fn write_alone<O: Operation>(&self, operation: O) -> Result<O::Output, SqlError> {
        let queue = if self.is_postgres() { &self.0.statements } else { &self.0.queue };
        queue.run(operation).await
    }

    /// Runs one operation that only reads, together with others that wait.
    pub(crate) async fn look_up<O: Operation>(&self, operation: O) -> Result<O::Output, SqlError> {
        self.0.lookups.run(operation).await
    }

    /// Runs one operation whose result nobody waits for.
    pub(crate) fn submit<O: Operation>(&self, operation: O) {
        // A closed database runs nothing.
        let _ = self.0.queue.submit(operation);
    }

    /// Executes one statement that reads, again on another connection where the first one is found to be lost.
    pub(crate) async fn fetch(
        &self,
        sql: &Sql,
        parameters: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Row>, SqlError> {
        let parameters: Vec<Value> = parameters.into_iter().collect();
        let limit = self.0.source.settings().operation_time;
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let attempt = async {
                let mut lent = Lent { reader: self.0.readers.acquire().await?, is_idle: false };
                let result = lent.reader.conn().fetch(sql, parameters.iter().cloned()).await;
                // A connection that is lost does not go back to the pool.
                if result.as_ref().is_err_and(is_connection_lost) {
                    return Ok(None);
                }
                lent.is_idle = true;
                result.map(Some)
            };
            match timeout(left, attempt).await {
                Ok(Ok(Some(rows))) => return Ok(rows),
                Ok(Ok(None)) => {}
                Ok(Err(sqlx::Error::PoolTimedOut)) => {
                    return Err(self.no_connection().await);
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(SqlError::TimedOut(limit)),
            }
        }
    }

    /// Why the pool had no connection in time: it tries again for so long where the server has too many, and does not say so.
    async fn no_connection(&self) -> SqlError {
        let settings = self.0.source.settings();
        if self.0.readers.size() < settings.connections
            && let Ok(Err(error @ SqlError::TooManyConnections(_))) =
                timeout(REFUSAL, self.0.source.connect(true)).await
        {
            return error;
        }
        SqlError::NoConnection(wait(settings))
    }

    pub(crate) fn changes(&self) -> &Arc<Changes> {
        &self.0.changes
    }
}

/// The settings of a [`SqlDatabase`].
#[derive(Clone)]
#[must_use]
pub struct SqlDatabaseBuilder {
    url: String,
    settings: Settings,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) connections: u32,
    pub(super) connect_time: Duration,
    pub(super) operation_time: Duration,
    pub(super) migration_time: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 8,
            connect_time: Duration::from_secs(5),
            operation_time: Duration::from_secs(8),
            migration_time: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for SqlDatabaseBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlDatabaseBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl SqlDatabaseBuilder {
    /// Sets how many connections read at most, 1 to 1 000 (default 8). A read that finds all of them in use waits for one for at
    /// most the [time of a connection](Self::connect_time), and then fails with [`SqlError::NoConnection`]. There are up to seven
    /// more: two that write, two for
    /// lookups, two for the notifications of Postgres, and one that creates tables.
    pub fn connections(mut self, connections: u32) -> Self {
        self.settings.connections = connections;
        self
    }

    /// Sets the time limit of a new connection (default 5 s).
    pub fn connect_time(mut self, limit: Duration) -> Self {
        self.settings.connect_time = limit;
        self
    }

    /// Sets the time limit of one transaction (default 8 s, which is less than a brain waits).
    pub fn operation_time(mut self, limit: Duration) -> Self {
        self.settings.operation_time = limit;
        self
    }

    /// Sets the time limit for creating the tables or updating those of an earlier version (default 60 s).
    pub fn migration_time(mut self, limit: Duration) -> Self {
        self.settings.migration_time = limit;
        self
    }

    /// Opens the database.
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason: within the time of a connection where nobody answers.
    ///
    /// # Cancel safety
    /// Nothing is open when the future is dropped. A file may have been created.
    pub async fn open(self) -> Result<SqlDatabase, SqlError> {
        let Self { url, settings } = self;
        check(&settings)?;
        let source = Arc::new(Source::of(&url, settings)?);
        // The first connection shows what is wrong: a pool would try until its time is over.
        let first = source.first().await?;
        let readers = Readers::of(&source);
        let (queue, statements, lookups) = Default::default();
        let changes = Arc::new(Changes::new());
        writer::start(&source, &queue, &changes, first);
        writer::start_statements(&source, &statements, &changes);
        writer::start_lookups(&source, &lookups, &changes);
        changes::start(&source, &changes);
        Ok(SqlDatabase(Arc::new(Inner { source, readers, queue, statements, lookups, changes })))
    }
}

fn check(settings: &Settings) -> Result<(), ConfigError> {
    if !(1..=1000).contains(&settings.connections) {
        return Err(ConfigError::new("connections", "is 1 to 1000"));
    }
    let times = [
        ("connect_time", settings.connect_time),
        ("operation_time", settings.operation_time),
        ("migration_time", settings.migration_time),
    ];
    match times.into_iter().find(|(_, time)| time.is_zero()) {
        Some((name, _)) => Err(ConfigError::new(name, "is greater than zero")),
        None => Ok(()),
    }
}

/// Where connections come from.
pub(super) enum Source {
    Sqlite(SqliteConnectOptions, Settings),
    Postgres(PgConnectOptions, Settings),
}

/// Statements are prepared once for each connection. SQLite has several for one: see [`Sql`].
const STATEMENTS: usize = 512;
/// Oldest server that is supported: the statements need 12, and 13 is the oldest that common systems still have. Tested is 15.
const POSTGRES: u32 = 13;
/// Bytes of the log of SQLite after which it is written to the database, in pages.
const CHECKPOINT: &str = "4000";

impl Source {
    fn of(text: &str, settings: Settings) -> Result<Self, SqlError> {
        Ok(match url::parse(text)? {
            url::Target::Sqlite(file) => {
                let options = SqliteConnectOptions::new()
                    .filename(file)
                    .create_if_missing(true)
                    .foreign_keys(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    // The sync of macOS does not reach the disk without it.
                    .pragma("fullfsync", "ON")
                    .pragma("wal_autocheckpoint", CHECKPOINT)
                    .busy_timeout(settings.operation_time)
                    .statement_cache_capacity(STATEMENTS)
                    .disable_statement_logging();
                Self::Sqlite(options, settings)
            }
            url::Target::Postgres(options) => {
                let options = options.statement_cache_capacity(STATEMENTS).disable_statement_logging();
                Self::Postgres(options, settings)
            }
        })
    }

    pub(super) fn settings(&self) -> &Settings {
        match self {
            Self::Sqlite(_, settings) | Self::Postgres(_, settings) => settings,
        }
    }

    /// A connection for one user, who may only read.
    pub(super) async fn connect(&self, reads: bool) -> Result<Owned, SqlError> {
        let limit = self.settings().connect_time;
        let connect = async {
            match self {
                Self::Sqlite(options, _) if reads => Ok(Owned::Sqlite(reading(options).connect().await?)),
                Self::Sqlite(options, _) => Ok(Owned::Sqlite(options.connect().await?)),
                Self::Postgres(options, settings) => {
                    let mut connection = options.connect().await?;
                    prepare(&mut connection, settings).await?;
                    Ok::<_, sqlx::Error>(Owned::Postgres(connection))
                }
            }
        };
        match timeout(limit, connect).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(SqlError::from(error)),
            Err(_) => Err(SqlError::Unreachable(Arc::new(SqlError::TimedOut(limit)))),
        }
    }

    /// Whether it is a file that is there and that this process cannot write. SQLite reports that it cannot be opened where its log
    /// cannot be created.
    fn is_write_protected(&self) -> bool {
        let Self::Sqlite(options, _) = self else { return false };
        let opened = std::fs::OpenOptions::new().write(true).open(options.get_filename());
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        opened.is_err_and(|error| matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem))
    }

    /// The first connection. Another process may be switching the file of SQLite to its log, and a server may just start.
    async fn first(&self) -> Result<Owned, SqlError> {
        let end = Instant::now() + self.settings().connect_time;
        loop {
            match self.connect(false).await {
                Err(SqlError::Failed(cause)) if Instant::now() < end && is_busy(&*cause) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(SqlError::Unreachable(cause)) if self.is_write_protected() => {
                    return Err(SqlError::ReadOnly(cause));
                }
                Err(error) => return Err(error),
                Ok(mut connection) => {
                    check_version(&mut connection).await?;
                    return Ok(connection);
                }
            }
        }
    }
}

fn reading(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    options.clone().pragma("query_only", "ON")
}

fn is_busy(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    cause.downcast_ref::<sqlx::Error>().is_some_and(|error| class(error) == Class::Again)
}

/// A statement reads few rows by their indexes, however many the server expects: compiled code and parallel workers take longer to start
/// than it runs. A plan that was made while a table was small, and reads all of it, would remain when it has grown.
const PLANS: &str = "SET jit = off; SET max_parallel_workers_per_gather = 0; \
     SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

/// Sets the plans and the time limits of a connection: a transaction whose client is stopped must not hold its locks.
async fn prepare(connection: &mut PgConnection, settings: &Settings) -> Result<(), sqlx::Error> {
    let limit = settings.operation_time.as_millis();
    let text = format!(
        "SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {limit}; SET client_min_messages = warning; {PLANS}"
    );
    Conn::Postgres(connection).execute_script(&text).await
}

async fn check_version(connection: &mut Owned) -> Result<(), SqlError> {
    static VERSION: Sql = Sql::new("SELECT current_setting('server_version')");
    let mut conn = connection.conn();
    if !conn.is_postgres() {
        return Ok(());
    }
    let rows = conn.fetch(&VERSION, []).await?;
    let found = rows.first().map(|row| row.text(0)).transpose()?.unwrap_or_default();
    let major = found.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok());
    if major.is_some_and(|major: u32| major < POSTGRES) {
        return Err(SqlError::OldServer { found, least: POSTGRES });
    }
    Ok(())
}

/// How long the end of connections is waited for.
const CLOSING: Duration = Duration::from_secs(5);

/// A connection that one user has.
pub(super) enum Owned {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Owned {
    pub(super) fn conn(&mut self) -> Conn<'_> {
        match self {
            Self::Sqlite(connection) => Conn::Sqlite(connection),
            Self::Postgres(connection) => Conn::Postgres(connection),
        }
    }

    pub(super) async fn close(self) {
        let closed = async {
            match self {
                Self::Sqlite(connection) => connection.close().await,
                Self::Postgres(connection) => connection.close().await,
            }
        };
        if let Ok(Err(error)) = timeout(CLOSING, closed).await {
            tracing::debug!(%error, "connection not closed in order");
        }
    }
}

/// The connections that read.
enum Readers {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

enum Reader {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

impl Readers {
    fn of(source: &Source) -> Self {
        let settings = source.settings().clone();
        match source {
            Source::Sqlite(options, _) => {
                let pool = pool::<Sqlite>(&settings);
                Self::Sqlite(pool.connect_lazy_with(reading(options)))
            }
            Source::Postgres(options, _) => {
                let pool = pool::<Postgres>(&settings).after_connect(move |connection, _| {
                    let settings = settings.clone();
                    Box::pin(async move { prepare(connection, &settings).await })
                });
                Self::Postgres(pool.connect_lazy_with(options.clone()))
            }
        }
    }

    /// The number of connections that there are.
    fn size(&self) -> u32 {
        match self {
            Self::Sqlite(pool) => pool.size(),
            Self::Postgres(pool) => pool.size(),
        }
    }

    async fn acquire(&self) -> Result<Reader, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => Reader::Sqlite(pool.acquire().await?),
            Self::Postgres(pool) => Reader::Postgres(pool.acquire().await?),
        })
    }
}

/// How long a refusal of the server is waited for.
const REFUSAL: Duration = Duration::from_millis(500);

/// How long a read waits for a connection.
fn wait(settings: &Settings) -> Duration {
    settings.operation_time.min(settings.connect_time)
}

fn pool<DB: sqlx::Database>(settings: &Settings) -> PoolOptions<DB> {
    PoolOptions::new()
        .max_connections(settings.connections)
        .acquire_timeout(wait(settings))
        .idle_timeout(Duration::from_secs(60))
        .max_lifetime(Duration::from_secs(30 * 60))
        // A read is repeated on another connection instead.
        .test_before_acquire(false)
}

impl Reader {
    fn conn(&mut self) -> Conn<'_> {
        match self {
            Self::Sqlite(connection) => Conn::Sqlite(connection),
            Self::Postgres(connection) => Conn::Postgres(connection),
        }
    }

    fn close(&mut self) {
        match self {
            Self::Sqlite(connection) => connection.close_on_drop(),
            Self::Postgres(connection) => connection.close_on_drop(),
        }
    }
}

/// A connection of the pool. It is closed unless its statement has ended: the pool would wait without a limit for its answer.
struct Lent {
    reader: Reader,
    is_idle: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_idle {
            self.reader.close();
        }
    }
}
