//! What a server gives up at its end: it is dropped, counted and published.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, request::Parts};
use http_body_util::Full;
use octollm_core::{
    bus::{EventBus, MemoryBus, Overflow, Signal, Subscription},
    error::{ErrorKind, Failure},
    event::Event,
    idempotency::MemoryIdempotencyStore,
    metrics,
    parts::{Caller, Grant},
};
use octollm_http::{Server, server::HttpBody};
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::{layer::layer_fn, service_fn};

use crate::{
    arms::{Echo, Wait, Worker, network},
    peer::{Peer, post},
    places::caller,
};

const TASK: &str = "task_3fK9aZ0qLw81bXyT";

struct Running {
    peer: Peer,
    worker: Worker,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

/// A server of its own, since the metrics are those of the process.
fn running(id: &str, set: impl FnOnce(Server) -> Server) -> Running {
    let worker = Worker::default();
    let server = Server::new(id).arm::<Echo>(worker.clone()).arm::<Wait>(worker.clone());
    let (peer, acceptor) = network();
    let bound = set(server).listen(acceptor).unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(bound.run_until(async {
        let _ = stopped.await;
    }));
    Running { peer, worker, stop, server }
}

fn by_name(head: &Parts) -> Result<Caller, Failure> {
    match head.headers.get("x-name").map(|name| name.to_str().unwrap()) {
        Some(name) => Ok(Caller::Known(Grant::new(name, ["work:wait"]).issuer("idp").into())),
        None => Err(Failure::of(ErrorKind::Unauthenticated)),
    }
}

async fn dropped(bus: &MemoryBus) -> Subscription {
    bus.subscribe("events:request:dropped".parse().unwrap(), Overflow::DropOldest(5000)).await.unwrap()
}

/// The events that are there.
async fn published(events: &mut Subscription) -> Vec<Event> {
    let mut found = Vec::new();
    while let Ok(Some(Signal::Event(event))) =
        tokio::time::timeout(Duration::from_millis(1), events.next()).await
    {
        found.push(event);
    }
    found
}

fn given_up(server: &str, route: &str) -> Option<f64> {
    let labels = format!("method=\"POST\",reason=\"grace\",route=\"{route}\",server=\"{server}\"");
    let line = format!("octollm_http_given_up_total{{{labels}}} ");
    metrics::page().lines().find_map(|found| found.strip_prefix(&line)?.parse().ok())
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_at_the_end_is_counted_and_published() {
    let bus = MemoryBus::new();
    let mut events = dropped(&bus).await;
    let Running { peer, worker, stop, server } = running("gives-up", |server| {
        server.bus(bus.clone()).authenticate(by_name).body_timeout(Duration::from_secs(60))
    });
    let mut one = peer.connect().await;
    let ids =
        format!("X-Request-ID: r1\r\nX-Correlation-ID: c1\r\nX-Name: ali\r\nOctollm-Task-Id: {TASK}\r\n");
    one.write(post("/wait", &ids, "{}")).await;
    let mut calls = caller(peer, 65_535).await;
    let execute = Request::post("http://x/execute").header("content-type", "application/json");
    let execute = execute.header("x-name", "bob").header("x-request-id", "r2");
    let body = json!({ "contract": "work.wait", "input": {} }).to_string();
    let two = tokio::spawn(calls.send_request(execute.body(Full::from(body)).unwrap()));
    // A request whose caller leaves before the end, one that is answered within the grace, and one whose body never comes.
    let mut gone = peer.connect().await;
    gone.write(post("/wait", "X-Name: gone\r\n", "{}")).await;
    worker.0.begun(3).await;
    drop(gone);
    worker.0.dropped(1).await;
    let mut answered = peer.connect().await;
    answered.write(post("/wait", "X-Name: ali\r\n", r#"{"ms":20000}"#)).await;
    let mut slow = peer.connect().await;
    worker.0.begun(4).await;
    stop.send(()).unwrap();
    let half = post("/wait", "X-Name: eve\r\nX-Request-ID: r3\r\n", "{}");
    slow.write(&half[..half.len() - 1]).await;
    assert_eq!(answered.answer().await.status, 200);
    let begun = Instant::now();
    server.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 10, "30 s of grace, of which 20 had passed");
    worker.0.dropped(3).await;
    assert!(two.await.unwrap().is_err());
    assert_eq!(one.rest().await, b"");

    let mut events = published(&mut events).await;
    events.sort_by_key(|event| event.subject().unwrap().to_owned());
    let data = |event: &Event| {
        let mut data = event.data().clone();
        assert!(data["running_ms"].as_u64().unwrap() >= 29_000, "{data}");
        data["running_ms"] = 0.into();
        data
    };
    let expected = |request: &str, route: &str, caller: &str, task: Option<&str>| -> Value {
        json!({
            "request_id": request, "method": "POST", "route": route, "contract": "work.wait", "issuer": "idp",
            "caller": caller, "task_id": task, "running_ms": 0, "reason": "grace",
        })
    };
    assert_eq!(events.len(), 3, "{events:?}");
    assert_eq!(data(&events[0]), expected("r1", "/wait", "ali", Some(TASK)));
    assert_eq!(data(&events[1]), expected("r2", "/execute", "bob", None));
    assert_eq!(data(&events[2]), expected("r3", "/wait", "eve", None));
    assert_eq!((events[0].source(), events[0].correlation_id()), ("gives-up", Some("c1")));
    assert_eq!((given_up("gives-up", "/wait"), given_up("gives-up", "/execute")), (Some(2.0), Some(1.0)));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_running_requests_gives_nothing_up() {
    let bus = MemoryBus::new();
    let mut events = dropped(&bus).await;
    let Running { peer, stop, server, .. } = running("gives-nothing-up", |server| server.bus(bus.clone()));
    let mut idle = peer.connect().await;
    idle.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    assert_eq!(idle.answer().await.status, 200);
    stop.send(()).unwrap();
    server.await.unwrap();
    assert_eq!(published(&mut events).await.len(), 0);
    assert!(!metrics::page().contains("reason=\"grace\",route=\"/echo\",server=\"gives-nothing-up\""));
}

/// A bus that never accepts an event.
struct Stuck;

#[async_trait::async_trait]
impl EventBus for Stuck {
    async fn publish(&self, _: Event) -> Result<(), octollm_core::bus::BusError> {
        pending().await
    }

    async fn subscribe(
        &self,
        _: octollm_core::event::Pattern,
        _: Overflow,
    ) -> Result<Subscription, octollm_core::bus::BusError> {
        pending().await
    }

    fn capabilities(&self) -> &[octollm_core::bus::Capability] {
        &[]
    }

    fn max_event_bytes(&self) -> usize {
        usize::MAX
    }
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_hangs_and_an_answer_that_nobody_reads_delay_the_end_by_a_second_at_most() {
    let endless = service_fn(async |_: Request<HttpBody>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; 10_000_000]))))
    });
    let Running { peer, worker, stop, server } = running("hangs", |server| {
        server.bus(Stuck).drain_grace(Duration::from_secs(1)).route(Method::GET, "/endless", endless)
    });
    let mut one = peer.connect().await;
    one.write(post("/wait", "", "{}")).await;
    let mut calls = caller(peer, 1).await;
    let unread = Request::get("http://x/endless").body(Full::default()).unwrap();
    let unread = calls.send_request(unread).await.unwrap();
    worker.0.begun(1).await;
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!(given_up("hangs", "/wait"), Some(1.0), "counted, but not published");
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_are_published_and_all_are_counted() {
    let bus = MemoryBus::new();
    let mut events = dropped(&bus).await;
    let Running { peer, worker, stop, server } = running("thousands", |server| {
        server.bus(bus.clone()).max_in_flight(2000).max_streams(1100).drain_grace(Duration::from_secs(1))
    });
    let mut calls = caller(peer, 65_535).await;
    let mut all = Vec::new();
    for _ in 0..1100 {
        let wait = Request::post("http://x/wait").header("content-type", "application/json");
        calls.ready().await.unwrap();
        all.push(tokio::spawn(calls.send_request(wait.body(Full::from("{}")).unwrap())));
    }
    worker.0.begun(1100).await;
    stop.send(()).unwrap();
    server.await.unwrap();
    assert_eq!(published(&mut events).await.len(), 1000);
    assert_eq!(given_up("thousands", "/wait"), Some(1100.0));
    for call in all {
        assert!(call.await.unwrap().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_below_layers_is_reported_and_its_key_has_an_unknown_outcome() {
    let (bus, keys) = (MemoryBus::new(), Arc::new(MemoryIdempotencyStore::default()));
    let mut events = dropped(&bus).await;
    let set = |server: Server| {
        let server = server.bus(bus.clone()).idempotency(keys.clone()).drain_grace(Duration::from_secs(1));
        server.layer(layer_fn(|inner| inner))
    };
    let Running { peer, worker, stop, server } = running("layered-end", set);
    let fields = "Idempotency-Key: \"k1\"\r\nX-Request-ID: r1\r\n";
    let mut one = peer.connect().await;
    one.write(post("/wait", fields, "{}")).await;
    worker.0.begun(1).await;
    stop.send(()).unwrap();
    server.await.unwrap();
    let events = published(&mut events).await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (&events[0].data()["request_id"], &events[0].data()["contract"]),
        (&json!("r1"), &json!("work.wait"))
    );

    // Another instance with the same records.
    let Running { peer, worker, .. } = running("layered-end", set);
    let problem = peer.post("/wait", fields, "{}").await.is_problem(409, "outcome_unknown");
    assert_eq!(problem["may_have_executed"], true);
    assert_eq!(worker.0.begun_so_far(), 0);
}

/// Layers hold a request before the server has read it, and after the server has answered it.
#[tokio::test(start_paused = true)]
async fn what_is_given_up_within_layers_is_reported_too() {
    let bus = MemoryBus::new();
    let mut events = dropped(&bus).await;
    let holding = layer_fn(|inner: octollm_http::server::HttpService| {
        service_fn(move |request: Request<HttpBody>| {
            let (inner, is_first) = (inner.clone(), request.headers().contains_key("x-first"));
            async move {
                if is_first {
                    pending::<()>().await;
                }
                let _answer = tower::ServiceExt::oneshot(inner, request).await?;
                pending::<Result<Response<HttpBody>, Infallible>>().await
            }
        })
    });
    let set = |server: Server| server.bus(bus.clone()).drain_grace(Duration::from_secs(1)).layer(holding);
    let Running { peer, stop, server, .. } = running("held-in-layers", set);
    let (mut before, mut after) = (peer.connect().await, peer.connect().await);
    before.write(post("/wait", "X-First: 1\r\nX-Request-ID: r1\r\n", r#"{"ms":1}"#)).await;
    after.write(post("/wait", "X-Request-ID: r2\r\n", r#"{"ms":1}"#)).await;
    sleep(Duration::from_millis(10)).await;
    stop.send(()).unwrap();
    server.await.unwrap();
    let mut events = published(&mut events).await;
    events.sort_by_key(|event| event.subject().unwrap().to_owned());
    let routes: Vec<_> =
        events.iter().map(|event| (event.subject().unwrap(), event.data()["route"].clone())).collect();
    assert_eq!(routes, [("r1", json!("unmatched")), ("r2", json!("/wait"))]);
}
