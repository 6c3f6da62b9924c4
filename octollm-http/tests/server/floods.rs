//! Callers of HTTP/2 that send much and mean nothing: what they cost is bounded, and others are served.

use crate::{
    arms::start_with,
    peer::{Line, Peer},
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// `:method`, `:scheme http`, `:path /echo` or `/`, `:authority x`, in HPACK (RFC 7541) without compression.
const GET_HEAD: &[u8] = b"\x82\x86\x84\x41\x01x";
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

/// Writes until the server has had enough.
async fn flood(mut line: Line, mut frames: impl FnMut(u32) -> Vec<u8>) -> Line {
    for n in 0..100_000 {
        if line.try_write(&frames(n)).await.is_err() {
            return line;
        }
    }
    panic!("the server took all of it");
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

#[tokio::test(start_paused = true)]
async fn streams_opened_and_reset() {
    let (peer, _) = start_with(|server| server);
    let line = flood(connect(peer).await, |n| {
        let stream = 2 * n + 1;
        let mut frames = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET_HEAD);
        frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        frames
    });
    let (line, answer) = tokio::join!(line, peer.get("/health"));
    assert_eq!(answer.status, 200);
    assert!(sent(&line.rest().await, GOAWAY));
}

#[tokio::test(start_paused = true)]
async fn a_head_without_an_end() {
    let (peer, _) = start_with(|server| server);
    let mut line = connect(peer).await;
    line.write(frame(HEADERS, 0, 1, GET_HEAD)).await;
    let field = b"\x00\x01a\x01b".repeat(1000);
    let line = flood(line, |_| frame(CONTINUATION, 0, 1, &field));
    let (line, answer) = tokio::join!(line, peer.get("/health"));
    assert_eq!(answer.status, 200);
    assert!(sent(&line.rest().await, GOAWAY));
}

#[tokio::test(start_paused = true)]
async fn data_without_data() {
    let (peer, _) = start_with(|server| server);
    let mut line = connect(peer).await;
    line.write(frame(HEADERS, END_HEADERS, 1, POST_HEAD)).await;
    let line = flood(line, |_| frame(DATA, 0, 1, &[]));
    let (line, answer) = tokio::join!(line, peer.post("/echo", "", r#"{"text":"a"}"#));
    assert_eq!(answer.status, 200);
    assert!(sent(&line.rest().await, GOAWAY));
}

#[tokio::test(start_paused = true)]
async fn questions_whose_answers_nobody_reads() {
    let (peer, _) = start_with(|server| server);
    for question in [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, &[])] {
        let frames = question.repeat(100);
        let line = flood(connect(peer).await, |_| frames.clone());
        let (_, answer) = tokio::join!(line, peer.get("/health"));
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn heads_whose_bodies_never_arrive() {
    const SLOW: &str =
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let (peer, _) = start_with(|server| server.max_arriving(185_000));
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
