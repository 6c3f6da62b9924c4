//! Which tasks are deleted, and which stay.

use std::{collections::BTreeSet, time::Duration};

use octollm_core::{
    Context,
    brain::Brain,
    id::TaskId,
    orchestrator::{Orchestrator, finished},
    store::TaskStore,
    task::{Submission, TaskQuery, TaskStatus},
};
use octollm_events::sql::{
    SqlDatabase, SqlStore, SqlStoreBuilder,
    sqlx::{self, AssertSqlSafe, Connection, PgConnection, SqliteConnection},
};
use tokio::time::Instant;

use crate::{
    brains::{Count, Counter, Steps},
    subject::{OnPostgres, OnSqlite},
};

const DAY: i64 = 24 * 3600 * 1_000_000;

/// Executes a statement as another program does. `{now}` is the time of the database in microseconds.
async fn execute(url: &str, statement: &str) {
    let now = if url.starts_with("sqlite:") {
        "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
    } else {
        "(extract(epoch from now()) * 1000000)::bigint"
    };
    let statement = AssertSqlSafe(statement.replace("{now}", now));
    if url.starts_with("sqlite:") {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    } else {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
}

/// Numbers of rows: of tasks, records, entries of journals, and updates, of tasks and without one.
async fn rows(url: &str) -> Vec<i64> {
    let mut counts = Vec::new();
    for count in [
        "SELECT count(*) FROM octollm_tasks",
        "SELECT count(*) FROM octollm_records",
        "SELECT count(DISTINCT task) FROM octollm_journal",
        "SELECT count(DISTINCT task) FROM octollm_updates",
        "SELECT count(*) FROM octollm_journal WHERE task NOT IN (SELECT no FROM octollm_tasks)",
        "SELECT count(*) FROM octollm_updates WHERE task NOT IN (SELECT no FROM octollm_tasks)",
    ] {
        counts.push(if url.starts_with("sqlite:") {
            let mut connection = SqliteConnection::connect(url).await.unwrap();
            sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap()
        } else {
            let mut connection = PgConnection::connect(url).await.unwrap();
            sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap()
        });
    }
    counts
}

/// A brain with twelve tasks that are completed, in their order, one that waits for its start, and one that runs.
struct Stored {
    brain: Brain,
    completed: Vec<TaskId>,
    unfinished: BTreeSet<TaskId>,
}

async fn stored(url: &str) -> Stored {
    let steps = Steps::new(Duration::from_millis(1));
    let store = SqlStore::open(url).await.unwrap();
    let brain = Brain::builder().arm(Counter).arms(steps).store(store).build().unwrap();
    let cx = Context::detached();
    let mut completed = Vec::new();
    for _ in 0..12 {
        let task = brain.submit(Submission::of(&Count { steps: 2 }).unwrap(), &cx).await.unwrap();
        assert_eq!(finished(&brain, &task.task_id, &cx).await.unwrap().status, TaskStatus::Completed);
        completed.push(task.task_id);
    }
    let later = Submission::of(&Count { steps: 2 }).unwrap().run_in(Duration::from_secs(3600));
    let waits = brain.submit(later, &cx).await.unwrap().task_id;
    let runs = brain.submit(Submission::of(&Count { steps: 60_000 }).unwrap(), &cx).await.unwrap().task_id;
    let end = Instant::now() + Duration::from_secs(20);
    while brain.get(&runs, &cx).await.unwrap().status != TaskStatus::Processing {
        assert!(Instant::now() < end);
    }
    Stored { brain, completed, unfinished: BTreeSet::from([waits, runs]) }
}

/// The tasks that are there once a store with these settings has deleted all but so many.
async fn after_cleaning(url: &str, settings: SqlStoreBuilder, left: usize) -> BTreeSet<TaskId> {
    let database = SqlDatabase::open(url).await.unwrap();
    let store = settings.cleaning(Duration::from_millis(20)).open(&database).await.unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let list = || async {
        let listed = store.list(&TaskQuery::default().limit(1_000), None).await.unwrap();
        listed.iter().map(|record| record.id().clone()).collect::<BTreeSet<_>>()
    };
    while list().await.len() != left {
        assert!(Instant::now() < end, "{} tasks are left", list().await.len());
    }
    // Nothing more is deleted.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let listed = list().await;
    database.close().await;
    listed
}

async fn by_number_the_tasks_that_finished_first_are_deleted(url: &str) {
    let Stored { brain, completed, unfinished } = stored(url).await;
    let left = after_cleaning(url, SqlStore::builder().finished(5), 7).await;
    let expected: BTreeSet<_> = completed[7..].iter().chain(&unfinished).cloned().collect();
    assert_eq!(left, expected);
    let counts = rows(url).await;
    assert_eq!((&counts[..2], &counts[4..]), (&[7, 7][..], &[0, 0][..]), "{counts:?}");
    // The one that waits has neither yet.
    assert_eq!((counts[2], counts[3]), (6, 6), "journals and updates go with their tasks alone");
    // None at all may stay; those that are not finished do.
    let left = after_cleaning(url, SqlStore::builder().finished(0), 2).await;
    assert_eq!(left, unfinished);
    brain.close().await;
}

async fn by_age_the_tasks_that_are_too_old_by_the_clock_of_the_database_are_deleted(url: &str) {
    let Stored { brain, completed, unfinished } = stored(url).await;
    let aged = |task: &TaskId, age: i64| {
        format!("UPDATE octollm_tasks SET finished_at = {{now}} - {age} WHERE id = '{task}'")
    };
    // By default they stay for 30 days.
    for task in &completed[..3] {
        execute(url, &aged(task, 30 * DAY + 1)).await;
    }
    for task in &completed[3..6] {
        execute(url, &aged(task, 30 * DAY - 3_600 * 1_000_000)).await;
    }
    // However old tasks are that are not finished, they stay.
    execute(url, "UPDATE octollm_tasks SET last_claim = 1, first_claim = 1 WHERE status = 1").await;
    let left = after_cleaning(url, SqlStore::builder(), 11).await;
    let expected: BTreeSet<_> = completed[3..].iter().chain(&unfinished).cloned().collect();
    assert_eq!(left, expected);
    let hour = Duration::from_secs(3_600);
    let left = after_cleaning(url, SqlStore::builder().finished_for(hour), 8).await;
    let expected: BTreeSet<_> = completed[6..].iter().chain(&unfinished).cloned().collect();
    assert_eq!(left, expected);
    let counts = rows(url).await;
    assert_eq!((&counts[..2], &counts[4..]), (&[8, 8][..], &[0, 0][..]), "{counts:?}");
    brain.close().await;
}

async fn of_many_tasks_all_that_are_too_many_are_deleted(url: &str) {
    let Stored { brain, completed, unfinished } = stored(url).await;
    // More than one transaction deletes.
    let copies = "INSERT INTO octollm_tasks (id, contract, status, priority, owner, size, run, revision, finished_at) \
        SELECT t.id || '-' || n.number, t.contract, t.status, t.priority, t.owner, t.size, t.run, t.revision, \
        t.finished_at - 3600000000 - n.number FROM octollm_tasks AS t, numbers AS n WHERE t.finished_at IS NOT NULL; \
        UPDATE octollm_counts SET finished = finished + (SELECT count(*) FROM numbers) * 12 WHERE stripe = 0; DROP TABLE numbers";
    let numbers = "CREATE TABLE numbers AS WITH RECURSIVE n(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM n WHERE number < 100) \
        SELECT number FROM n";
    execute(url, &format!("BEGIN; {numbers}; {copies}; COMMIT")).await;
    assert_eq!(rows(url).await[0], 14 + 1_200);
    let database = SqlDatabase::open(url).await.unwrap();
    let cleaning = SqlStore::builder().finished(12).cleaning(Duration::from_millis(20));
    let cleaning = cleaning.open(&database).await.unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while rows(url).await[0] > 14 {
        assert!(Instant::now() < end);
    }
    cleaning.database().close().await;
    let left = after_cleaning(url, SqlStore::builder().finished(12), 14).await;
    let expected: BTreeSet<_> = completed.iter().chain(&unfinished).cloned().collect();
    assert_eq!(left, expected);
    assert_eq!(rows(url).await[0], 14);
    brain.close().await;
}

macro_rules! on_both {
    ($($case:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let subject = super::OnSqlite::new();
                super::$case(&subject.url()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&super::OnPostgres::new().url()).await;
            })*
        }
    };
}

on_both! {
    by_number_the_tasks_that_finished_first_are_deleted
    by_age_the_tasks_that_are_too_old_by_the_clock_of_the_database_are_deleted
    of_many_tasks_all_that_are_too_many_are_deleted
}
