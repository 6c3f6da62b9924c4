//! The errors of a database.

use std::{error::Error, sync::Arc, time::Duration};

use octollm_core::{
    error::{ConfigError, ErrorKind, Failure},
    store::StoreError,
};

/// The error of a database. No secret of a URL is in it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SqlError {
    /// A setting is not valid, such as the URL.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// Nobody answers at the address, or the file cannot be opened.
    #[error("the database is not reachable")]
    Unreachable(#[source] Cause),
    /// The server does not accept the user or the password, or has no such database.
    #[error("the database server refused the connection: check user, password and database of the URL")]
    Refused(#[source] Cause),
    /// The database can be read only.
    #[error("the database is read-only")]
    ReadOnly(#[source] Cause),
    /// The file is no database, or a damaged one.
    #[error("the file is not a database of SQLite, or it is damaged")]
    NotADatabase(#[source] Cause),
    /// The server is older than this version needs.
    #[error("the database server has version {found}: at least {least} is needed")]
    OldServer {
        /// Version of the server.
        found: String,
        /// Lowest version that can be used.
        least: u32,
    },
    /// The tables are of a later version of this crate.
    #[error("the tables of `{part}` have version {found}, and this program knows {known}: use a newer one")]
    NewerSchema {
        /// The part of the tables, such as `tasks`.
        part: &'static str,
        /// Version of the tables.
        found: i64,
        /// Latest version that this program knows.
        known: i64,
    },
    /// The event is larger than is accepted. It was not stored.
    #[error("the event has {size} bytes, and at most {limit} are accepted")]
    TooLarge {
        /// Size of the event, as [`Event::size`](octollm_core::event::Event::size).
        size: usize,
        /// Size of the largest event that is accepted.
        limit: usize,
    },
    /// The audit log was tampered with.
    #[error("the audit log does not verify")]
    Audit(#[from] super::AuditFault),
    /// No space is left on the disk of the database.
    #[error("the disk of the database is full")]
    DiskFull(#[source] Cause),
    /// The database gave no answer in time. A change may have been stored.
    #[error("the database gave no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// No connection was ready to read in time: all are in use, or the server does not answer. Nothing was executed.
    #[error("no connection to the database was ready within {} s", .0.as_secs_f64())]
    NoConnection(Duration),
    /// The server has as many connections as it allows (`max_connections`, or the limit of the user or of the database).
    #[error("the database server has too many connections")]
    TooManyConnections(#[source] Cause),
    /// The database was closed, or its runtime has ended.
    #[error("the database is closed")]
    Closed,
    /// The database failed. A change may have been stored.
    #[error("the database failed")]
    Failed(#[source] Cause),
}

/// The cause of a [`SqlError`], which all operations of one transaction share.
type Cause = Arc<dyn Error + Send + Sync>;

impl SqlError {
    /// Whether the tables are gone, as in a database that was set up anew while the program runs.
    pub(crate) fn is_without_tables(&self) -> bool {
        let Self::Failed(cause) = self else { return false };
        let Some(sqlx::Error::Database(error)) = cause.downcast_ref::<sqlx::Error>() else { return false };
        // A table, a function, or a schema; SQLite has no code for it.
        matches!(error.code().as_deref(), Some("42P01" | "42883" | "3F000"))
            || error.message().starts_with("no such table")
    }

    /// A value in the database that cannot be read.
    pub(crate) fn unreadable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::from(error.into()))
    }
}

/// What the code of an error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Unreachable,
    TooManyConnections,
    Refused,
    ReadOnly,
    NotADatabase,
    DiskFull,
    /// Nothing was changed, and the same transaction can succeed at once.
    Again,
    /// A value that the database does not accept, or that cannot be read: other operations of the transaction can succeed.
    Value,
    Other,
}

/// Reads the codes of SQLite (<https://www.sqlite.org/rescode.html>) and of Postgres (appendix A of its manual).
pub(super) fn class(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut => Class::Unreachable,
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) => Class::Value,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            let is_postgres = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some();
            if is_postgres { of_postgres(&code) } else { of_sqlite(code.parse().unwrap_or(0)) }
        }
        _ => Class::Other,
    }
}

fn of_sqlite(code: i32) -> Class {
    // The lower byte of an extended code is the code.
    match code & 0xff {
        5 | 6 => Class::Again,
        8 => Class::ReadOnly,
        11 | 26 => Class::NotADatabase,
        13 => Class::DiskFull,
        14 | 23 => Class::Unreachable,
        18 | 19 | 20 | 25 => Class::Value,
        _ => Class::Other,
    }
}

fn of_postgres(code: &str) -> Class {
    match code {
        "28000" | "28P01" | "3D000" => Class::Refused,
        "25006" | "42501" => Class::ReadOnly,
        "53100" => Class::DiskFull,
        "40001" | "40P01" | "55P03" => Class::Again,
        "53300" => Class::TooManyConnections,
        // A server that starts, stops or was stopped.
        "57P01" | "57P02" | "57P03" => Class::Unreachable,
        _ if code.starts_with("08") => Class::Unreachable,
        _ if code.starts_with("22") || code.starts_with("23") => Class::Value,
        _ => Class::Other,
    }
}

/// Whether another transaction may have stored the same key meanwhile, which the next attempt sees.
pub(super) fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}

/// Whether the connection cannot be used again.
pub(super) fn is_connection_lost(error: &sqlx::Error) -> bool {
    let other = matches!(error, sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed);
    other || class(error) == Class::Unreachable
}

impl From<sqlx::Error> for SqlError {
    fn from(error: sqlx::Error) -> Self {
        let class = class(&error);
        if let sqlx::Error::PoolClosed = error {
            return Self::Closed;
        }
        let cause: Cause = Arc::new(error);
        match class {
            Class::Unreachable => Self::Unreachable(cause),
            Class::TooManyConnections => Self::TooManyConnections(cause),
            Class::Refused => Self::Refused(cause),
            Class::ReadOnly => Self::ReadOnly(cause),
            Class::NotADatabase => Self::NotADatabase(cause),
            Class::DiskFull => Self::DiskFull(cause),
            Class::Again | Class::Value | Class::Other => Self::Failed(cause),
        }
    }
}

impl From<SqlError> for StoreError {
    fn from(error: SqlError) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }
}
