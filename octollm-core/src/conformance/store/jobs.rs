//! Tasks that start later, that have a uniqueness key, or whose contract has a limit.

use std::{collections::HashSet, time::Duration};

use serde_json::Value;

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::{at_once, eventually},
    error::{ErrorKind, Failure},
    json::RawJson,
    parts::{Caller, ContextParts},
    store::{Claim, Claimed, SideEffects, StoreError},
    task::{Priority, Submission, TaskError, TaskRecord, TaskResult},
};

const HOUR: Duration = Duration::from_secs(3_600);

async fn delayed(store: &Store, record: &TaskRecord, delay: Duration) -> TaskRecord {
    let effects = SideEffects { delay: Some(delay), ..effects_of(record) };
    let stored = store.create(record.clone(), effects, MANY, MANY).await.expect("the task is stored");
    TaskRecord::clone(&stored)
}

/// Claims tasks of `suite.work` and `other.work`, with a limit on the first.
async fn claim_below(store: &Store, holder: &str, lease: Duration, limit: usize, most: usize) -> Claimed {
    let (contracts, max_running) =
        ([contract("suite.work"), contract("other.work")], [(contract("suite.work"), most)]);
    let (contracts, max_running) = (&contracts[..], &max_running[..]);
    let claim = Claim { holder, contracts, lease, limit, max_running, source: "suite" };
    store.claim(&claim).await.expect("tasks are claimed")
}

pub(super) async fn a_delayed_task_is_free_when_its_time_has_come(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (late, soon) = (queued(1), queued(2));
    delayed(&store, &late, HOUR).await;
    delayed(&store, &soon, SHORT).await;
    let claimed = claim_below(&other, "brain", LONG, 9, 9).await;
    assert!(claimed.tasks.is_empty(), "neither is free yet");
    let free_in = claimed.free_in.expect("both are delayed");
    assert!(free_in <= SHORT, "the time until the first one is free: {free_in:?}");
    let claimed = eventually("a task whose time has come is free", async || {
        claim(&other, "brain", LONG, 9).await.pop()
    })
    .await;
    assert_eq!(claimed.id(), soon.id());
    let free_in = claim_below(&store, "brain", LONG, 9, 9).await.free_in.expect("one is delayed");
    assert!(free_in > HOUR / 2 && free_in <= HOUR, "the time until the other one is free: {free_in:?}");
    let mut cancelled = get(&store, late.id()).await;
    cancelled.cancel(clock::now()).expect("it is queued");
    store.commit(cancelled.clone(), effects_of(&cancelled)).await.expect("a delayed task can be cancelled");
    assert_eq!(claim_below(&store, "brain", LONG, 9, 9).await.free_in, None, "no task is delayed");
}

pub(super) async fn a_delay_is_one_of_the_stores_clock(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = queued(1);
    assert_eq!(record.run_at(), None);
    let stored = delayed(&store, &record, HOUR).await;
    assert!(stored.run_at().is_some(), "the stored record has its time");
    assert_eq!(get(&other, record.id()).await, stored, "what is returned is stored");
    // A time of day is stored as it is; one that has passed delays nothing.
    let at = clock::now() - HOUR;
    let passed = record_of(submission(Value::Null).run_at(at));
    put(&store, &passed).await;
    let claimed = claim(&other, "brain", LONG, 9).await;
    assert_eq!((ids(&claimed), claimed[0].run_at()), (vec![passed.id()], Some(at)));
}

pub(super) async fn a_retry_is_delayed_and_released_tasks_are_not(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = record_of(submission(Value::Null).attempts(3));
    delayed(&store, &record, Duration::ZERO).await;
    let mut run = claim(&store, "brain", LONG, 9).await.remove(0);
    run.release(clock::now()).expect("it runs");
    store.commit(run.clone(), effects_of(&run)).await.expect("it is released");
    let mut run = claim(&other, "other", LONG, 9).await.pop().expect("a released task is free at once");
    let error = TaskError::from(&Failure::of(ErrorKind::Unavailable));
    run.retry(error, clock::now()).expect("attempts are left");
    let effects = SideEffects { delay: Some(HOUR), ..effects_of(&run) };
    store.commit(run, effects).await.expect("another attempt is queued");
    assert!(claim(&other, "other", LONG, 9).await.is_empty(), "it waits for its time");
    let stored = get(&other, record.id()).await;
    assert_eq!((stored.attempt(), stored.attempts_left()), (2, 1));
    assert!(stored.run_at().is_some() && stored.task().error.is_some());
}

fn unique(input: u64, key: &str) -> TaskRecord {
    let submission: Submission = submission(RawJson::from(Value::from(input)));
    record_of(submission.unique(key))
}

/// Stores a task, or returns the one that has its key.
async fn create(store: &Store, record: &TaskRecord) -> TaskRecord {
    let stored = store.create(record.clone(), effects_of(record), MANY, MANY).await;
    TaskRecord::clone(&*stored.expect("it is stored, or is there"))
}

pub(super) async fn a_key_has_one_task_that_is_not_finished(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (first, second) = (unique(1, "daily"), unique(2, "daily"));
    assert_eq!(create(&store, &first).await.id(), first.id());
    let existing = create(&other, &second).await;
    assert_eq!(existing, get(&store, first.id()).await, "the task that has the key, as it is stored");
    assert!(store.get(second.id()).await.expect("it is read").is_none(), "nothing else is stored");
    assert_eq!(pending(&store).await.len(), 1, "nor are its effects");
    let full = store.create(second.clone(), effects_of(&second), 1, 0).await;
    assert_eq!(full.expect("the key counts before the limits").id(), first.id());
    assert_eq!(create(&store, &unique(3, "weekly")).await.input().as_str(), "3", "another key is free");
    // A task that runs has its key; one that has ended does not.
    let mut run = claim(&store, "brain", LONG, 1).await.remove(0);
    assert_eq!(create(&other, &second).await.id(), first.id());
    run.complete(TaskResult::new(1), clock::now()).expect("it runs");
    store.commit(run.clone(), effects_of(&run)).await.expect("it is completed");
    assert_eq!(create(&other, &second).await.id(), second.id());
}

