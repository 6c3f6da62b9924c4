//! Orchestrator and reflex servers.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    card::ArmCard,
    error::{ArmError, ErrorKind, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, Orchestrator, TaskPage, TaskUpdates},
    reflex::{Reaction, Reflex, ReflexInput},
    task::{Submission, Task, TaskQuery, TaskRecord, TaskRequest, TaskResult},
};
use octollm_http::Server;
use serde::Deserialize;
use serde_json::json;

use crate::{arms::start, peer::Peer};

pub(crate) struct Review;

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
    Brain::builder().arm(Review).build().unwrap()
}

/// Refuses, rewrites, answers, fails and panics on demand.
pub(crate) struct Careful;

#[async_trait]
impl Reflex for Careful {
    async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        if input.detect_pii && input.text().contains('@') {
            input.add_pii("email");
        }
        Ok(match input.text() {
            "spam" => {
                input.raise_risk(0.9);
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

fn orchestrator() -> Peer {
    start(Server::new("orchestrator").orchestrator(brain()).version("7"))
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

#[tokio::test(start_paused = true)]
async fn a_task_is_submitted_and_followed() {
    let peer = orchestrator();
    let accepted = peer.post("/tasks", "", r#"{"goal":"review"}"#).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let id = accepted.json()["task_id"].as_str().unwrap().to_owned();
    assert_eq!(accepted.field("location"), Some(&*format!("tasks/{id}")), "relative to the request");
    let location = &*format!("/tasks/{id}");
    let task = until(peer, location, "completed").await;
    assert_eq!(task["result"]["output"], "done: review");
    assert_eq!(delete(peer, location).await.json()["status"], "completed");

    let waiting = peer.post("/tasks", "", r#"{"goal":"wait"}"#).await;
    let location = &*format!("/{}", waiting.field("location").unwrap());
    assert_eq!(delete(peer, location).await.json()["status"], "cancelled");

    let page = peer.get("/tasks?limit=1").await.json();
    assert_eq!(page["tasks"][0]["status"], "cancelled");
    let next = page["next"].as_str().unwrap();
    let page = peer.get(&format!("/tasks?after={next}&limit=5")).await.json();
    assert_eq!(page["tasks"][0]["task_id"], id);
    assert_eq!(peer.get("/tasks?status=failed").await.json()["tasks"], json!([]));
    assert_eq!(peer.get("/capabilities").await.json(), json!({ "arms": [] }));
}

#[tokio::test(start_paused = true)]
async fn tasks_that_cannot_be_are_refused() {
    let peer = orchestrator();
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

#[tokio::test(start_paused = true)]
async fn a_job_has_a_start_a_key_and_attempts() {
    let peer = orchestrator();
    let job = r#"{"contract":"task.run","input":{"goal":"review"},"run_in_seconds":60,"unique":"daily","attempts":3}"#;
    let accepted = peer.post("/tasks", "", job).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let task = accepted.json();
    assert!(task["run_at"].as_str() > task["created_at"].as_str(), "{task}");
    assert_eq!(
        (&task["attempt"], &task["existing"], &task["goal"]),
        (&json!(1), &json!(null), &json!("review"))
    );
    // Another input, with the same key.
    let other = r#"{"contract":"task.run","input":{"goal":"other"},"unique":"daily"}"#;
    let existing = peer.post("/tasks", "", other).await;
    assert_eq!((existing.status, existing.field("location")), (200, accepted.field("location")));
    let same = existing.json();
    assert_eq!((&same["task_id"], &same["existing"]), (&task["task_id"], &json!(true)));
    assert_eq!(same["goal"], "review");
    let location = &*format!("/{}", accepted.field("location").unwrap());
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(peer.get(location).await.json()["status"], "queued");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = peer.get(location).await.json();
    assert_eq!((&ended["status"], &ended["existing"]), (&json!("completed"), &json!(null)));
    assert_eq!(peer.post("/tasks", "", other).await.status, 202, "its key is free");
}

#[tokio::test(start_paused = true)]
async fn jobs_that_cannot_be_are_refused_with_the_names_of_their_members() {
    let peer = orchestrator();
    let long = format!(r#""unique":"{}""#, "k".repeat(129));
    for (members, path) in [
        (r#""run_at":"tomorrow""#, "run_at"),
        (r#""run_at":"2026-02-30T00:00:00Z""#, "run_at"),
        (r#""run_at":12345"#, "run_at"),
        (r#""run_at":"9000-01-01T00:00:00Z""#, "run_at"),
        (r#""run_at":"2026-11-27T00:00:00Z","run_in_seconds":1"#, "run_at"),
        (r#""run_in_seconds":-1"#, "run_in_seconds"),
        (r#""run_in_seconds":1e300"#, "run_in_seconds"),
        (r#""run_in_seconds":315360001"#, "run_in_seconds"),
        (r#""run_in_seconds":"60""#, "run_in_seconds"),
        (r#""unique":"""#, "unique"),
        (r#""unique":"a b""#, "unique"),
        (r#""unique":"\u0000""#, "unique"),
        (r#""unique":7"#, "unique"),
        (&long, "unique"),
        (r#""attempts":0"#, "attempts"),
        (r#""attempts":101"#, "attempts"),
        (r#""attempts":1.5"#, "attempts"),
        (r#""attempts":null"#, "attempts"),
        (r#""run_before":"2026-11-27T00:00:00Z""#, "run_before"),
    ] {
        let body = format!(r#"{{"contract":"task.run","input":{{"goal":"a"}},{members}}}"#);
        let refused = peer.post("/tasks", "", &body).await;
        refused.is_problem(422, "validation_failed");
        let violations = &refused.json()["details"]["violations"];
        assert_eq!(violations[0]["path"], path, "{members}: {violations}");
    }
    for members in [r#""run_at":"2026-11-27T00:00:00Z""#, r#""unique":"daily""#, r#""attempts":3"#] {
        let refused = peer.post("/tasks", "", &format!(r#"{{"goal":"a",{members}}}"#)).await;
        refused.is_problem(422, "validation_failed");
    }
    assert_eq!(peer.get("/tasks").await.json()["tasks"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_a_reflex_rewrites_stays_what_it_is() {
    let peer = reflex();
    let job = r#"{"contract":"task.run","input":{"goal":"mail a@b"},"run_in_seconds":60,"unique":"daily",
                  "metadata":{"to":"a@b"}}"#;
    let accepted = peer.post("/tasks", "", job).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let task = accepted.json();
    assert_eq!(
        (&task["goal"], &task["metadata"]["submitted"]["to"]),
        (&json!("mail a at b"), &json!("a at b"))
    );
    assert!(task["run_at"].is_string(), "{task}");
    let existing = peer.post("/tasks", "", job).await;
    assert_eq!((existing.status, &existing.json()["task_id"]), (200, &task["task_id"]));
}

fn reflex() -> Peer {
    start(Server::new("reflex").reflex(Careful).orchestrator(brain()))
}

#[tokio::test(start_paused = true)]
async fn what_passes_the_reflex_goes_on() {
    let peer = reflex();
    let accepted = peer.post("/tasks", "", r#"{"goal":"mail a@b"}"#).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let task = until(peer, &format!("/{}", accepted.field("location").unwrap()), "completed").await;
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

#[tokio::test(start_paused = true)]
async fn a_text_is_screened_by_itself() {
    let peer = start(Server::new("reflex").reflex(Careful));
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

#[tokio::test(start_paused = true)]
async fn every_string_of_a_submission_is_screened() {
    let peer = start(Server::new("reflex").reflex(Careful).orchestrator(brain()));
    for body in [
        r#"{"goal":"look","context":{"x":"spam"}}"#,
        r#"{"contract":"task.run","input":{"goal":"look","constraints":["spam"]}}"#,
    ] {
        peer.post("/tasks", "", body).await.is_problem(403, "refused");
    }
    let rewritten = r#"{"goal":"write to a@b","metadata":{"to":"a@b"}}"#;
    let task = peer.post("/tasks", "", rewritten).await.json();
    assert_eq!(
        (&task["goal"], &task["metadata"]["submitted"]["to"]),
        (&"write to a at b".into(), &"a at b".into())
    );
    // What no longer fits its contract is the caller's to know.
    let priority = r#"{"contract":"task.run","input":{"goal":"look","priority":"h@gh"}}"#;
    peer.post("/tasks", "", priority).await.is_problem(422, "validation_failed");
}

/// Notes what it is asked to run once more.
struct Rerunning(Mutex<Vec<Option<StepKey>>>);

#[async_trait]
impl Orchestrator for Rerunning {
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        Ok(TaskRecord::new(submission, cx.parts(), Duration::from_secs(60), Timestamp::now()).into_task())
    }

    async fn get(&self, _: &TaskId, _: &Context) -> Result<Task, Failure> {
        Err(Failure::of(ErrorKind::TaskNotFound))
    }

    async fn list(&self, _: TaskQuery, _: &Context) -> Result<TaskPage, Failure> {
        Ok(TaskPage::default())
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.get(id, cx).await
    }

    async fn watch(&self, _: &TaskId, _: Option<u64>, _: &Context) -> Result<TaskUpdates, Failure> {
        Err(Failure::of(ErrorKind::TaskNotFound))
    }

    async fn rerun(&self, _: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        self.0.lock().unwrap().push(from.cloned());
        self.submit(Submission::from_json(br#"{"goal":"again"}"#)?, cx).await
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: Option<usize>,
        _: &Context,
    ) -> Result<(Vec<JournalStep>, Option<u64>), Failure> {
        match (id.as_str(), after, limit) {
            ("task_0000000000000001", None, None) => Ok((serde_json::from_value(steps()).unwrap(), None)),
            ("task_0000000000000001", after, limit) => {
                Ok((Vec::new(), after.and_then(|after| after.checked_add(limit? as u64))))
            }
            _ => Err(Failure::of(ErrorKind::TaskNotFound)),
        }
    }

    async fn cards(&self) -> Result<Vec<ArmCard>, Failure> {
        Ok(vec![ArmCard::new("judge")])
    }
}

#[derive(Deserialize)]
struct JournalBody {
    steps: Vec<JournalStep>,
}

fn steps() -> serde_json::Value {
    json!([
        {
            "step": 0, "contract": "code.validate", "arm": "judge", "outcome": "answered", "duration_ms": 12.5,
            "tokens_used": 7, "cost_dollars": 0.25, "at": "2025-11-10T10:30:00Z",
        },
        {
            "step": "second", "contract": "code.run@2", "arm": "", "outcome": "unknown", "duration_ms": 0.0,
            "tokens_used": 0, "cost_dollars": 0.0, "at": "2025-11-10T10:30:01Z",
        },
    ])
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_once_more_and_shows_its_calls() {
    let orchestrator = Arc::new(Rerunning(Mutex::default()));
    let peer = start(Server::new("brain").orchestrator(orchestrator.clone()));
    let path = "/tasks/task_0000000000000001";
    let rerun = format!("{path}/rerun");
    for body in ["{}", r#"{"from":2}"#, r#"{"from":"second"}"#] {
        let answer = peer.post(&rerun, "", body).await;
        assert_eq!((answer.status, &answer.json()["status"]), (202, &"queued".into()), "{answer:?}");
    }
    let asked = std::mem::take(&mut *orchestrator.0.lock().unwrap());
    assert_eq!(asked, [None, Some(StepKey::Order(2)), Some(StepKey::Name("second".into()))]);
    for (body, status, code) in [
        ("", 400, "bad_request"),
        (r#"{"from":-1}"#, 422, "validation_failed"),
        (r#"{"form":1}"#, 422, "validation_failed"),
    ] {
        peer.post(&rerun, "", body).await.is_problem(status, code);
    }
    assert!(orchestrator.0.lock().unwrap().is_empty());

    let journal: JournalBody =
        serde_json::from_value(peer.get(&format!("{path}/journal")).await.json()).unwrap();
    assert_eq!(journal.steps, serde_json::from_value::<Vec<JournalStep>>(steps()).unwrap());
    let page = peer.get(&format!("{path}/journal?after=7&limit=30")).await.json();
    assert_eq!(page, json!({ "steps": [], "next": 37 }));
    peer.get(&format!("{path}/journal?limit=1001")).await.is_problem(400, "bad_request");
    // As `/openapi.json` says.
    peer.get(&format!("{path}/journal?after={}", u128::from(u64::MAX) + 1))
        .await
        .is_problem(400, "bad_request");
    let document = peer.get("/openapi.json").await.json();
    let parameters =
        document["paths"]["/tasks/{id}/journal"]["get"]["parameters"].as_array().unwrap().clone();
    let after = parameters.iter().find(|parameter| parameter["name"] == "after").unwrap();
    assert_eq!(after["schema"]["maximum"], u64::MAX);
    peer.get("/tasks/task_0000000000000002/journal").await.is_problem(404, "task_not_found");
    peer.get(&rerun).await.is_problem(405, "method_not_allowed");
    let arms = peer.get("/arms").await.json();
    assert_eq!(arms["arms"][0]["arm_id"], "judge");
    assert_eq!(arms, peer.get("/capabilities").await.json());
}

/// Never decides, and counts how often it is asked.
#[derive(Clone, Default)]
struct Undecided(Arc<std::sync::atomic::AtomicUsize>);

#[async_trait]
impl Reflex for Undecided {
    async fn react(&self, _: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_reflex_that_never_decides_ends_at_its_limit() {
    let peer =
        start(Server::new("reflex").reflex(Undecided::default()).orchestrator(brain()).max_in_flight(1));
    for (path, body) in [("/tasks", r#"{"goal":"a"}"#), ("/preprocess", r#"{"input_text":"a"}"#)] {
        for (fields, status, code, seconds) in
            [("", 503, "unavailable", 5), ("Octollm-Timeout: 2000\r\n", 504, "deadline_exceeded", 2)]
        {
            let begun = tokio::time::Instant::now();
            let problem = peer.post(path, fields, body).await.is_problem(status, code);
            assert_eq!((begun.elapsed().as_secs(), &problem["may_have_executed"]), (seconds, &false.into()));
        }
    }
    let within = Server::new("reflex").reflex(Undecided::default()).reflex_timeout(Duration::from_secs(1));
    let begun = tokio::time::Instant::now();
    let peer = start(within);
    peer.post("/preprocess", "", r#"{"input_text":"a"}"#).await.is_problem(503, "unavailable");
    assert_eq!(begun.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_screened_for_callers_that_are_refused() {
    let reflex = Undecided::default();
    let known = |head: &http::request::Parts| {
        Ok(match head.headers.get("x-user") {
            None => octollm_core::parts::Caller::Anonymous,
            Some(_) => octollm_core::parts::Caller::known("bob", ["text:echo"]),
        })
    };
    let server = Server::new("reflex").reflex(reflex.clone()).orchestrator(brain()).authenticate(known);
    let peer = start(server);
    for (path, body) in [("/tasks", r#"{"goal":"hello"}"#), ("/preprocess", r#"{"input_text":"hello"}"#)] {
        peer.post(path, "", body).await.is_problem(401, "unauthenticated");
        peer.post(path, "X-User: bob\r\n", body).await.is_problem(403, "insufficient_scope");
    }
    // An orchestrator elsewhere checks the scopes of its other contracts itself.
    let elsewhere = Server::new("reflex").reflex(reflex.clone()).orchestrator(Rerunning(Mutex::default()));
    let peer = start(elsewhere.authenticate(known));
    peer.post("/tasks", "", r#"{"goal":"hello"}"#).await.is_problem(401, "unauthenticated");
    peer.post("/tasks", "", r#"{"contract":"a.b","input":{}}"#).await.is_problem(401, "unauthenticated");
    peer.post("/tasks", "X-User: bob\r\n", r#"{"goal":"hello"}"#).await.is_problem(403, "insufficient_scope");
    assert_eq!(reflex.0.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn the_texts_of_a_submission_are_bounded() {
    let peer = start(Server::new("reflex").reflex(Careful).orchestrator(brain()).max_screened_texts(3));
    let problem = peer
        .post("/tasks", "", r#"{"goal":"a","context":{"b":["c","d"]}}"#)
        .await
        .is_problem(422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("more than 3 different texts"), "{problem}");
    let body = format!(r#"{{"goal":"a","context":{{"b":[{}"c"]}}}}"#, r#""","c","#.repeat(10_000));
    assert_eq!(peer.post("/tasks", "", &body).await.status, 202);
}

#[tokio::test]
async fn an_answer_of_a_reflex_behind_another_is_no_task_either() {
    let first = Server::new("first").reflex(Careful).orchestrator(brain());
    let first = first.bind("127.0.0.1:0").await.unwrap();
    let client = octollm_http::client::OrchestratorClient::new(first.url()).unwrap();
    tokio::spawn(first.run());
    let peer = start(Server::new("second").reflex(NoOne).orchestrator(client));
    let answered = peer.post("/tasks", "", r#"{"goal":"hello"}"#).await;
    assert_eq!((answered.status, answered.field("location")), (200, None));
    assert_eq!(answered.json()["result"]["output"], "hello yourself");
    let accepted = peer.post("/tasks", "", r#"{"goal":"look"}"#).await;
    assert_eq!(accepted.status, 202);
    assert_eq!(peer.get(&format!("/{}", accepted.field("location").unwrap())).await.status, 200);
}

/// Lets everything pass.
struct NoOne;

#[async_trait]
impl Reflex for NoOne {
    async fn react(&self, _: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        Ok(Reaction::Pass)
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_with_mistakes_is_no_task() {
    let brain = Brain::builder().arm(octollm_core::plan::PlanRunner::new()).build().unwrap();
    let peer = start(Server::new("planner").orchestrator(brain));
    for step in [
        json!({ "id": "a b", "contract": "a.b" }),
        json!({ "id": "a", "contract": "a.b", "after": ["b"] }),
        json!({ "id": "a", "contract": "a.b", "after": ["a"] }),
        json!({ "id": "a", "contract": "a.b", "inputs": {} }),
    ] {
        let body = json!({ "contract": "plan.run", "input": { "steps": [step] } }).to_string();
        peer.post("/tasks", "", &body).await.is_problem(422, "validation_failed");
    }
    // Whether an arm offers a contract is seen when the task runs.
    let body = r#"{"contract":"plan.run","input":{"steps":[{"id":"a","contract":"a.b"}]}}"#;
    assert_eq!(peer.post("/tasks", "", body).await.status, 202);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_none_is_refused_with_what_is_allowed() {
    let problem = orchestrator()
        .post("/tasks/task_0000000000000000/rerun", "", r#"{"from":-1}"#)
        .await
        .is_problem(422, "validation_failed");
    let expected = "a step is its position, from 0 to 4294967295, or its name";
    assert!(problem["detail"].as_str().unwrap().contains(expected), "{problem}");
}

#[tokio::test]
async fn a_server_has_an_arm_id_as_its_name() {
    for id in ["", "Judge", "a b", "1st"] {
        let error = Server::new(id).bind("127.0.0.1:0").await.unwrap_err();
        assert_eq!(error.setting(), "id", "{id}");
    }
}

/// It would ask itself for its card, and wait for the answer before it answers.
#[tokio::test(start_paused = true)]
async fn a_brain_calls_an_arm_of_its_own_server() {
    use octollm_http::{Arms, io::Pipes};

    use crate::arms::{Echo, worker};

    let pipes = Pipes::new();
    let arms = Arms::builder().connector(pipes.clone()).endpoint("worker", "http://worker").build().unwrap();
    let brain = Brain::builder().arm(Review).arms(arms.clone()).build().unwrap();
    let server = worker().orchestrator(brain).listen(pipes.listen("worker").unwrap()).unwrap();
    tokio::spawn(server.run());
    let echo = Echo { text: "hi".into(), data: 0.into(), number: 0.0 };
    assert_eq!(arms.call(echo).await.unwrap().text, "hi");
}
