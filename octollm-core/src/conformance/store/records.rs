//! Tasks are created and changed together with their effects.

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::at_once,
    error::{ErrorKind, Failure},
    id::TaskId,
    json::RawJson,
    store::{StoreError, TaskStore},
    task::{TaskError, TaskRecord, TaskResult, TaskStatus, TaskUpdate},
};

/// The updates as a store numbers them from `first`.
fn numbered(updates: &[TaskUpdate], first: u64) -> Vec<TaskUpdate> {
    (first..).zip(updates).map(|(number, update)| update.clone().with_seq(number)).collect()
}

pub(super) async fn create_stores_the_task_with_its_effects(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = queued(1);
    let effects = all_effects(&record, 1);
    let stored = State {
        record: Some(record.clone()),
        journal: effects.journal.iter().map(content).collect(),
        updates: numbered(&effects.updates, 1),
        events: effects.events.clone(),
    };
    store.create(record.clone(), effects, MANY, MANY).await.expect("the task is stored");
    assert_eq!(state(&store, record.id()).await, stored, "the task and its effects are stored");
    assert_eq!(state(&other, record.id()).await, stored, "another handle reads the same");
}

pub(super) async fn create_refuses_an_id_that_exists(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = queued(1);
    put(&store, &record).await;
    let before = state(&store, record.id()).await;
    for store in [&store, &other] {
        let again = store.create(record.clone(), all_effects(&record, 2), MANY, MANY).await;
        assert_conflict("a second task with an id", again);
    }
    assert_eq!(state(&store, record.id()).await, before, "nothing of a refused task is stored");
}

async fn refused(store: &Store, what: &str, max: usize, max_bytes: usize) {
    let record = queued(9);
    let created = store.create(record.clone(), all_effects(&record, 1), max, max_bytes).await;
    assert_full(what, created);
    let stored = state(store, record.id()).await;
    assert!(
        stored.record.is_none() && stored.events.is_empty() && stored.updates.is_empty(),
        "nothing of a refused task is stored: {stored:?}"
    );
}

pub(super) async fn create_refuses_what_exceeds_the_number_of_queued_tasks(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for number in 0..3 {
        let record = queued(number);
        store.create(record.clone(), effects_of(&record), 3, MANY).await.expect("there is room for three");
    }
    refused(&store, "the fourth of three tasks", 3, MANY).await;
    refused(&other, "the fourth of three tasks at another handle", 3, MANY).await;
    refused(&store, "a task where none may wait", 0, MANY).await;
    claim(&store, "brain", LONG, 1).await;
    let record = queued(4);
    store.create(record.clone(), effects_of(&record), 3, MANY).await.expect("one that runs does not wait");
    let record = queued(5);
    store.create(record.clone(), effects_of(&record), usize::MAX, usize::MAX).await.expect("without a limit");
}

pub(super) async fn create_refuses_what_exceeds_the_bytes_of_queued_tasks(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let record = record_of(submission(RawJson::of("x".repeat(998).as_str()).expect("valid JSON")));
    let size = record.size();
    assert_full(
        "a task of too many bytes",
        store.create(record.clone(), effects_of(&record), 9, size - 1).await,
    );
    store.create(record.clone(), effects_of(&record), 9, size).await.expect("it has exactly the bytes");
    refused(&store, "a task above the bytes of all", 9, size).await;
    let small = queued(1);
    let both = size + small.size();
    store.create(small.clone(), effects_of(&small), 9, both).await.expect("both have exactly the bytes");
    claim(&store, "brain", LONG, 9).await;
    let next = record_of(submission(RawJson::of("x".repeat(998).as_str()).expect("valid JSON")));
    store.create(next.clone(), effects_of(&next), 9, size).await.expect("those that run do not wait");
}

pub(super) async fn creating_at_once_does_not_exceed_the_limit(subject: &Stores) {
    let (one, two) = pair(subject).await;
    let created = at_once((0..60).map(|number| {
        let (store, record) = (if number % 2 == 0 { one.clone() } else { two.clone() }, queued(number));
        async move {
            match store.create(record.clone(), effects_of(&record), 20, MANY).await {
                Ok(stored) => Some(stored.id().clone()),
                Err(StoreError::Full) => None,
                Err(error) => panic!("a task is neither stored nor refused: {error:?}"),
            }
        }
    }))
    .await;
    let created: Vec<_> = created.into_iter().flatten().collect();
    assert_eq!(created.len(), 20, "as many are stored as may wait");
    assert_eq!(claim(&one, "brain", LONG, MANY).await.len(), 20, "and all of those are there");
}

pub(super) async fn an_unknown_task_has_nothing(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let record = queued(1);
    let (id, effects) = (TaskId::new(), all_effects(&record, 1));
    let nothing = State { record: None, journal: Vec::new(), updates: Vec::new(), events: Vec::new() };
    assert_eq!(state(&store, &id).await, nothing);
    assert_not_found("a change of an unknown task", store.commit(record.clone(), effects).await);
    assert_eq!(state(&store, record.id()).await, nothing, "nothing of it is stored");
    assert_not_found("an entry", store.append(&id, 1, entry(0, 0, output("1"))).await);
    assert_not_found("an update", store.append_updates(&id, 1, 0, vec![chunk(&id, "part")]).await);
    let held = store.renew("brain", LONG, &[(id, 1)]).await.expect("leases are renewed");
    assert_eq!(held, [], "it is held by nobody");
}