pub(super) async fn a_key_is_one_of_a_caller_and_a_contract(subject: &Stores) {
    let (store, other) = pair(subject).await;
    create(&store, &unique(1, "daily")).await;
    let mut parts = ContextParts::new();
    parts.caller = Caller::known("somebody", ["suite:work"]);
    let of_caller = TaskRecord::new(submission(Value::Null).unique("daily"), &parts, LONG, clock::now());
    let mut of_contract = submission(Value::Null).unique("daily");
    of_contract.contract = contract("other.work");
    for record in [of_caller, record_of(of_contract), unique(4, "Daily")] {
        assert_eq!(create(&other, &record).await.id(), record.id());
    }
}

pub(super) async fn submissions_of_a_key_at_once_store_one_task(subject: &Stores) {
    let (one, two) = pair(subject).await;
    let stored = at_once((0..40).map(|number| {
        let (store, record) =
            (if number % 2 == 0 { one.clone() } else { two.clone() }, unique(number, "daily"));
        async move { create(&store, &record).await.id().clone() }
    }))
    .await;
    let ids: HashSet<_> = stored.into_iter().collect();
    assert_eq!(ids.len(), 1, "all return one task");
    assert_eq!(claim(&one, "brain", LONG, 99).await.len(), 1, "and one is stored");
}

pub(super) async fn a_key_is_refused_a_task_that_is_queued_again(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (first, second) = (unique(1, "daily"), unique(2, "daily"));
    create(&store, &first).await;
    let mut failed = claim(&store, "brain", LONG, 1).await.remove(0);
    failed.fail(TaskError::from(&Failure::of(ErrorKind::ArmFailed)), clock::now()).expect("it runs");
    store.commit(failed.clone(), effects_of(&failed)).await.expect("it has failed");
    create(&other, &second).await;
    let mut again = get(&store, first.id()).await;
    again.rerun(false, clock::now()).expect("it has failed");
    let before = state(&store, first.id()).await;
    let refused = store.commit(again.clone(), effects_of(&again)).await;
    assert!(matches!(refused, Err(StoreError::NotUnique)), "another one has the key: {refused:?}");
    assert_eq!(state(&store, first.id()).await, before, "nothing is stored");
    let mut cancelled = get(&other, second.id()).await;
    cancelled.cancel(clock::now()).expect("it is queued");
    other.commit(cancelled.clone(), effects_of(&cancelled)).await.expect("it is cancelled");
    store.commit(again.clone(), effects_of(&again)).await.expect("the key is free");
    assert_eq!(create(&other, &unique(3, "daily")).await.id(), first.id(), "it has its key again");
}

pub(super) async fn a_limit_holds_over_claims_at_once(subject: &Stores) {
    let (one, two) = pair(subject).await;
    for number in 0..40 {
        put(&one, &queued(number)).await;
    }
    let claimed = at_once((0..20).map(|number| {
        let store = if number % 2 == 0 { one.clone() } else { two.clone() };
        async move { claim_below(&store, &format!("brain-{number}"), LONG, 3, 7).await.tasks.len() }
    }))
    .await;
    assert_eq!(claimed.iter().sum::<usize>(), 7, "as many run as the limit allows");
    assert!(claim_below(&one, "brain", LONG, 9, 7).await.tasks.is_empty());
    assert_eq!(claim_below(&one, "brain", LONG, 9, 8).await.tasks.len(), 1, "a higher limit has room");
}

pub(super) async fn a_contract_at_its_limit_holds_up_no_other(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for _ in 0..5 {
        put(&store, &of_priority(Priority::Critical)).await;
    }
    let mut low = submission(Value::Null).priority(Priority::Low);
    low.contract = contract("other.work");
    let low = record_of(low);
    put(&store, &low).await;
    let claimed = claim_below(&other, "brain", LONG, 9, 2).await.tasks;
    let contracts: Vec<_> = claimed.iter().map(|(record, _)| record.contract().name()).collect();
    assert_eq!(contracts, ["suite.work", "suite.work", "other.work"]);
}

pub(super) async fn a_run_counts_until_its_lease_has_expired(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (first, second) = (queued(1), queued(2));
    put(&store, &first).await;
    assert_eq!(claim_below(&store, "lost", SHORT, 9, 1).await.tasks.len(), 1);
    put(&store, &second).await;
    let claimed = eventually("there is room when a lease has expired", async || {
        claim_below(&other, "brain", LONG, 9, 1).await.tasks.pop()
    })
    .await;
    assert_eq!((claimed.0.id(), claimed.0.run()), (first.id(), 2), "the older one is run again");
    assert!(claim_below(&other, "brain", LONG, 9, 1).await.tasks.is_empty(), "and counts");
}

pub(super) async fn a_change_that_makes_room_wakes_the_queue(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut run = running(&store, 1).await;
    let mut changes = other.queue_changes();
    changes.mark_unchanged();
    run.complete(TaskResult::new(1), clock::now()).expect("it runs");
    let effects = SideEffects { makes_room: true, ..effects_of(&run) };
    store.commit(run, effects).await.expect("it is completed");
    let woken = tokio::time::timeout(Duration::from_secs(30), changes.changed()).await;
    woken.expect("the queue changes").expect("the store is there");
}
