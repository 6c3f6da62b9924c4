//! What a server does not wait for, and what it does not take.

use std::time::{Duration, Instant};

use octollm_http::server::ServerConfig;

use crate::{
    arms::{start_with, worker},
    peer::post,
};

const SOON: Duration = Duration::from_millis(150);

#[tokio::test]
async fn a_head_that_does_not_come_closes_the_connection() {
    let (peer, _) = start_with(ServerConfig { head_timeout: SOON, ..ServerConfig::default() }).await;
    for bytes in ["", "P", "POST /echo HTTP/1.1\r\nHost:", "\r\n", "PRI * HTTP/2.0\r\n"] {
        let (mut line, begun) = (peer.connect().await, Instant::now());
        line.write(bytes).await;
        line.closed().await;
        assert!(begun.elapsed() >= SOON, "{bytes:?} {:?}", begun.elapsed());
    }
    // A request that is answered for longer is none that is waited for.
    let answer = peer.post("/wait", "", r#"{"ms":400}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn the_limit_on_heads_begins_anew_with_each() {
    let config = ServerConfig { head_timeout: SOON, idle_timeout: SOON * 3, ..ServerConfig::default() };
    let (peer, _) = start_with(config).await;
    let mut line = peer.connect().await;
    line.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    assert_eq!(line.answer().await.status, 200);
    // Kept open for longer than a head may take, but not for ever.
    tokio::time::sleep(SOON * 2).await;
    line.write("POST /e").await;
    let begun = Instant::now();
    line.closed().await;
    assert!(begun.elapsed() >= SOON);

    let mut line = peer.connect().await;
    line.write(post("/wait", "", r#"{"ms":800}"#)).await;
    assert_eq!(line.answer().await.status, 200, "work is no idleness");
    assert_eq!(line.closed().await, b"");
}

#[tokio::test]
async fn a_body_that_trickles_is_timed_out() {
    let (peer, _) = start_with(ServerConfig { body_timeout: SOON, ..ServerConfig::default() }).await;
    for (fields, status, code) in
        [("", 408, "request_timeout"), ("Octollm-Timeout: 20\r\n", 504, "deadline_exceeded")]
    {
        let mut line = peer.connect().await;
        let bytes = post("/echo", fields, r#"{"text":"a"}"#);
        line.write(&bytes[..bytes.len() - 1]).await;
        let problem = line.answer().await.is_problem(status, code);
        assert_eq!(problem["may_have_executed"], false);
        line.closed().await;
    }
    let mut line = peer.connect().await;
    line.write("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n").await;
    line.write("Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n").await;
    line.answer().await.is_problem(408, "request_timeout");
}

#[tokio::test]
async fn a_body_too_large_is_refused_before_it_is_read_or_at_the_byte() {
    let (peer, _) = start_with(ServerConfig { max_body: 64 * 1024, ..ServerConfig::default() }).await;
    let text = |n: usize| format!(r#"{{"text":"{}"}}"#, "a".repeat(n - 11));
    assert_eq!(peer.post("/echo", "", &text(64 * 1024)).await.status, 200);
    peer.post("/echo", "", &text(64 * 1024 + 1)).await.is_problem(413, "payload_too_large");
    // The whole of it is on its way already; the answer is read all the same.
    peer.post("/echo", "", &text(900_000)).await.is_problem(413, "payload_too_large");

    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let mut line = peer.connect().await;
    line.write(format!("{head}Content-Length: 99999999\r\n\r\n")).await;
    line.answer().await.is_problem(413, "payload_too_large");
    let mut line = peer.connect().await;
    line.write(format!("{head}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")).await;
    line.answer().await.is_problem(413, "payload_too_large");

    let chunk = format!("1000\r\n{}\r\n", "a".repeat(4096));
    let mut line = peer.connect().await;
    line.write(format!("{head}Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(16))).await;
    line.write("1\r\na\r\n").await;
    line.answer().await.is_problem(413, "payload_too_large");
}

#[tokio::test]
async fn overload_is_told_at_once_and_probes_answer() {
    let (peer, worker) = start_with(ServerConfig { max_in_flight: 1, ..ServerConfig::default() }).await;
    let mut held = peer.connect().await;
    held.write(post("/wait", "", "{}")).await;
    worker.0.begun(1).await;
    let refused = peer.post("/echo", "", r#"{"text":"a"}"#).await;
    let problem = refused.is_problem(503, "overloaded");
    assert_eq!((refused.field("retry-after"), &problem["retryable"]), (Some("1"), &true.into()));
    assert_eq!(problem["may_have_executed"], false);
    for probe in ["/health", "/ready", "/capabilities", "/openapi.json"] {
        assert_eq!(peer.get(probe).await.status, 200, "{probe}");
    }
    drop(held);
    worker.0.dropped(1).await;
    assert_eq!(peer.post("/echo", "", r#"{"text":"a"}"#).await.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let (peer, _) = start_with(ServerConfig { max_connections: 1, ..ServerConfig::default() }).await;
    let mut first = peer.connect().await;
    first.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    assert_eq!(first.answer().await.status, 200);
    let mut second = peer.connect().await;
    second.write(post("/echo", "", r#"{"text":"b"}"#)).await;
    drop(first);
    assert_eq!(second.answer().await.json()["text"], "b");
}

#[tokio::test]
async fn a_reader_that_stops_is_given_up() {
    let config = ServerConfig { write_timeout: SOON, ..ServerConfig::default() };
    let (peer, _) = start_with(config).await;
    let mut line = peer.connect().await;
    let request = post("/echo", "", format!(r#"{{"text":"{}"}}"#, "a".repeat(1_000_000)));
    // Far more answers than fit between the two, and none of them read.
    let writing = async {
        for _ in 0..64 {
            if line.try_write(&request).await.is_err() {
                return;
            }
        }
        panic!("was never given up");
    };
    tokio::time::timeout(Duration::from_secs(10), writing).await.expect("still open");
    assert_eq!(peer.get("/health").await.status, 200);
}

#[tokio::test]
async fn limits_are_checked_and_the_world_is_kept_out() {
    use octollm_http::ServeError;
    let config = ServerConfig { max_body: 0, ..ServerConfig::default() };
    let error = worker().config(config).bind("127.0.0.1:0").await.unwrap_err();
    assert!(matches!(error, ServeError::Config(_)), "{error}");
    let error = worker().bind("0.0.0.0:0").await.unwrap_err();
    assert!(error.to_string().contains("open_to_all()"), "{error}");
    assert!(worker().open_to_all().bind("0.0.0.0:0").await.is_ok());
    assert!(matches!(worker().bind("nowhere.invalid:1").await, Err(ServeError::Resolve(_))));
    let taken = worker().bind("127.0.0.1:0").await.unwrap();
    assert!(matches!(worker().bind(taken.local_addr()).await, Err(ServeError::Listen { .. })));
}
