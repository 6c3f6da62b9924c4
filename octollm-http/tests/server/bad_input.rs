//! Bad input, and what is answered: every row is bytes as a caller sends them.

use crate::{
    arms::{Worker, server, start},
    peer::{Peer, post},
};

fn peer() -> Peer {
    start(server(&Worker::default()))
}

/// What it is called, what is sent, and the status and code of the answer. Without a code the answer is hyper's own, which
/// has no body.
type Row = (&'static str, Vec<u8>, u16, &'static str);

const BARE: &str = "";

async fn all_are_answered(peer: Peer, rows: Vec<Row>) {
    for (name, bytes, status, code) in rows {
        let answer = peer.send(&bytes).await;
        assert_eq!((answer.status, name), (status, name), "{answer:?}");
        match code {
            BARE => assert_eq!(answer.body, "", "{name}"),
            code => drop(answer.is_problem(status, code)),
        }
    }
    let answer = peer.post("/echo", "", r#"{"text":"still here"}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn raw(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

const HEAD: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

fn head(fields: &str, body: &str) -> Vec<u8> {
    format!("{HEAD}{fields}\r\n{body}").into_bytes()
}

fn get(target: &str, fields: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes()
}

fn field(fields: &str) -> Vec<u8> {
    post("/echo", fields, r#"{"text":"hi"}"#)
}

fn body(body: impl AsRef<[u8]>) -> Vec<u8> {
    post("/echo", "", body)
}

fn framing_rows() -> Vec<Row> {
    let chunks = "d\r\n{\"text\":\"hi\"}\r\n0\r\n\r\n";
    vec![
        ("differing lengths", head("Content-Length: 2\r\nContent-Length: 3\r\n", "{}"), 400, BARE),
        ("length with sign", head("Content-Length: +2\r\n", "{}"), 400, BARE),
        ("list of lengths", head("Content-Length: 2, 3\r\n", "{}"), 400, BARE),
        ("length out of range", head("Content-Length: 99999999999999999999\r\n", "{}"), 400, BARE),
        ("not chunked at the end", head("Transfer-Encoding: chunked, gzip\r\n", chunks), 400, BARE),
        ("not chunked at all", head("Transfer-Encoding: identity\r\n", chunks), 400, BARE),
        ("chunked after gzip", head("Transfer-Encoding: gzip, chunked\r\n", chunks), 400, "bad_request"),
        (
            "bad chunk size",
            head("Transfer-Encoding: chunked\r\n", "xyz\r\n{}\r\n0\r\n\r\n"),
            400,
            "bad_request",
        ),
        ("no host", raw("GET /health HTTP/1.1\r\n\r\n"), 400, "bad_request"),
        ("two hosts", get("/health", "Host: y\r\n"), 400, "bad_request"),
        ("folded field", get("/health", "X-A: 1\r\n  2\r\n"), 400, BARE),
        ("space before the colon", get("/health", "X-A : 1\r\n"), 400, BARE),
        ("field without a name", get("/health", ": 1\r\n"), 400, BARE),
        ("control in a field", get("/health", "X-A: \u{1}\r\n"), 400, BARE),
        ("no version", raw("GET /health\r\nHost: x\r\n\r\n"), 400, BARE),
        ("unknown version", raw("GET /health HTTP/3.7\r\nHost: x\r\n\r\n"), 400, BARE),
        ("no HTTP", raw("\u{16}\u{3}\u{1} hello\r\n\r\n"), 400, BARE),
    ]
}

#[tokio::test(start_paused = true)]
async fn framing() {
    all_are_answered(peer(), framing_rows()).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_length_ends_the_connection() {
    let peer = peer();
    let chunks = "c\r\n{\"text\":\"a\"}\r\n0\r\n\r\n";
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
    ] {
        // It is read as chunks, and the request that somebody else may see after it is not read.
        let mut line = peer.connect().await;
        line.write([head(fields, chunks), field("")].concat()).await;
        let answer = line.answer().await;
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")), "{fields}");
        assert_eq!(line.closed().await, b"", "{fields}");
    }
}

fn json_rows() -> Vec<Row> {
    let nested =
        |depth: usize| format!(r#"{{"text":"a","data":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    vec![
        ("truncated", body(r#"{"text":"hi""#), 400, "bad_request"),
        ("key twice", body(r#"{"text":"a","text":"b"}"#), 400, "bad_request"),
        ("key twice further down", body(r#"{"text":"a","data":{"b":[{"c":1,"c":2}]}}"#), 400, "bad_request"),
        ("too deep", body(nested(129)), 400, "bad_request"),
        ("far too deep", body(nested(100_000)), 400, "bad_request"),
        ("NaN", body(r#"{"text":"a","number":NaN}"#), 400, "bad_request"),
        ("beyond any number", body(r#"{"text":"a","number":1e999}"#), 400, "bad_request"),
        ("not UTF-8", body(b"{\"text\":\"\xff\"}"), 400, "bad_request"),
        ("half a surrogate pair", body(r#"{"text":"\ud800"}"#), 400, "bad_request"),
        ("something after it", body(r#"{"text":"a"} x"#), 400, "bad_request"),
        ("two values", body(r#"{"text":"a"}{"text":"b"}"#), 400, "bad_request"),
        ("empty", body(""), 400, "bad_request"),
        ("space", body("  "), 400, "bad_request"),
        ("another type", body(r#"{"text":1}"#), 422, "validation_failed"),
        ("a field missing", body("{}"), 422, "validation_failed"),
        ("an unknown field", body(r#"{"text":"a","txet":"b"}"#), 422, "validation_failed"),
        ("no object", body("[]"), 422, "validation_failed"),
    ]
}

#[tokio::test(start_paused = true)]
async fn json() {
    all_are_answered(peer(), json_rows()).await;
}

fn head_rows() -> Vec<Row> {
    let long = |n: usize| "a".repeat(n);
    let key = |key: &str| field(&format!("Idempotency-Key: {key}\r\n"));
    vec![
        ("NUL in the path", get("/a%00", ""), 400, "bad_request"),
        ("a step upwards", get("/a/%2e%2e/health", ""), 400, "bad_request"),
        ("half an escape", get("/a%2", ""), 400, "bad_request"),
        ("no escape", get("/a%zz", ""), 400, "bad_request"),
        ("who is it", field("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400, "bad_request"),
        ("key with a quote within", key("ab\"c"), 400, "bad_request"),
        ("key without an end", key("\"abc"), 400, "bad_request"),
        ("key without characters", key("\"\""), 400, "bad_request"),
        ("key too long", key(&format!("\"{}\"", long(256))), 400, "bad_request"),
        ("key twice", field("Idempotency-Key: \"a\"\r\nIdempotency-Key: \"a\"\r\n"), 400, "bad_request"),
        ("negative time", field("Octollm-Timeout: -1\r\n"), 400, "bad_request"),
        ("overflowing time", field("Octollm-Timeout: 99999999999999999999999\r\n"), 400, "bad_request"),
        ("no time", field("Octollm-Timeout: soon\r\n"), 400, "bad_request"),
        ("no budget", field("Octollm-Budget: tokens=-1\r\n"), 400, "bad_request"),
        ("no time left", field("Octollm-Timeout: 0\r\n"), 504, "deadline_exceeded"),
        ("no budget left", field("Octollm-Budget: tokens=0\r\n"), 429, "budget_exhausted"),
        ("unknown route", get("/nowhere", ""), 404, "not_found"),
        ("live updates are not there yet", get("/ws", ""), 404, "not_found"),
        ("unknown method", raw("BREW /echo HTTP/1.1\r\nHost: x\r\n\r\n"), 501, "not_implemented"),
        ("long target", get(&format!("/{}", long(8 * 1024)), ""), 414, "uri_too_long"),
        ("very long target", get(&format!("/{}", long(20 * 1024)), ""), 431, BARE),
        ("endless target", get(&format!("/{}", long(100 * 1024)), ""), 431, BARE),
        ("too many fields", get("/health", &"a: b\r\n".repeat(101)), 431, BARE),
        ("long field", get("/health", &format!("a: {}\r\n", long(17 * 1024))), 431, BARE),
        ("other expectation", field("Expect: 200-ok\r\n"), 417, "expectation_failed"),
    ]
}

#[tokio::test(start_paused = true)]
async fn heads_and_paths() {
    all_are_answered(peer(), head_rows()).await;
}

fn media_rows() -> Vec<Row> {
    let typed = |value: &str| {
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{value}\r\n{{}}").into_bytes()
    };
    vec![
        ("no type", typed(""), 415, "unsupported_media_type"),
        ("text", typed("Content-Type: text/plain\r\n"), 415, "unsupported_media_type"),
        (
            "another charset",
            typed("Content-Type: application/json; charset=latin1\r\n"),
            415,
            "unsupported_media_type",
        ),
        ("two types", field("Content-Type: application/json\r\n"), 415, "unsupported_media_type"),
        ("coded", field("Content-Encoding: gzip\r\n"), 415, "unsupported_media_type"),
        ("coded twice", field("Content-Encoding: identity, gzip\r\n"), 415, "unsupported_media_type"),
        ("nothing acceptable", field("Accept: text/html\r\n"), 406, "not_acceptable"),
        ("JSON not acceptable", get("/health", "Accept: application/json;q=0\r\n"), 406, "not_acceptable"),
    ]
}

#[tokio::test(start_paused = true)]
async fn media() {
    all_are_answered(peer(), media_rows()).await;
    let peer = peer();
    for field in [
        "Accept: text/html, */*;q=0.1\r\n",
        "Content-Encoding: identity\r\n",
        "Idempotency-Key: \"a\\\"b\"\r\n",
        "Idempotency-Key: abc\r\n",
    ] {
        let answer = peer.post("/echo", field, r#"{"text":"hi"}"#).await;
        assert_eq!(answer.status, 200, "{field} {answer:?}");
    }
}

#[tokio::test]
async fn every_row_over_a_socket() {
    let server = server(&Worker::default()).bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(server.local_addr());
    tokio::spawn(server.run());
    all_are_answered(peer, framing_rows()).await;
    all_are_answered(peer, json_rows()).await;
    all_are_answered(peer, head_rows()).await;
    all_are_answered(peer, media_rows()).await;
    all_are_answered(peer, method_and_length_rows()).await;
}

fn method_and_length_rows() -> Vec<Row> {
    let length = |length: &str| format!("{HEAD}Content-Length: {length}\r\n\r\n").into_bytes();
    let method =
        |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    vec![
        ("GET where POST is taken", method("GET", "/echo"), 405, "method_not_allowed"),
        ("DELETE where GET is taken", method("DELETE", "/health"), 405, "method_not_allowed"),
        ("TRACE", method("TRACE", "/health"), 405, "method_not_allowed"),
        ("CONNECT", raw("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n"), 404, "not_found"),
        ("a method in small letters", method("post", "/echo"), 501, "not_implemented"),
        ("too long by its length", length("2097153"), 413, "payload_too_large"),
        ("far too long by its length", length("18446744073709551615"), 431, BARE),
        ("longer than any length", length("99999999999999999999999"), 400, BARE),
        (
            "an upgrade to a protocol that is not there",
            get("/ws", "Connection: upgrade\r\nUpgrade: websocket\r\n"),
            404,
            "not_found",
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn methods_and_lengths() {
    let peer = peer();
    all_are_answered(peer, method_and_length_rows()).await;
    let wrong = peer.get("/echo").await;
    assert_eq!(wrong.field("allow"), Some("POST"), "{wrong:?}");
    let wrong = peer.post("/capabilities", "", "{}").await;
    assert_eq!(wrong.field("allow"), Some("GET, HEAD"), "{wrong:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_answered_is_not_run() {
    let worker = Worker::default();
    let peer = start(server(&worker));
    let rows = [framing_rows(), json_rows(), head_rows(), media_rows()].concat();
    for (name, bytes, ..) in rows.into_iter().filter(|row| row.0 != "a field missing") {
        // The same for an arm that counts, and for which the input of the echo would be no input either.
        let text = String::from_utf8_lossy(&bytes).replace("POST /echo", "POST /wait");
        let answer = peer.send(text.as_bytes()).await;
        assert!(answer.status >= 400, "{name}: {answer:?}");
    }
    assert_eq!(worker.0.begun_so_far(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_answers_is_never_rewritten() {
    let peer = peer();
    let forged = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    // So long that it is written in pieces, one of which begins with it.
    let text = forged.repeat(1 << 14);
    let body = serde_json::json!({ "text": text }).to_string();
    let mut line = peer.connect().await;
    for _ in 0..2 {
        line.write(post("/echo", "", &body)).await;
        let answer = line.answer().await;
        assert_eq!((answer.status, answer.json()["text"].as_str()), (200, Some(&*text)));
    }
}

#[tokio::test(start_paused = true)]
async fn many_mistakes_make_no_long_answer() {
    let peer = peer();
    let fields: Vec<_> = (0..50_000).map(|n| format!("\"{n}\":1")).collect();
    let answer = peer.post("/echo", "", &format!("{{{}}}", fields.join(","))).await;
    answer.is_problem(422, "validation_failed");
    assert!(answer.body.len() < 20_000, "{}", answer.body.len());
}
