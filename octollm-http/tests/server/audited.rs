//! What brains and servers write to an audit log, and what they do while it is away.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use async_trait::async_trait;
use http::{header, request::Parts};
use octollm_core::{
    Arm, Context,
    audit::{AuditEntry, AuditLog, best_effort},
    brain::Brain,
    error::{ArmError, ErrorKind, Failure},
    parts::Caller,
    task::{TaskRequest, TaskResult},
};
use octollm_http::Server;
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{arms::start, peer::Peer};

#[derive(Clone, Default)]
struct Log(Arc<(Mutex<Vec<AuditEntry>>, AtomicBool)>);

#[async_trait]
impl AuditLog for Log {
    async fn record(&self, entry: AuditEntry) -> Result<(), Failure> {
        if self.0.1.load(SeqCst) {
            return Err(Failure::of(ErrorKind::Unreachable));
        }
        self.0.0.lock().unwrap().push(entry);
        Ok(())
    }
}

impl Log {
    fn take(&self) -> Vec<AuditEntry> {
        std::mem::take(&mut *self.0.0.lock().unwrap())
    }

    /// Action, subject, scope, target and reason of the only entry.
    fn only(&self) -> [String; 5] {
        let entries = self.take();
        let [entry] = &entries[..] else { panic!("not one entry: {entries:?}") };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        assert!(entry.request_id.is_some());
        let (subject, scope) = (text(&entry.subject), text(&entry.scope));
        [entry.action.clone(), subject, scope, text(&entry.target), text(&entry.reason)]
    }

    fn away(&self, away: bool) {
        self.0.1.store(away, SeqCst);
    }
}

/// Charges a card: not idempotent, so that it honours keys.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.debit", output = u32)]
struct Debit {
    amount: u32,
}

struct Works;

#[async_trait]
impl Arm<Debit> for Works {
    async fn execute(&self, input: Debit, _: &Context) -> Result<u32, ArmError> {
        Ok(input.amount)
    }
}

#[async_trait]
impl Arm<TaskRequest> for Works {
    async fn execute(&self, request: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        match request.goal.as_str() {
            "fail" => Err(ArmError::failed("as asked")),
            _ => std::future::pending().await,
        }
    }
}

fn doorman(head: &Parts) -> Result<Caller, Failure> {
    match head.headers.get(header::AUTHORIZATION).map(|token| token.as_bytes()) {
        None => Ok(Caller::Anonymous),
        Some(b"Bearer ali") => Ok(Caller::known("ali", ["card:*", "task:run"])),
        Some(b"Bearer bob") => Ok(Caller::known("bob", ["text:echo"])),
        Some(_) => Err(Failure::new(ErrorKind::Unauthenticated, "the token is not valid")),
    }
}

fn as_caller(name: &str) -> String {
    format!("Authorization: Bearer {name}\r\n")
}

fn bank(log: impl AuditLog) -> Peer {
    start(Server::new("bank").arm::<Debit>(Works).authenticate(doorman).audit(log))
}

