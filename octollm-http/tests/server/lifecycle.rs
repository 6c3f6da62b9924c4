//! Callers that go away, deadlines, and the end of a server.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use octollm_core::{brain::Brain, store::MemoryStore};
use octollm_http::{Server, io::Connector, server::HttpBody};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::service_fn;

use crate::{
    arms::{Wait, Worker, network, server, start_with},
    floods::{self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, SETTINGS, WINDOW_UPDATE, frame},
    peer::{Peer, post},
};

type Http2 = http2::SendRequest<Full<Bytes>>;

/// A connection, and its cable, which is cut when the task is aborted.
async fn http2(peer: Peer) -> (Http2, JoinHandle<()>) {
    let (mut server, (near, mut far)) = (peer.stream().await, tokio::io::duplex(1 << 16));
    let cable = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut server, &mut far).await;
    });
    let (calls, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    (calls, cable)
}

fn request(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::post(format!("http://x{path}")).header("content-type", "application/json");
    request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_http1_caller_that_goes_away_drops_the_arm() {
    let (peer, worker) = start_with(|server| server);
    let mut line = peer.connect().await;
    line.write(post("/wait", "", "{}")).await;
    worker.0.begun(1).await;
    drop(line);
    worker.0.dropped(1).await;
}

#[tokio::test(start_paused = true)]
async fn an_http2_caller_that_goes_away_drops_the_arm() {
    let (peer, worker) = start_with(|server| server);
    let (mut calls, cable) = http2(peer).await;
    let given_up = tokio::spawn(calls.send_request(request("/wait", "{}")));
    worker.0.begun(1).await;
    given_up.abort();
    worker.0.dropped(1).await;
    // The connection is none the worse for it.
    let answer = calls.send_request(request("/echo", r#"{"text":"a"}"#)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);

    let lost = tokio::spawn(calls.send_request(request("/wait", "{}")));
    worker.0.begun(2).await;
    cable.abort();
    worker.0.dropped(2).await;
    assert!(lost.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn http2_answers_as_http1_does() {
    let (peer, _) = start_with(|server| server);
    let (mut calls, _) = http2(peer).await;
    let answer = calls.send_request(request("/echo", r#"{"text":"a"}"#)).await.unwrap();
    assert_eq!(answer.headers()["octollm-usage"], "tokens=3;cost_usd=0");
    assert!(answer.headers().contains_key("x-request-id"));
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"text":"a","caller":null}"#);
    for (path, body, status) in [("/nowhere", "{}", 404), ("/echo", "{", 400), ("/echo", "{}", 422)] {
        let answer = calls.send_request(request(path, body)).await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    let mut request = request("/health", "");
    *request.method_mut() = http::Method::HEAD;
    let answer = calls.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_ends_the_work() {
    let (peer, worker) = start_with(|server| server);
    let answer = peer.post("/wait", "Octollm-Timeout: 50\r\n", "{}").await;
    let problem = answer.is_problem(504, "deadline_exceeded");
    assert_eq!(problem["may_have_executed"], true);
    worker.0.dropped(1).await;
    let answer = peer.post("/wait", "Octollm-Timeout: 0\r\n", "{}").await;
    assert_eq!(answer.is_problem(504, "deadline_exceeded")["may_have_executed"], false);
    worker.0.dropped(1).await;
}

#[tokio::test(start_paused = true)]
async fn requests_behind_each_other_are_answered_in_order() {
    let (peer, _) = start_with(|server| server);
    let mut line = peer.connect().await;
    let mut bytes = post("/wait", "", r#"{"ms":50}"#);
    bytes.extend(post("/echo", "", r#"{"text":"a"}"#));
    bytes.extend(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
    bytes.extend(b"Transfer-Encoding: chunked\r\n\r\nc\r\n{\"text\":\"b\"}\r\n0\r\n\r\n");
    bytes
        .extend(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3\r\n");
    bytes.extend(b"Transfer-Encoding: chunked\r\n\r\nc\r\n{\"text\":\"c\"}\r\n0\r\n\r\n");
    line.write(bytes).await;
    assert_eq!(line.answer().await.body, "null");
    assert_eq!(line.answer().await.json()["text"], "a");
    assert_eq!(line.answer().await.json()["text"], "b");
    // Whoever sends two lengths gets one answer, and the connection is over.
    let last = line.answer().await;
    assert_eq!((last.json()["text"].as_str(), last.field("connection")), (Some("c"), Some("close")));
    assert_eq!(line.closed().await, b"");
}

#[tokio::test(start_paused = true)]
async fn older_and_careful_callers_are_served() {
    let (peer, _) = start_with(|server| server);
    assert_eq!(peer.send("GET /health HTTP/1.0\r\n\r\n").await.status, 200);
    assert_eq!(peer.send("GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n").await.status, 200);
    let mut line = peer.connect().await;
    let bytes = post("/echo", "Expect: 100-continue\r\n", r#"{"text":"a"}"#);
    let (head, body) = bytes.split_at(bytes.len() - 12);
    line.write(head).await;
    assert_eq!(line.answer().await.status, 100);
    line.write(body).await;
    assert_eq!(line.answer().await.json()["text"], "a");
}

struct Running {
    peer: Peer,
    worker: Worker,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

fn running(limits: impl FnOnce(Server) -> Server) -> Running {
    let worker = Worker::default();
    let (peer, acceptor) = network();
    let bound = limits(server(&worker)).listen(acceptor).unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(bound.run_until(async {
        let _ = stopped.await;
    }));
    Running { peer, worker, stop, server }
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_answered_before_the_end() {
    let Running { peer, worker, stop, server } = running(|server| server);
    let mut idle = peer.connect().await;
    idle.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    assert_eq!(idle.answer().await.status, 200);
    let silent = peer.connect().await;
    let mut busy = peer.connect().await;
    busy.write(post("/wait", "", r#"{"ms":300}"#)).await;
    let (mut calls, _) = http2(peer).await;
    let call = tokio::spawn(calls.send_request(request("/wait", r#"{"ms":300}"#)));
    worker.0.begun(2).await;

    stop.send(()).unwrap();
    assert_eq!(idle.closed().await, b"");
    assert_eq!(silent.closed().await, b"");
    let answer = busy.answer().await;
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert_eq!(busy.closed().await, b"");
    assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::OK);
    tokio::time::timeout(Duration::from_secs(5), server).await.expect("ends").unwrap();
    let Peer::Pipe(network) = peer else { unreachable!() };
    assert!(network.connect(&"http://x".parse().unwrap()).await.is_err(), "nobody listens any more");
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_is_answered_before_the_end() {
    let Running { peer, stop, server, .. } = running(|server| server);
    let mut lines = Vec::new();
    for _ in 0..20 {
        let mut line = peer.connect().await;
        line.write(post("/echo", "", r#"{"text":"a"}"#)).await;
        assert_eq!(line.answer().await.field("connection"), None);
        lines.push(line);
    }
    let mut fresh = peer.connect().await;
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    fresh.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    for line in &mut lines {
        line.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    }
    for mut line in lines.into_iter().chain([fresh]) {
        let answer = line.answer().await;
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
        assert_eq!(line.closed().await, b"");
    }
    tokio::time::timeout(Duration::from_secs(5), server).await.expect("ends").unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_is_dropped_after_the_grace() {
    let grace = Duration::from_millis(100);
    let Running { peer, worker, stop, server } = running(|server| server.drain_grace(grace));
    let mut busy = peer.connect().await;
    busy.write(post("/wait", "", "{}")).await;
    let (mut calls, _) = http2(peer).await;
    let call = tokio::spawn(calls.send_request(request("/wait", "{}")));
    worker.0.begun(2).await;
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), server).await.expect("ends").unwrap();
    worker.0.dropped(2).await;
    assert!(call.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_without_streams_that_answers_no_ping_does_not_delay_the_end() {
    let Running { peer, stop, server, .. } = running(|server| server);
    let unused = floods::connect(peer).await;
    let mut used = floods::connect(peer).await;
    used.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x82\x86\x84\x41\x01x")).await;
    sleep(Duration::from_secs(5)).await;
    let begun = Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
    for line in [unused, used] {
        assert!(floods::sent(&line.rest().await, GOAWAY));
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_over_http2_is_answered_before_the_end_also_where_no_ping_is() {
    let Running { peer, worker, stop, server } = running(|server| server);
    let mut line = floods::connect(peer).await;
    let head = b"\x83\x86\x44\x05/wait\x41\x01x\x5f\x10application/json";
    line.write(frame(HEADERS, END_HEADERS, 1, head)).await;
    line.write(frame(DATA, END_STREAM, 1, br#"{"ms":20000}"#)).await;
    worker.0.begun(1).await;
    let begun = Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!((20..=22).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(floods::sent(&line.rest().await, DATA));
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_http2_is_read_to_its_end_by_a_slow_caller_during_the_end() {
    const LENGTH: usize = 300_000;
    let answer = || async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; LENGTH]))))
    };
    let large = service_fn(move |_: Request<HttpBody>| answer());
    let Running { peer, stop, server, .. } = running(|server| server.route(Method::GET, "/large", large));
    let mut line = floods::connect(peer).await;
    let window = 2_000_000_u32.to_be_bytes();
    line.write(frame(SETTINGS, 0, 0, &[&[0, 4][..], &window].concat())).await;
    line.write(frame(WINDOW_UPDATE, 0, 0, &window)).await;
    line.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x82\x86\x44\x06/large\x41\x01x")).await;
    sleep(Duration::from_secs(5)).await;
    let begun = Instant::now();
    stop.send(()).unwrap();
    sleep(Duration::from_secs(10)).await;
    let bytes = line.rest().await;
    assert!(bytes.iter().filter(|byte| **byte == b'x').count() >= LENGTH, "{} bytes", bytes.len());
    server.await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(12), "{:?}", begun.elapsed());
}

/// Ends a server whose brain runs a task of this body, with one more that waits, and looks for both with another brain on the same store
/// at once.
async fn ended_with_tasks(body: &str) -> (Worker, Duration, [serde_json::Value; 2]) {
    let (worker, store) = (Worker::default(), Arc::new(MemoryStore::new()));
    let brain = || Brain::builder().arm::<Wait>(worker.clone()).store(store.clone());
    let first = brain().max_running(1).build().unwrap();
    let (peer, acceptor) = network();
    let bound = Server::new("brain").orchestrator(first).listen(acceptor).unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(bound.run_until(async {
        let _ = stopped.await;
    }));
    let mut paths = Vec::new();
    for input in [body, r#"{"ms":0}"#] {
        let task = peer.post("/tasks", "", &format!(r#"{{"contract":"work.wait","input":{input}}}"#)).await;
        paths.push(task.field("location").unwrap().to_owned());
    }
    worker.0.begun(1).await;
    let begun = Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap();
    let took = begun.elapsed();

    let second = brain().build().unwrap();
    let (peer, acceptor) = network();
    tokio::spawn(Server::new("brain").orchestrator(second.clone()).listen(acceptor).unwrap().run());
    let mut seen = Vec::new();
    for path in &paths {
        seen.push(peer.get(&format!("/{path}")).await.json()["status"].take());
    }
    let claimed = second.recover().await.unwrap();
    assert_eq!(claimed, seen.iter().filter(|status| *status == "queued").count(), "no lease is waited for");
    (worker, took, [seen.remove(0), seen.remove(0)])
}

#[tokio::test(start_paused = true)]
async fn a_task_that_runs_when_its_server_ends_has_the_grace_and_none_is_begun() {
    let (_, took, seen) = ended_with_tasks(r#"{"ms":20000}"#).await;
    assert_eq!((took.as_secs(), seen), (20, ["completed".into(), "queued".into()]));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_end_within_the_grace_goes_to_another_brain_at_once() {
    let (worker, took, seen) = ended_with_tasks("{}").await;
    assert_eq!((took.as_secs(), seen), (30, ["queued".into(), "queued".into()]));
    worker.0.dropped(1).await;
    worker.0.begun(3).await;
}
