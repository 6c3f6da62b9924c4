//! Operations that meet in one transaction, or in those of two processes, and records that cannot be read.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use octollm_core::{
    contract::ContractRef,
    error::{ErrorKind, Failure},
    event::Event,
    parts::{Caller, ContextParts},
    store::{Claim, Claimed, SideEffects, Start, StoreError, TaskStore},
    task::{Priority, Submission, TaskError, TaskQuery, TaskRecord, TaskStatus},
};
use octollm_events::sql::{
    SqlDatabase, SqlStore,
    sqlx::{self, Connection, PgConnection, SqliteConnection},
};
use tokio::{join, task::JoinSet, time::sleep};

use crate::{
    brains::Count,
    subject::{OnPostgres, OnSqlite},
};

const MANY: usize = 1 << 30;
const LEASE: Duration = Duration::from_secs(600);

fn record(submission: Submission) -> TaskRecord {
    TaskRecord::new(submission, &ContextParts::new(), Duration::from_secs(60), Timestamp::now())
}

fn queued(steps: u64) -> TaskRecord {
    record(Submission::of(&Count { steps }).unwrap())
}

fn with_key(steps: u64, key: &str) -> TaskRecord {
    record(Submission::of(&Count { steps }).unwrap().unique(key))
}

async fn create(store: &SqlStore, record: TaskRecord) -> Result<Arc<TaskRecord>, StoreError> {
    store.create(record, SideEffects::default(), MANY, MANY).await
}

async fn commit(store: &SqlStore, record: TaskRecord) -> Result<(), StoreError> {
    store.commit(record, SideEffects::default()).await
}

async fn claim(store: &SqlStore, limit: usize) -> Claimed {
    let contracts: [ContractRef; 1] = [queued(0).contract().clone()];
    store.claim(&Claim::new("brain", &contracts, LEASE, limit, "test")).await.unwrap()
}

fn cancelled(record: &TaskRecord) -> TaskRecord {
    let mut record = record.clone();
    record.cancel(Timestamp::now()).unwrap();
    record
}

/// What is polled together on one thread is in one transaction.
async fn a_task_that_is_created_and_cancelled_at_once_is_not_claimed(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    let record = queued(1);
    let (created, cancelled, claimed) =
        join!(create(&store, record.clone()), commit(&store, cancelled(&record)), claim(&store, 5));
    assert!(created.is_ok() && cancelled.is_ok() && claimed.tasks.is_empty());
    let stored = store.get(record.id()).await.unwrap().unwrap();
    assert_eq!((stored.status(), stored.run()), (TaskStatus::Cancelled, 0));
}

async fn a_claim_beside_a_cancellation_is_to_be_repeated_at_once(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    let (first, second) = (queued(1), queued(2));
    let stored = create(&store, first).await.unwrap();
    create(&store, second.clone()).await.unwrap();
    let (cancelled, claimed) = join!(commit(&store, cancelled(&stored)), claim(&store, 1));
    cancelled.unwrap();
    // The first task was passed over, and the second one waits.
    assert!(claimed.tasks.is_empty() && claimed.free_in == Some(Duration::ZERO));
    assert_eq!(claim(&store, 1).await.tasks[0].0.id(), second.id());
}

/// As a later version has written it.
const LATER_RECORD: &str = "UPDATE octollm_records SET format = 2 WHERE task = 1";

async fn execute(url: &str, statement: &'static str) {
    if url.starts_with("sqlite:") {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    } else {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
}

async fn a_record_that_is_not_readable_is_left_out_of_lists(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    let records = [queued(1), queued(2), queued(3)];
    // A list is newest first: the one that is not readable is between the others.
    for record in [&records[1], &records[0], &records[2]] {
        create(&store, record.clone()).await.unwrap();
    }
    execute(url, LATER_RECORD).await;
    let others = [records[2].id(), records[0].id()];
    for (query, count) in [
        (TaskQuery::default(), 2),
        (TaskQuery::default().limit(2), 2),
        (TaskQuery::default().limit(1), 1),
        (TaskQuery::default().status(TaskStatus::Queued).limit(2), 2),
    ] {
        for owner in [None, Some(&Caller::Unchecked)] {
            let listed = store.list(&query, owner).await.unwrap();
            let ids: Vec<_> = listed.iter().map(|record| record.id()).collect();
            assert_eq!(ids, others[..count], "{query:?} of {owner:?}");
        }
    }
}

async fn an_event_that_is_not_readable_is_set_aside(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    for number in 0..3 {
        let effects = with_event(number);
        store.create(queued(number), effects, MANY, MANY).await.unwrap();
    }
    execute(url, "UPDATE octollm_events SET body = 'not an event' WHERE seq = 1").await;
    let pending = store.pending_events("relay", 1).await.unwrap();
    assert_eq!(ids(&pending), ["event 1"], "the next one comes in its place");
    execute(url, "UPDATE octollm_events SET format = 2 WHERE seq = 3").await;
    store.published(&ids(&pending)).await.unwrap();
    assert!(store.pending_events("relay", 10).await.unwrap().is_empty());
    // Both are there, and can be published once they are readable.
    execute(
        url,
        "UPDATE octollm_dead_events SET format = 1; \
         INSERT INTO octollm_events (id, format, body) SELECT id, format, body FROM octollm_dead_events WHERE body LIKE '{%'",
    )
    .await;
    let pending = store.pending_events("relay", 10).await.unwrap();
    assert_eq!(ids(&pending), ["event 2"]);
    // What another process has taken is deleted too.
    SqlStore::open(url).await.unwrap().published(&ids(&pending)).await.unwrap();
    assert!(store.pending_events("relay", 10).await.unwrap().is_empty());
}

fn with_event(number: u64) -> SideEffects {
    let mut effects = SideEffects::default();
    effects.events.push(
        Event::new("test.happened", "test", number).unwrap().with_id(format!("event {number}")).unwrap(),
    );
    effects
}

fn ids(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.id().to_owned()).collect()
}

