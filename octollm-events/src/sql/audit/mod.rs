//! The audit log in a database: append-only, and linked by hashes.

mod chain;
mod write;

use async_trait::async_trait;
use jiff::Timestamp;
use octollm_core::{
    audit::{AuditEntry, AuditLog},
    error::Failure,
};
use serde::{Deserialize, Serialize};

pub use self::chain::AuditFault;
use self::{
    chain::{Chain, line_with_hash},
    write::{Append, Cut, TABLES},
};
use super::{Outbox, database::SqlDatabase, error::SqlError, statement::Sql};

/// An [`AuditLog`] in a database.
///
/// Each entry has a number, the time by the clock of the database, and the hash of the entry before it, so that a changed, missing
/// or moved entry is found by [`verify`](Self::verify). The tables refuse to change or delete entries. Somebody who may change the
/// tables themselves can replace all entries from one on: store the [`anchor`](Self::anchor) elsewhere now and then, and verify
/// from there.
///
/// An entry is one line of JSON: `seq`, `at`, the members of [`AuditEntry`], and `prev`, the hash of the line before. The hash is
/// SHA-256 of these bytes, in hexadecimal.
///
/// ```
/// use octollm_core::audit::{AuditEntry, AuditLog};
/// use octollm_events::sql::{SqlAuditLog, SqlDatabase};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let url = format!("sqlite:{}", folder.path().join("audit.db").display());
/// let database = SqlDatabase::open(&url).await?; // such as "sqlite:audit.db"
/// let log = SqlAuditLog::open(&database).await?;
/// log.record(AuditEntry::new("report.exported", "desk").target("report 7")).await?;
/// assert_eq!(log.verify(None).await?.seq, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqlAuditLog {
    database: SqlDatabase,
    outbox: Option<Outbox>,
}

/// An entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditRecord {
    /// Number of the entry, from 1 and without gaps.
    pub seq: u64,
    /// Time of the entry, by the clock of the database.
    pub at: Timestamp,
    /// The entry.
    #[serde(flatten)]
    pub entry: AuditEntry,
    /// Hash of the entry before it.
    pub prev: String,
}

/// An entry by its number and its hash, from which on a log can be verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditAnchor {
    /// Number of the entry; 0 before the first one.
    pub seq: u64,
    /// Hash of the entry, in hexadecimal.
    pub hash: String,
}

/// Entries that are read at once.
const PAGE: usize = 1_000;

impl SqlAuditLog {
    /// Opens the log of a database. Creates its tables where there are none.
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables are created wholly or not at all.
    pub async fn open(database: &SqlDatabase) -> Result<Self, SqlError> {
        database.migrate(&TABLES).await?;
        Ok(Self { database: database.clone(), outbox: None })
    }

    /// Publishes an event `audit.recorded` for each entry, by an outbox of the same database: it is stored with the entry, and
    /// published by the [relays](Outbox::relay). Its data is the [`AuditRecord`] with its `hash`.
    #[must_use]
    pub fn outbox(mut self, outbox: &Outbox) -> Self {
        self.outbox = Some(outbox.clone());
        self
    }