#[tokio::test(start_paused = true)]
async fn a_server_records_refusals_and_answers_of_keys() {
    let log = Log::default();
    let peer = bank(log.clone());
    let charge = async |fields: &str| peer.post("/debit", fields, r#"{"amount":1}"#).await;
    assert_eq!(charge("").await.status, 401);
    assert_eq!(log.only(), ["request.refused", "", "card:debit", "card.debit", "unauthenticated"]);
    assert_eq!(charge(&as_caller("eve")).await.status, 401);
    assert_eq!(log.only(), ["request.refused", "", "", "card.debit", "unauthenticated"]);
    assert_eq!(charge(&as_caller("bob")).await.status, 403);
    assert_eq!(log.only(), ["request.refused", "bob", "card:debit", "card.debit", "insufficient_scope"]);
    let keyed = format!("{}Idempotency-Key: \"k\"\r\n", as_caller("ali"));
    assert_eq!(charge(&keyed).await.status, 200);
    assert!(log.take().is_empty());
    assert_eq!(charge(&keyed).await.field("idempotency-replayed"), Some("true"));
    assert_eq!(log.only(), ["key.answered", "ali", "", "card.debit", ""]);
    log.away(true);
    for fields in ["".to_owned(), as_caller("bob"), keyed] {
        charge(&fields).await.is_problem(503, "unavailable");
    }
    assert_eq!(charge(&as_caller("ali")).await.status, 200, "what is not recorded does not need the log");
    assert_eq!(bank(best_effort(log)).post("/debit", "", r#"{"amount":1}"#).await.status, 401);
}

#[tokio::test(start_paused = true)]
async fn a_brain_records_submissions_cancellations_reruns_and_refusals() {
    let log = Log::default();
    let brain = Brain::builder().arm::<TaskRequest>(Works).audit(log.clone()).build().unwrap();
    let peer = start(Server::new("brain").orchestrator(brain).authenticate(doorman));
    let ali = as_caller("ali");
    let scope = "task:run";
    let submit = async |fields: &str, goal: &str| {
        peer.post("/tasks", fields, &format!("{{\"goal\":\"{goal}\"}}")).await
    };
    let id = submit(&ali, "wait").await.json()["task_id"].as_str().unwrap().to_owned();
    let entries = log.take();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].task.as_ref().unwrap().to_string(), id);
    let named =
        |action: &str, who: &str, reason: &str| [action, who, scope, "task.run", reason].map(str::to_owned);
    assert_eq!(submit(&as_caller("bob"), "wait").await.status, 403);
    assert_eq!(log.only(), named("request.refused", "bob", "insufficient_scope"));
    let delete = format!("DELETE /tasks/{id} HTTP/1.1\r\nHost: x\r\n{ali}\r\n");
    log.away(true);
    peer.send(delete.clone()).await.is_problem(503, "unavailable");
    submit(&ali, "wait").await.is_problem(503, "unavailable");
    submit(&as_caller("bob"), "wait").await.is_problem(503, "unavailable");
    let list = peer.send(format!("GET /tasks HTTP/1.1\r\nHost: x\r\n{ali}\r\n")).await.json();
    assert_eq!(list["tasks"].as_array().unwrap().len(), 1, "nothing was submitted without an entry");
    assert_ne!(list["tasks"][0]["status"], "cancelled", "nor cancelled");
    log.away(false);
    assert_eq!(peer.send(delete).await.json()["status"], "cancelled");
    assert_eq!(log.only(), named("task.cancelled", "ali", ""));
    // A rerun of what did not fail has no effect, and that is recorded too.
    assert_eq!(peer.post(&format!("/tasks/{id}/rerun"), &ali, "{}").await.status, 409);
    let actions: Vec<_> = log.take().into_iter().map(|entry| (entry.action, entry.reason)).collect();
    let expected = [("task.rerun", None), ("request.refused", Some("conflict"))];
    assert_eq!(actions, expected.map(|(action, reason)| (action.to_owned(), reason.map(str::to_owned))));
}

#[tokio::test(start_paused = true)]
async fn a_brain_records_which_task_has_the_key_of_a_submission() {
    let log = Log::default();
    let brain = Brain::builder().arm::<TaskRequest>(Works).audit(log.clone()).build().unwrap();
    let peer = start(Server::new("brain").orchestrator(brain).authenticate(doorman));
    let job = r#"{"contract":"task.run","input":{"goal":"wait"},"unique":"daily"}"#;
    let first = peer.post("/tasks", &as_caller("ali"), job).await.json();
    log.take();
    let again = peer.post("/tasks", &as_caller("ali"), job).await;
    assert_eq!((again.status, &again.json()["task_id"]), (200, &first["task_id"]));
    let entries = log.take();
    let [submitted, answered] = &entries[..] else { panic!("not two entries: {entries:?}") };
    assert_eq!((&*submitted.action, &*answered.action), (AuditEntry::SUBMITTED, AuditEntry::ANSWERED));
    let tasks = [submitted, answered].map(|entry| entry.task.as_ref().unwrap().to_string());
    assert_ne!(tasks[0], tasks[1], "the first is of the task that was not stored");
    assert_eq!(first["task_id"], *tasks[1]);
    assert_eq!(submitted.request_id, answered.request_id);
}
