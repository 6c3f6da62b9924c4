//! The events of a task, and of a request that is given up.

use std::time::Duration;

use octollm::{
    bus::{EventBus, MemoryBus, Overflow, Signal, Subscription},
    context::Caller,
    error::Failure,
    event::Event,
    http::io::{Connector, Pipes},
    orchestrator::{Orchestrator, finished},
    prelude::*,
    task::{Submission, TaskEvent},
};
use tokio::{io::AsyncWriteExt, sync::oneshot};

use crate::{
    golden::{NOW, TASK, hold, pretty, read, read_json},
    ordered::Ordered,
    review::{Review, brain, caller, submit},
};

async fn received(events: &mut Subscription) -> Event {
    let Some(Signal::Event(event)) = events.next().await else { panic!("no event was published") };
    event
}

/// An event with an id and a time that are fixed.
fn fixed(written: &str) -> String {
    let fixed = Ordered::parse(written.as_bytes())
        .fix("id", "019a6d2f-9c00-7000-8000-000000000001")
        .fix("timestamp", NOW);
    pretty(&fixed)
}

/// The next event of a task, in its native form, with ids and times that are fixed.
async fn next(events: &mut Subscription) -> (String, String) {
    let event = received(events).await;
    let task = event.subject().unwrap().to_owned();
    (event.event_type().to_owned(), fixed(&pretty(&event).replace(&task, TASK)))
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
async fn of_a_task_with_another_attempt() {
    let bus = MemoryBus::new();
    let mut events =
        bus.subscribe("events:task:queued".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let brain = brain(bus);
    let submission = Submission::of(&Review { path: "busy".into() }).unwrap().attempts(2);
    brain.submit(submission, &caller()).await.unwrap();
    assert_eq!(next(&mut events).await.0, "task.queued");
    hold_next(&mut events, "task.queued", "event_task_retried.json").await;
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

/// Waits for ever.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.validate", output = (), timeout = "60s")]
struct Validate {}

struct Waits;

#[async_trait]
impl Arm<Validate> for Waits {
    async fn execute(&self, _: Validate, _: &Context) -> Result<(), ArmError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_request_that_is_given_up() {
    let (bus, pipes) = (MemoryBus::new(), Pipes::new());
    let all = "events:request:*".parse().unwrap();
    let mut events = bus.subscribe(all, Overflow::DropOldest(64)).await.unwrap();
    let ali = |_: &http::request::Parts| Ok::<_, Failure>(Caller::known("ali", ["code:validate"]));
    let server = Server::new("judge").arm(Waits).authenticate(ali).bus(bus);
    let server = server.listen(pipes.listen("judge").unwrap()).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(server.run_until(async {
        let _ = stopped.await;
    }));
    let mut caller = pipes.connect(&"http://judge".parse().unwrap()).await.unwrap();
    let request = format!(
        "POST /validate HTTP/1.1\r\nhost: judge\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\
         x-request-id: request-7\r\nx-correlation-id: review-7\r\noctollm-task-id: {TASK}\r\n\r\n{{}}"
    );
    caller.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_250)).await;
    stop.send(()).unwrap();
    server.await.unwrap();
    let event = received(&mut events).await;
    assert_eq!(event.event_type(), "request.dropped");
    hold("event_request_dropped.json", &fixed(&pretty(&event)));
    let event = read_json::<Event>("event_request_dropped.json");
    assert_eq!(pretty(&event), read("event_request_dropped.json"));
}

#[tokio::test]
async fn of_a_circuit_breaker_that_opens() {
    let bus = MemoryBus::new();
    let all = "events:circuit:*".parse().unwrap();
    let mut events = bus.subscribe(all, Overflow::DropOldest(64)).await.unwrap();
    let arms = Arms::builder().endpoint_serving::<Validate>("judge", "http://127.0.0.1:1");
    let arms = arms.breaker_failures(1).bus(bus).build().unwrap();
    arms.call(Validate {}).retry(0).await.unwrap_err();
    let event = received(&mut events).await;
    let wait = &event.data()["retry_after_ms"];
    assert!(wait.is_u64());
    let written = pretty(&event).replace(&format!("\"retry_after_ms\": {wait}"), "\"retry_after_ms\": 900");
    hold("event_circuit_opened.json", &fixed(&written));
}
