//! A transaction that the user began, on a connection of its own.

use sqlx::{PgConnection, Postgres, Sqlite, SqliteConnection, Transaction};

use super::connection::Conn;

/// A transaction of the program, to which a write is added.
///
/// It is made from `&mut tx` of a [`Transaction`], or from a connection on which a transaction has begun. Without one, the
/// write is a transaction by itself.
pub struct SqlTransaction<'t>(pub(super) Conn<'t>);

impl std::fmt::Debug for SqlTransaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SqlTransaction").finish_non_exhaustive()
    }
}

impl<'t> From<&'t mut Transaction<'_, Postgres>> for SqlTransaction<'t> {
    fn from(transaction: &'t mut Transaction<'_, Postgres>) -> Self {
        Self::from(&mut **transaction)
    }
}

impl<'t> From<&'t mut Transaction<'_, Sqlite>> for SqlTransaction<'t> {
    fn from(transaction: &'t mut Transaction<'_, Sqlite>) -> Self {
        Self::from(&mut **transaction)
    }
}

impl<'t> From<&'t mut PgConnection> for SqlTransaction<'t> {
    fn from(connection: &'t mut PgConnection) -> Self {
        Self(Conn::Postgres(connection))
    }
}

impl<'t> From<&'t mut SqliteConnection> for SqlTransaction<'t> {
    fn from(connection: &'t mut SqliteConnection) -> Self {
        Self(Conn::Sqlite(connection))
    }
}
