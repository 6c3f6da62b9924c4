//! Lists of tasks.

use std::sync::Arc;

use serde_json::Value;

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::at_once,
    id::TaskId,
    parts::{Caller, ContextParts, Grant},
    store::TaskStore,
    task::{TaskQuery, TaskRecord, TaskResult, TaskStatus},
};

async fn list(store: &Store, query: TaskQuery, owner: Option<&Caller>) -> Vec<TaskId> {
    let listed = store.list(&query, owner).await.expect("tasks are listed");
    listed.iter().map(|record| record.id().clone()).collect()
}

/// Stores so many tasks. Their ids, newest first.
async fn many(store: &Store, count: u64) -> Vec<TaskId> {
    let mut ids = Vec::new();
    for number in 0..count {
        let record = queued(number);
        put(store, &record).await;
        ids.push(record.id().clone());
    }
    ids.reverse();
    ids
}

pub(super) async fn lists_are_newest_first_and_have_a_limit(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let ids = many(&store, 120).await;
    assert_eq!(list(&other, TaskQuery::default(), None).await, ids[..20], "without a limit there are 20");
    for limit in [0, 1, 110, usize::MAX] {
        let listed = list(&store, TaskQuery::default().limit(limit), None).await;
        assert_eq!(listed, ids[..limit.min(120)], "a limit of {limit} applies as it is");
    }
}

pub(super) async fn lists_select_by_status(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let mut by_status = Vec::new();
    for status in TaskStatus::ALL {
        for number in 0..2 {
            let record = queued(number);
            let id = record.id().clone();
            put(&store, &record).await;
            by_status.push((status, id.clone()));
            if status == TaskStatus::Queued {
                continue;
            }
            let mut record = claim_one(&store, &id).await;
            match status {
                TaskStatus::Completed => record.complete(TaskResult::new(1), clock::now()),
                TaskStatus::Failed => {
                    let failure = crate::error::Failure::of(crate::error::ErrorKind::ArmFailed);
                    record.fail((&failure).into(), clock::now())
                }
                TaskStatus::Cancelled => record.cancel(clock::now()),
                _ => continue,
            }
            .expect("it runs");
            store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
        }
    }
    for status in TaskStatus::ALL {
        let of_status = by_status.iter().filter(|(of, _)| *of == status).map(|(_, id)| id.clone());
        let expected: Vec<_> = of_status.rev().collect();
        assert_eq!(list(&store, TaskQuery::default().status(status), None).await, expected, "{status}");
        let second = TaskQuery::default().status(status).after(expected[0].clone());
        assert_eq!(list(&store, second, None).await, expected[1..], "{status}, after the newest");
    }
    let unknown = list(&store, TaskQuery::default().status(TaskStatus::Unknown), None).await;
    assert_eq!(unknown, [], "no task has a status that is not known");
}

/// Starts a run of this task alone.
async fn claim_one(store: &Store, id: &TaskId) -> TaskRecord {
    let mut record = get(store, id).await;
    let now = clock::now();
    record.claim("brain", now + LONG, now).expect("it is queued");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    record.set_revision(record.revision() + 1);
    record
}

pub(super) async fn lists_select_by_owner(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let issued = |issuer: &str, subject: &str| {
        Caller::Known(Arc::new(Grant::new(subject, ["suite:work"]).issuer(issuer)))
    };
    let owners = [
        Caller::Unchecked,
        Caller::Anonymous,
        Caller::known("me", ["suite:work"]),
        Caller::known("Me", ["suite:work"]),
        Caller::known("", ["suite:work"]),
        issued("", "me"),
        issued("here", "me"),
        issued("heremE", ""),
        issued("there", "me"),
        Caller::known("anonymous", ["suite:work"]),
    ];
    let mut ids = Vec::new();
    for owner in &owners {
        let mut parts = ContextParts::new();
        parts.caller = owner.clone();
        let record = TaskRecord::new(submission(Value::Null), &parts, LONG, clock::now());
        put(&store, &record).await;
        ids.push(record.id().clone());
    }
    for (owner, id) in owners.iter().zip(&ids) {
        let listed = list(&other, TaskQuery::default(), Some(owner)).await;
        assert_eq!(listed, std::slice::from_ref(id), "{owner:?} has one task");
    }
    let other_scopes = Caller::known("me", ["a:b", "c:d"]);
    let listed = list(&store, TaskQuery::default(), Some(&other_scopes)).await;
    assert_eq!(listed, [ids[2].clone()], "the scopes of an owner do not count");
    assert_eq!(list(&store, TaskQuery::default(), Some(&Caller::known("you", ["a:b"]))).await, []);
    ids.reverse();
    assert_eq!(list(&store, TaskQuery::default(), None).await, ids, "everybody has all");
}

pub(super) async fn lists_continue_after_a_task(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let older = many(&store, 10).await;
    let nowhere = TaskId::new();
    let mut ids = many(&store, 11).await;
    ids.extend(older);
    let mut pages = Vec::new();
    let mut query = TaskQuery::default().limit(4);
    loop {
        let page = list(&store, query.clone(), None).await;
        let Some(last) = page.last() else { break };
        query = query.after(last.clone());
        pages.extend(page);
    }
    assert_eq!(pages, ids, "the pages have each task once");
    let after = TaskQuery::default().limit(99).after(nowhere);
    assert_eq!(list(&store, after, None).await, ids[11..], "a task that is gone has its place in the order");
}

pub(super) async fn many_tasks_are_listed_and_claimed(subject: &Stores) {
    let (store, other) = pair(subject).await;
    const COUNT: usize = 3_000;
    for batch in 0..COUNT / 100 {
        let created = (0..100).map(|number| {
            let (store, record) = (store.clone(), queued(batch as u64 * 100 + number));
            async move { put(&store, &record).await }
        });
        at_once(created).await;
    }
    let listed = list(&other, TaskQuery::default().limit(MANY), None).await;
    assert_eq!(listed.len(), COUNT);
    assert!(listed.is_sorted_by(|newer, older| newer > older), "they are newest first");
    let mut claimed = Vec::new();
    while claimed.len() < COUNT {
        let page = claim(&store, "brain", LONG, 700).await;
        assert!(!page.is_empty(), "{} of {COUNT} are claimed", claimed.len());
        claimed.extend(page.iter().map(|record| record.id().clone()));
    }
    claimed.reverse();
    assert!(claimed == listed, "the oldest are claimed first");
    let runs: Vec<_> = claimed.into_iter().map(|id| (id, 1)).collect();
    let held = store.renew("brain", LONG, &runs).await.expect("leases are renewed");
    assert_eq!(held.len(), COUNT, "all are held");
}
