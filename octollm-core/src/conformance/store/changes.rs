//! Who waits for a change is woken.

use tokio::sync::watch;

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::in_time,
    error::{ErrorKind, Failure},
    store::TaskStore,
    task::{TaskRecord, TaskResult},
};

/// Waits for a change. Changes that did not happen may be reported as well, so only the absence of one is a fault.
async fn woken(what: &str, changes: &mut watch::Receiver<()>) {
    in_time(what, changes.changed())
        .await
        .unwrap_or_else(|_| panic!("{what}: nobody reports changes any more"));
}

async fn commit(store: &Store, record: &mut TaskRecord) {
    store.commit(record.clone(), effects_of(record)).await.expect("the change is stored");
    record.set_revision(record.revision() + 1);
}

pub(super) async fn a_free_task_wakes_the_queue(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let mut changes = store.queue_changes();
    let mut record = queued(1);
    put(&store, &record).await;
    woken("a new task", &mut changes).await;
    record = claim(&store, "brain", LONG, 1).await.remove(0);
    changes.mark_unchanged();
    record.release(clock::now()).expect("it runs");
    commit(&store, &mut record).await;
    woken("a released task", &mut changes).await;
    record = claim(&store, "brain", LONG, 1).await.remove(0);
    record.fail((&Failure::of(ErrorKind::Unavailable)).into(), clock::now()).expect("it runs");
    commit(&store, &mut record).await;
    changes.mark_unchanged();
    record.rerun(false, clock::now()).expect("it has failed");
    commit(&store, &mut record).await;
    woken("a rerun", &mut changes).await;
    // Several receivers are woken, and a waiting one is.
    let waiting: Vec<_> = (0..3).map(|_| store.queue_changes()).collect();
    let waiting: Vec<_> =
        waiting.into_iter().map(|mut changes| tokio::spawn(async move { changes.changed().await })).collect();
    tokio::task::yield_now().await;
    put(&store, &queued(2)).await;
    for waiting in waiting {
        in_time("a waiting receiver", waiting)
            .await
            .expect("it does not panic")
            .expect("changes are reported");
    }
}

pub(super) async fn an_event_wakes_the_relays(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let mut changes = store.event_changes();
    put(&store, &queued(1)).await;
    woken("the event of a new task", &mut changes).await;
    changes.mark_unchanged();
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    woken("the event of a claim", &mut changes).await;
    changes.mark_unchanged();
    record.complete(TaskResult::new(1), clock::now()).expect("it runs");
    commit(&store, &mut record).await;
    woken("the event of a change", &mut changes).await;
    assert_eq!(pending(&store).await.len(), 3);
}

/// Goes through the life of a task at one handle, and asserts that each step wakes a receiver of another one.
async fn watch_a_task(store: &Store, watching: &Store) {
    let mut record = queued(1);
    put(store, &record).await;
    let mut changes = watching.task_changes(record.id());
    record = claim(store, "brain", LONG, 1).await.remove(0);
    woken("the start of a run", &mut changes).await;
    changes.mark_unchanged();
    let updates = vec![chunk(record.id(), "part")];
    store.append_updates(record.id(), 1, 0, updates).await.expect("the updates are appended");
    woken("an update", &mut changes).await;
    changes.mark_unchanged();
    record.complete(TaskResult::new(1), clock::now()).expect("it runs");
    commit(store, &mut record).await;
    woken("the end of a task", &mut changes).await;
}

pub(super) async fn a_change_of_a_task_wakes_its_watchers(subject: &Stores) {
    let (store, _) = pair(subject).await;
    // Others that watch, and receivers that are gone, are in nobody's way.
    let watching: Vec<_> = (0..300).map(|number| store.task_changes(queued(number).id())).collect();
    watch_a_task(&store, &store).await;
    drop(watching);
    watch_a_task(&store, &store).await;
}

pub(super) async fn a_change_by_another_handle_wakes(subject: &Stores) {
    let (store, other) = pair(subject).await;
    watch_a_task(&store, &other).await;
    let (mut queue, mut events) = (other.queue_changes(), other.event_changes());
    put(&store, &queued(1)).await;
    woken("a new task", &mut queue).await;
    woken("the event of a new task", &mut events).await;
}
