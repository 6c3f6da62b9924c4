//! Operations whose future is dropped at any of its waits take effect as a whole or not at all.

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::{dropped_after, eventually, in_time},
    store::{Claim, TaskStore},
    task::{TaskRecord, TaskResult},
};

/// Runs an operation for each number of polls, until it ends by itself. `check` is asked for a new state after each, until it
/// is satisfied: an operation may end after its future was dropped.
async fn at_every_wait<T>(
    what: &str,
    operation: impl AsyncFn(usize) -> Option<T>,
    check: impl AsyncFn(usize) -> bool,
) {
    for polls in 0.. {
        let ended = operation(polls).await.is_some();
        eventually(
            &format!("{what} that is dropped at its wait {polls} is whole or not there"),
            async || check(polls).await.then_some(()),
        )
        .await;
        if ended {
            return;
        }
    }
}

fn tasks() -> Vec<TaskRecord> {
    (0..200).map(queued).collect()
}

/// The stores of cases that drop futures, and whether they still work.
async fn still_works(store: &Store) {
    in_time("what follows", put(store, &queued(1))).await;
    let claimed = in_time("what follows", claim(store, "brain", LONG, MANY)).await;
    assert!(!claimed.is_empty(), "a task that was stored after that is claimed");
}

pub(super) async fn a_dropped_create_is_whole_or_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let records = tasks();
    let create = async |polls: usize| {
        let record = records[polls].clone();
        let effects = all_effects(&record, 1);
        dropped_after(polls, store.create(record, effects, MANY, MANY)).await
    };
    at_every_wait("a new task", create, async |polls| {
        let stored = state(&other, records[polls].id()).await;
        let parts = (stored.updates.len(), stored.events.len(), stored.journal.len());
        if stored.record.is_some() { parts == (2, 2, 1) } else { parts == (0, 0, 0) }
    })
    .await;
    still_works(&store).await;
}

pub(super) async fn a_dropped_commit_is_whole_or_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut records = Vec::new();
    for number in 0..50 {
        records.push(running(&store, number).await);
    }
    let commit = async |polls: usize| {
        let mut record = records[polls].clone();
        record.complete(TaskResult::new(1), clock::now()).expect("it runs");
        let effects = all_effects(&record, 1);
        dropped_after(polls, store.commit(record, effects)).await
    };
    at_every_wait("a change", commit, async |polls| {
        let stored = state(&other, records[polls].id()).await;
        let parts = (stored.updates.len(), stored.events.len(), stored.journal.len());
        let changed = stored.record.is_some_and(|record| record.status().is_finished());
        if changed { parts == (4, 4, 1) } else { parts == (2, 2, 0) }
    })
    .await;
    still_works(&store).await;
}

pub(super) async fn a_dropped_claim_is_whole_or_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = queued(1);
    put(&store, &record).await;
    let contracts = [contract("suite.work")];
    let claim_it = async |polls: usize| {
        let holder = format!("dropped {polls}");
        let (holder, contracts) = (&*holder, &contracts[..]);
        let claim = Claim { holder, contracts, lease: SHORT, limit: 1, max_running: &[], source: "suite" };
        // The end that counts is that of a claim which found the task.
        dropped_after(polls, store.claim(&claim))
            .await
            .and_then(Result::ok)
            .filter(|claimed| !claimed.tasks.is_empty())
    };
    // A lease may have to expire before a claim finds the task again, which many polls await.
    at_every_wait("a claim", claim_it, async |_| {
        let stored = state(&other, record.id()).await;
        let runs = stored.record.map_or(0, |record| record.run()) as usize;
        (stored.updates.len(), stored.events.len()) == (1 + runs, 1 + runs)
    })
    .await;
    eventually("what was claimed is free when its lease has expired", async || {
        claim(&other, "next", LONG, 1).await.pop()
    })
    .await;
    still_works(&store).await;
}

pub(super) async fn a_dropped_append_is_whole_or_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let append = async |polls: usize| {
        let entry = entry(polls as u64, "step", output(&polls.to_string()));
        dropped_after(polls, store.append(record.id(), 1, entry)).await
    };
    at_every_wait("an entry", append, async |polls| {
        state(&other, record.id()).await.journal.len() <= polls.min(1) + 1
    })
    .await;
    let last = state(&other, record.id()).await.journal;
    assert_eq!(last.len(), 1, "the step has one entry");
    still_works(&store).await;
}

pub(super) async fn dropped_updates_are_whole_or_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let updates = || vec![chunk(record.id(), "a"), chunk(record.id(), "b"), chunk(record.id(), "c")];
    let append =
        async |polls: usize| dropped_after(polls, store.append_updates(record.id(), 1, 0, updates())).await;
    at_every_wait("updates", append, async |_| {
        [2, 5].contains(&state(&other, record.id()).await.updates.len())
    })
    .await;
    let mut done = record.clone();
    done.complete(TaskResult::new(1), clock::now()).expect("it runs");
    store.commit(done.clone(), effects_of(&done)).await.expect("the change is stored");
    let stored = state(&other, record.id()).await.updates.len();
    assert_eq!(stored, 6, "the repeated updates are there once, and the last one after them");
    still_works(&store).await;
}

pub(super) async fn a_dropped_renewal_is_whole_or_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let before = get(&store, record.id()).await.leased_until();
    let run = [(record.id().clone(), 1)];
    let renew = async |polls: usize| dropped_after(polls, store.renew("brain", 3 * LONG, &run)).await;
    at_every_wait("a renewal", renew, async |_| get(&other, record.id()).await.leased_until() >= before)
        .await;
    assert!(get(&other, record.id()).await.leased_until() > before, "one that ended has renewed it");
    still_works(&store).await;
}

pub(super) async fn dropped_reads_and_publications_change_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    store.append(record.id(), 1, entry(0, 0, output("0"))).await.expect("the entry is written");
    let before = state(&store, record.id()).await;
    let unchanged = async |_| state(&other, record.id()).await == before;
    at_every_wait("a read", async |polls| dropped_after(polls, store.get(record.id())).await, unchanged)
        .await;
    let query = crate::task::TaskQuery::default();
    at_every_wait("a list", async |polls| dropped_after(polls, store.list(&query, None)).await, unchanged)
        .await;
    let journal = async |polls| dropped_after(polls, store.journal(record.id(), None, 9)).await;
    at_every_wait("a journal", journal, unchanged).await;
    let updates = async |polls| dropped_after(polls, store.updates_after(record.id(), 0, 9)).await;
    at_every_wait("updates", updates, unchanged).await;
    let events = async |polls| dropped_after(polls, store.pending_events(RELAY, 9)).await;
    at_every_wait("events", events, unchanged).await;
    let ids: Vec<_> = before.events.iter().map(|event| event.id().to_owned()).collect();
    let published = async |polls| dropped_after(polls, store.published(&ids)).await;
    at_every_wait("a publication", published, async |_| {
        [0, ids.len()].contains(&pending(&other).await.len())
    })
    .await;
    assert!(pending(&other).await.is_empty(), "one that ended has deleted the events");
    still_works(&store).await;
}