    /// Returns the entries after number `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// The error of the database, and [`SqlError::Audit`] for an entry that cannot be read.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn records(&self, after: u64, limit: usize) -> Result<Vec<AuditRecord>, SqlError> {
        let read = |(seq, line, _): (u64, String, String)| {
            serde_json::from_str(&line).map_err(|_| AuditFault::Changed { seq }.into())
        };
        self.rows(after, limit).await?.into_iter().map(read).collect()
    }

    /// Returns the entries after number `after` as lines of JSON without line breaks, at most `limit`. Each is the stored line with a
    /// last member `hash`.
    ///
    /// # Errors
    /// The error of the database.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn export(&self, after: u64, limit: usize) -> Result<Vec<String>, SqlError> {
        let rows = self.rows(after, limit).await?;
        Ok(rows.into_iter().map(|(_, line, hash)| line_with_hash(&line, &hash)).collect())
    }

    /// Verifies the entries after `from`, or all that are left. Returns the last one. The last entry of an earlier verification, stored
    /// elsewhere, shows as `from` whether the log was replaced or its end removed, together with what the database has of its end.
    ///
    /// # Errors
    /// [`SqlError::Audit`] for the first entry that was changed, removed or moved, and the error of the database.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn verify(&self, from: Option<&AuditAnchor>) -> Result<AuditAnchor, SqlError> {
        let (head, cut) = self.ends().await?;
        if let Some(from) = from {
            // The log has ended before this entry, or with another one.
            if from.seq > head.seq {
                return Err(AuditFault::Missing { seq: head.seq + 1 }.into());
            }
            if from.seq == head.seq && from.hash != head.hash {
                return Err(AuditFault::Changed { seq: from.seq }.into());
            }
        }
        let mut chain = Chain::new(from.unwrap_or(&cut).clone());
        loop {
            let rows = self.rows(chain.last.seq, PAGE).await?;
            if rows.is_empty() {
                break;
            }
            for (seq, line, hash) in rows {
                chain.check(seq, &line, &hash)?;
                // Entries that were added since have the hash of this one.
                if seq == head.seq && hash != head.hash {
                    return Err(AuditFault::Changed { seq }.into());
                }
            }
        }
        if chain.last.seq < head.seq {
            return Err(AuditFault::Missing { seq: chain.last.seq + 1 }.into());
        }
        Ok(chain.last)
    }

    /// Verifies exported lines, which continue `from`: without one they begin with the first entry. Returns the last one.
    ///
    /// # Errors
    /// The first line that was changed, removed or moved.
    pub fn verify_lines<'l>(
        lines: impl IntoIterator<Item = &'l str>,
        from: Option<&AuditAnchor>,
    ) -> Result<AuditAnchor, AuditFault> {
        let mut chain = Chain::new(from.cloned().unwrap_or_else(AuditAnchor::start));
        for line in lines {
            let (line, hash) = chain::line_and_hash(line, chain.last.seq + 1)?;
            let seq = chain.seq_of(&line)?;
            chain.check(seq, &line, &hash)?;
        }
        Ok(chain.last)
    }

    /// Returns the last entry, to be stored elsewhere.
    ///
    /// # Errors
    /// The error of the database.
    ///
    /// # Cancel safety
    /// The call only reads.
    pub async fn anchor(&self) -> Result<AuditAnchor, SqlError> {
        Ok(self.ends().await?.0)
    }

    /// Deletes the entries up to number `until`, and records that by `entry`, to which the number and the hash of the last deleted entry
    /// are added as its target. Returns that entry, from which on the rest is verified. Export the entries before.
    ///
    /// # Errors
    /// The error of the database, and [`SqlError::Audit`] if there is no such entry.
    ///
    /// # Cancel safety
    /// If the future is dropped, the entries are deleted and that is recorded, or neither.
    pub async fn cut(&self, until: u64, entry: AuditEntry) -> Result<AuditAnchor, SqlError> {
        let outbox = self.outbox.is_some();
        let cut = self.database.write(Cut { until, entry, outbox }).await?;
        cut.ok_or_else(|| AuditFault::Missing { seq: until }.into())
    }

    /// The last entry, and the last one that was deleted.
    async fn ends(&self) -> Result<(AuditAnchor, AuditAnchor), SqlError> {
        static READ: Sql = Sql::new("SELECT seq, hash, cut, cut_hash FROM octollm_audit_head");
        let rows = self.database.fetch(&READ, []).await?;
        let row = rows.first().ok_or(AuditFault::Missing { seq: 1 })?;
        let head = AuditAnchor { seq: row.count(0)?, hash: row.text(1)? };
        Ok((head, AuditAnchor { seq: row.count(2)?, hash: row.text(3)? }))
    }

    async fn rows(&self, after: u64, limit: usize) -> Result<Vec<(u64, String, String)>, SqlError> {
        static READ: Sql =
            Sql::new("SELECT seq, line, hash FROM octollm_audit WHERE seq > $1 ORDER BY seq LIMIT $2");
        let rows = self.database.fetch(&READ, [after.into(), limit.into()]).await?;
        let read = rows.iter().map(|row| Ok((row.count(0)?, row.text(1)?, row.text(2)?)));
        Ok(read.collect::<Result<_, sqlx::Error>>()?)
    }
}

#[async_trait]
impl AuditLog for SqlAuditLog {
    async fn record(&self, entry: AuditEntry) -> Result<(), Failure> {
        Ok(self.database.write(Append { entry, outbox: self.outbox.is_some() }).await?)
    }
}
