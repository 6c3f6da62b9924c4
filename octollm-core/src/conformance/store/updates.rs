//! The live updates of a task.

use std::collections::HashSet;

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::at_once,
    id::TaskId,
    store::TaskStore,
    task::{TaskRecord, TaskUpdate},
};

async fn append(store: &Store, record: &TaskRecord, first: u64, texts: &[&str]) {
    let updates = texts.iter().map(|text| chunk(record.id(), text)).collect();
    store.append_updates(record.id(), record.run(), first, updates).await.expect("the updates are appended");
}

async fn after(store: &Store, id: &TaskId, after: u64, limit: usize) -> Vec<TaskUpdate> {
    store.updates_after(id, after, limit).await.expect("updates are read")
}

/// The numbers of the chunks, and their texts. Asserts that the numbers have no hole.
async fn chunks(store: &Store, id: &TaskId) -> Vec<String> {
    let updates = after(store, id, 0, MANY).await;
    let numbers: Vec<_> = updates.iter().map(TaskUpdate::seq).collect();
    let expected: Vec<_> = (1..=updates.len() as u64).collect();
    assert_eq!(numbers, expected, "updates are numbered from 1");
    let text = |update: &TaskUpdate| match update {
        TaskUpdate::Chunk { data, .. } => data.read().ok(),
        _ => None,
    };
    updates.iter().filter_map(text).collect()
}

/// Ends the run, and starts the next one.
async fn next_run(store: &Store, record: &TaskRecord) -> TaskRecord {
    let mut record = get(store, record.id()).await;
    record.release(clock::now()).expect("it runs");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    claim(store, "brain", LONG, 1).await.remove(0)
}

pub(super) async fn updates_are_numbered_over_all_runs(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    append(&store, &record, 0, &["a", "b"]).await;
    append(&other, &record, 2, &["c"]).await;
    let record = next_run(&store, &record).await;
    append(&other, &record, 0, &["d"]).await;
    append(&store, &record, 1, &["e", "f"]).await;
    assert_eq!(chunks(&store, record.id()).await, ["a", "b", "c", "d", "e", "f"]);
    assert!(chunks(&other, record.id()).await.len() == 6, "another handle reads the same");
}

pub(super) async fn updates_that_were_appended_before_are_skipped(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    for store in [&store, &other] {
        append(store, &record, 0, &["a", "b"]).await;
    }
    append(&store, &record, 1, &["b", "c", "d"]).await;
    append(&other, &record, 0, &["a"]).await;
    append(&store, &record, 4, &[]).await;
    append(&store, &record, 3, &["d", "e"]).await;
    assert_eq!(chunks(&store, record.id()).await, ["a", "b", "c", "d", "e"]);
    let record = next_run(&store, &record).await;
    for _ in 0..2 {
        append(&store, &record, 0, &["a again"]).await;
    }
    assert_eq!(
        chunks(&other, record.id()).await,
        ["a", "b", "c", "d", "e", "a again"],
        "a run has its own positions"
    );
}

pub(super) async fn updates_of_a_change_are_skipped_as_well(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut record = running(&store, 1).await;
    append(&store, &record, 0, &["a", "b"]).await;
    let id = record.id().clone();
    record.release(clock::now()).expect("it runs");
    let mut effects = effects_of(&record);
    effects.updates = ["b", "c"].iter().map(|text| chunk(&id, text)).collect();
    effects.first_update = Some(1);
    store.commit(record.clone(), effects).await.expect("the change is stored");
    let record = claim(&store, "brain", LONG, 1).await.remove(0);
    append(&other, &record, 0, &["d"]).await;
    let mut changed = record.clone();
    changed.cancel(clock::now()).expect("it runs");
    let mut effects = effects_of(&changed);
    effects.updates.push(chunk(&id, "of nobody"));
    store.commit(changed, effects).await.expect("the change is stored");
    assert_eq!(chunks(&store, &id).await, ["a", "b", "c", "d", "of nobody"]);
}

pub(super) async fn updates_are_read_after_a_number(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    append(&store, &record, 0, &["a", "b", "c"]).await;
    let all = after(&store, record.id(), 0, MANY).await;
    let count = all.len() as u64;
    for number in 0..=count {
        let rest = &all[usize::try_from(number).unwrap_or(0)..];
        assert_eq!(after(&other, record.id(), number, MANY).await, rest, "after {number}");
        assert_eq!(
            after(&store, record.id(), number, 2).await,
            rest[..rest.len().min(2)],
            "two after {number}"
        );
    }
    for number in [count + 1, u64::MAX] {
        assert_eq!(after(&store, record.id(), number, usize::MAX).await, all, "{number} is read as 0");
    }
    assert_eq!(after(&store, record.id(), 0, 0).await, []);
}

pub(super) async fn updates_that_are_dropped_are_a_gap(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let before = after(&store, record.id(), 0, MANY).await.len() as u64;
    let text = "x".repeat(1_000);
    for batch in 0..40 {
        append(&store, &record, batch * 50, &[&text[..]; 50]).await;
    }
    let total = before + 2_000;
    for number in [0, 7, total - 1, total] {
        let read = after(&other, record.id(), number, MANY).await;
        let missed = match read.first() {
            Some(TaskUpdate::Gap { task_id, seq, missed }) => {
                assert_eq!((task_id, *seq), (record.id(), number + missed), "the last one that is missing");
                assert!(*missed > 0, "a gap has updates that are missing");
                *missed
            }
            _ => 0,
        };
        let numbers: Vec<_> = read.iter().skip(usize::from(missed > 0)).map(TaskUpdate::seq).collect();
        let expected: Vec<_> = (number + missed + 1..=total).collect();
        assert_eq!(numbers, expected, "after {number}, {missed} are missing and the others are there");
    }
    let latest = after(&store, record.id(), total - 1, MANY).await;
    assert!(matches!(&latest[..], [TaskUpdate::Chunk { .. }]), "the latest update is there: {latest:?}");
}

pub(super) async fn appending_updates_at_once_gives_each_a_number(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (one, two) = (running(&store, 1).await, running(&store, 2).await);
    let appended = (0..20_u64).map(|number| {
        let (store, record) = (
            if number % 4 < 2 { store.clone() } else { other.clone() },
            if number % 2 == 0 { one.clone() } else { two.clone() },
        );
        async move {
            // Each repeats what was appended: the later positions come first, or nothing is new.
            for _ in 0..3 {
                append(&store, &record, 0, &["a", "b", "c", "d"]).await;
            }
        }
    });
    at_once(appended).await;
    for record in [&one, &two] {
        assert_eq!(chunks(&store, record.id()).await, ["a", "b", "c", "d"]);
    }
    let mut records = Vec::new();
    for number in 0..30 {
        records.push(running(&store, number).await);
    }
    at_once(records.iter().map(|record| {
        let (store, record) = (store.clone(), record.clone());
        async move { append(&store, &record, 0, &["only"]).await }
    }))
    .await;
    let mut ids = HashSet::new();
    for record in &records {
        assert_eq!(chunks(&other, record.id()).await, ["only"]);
        assert!(ids.insert(record.id()), "each is a task of its own");
    }
}
