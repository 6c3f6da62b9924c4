//! The statuses that `/openapi.json` lists for each route are those that the server sends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use http::request::Parts;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    card::ArmCard,
    error::{ArmError, ErrorKind, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, Orchestrator, TaskPage, TaskUpdates},
    parts::Caller,
    reflex::{Reaction, Reflex, ReflexInput},
    task::{Submission, Task, TaskQuery},
};
use octollm_http::Server;
use serde_json::Value;

use crate::{
    arms::{Echo, Said, start},
    peer::{Peer, post},
    tasks::brain,
};

#[derive(Clone, Copy, Default)]
enum Behaviour {
    #[default]
    Works,
    Fails(ErrorKind),
    Panics,
    Waits,
}

/// An arm, an orchestrator, a reflex and a readiness check that all behave alike.
#[derive(Clone)]
struct Stub {
    behaviour: Arc<Mutex<Behaviour>>,
    brain: Brain,
}

impl Stub {
    fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    async fn act(&self) -> Result<(), Failure> {
        let behaviour = *self.behaviour.lock().unwrap();
        match behaviour {
            Behaviour::Works => Ok(()),
            Behaviour::Fails(kind) => Err(Failure::of(kind)),
            Behaviour::Panics => panic!("as it was asked to"),
            Behaviour::Waits => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Arm<Echo> for Stub {
    async fn execute(&self, input: Echo, _: &Context) -> Result<Said, ArmError> {
        self.act().await.map_err(|failure| ArmError::new(failure.kind, failure.message))?;
        Ok(Said { text: input.text, caller: None })
    }
}

#[async_trait]
impl Reflex for Stub {
    async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        self.act().await.map_err(|failure| ArmError::new(failure.kind, failure.message))?;
        Ok(if input.text() == "hello" { Reaction::Answer("hello yourself".into()) } else { Reaction::Pass })
    }
}

#[async_trait]
impl Orchestrator for Stub {
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        self.act().await?;
        self.brain.submit(submission, cx).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.act().await?;
        self.brain.get(id, cx).await
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        self.act().await?;
        self.brain.list(query, cx).await
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.act().await?;
        self.brain.cancel(id, cx).await
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        self.act().await?;
        self.brain.watch(id, after, cx).await
    }

    async fn rerun(&self, id: &TaskId, _: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        self.act().await?;
        self.brain.get(id, cx).await
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: Option<usize>,
        cx: &Context,
    ) -> Result<(Vec<JournalStep>, Option<u64>), Failure> {
        self.act().await?;
        self.brain.journal(id, after, limit, cx).await
    }

    async fn cards(&self) -> Result<Vec<ArmCard>, Failure> {
        self.act().await?;
        self.brain.cards().await
    }
}

fn authenticated(head: &Parts) -> Result<Caller, Failure> {
    match head.headers.get("x-cause").map(|cause| cause.as_bytes()) {
        Some(b"unknown") => Err(Failure::of(ErrorKind::Unauthenticated)),
        Some(b"forbidden") => Err(Failure::of(ErrorKind::InsufficientScope)),
        _ => Ok(Caller::known("ali", ["task:run", "text:echo", "tasks:admin"])),
    }
}

/// A server with everything.
fn everything(limits: impl FnOnce(Server) -> Server) -> (Peer, Stub) {
    let stub = Stub { behaviour: Arc::default(), brain: brain() };
    let ready = stub.clone();
    let server = Server::new("all")
        .arm::<Echo>(stub.clone())
        .orchestrator(stub.clone())
        .reflex(stub.clone())
        .authenticate(authenticated)
        .check("stub", move || {
            let ready = ready.clone();
            async move { ready.act().await.is_ok() }
        });
    (start(limits(server)), stub)
}

/// An operation of the document.
struct Operation {
    method: String,
    path: String,
    /// A body that it takes.
    body: Option<&'static str>,
    listed: BTreeSet<u16>,
}

impl Operation {
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// A request for it. `fields` are more lines of its head, and `body` is sent in place of its own.
    fn request(&self, id: &str, query: &str, fields: &str, body: Option<&str>) -> Vec<u8> {
        let path = self.path.replace("{id}", id) + query;
        match self.body {
            Some(own) => post(&path, fields, body.unwrap_or(own)),
            None if self.path.starts_with("/ws") => {
                let asks = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
                let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                format!("GET {path} HTTP/1.1\r\nHost: x\r\n{asks}{key}{fields}\r\n").into_bytes()
            }
            None => format!("{} {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n", self.method).into_bytes(),
        }
    }

