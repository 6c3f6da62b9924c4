//! Databases that cannot be used: one clear error each, in time.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, setfsuid},
};
use octollm_core::{
    error::Error,
    id::TaskId,
    store::{StoreError, TaskStore},
    task::TaskQuery,
};
use octollm_events::sql::{
    Outbox, SqlDatabase, SqlError, SqlStore,
    sqlx::{self, Connection, PgConnection},
};
use tokio::{
    join,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    postgres::{PASSWORD, Postgres},
    subject::{OnPostgres, OnSqlite},
};

/// A secret that no error has.
const SECRET: &str = "geheim";

/// The error of opening a database, which names its reason and no secret, within a limit.
async fn refused(url: &str, reason: &str) -> SqlError {
    let begun = Instant::now();
    let error = SqlStore::open(url).await.expect_err("it cannot be used");
    assert!(begun.elapsed() < Duration::from_secs(6), "{error} after {:?}", begun.elapsed());
    assert!(error.to_string().contains(reason), "{error:?}");
    let text = format!("{error:?} {}", Error::from(error.clone()));
    assert!(!text.contains(SECRET) && !text.contains(PASSWORD), "{text}");
    error
}

#[tokio::test]
async fn a_host_that_is_not_there_is_unreachable() {
    let error = refused("postgres://me:geheim@nowhere.invalid/tasks", "not reachable").await;
    assert!(matches!(error, SqlError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_unreachable_at_once() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let error = refused(&format!("postgres://me:geheim@{free}/tasks"), "not reachable").await;
    assert!(matches!(error, SqlError::Unreachable(_)), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_unreachable_after_the_time_of_a_connection() {
    // The system accepts the connection, and nobody reads.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://me:geheim@{}/tasks", silent.local_addr().unwrap());
    let limit = Duration::from_millis(300);
    let begun = Instant::now();
    let error = SqlDatabase::builder(&url).connect_time(limit).open().await.unwrap_err();
    assert!(matches!(error, SqlError::Unreachable(_)), "{error:?}");
    assert!(begun.elapsed() >= limit && begun.elapsed() < limit * 5, "{:?}", begun.elapsed());
    // By default that is 5 s.
    refused(&url, "not reachable").await;
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_database_are_refused() {
    let server = Postgres::shared();
    let port = server.port();
    for url in [
        format!("postgres://postgres:{SECRET}@127.0.0.1:{port}/postgres"),
        format!("postgres://nobody:{SECRET}@127.0.0.1:{port}/postgres"),
        server.url("no_such_database"),
    ] {
        let error = refused(&url, "check user, password and database").await;
        assert!(matches!(error, SqlError::Refused(_)), "{error:?}");
    }
}

/// The rights of nobody on files, until the end of the value. The thread of a test and those that it starts have them.
struct AsNobody;

impl AsNobody {
    fn new() -> Self {
        if Uid::effective().is_root() {
            setfsuid(Uid::from_raw(65_534));
        }
        Self
    }
}

impl Drop for AsNobody {
    fn drop(&mut self) {
        setfsuid(Uid::effective());
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_file_that_can_only_be_read_is_read_only() {
    // Of a new file, of one that a program has used, and of one that a killed program has used: its log is there.
    for used in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tasks.db");
        let url = format!("sqlite:{}", file.display());
        match used {
            0 => drop(fs::File::create(&file).unwrap()),
            _ => {
                let store = SqlStore::open(&url).await.unwrap();
                if used == 1 {
                    store.database().close().await;
                } else {
                    fs::copy(&file, folder.path().join("copy.db")).unwrap();
                    fs::copy(folder.path().join("tasks.db-wal"), folder.path().join("copy.db-wal")).unwrap();
                }
            }
        }
        let file = if used == 2 { folder.path().join("copy.db") } else { file };
        for entry in fs::read_dir(folder.path()).unwrap() {
            set_mode(&entry.unwrap().path(), 0o444);
        }
        set_mode(folder.path(), 0o555);
        let error = {
            let _nobody = AsNobody::new();
            refused(&format!("sqlite:{}", file.display()), "read-only").await
        };
        assert!(matches!(error, SqlError::ReadOnly(_)), "{used}: {error:?}");
        set_mode(folder.path(), 0o755);
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named_by_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    set_mode(folder.path(), 0o555);
    {
        let _nobody = AsNobody::new();
        let url = format!("sqlite:{}", folder.path().join("tasks.db").display());
        let error = refused(&url, "not reachable").await;
        assert!(matches!(error, SqlError::Unreachable(_)), "{error:?}");
    }
    set_mode(folder.path(), 0o755);
    let missing = folder.path().join("missing").join("tasks.db");
    let error = refused(&format!("sqlite:{}", missing.display()), "not reachable").await;
    assert!(matches!(error, SqlError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn a_server_or_a_user_that_can_only_read_is_read_only() {
    let server = Postgres::shared();
    server.execute("postgres", "CREATE DATABASE replica");
    server.execute("postgres", "ALTER DATABASE replica SET default_transaction_read_only = on");
    let error = refused(&server.url("replica"), "read-only").await;
    assert!(matches!(error, SqlError::ReadOnly(_)), "{error:?}");

    server.execute("postgres", "CREATE DATABASE guarded");
    server.execute("guarded", "CREATE ROLE reader LOGIN PASSWORD 'geheim'");
    server.execute("guarded", "REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let url = format!("postgres://reader:{SECRET}@127.0.0.1:{}/guarded", server.port());
    let error = refused(&url, "read-only").await;
    assert!(matches!(error, SqlError::ReadOnly(_)), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_its_version() {
    let server = Postgres::shared();
    server.execute("postgres", "CREATE DATABASE old");
    // It says what an old one does.
    server.execute(
        "old",
        "CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql AS $$SELECT '12.22 (Debian 12.22-1)'$$",
    );
    server.execute("postgres", "ALTER DATABASE old SET search_path = public, pg_catalog");
    let error = refused(&server.url("old"), "at least 13").await;
    assert!(
        matches!(&error, SqlError::OldServer { found, least: 13 } if found.starts_with("12.22")),
        "{error:?}"
    );
}

#[tokio::test]
async fn tables_of_a_later_version_are_refused() {
    let (sqlite, postgres) = (OnSqlite::new(), OnPostgres::new());
    let later = "UPDATE octollm_schema SET version = 99 WHERE part = 'tasks'";
    SqlStore::open(&sqlite.url()).await.unwrap().database().close().await;
    let mut file = sqlx::SqliteConnection::connect(&sqlite.url()).await.unwrap();
    sqlx::query(later).execute(&mut file).await.unwrap();
    SqlStore::open(&postgres.url()).await.unwrap().database().close().await;
    let mut server = PgConnection::connect(&postgres.url()).await.unwrap();
    sqlx::query(later).execute(&mut server).await.unwrap();
    for url in [sqlite.url(), postgres.url()] {
        let error = refused(&url, "use a newer one").await;
        assert!(matches!(error, SqlError::NewerSchema { part: "tasks", found: 99, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_or_damaged_is_refused_and_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let sound = folder.path().join("sound.db");
    SqlStore::open(&format!("sqlite:{}", sound.display())).await.unwrap().database().close().await;
    let sound = fs::read(sound).unwrap();
    let mut damaged = sound.clone();
    damaged[100..].fill(0x5a);
    for (name, bytes) in [
        ("text", "no database but a text. ".repeat(100).into_bytes()),
        ("picture", [&b"\x89PNG\r\n\x1a\n"[..], &[7; 4096]].concat()),
        ("damaged", damaged),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, &bytes).unwrap();
        let error = refused(&format!("sqlite:{}", file.display()), "not a database").await;
        assert!(matches!(error, SqlError::NotADatabase(_)), "{name}: {error:?}");
        assert_eq!(fs::read(&file).unwrap(), bytes, "{name} is changed");
    }
    let error = refused(&format!("sqlite:{}", folder.path().display()), "not reachable").await;
    assert!(matches!(error, SqlError::Unreachable(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_waits_for_a_connection_no_longer_than_its_limit() {
    const READS: usize = 50;
    let (url, limit) = (OnPostgres::new().url(), Duration::from_secs(2));
    let database = SqlDatabase::builder(&url).connections(2).connect_time(limit).open().await.unwrap();
    let outbox = Outbox::open(&database).await.unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE octollm_outbox").execute(&mut other).await.unwrap();
    let begun = Instant::now();
    let mut reads = JoinSet::new();
    for _ in 0..READS {
        let outbox = outbox.clone();
        reads.spawn(async move { outbox.waiting().await });
    }
    // Two have a connection, and wait for the table.
    for _ in 0..READS - 2 {
        let read = reads.join_next().await.unwrap().unwrap();
        assert!(matches!(read, Err(SqlError::NoConnection(time)) if time == limit), "{read:?}");
        assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    }
    assert!(begun.elapsed() < limit * 6, "{:?}", begun.elapsed());
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    while let Some(read) = reads.join_next().await {
        assert_eq!(read.unwrap().unwrap(), 0);
    }
    assert_eq!(outbox.waiting().await.unwrap(), 0, "the connections are free again");
}

#[tokio::test]
async fn a_server_that_has_too_many_connections_is_named() {
    let server = Postgres::shared();
    server.execute("postgres", &format!("CREATE ROLE crowd LOGIN PASSWORD '{SECRET}'"));
    server.execute("postgres", "CREATE DATABASE crowded OWNER crowd");
    let url = format!("postgres://crowd:{SECRET}@127.0.0.1:{}/crowded", server.port());
    let database = SqlDatabase::builder(&url).connect_time(Duration::from_secs(2)).open().await.unwrap();
    let store = SqlStore::builder().open(&database).await.unwrap();
    server.execute("postgres", "ALTER ROLE crowd CONNECTION LIMIT 0");
    let error = refused(&url, "too many connections").await;
    assert!(matches!(error, SqlError::TooManyConnections(_)), "{error:?}");
    let (query, id) = (TaskQuery::default(), TaskId::new());
    let (listed, found) = join!(store.list(&query, None), store.get(&id));
    for error in [listed.unwrap_err(), found.unwrap_err()] {
        let StoreError::Unavailable(cause) = error else { panic!("{error:?}") };
        assert!(matches!(cause.downcast_ref(), Some(SqlError::TooManyConnections(_))), "{cause:?}");
    }
    server.execute("postgres", "ALTER ROLE crowd CONNECTION LIMIT -1");
    assert!(store.list(&query, None).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_answer_no_more_are_replaced_and_do_not_hold_up_the_end() {
    let server = Postgres::shared();
    let url = server.database();
    let name = url.rsplit('/').next().unwrap();
    let limit = Duration::from_millis(500);
    let database = SqlDatabase::builder(&url).connections(2).operation_time(limit).open().await.unwrap();
    let store = SqlStore::builder().open(&database).await.unwrap();
    let query = TaskQuery::default();
    let (first, second) = join!(store.list(&query, None), store.list(&query, None));
    assert!(first.is_ok() && second.is_ok());
    // As where the route to a server is lost: the connections stay open, and new ones are answered.
    let own = format!("SELECT pid FROM pg_stat_activity WHERE datname = '{name}'");
    let processes: Vec<Pid> =
        server.execute("postgres", &own).lines().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect();
    for process in &processes {
        kill(*process, Signal::SIGSTOP).unwrap();
    }
    let (first, second) = join!(store.list(&query, None), store.list(&query, None));
    assert!(first.is_err() || second.is_err(), "no process has answered");
    // Those that were stopped are not waited for.
    let end = Instant::now() + Duration::from_secs(20);
    while store.list(&query, None).await.is_err() {
        assert!(Instant::now() < end, "the connections are not replaced");
    }
    let closed = timeout(Duration::from_secs(20), database.close()).await;
    for process in &processes {
        kill(*process, Signal::SIGCONT).unwrap();
    }
    closed.expect("the database is closed");
}