pub(super) async fn commit_stores_the_next_revision_with_its_effects(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut record = running(&store, 1).await;
    let before = state(&store, record.id()).await;
    record.complete(TaskResult::new(7), clock::now()).expect("it runs");
    let effects = all_effects(&record, 1);
    store.commit(record.clone(), effects.clone()).await.expect("the change is stored");
    let revision = record.revision() + 1;
    record.set_revision(revision);
    let first = before.updates.len() as u64 + 1;
    let stored = State {
        record: Some(record.clone()),
        journal: effects.journal.iter().map(content).collect(),
        updates: [before.updates, numbered(&effects.updates, first)].concat(),
        events: [before.events, effects.events].concat(),
    };
    assert_eq!(state(&store, record.id()).await, stored, "the change and its effects are stored");
    assert_eq!(state(&other, record.id()).await, stored, "another handle reads the same");
}

pub(super) async fn commit_refuses_an_older_revision_with_its_effects(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let changed = |number| {
        let mut record = record.clone();
        record.complete(TaskResult::new(number), clock::now()).expect("it runs");
        record
    };
    store.commit(changed(1), all_effects(&changed(1), 1)).await.expect("the first change is stored");
    let before = state(&store, record.id()).await;
    for store in [&store, &other] {
        let mut effects = all_effects(&changed(2), 2);
        effects.discarded.push("step 1".into());
        assert_conflict("a change of an older revision", store.commit(changed(2), effects).await);
    }
    assert_eq!(state(&store, record.id()).await, before, "nothing of a refused change is stored");
}

pub(super) async fn one_of_many_commits_of_a_revision_is_stored(subject: &Stores) {
    let (one, two) = pair(subject).await;
    for round in 0..8 {
        let record = running(&one, round).await;
        let committed = at_once((0..8).map(|number| {
            let (store, mut record) =
                (if number % 2 == 0 { one.clone() } else { two.clone() }, record.clone());
            record.complete(TaskResult::new(number), clock::now()).expect("it runs");
            let mut effects = effects_of(&record);
            effects.events.push(event(record.id(), number));
            async move { (number, store.commit(record, effects).await) }
        }))
        .await;
        let (stored, refused): (Vec<_>, Vec<_>) =
            committed.into_iter().partition(|(_, result)| result.is_ok());
        for (_, result) in refused {
            assert_conflict("a later one", result);
        }
        let [(number, _)] = &stored[..] else { panic!("one change is stored, not {}", stored.len()) };
        let state = state(&two, record.id()).await;
        let result = state.record.and_then(|record| record.into_task().result).map(|result| result.output);
        assert_eq!(result, Some(RawJson::of(number).expect("valid JSON")), "the one that is stored is read");
        let of_suite = state.events.iter().filter(|event| event.event_type() == "suite.happened");
        let data: Vec<_> = of_suite.map(|event| event.data().clone()).collect();
        assert_eq!(data, [serde_json::Value::from(*number)], "its events alone are stored");
    }
}

pub(super) async fn a_refused_commit_fails_no_other(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let mut records = Vec::new();
    for number in 0..40 {
        records.push(running(&store, number).await);
    }
    let committed = at_once(records.iter().enumerate().map(|(number, record)| {
        let (store, mut record) = (store.clone(), record.clone());
        match number % 4 {
            1 => record.set_revision(record.revision() - 1),
            2 => record = queued(1),
            _ => {}
        }
        record.claim("late", clock::now(), clock::now()).ok();
        let effects = effects_of(&record);
        async move { (number, store.commit(record, effects).await) }
    }))
    .await;
    for (number, result) in committed {
        match number % 4 {
            1 => assert_conflict("a change of an older revision", result),
            2 => assert_not_found("a change of an unknown task", result),
            _ => result.expect("a change of its own is stored"),
        }
    }
}

pub(super) async fn a_task_goes_through_all_its_statuses(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let id = record.id().clone();
    let change = async |store: &Store, change: &dyn Fn(&mut TaskRecord)| {
        let mut record = get(store, &id).await;
        change(&mut record);
        store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    };
    change(&store, &|record| record.release(clock::now()).expect("it runs")).await;
    assert_eq!(ids(&claim(&other, "other", LONG, 1).await), [&id], "a released task is free");
    let error = TaskError::from(&Failure::new(ErrorKind::Unavailable, "not now"));
    change(&other, &|record| record.fail(error.clone(), clock::now()).expect("it runs")).await;
    assert!(claim(&store, "brain", LONG, 1).await.is_empty(), "a failed task is not free");
    change(&store, &|record| record.rerun(true, clock::now()).expect("it has failed")).await;
    assert_eq!(ids(&claim(&store, "brain", LONG, 1).await), [&id], "a rerun is free");
    change(&other, &|record| record.cancel(clock::now()).expect("it runs")).await;
    let record = get(&store, &id).await;
    assert_eq!((record.status(), record.run(), record.attempt()), (TaskStatus::Cancelled, 3, 2));
    let statuses: Vec<_> = state(&store, &id).await.updates.iter().map(status_of).collect();
    let [queued, processing] = [TaskStatus::Queued, TaskStatus::Processing];
    let expected = [queued, processing, queued, processing, TaskStatus::Failed, queued, processing];
    assert_eq!(statuses, [&expected[..], &[TaskStatus::Cancelled]].concat());
}

fn status_of(update: &TaskUpdate) -> TaskStatus {
    match update {
        TaskUpdate::Status { status, .. } => *status,
        other => panic!("a change has an update of its status, not {other:?}"),
    }
}
