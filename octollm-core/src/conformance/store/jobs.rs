//! Delays, uniqueness keys, and limits of contracts.

use std::{collections::HashSet, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::{at_once, eventually, in_time},
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::TaskId,
    parts::{Caller, ContextParts},
    store::{Claim, Claimed, SideEffects, StoreError, TaskStore},
    task::{Submission, TaskRecord, TaskResult},
};

/// Claims with these limits.
async fn claim_below(store: &Store, limits: &[(&str, usize)], lease: Duration, limit: usize) -> Claimed {
    let contracts = ["suite.work", "suite.other"].map(contract);
    let max_running: Vec<(ContractRef, usize)> =
        limits.iter().map(|(name, most)| (contract(name), *most)).collect();
    let claim = Claim {
        holder: "brain",
        contracts: &contracts,
        lease,
        limit,
        max_running: &max_running,
        source: "suite",
    };
    store.claim(&claim).await.expect("tasks are claimed")
}

fn claimed_ids(claimed: &Claimed) -> Vec<TaskId> {
    claimed.tasks.iter().map(|(record, _)| record.id().clone()).collect()
}

pub(super) async fn a_delayed_task_is_free_when_its_time_has_come(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (delayed, created) = (queued(1), Instant::now());
    let effects = SideEffects { delay: Some(2 * SHORT), ..effects_of(&delayed) };
    let stored = store.create(delayed.clone(), effects, MANY, MANY).await.expect("the task is stored");
    assert_eq!(*stored, get(&other, delayed.id()).await, "it is returned as it is stored");
    assert!(stored.run_at().is_some(), "the store sets its time");
    let later = queued(2);
    put(&store, &later).await;
    assert_eq!(
        claimed_ids(&claim_below(&store, &[], LONG, 1).await),
        [later.id().clone()],
        "others do not wait"
    );
    let claimed = claim_below(&other, &[], LONG, 9).await;
    assert!(claimed.tasks.is_empty(), "it is not free yet");
    let free_in = claimed.free_in.expect("the time until it is free is known");
    assert!(free_in <= 2 * SHORT, "{free_in:?}");
    let next = eventually("its time comes", async || claim(&other, "brain", LONG, 1).await.pop()).await;
    assert_eq!(next.id(), delayed.id());
    assert!(created.elapsed() >= 2 * SHORT, "not before: {:?}", created.elapsed());
    assert_eq!(claim_below(&store, &[], LONG, 9).await.free_in, None, "nothing is delayed any more");
}

pub(super) async fn a_change_delays_its_task(subject: &Stores) {
    let (store, other) = pair(subject).await;
    put(&store, &record_of(submission(Value::Null).attempts(2))).await;
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    let failure = Failure::of(ErrorKind::Unavailable);
    record.retry((&failure).into(), clock::now()).expect("it has an attempt left");
    let (committed, effects) = (Instant::now(), SideEffects::of_retry(&record, 2 * SHORT, "suite"));
    store.commit(record.clone(), effects).await.expect("the change is stored");
    assert!(claim(&other, "brain", LONG, 1).await.is_empty(), "it is not free yet");
    let next = eventually("its time comes", async || claim(&other, "brain", LONG, 1).await.pop()).await;
    assert_eq!((next.id(), next.attempt(), next.run()), (record.id(), 2, 2));
    assert!(committed.elapsed() >= 2 * SHORT, "not before: {:?}", committed.elapsed());
}

fn keyed(key: &str) -> Submission {
    submission(Value::from(key)).unique(key)
}

async fn create(store: &Store, record: &TaskRecord) -> TaskId {
    let stored = store.create(record.clone(), all_effects(record, 1), MANY, MANY).await;
    stored.expect("a task is stored or is there").id().clone()
}

pub(super) async fn a_key_of_a_task_that_is_not_finished_returns_that_task(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (first, second) = (record_of(keyed("a")), record_of(keyed("a")));
    assert_eq!(create(&store, &first).await, *first.id());
    let before = state(&store, first.id()).await;
    assert_eq!(create(&other, &second).await, *first.id(), "the task with the key is returned");
    let full = store.create(second.clone(), all_effects(&second, 1), 0, 0).await.expect("it needs no room");
    assert_eq!(full.id(), first.id());
    assert_eq!(state(&other, second.id()).await.record, None, "the second is not stored");
    assert!(state(&other, second.id()).await.events.is_empty(), "and none of its effects");
    assert_eq!(state(&store, first.id()).await, before, "the first is as it was");
    let mut parts = ContextParts::new();
    parts.caller = Caller::known("somebody", ["suite:work"]);
    let mut of_other_contract = keyed("a");
    of_other_contract.contract = contract("suite.other");
    let others = [
        TaskRecord::new(keyed("a"), &parts, LONG, clock::now()),
        record_of(of_other_contract),
        record_of(keyed("A")),
    ];
    for record in &others {
        assert_eq!(create(&store, record).await, *record.id(), "a key is one of a caller and a contract");
    }
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    assert_eq!(create(&other, &second).await, *first.id(), "a task that runs has its key");
    record.complete(TaskResult::new(1), clock::now()).expect("it runs");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    assert_eq!(create(&other, &second).await, *second.id(), "a finished one has it no longer");
}

