//! Callers of HTTP/2 that send much and mean nothing: what they cost is bounded, and others are served.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    arms::start_with,
    faults::{Sockets, start_counted},
    peer::{Line, Peer, post},
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// `:method`, `:scheme http`, `:path /echo` or `/`, `:authority x`, in HPACK (RFC 7541) without compression.
const GET_HEAD: &[u8] = b"\x82\x86\x84\x41\x01x";
const WAIT_HEAD: &[u8] = b"\x83\x86\x44\x05/wait\x41\x01x\x5f\x10application/json";
const POST_HEAD: &[u8] = b"\x83\x86\x44\x05/echo\x41\x01x\x5f\x10application/json";

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub(crate) async fn connect(peer: Peer) -> Line {
    let mut line = peer.connect().await;
    line.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    line.write(frame(SETTINGS, 0, 0, &[])).await;
    line
}

/// Writes until the server has had enough, of so many bytes at most.
async fn flood(mut line: Line, most: usize, mut frames: impl FnMut(u32) -> Vec<u8>) -> Line {
    let mut written = 0;
    for n in 0.. {
        let bytes = frames(n);
        written += bytes.len();
        assert!(written <= most, "the server took {written} bytes");
        if line.try_write(&bytes).await.is_err() {
            return line;
        }
    }
    line
}

/// Floods a server over several connections. Meanwhile others are served at once, and nothing stays afterwards.
async fn others_are_served(peer: Peer, sockets: Sockets, goaway: bool, floods: impl AsyncFn(Line) -> Line) {
    let mut busy = peer.connect().await;
    busy.write(post("/wait", "", r#"{"ms":5000}"#)).await;
    let flooding = async {
        for _ in 0..3 {
            let line = floods(connect(peer).await).await;
            assert_eq!(sent(&line.rest().await, GOAWAY), goaway);
        }
    };
    let served = async {
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(peer.post("/echo", "Connection: close\r\n", r#"{"text":"a"}"#).await.status, 200);
            assert_eq!(begun.elapsed(), Duration::ZERO);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(flooding, served);
    assert_eq!(busy.answer().await.status, 200);
    drop(busy);
    sleep(Duration::from_secs(35)).await;
    assert_eq!(sockets.open(), 0);
}

/// Whether a frame of this kind is among those that the server sent.
pub(crate) fn sent(mut bytes: &[u8], kind: u8) -> bool {
    while let [a, b, c, found, ..] = *bytes {
        if found == kind {
            return true;
        }
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    false
}

/// The buffer of the connection, and what the server reads beyond it.
const MOST: usize = 64 * 1024 + 64 * 1024;

#[tokio::test(start_paused = true)]
async fn fault_32_rapid_reset() {
    let (peer, _, sockets) = start_counted(|server| server);
    let flooded = async |line: Line| {
        flood(line, MOST, |n| {
            let stream = 2 * n + 1;
            let mut frames = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET_HEAD);
            frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            frames
        })
        .await
    };
    others_are_served(peer, sockets, true, flooded).await;
}

#[tokio::test(start_paused = true)]
async fn fault_32_rapid_reset_of_calls_that_run() {
    let (peer, worker, sockets) = start_counted(|server| server.max_in_flight(20));
    let flooded = async |line: Line| {
        flood(line, 4 * MOST, |n| {
            let stream = 2 * n + 1;
            let mut frames = frame(HEADERS, END_HEADERS, stream, WAIT_HEAD);
            frames.extend(frame(DATA, END_STREAM, stream, b"{}"));
            frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            frames
        })
        .await
    };
    others_are_served(peer, sockets, true, flooded).await;
    // Each arm that was called was dropped with its stream, and gave its place back.
    assert_eq!(worker.0.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn fault_32_continuation_flood() {
    let (peer, _, sockets) = start_counted(|server| server);
    let field = b"\x00\x01a\x01b".repeat(1000);
    let flooded = async |mut line: Line| {
        line.write(frame(HEADERS, 0, 1, GET_HEAD)).await;
        flood(line, 2 * MOST, |_| frame(CONTINUATION, 0, 1, &field)).await
    };
    others_are_served(peer, sockets, true, flooded).await;
}

#[tokio::test(start_paused = true)]
async fn fault_32_continuation_flood_of_empty_frames() {
    let (peer, _, sockets) = start_counted(|server| server);
    let flooded = async |mut line: Line| {
        line.write(frame(HEADERS, 0, 1, GET_HEAD)).await;
        flood(line, 2 * MOST, |_| frame(CONTINUATION, 0, 1, &[])).await
    };
    others_are_served(peer, sockets, true, flooded).await;
}

#[tokio::test(start_paused = true)]
async fn fault_32_empty_data_flood() {
    let (peer, _, sockets) = start_counted(|server| server);
    let flooded = async |mut line: Line| {
        line.write(frame(HEADERS, END_HEADERS, 1, POST_HEAD)).await;
        flood(line, 2 * MOST, |_| frame(DATA, 0, 1, &[])).await
    };
    others_are_served(peer, sockets, true, flooded).await;
}

#[tokio::test(start_paused = true)]
async fn fault_32_ping_and_settings_floods_whose_answers_nobody_reads() {
    for question in [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, &[])] {
        let (peer, _, sockets) = start_counted(|server| server);
        let frames = question.repeat(100);
        let flooded = async |line: Line| flood(line, 4 * MOST, |_| frames.clone()).await;
        others_are_served(peer, sockets, false, flooded).await;
    }
}

#[tokio::test(start_paused = true)]
async fn heads_whose_bodies_never_arrive() {
    const SLOW: &str =
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let (peer, _) = start_with(|server| server.max_body(1000).max_arriving(185_000));
    // One more field, of 14,000 bytes.
    let mut head = [POST_HEAD, b"\x00\x01a\x7f\xb1\x6c"].concat();
    head.extend(b"b".repeat(14_000));
    let mut lines = Vec::new();
    for _ in 0..3 {
        let mut line = connect(peer).await;
        for stream in [1, 3] {
            line.write(frame(HEADERS, END_HEADERS, stream, &head)).await;
        }
        lines.push(line);
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let mut slow = peer.connect().await;
    slow.write(SLOW).await;
    slow.answer().await.is_problem(503, "overloaded");
    assert_eq!(peer.get("/health").await.status, 200);
    assert_eq!(peer.post("/echo", "", r#"{"text":"a"}"#).await.status, 200);
    drop(lines);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let mut slow = peer.connect().await;
    slow.write(SLOW).await;
    slow.answer().await.is_problem(408, "request_timeout");
}
