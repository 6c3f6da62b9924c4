//! The updates of a task as server-sent events.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    Arm, Context,
    brain::Brain,
    bus::MemoryBus,
    error::{ArmError, Failure},
    parts::{Caller, Grant},
};
use octollm_http::Server;
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::sleep};
use tower::layer::util::Identity;

use crate::{
    arms::start,
    peer::{Answer, Line, Peer},
    places::caller,
};

/// Sends so many chunks, and then waits where the input says so.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.tell", output = usize, chunk = String, idempotent, timeout = "3600s")]
pub(crate) struct Tell {
    pub(crate) words: usize,
    #[serde(default)]
    pub(crate) waits: bool,
}

pub(crate) struct Teller;

#[async_trait]
impl Arm<Tell> for Teller {
    async fn execute(&self, tell: Tell, cx: &Context) -> Result<usize, ArmError> {
        cx.progress(10, "begins");
        for word in 0..tell.words {
            cx.chunk::<Tell>(&format!("word {word}")).await;
        }
        if tell.waits {
            std::future::pending::<()>().await;
        }
        Ok(tell.words)
    }
}

fn brain() -> Brain {
    Brain::builder().arm::<Tell>(Teller).build().unwrap()
}

fn server() -> Server {
    Server::new("brain").orchestrator(brain())
}

/// On a socket of the system.
async fn bound(server: Server) -> Peer {
    let bound = server.bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(bound.local_addr());
    tokio::spawn(bound.run());
    peer
}

/// Submits a task, and returns its path.
async fn told(peer: Peer, fields: &str, words: usize, waits: bool) -> String {
    let body = json!({ "contract": "text.tell", "input": { "words": words, "waits": waits } }).to_string();
    let accepted = peer.post("/tasks", fields, &body).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    format!("/{}", accepted.field("location").unwrap())
}

/// All events of an answer: those of HTTP/1.0 have no framing.
async fn all(peer: Peer, path: &str, fields: &str) -> (Answer, Vec<(u64, Value)>) {
    let mut line = peer.connect().await;
    line.write(format!("GET {path} HTTP/1.0\r\nHost: x\r\n{fields}\r\n")).await;
    let text = String::from_utf8(line.rest().await).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let answer = Answer { status, head: format!("{head}\r\n"), body: body.into() };
    let events = if status == 200 { events(body) } else { Vec::new() };
    (answer, events)
}

fn events(text: &str) -> Vec<(u64, Value)> {
    let events = text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
    let read = |event: &str| {
        let (id, data) = event.split_once('\n').unwrap();
        let id = id.strip_prefix("id: ").unwrap().parse().unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["seq"], id);
        (id, data)
    };
    events.map(read).collect()
}

