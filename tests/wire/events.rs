//! The events of a task.

use octollm::{
    bus::{MemoryBus, Overflow, Signal, Subscription},
    event::Event,
    orchestrator::{Orchestrator, finished},
    prelude::*,
    task::TaskEvent,
};

use crate::{
    golden::{NOW, TASK, hold, pretty, read, read_json},
    ordered::Ordered,
    review::{brain, caller, submit},
};

/// The next event of a task, in its native form, with ids and times that are fixed.
async fn next(events: &mut Subscription) -> (String, String) {
    let Some(Signal::Event(event)) = events.next().await else { panic!("no event was published") };
    let task = event.subject().unwrap().to_owned();
    let written = pretty(&event).replace(&task, TASK);
    let fixed = Ordered::parse(written.as_bytes())
        .fix("id", "019a6d2f-9c00-7000-8000-000000000001")
        .fix("timestamp", NOW);
    (event.event_type().to_owned(), pretty(&fixed))
}

/// Holds the next event to its file, which is read as an event and as a change of a task, and written the same.
async fn hold_next(events: &mut Subscription, event_type: &str, name: &str) {
    let (found, written) = next(events).await;
    assert_eq!(found, event_type);
    hold(name, &written);
    let event = read_json::<Event>(name);
    assert_eq!(pretty(&event), read(name), "{name}");
    let change = TaskEvent::try_from(&event).unwrap();
    assert_eq!(change.to_event("orchestrator").unwrap().data(), event.data(), "{name}");
}

#[tokio::test(start_paused = true)]
async fn of_a_task_that_succeeds_and_one_that_fails() {
    let bus = MemoryBus::new();
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let brain = brain(bus);
    let done = submit(&brain, "src/lib.rs").await.task_id;
    finished(&brain, &done, &caller()).await.unwrap();
    hold_next(&mut events, "task.queued", "event_task_queued.json").await;
    hold_next(&mut events, "task.started", "event_task_started.json").await;
    hold_next(&mut events, "task.progress", "event_task_progress.json").await;
    hold_next(&mut events, "task.completed", "event_task_completed.json").await;

    let failed = submit(&brain, "busy").await.task_id;
    finished(&brain, &failed, &caller()).await.unwrap();
    for event_type in ["task.queued", "task.started", "task.progress"] {
        assert_eq!(next(&mut events).await.0, event_type);
    }
    hold_next(&mut events, "task.failed", "event_task_failed.json").await;
}

#[tokio::test(start_paused = true)]
async fn of_a_task_that_is_cancelled() {
    let bus = MemoryBus::new();
    let mut events = bus.subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let brain = brain(bus);
    let task = submit(&brain, "src/lib.rs").await.task_id;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    brain.cancel(&task, &caller()).await.unwrap();
    for event_type in ["task.queued", "task.started"] {
        assert_eq!(next(&mut events).await.0, event_type);
    }
    hold_next(&mut events, "task.cancelled", "event_task_cancelled.json").await;
}
