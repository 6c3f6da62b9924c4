//! Which tasks are claimed.

use std::{collections::HashSet, time::Duration};

use serde_json::Value;

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::{at_once, eventually},
    id::TaskId,
    parts::ContextParts,
    store::TaskStore,
    task::{Priority, TaskRecord, TaskResult, TaskStatus},
};

pub(super) async fn claim_starts_a_run_and_stores_it(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = queued(1);
    put(&store, &record).await;
    let before = state(&store, record.id()).await;
    let claimed = claim(&store, "brain", LONG, 5).await;
    let [started] = &claimed[..] else { panic!("one task is claimed, not {}", claimed.len()) };
    assert_eq!((started.id(), started.status()), (record.id(), TaskStatus::Processing));
    assert_eq!((started.run(), started.holder()), (1, Some("brain")));
    assert_eq!(started.revision(), record.revision() + 1, "a claim is a change");
    let (now, until) = (started.task().updated_at, started.leased_until().expect("it has a lease"));
    assert_eq!(until.duration_since(now).unsigned_abs(), LONG, "the lease is that long by the store's clock");
    let deadline = started.deadline_at().expect("it has a deadline");
    assert_eq!(deadline.duration_since(now).unsigned_abs(), record.time_limit(), "and the time limit");
    let stored = state(&other, record.id()).await;
    assert_eq!(stored.record.as_ref(), Some(started), "what is returned is stored");
    let types: Vec<_> = stored.events.iter().map(|event| event.event_type()).collect();
    assert_eq!(types, ["task.queued", "task.started"], "the event of the start is stored");
    assert_eq!(stored.updates.len(), before.updates.len() + 1, "and its update");
    assert!(claim(&other, "other", LONG, 5).await.is_empty(), "nobody else claims it");
}

pub(super) async fn claim_takes_the_highest_priority_and_then_the_oldest(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let priorities = [Priority::Medium, Priority::Low, Priority::Critical, Priority::High];
    let mut records = Vec::new();
    for priority in priorities.into_iter().chain(priorities) {
        let record = of_priority(priority);
        put(&store, &record).await;
        records.push(record);
    }
    // In the order of their ids from here.
    records.sort_by_key(|record| (std::cmp::Reverse(record.priority()), record.id().clone()));
    let mut claimed = claim(&store, "brain", LONG, 3).await;
    claimed.extend(claim(&other, "other", LONG, 2).await);
    claimed.extend(claim(&store, "brain", LONG, 9).await);
    assert_eq!(ids(&claimed), ids(&records));
}

pub(super) async fn claim_takes_the_contracts_that_it_names(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let names = ["suite.work", "suite.work@2", "suite.worker", "other.work", "suite.work@12"];
    for name in names {
        let mut submission = submission(Value::from(name));
        submission.contract = contract(name);
        put(&store, &record_of(submission)).await;
    }
    assert!(claim_of(&store, "brain", &[], LONG, 9).await.is_empty(), "no contract, no task");
    assert!(claim_of(&store, "brain", &["work.suite"], LONG, 9).await.is_empty());
    let two = claim_of(&store, "brain", &["other.work", "suite.work@2"], LONG, 9).await;
    let inputs: Vec<_> = two.iter().map(|(record, _)| record.input().to_value()).collect();
    assert_eq!(inputs, [Value::from("suite.work@2"), Value::from("other.work")]);
    assert_eq!(claim(&store, "brain", LONG, 9).await.len(), 1, "a version is a contract of its own");
    assert_eq!(claim_of(&store, "brain", &names, LONG, 9).await.len(), 2, "the others wait");
}

pub(super) async fn claim_takes_no_more_than_its_limit(subject: &Stores) {
    let (store, _) = pair(subject).await;
    for number in 0..5 {
        put(&store, &queued(number)).await;
    }
    for (limit, expected) in [(0, 0), (1, 1), (3, 3), (usize::MAX, 1), (1, 0)] {
        assert_eq!(claim(&store, "brain", LONG, limit).await.len(), expected, "with a limit of {limit}");
    }
}

