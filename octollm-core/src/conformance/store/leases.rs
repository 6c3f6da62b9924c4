//! Leases, and what a run may write.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::{at_once, eventually},
    id::TaskId,
    store::{StoreError, TaskStore},
    task::{TaskRecord, TaskResult, TaskStatus},
};

/// The task in its next run, once its lease has expired.
async fn taken_over(store: &Store, holder: &str) -> TaskRecord {
    eventually("the lease expires", async || claim(store, holder, LONG, 1).await.pop()).await
}

pub(super) async fn a_lease_holds_until_it_expires(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = queued(1);
    put(&store, &record).await;
    let before = Instant::now();
    let first = claim(&store, "first", SHORT, 1).await.remove(0);
    let second = taken_over(&other, "second").await;
    assert!(before.elapsed() >= SHORT, "nobody claims it before: {:?}", before.elapsed());
    assert_eq!((second.id(), second.run(), second.holder()), (record.id(), 2, Some("second")));
    let until = first.leased_until().expect("it has a lease");
    assert!(second.task().updated_at >= until, "the store's clock shows the end of the lease");
    assert_eq!(second.attempt(), 1, "it is no further attempt");
    let stored = state(&store, record.id()).await;
    let starts = stored.events.iter().filter(|event| event.event_type() == "task.started").count();
    assert_eq!(starts, 2, "each run has the event of its start");
}

pub(super) async fn renew_extends_a_lease(subject: &Stores) {
    let (store, other) = pair(subject).await;
    put(&store, &queued(1)).await;
    let record = claim(&store, "brain", 4 * SHORT, 1).await.remove(0);
    let run = [(record.id().clone(), 1)];
    let held = other.renew("brain", LONG, &run).await.expect("the lease is renewed");
    assert_eq!(held, run);
    let renewed = get(&store, record.id()).await.leased_until();
    let longer = renewed.zip(record.leased_until()).map(|(later, before)| later.duration_since(before));
    assert!(
        longer.is_some_and(|by| by.unsigned_abs() >= LONG / 2),
        "the record has the end of the lease: {longer:?}"
    );
    sleep(6 * SHORT).await;
    assert!(claim(&other, "other", LONG, 1).await.is_empty(), "the lease has not expired");
    let held = store.renew("brain", SHORT, &run).await.expect("the lease is renewed");
    assert_eq!(held, run, "a lease can be made shorter");
    let next = taken_over(&other, "other").await;
    assert_eq!(next.run(), 2, "and expires then");
}

pub(super) async fn renew_returns_the_runs_that_hold_their_tasks(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut records = Vec::new();
    for number in 0..4 {
        records.push(running(&store, number).await);
    }
    let id = |number: usize| records[number].id().clone();
    let mut ended = records[1].clone();
    ended.complete(TaskResult::new(1), clock::now()).expect("it runs");
    store.commit(ended.clone(), effects_of(&ended)).await.expect("the change is stored");
    let mut released = records[2].clone();
    released.release(clock::now()).expect("it runs");
    store.commit(released.clone(), effects_of(&released)).await.expect("the change is stored");
    let asked = [(id(3), 1), (id(3), 2), (id(0), 1), (id(0), 0), (id(1), 1), (id(2), 1), (TaskId::new(), 1)];
    let mut held = store.renew("brain", LONG, &asked).await.expect("leases are renewed");
    held.sort();
    assert_eq!(held, [(id(0), 1), (id(3), 1)], "the others are held no longer");
    assert_eq!(
        other.renew("other", LONG, &asked).await.expect("leases are renewed"),
        [],
        "another brain holds none"
    );
    assert_eq!(store.renew("brain", LONG, &[]).await.expect("leases are renewed"), []);
    assert_eq!(get(&store, &id(1)).await.status(), TaskStatus::Completed, "what has ended is as it was");
    assert_eq!(ids(&claim(&other, "other", LONG, 9).await), [&id(2)], "what was released is free");
}

pub(super) async fn a_renewal_is_no_change_of_the_record(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut record = running(&store, 1).await;
    let before = state(&store, record.id()).await;
    other.renew("brain", 2 * LONG, &[(record.id().clone(), 1)]).await.expect("the lease is renewed");
    let after = state(&store, record.id()).await;
    assert_eq!((after.events, after.updates), (before.events, before.updates), "it has no effects");
    assert_eq!(
        after.record.map(|record| record.revision()),
        Some(record.revision()),
        "it has the same revision"
    );
    record.complete(TaskResult::new(1), clock::now()).expect("it runs");
    store
        .commit(record.clone(), effects_of(&record))
        .await
        .expect("a change of before the renewal is stored");
}

