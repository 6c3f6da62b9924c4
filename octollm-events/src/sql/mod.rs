//! Tasks, events and records in a database: SQLite, or Postgres for many processes.
//!
//! A database is opened once, as an [`SqlDatabase`], and what is stored in it shares its connections.

// A store is a `Part` of the tables with `SqlDatabase::migrate`, some `Operation`s for `SqlDatabase::write`, and functions that
// read in `SqlDatabase::read`. Each statement is one `Sql` for both databases. An operation calls `Tx::changed` for a topic, and
// `SqlDatabase::changes().subscribe(topic)` wakes those that wait for it in all processes.
mod audit;
mod bus;
mod changes;
mod connection;
mod database;
mod error;
mod inbox;
mod keys;
mod migration;
mod outbox;
mod statement;
mod store;
mod transaction;
mod url;
mod writer;

#[cfg(test)]
mod tests;

/// The driver of the databases, for the transactions of the program.
pub use sqlx;

pub use self::{
    audit::{AuditAnchor, AuditFault, AuditRecord, SqlAuditLog},
    bus::{SqlBus, SqlBusBuilder},
    database::{SqlDatabase, SqlDatabaseBuilder},
    error::SqlError,
    inbox::Inbox,
    keys::SqlIdempotencyStore,
    outbox::Outbox,
    store::{SqlStore, SqlStoreBuilder},
    transaction::SqlTransaction,
};
