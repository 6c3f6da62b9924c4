//! Events wait until a relay has published them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{Stores, fixture::*};
use crate::{
    clock,
    conformance::support::{WAIT, at_once, eventually},
    event::Event,
    store::TaskStore,
    task::TaskResult,
};

async fn ask(store: &Store, relay: &str, limit: usize) -> Vec<String> {
    let events = store.pending_events(relay, limit).await.expect("events are read");
    events.iter().map(|event| event.id().to_owned()).collect()
}

async fn publish(store: &Store, ids: &[String]) {
    store.published(ids).await.expect("events are deleted");
}

/// Stores a task with so many events. Their ids.
async fn put_events(store: &Store, count: u64) -> Vec<String> {
    let record = queued(1);
    let mut effects = effects_of(&record);
    effects.events = (0..count).map(|number| event(record.id(), number)).collect();
    let ids = effects.events.iter().map(|event| event.id().to_owned()).collect();
    store.create(record, effects, MANY, MANY).await.expect("the task is stored");
    ids
}

pub(super) async fn events_wait_in_the_order_of_their_changes(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut expected = Vec::new();
    for count in [3, 0, 1, 2] {
        expected.extend(put_events(&store, count).await);
        expected.extend(put_events(&other, 1).await);
    }
    assert_eq!(ask(&store, "one", MANY).await, expected, "in the order of their changes");
    assert_eq!(ask(&store, "one", MANY).await, expected, "they stay until they are published");
    assert_eq!(ask(&other, "one", 4).await, expected[..4], "the first ones within the limit");
    assert_eq!(ask(&store, "one", usize::MAX).await, expected);
    let events = store.pending_events("one", 1).await.expect("events are read");
    assert_eq!((events[0].event_type(), events[0].source()), ("suite.happened", "suite"));
}

pub(super) async fn published_deletes_the_events_that_it_names(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let ids = put_events(&store, 6).await;
    publish(&store, &[ids[4].clone(), "unknown".to_owned(), ids[1].clone()]).await;
    let left = [&ids[0], &ids[2], &ids[3], &ids[5]].map(String::clone);
    assert_eq!(ask(&other, "one", MANY).await, left);
    for store in [&store, &other] {
        publish(store, &ids[..3]).await;
        assert_eq!(ask(store, "one", MANY).await, left[2..], "publishing twice is publishing once");
    }
    publish(&store, &[]).await;
    publish(&other, &ids).await;
    assert!(ask(&store, "one", MANY).await.is_empty());
    let more = put_events(&store, 2).await;
    assert_eq!(ask(&store, "one", MANY).await, more, "later ones are there");
}

pub(super) async fn one_relay_has_the_events_at_a_time(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let ids = put_events(&store, 4).await;
    assert_eq!(ask(&store, "one", 2).await, ids[..2]);
    for store in [&store, &other] {
        assert!(ask(store, "two", MANY).await.is_empty(), "another relay has none meanwhile");
    }
    publish(&store, &ids[..2]).await;
    assert!(ask(&other, "two", MANY).await.is_empty(), "the first one has not published all");
    assert_eq!(ask(&store, "one", MANY).await, ids[2..]);
    publish(&store, &ids[2..]).await;
    assert!(ask(&store, "one", MANY).await.is_empty());
    let more = put_events(&store, 1).await;
    assert_eq!(ask(&other, "two", MANY).await, more, "then another one has its turn");
    assert!(ask(&store, "one", MANY).await.is_empty());
}

pub(super) async fn a_relay_that_does_not_call_loses_its_turn(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let ids = put_events(&store, 2).await;
    assert_eq!(ask(&store, "gone", MANY).await, ids);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(ask(&store, "gone", MANY).await, ids, "it has its turn, and prolongs it");
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(8) {
        let begun = Instant::now();
        let early = ask(&other, "next", MANY).await;
        assert!(
            early.is_empty() || begun.elapsed() > Duration::from_secs(1),
            "the turn of the first one is not over"
        );
        sleep(Duration::from_millis(500)).await;
    }
    let taken = eventually("another relay has its turn", async || {
        Some(ask(&other, "next", MANY).await).filter(|events| !events.is_empty())
    });
    assert_eq!(taken.await, ids, "it has all that is not published");
    assert!(asked.elapsed() < Duration::from_secs(20), "after ten seconds: {:?}", asked.elapsed());
    assert!(ask(&store, "gone", MANY).await.is_empty(), "and the first one has none");
}

pub(super) async fn events_of_many_writers_are_all_published_in_order(subject: &Stores) {
    const WRITERS: u64 = 8;
    const TASKS: usize = 40;
    let (store, other) = pair(subject).await;
    let writing = Arc::new(AtomicUsize::new(WRITERS as usize));
    let writers = (0..WRITERS).map(|number| {
        let (store, writing) = (if number % 2 == 0 { store.clone() } else { other.clone() }, writing.clone());
        async move {
            let holder = format!("brain {number}");
            for _ in 0..TASKS {
                put(&store, &queued(number)).await;
                // It may be the task of another writer.
                for mut record in claim(&store, &holder, LONG, 1).await {
                    record.complete(TaskResult::new(1), clock::now()).expect("it runs");
                    store
                        .commit(record.clone(), effects_of(&record))
                        .await
                        .expect("its own change is stored");
                }
            }
            writing.fetch_sub(1, Ordering::SeqCst);
        }
    });
    let relay = tokio::spawn(relay(store.clone(), writing.clone()));
    at_once(writers).await;
    let published = relay.await.expect("the relay does not panic");
    let mut by_task: HashMap<String, Vec<&str>> = HashMap::new();
    for event in &published {
        by_task.entry(event.subject().unwrap_or_default().to_owned()).or_default().push(event.event_type());
    }
    assert_eq!(by_task.len(), WRITERS as usize * TASKS, "each task has events");
    for (task, types) in by_task {
        let all = ["task.queued", "task.started", "task.completed"];
        assert!(all.starts_with(&types), "the events of {task} are published in order, each once: {types:?}");
    }
}

/// Publishes until all writers have ended and nothing waits. It deletes each page as it came, as a brain does.
async fn relay(store: Store, writing: Arc<AtomicUsize>) -> Vec<Event> {
    let (mut published, end) = (Vec::new(), Instant::now() + WAIT);
    loop {
        let last = writing.load(Ordering::SeqCst) == 0;
        let events = store.pending_events(RELAY, 17).await.expect("events are read");
        if events.is_empty() && last {
            return published;
        }
        let ids: Vec<_> = events.iter().map(|event| event.id().to_owned()).collect();
        publish(&store, &ids).await;
        published.extend(events);
        assert!(Instant::now() < end, "the events are published within {WAIT:?}");
        tokio::task::yield_now().await;
    }
}