async fn a_claim_of_a_thousand_contracts_finds_the_first_tasks_of_all(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    let contracts: Vec<ContractRef> =
        (0..1_000).map(|number| ContractRef::new(format!("test.work{number}"), 1).unwrap()).collect();
    let mut created = Vec::new();
    for (number, priority) in [(999, Priority::Medium), (3, Priority::Medium), (500, Priority::High)] {
        let mut submission = Submission::of(&Count { steps: 1 }).unwrap();
        (submission.contract, submission.priority) = (contracts[number].clone(), priority);
        created.push(create(&store, record(submission)).await.unwrap());
    }
    let claim = |limit| Claim::new("brain", &contracts, LEASE, limit, "test");
    let first = store.claim(&claim(2)).await.unwrap().tasks;
    let first: Vec<_> = first.iter().map(|(record, _)| record.id()).collect();
    assert_eq!(first, [created[2].id(), created[0].id()], "by priority, and then by age");
    assert_eq!(store.claim(&claim(2)).await.unwrap().tasks[0].0.id(), created[1].id());
}

async fn a_task_is_started_with_its_creation_where_no_other_waits(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    assert!(store.starts());
    let started = |record: TaskRecord| {
        let mut effects = with_event(0);
        effects.start = Some(Start::new("brain", LEASE, "test"));
        store.create(record, effects, MANY, MANY)
    };
    let first = started(queued(1)).await.unwrap();
    assert!(first.is_held("brain", 1) && first.status() == TaskStatus::Processing);
    let stored = store.get(first.id()).await.unwrap().unwrap();
    assert_eq!(serde_json::to_value(&*stored).unwrap(), serde_json::to_value(&*first).unwrap());
    assert!(claim(&store, 5).await.tasks.is_empty(), "it is held");
    let types: Vec<_> = store.pending_events("relay", 9).await.unwrap();
    let types: Vec<_> = types.iter().map(Event::event_type).collect();
    assert_eq!(types[0], "test.happened", "the effects of the creation come first: {types:?}");
    assert_eq!(types.len(), 2);
    // With one that waits, others wait too.
    let second = create(&store, queued(2)).await.unwrap();
    let third = started(queued(3)).await.unwrap();
    assert_eq!((third.status(), third.run()), (TaskStatus::Queued, 0));
    let claimed = claim(&store, 5).await.tasks;
    let ids: Vec<_> = claimed.iter().map(|(record, _)| record.id()).collect();
    assert_eq!(ids, [second.id(), third.id()]);
    // The end is that of any run.
    let mut first = TaskRecord::clone(&first);
    first.cancel(Timestamp::now()).unwrap();
    commit(&store, first.clone()).await.unwrap();
    assert_eq!(store.get(first.id()).await.unwrap().unwrap().status(), TaskStatus::Cancelled);
}

