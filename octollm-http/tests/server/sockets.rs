//! Live updates over WebSockets, byte by byte.

use std::time::Duration;

use async_trait::async_trait;
use http::request::Parts;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    error::{ArmError, ErrorKind, Failure},
    parts::{Caller, Grant},
};
use octollm_http::Server;
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use crate::{
    events::{Tell, Teller},
    peer::{Answer, Line, Peer},
};

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

fn server() -> Server {
    Server::new("brain").orchestrator(Brain::builder().arm::<Tell>(Teller).build().unwrap())
}

async fn bound(server: Server) -> (Peer, oneshot::Sender<()>, JoinHandle<()>) {
    let bound = server.bind("127.0.0.1:0").await.unwrap();
    let (peer, (stop, stopped)) = (Peer::Tcp(bound.local_addr()), oneshot::channel::<()>());
    let running = tokio::spawn(bound.run_until(async {
        // Without a sender the server goes on.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    }));
    (peer, stop, running)
}

/// Submits a task, and returns its id.
async fn told(peer: Peer, prefix: &str, fields: &str, words: usize, waits: bool) -> String {
    let body = json!({ "contract": "text.tell", "input": { "words": words, "waits": waits } }).to_string();
    let accepted = peer.post(&format!("{prefix}/tasks"), fields, &body).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    accepted.json()["task_id"].as_str().unwrap().to_owned()
}

const ASKS: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n";
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn asked(peer: Peer, path: &str, fields: &str) -> (Answer, Line) {
    let mut line = peer.connect().await;
    line.write(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).await;
    (line.answer().await, line)
}

/// A WebSocket of a client that can break every rule.
struct Socket(Line);

impl Socket {
    async fn open(peer: Peer, path: &str, fields: &str) -> Self {
        let (answer, line) = asked(peer, path, &format!("{ASKS}{KEY}{fields}")).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(answer.field("upgrade"), Some("websocket"));
        Self(line)
    }

    /// Sends a frame with a mask.
    async fn send(&mut self, first: u8, payload: &[u8]) {
        self.0.write(frame(first, payload)).await;
    }

    async fn ask(&mut self, request: Value) {
        self.send(FIN | TEXT, request.to_string().as_bytes()).await;
    }

    /// The next frame: its first byte and its payload.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let head = self.0.read(2).await;
            assert_eq!(head[1] & 0x80, 0, "a server masks nothing");
            let length = match head[1] {
                126 => u64::from(u16::from_be_bytes(self.0.read(2).await.try_into().unwrap())),
                127 => u64::from_be_bytes(self.0.read(8).await.try_into().unwrap()),
                short => short.into(),
            };
            (head[0], self.0.read(usize::try_from(length).unwrap()).await)
        };
        timeout(Duration::from_secs(10), read).await.expect("no frame")
    }

    /// The next message, joined.
    async fn json(&mut self) -> Value {
        let (first, mut text) = self.frame().await;
        assert_eq!(first & 0xf, TEXT, "{first} {text:?}");
        let mut is_last = first & FIN != 0;
        while !is_last {
            let (first, part) = self.frame().await;
            assert_eq!(first & 0xf, 0);
            text.extend(part);
            is_last = first & FIN != 0;
        }
        serde_json::from_slice(&text).unwrap()
    }

    /// The messages up to the close frame, and its code. Closes as well.
    async fn until_close(&mut self) -> (Vec<Value>, u16) {
        let (mut messages, mut text) = (Vec::new(), Vec::new());
        loop {
            let (first, payload) = self.frame().await;
            match first & 0xf {
                // A close frame may come between the frames of a message.
                TEXT | 0 => {
                    text.extend(payload);
                    if first & FIN != 0 {
                        messages.push(serde_json::from_slice(&std::mem::take(&mut text)).unwrap());
                    }
                }
                CLOSE => {
                    let code = u16::from_be_bytes(payload[..2].try_into().unwrap());
                    let _ = self.0.try_write(&frame(FIN | CLOSE, &payload[..2])).await;
                    return (messages, code);
                }
                _ => {}
            }
        }
    }
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        short @ ..126 => bytes.push(0x80 | short as u8),
        middle @ ..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(0x80 | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

#[tokio::test]
async fn the_updates_of_a_task_arrive_in_order_and_resume_after_any_of_them() {
    let (peer, ..) = bound(server()).await;
    let id = told(peer, "", "", 20, false).await;
    let (whole, code) = Socket::open(peer, &format!("/ws/tasks/{id}"), "").await.until_close().await;
    assert_eq!(code, 1000);
    let numbers: Vec<_> = whole.iter().map(|update| update["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=whole.len() as u64).collect::<Vec<_>>());
    assert_eq!(whole.iter().filter(|update| update["type"] == "chunk").count(), 20);
    assert_eq!(whole.last().unwrap()["result"]["output"], 20);
    for after in 0..=whole.len() {
        let (rest, code) =
            Socket::open(peer, &format!("/ws/tasks/{id}?after={after}"), "").await.until_close().await;
        assert_eq!((rest, code), (whole[after..].to_vec(), 1000), "{after}");
    }
}

#[tokio::test]
async fn one_socket_follows_many_tasks() {
    let (peer, ..) = bound(server().max_subscriptions(3)).await;
    let mut ids = Vec::new();
    for words in 1..=3 {
        ids.push(told(peer, "", "", words, true).await);
    }
    let mut socket = Socket::open(peer, "/ws", "").await;
    for id in &ids {
        socket.ask(json!({ "type": "subscribe", "task_id": id })).await;
        assert_eq!(socket.json().await, json!({ "type": "subscribed", "task_id": id, "after": 0 }));
        let words = ids.iter().position(|other| other == id).unwrap() + 1;
        let mut chunks = 0;
        while chunks < words {
            let update = socket.json().await;
            assert_eq!(update["task_id"], **id);
            chunks += usize::from(update["type"] == "chunk");
        }
    }
    let fourth = told(peer, "", "", 1, true).await;
    socket.ask(json!({ "type": "subscribe", "task_id": fourth })).await;
    let error = socket.json().await;
    assert_eq!((&error["code"], &error["task_id"]), (&json!("overloaded"), &json!(fourth)));
    // What is unsubscribed is not sent, and makes room.
    socket.ask(json!({ "type": "unsubscribe", "task_id": ids[0] })).await;
    socket.ask(json!({ "type": "subscribe", "task_id": fourth, "after": 1 })).await;
    assert_eq!(socket.json().await, json!({ "type": "subscribed", "task_id": fourth, "after": 1 }));
    while socket.json().await["type"] != "chunk" {}
    for id in [&ids[0], &ids[1]] {
        socket.ask(json!({ "type": "cancel", "task_id": id })).await;
    }
    let update = socket.json().await;
    assert_eq!((&update["task_id"], &update["status"]), (&json!(ids[1]), &json!("cancelled")));
    assert_eq!(peer.get(&format!("/tasks/{}", ids[0])).await.json()["status"], "cancelled");
    // What has ended, and has nothing more to send, says so.
    let seq = update["seq"].as_u64().unwrap();
    socket.ask(json!({ "type": "subscribe", "task_id": ids[1], "after": seq - 1 })).await;
    assert_eq!(socket.json().await["type"], "subscribed");
    assert_eq!(socket.json().await, update);
    socket.ask(json!({ "type": "subscribe", "task_id": ids[1], "after": seq })).await;
    assert_eq!(socket.json().await["type"], "subscribed");
    assert_eq!(socket.json().await, json!({ "type": "ended", "task_id": ids[1] }));
    for (request, code) in [
        (json!({ "type": "subscribe", "task_id": "task_0000000000000000" }), "task_not_found"),
        (json!({ "type": "cancel", "task_id": "task_0000000000000000" }), "task_not_found"),
    ] {
        socket.ask(request).await;
        assert_eq!(socket.json().await["code"], code);
    }
}

#[tokio::test]
async fn a_socket_that_cannot_be_is_refused() {
    let (peer, ..) = bound(server().allow_origin("https://ops.example")).await;
    let id = told(peer, "", "", 1, false).await;
    let path = &*format!("/ws/tasks/{id}");
    let asks = &*format!("{ASKS}{KEY}");
    let foreign = |origin: &str| format!("{asks}Origin: {origin}\r\n");
    for (path, fields, status, code) in [
        (path, "", 426, "upgrade_required"),
        ("/ws", "Connection: Upgrade\r\n", 426, "upgrade_required"),
        (path, "Connection: Upgrade\r\nUpgrade: h2c\r\n", 426, "upgrade_required"),
        (path, &format!("{KEY}{}", ASKS.replace("13", "8")), 426, "upgrade_required"),
        (path, &format!("{asks}Sec-WebSocket-Version: 13\r\n"), 426, "upgrade_required"),
        (path, ASKS, 400, "bad_request"),
        (path, &format!("{ASKS}Sec-WebSocket-Key: short\r\n"), 400, "bad_request"),
        (path, &format!("{ASKS}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE=\r\n"), 400, "bad_request"),
        (path, &format!("{asks}{KEY}"), 400, "bad_request"),
        (path, &format!("{asks}Content-Length: 2\r\n"), 400, "bad_request"),
        (path, &foreign("https://evil.example"), 403, "refused"),
        (path, &foreign("null"), 403, "refused"),
        (path, &foreign("http://x.evil.example"), 403, "refused"),
        (path, &format!("{}Origin: http://x\r\n", foreign("http://x")), 403, "refused"),
        ("/ws/tasks/task_0000000000000000", asks, 404, "task_not_found"),
        ("/ws/tasks/x", asks, 404, "task_not_found"),
        (&format!("{path}?after=x"), asks, 400, "bad_request"),
        ("/ws?after=1", asks, 400, "bad_request"),
    ] {
        asked(peer, path, fields).await.0.is_problem(status, code);
    }
    let (answer, _) = asked(peer, path, "").await;
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    let (answer, _) = asked(peer, path, &ASKS.replace("13", "8")).await;
    assert_eq!(answer.field("sec-websocket-version"), Some("13"));
    for origin in ["http://x", "https://x", "https://ops.example"] {
        Socket::open(peer, path, &format!("Origin: {origin}\r\n")).await;
    }
    for origin in ["ops.example", "https://ops.example/", "https://ops.example/page", "*"] {
        let refused = server().allow_origin(origin).bind("127.0.0.1:0").await.unwrap_err();
        assert_eq!(refused.setting(), "allow_origin", "{origin}");
    }
}

#[tokio::test]
async fn frames_that_break_the_protocol_close_with_its_codes() {
    let (peer, ..) = bound(server()).await;
    let large = vec![b'x'; 200 * 1024];
    let joined: Vec<_> = [TEXT, 0, 0, 0, 0, 0].iter().flat_map(|first| frame(*first, &large)).collect();
    let mut unmasked = vec![FIN | TEXT, 2];
    unmasked.extend(b"{}");
    for (what, bytes, code) in [
        ("unmasked", unmasked, 1002),
        ("reserved bits", frame(FIN | 0x40 | TEXT, b"{}"), 1002),
        ("a reserved code", frame(FIN | 3, b"{}"), 1002),
        ("a reserved code of control frames", frame(FIN | 11, b""), 1002),
        ("a long control frame", frame(FIN | PING, &[0; 126]), 1002),
        ("a control frame in parts", frame(PING, b""), 1002),
        ("a continuation of nothing", frame(FIN, b"{}"), 1002),
        ("a message within another", [frame(TEXT, b"{"), frame(FIN | TEXT, b"}")].concat(), 1002),
        ("a close frame of one byte", frame(FIN | CLOSE, b"x"), 1002),
        ("a close code that is reserved", frame(FIN | CLOSE, &1005_u16.to_be_bytes()), 1002),
        ("not UTF-8", frame(FIN | TEXT, b"\xff\xfe"), 1007),
        ("not UTF-8 over two frames", [frame(TEXT, b"\xc3"), frame(FIN, b"\x28")].concat(), 1007),
        ("a large frame", frame(FIN | TEXT, &vec![b'x'; 256 * 1024 + 1])[..100].to_vec(), 1009),
        ("a large message", joined, 1009),
        ("binary", frame(FIN | BINARY, b"{}"), 1003),
    ] {
        let mut socket = Socket::open(peer, "/ws", "").await;
        let _ = socket.0.try_write(&bytes).await;
        assert_eq!(socket.until_close().await, (Vec::new(), code), "{what}");
        assert!(timeout(Duration::from_secs(3), socket.0.rest()).await.is_ok(), "{what}: stays open");
    }
}

#[tokio::test]
async fn what_is_no_request_is_an_error_and_then_the_end() {
    let (peer, ..) = bound(server()).await;
    for text in [
        "",
        "x",
        "[]",
        "{}",
        "{\"type\":\"cancel\"}",
        "{\"type\":\"subscribe\",\"task_id\":\"x\"}",
        "{\"type\":\"listen\",\"task_id\":\"task_0000000000000000\"}",
        "{\"type\":\"cancel\",\"task_id\":\"task_0000000000000000\",\"force\":true}",
        "{\"type\":\"subscribe\",\"task_id\":\"task_0000000000000000\",\"after\":-1}",
        "{\"type\":\"cancel\",\"type\":\"cancel\",\"task_id\":\"task_0000000000000000\"}",
    ] {
        let mut socket = Socket::open(peer, "/ws", "").await;
        socket.send(FIN | TEXT, text.as_bytes()).await;
        let error = socket.json().await;
        let code = error["code"].as_str().unwrap();
        assert!(error["type"] == "error" && ["bad_request", "validation_failed"].contains(&code), "{text}");
        socket.send(FIN | TEXT, text.as_bytes()).await;
        assert_eq!(socket.until_close().await, (Vec::new(), 1008), "{text}");
    }
    // What it has sent is not sent back to it in full.
    let long = "x".repeat(200_000);
    for text in [json!(long), json!({ "type": long }), json!({ "type": "cancel", "task_id": long })] {
        let mut socket = Socket::open(peer, "/ws", "").await;
        socket.ask(text).await;
        let message = socket.json().await["message"].as_str().unwrap().to_owned();
        assert!(message.len() < 300, "{message}");
    }
    let id = told(peer, "", "", 1, true).await;
    let mut socket = Socket::open(peer, &format!("/ws/tasks/{id}"), "").await;
    while socket.json().await["type"] != "chunk" {}
    socket.ask(json!({ "type": "subscribe", "task_id": id })).await;
    assert_eq!(socket.json().await["code"], "bad_request");
    socket.ask(json!({ "type": "cancel", "task_id": id })).await;
    assert_eq!(socket.json().await["status"], "cancelled");
    assert_eq!(socket.until_close().await, (Vec::new(), 1000));
}

#[tokio::test]
async fn pings_are_answered_and_messages_may_come_in_parts() {
    let (peer, ..) = bound(server()).await;
    let mut socket = Socket::open(peer, "/ws", "").await;
    let request = b"{\"type\":\"cancel\",\"task_id\":\"task_0000000000000000\"}";
    socket.send(TEXT, &request[..7]).await;
    socket.send(FIN | PING, b"here").await;
    assert_eq!(socket.frame().await, (FIN | PONG, b"here".to_vec()));
    socket.send(0, b"").await;
    socket.send(FIN, &request[7..]).await;
    assert_eq!(socket.json().await["code"], "task_not_found");
    // The code of the other end is returned, and then the connection is closed.
    socket.send(FIN | CLOSE, &[3, 232, b'b', b'y', b'e']).await;
    let (first, payload) = socket.frame().await;
    assert_eq!((first, &payload[..2]), (FIN | CLOSE, &[3, 232][..]));
    assert!(socket.0.closed().await.is_empty());
}

#[tokio::test]
async fn metrics_count_how_sockets_end() {
    let brain = Brain::builder().arm::<Tell>(Teller).build().unwrap();
    let (peer, ..) = bound(Server::new("counted-sockets").orchestrator(brain)).await;
    let has = async |line: &str| {
        let page = peer.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.body;
        page.lines().any(|found| found == line)
    };
    let until = async |line: &str| {
        let counted = async { while !has(line).await {} };
        timeout(Duration::from_secs(10), counted).await.expect(line);
    };
    let open = |number: u32| format!("octollm_websockets{{server=\"counted-sockets\"}} {number}");
    let closed = |code: &str, number: u32| {
        format!("octollm_websocket_closes_total{{code=\"{code}\",server=\"counted-sockets\"}} {number}")
    };
    let (mut one, mut two) = (Socket::open(peer, "/ws", "").await, Socket::open(peer, "/ws", "").await);
    until(&open(2)).await;
    one.send(FIN | BINARY, b"{}").await;
    assert_eq!(one.until_close().await.1, 1003);
    until(&closed("1003", 1)).await;
    for _ in 0..2 {
        two.send(FIN | TEXT, b"x").await;
    }
    assert_eq!(two.until_close().await.1, 1008);
    until(&closed("1008", 1)).await;
    // The code of a client is no label: it can be any.
    let mut three = Socket::open(peer, "/ws", "").await;
    three.send(FIN | CLOSE, &4321_u16.to_be_bytes()).await;
    assert_eq!(three.until_close().await.1, 4321);
    until(&closed("client", 1)).await;
    assert!(!has(&closed("4321", 1)).await);
    drop(Socket::open(peer, "/ws", "").await);
    until(&closed("lost", 1)).await;
    until(&open(0)).await;
}

#[tokio::test]
async fn too_many_messages_close_the_socket() {
    let (peer, ..) = bound(server().max_socket_messages(2)).await;
    let mut socket = Socket::open(peer, "/ws", "").await;
    let pings = frame(FIN | PING, b"").repeat(25);
    let _ = socket.0.try_write(&pings).await;
    assert_eq!(socket.until_close().await, (Vec::new(), 1008));
}

fn by_token(head: &Parts) -> Result<Caller, Failure> {
    let Some(token) = head.headers.get("authorization") else { return Ok(Caller::Anonymous) };
    Ok(match token.to_str().unwrap().strip_prefix("Bearer ") {
        Some("brief") => {
            let end = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(29);
            Caller::Known(Grant::new("ann", ["text:*"]).valid_until(end).into())
        }
        Some("root") => Caller::known("root", ["tasks:admin", "text:*"]),
        Some(name @ ("ann" | "eve")) => Caller::known(name, ["text:*"]),
        _ => return Err(Failure::of(ErrorKind::Unauthenticated)),
    })
}

#[tokio::test]
async fn a_token_comes_in_either_field_and_is_never_echoed() {
    let (peer, ..) = bound(server().authenticate(by_token)).await;
    let id = told(peer, "", "Authorization: Bearer ann\r\n", 1, true).await;
    let path = &*format!("/ws/tasks/{id}?after=1000");
    let asks = &*format!("{ASKS}{KEY}");
    for (fields, status) in [
        ("Authorization: Bearer ann\r\n", 101),
        ("Sec-WebSocket-Protocol: bearer, ann\r\n", 101),
        ("Sec-WebSocket-Protocol: bearer\r\nSec-WebSocket-Protocol: root\r\n", 101),
        ("Sec-WebSocket-Protocol: bearer, eve\r\n", 404),
        ("Sec-WebSocket-Protocol: bearer, mallory\r\n", 401),
        ("Sec-WebSocket-Protocol: bearer\r\n", 401),
        ("Sec-WebSocket-Protocol: chat\r\n", 401),
        ("", 401),
        ("Sec-WebSocket-Protocol: bearer, ann\r\nAuthorization: Bearer ann\r\n", 400),
    ] {
        let (answer, _) = asked(peer, path, &format!("{asks}{fields}")).await;
        assert_eq!(answer.status, status, "{fields} {answer:?}");
        let has_selected = fields.contains("bearer") && status == 101;
        assert_eq!(answer.field("sec-websocket-protocol"), has_selected.then_some("bearer"), "{fields}");
        assert!(!format!("{answer:?}").contains("mallory"));
    }
    asked(peer, "/ws", asks).await.0.is_problem(401, "unauthenticated");
    // What is asked is checked as the requests that do the same.
    let mut socket = Socket::open(peer, "/ws", "Sec-WebSocket-Protocol: bearer, eve\r\n").await;
    for request in ["subscribe", "cancel"] {
        socket.ask(json!({ "type": request, "task_id": id })).await;
        assert_eq!(socket.json().await["code"], "task_not_found");
    }
    assert_eq!(
        peer.send(format!("GET /tasks/{id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ann\r\n\r\n"))
            .await
            .json()["status"],
        "processing"
    );
}

#[tokio::test]
async fn a_socket_ends_with_the_token_or_the_deadline_of_its_caller() {
    let (peer, ..) = bound(server().authenticate(by_token)).await;
    let id = told(peer, "", "Authorization: Bearer ann\r\n", 1, true).await;
    for fields in ["Authorization: Bearer brief\r\n", "Authorization: Bearer ann\r\nOctollm-Timeout: 300\r\n"]
    {
        let mut socket = Socket::open(peer, &format!("/ws/tasks/{id}"), fields).await;
        let (updates, code) = socket.until_close().await;
        assert_eq!((updates.last().unwrap()["data"].as_str(), code), (Some("word 0"), 1008), "{fields}");
    }
}

#[tokio::test]
async fn sockets_end_with_the_server_within_its_grace() {
    let (peer, stop, running) = bound(server().drain_grace(Duration::from_secs(4))).await;
    let id = told(peer, "", "", 1, false).await;
    let mut polite = Socket::open(peer, "/ws", "").await;
    let silent = Socket::open(peer, "/ws", "").await;
    polite.ask(json!({ "type": "subscribe", "task_id": id })).await;
    while polite.json().await["status"] != "completed" {}
    stop.send(()).unwrap();
    assert_eq!(polite.until_close().await, (Vec::new(), 1001));
    assert!(polite.0.closed().await.is_empty());
    timeout(Duration::from_secs(8), running).await.expect("a socket holds the server up").unwrap();
    assert_eq!(silent.0.rest().await[..4], [FIN | CLOSE, 2 + 15, 3, 233]);
}

#[tokio::test]
async fn a_socket_whose_peer_answers_no_ping_is_dropped() {
    let server = server().event_ping(Duration::from_millis(50)).pong_timeout(Duration::from_millis(100));
    let (peer, ..) = bound(server.max_live_streams(2)).await;
    let mut alive = Socket::open(peer, "/ws", "").await;
    let mut gone = Socket::open(peer, "/ws", "").await;
    asked(peer, "/ws", &format!("{ASKS}{KEY}")).await.0.is_problem(503, "overloaded");
    assert_eq!(gone.frame().await, (FIN | PING, Vec::new()));
    for _ in 0..10 {
        assert_eq!(alive.frame().await, (FIN | PING, Vec::new()));
        alive.send(FIN | PONG, b"").await;
    }
    assert!(gone.0.rest().await.is_empty(), "is dropped, without a word");
    Socket::open(peer, "/ws", "").await;
}

/// Sends so many chunks of a size.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.pour", output = usize, chunk = String, timeout = "60s")]
struct Pour {
    chunks: usize,
    bytes: usize,
}

struct Pourer;

#[async_trait]
impl Arm<Pour> for Pourer {
    async fn execute(&self, pour: Pour, cx: &Context) -> Result<usize, ArmError> {
        // Until those that follow it are there.
        tokio::time::sleep(Duration::from_millis(100)).await;
        for _ in 0..pour.chunks {
            cx.chunk::<Pour>(&"x".repeat(pour.bytes)).await;
            tokio::task::yield_now().await;
        }
        Ok(pour.chunks)
    }
}

async fn poured(peer: Peer, chunks: usize, bytes: usize) -> String {
    let body = json!({ "contract": "text.pour", "input": { "chunks": chunks, "bytes": bytes } });
    let accepted = peer.post("/tasks", "", &body.to_string()).await;
    accepted.json()["task_id"].as_str().unwrap().to_owned()
}

fn pouring() -> Server {
    Server::new("brain").orchestrator(Brain::builder().arm::<Pour>(Pourer).build().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_closed_with_1013_and_slows_nobody() {
    let server = pouring().write_timeout(Duration::from_secs(1)).max_live_streams(2);
    let (peer, ..) = bound(server).await;
    let id = poured(peer, 300, 64 * 1024).await;
    let path = format!("/ws/tasks/{id}");
    let (unread, mut fast) = (Socket::open(peer, &path, "").await, Socket::open(peer, &path, "").await);
    let (updates, code) = fast.until_close().await;
    assert_eq!((&updates.last().unwrap()["status"], code), (&json!("completed"), 1000));
    // One that is never read is dropped, and its place is free.
    let asks = format!("{ASKS}{KEY}");
    let reopened = async {
        loop {
            let both = [asked(peer, &path, &asks), asked(peer, &path, &asks)];
            if futures_util::future::join_all(both).await.iter().all(|(answer, _)| answer.status == 101) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), reopened).await.expect("the place is not free");
    drop(unread);
    // One that reads again after it was closed. A log has at most 1 MiB, which the system would take at once.
    let (peer, ..) = bound(pouring().write_timeout(Duration::from_secs(1))).await;
    let mut ids = Vec::new();
    for _ in 0..16 {
        let id = poured(peer, 20, 64 * 1024).await;
        Socket::open(peer, &format!("/ws/tasks/{id}"), "").await.until_close().await;
        ids.push(id);
    }
    let mut slow = Socket::open(peer, "/ws", "").await;
    for id in ids {
        slow.ask(json!({ "type": "subscribe", "task_id": id })).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    // It has a part of what there was, and then the reason.
    let (messages, code) = slow.until_close().await;
    assert_eq!(code, 1013, "{} messages", messages.len());
}

#[tokio::test]
async fn what_is_unsubscribed_while_it_is_sent_is_sent_no_more() {
    let (peer, ..) = bound(pouring()).await;
    let (long, short) = (poured(peer, 200, 10).await, poured(peer, 1, 10).await);
    for id in [&long, &short] {
        Socket::open(peer, &format!("/ws/tasks/{id}"), "").await.until_close().await;
    }
    let mut socket = Socket::open(peer, "/ws", "").await;
    let requests = [
        json!({ "type": "subscribe", "task_id": long }),
        json!({ "type": "subscribe", "task_id": long, "after": 150 }),
        json!({ "type": "unsubscribe", "task_id": long }),
        json!({ "type": "subscribe", "task_id": short }),
    ];
    let together: Vec<_> =
        requests.iter().flat_map(|request| frame(FIN | TEXT, request.to_string().as_bytes())).collect();
    socket.0.write(together).await;
    let mut expected = None;
    loop {
        let message = socket.json().await;
        match message["type"].as_str().unwrap() {
            "subscribed" if message["task_id"] == short => break,
            "subscribed" => expected = message["after"].as_u64(),
            _ => {
                let next = expected.unwrap() + 1;
                assert_eq!((&message["task_id"], &message["seq"]), (&json!(long), &json!(next)));
                expected = Some(next);
            }
        }
    }
    loop {
        let message = socket.json().await;
        assert_eq!(message["task_id"], short);
        if message["status"] == "completed" {
            break;
        }
    }
}

#[tokio::test]
async fn a_large_update_arrives_in_several_frames() {
    let (peer, ..) = bound(pouring()).await;
    let id = poured(peer, 1, 200_000).await;
    let mut socket = Socket::open(peer, &format!("/ws/tasks/{id}"), "").await;
    let update = loop {
        let update = socket.json().await;
        if update["type"] == "chunk" {
            break update;
        }
    };
    assert_eq!(update["data"].as_str().unwrap().len(), 200_000);
}

#[tokio::test]
async fn a_thousand_sockets_of_a_task_have_every_update_beside_one_that_is_not_read() {
    let (peer, ..) = bound(pouring().max_live_streams(1_001)).await;
    let id = poured(peer, 100, 20).await;
    let path = format!("/ws/tasks/{id}");
    let unread = Socket::open(peer, &path, "").await;
    let mut sockets = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let mut socket = Socket::open(peer, &path, "").await;
        sockets.spawn(async move { socket.until_close().await });
    }
    let mut count = 0;
    while let Some(socket) = sockets.join_next().await {
        let (updates, code) = socket.unwrap();
        let numbers = updates.iter().map(|update| update["seq"].as_u64().unwrap());
        assert!(numbers.eq(1..=updates.len() as u64));
        assert_eq!((&updates.last().unwrap()["status"], code), (&json!("completed"), 1000));
        assert_eq!(updates.iter().filter(|update| update["type"] == "chunk").count(), 100);
        count += 1;
    }
    assert_eq!(count, 1_000);
    drop(unread);
}

#[tokio::test]
async fn a_socket_opens_below_a_prefix_and_not_over_http2() {
    let inner = server().open_to_all().into_service().unwrap();
    let app = axum::Router::new().nest_service("/brain", inner);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let id = told(peer, "/brain", "", 2, false).await;
    let (updates, code) = Socket::open(peer, &format!("/brain/ws/tasks/{id}"), "").await.until_close().await;
    assert_eq!((&updates.last().unwrap()["status"], code), (&json!("completed"), 1000));
    let mut socket = Socket::open(peer, "/brain/ws", "").await;
    socket.send(FIN | TEXT, b"\xff").await;
    assert_eq!(socket.until_close().await.1, 1007);

    let (peer, ..) = bound(server()).await;
    let mut calls = crate::places::caller(peer, 65_535).await;
    let request = http::Request::get("http://x/ws").body(http_body_util::Full::default()).unwrap();
    assert_eq!(calls.send_request(request).await.unwrap().status(), 426);
}
