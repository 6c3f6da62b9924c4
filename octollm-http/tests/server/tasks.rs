//! Orchestrator and reflex servers.

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    error::ArmError,
    reflex::{Observations, Reaction, Reflex, Stimulus},
    task::{TaskRequest, TaskResult},
};
use octollm_http::{BoundServer, OrchestratorServer, ReflexServer};
use serde_json::json;

use crate::peer::Peer;

struct Review;

#[async_trait]
impl Arm<TaskRequest> for Review {
    async fn execute(&self, request: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        match request.goal.as_str() {
            "wait" => std::future::pending().await,
            goal => Ok(TaskResult::new(format!("done: {goal}"))),
        }
    }
}

pub(crate) fn brain() -> Brain {
    Brain::builder().arm::<TaskRequest>(Review).build()
}

/// Refuses, rewrites, answers, fails and panics on demand.
pub(crate) struct Careful;

#[async_trait]
impl Reflex for Careful {
    async fn react(
        &self,
        stimulus: &Stimulus,
        seen: &mut Observations,
        _: &Context,
    ) -> Result<Reaction, ArmError> {
        if stimulus.detect_pii && stimulus.text.contains('@') {
            seen.pii("email");
        }
        Ok(match stimulus.text.as_str() {
            "spam" => {
                seen.risk(0.9);
                Reaction::Refuse("no spam".into())
            }
            "hello" => Reaction::Answer(json!("hello yourself")),
            "fail" => return Err(std::io::Error::other("the password is swordfish").into()),
            "panic" => panic!("the password is swordfish"),
            text if text.contains('@') => Reaction::Rewrite(text.replace('@', " at ")),
            _ => Reaction::Pass,
        })
    }
}

fn spawn(server: BoundServer) -> Peer {
    let peer = Peer(server.local_addr());
    tokio::spawn(server.run());
    peer
}

async fn orchestrator() -> Peer {
    spawn(OrchestratorServer::new(brain()).version("7").bind("127.0.0.1:0").await.unwrap())
}