async fn a_task_that_is_started_is_free_when_its_lease_has_expired(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    let mut effects = SideEffects::default();
    effects.start = Some(Start::new("gone", Duration::from_millis(200), "test"));
    let first = store.create(queued(1), effects, MANY, MANY).await.unwrap();
    assert!(first.is_held("gone", 1));
    let taken = loop {
        match claim(&store, 5).await.tasks.pop() {
            Some((record, _)) => break record,
            None => sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(taken.is_held("brain", 2) && taken.id() == first.id());
}

async fn a_record_that_is_not_readable_holds_up_no_other(url: &str) {
    let store = SqlStore::open(url).await.unwrap();
    let records = [queued(1), queued(2), queued(3)];
    for record in &records[..2] {
        create(&store, record.clone()).await.unwrap();
    }
    execute(url, LATER_RECORD).await;
    let (created, first) = join!(create(&store, records[2].clone()), claim(&store, 1));
    assert!(created.is_ok() && first.tasks.is_empty(), "the first one is passed over");
    let claimed = claim(&store, 5).await.tasks;
    let ids: Vec<_> = claimed.iter().map(|(record, _)| record.id()).collect();
    assert_eq!(ids, [records[1].id(), records[2].id()]);
    let (unreadable, readable) = join!(store.get(records[0].id()), store.get(records[1].id()));
    assert!(unreadable.is_err() && readable.unwrap().is_some(), "one lookup fails no other");
}

macro_rules! on_both {
    ($($case:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $case() {
                let subject = super::OnSqlite::new();
                super::$case(&subject.url()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $case() {
                super::$case(&super::OnPostgres::new().url()).await;
            })*
        }
    };
}

on_both! {
    a_task_that_is_created_and_cancelled_at_once_is_not_claimed
    a_claim_beside_a_cancellation_is_to_be_repeated_at_once
    a_record_that_is_not_readable_holds_up_no_other
    a_record_that_is_not_readable_is_left_out_of_lists
    an_event_that_is_not_readable_is_set_aside
    a_claim_of_a_thousand_contracts_finds_the_first_tasks_of_all
    a_task_is_started_with_its_creation_where_no_other_waits
    a_task_that_is_started_is_free_when_its_lease_has_expired
}

async fn two_processes() -> (SqlStore, SqlStore) {
    let url = OnPostgres::new().url();
    (SqlStore::open(&url).await.unwrap(), SqlStore::open(&url).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submissions_of_a_key_by_two_processes_return_a_task_that_is_stored() {
    let (one, other) = two_processes().await;
    for number in 0..60 {
        let key = format!("key {number}");
        // The first two are in one transaction, and the other process may have the key before it.
        let (first, second, third) = (with_key(1, &key), with_key(2, &key), with_key(3, &key));
        let (a, b) = (one.clone(), other.clone());
        let pair = tokio::spawn(async move { join!(create(&a, first), create(&a, second)) });
        let alone = tokio::spawn(async move { create(&b, third).await });
        let (first, second) = pair.await.unwrap();
        let third = alone.await.unwrap().unwrap();
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(first.id() == third.id() && second.id() == third.id(), "all have one task");
        assert!(one.get(third.id()).await.unwrap().is_some(), "it is stored");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rerun_that_meets_a_submission_of_its_key_is_refused_for_the_key() {
    let (one, other) = two_processes().await;
    for number in 0..40 {
        let key = format!("key {number}");
        create(&one, with_key(1, &key)).await.unwrap();
        let mut again = TaskRecord::clone(&claim(&one, 1).await.tasks[0].0);
        again.fail(TaskError::from(&Failure::of(ErrorKind::ArmFailed)), Timestamp::now()).unwrap();
        commit(&one, again.clone()).await.unwrap();
        let mut again = TaskRecord::clone(&one.get(again.id()).await.unwrap().unwrap());
        again.rerun(false, Timestamp::now()).unwrap();
        let (a, b) = (one.clone(), other.clone());
        let rerun = tokio::spawn(async move { commit(&a, again).await });
        let new = with_key(2, &key);
        let new = tokio::spawn(async move { create(&b, new).await });
        let (rerun, new) = (rerun.await.unwrap(), new.await.unwrap());
        assert!(matches!(rerun, Ok(()) | Err(StoreError::NotUnique)), "{rerun:?}");
        new.unwrap();
        for (record, _) in claim(&one, 9).await.tasks {
            commit(&one, cancelled(&record)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_clean_at_once_delete_no_more_than_the_surplus() {
    let url = OnPostgres::new().url();
    let mut stores = Vec::new();
    for _ in 0..4 {
        let builder = SqlStore::builder().finished(50).cleaning(Duration::from_millis(10));
        stores.push(builder.open(&SqlDatabase::open(&url).await.unwrap()).await.unwrap());
    }
    for _ in 0..5 {
        let mut ended = JoinSet::new();
        for number in 0..80 {
            let store = stores[number % stores.len()].clone();
            ended.spawn(async move {
                let stored = create(&store, queued(1)).await.unwrap();
                commit(&store, cancelled(&stored)).await.unwrap();
            });
        }
        ended.join_all().await;
        let query = TaskQuery::default().limit(1_000);
        loop {
            let stored = stores[0].list(&query, None).await.unwrap().len();
            assert!(stored >= 50, "{stored} of 50 are stored");
            if stored == 50 {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}