pub(super) async fn claimers_at_once_take_each_run_once(subject: &Stores) {
    const TASKS: u64 = 500;
    let (store, other) = pair(subject).await;
    let created = (0..TASKS).map(|number| {
        let store = store.clone();
        async move { put(&store, &queued(number)).await }
    });
    at_once(created).await;
    let claimers = (0..8).map(|number| {
        let (store, holder) =
            (if number % 2 == 0 { store.clone() } else { other.clone() }, format!("brain {number}"));
        async move {
            let mut claimed = Vec::new();
            // Each ends some runs, so that changes and claims are mixed.
            loop {
                let page = claim(&store, &holder, LONG, 1 + number).await;
                if page.is_empty() {
                    return claimed;
                }
                for mut record in page {
                    assert_eq!(record.holder(), Some(&*holder));
                    claimed.push((record.id().clone(), record.run()));
                    if claimed.len() % 3 == 0 {
                        record.complete(TaskResult::new(1), clock::now()).expect("it runs");
                        store
                            .commit(record.clone(), effects_of(&record))
                            .await
                            .expect("its own change is stored");
                    }
                }
            }
        }
    });
    let runs: Vec<_> = at_once(claimers).await.into_iter().flatten().collect();
    let tasks: HashSet<_> = runs.iter().map(|(id, _)| id).collect();
    assert!(runs.iter().all(|(_, run)| *run == 1), "each is in its first run");
    assert_eq!((runs.len(), tasks.len()), (500, 500), "each task is claimed, and once");
}

pub(super) async fn claimers_at_once_share_expired_leases(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for number in 0..100 {
        put(&store, &queued(number)).await;
    }
    assert_eq!(claim(&store, "gone", Duration::from_millis(1), 100).await.len(), 100);
    let claimers = (0..8).map(|number| {
        let (store, holder) =
            (if number % 2 == 0 { store.clone() } else { other.clone() }, format!("brain {number}"));
        async move {
            let mut claimed: Vec<(TaskId, u32)> = Vec::new();
            for _ in 0..40 {
                let page = claim(&store, &holder, LONG, 5).await;
                claimed.extend(page.iter().map(|record| (record.id().clone(), record.run())));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            claimed
        }
    });
    let runs: Vec<_> = at_once(claimers).await.into_iter().flatten().collect();
    let tasks: HashSet<_> = runs.iter().map(|(id, _)| id).collect();
    assert!(runs.iter().all(|(_, run)| *run == 2), "each is in its second run");
    assert_eq!((runs.len(), tasks.len()), (100, 100), "each task is taken over, and once");
}

pub(super) async fn the_time_left_is_that_to_the_deadline(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let limit = Duration::from_secs(100);
    let limited = TaskRecord::new(submission(Value::Null), &ContextParts::new(), limit, clock::now());
    put(&store, &limited).await;
    let (first, left) = claim_of(&store, "gone", &["suite.work"], SHORT, 1).await.remove(0);
    assert_eq!(left, limit, "at the first start all of it");
    let (second, left) = eventually("the lease expires", async || {
        claim_of(&store, "brain", &["suite.work"], LONG, 1).await.pop()
    })
    .await;
    assert_eq!(second.deadline_at(), first.deadline_at(), "a run that takes over has the same deadline");
    let by_clock = second.deadline_at().map(|at| at.duration_since(second.task().updated_at).unsigned_abs());
    assert_eq!(Some(left), by_clock, "the time left is by the store's clock");
    assert!(left <= limit - SHORT, "the time of the first run is over: {left:?}");
    let brief = TaskRecord::new(submission(Value::Null), &ContextParts::new(), SHORT / 2, clock::now());
    put(&store, &brief).await;
    claim(&store, "gone", SHORT, 1).await;
    let (_, left) = eventually("the lease expires", async || {
        claim_of(&store, "brain", &["suite.work"], LONG, 1).await.pop()
    })
    .await;
    assert_eq!(left, Duration::ZERO, "after the deadline nothing is left");
}

pub(super) async fn a_released_task_is_free_at_once(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut record = running(&store, 1).await;
    put(&store, &queued(2)).await;
    record.release(clock::now()).expect("it runs");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    let claimed = claim(&other, "other", LONG, 1).await;
    assert_eq!(ids(&claimed), [record.id()], "it has its place before the younger one");
    assert_eq!(claimed[0].run(), 2);
}
