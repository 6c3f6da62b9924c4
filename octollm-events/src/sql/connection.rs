//! One connection to either database.

use std::sync::Arc;

use sqlx::{
    Arguments, AssertSqlSafe, PgConnection, Row as _, SqliteConnection,
    postgres::{PgArguments, PgRow},
    sqlite::{SqliteArguments, SqliteRow},
};

use super::statement::{Kind, MOST_ROWS, Rows, Sql, Value};

/// A connection to either database.
pub(crate) enum Conn<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

impl Conn<'_> {
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Executes a statement with these parameters, and returns the number of changed rows.
    pub(crate) async fn execute(
        &mut self,
        sql: &Sql,
        parameters: impl IntoIterator<Item = Value> + Send,
    ) -> Result<u64, sqlx::Error> {
        self.execute_rows(sql, parameters, Rows::new()).await
    }

    /// Executes a statement with these parameters, and returns its rows.
    pub(crate) async fn fetch(
        &mut self,
        sql: &Sql,
        parameters: impl IntoIterator<Item = Value> + Send,
    ) -> Result<Vec<Row>, sqlx::Error> {
        self.fetch_rows(sql, parameters, Rows::new()).await
    }

    /// As [`execute`](Self::execute), with `rows`. SQLite executes the statement several times for many of them.
    pub(crate) async fn execute_rows(
        &mut self,
        sql: &Sql,
        parameters: impl IntoIterator<Item = Value> + Send,
        rows: Rows,
    ) -> Result<u64, sqlx::Error> {
        let parameters: Vec<Value> = parameters.into_iter().collect();
        match self {
            Self::Postgres(connection) => {
                let arguments = of_postgres(sql, &parameters, &[rows])?;
                let query = sqlx::query_with(AssertSqlSafe(sql.postgres()), arguments);
                Ok(query.execute(&mut **connection).await?.rows_affected())
            }
            Self::Sqlite(connection) => {
                let mut changed = 0;
                for (text, arguments) in of_sqlite(sql, &parameters, rows)? {
                    let query = sqlx::query_with(AssertSqlSafe(text), arguments);
                    changed += query.execute(&mut **connection).await?.rows_affected();
                }
                Ok(changed)
            }
        }
    }

    /// As [`fetch`](Self::fetch), with `rows`. SQLite executes the statement several times for many of them.
    pub(crate) async fn fetch_rows(
        &mut self,
        sql: &Sql,
        parameters: impl IntoIterator<Item = Value> + Send,
        rows: Rows,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let parameters: Vec<Value> = parameters.into_iter().collect();
        match self {
            Self::Postgres(connection) => {
                let arguments = of_postgres(sql, &parameters, &[rows])?;
                let query = sqlx::query_with(AssertSqlSafe(sql.postgres()), arguments);
                let rows = query.fetch_all(&mut **connection).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
            Self::Sqlite(connection) => {
                let mut found = Vec::new();
                for (text, arguments) in of_sqlite(sql, &parameters, rows)? {
                    let query = sqlx::query_with(AssertSqlSafe(text), arguments);
                    found.extend(query.fetch_all(&mut **connection).await?.into_iter().map(Row::Sqlite));
                }
                Ok(found)
            }
        }
    }

    /// Executes a statement of Postgres that has so many sets of rows. SQLite executes nothing.
    pub(crate) async fn execute_sets<const SETS: usize>(
        &mut self,
        sql: &Sql,
        parameters: impl IntoIterator<Item = Value> + Send,
        sets: [Rows; SETS],
    ) -> Result<(), sqlx::Error> {
        let parameters: Vec<Value> = parameters.into_iter().collect();
        let Self::Postgres(connection) = self else { return Ok(()) };
        let arguments = of_postgres(sql, &parameters, &sets)?;
        let query = sqlx::query_with(AssertSqlSafe(sql.postgres()), arguments);
        query.execute(&mut **connection).await.map(drop)
    }

    /// Executes statements without parameters, which are separated by semicolons.
    pub(crate) async fn execute_script(&mut self, script: &str) -> Result<(), sqlx::Error> {
        let script = sqlx::raw_sql(AssertSqlSafe(script));
        match self {
            Self::Postgres(connection) => script.execute(&mut **connection).await.map(drop),
            Self::Sqlite(connection) => script.execute(&mut **connection).await.map(drop),
        }
    }
}

