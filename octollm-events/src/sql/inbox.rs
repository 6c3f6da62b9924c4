//! Marks of events that were handled, stored with the effect of their handling.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use octollm_core::{error::ConfigError, event::Event};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    database::SqlDatabase,
    error::SqlError,
    migration::{Part, Version},
    statement::{Sql, Value},
    transaction::SqlTransaction,
    writer::{Operation, Tx},
};

/// Marks events as handled in the transactions of their handlers, so that an event that is delivered twice has its effect once.
///
/// The mark is stored together with the effect: both are committed, or neither is. Each handler has an inbox with a name of its
/// own. A clone is the same inbox.
///
/// ```no_run
/// use octollm_core::event::Event;
/// use octollm_events::sql::{Inbox, SqlDatabase};
///
/// # async fn example(database: SqlDatabase, pool: sqlx::PgPool, event: Event) -> Result<(), Box<dyn std::error::Error>> {
/// let inbox = Inbox::open(&database, "billing").await?;
///
/// let mut tx = pool.begin().await?;
/// if inbox.once(&mut tx, &event).await? {
///     sqlx::query("UPDATE accounts SET balance = balance - 1").execute(&mut *tx).await?;
/// }
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Inbox {
    database: SqlDatabase,
    name: Arc<str>,
    retention: Duration,
    /// When old marks were last removed.
    cleaned: Arc<Mutex<Option<Instant>>>,
}

static TABLES: Part = Part { name: "inbox", versions: &[FIRST] };

const FIRST: Version = Version {
    sqlite: "
        CREATE TABLE octollm_inbox (mark BLOB PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
        CREATE INDEX octollm_inbox_until ON octollm_inbox (until);
    ",
    postgres: "
        CREATE TABLE octollm_inbox (mark BYTEA PRIMARY KEY, until BIGINT NOT NULL);
        CREATE INDEX octollm_inbox_until ON octollm_inbox (until);
    ",
};

/// Old marks are removed this often.
const CLEANING: Duration = Duration::from_secs(60);

impl Inbox {
    /// Opens the inbox of a handler. Creates its tables where there are none.
    ///
    /// # Errors
    /// [`SqlError::Setting`] for an empty name, and a [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables are created wholly or not at all.
    pub async fn open(database: &SqlDatabase, name: &str) -> Result<Self, SqlError> {
        if name.is_empty() {
            return Err(ConfigError::new("name", "is empty").into());
        }
        database.migrate(&TABLES).await?;
        let retention = Duration::from_secs(7 * 24 * 3600);
        Ok(Self { database: database.clone(), name: name.into(), retention, cleaned: Arc::default() })
    }

    /// Sets how long a mark is stored (default 7 days), by the clock of the database. An event that is delivered again after that
    /// is handled again: it is longer than the bus delivers an event again, and than dead letters are replayed.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Marks an event as handled, in the transaction of its effect. Returns `false` if it was handled before: by its source and
    /// id. While another transaction handles the same event, the call waits for its end.
    ///
    /// # Errors
    /// The error of the database, after which the transaction is to be rolled back.
    ///
    /// # Cancel safety
    /// If the future is dropped, the transaction is to be rolled back.
    pub async fn once(&self, tx: impl Into<SqlTransaction<'_>>, event: &Event) -> Result<bool, SqlError> {
        static MARK: Sql = Sql::new(
            "INSERT INTO octollm_inbox (mark, until) VALUES ($1, {now} + $2) ON CONFLICT (mark) DO NOTHING",
        );
        let SqlTransaction(mut conn) = tx.into();
        let retention =
            u64::try_from(self.retention.as_micros()).unwrap_or(u64::MAX).min(i64::MAX as u64 / 4);
        let marked = conn.execute(&MARK, [self.mark(event), retention.into()]).await?;
        self.clean();
        Ok(marked > 0)
    }

    fn mark(&self, event: &Event) -> Value {
        let mut hash = Sha256::new();
        for text in [&*self.name, event.source(), event.id()] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.finalize().to_vec().into()
    }

    /// Removes old marks now and then, in the background.
    fn clean(&self) {
        let mut cleaned = self.cleaned.lock().unwrap_or_else(PoisonError::into_inner);
        if cleaned.is_none_or(|cleaned| cleaned.elapsed() >= CLEANING) {
            *cleaned = Some(Instant::now());
            // An operation that was begun runs to its end.
            let _ = self.database.write(Clean).now_or_never();
        }
    }
}

/// Removes some of the old marks.
struct Clean;

impl Operation for Clean {
    type Output = ();
    const ORDER: u8 = 105;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        static CLEAN: Sql = Sql::new(
            "DELETE FROM octollm_inbox WHERE mark IN (SELECT mark FROM octollm_inbox WHERE until < {now} \
             ORDER BY until LIMIT 10000 {pg:FOR UPDATE SKIP LOCKED})",
        );
        tx.conn.execute(&CLEAN, []).await?;
        Ok(vec![(); batch.len()])
    }
}