/// Asserts that a run can store nothing.
async fn fenced(store: &Store, record: &TaskRecord, what: &str) {
    let (id, run) = (record.id(), record.run());
    let before = state(store, id).await;
    assert_conflict(what, store.append(id, run, entry(9, "late", output("9"))).await);
    assert_conflict(what, store.append_updates(id, run, 9, vec![chunk(id, "late")]).await);
    assert_conflict(what, store.append(id, run + 7, entry(9, "late", output("9"))).await);
    let mut late = record.clone();
    if late.status() == TaskStatus::Processing {
        late.complete(TaskResult::new("late"), clock::now()).expect("it runs");
        assert_conflict(what, store.commit(late, all_effects(record, 9)).await);
    }
    assert_eq!(state(store, id).await, before, "nothing of it is stored");
}

pub(super) async fn a_run_that_lost_its_task_stores_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    put(&store, &queued(1)).await;
    let lost = claim(&store, "first", SHORT, 1).await.remove(0);
    store.append(lost.id(), 1, entry(0, 0, output("0"))).await.expect("the entry of a run is written");
    let second = taken_over(&other, "second").await;
    fenced(&store, &lost, "what a lost run writes").await;
    fenced(&other, &lost, "what a lost run writes").await;
    other.append(second.id(), 2, entry(1, 1, output("1"))).await.expect("the next run writes");
    store
        .append_updates(second.id(), 2, 0, vec![chunk(second.id(), "a")])
        .await
        .expect("the next run writes");
}

pub(super) async fn a_run_that_has_ended_stores_nothing(subject: &Stores) {
    let (store, _) = pair(subject).await;
    type Change = fn(&mut TaskRecord);
    let ends: [Change; 3] = [
        |record| record.complete(TaskResult::new(1), clock::now()).expect("it runs"),
        |record| record.cancel(clock::now()).expect("it runs"),
        |record| record.release(clock::now()).expect("it runs"),
    ];
    for (number, end) in (0..).zip(ends) {
        let running = running(&store, number).await;
        let mut ended = running.clone();
        end(&mut ended);
        store.commit(ended.clone(), effects_of(&ended)).await.expect("the change is stored");
        fenced(&store, &running, &format!("what is written of a {} task", ended.status())).await;
    }
}

/// Runs that write until they have lost their task, while others take it over at once.
pub(super) async fn claims_and_late_writes_at_once_leave_one_run(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = queued(1);
    put(&store, &record).await;
    let brains = (0..6_u64).map(|number| {
        let (store, id) = (if number % 2 == 0 { store.clone() } else { other.clone() }, record.id().clone());
        async move {
            let mut written = Vec::new();
            for _ in 0..30 {
                let Some(claimed) =
                    claim(&store, &format!("brain {number}"), Duration::from_millis(5), 1).await.pop()
                else {
                    sleep(Duration::from_millis(2)).await;
                    continue;
                };
                let run = claimed.run();
                for step in 0..20_u32 {
                    // Each run writes its number to the same steps.
                    let entry = entry(u64::from(step), step, output(&run.to_string()));
                    match store.append(&id, run, entry).await {
                        Ok(()) => written.push((run, step)),
                        Err(StoreError::Conflict) => break,
                        Err(error) => panic!("an entry is neither written nor refused: {error:?}"),
                    }
                }
            }
            written
        }
    });
    let written: Vec<_> = at_once(brains).await.into_iter().flatten().collect();
    let journal = store.journal(record.id(), None, MANY).await.expect("the journal is read");
    let latest = |step: u32| written.iter().filter(|(_, of)| *of == step).map(|(run, _)| *run).max();
    for stored in &journal {
        let step = u32::try_from(stored.seq).unwrap_or(u32::MAX);
        let expected = entry(stored.seq, step, output(&latest(step).unwrap_or_default().to_string()));
        assert_eq!(content(stored), content(&expected), "the latest run that wrote a step has the entry");
    }
    assert_eq!(
        journal.len(),
        (0..20).filter(|step| latest(*step).is_some()).count(),
        "each that was written is there"
    );
}