fn of_postgres(sql: &Sql, parameters: &[Value], sets: &[Rows]) -> Result<PgArguments, sqlx::Error> {
    let mut arguments = PgArguments::default();
    for parameter in parameters {
        match parameter {
            // Only columns have nulls: a parameter has no type of its own.
            Value::Null => arguments.add(None::<&str>),
            Value::Int(value) => arguments.add(*value),
            Value::Text(value) => arguments.add(&**value),
            Value::Bytes(value) => arguments.add(&value[..]),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    // An empty set has all of its columns too.
    let widths = sql.widths();
    let columns = sets.iter().zip(widths).flat_map(|(rows, width)| (0..*width).map(move |at| (rows, at)));
    for ((rows, at), kind) in columns.zip(sql.kinds()) {
        match kind {
            Kind::Int => arguments.add(column(rows, at, |value| match value {
                Value::Int(value) => Some(*value),
                _ => None,
            })),
            Kind::Text => arguments.add(column(rows, at, |value| match value {
                Value::Text(value) => Some(&**value),
                _ => None,
            })),
            Kind::Bytes => arguments.add(column(rows, at, |value| match value {
                Value::Bytes(value) => Some(&value[..]),
                _ => None,
            })),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn column<'r, T>(rows: &'r Rows, at: usize, read: impl Fn(&'r Value) -> Option<T>) -> Vec<Option<T>> {
    rows.column(at).map(read).collect()
}

/// The statements for all rows, each with its arguments.
fn of_sqlite(
    sql: &Sql,
    parameters: &[Value],
    rows: Rows,
) -> Result<Vec<(Arc<str>, SqliteArguments)>, sqlx::Error> {
    let (count, columns) = (rows.len(), rows.columns);
    let mut values = rows.values.into_iter();
    let mut statements = Vec::with_capacity(1);
    let mut left = count;
    loop {
        let some = left.min(MOST_ROWS);
        let (text, _) = sql.sqlite(some);
        let mut arguments = SqliteArguments::default();
        // What is not bound is null.
        let of_rows = values.by_ref().take(some * columns);
        for value in parameters.iter().cloned().chain(of_rows) {
            match value {
                Value::Null => arguments.add(None::<&str>),
                Value::Int(value) => arguments.add(value),
                Value::Text(value) => arguments.add(value),
                Value::Bytes(value) => arguments.add(value),
            }
            .map_err(sqlx::Error::Encode)?;
        }
        statements.push((text, arguments));
        left -= some;
        if left == 0 {
            return Ok(statements);
        }
    }
}

/// A row of either database. Columns are numbered from 0.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

macro_rules! reads {
    ($($(#[$doc:meta])* $name:ident -> $kind:ty;)*) => {
        impl Row {
            $($(#[$doc])* pub(crate) fn $name(&self, column: usize) -> Result<$kind, sqlx::Error> {
                match self {
                    Self::Sqlite(row) => row.try_get(column),
                    Self::Postgres(row) => row.try_get(column),
                }
            })*
        }
    };
}

reads! {
    int -> i64;
    text -> String;
    int_or_null -> Option<i64>;
    text_or_null -> Option<String>;
    bytes -> Vec<u8>;
    bytes_or_null -> Option<Vec<u8>>;
    flag -> bool;
}

impl Row {
    /// A number that is never negative.
    pub(crate) fn count(&self, column: usize) -> Result<u64, sqlx::Error> {
        Ok(u64::try_from(self.int(column)?).unwrap_or(0))
    }
}
