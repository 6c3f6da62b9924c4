//! What a server does not wait for, and what it does not take: the usual limits, on a clock that is paused.

use std::{io, pin::Pin, time::Duration};

use octollm_http::io::{Acceptor, Peer as From};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{Instant, sleep},
};

use crate::{
    arms::{network, start_with, worker},
    peer::{Line, Peer, post},
};

fn usual() -> Peer {
    start_with(|server| server).0
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// How long the server leaves a connection open, to the second.
async fn open_for(line: Line) -> (u64, Vec<u8>) {
    let begun = Instant::now();
    let rest = line.closed().await;
    (begun.elapsed().as_secs(), rest)
}

const ECHO: &str = r#"{"text":"a"}"#;
const HEAD: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_closes_the_connection() {
    let peer = usual();
    for bytes in ["", "P", "POST /echo HTTP/1.1\r\nHost:", "\r\n", "PRI * HTTP/2.0\r\n"] {
        let mut line = peer.connect().await;
        line.write(bytes).await;
        assert_eq!(open_for(line).await, (10, vec![]), "{bytes:?}");
    }
    // A caller that trickles has no more time than one that is silent.
    let (mut line, begun) = (peer.connect().await, Instant::now());
    for byte in HEAD.as_bytes() {
        sleep(secs(1)).await;
        if line.try_write(&[*byte]).await.is_err() {
            break;
        }
    }
    assert!((10..=12).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // A request that is answered for longer is none that is waited for.
    let answer = peer.post("/wait", "", r#"{"ms":50000}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_rests_for_thirty_seconds() {
    let peer = usual();
    let wait = post("/wait", "", r#"{"ms":50000}"#);
    let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\nc\r\n{ECHO}\r\n0\r\n\r\n").into_bytes();
    let get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    for request in [get, post("/echo", "", ECHO), chunked, wait] {
        let mut line = peer.connect().await;
        for _ in 0..3 {
            line.write(&request).await;
            assert_eq!(line.answer().await.status, 200);
            sleep(secs(29)).await;
        }
        line.write(&request).await;
        assert_eq!(line.answer().await.status, 200);
        assert_eq!(open_for(line).await, (30, vec![]), "{}", String::from_utf8_lossy(&request));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_rests_for_less_than_a_head_may_take() {
    let (peer, _) = start_with(|server| server.idle_timeout(secs(2)));
    let get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    for request in
        [get, post("/echo", "", ECHO), post("/wait", "", r#"{"ms":1}"#), post("/wait", "", r#"{"ms":5000}"#)]
    {
        let mut line = peer.connect().await;
        // The wait for the head has begun when it comes.
        sleep(secs(1)).await;
        line.write(&request).await;
        assert_eq!(line.answer().await.status, 200);
        assert_eq!(open_for(line).await, (2, vec![]), "{}", String::from_utf8_lossy(&request));
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_on_heads_begins_anew_with_each() {
    let mut line = usual().connect().await;
    line.write(post("/echo", "", ECHO)).await;
    assert_eq!(line.answer().await.status, 200);
    // Open for longer than a head may take; what has begun by then has its own time.
    sleep(secs(25)).await;
    line.write("POST /e").await;
    assert_eq!(open_for(line).await, (10, vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_limits_hold_after_weird_input() {
    let peer = usual();
    let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n");
    let zeros = "0".repeat(1 << 20);
    let weird = [
        (format!("{chunked}{zeros}c\r\n{ECHO}\r\n0\r\n\r\n"), 40),
        (format!("{chunked}c;{zeros}\r\n{ECHO}\r\n0\r\n\r\n"), 40),
        (format!("{chunked}c\r\n{ECHO}\r\n0\r\nA: b\r\n\r\n"), 40),
        (format!("{chunked}{zeros}"), 75),
        (
            format!("{HEAD}Content-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{ECHO}\r\n0\r\n\r\n"),
            40,
        ),
        (format!("{HEAD}Content-Length: 12\r\n\r\n{ECHO}\r\n\r\n\r\n"), 40),
    ];
    for (bytes, most) in weird {
        let mut line = peer.connect().await;
        let begun = Instant::now();
        let _ = line.try_write(bytes.as_bytes()).await;
        let rest = line.rest().await;
        let name = String::from_utf8_lossy(&bytes.as_bytes()[..160.min(bytes.len())]).into_owned();
        assert!(begun.elapsed() <= secs(most), "{:?} {name}", begun.elapsed());
        assert!(rest.starts_with(b"HTTP/1.1 "), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_timed_out() {
    let peer = usual();
    for (fields, status, code) in
        [("", 408, "request_timeout"), ("Octollm-Timeout: 2000\r\n", 504, "deadline_exceeded")]
    {
        let mut line = peer.connect().await;
        let bytes = post("/echo", fields, ECHO);
        line.write(&bytes[..bytes.len() - 1]).await;
        let begun = Instant::now();
        let problem = line.answer().await.is_problem(status, code);
        assert_eq!(problem["may_have_executed"], false);
        assert_eq!(begun.elapsed().as_secs(), if status == 408 { 30 } else { 2 });
        line.closed().await;
    }
    let mut line = peer.connect().await;
    line.write(HEAD).await;
    line.write("Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n").await;
    line.answer().await.is_problem(408, "request_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_body_too_large_is_refused_before_it_is_read_or_at_the_byte() {
    let (peer, _) = start_with(|server| server.max_body(64 * 1024));
    let text = |n: usize| format!(r#"{{"text":"{}"}}"#, "a".repeat(n - 11));
    assert_eq!(peer.post("/echo", "", &text(64 * 1024)).await.status, 200);
    peer.post("/echo", "", &text(64 * 1024 + 1)).await.is_problem(413, "payload_too_large");
    // The whole of it is on its way already; the answer is read all the same.
    peer.post("/echo", "", &text(900_000)).await.is_problem(413, "payload_too_large");

    let mut line = peer.connect().await;
    line.write(format!("{HEAD}Content-Length: 99999999\r\n\r\n")).await;
    line.answer().await.is_problem(413, "payload_too_large");
    let mut line = peer.connect().await;
    line.write(format!("{HEAD}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")).await;
    line.answer().await.is_problem(413, "payload_too_large");

    let chunk = format!("1000\r\n{}\r\n", "a".repeat(4096));
    let mut line = peer.connect().await;
    line.write(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(16))).await;
    line.write("1\r\na\r\n").await;
    line.answer().await.is_problem(413, "payload_too_large");
}

#[tokio::test(start_paused = true)]
async fn overload_is_answered_at_once_and_probes_answer() {
    let (peer, worker) = start_with(|server| server.max_in_flight(1));
    let mut held = peer.connect().await;
    held.write(post("/wait", "", "{}")).await;
    worker.0.begun(1).await;
    let refused = peer.post("/echo", "", ECHO).await;
    let problem = refused.is_problem(503, "overloaded");
    assert_eq!((refused.field("retry-after"), &problem["retryable"]), (Some("1"), &true.into()));
    assert_eq!(problem["may_have_executed"], false);
    for probe in ["/health", "/ready", "/metrics", "/capabilities", "/openapi.json", "/docs"] {
        assert_eq!(peer.get(probe).await.status, 200, "{probe}");
    }
    drop(held);
    worker.0.dropped(1).await;
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_trickle_take_no_places() {
    let (peer, _) = start_with(|server| server.max_in_flight(2).max_body(50_000).max_arriving(190_000));
    let mut trickling = Vec::new();
    for _ in 0..20 {
        let mut line = peer.connect().await;
        line.write(format!("{HEAD}Content-Length: 1000\r\n\r\n{}", "a".repeat(100))).await;
        trickling.push(line);
    }
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    // What they hold together is bounded all the same.
    let mut last = peer.connect().await;
    last.write(format!("{HEAD}Content-Length: 50000\r\n\r\n{}", "a".repeat(40_000))).await;
    last.answer().await.is_problem(503, "overloaded");
    for mut line in trickling {
        line.answer().await.is_problem(408, "request_timeout");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_limit_wait() {
    let (peer, _) = start_with(|server| server.max_connections(1));
    let mut first = peer.connect().await;
    first.write(post("/echo", "", ECHO)).await;
    assert_eq!(first.answer().await.status, 200);
    let mut second = peer.connect().await;
    second.write(post("/echo", "", r#"{"text":"b"}"#)).await;
    drop(first);
    assert_eq!(second.answer().await.json()["text"], "b");
}

/// Opens its first connection never, and the others at once.
struct Stuck<A>(A, bool);

impl<A: Acceptor<Io = DuplexStream>> Acceptor for Stuck<A> {
    type Io = DuplexStream;
    type Opening = Pin<Box<dyn Future<Output = io::Result<(DuplexStream, From)>> + Send>>;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        let opening = self.0.accept().await?;
        Ok(match std::mem::replace(&mut self.1, true) {
            // What is there is held, not closed.
            false => Box::pin(async move {
                let _held = opening.await?;
                std::future::pending().await
            }),
            true => Box::pin(opening),
        })
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_connection_that_does_not_open() {
    let (peer, acceptor) = network();
    tokio::spawn(worker().max_connections(2).listen(Stuck(acceptor, false)).unwrap().run());
    let stuck = peer.connect().await;
    sleep(secs(1)).await;
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    assert_eq!(open_for(stuck).await, (9, vec![]));
}

/// An echo that fits into no buffer on the way.
fn large() -> Vec<u8> {
    post("/echo", "", format!(r#"{{"text":"{}"}}"#, "a".repeat(1_000_000)))
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_answer_is_sent() {
    let (peer, _) = start_with(|server| server.max_in_flight(1));
    let mut slow = peer.connect().await;
    slow.write(large()).await;
    sleep(secs(1)).await;
    peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
    assert_eq!(slow.answer().await.status, 200);
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_is_given_up() {
    let (peer, _) = start_with(|server| server.max_in_flight(1));
    let mut line = peer.connect().await;
    line.write(large()).await;
    // The next one waits in the pipe, after the answer that nobody reads.
    sleep(secs(29)).await;
    peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
    sleep(secs(2)).await;
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    assert!(line.try_write(&large()).await.is_err(), "still open");
}

#[tokio::test]
async fn limits_are_checked_and_the_world_is_kept_out() {
    let error = worker().max_body(0).bind("127.0.0.1:0").await.unwrap_err();
    assert_eq!(error.setting(), "max_body");
    for tier in [0, 6] {
        let error = worker().cost_tier(tier).bind("127.0.0.1:0").await.unwrap_err();
        assert_eq!(error.to_string(), format!("`cost_tier` is {tier}: set it to a value from 1 to 5"));
    }
    let error = worker().bind("0.0.0.0:0").await.unwrap_err();
    assert_eq!(error.setting(), "authenticate");
    assert!(worker().open_to_all().bind("0.0.0.0:0").await.is_ok());
    assert_eq!(worker().bind("nowhere.invalid:1").await.unwrap_err().setting(), "address");
    let taken = worker().bind("127.0.0.1:0").await.unwrap();
    let error = worker().bind(taken.local_addr()).await.unwrap_err();
    assert!(error.to_string().ends_with("cannot be listened on"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_a_byte_at_a_time_is_given_up() {
    let (peer, _) = start_with(|server| server.max_in_flight(1));
    let mut stream = peer.stream().await;
    stream.write_all(&large()).await.unwrap();
    for _ in 0..35 {
        sleep(secs(1)).await;
        stream.read_exact(&mut [0]).await.unwrap();
    }
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_a_piece_at_a_time_gets_all_of_it() {
    let (peer, _) = start_with(|server| server.max_in_flight(1));
    let mut stream = peer.stream().await;
    let (begun, mut piece) = (Instant::now(), vec![0; 20_000]);
    stream.write_all(&large()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(br#"","caller":null}"#) {
        sleep(secs(25)).await;
        let taken = stream.read(&mut piece).await.unwrap();
        assert!(taken > 0, "closed after {} bytes", answer.len());
        answer.extend_from_slice(&piece[..taken]);
    }
    assert!(begun.elapsed() > secs(1000), "slower than any limit on the whole");
}
