//! The tables, and how those of an earlier version are updated.

use super::{connection::Conn, error::SqlError, statement::Sql};

/// A part of the tables with versions of its own, such as the tables of tasks.
pub(crate) struct Part {
    /// Name of the part, such as `tasks`. Its tables begin with `octollm_`.
    pub(crate) name: &'static str,
    /// The statements of each version from 1 on. A released version never changes.
    pub(crate) versions: &'static [Version],
}

/// The statements that lead to one version from the version before.
pub(crate) struct Version {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

/// The table of versions. Statements that find it cause no write.
const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS octollm_schema (part TEXT PRIMARY KEY, version BIGINT NOT NULL)";
static EXISTS: Sql = Sql::new(
    "{lite:SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'octollm_schema'}\
     {pg:SELECT count(to_regclass('octollm_schema'))}",
);
static READ: Sql = Sql::new("SELECT version FROM octollm_schema WHERE part = $1");
static WRITE: Sql = Sql::new(
    "INSERT INTO octollm_schema (part, version) VALUES ($1, $2) ON CONFLICT (part) DO UPDATE SET version = excluded.version",
);
/// A lock of all processes that create or update tables, until the end of the transaction.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7164102841)";

/// Brings the tables of a part to its latest version, in one transaction.
pub(super) async fn migrate(mut conn: Conn<'_>, part: &Part) -> Result<(), SqlError> {
    // Most starts find them up to date, and take no lock.
    let exists = conn.fetch(&EXISTS, []).await?.first().map(|row| row.int(0)).transpose()? == Some(1);
    if exists && version(&mut conn, part).await? == latest(part) {
        return Ok(());
    }
    if conn.is_postgres() {
        // The caller has a time limit for all of it.
        conn.execute_script("SET statement_timeout = 0; BEGIN").await?;
        conn.execute_script(LOCK).await?;
    } else {
        conn.execute_script("BEGIN IMMEDIATE").await?;
    }
    conn.execute_script(TABLE).await?;
    let from = version(&mut conn, part).await?;
    for version in part.versions.iter().skip(usize::try_from(from).unwrap_or(usize::MAX)) {
        conn.execute_script(if conn.is_postgres() { version.postgres } else { version.sqlite }).await?;
    }
    if from < latest(part) {
        conn.execute(&WRITE, [part.name.into(), latest(part).into()]).await?;
    }
    // A transaction that is not committed ends with the connection.
    Ok(conn.execute_script("COMMIT").await?)
}

fn latest(part: &Part) -> i64 {
    i64::try_from(part.versions.len()).unwrap_or(i64::MAX)
}

/// The version of the tables of a part, 0 where there are none.
async fn version(conn: &mut Conn<'_>, part: &Part) -> Result<i64, SqlError> {
    let rows = conn.fetch(&READ, [part.name.into()]).await?;
    let found = rows.first().map(|row| row.int(0)).transpose()?.unwrap_or(0);
    if found > latest(part) {
        return Err(SqlError::NewerSchema { part: part.name, found, known: latest(part) });
    }
    Ok(found)
}
