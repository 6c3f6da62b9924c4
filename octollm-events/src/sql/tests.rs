//! The database by itself: migrations, group commit, faults.

#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod postgres;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

use self::postgres::Postgres;
use super::{
    database::SqlDatabase,
    error::SqlError,
    migration::{Part, Version},
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

const TABLE: &str = "CREATE TABLE octollm_numbers (name TEXT PRIMARY KEY, number BIGINT NOT NULL)";
const FIRST: Version = Version { sqlite: TABLE, postgres: TABLE };
const COLUMN: &str = "ALTER TABLE octollm_numbers ADD COLUMN note TEXT";
const SECOND: Version = Version { sqlite: COLUMN, postgres: COLUMN };
static OLD: Part = Part { name: "numbers", versions: &[FIRST] };
static NUMBERS: Part = Part { name: "numbers", versions: &[FIRST, SECOND] };

/// Inserts a number, unless there is one of this name.
struct Insert(String, i64);

impl Operation for Insert {
    type Output = bool;
    const ORDER: u8 = 200;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<bool>, sqlx::Error> {
        static INSERT: Sql = Sql::new(
            "INSERT INTO octollm_numbers (name, number) SELECT rows.name, rows.number FROM {rows:name text, number int} \
             WHERE true ORDER BY rows.name ON CONFLICT DO NOTHING RETURNING name, number",
        );
        if batch.iter().any(|insert| insert.0 == "panic") {
            panic!("an operation that panics");
        }
        let mut rows = Rows::new();
        batch.iter().for_each(|insert| rows.push([insert.0.as_str().into(), insert.1.into()]));
        let mut inserted = Vec::new();
        for row in tx.conn.fetch_rows(&INSERT, [], rows).await? {
            inserted.push((row.text(0)?, row.int(1)?));
        }
        tx.changed("numbers".into());
        Ok(batch.iter().map(|insert| inserted.contains(&(insert.0.clone(), insert.1))).collect())
    }
}

static COUNT: Sql = Sql::new("SELECT count(*) FROM octollm_numbers");

async fn count(database: &SqlDatabase) -> Result<i64, SqlError> {
    Ok(database.fetch(&COUNT, []).await?[0].int(0)?)
}

/// A folder that is deleted with the value.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn file(folder: &tempfile::TempDir) -> String {
    format!("sqlite:{}", folder.path().join("numbers.db").display())
}

async fn migrations_run_once_whoever_comes_first(url: &str) {
    let open = || async {
        let database = SqlDatabase::open(url).await?;
        database.migrate(&NUMBERS).await?;
        Ok::<_, SqlError>(database)
    };
    let opened: Vec<_> = futures_util::future::join_all((0..8).map(|_| open())).await;
    let databases = opened.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    assert!(databases[0].write(Insert("a".into(), 1)).await.unwrap());
    assert!(!databases[7].write(Insert("a".into(), 2)).await.unwrap());
    let error = databases[3].migrate(&OLD).await.unwrap_err();
    assert!(matches!(error, SqlError::NewerSchema { part: "numbers", found: 2, known: 1 }), "{error}");
}

async fn each_operation_has_its_own_result(url: &str) {
    let database = SqlDatabase::open(url).await.unwrap();
    database.migrate(&OLD).await.unwrap();
    let mut changes = database.changes().subscribe("numbers".into());
    let writes = (0..2_000).map(|n| database.write(Insert(format!("n{}", n % 1_500), n)));
    let results = futures_util::future::join_all(writes).await;
    let inserted = results.into_iter().filter(|result| *result.as_ref().unwrap()).count();
    assert_eq!((inserted, count(&database).await.unwrap()), (1_500, 1_500));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    // One that is not possible does not fail the others.
    let names = ["x", "panic", "y", "z"];
    let results =
        futures_util::future::join_all(names.map(|name| database.write(Insert(name.into(), 1)))).await;
    let inserted: Vec<_> = results.iter().map(|result| matches!(result, Ok(true))).collect();
    assert_eq!(inserted, [true, false, true, true]);
    // An operation whose future is dropped ends.
    let mut dropped = Box::pin(database.write(Insert("dropped".into(), 1)));
    assert!((&mut dropped).now_or_never().is_none());
    drop(dropped);
    database.close().await;
    assert!(matches!(database.write(Insert("late".into(), 1)).await, Err(SqlError::Closed)));
    let database = SqlDatabase::open(url).await.unwrap();
    assert_eq!(count(&database).await.unwrap(), 1_504);
}