/// Opens a stream, and reads it until a text has arrived.
async fn opened(peer: Peer, path: &str, until: &str) -> Line {
    let mut line = peer.connect().await;
    line.write(format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")).await;
    let head = line.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(until) {
        text.extend(line.read(1).await);
    }
    line
}

#[tokio::test]
async fn updates_arrive_in_order_and_resume_after_any_of_them() {
    let peer = bound(server()).await;
    let task = told(peer, "", 20, false).await;
    let path = &*format!("{task}/events");
    let (answer, whole) = all(peer, path, "Accept: text/event-stream\r\n").await;
    for (name, value) in
        [("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no")]
    {
        assert_eq!(answer.field(name), Some(value));
    }
    let numbers: Vec<_> = whole.iter().map(|(id, _)| *id).collect();
    assert_eq!(numbers, (1..=whole.len() as u64).collect::<Vec<_>>());
    let words: Vec<_> = whole.iter().filter(|(_, data)| data["type"] == "chunk").collect();
    assert_eq!((words.len(), &words[7].1["data"]), (20, &json!("word 7")));
    let last = &whole.last().unwrap().1;
    assert_eq!((&last["status"], &last["result"]["output"]), (&json!("completed"), &json!(20)));
    for after in 0..=whole.len() {
        let header = format!("Last-Event-ID: {after}\r\n");
        assert_eq!(all(peer, path, &header).await.1, whole[after..], "{after}");
        // The header is of a reconnect, with the URL of the first request.
        assert_eq!(all(peer, &format!("{path}?after=1"), &header).await.1, whole[after..]);
        assert_eq!(all(peer, &format!("{path}?after={after}"), "").await.1, whole[after..]);
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_is_refused() {
    let peer = bound(server()).await;
    let task = told(peer, "", 1, false).await;
    let path = &*format!("{task}/events");
    for (path, fields, status, code) in [
        (path, "Last-Event-ID: x\r\n", 400, "bad_request"),
        (path, "Last-Event-ID: -1\r\n", 400, "bad_request"),
        (&format!("{path}?after=x"), "", 400, "bad_request"),
        (&format!("{path}?after=1&after=2"), "", 400, "bad_request"),
        (&format!("{path}?limit=1"), "", 400, "bad_request"),
        (path, "Accept: application/json\r\n", 406, "not_acceptable"),
        ("/tasks/task_0000000000000000/events", "", 404, "task_not_found"),
        ("/tasks/x/events", "", 404, "task_not_found"),
    ] {
        all(peer, path, fields).await.0.is_problem(status, code);
    }
    let refused = peer.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).await;
    refused.is_problem(405, "method_not_allowed");
}

fn by_name(head: &Parts) -> Result<Caller, Failure> {
    Ok(match head.headers.get("x-name").map(|name| name.to_str().unwrap()) {
        Some("root") => Caller::known("root", ["tasks:admin", "text:*"]),
        Some("brief") => {
            let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60);
            Caller::Known(Grant::new("ann", ["text:*"]).valid_until(end).into())
        }
        Some(name) => Caller::known(name, ["text:*"]),
        None => Caller::Anonymous,
    })
}

#[tokio::test]
async fn updates_belong_to_whoever_submitted_the_task() {
    let peer = bound(server().authenticate(by_name)).await;
    let task = told(peer, "X-Name: ann\r\n", 1, false).await;
    let path = &*format!("{task}/events");
    for (name, status) in [("ann", 200), ("root", 200), ("eve", 404)] {
        let (answer, events) = all(peer, path, &format!("X-Name: {name}\r\n")).await;
        assert_eq!((answer.status, events.is_empty()), (status, status != 200), "{name}");
    }
    all(peer, path, "").await.0.is_problem(401, "unauthenticated");
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_the_authority_or_the_deadline_of_its_caller() {
    let peer = start(server().authenticate(by_name));
    let task = told(peer, "X-Name: ann\r\n", 1, true).await;
    for (fields, least, most) in
        [("X-Name: brief\r\n", 88, 91), ("X-Name: ann\r\nOctollm-Timeout: 7000\r\n", 6, 7)]
    {
        let begun = tokio::time::Instant::now();
        let (_, events) = all(peer, &format!("{task}/events"), fields).await;
        assert_eq!(events.last().unwrap().1["data"], "word 0", "no final status");
        let elapsed = begun.elapsed().as_secs();
        assert!((least..=most).contains(&elapsed), "{elapsed} s with {fields:?}");
    }
}

#[tokio::test]
async fn nothing_holds_back_an_event_and_pings_come_between_them() {
    let server = server().event_ping(Duration::from_millis(50)).layer(Identity::new());
    #[cfg(feature = "compression")]
    let server = server.compression();
    let inner = server.open_to_all().into_service().unwrap();
    let app = axum::Router::new().nest_service("/brain", inner);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let body = json!({ "contract": "text.tell", "input": { "words": 1, "waits": true } }).to_string();
    let accepted = peer.post("/brain/tasks", "", &body).await;
    let path = format!("/brain/{}/events", accepted.field("location").unwrap());
    drop(opened(peer, &path, "word 0").await);
    drop(opened(peer, &format!("{path}?after=1000"), ": ping\n\n").await);
}

#[tokio::test]
async fn streams_have_places_of_their_own() {
    let peer = bound(server().max_live_streams(2).max_in_flight(1)).await;
    let task = told(peer, "", 1, true).await;
    let path = &*format!("{task}/events");
    let (one, _two) = (opened(peer, path, "word 0").await, opened(peer, path, "word 0").await);
    let refused = all(peer, path, "").await.0;
    refused.is_problem(503, "overloaded");
    assert_eq!(refused.field("retry-after"), Some("1"));
    assert_eq!(peer.get(&task).await.json()["status"], "processing");
    drop(one);
    let another = async {
        loop {
            let mut line = peer.connect().await;
            line.write(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            if line.head().await.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), another).await.expect("the place is not free");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_is_given_up() {
    let peer = start(server().max_live_streams(1));
    let task = told(peer, "", 200, true).await;
    let request = || {
        let request = Request::get(format!("http://x{task}/events"));
        request.body(Full::new(Bytes::new())).unwrap()
    };
    let mut calls = caller(peer, 1).await;
    let unread = calls.send_request(request()).await.unwrap();
    assert_eq!(unread.status(), StatusCode::OK);
    sleep(Duration::from_secs(25)).await;
    assert_eq!(calls.send_request(request()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    sleep(Duration::from_secs(10)).await;
    let mut others = caller(peer, 65_535).await;
    let read = others.send_request(request()).await.unwrap();
    assert_eq!(read.status(), StatusCode::OK);
    assert!(unread.into_body().collect().await.is_err(), "was reset");
    // One that reads has all of it, and is not given up for the silence between two events.
    let mut body = read.into_body();
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("word 199") {
        text.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    sleep(Duration::from_secs(100)).await;
    let mut pings = 0;
    while tokio::time::timeout(Duration::from_millis(1), body.frame())
        .await
        .is_ok_and(|frame| frame.is_some())
    {
        pings += 1;
    }
    assert!((1..=5).contains(&pings), "{pings}");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_streams_of_a_task_have_every_update_beside_one_that_is_not_read() {
    let peer = start(server());
    let task = told(peer, "", 100, false).await;
    let path = format!("{task}/events");
    let mut slow = caller(peer, 1).await;
    let request = Request::get(format!("http://x{path}")).body(Full::new(Bytes::new())).unwrap();
    let unread = slow.send_request(request).await.unwrap();
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..999 {
        let path = path.clone();
        streams.spawn(async move { all(peer, &path, "").await });
    }
    let mut count = 0;
    while let Some(stream) = streams.join_next().await {
        let (answer, updates) = stream.unwrap();
        assert_eq!(answer.status, 200);
        assert!(updates.iter().map(|(id, _)| *id).eq(1..=updates.len() as u64));
        assert_eq!(updates.last().unwrap().1["status"], "completed");
        assert_eq!(updates.iter().filter(|(_, data)| data["type"] == "chunk").count(), 100);
        count += 1;
    }
    assert_eq!((count, unread.status()), (999, StatusCode::OK));
}

/// The data of the next event of a stream.
async fn next_event(line: &mut Line) -> Value {
    let mut text = Vec::new();
    while !text.ends_with(b"\n\n") {
        text.extend(line.read(1).await);
    }
    let text = String::from_utf8(text).unwrap();
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(data).unwrap()
}

#[tokio::test]
async fn the_events_of_the_bus_are_those_that_the_caller_may_see() {
    let bus = MemoryBus::new();
    let brain = Brain::builder().arm::<Tell>(Teller).bus(bus.clone()).build().unwrap();
    let by_scopes = |head: &Parts| {
        let field = |name| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let scopes = field("x-scopes").unwrap_or_default();
        let scopes: Vec<_> = scopes.split(' ').chain(["text:tell"]).map(str::to_owned).collect();
        Ok(field("x-name").map_or(Caller::Anonymous, |name| Caller::known(name, scopes)))
    };
    let server = Server::new("brain").orchestrator(brain).bus(bus.clone()).authenticate(by_scopes);
    let peer = bound(server.event_ping(Duration::from_secs(20))).await;
    for (query, fields, status, code) in [
        ("", "X-Name: ann\r\n", 400, "bad_request"),
        ("?pattern=*", "X-Name: ann\r\n", 400, "bad_request"),
        ("?pattern=events:task:*", "", 401, "unauthenticated"),
        ("?pattern=events:task:*", "X-Name: ann\r\n", 403, "insufficient_scope"),
        (
            "?pattern=events:*:*",
            "X-Name: ann\r\nX-Scopes: events.task:subscribe\r\n",
            403,
            "insufficient_scope",
        ),
    ] {
        all(peer, &format!("/events{query}"), fields).await.0.is_problem(status, code);
    }
    let mut lines = Vec::new();
    for fields in [
        "X-Name: ann\r\nX-Scopes: events.task:subscribe\r\n",
        "X-Name: eve\r\nX-Scopes: events.task:subscribe\r\nLast-Event-ID: x\r\n",
        "X-Name: root\r\nX-Scopes: events.task:subscribe tasks:admin\r\n",
    ] {
        let mut line = peer.connect().await;
        line.write(format!("GET /events?pattern=events:task:completed HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
            .await;
        assert!(line.head().await.starts_with("HTTP/1.1 200"));
        lines.push(line);
    }
    let of_ann = told(peer, "X-Name: ann\r\n", 1, false).await;
    let of_eve = told(peer, "X-Name: eve\r\n", 1, false).await;
    let of = |event: &Value| format!("/tasks/{}", event["data"]["task_id"].as_str().unwrap());
    let first = next_event(&mut lines[0]).await;
    assert_eq!((of(&first), &first["event_type"]), (of_ann.clone(), &json!("task.completed")));
    assert_eq!(next_event(&mut lines[1]).await["type"], "gap", "it connects again");
    assert_eq!(of(&next_event(&mut lines[1]).await), of_eve);
    let both = [next_event(&mut lines[2]).await, next_event(&mut lines[2]).await].map(|event| of(&event));
    assert!(both.contains(&of_ann) && both.contains(&of_eve));
}

#[tokio::test]
async fn a_contract_streams_its_chunks_and_its_output() {
    let peer = bound(Server::new("teller").arm::<Tell>(Teller)).await;
    let envelope = json!({ "contract": "text.tell", "input": { "words": 2 } }).to_string();
    for (path, body) in [("/tell", r#"{"words":2}"#), ("/execute", &*envelope)] {
        let mut line = peer.connect().await;
        let fields = "Accept: text/event-stream, application/json;q=0.9\r\nConnection: close\r\n";
        line.write(crate::peer::post(path, fields, body)).await;
        assert!(line.head().await.contains("content-type: text/event-stream"));
        let text = String::from_utf8(line.closed().await).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
        let expected = json!([
            { "type": "progress", "seq": 1, "progress": 10, "phase": "preprocessing", "message": "begins" },
            { "type": "chunk", "seq": 2, "data": "word 0" },
            { "type": "chunk", "seq": 3, "data": "word 1" },
            { "type": "output", "seq": 4, "output": 2, "usage": events[3]["usage"] },
        ]);
        assert_eq!(json!(events), expected, "{path}");
        assert_eq!(events[3]["usage"], "tokens=0;cost_usd=0");
    }
    // What fails at first is a problem, and whoever prefers JSON has that.
    let accept = "Accept: text/event-stream\r\n";
    peer.post("/tell", accept, "{}").await.is_problem(422, "validation_failed");
    peer.post("/tell", accept, "{").await.is_problem(400, "bad_request");
    let json = "Accept: text/event-stream;q=0.5, application/json\r\n";
    assert_eq!(peer.post("/tell", json, r#"{"words":2}"#).await.json(), 2);
    peer.post("/tell", "Accept: text/html\r\n", "{}").await.is_problem(406, "not_acceptable");
}

#[tokio::test]
async fn streams_end_with_the_server() {
    let bound = server().bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(bound.local_addr());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(bound.run_until(async {
        let _ = stopped.await;
    }));
    let task = told(peer, "", 1, true).await;
    let line = opened(peer, &format!("{task}/events"), "word 0").await;
    peer.send(format!("DELETE {task} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    let cancelled = String::from_utf8(line.read_to(b"0\r\n\r\n").await).unwrap();
    assert!(cancelled.contains("cancelled"), "{cancelled}");

    let waiting = told(peer, "", 1, true).await;
    let line = opened(peer, &format!("{waiting}/events"), "word 0").await;
    let begun = std::time::Instant::now();
    stop.send(()).unwrap();
    let end = line.closed().await;
    assert!(end.ends_with(b"0\r\n\r\n"), "the answer is whole: {:?}", String::from_utf8_lossy(&end));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.abort();
}