    /// The kinds of failures that its work can end in.
    fn kinds(&self) -> Vec<ErrorKind> {
        use ErrorKind::*;
        let usual = [RateLimited, ArmFailed, Unavailable, DeadlineExceeded];
        let more: &[_] = match (self.path.contains("{id}"), self.body) {
            (true, _) => &[TaskNotFound, Conflict, NotImplemented],
            (false, Some(_)) => &[NotFound, Conflict, UpstreamFailed],
            (false, None) => &[],
        };
        usual.iter().chain(more).copied().collect()
    }
}

async fn operations(peer: Peer) -> Vec<Operation> {
    let document = peer.get("/openapi.json").await.json();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let body = match (path.as_str(), method.as_str()) {
                ("/echo", "post") => Some(r#"{"text":"a"}"#),
                ("/execute", "post") => Some(r#"{"contract":"text.echo","input":{"text":"a"}}"#),
                ("/preprocess", "post") => Some(r#"{"input_text":"a"}"#),
                ("/tasks", "post") => Some(r#"{"goal":"a"}"#),
                ("/tasks/{id}/rerun", "post") => Some("{}"),
                _ => None,
            };
            assert_eq!(body.is_some(), operation.get("requestBody").is_some(), "{method} {path}");
            operations.push(Operation {
                method: method.to_ascii_uppercase(),
                path: path.clone(),
                body,
                listed: listed(operation),
            });
        }
    }
    operations
}

fn listed(operation: &Value) -> BTreeSet<u16> {
    operation["responses"].as_object().unwrap().keys().filter_map(|status| status.parse().ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_list_of_arms_that_cannot_be_read_is_no_empty_one() {
    let stub = Stub { behaviour: Arc::default(), brain: brain() };
    let front = start(Server::new("front").orchestrator(stub.clone()));
    let (arm, own) = everything(|server| server);
    for (kind, status) in [(ErrorKind::Unreachable, 503), (ErrorKind::ConnectionLost, 502)] {
        for path in ["/arms", "/capabilities"] {
            assert_eq!(front.get(path).await.json()["arms"], serde_json::json!([]));
            stub.set(Behaviour::Fails(kind));
            front.get(path).await.is_problem(status, kind.code());
            stub.set(Behaviour::Works);
            // One that has contracts of its own can be called all the same.
            own.set(Behaviour::Fails(kind));
            let card = arm.get(path).await.json();
            assert_eq!((&card["arm_id"], &card["arms"]), (&"all".into(), &serde_json::json!([])));
            own.set(Behaviour::Works);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_document_lists_the_statuses_that_the_server_sends() {
    let (peer, stub) = everything(|server| server.max_body(1000));
    let operations = operations(peer).await;
    let task = peer.post("/tasks", "", r#"{"goal":"wait"}"#).await.json();
    let id = task["task_id"].as_str().unwrap_or_else(|| panic!("{task}"));
    let long = format!("?{}", "a".repeat(9000));
    let many: String = (0..100).map(|n| format!("X-Field-{n}: a\r\n")).collect();
    let large = format!(r#"{{"text":"{}"}}"#, "a".repeat(1000));
    let text = "Content-Type: text/plain\r\n";

    // By operation: each status, and a cause of it.
    let mut sent: BTreeMap<String, BTreeMap<u16, &str>> = BTreeMap::new();
    let mut note = |operation: &Operation, cause, status| {
        sent.entry(operation.name()).or_default().entry(status).or_insert(cause);
    };
    for operation in &operations {
        let mut requests = vec![
            ("a good request", operation.request(id, "", "", None)),
            ("a malformed limit", operation.request(id, "", "Octollm-Timeout: x\r\n", None)),
            ("another media type asked for", operation.request(id, "", "Accept: text/html\r\n", None)),
            ("a long target", operation.request(id, &long, "", None)),
            ("an expectation", operation.request(id, "", "Expect: more\r\n", None)),
            ("many fields", operation.request(id, "", &many, None)),
            ("no identity", operation.request(id, "", "X-Cause: unknown\r\n", None)),
            ("no scope", operation.request(id, "", "X-Cause: forbidden\r\n", None)),
            ("an answer that it has", operation.request(id, "", "If-None-Match: *\r\n", None)),
        ];
        if operation.path.starts_with("/ws") {
            requests.extend([
                ("another version", operation.request(id, "", "Sec-WebSocket-Version: 8\r\n", None)),
                ("a time that is over", operation.request(id, "", "Octollm-Timeout: 0\r\n", None)),
            ]);
        }
        if operation.body.is_some() {
            let unsent = operation.request(id, "", "", Some("{}"));
            requests.extend([
                ("an answer of the reflex", operation.request(id, "", "", Some(r#"{"goal":"hello"}"#))),
                ("a large body", operation.request(id, "", "", Some(&large))),
                ("another content type", operation.request(id, "", text, None)),
                ("a field too many", operation.request(id, "", "", Some(r#"{"other":1}"#))),
                ("no JSON", operation.request(id, "", "", Some("{"))),
                ("half a body", unsent[..unsent.len() - 1].to_vec()),
            ]);
        }
        for (cause, request) in requests {
            note(operation, cause, peer.send(request).await.status);
        }
        for kind in operation.kinds() {
            stub.set(Behaviour::Fails(kind));
            note(operation, kind.code(), peer.send(operation.request(id, "", "", None)).await.status);
        }
        for (behaviour, cause) in [(Behaviour::Panics, "a panic"), (Behaviour::Waits, "a deadline")] {
            stub.set(behaviour);
            let request = operation.request(id, "", "Octollm-Timeout: 50\r\n", None);
            note(operation, cause, peer.send(request).await.status);
        }
        stub.set(Behaviour::Works);
    }

    let (peer, stub) = everything(|server| server.max_in_flight(1).max_live_streams(1));
    stub.set(Behaviour::Waits);
    let (mut document, mut call) = (peer.connect().await, peer.connect().await);
    let mut stream = peer.connect().await;
    stream.write(format!("GET /tasks/{id}/events HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    document.write("GET /arms HTTP/1.1\r\nHost: x\r\n\r\n").await;
    call.write(post("/echo", "", r#"{"text":"a"}"#)).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    for operation in &operations {
        note(operation, "a busy server", peer.send(operation.request(id, "", "", None)).await.status);
    }

    let mut wrong = Vec::new();
    for operation in &operations {
        let (sent, listed) = (&sent[&operation.name()], &operation.listed);
        let unlisted = sent.iter().filter(|(status, _)| !listed.contains(status));
        wrong
            .extend(unlisted.map(|(status, cause)| {
                format!("{}: {status} after {cause} is not listed", operation.name())
            }));
        let unsent = listed.iter().filter(|status| !sent.contains_key(status));
        wrong.extend(unsent.map(|status| format!("{}: {status} is listed and never sent", operation.name())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
