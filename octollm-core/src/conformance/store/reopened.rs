//! What is stored outlives the handles.

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::eventually,
    store::TaskStore,
    task::{TaskQuery, TaskStatus},
};

pub(super) async fn what_is_stored_is_there_after_reopening(subject: &Stores) {
    let store = subject.open().await;
    let record = running(&store, 1).await;
    let id = record.id().clone();
    store.append(&id, 1, entry(0, 0, output("0"))).await.expect("the entry is written");
    store.append_updates(&id, 1, 0, vec![chunk(&id, "a")]).await.expect("the updates are appended");
    let waiting = queued(2);
    put(&store, &waiting).await;
    let before = (state(&store, &id).await, state(&store, waiting.id()).await);
    drop(store);
    let store = subject.open().await;
    assert_eq!((state(&store, &id).await, state(&store, waiting.id()).await), before);
    let listed = store.list(&TaskQuery::default().status(TaskStatus::Queued), None).await;
    assert_eq!(listed.expect("tasks are listed").len(), 1);
    let updates = vec![chunk(&id, "a"), chunk(&id, "b")];
    store.append_updates(&id, 1, 0, updates).await.expect("the updates are appended");
    let stored = state(&store, &id).await.updates;
    assert_eq!(stored.len(), before.0.updates.len() + 1, "the store knows what was appended before");
    assert_eq!(stored.last().map(|update| update.seq()), Some(stored.len() as u64), "numbers go on");
    let held = store.renew("brain", LONG, &[(id.clone(), 1)]).await.expect("the lease is renewed");
    assert_eq!(held.len(), 1, "the lease is there");
    let mut done = record.clone();
    done.cancel(clock::now()).expect("it runs");
    store.commit(done.clone(), effects_of(&done)).await.expect("the change is stored");
    assert_eq!(ids(&claim(&store, "next", LONG, 9).await), [waiting.id()], "what waits is claimed");
}

pub(super) async fn a_lease_runs_on_while_nothing_is_open(subject: &Stores) {
    let store = subject.open().await;
    put(&store, &queued(1)).await;
    let record = claim(&store, "gone", SHORT, 1).await.remove(0);
    drop(store);
    tokio::time::sleep(SHORT * 2).await;
    let store = subject.open().await;
    let next = eventually("the lease expires", async || claim(&store, "next", LONG, 1).await.pop()).await;
    assert_eq!((next.id(), next.run()), (record.id(), 2));
}
