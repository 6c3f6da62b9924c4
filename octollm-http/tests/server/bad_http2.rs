//! Bad input over HTTP/2: what HTTP allows by a client, and what it does not allow as frames.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio::time::timeout;

use crate::{
    arms::start_with,
    faults::start_counted,
    floods::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, connect, frame},
    peer::Peer,
    places::caller,
};

const ECHO: &str = r#"{"text":"a"}"#;

fn request(method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(format!("http://x{path}"));
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(Full::from(body.to_owned())).unwrap()
}

async fn send(calls: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Response<Incoming> {
    timeout(Duration::from_secs(3600), calls.send_request(request)).await.expect("an answer").unwrap()
}

/// Each row is answered with a problem, all over one connection.
#[tokio::test(start_paused = true)]
async fn every_row_over_http2() {
    let (peer, worker) = start_with(|server| server.max_body(1000));
    let mut calls = caller(peer, 65_535).await;
    let json = ("content-type", "application/json");
    let with =
        |name: &'static str, value: &'static str| request("POST", "/wait", &[json, (name, value)], "{}");
    let (long, field) = ("a".repeat(9000), "b".repeat(17_000));
    let many: Vec<_> = (0..101).map(|n| (format!("x-{n}"), "a")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (&**name, *value)).collect();
    let rows = [
        ("truncated JSON", request("POST", "/wait", &[json], "{"), 400, "bad_request"),
        ("key twice", request("POST", "/wait", &[json], r#"{"ms":1,"ms":2}"#), 400, "bad_request"),
        ("no body", request("POST", "/wait", &[json], ""), 400, "bad_request"),
        ("NUL in the path", request("GET", "/a%00", &[], ""), 400, "bad_request"),
        ("a step upwards", request("GET", "/a/%2e%2e/health", &[], ""), 400, "bad_request"),
        ("negative time", with("octollm-timeout", "-1"), 400, "bad_request"),
        ("malformed key", with("idempotency-key", "\"abc"), 400, "bad_request"),
        (
            "two Authorization fields",
            request(
                "POST",
                "/wait",
                &[json, ("authorization", "Bearer a"), ("authorization", "Bearer b")],
                "{}",
            ),
            400,
            "bad_request",
        ),
        ("a host other than the authority", with("host", "y"), 400, "bad_request"),
        (
            "two hosts",
            request("POST", "/wait", &[json, ("host", "x"), ("host", "x")], "{}"),
            400,
            "bad_request",
        ),
        ("unknown route", request("GET", "/nowhere", &[], ""), 404, "not_found"),
        ("wrong method", request("GET", "/wait", &[], ""), 405, "method_not_allowed"),
        ("unacceptable", with("accept", "text/html"), 406, "not_acceptable"),
        ("too large", request("POST", "/wait", &[json], &"a".repeat(1001)), 413, "payload_too_large"),
        ("long target", request("GET", &format!("/{long}"), &[], ""), 414, "uri_too_long"),
        (
            "another type",
            request("POST", "/wait", &[("content-type", "text/plain")], "{}"),
            415,
            "unsupported_media_type",
        ),
        ("a coding", with("content-encoding", "gzip"), 415, "unsupported_media_type"),
        ("another expectation", with("expect", "200-ok"), 417, "expectation_failed"),
        ("another field", request("POST", "/wait", &[json], r#"{"sm":1}"#), 422, "validation_failed"),
        ("many fields", request("GET", "/health", &many, ""), 431, "headers_too_large"),
        ("unknown method", request("BREW", "/wait", &[], ""), 501, "not_implemented"),
        ("no time left", with("octollm-timeout", "0"), 504, "deadline_exceeded"),
        ("no budget left", with("octollm-budget", "tokens=0"), 429, "budget_exhausted"),
    ];
    for (name, request, status, code) in rows {
        let is_405 = request.method() == Method::GET && status == 405;
        let answer = send(&mut calls, request).await;
        assert_eq!((answer.status().as_u16(), name), (status, name), "{answer:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{name}");
        assert!(!is_405 || answer.headers()["allow"] == "POST");
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&problem["code"], &problem["request_id"]), (&code.into(), &id.into()), "{name}");
    }
    // A head beyond the limit is answered by the protocol itself.
    let answer = send(&mut calls, request("GET", "/health", &[("a", &field)], "")).await;
    assert_eq!(answer.status(), 431);
    assert_eq!(worker.0.begun_so_far(), 0, "nothing of it ran");
    let good = request("POST", "/echo", &[json, ("host", "X")], ECHO);
    assert_eq!(send(&mut calls, good).await.status(), 200);
}

/// A field in HPACK, without compression. Texts are shorter than 127 bytes.
fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend(name.as_bytes());
    bytes.push(u8::try_from(value.len()).unwrap());
    bytes.extend(value);
    bytes
}

/// `:method POST`, `:scheme http`, `:path /wait`, `:authority x`.
const START: &[u8] = b"\x83\x86\x44\x05/wait\x41\x01x";

/// Whether a stream was refused: reset, answered with 400, or the connection given up.
async fn is_refused(peer: Peer, frames: Vec<u8>) -> bool {
    let mut line = connect(peer).await;
    let _ = line.try_write(&frames).await;
    let bytes = line.rest().await;
    let mut rest = &bytes[..];
    while let [a, b, c, kind, _, _, _, _, stream, ..] = *rest {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let payload = &rest[9..9 + length];
        // 400 and 500 have numbers of their own in HPACK.
        let is_400 = kind == HEADERS && payload.contains(&0x8c);
        let is_error = kind == GOAWAY && payload[4..8] != [0; 4];
        if is_400 || is_error || (kind == RST_STREAM && stream == 1) {
            return true;
        }
        rest = &rest[9 + length..];
    }
    false
}

#[tokio::test(start_paused = true)]
async fn what_http2_forbids_is_refused_and_never_run() {
    let (peer, worker, sockets) = start_counted(|server| server);
    let json = literal("content-type", b"application/json");
    let head = |fields: &[&[u8]]| {
        let block = [&[START, &json], fields].concat().concat();
        [frame(HEADERS, END_HEADERS, 1, &block), frame(DATA, END_STREAM, 1, b"{}")].concat()
    };
    // As it should be, it runs for ever.
    let mut good = connect(peer).await;
    good.write(head(&[])).await;
    worker.0.begun(1).await;
    let fields: [(&str, Vec<u8>); 13] = [
        ("Connection", literal("connection", b"close")),
        ("Transfer-Encoding", literal("transfer-encoding", b"chunked")),
        ("Keep-Alive", literal("keep-alive", b"timeout=5")),
        ("Upgrade", literal("upgrade", b"h2c")),
        ("Proxy-Connection", literal("proxy-connection", b"close")),
        ("TE other than trailers", literal("te", b"gzip")),
        ("a name in capitals", literal("X-Field", b"a")),
        ("CR and LF in a value", literal("x-request-id", b"a\r\nx-evil: b")),
        ("LF in a value", literal("x-request-id", b"a\nb")),
        ("NUL in a value", literal("x-request-id", b"a\0b")),
        ("a space in a name", literal("x field", b"a")),
        ("a pseudo-field after others", literal(":path", b"/health")),
        ("an unknown pseudo-field", literal(":else", b"a")),
    ];
    for (name, field) in fields {
        assert!(is_refused(peer, head(&[&field])).await, "{name}");
    }
    let block = |bytes: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, bytes);
    let lengths = |length: &[u8], data: &[u8]| {
        let block = [START, &json, &literal("content-length", length)].concat();
        [frame(HEADERS, END_HEADERS, 1, &block), frame(DATA, END_STREAM, 1, data)].concat()
    };
    let frames = [
        ("more data than its length", lengths(b"1", b"{}")),
        ("less data than its length", lengths(b"3", b"{}")),
        ("a length that is none", lengths(b"+2", b"{}")),
        ("two lengths", head(&[&literal("content-length", b"2"), &literal("content-length", b"3")])),
        ("no method", block(b"\x86\x84\x41\x01x")),
        ("no path", block(b"\x82\x86\x41\x01x")),
        ("no scheme", block(b"\x82\x84\x41\x01x")),
        ("two paths", block(b"\x82\x86\x84\x84\x41\x01x")),
        ("no host", block(b"\x82\x86\x84")),
        ("an empty path", block(b"\x82\x86\x44\x00\x41\x01x")),
        ("an index that does not exist", block(b"\xff\xff\x7f")),
        ("a head on stream 0", frame(HEADERS, END_HEADERS | END_STREAM, 0, START)),
        ("a stream of the server", frame(HEADERS, END_HEADERS | END_STREAM, 2, START)),
        ("data on a stream that is not open", frame(DATA, 0, 1, b"{}")),
        ("a frame that is too large", frame(DATA, 0, 1, &[0; 20_000])),
    ];
    for (name, frames) in frames {
        assert!(is_refused(peer, frames).await, "{name}");
    }
    assert_eq!(worker.0.begun_so_far(), 1);
    assert_eq!(peer.post("/echo", "Connection: close\r\n", ECHO).await.status, 200);
    drop(good);
    worker.0.dropped(1).await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert_eq!(sockets.open(), 0);
}