async fn another_handle_is_notified(url: &str) {
    let (one, other) = (SqlDatabase::open(url).await.unwrap(), SqlDatabase::open(url).await.unwrap());
    one.migrate(&OLD).await.unwrap();
    let mut changes = other.changes().subscribe("numbers".into());
    for name in 0..3 {
        // The first ones may come before the other handle listens.
        one.write(Insert(name.to_string(), 1)).await.unwrap();
        timeout(Duration::from_secs(10), changes.changed()).await.unwrap().unwrap();
    }
}

macro_rules! on_both {
    ($($case:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let folder = super::folder();
                super::$case(&super::file(&folder)).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&super::Postgres::shared().database()).await;
            })*
        }
    };
}

on_both! {
    migrations_run_once_whoever_comes_first
    each_operation_has_its_own_result
    another_handle_is_notified
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said() {
    let folder = folder();
    let text = folder.path().join("text.db");
    std::fs::write(
        &text,
        "no database at all, but a text that is long enough to have a header of one hundred bytes or more",
    )
    .unwrap();
    let error = SqlDatabase::open(&format!("sqlite:{}", text.display())).await.unwrap_err();
    assert!(matches!(error, SqlError::NotADatabase(_)), "{error:?}");
    let missing = folder.path().join("missing/tasks.db");
    let error = SqlDatabase::open(&format!("sqlite:{}", missing.display())).await.unwrap_err();
    assert!(matches!(error, SqlError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn what_is_wrong_with_a_server_is_said_without_secrets() {
    let server = Postgres::shared();
    let begin = Instant::now();
    for (url, expected) in [
        (format!("postgres://postgres:wrong-geheim@127.0.0.1:{}/postgres", server.port()), "Refused"),
        (format!("{}_missing", server.url("postgres")), "Refused"),
        ("postgres://me:geheim@127.0.0.1:1/db".to_owned(), "Unreachable"),
    ] {
        let error = SqlDatabase::open(&url).await.unwrap_err();
        let text = format!("{error:?} {}", octollm_core::error::Error::from(error.clone()));
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains("geheim") && !text.contains(postgres::PASSWORD), "{text}");
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    server.execute("postgres", "CREATE DATABASE frozen");
    server.execute("postgres", "ALTER DATABASE frozen SET default_transaction_read_only = on");
    let database = SqlDatabase::open(&server.url("frozen")).await.unwrap();
    let error = database.migrate(&OLD).await.unwrap_err();
    assert!(matches!(error, SqlError::ReadOnly(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_or_dies_fails_in_time_and_is_used_again() {
    let mut server = Postgres::start(&[]);
    let builder = SqlDatabase::builder(&server.url("postgres"));
    let limit = Duration::from_millis(500);
    let database = builder.operation_time(limit).connect_time(limit).open().await.unwrap();
    database.migrate(&OLD).await.unwrap();
    let database = Arc::new(database);
    assert!(database.write(Insert("before".into(), 1)).await.unwrap());
    assert_eq!(count(&database).await.unwrap(), 1);

    server.stop();
    let begin = Instant::now();
    let (write, read) = tokio::join!(database.write(Insert("stopped".into(), 1)), count(&database));
    assert!(matches!(write, Err(SqlError::TimedOut(_))), "{write:?}");
    // The limits of a connection and of an operation are the same.
    assert!(matches!(read, Err(SqlError::TimedOut(_) | SqlError::NoConnection(_))), "{read:?}");
    assert!(begin.elapsed() < limit * 4, "{:?}", begin.elapsed());
    server.resume();
    let end = Instant::now() + Duration::from_secs(10);
    while database.write(Insert("resumed".into(), 1)).await.is_err() {
        assert!(Instant::now() < end);
    }

    server.kill();
    let write = database.write(Insert("killed".into(), 1)).await;
    assert!(matches!(write, Err(SqlError::Unreachable(_))), "{write:?}");
    server.restart();
    // A server that just starts may be slower than this limit.
    let end = Instant::now() + Duration::from_secs(10);
    while database.write(Insert("restarted".into(), 1)).await.is_err() {
        assert!(Instant::now() < end);
    }
    assert!(count(&database).await.unwrap() >= 3);
}