pub(super) async fn of_many_creates_with_a_key_one_is_stored(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for round in 0..4 {
        let created = at_once((0..16).map(|number| {
            let store = if number % 2 == 0 { store.clone() } else { other.clone() };
            let record = record_of(keyed(&format!("key-{round}")));
            async move { create(&store, &record).await }
        }))
        .await;
        let ids: HashSet<_> = created.into_iter().collect();
        assert_eq!(ids.len(), 1, "all are answered with one task");
        let claimed = claim(&store, "brain", LONG, MANY).await;
        assert_eq!(claimed.len(), 1, "one is stored");
        assert!(ids.contains(claimed[0].id()), "it is the one that was returned");
    }
}

pub(super) async fn a_rerun_whose_key_is_taken_is_not_unique(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let (first, second) = (record_of(keyed("a")), record_of(keyed("a")));
    create(&store, &first).await;
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    record.fail((&Failure::of(ErrorKind::Unavailable)).into(), clock::now()).expect("it runs");
    store.commit(record, SideEffects::default()).await.expect("the change is stored");
    create(&store, &second).await;
    let before = state(&store, first.id()).await;
    let mut record = get(&store, first.id()).await;
    record.rerun(false, clock::now()).expect("it has failed");
    let refused = store.commit(record.clone(), all_effects(&record, 2)).await;
    assert!(matches!(refused, Err(StoreError::NotUnique)), "another task has the key: {refused:?}");
    assert_eq!(state(&store, first.id()).await, before, "nothing of a refused change is stored");
    let mut other = claim(&store, "brain", LONG, 1).await.remove(0);
    other.cancel(clock::now()).expect("it runs");
    store.commit(other, SideEffects::default()).await.expect("the change is stored");
    store.commit(record, SideEffects::default()).await.expect("then the key is free");
}

pub(super) async fn claim_observes_the_limits_of_contracts(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut records = Vec::new();
    for number in 0..5 {
        records.push(queued(number));
        put(&store, &records[records.len() - 1]).await;
    }
    let mut of_other = submission(Value::Null);
    of_other.contract = contract("suite.other");
    let of_other = record_of(of_other);
    put(&store, &of_other).await;
    let limits = [("suite.work", 2)];
    let claimed = claim_below(&store, &limits, LONG, 9).await;
    let expected = [records[0].id(), records[1].id(), of_other.id()].map(Clone::clone);
    assert_eq!(claimed_ids(&claimed), expected, "tasks above the limit hold up no others");
    assert!(claim_below(&other, &limits, LONG, 9).await.tasks.is_empty(), "the limit is one of all brains");
    let mut ended = TaskRecord::clone(&claimed.tasks[0].0);
    let mut changes = other.queue_changes();
    ended.complete(TaskResult::new(1), clock::now()).expect("it runs");
    let effects = SideEffects { makes_room: true, ..effects_of(&ended) };
    store.commit(ended, effects).await.expect("the change is stored");
    in_time("room below a limit", changes.changed()).await.expect("changes are reported");
    let next = claimed_ids(&claim_below(&other, &limits, SHORT, 9).await);
    assert_eq!(next, [records[2].id().clone()], "the end of one makes room for one");
    sleep(2 * SHORT).await;
    let next = claimed_ids(&claim_below(&other, &limits, LONG, 9).await);
    assert_eq!(
        next,
        [records[2].id().clone()],
        "an expired lease does not count, and its task is the oldest"
    );
    assert!(claim_below(&store, &[("suite.work", 0)], LONG, 9).await.tasks.is_empty());
    assert_eq!(claim_below(&store, &[], LONG, 9).await.tasks.len(), 2, "without a limit all are claimed");
}

pub(super) async fn claimers_at_once_do_not_exceed_a_limit(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for number in 0..60 {
        put(&store, &queued(number)).await;
    }
    let claimed = at_once((0..12).map(|number| {
        let store = if number % 2 == 0 { store.clone() } else { other.clone() };
        async move { claim_below(&store, &[("suite.work", 7)], LONG, 1 + number % 4).await.tasks.len() }
    }))
    .await;
    let more = claim_below(&store, &[("suite.work", 7)], LONG, 60).await.tasks.len();
    assert_eq!(claimed.iter().sum::<usize>() + more, 7, "all of them together claim as many as may run");
}