async fn delete(peer: Peer, path: &str) -> crate::peer::Answer {
    peer.send(format!("DELETE {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

/// Asks until the task has this status.
async fn until(peer: Peer, location: &str, status: &str) -> serde_json::Value {
    let asking = async {
        loop {
            let task = peer.get(location).await.json();
            if task["status"] == status {
                return task;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), asking).await.expect("stays another")
}

#[tokio::test]
async fn a_task_is_submitted_and_followed() {
    let peer = orchestrator().await;
    let accepted = peer.post("/tasks", "", r#"{"goal":"review"}"#).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let id = accepted.json()["task_id"].as_str().unwrap().to_owned();
    let location = accepted.field("location").unwrap();
    assert_eq!(location, format!("/tasks/{id}"));
    let task = until(peer, location, "completed").await;
    assert_eq!(task["result"]["output"], "done: review");
    assert_eq!(delete(peer, location).await.json()["status"], "completed");

    let waiting = peer.post("/tasks", "", r#"{"goal":"wait"}"#).await;
    let location = waiting.field("location").unwrap();
    assert_eq!(delete(peer, location).await.json()["status"], "cancelled");

    let page = peer.get("/tasks?limit=1").await.json();
    assert_eq!(page["tasks"][0]["status"], "cancelled");
    let next = page["next"].as_str().unwrap();
    let page = peer.get(&format!("/tasks?after={next}&limit=5")).await.json();
    assert_eq!(page["tasks"][0]["task_id"], id);
    assert_eq!(peer.get("/tasks?status=failed").await.json()["tasks"], json!([]));
    assert_eq!(peer.get("/capabilities").await.json(), json!({ "arms": [] }));
}

#[tokio::test]
async fn tasks_that_cannot_be_are_refused() {
    let peer = orchestrator().await;
    for (body, status, code) in [
        ("", 400, "bad_request"),
        ("{", 400, "bad_request"),
        (r#"{"goal":""}"#, 422, "validation_failed"),
        (r#"{"goal":"a","gaol":"b"}"#, 422, "validation_failed"),
        (r#"{"contract":"no.such","input":{}}"#, 404, "contract_not_offered"),
    ] {
        peer.post("/tasks", "", body).await.is_problem(status, code);
    }
    peer.post("/tasks", "Octollm-Timeout: 0\r\n", r#"{"goal":"a"}"#)
        .await
        .is_problem(504, "deadline_exceeded");
    for path in ["/tasks/task_0000000000000000", "/tasks/x", "/tasks/%20"] {
        peer.get(path).await.is_problem(404, "task_not_found");
        delete(peer, path).await.is_problem(404, "task_not_found");
    }
    peer.get("/tasks?limit=1000").await.is_problem(400, "bad_request");
    let refused = delete(peer, "/tasks").await;
    refused.is_problem(405, "method_not_allowed");
    assert_eq!(refused.field("allow"), Some("POST, GET, HEAD"));
    let refused = peer.post("/tasks/task_0000000000000000", "", "{}").await;
    refused.is_problem(405, "method_not_allowed");
    assert_eq!(refused.field("allow"), Some("GET, HEAD, DELETE"));
}

async fn reflex() -> Peer {
    let server = ReflexServer::new(Careful).orchestrator(brain());
    spawn(server.bind("127.0.0.1:0").await.unwrap())
}

#[tokio::test]
async fn what_passes_the_reflex_goes_on() {
    let peer = reflex().await;
    let accepted = peer.post("/tasks", "", r#"{"goal":"mail a@b"}"#).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let task = until(peer, accepted.field("location").unwrap(), "completed").await;
    assert_eq!(task["result"]["output"], "done: mail a at b");
    assert_eq!(task["goal"], "mail a at b");
    let problem = peer.post("/tasks", "", r#"{"goal":"spam"}"#).await.is_problem(403, "refused");
    assert_eq!(problem["detail"], "no spam");
    let answered = peer.post("/tasks", "", r#"{"goal":"hello"}"#).await;
    assert_eq!((answered.status, answered.field("location")), (200, None));
    assert_eq!(answered.json()["result"]["output"], "hello yourself");
    assert_eq!(answered.json()["status"], "completed");
    peer.post("/tasks", "", r#"{"goal":""}"#).await.is_problem(422, "validation_failed");
    for goal in ["fail", "panic"] {
        let answer = peer.post("/tasks", "", &json!({ "goal": goal }).to_string()).await;
        assert_eq!(answer.status, 500, "{answer:?}");
        assert!(!answer.body.contains("swordfish"), "{answer:?}");
    }
    assert_eq!(peer.get("/tasks").await.json()["tasks"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_text_is_screened_by_itself() {
    let peer = spawn(ReflexServer::new(Careful).bind("127.0.0.1:0").await.unwrap());
    let screened = peer.post("/preprocess", "", r#"{"input_text":"a@b"}"#).await.json();
    let expected = json!({
        "cache_hit": false, "cached_result": null, "pii_detected": true, "pii_types": ["email"],
        "injection_detected": false, "risk_score": 0.0, "sanitized_input": "a at b", "should_proceed": true,
    });
    assert_eq!(screened, expected);
    let screened = peer.post("/preprocess", "", r#"{"input_text":"a@b","detect_pii":false}"#).await.json();
    assert_eq!(screened["pii_detected"], false);
    let screened = peer.post("/preprocess", "", r#"{"input_text":"hello"}"#).await.json();
    assert_eq!((&screened["cache_hit"], &screened["should_proceed"]), (&true.into(), &false.into()));
    let screened = peer.post("/preprocess", "", r#"{"input_text":"spam"}"#).await.json();
    assert_eq!((&screened["risk_score"], &screened["should_proceed"]), (&0.9.into(), &false.into()));
    peer.post("/tasks", "", r#"{"goal":"a"}"#).await.is_problem(404, "not_found");
    assert_eq!(peer.get("/capabilities").await.json()["arm_id"], "reflex");
}
