//! Tasks, events and records in a database: SQLite, or Postgres for many processes.

mod changes;
mod connection;
mod database;
mod error;
mod migration;
mod statement;
mod url;
mod writer;

pub use self::{
    database::{SqlDatabase, SqlDatabaseBuilder},
    error::SqlError,
};
