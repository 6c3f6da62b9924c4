//! An orchestrator elsewhere.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use octollm_core::{
    Context,
    budget::Usage,
    error::ErrorKind,
    id::TaskId,
    orchestrator::{Orchestrator, StepOutcome, finished},
    parts::{Caller, ContextParts, Grant},
    task::{Priority, Submission, TaskBudget, TaskQuery, TaskRequest, TaskStatus, TaskUpdate},
    transport::StepKey,
};
use octollm_http::{client::OrchestratorClient, io::Acceptor};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::{Answer, Check, Peer, Verdict, check, json_answer, network, orchestrator, unused_host};

const ID: &str = "task_3fK9aZ0qLw81bXyT";

pub(crate) fn task(status: &str, percentage: u8) -> Value {
    json!({
        "task_id": ID, "status": status, "goal": "g", "result": { "output": 7 }, "error": null,
        "progress": { "current_step": "execution", "completed_steps": 0, "total_steps": 0,
                      "percentage": percentage, "message": "" },
        "metadata": { "arms_used": [], "tokens_used": 0, "cost_dollars": 0.0, "duration_seconds": 0.0 },
        "created_at": "2025-11-10T10:30:00Z", "updated_at": "2025-11-10T10:30:00Z",
        "completed_at": null, "failed_at": null,
    })
}

fn journal_step() -> Value {
    json!({
        "step": 0, "contract": "code.validate", "arm": "judge", "outcome": "answered", "duration_ms": 1.5,
        "tokens_used": 3, "cost_dollars": 0.25, "at": "2025-11-10T10:30:00Z",
    })
}

#[tokio::test(start_paused = true)]
async fn each_route_is_asked_as_the_wire_says() {
    let peer = Peer::start(|request| async move {
        match (&*request.method, &*request.path) {
            ("POST", _) => Answer::Json(202, task("queued", 0)),
            (_, "/capabilities") => Answer::Json(200, json!({ "arms": [{ "arm_id": "judge" }] })),
            (_, path) if path.contains("/journal?") => {
                Answer::Json(200, json!({ "steps": [journal_step()] }))
            }
            (_, path) if path.starts_with("/tasks?") => Answer::Json(200, json!({ "tasks": [], "next": ID })),
            _ => Answer::Json(200, task("cancelled", 0)),
        }
    })
    .await;
    let client = orchestrator(&peer.url);
    let mut parts = ContextParts::new();
    parts.budget = "tokens=5".parse().unwrap();
    let cx = Context::from_parts(parts, std::sync::Arc::new(()));
    let id: TaskId = ID.parse().unwrap();

    let budget = TaskBudget { max_tokens: Some(50), ..TaskBudget::default() };
    let goal = Submission::from(TaskRequest::new("do it")).budget(budget).priority(Priority::High);
    let queued = Orchestrator::submit(&client, goal, &cx).await.unwrap();
    assert_eq!((queued.status, &queued.task_id), (TaskStatus::Queued, &id));
    Orchestrator::submit(&client, Submission::of(&check()).unwrap(), &cx).await.unwrap();
    let query = TaskQuery::default().status(TaskStatus::Failed).after(id.clone()).limit(3);
    assert_eq!(client.list(query, &cx).await.unwrap().next, Some(id.clone()));
    client.get(&id, &cx).await.unwrap();
    assert_eq!(client.cancel(&id, &cx).await.unwrap().status, TaskStatus::Cancelled);
    assert_eq!(client.cards().await.unwrap()[0].arm_id, "judge");

    let (steps, next) = client.journal(&id, Some(6), Some(30), &cx).await.unwrap();
    assert_eq!((steps[0].outcome, next), (StepOutcome::Answered, None));
    client.rerun(&id, None, &cx).await.unwrap();
    client.rerun(&id, Some(&StepKey::Order(2)), &cx).await.unwrap();
    client.rerun(&id, Some(&StepKey::Name("judge".into())), &cx).await.unwrap();

    let asked: Vec<_> = peer.calls().iter().map(|call| format!("{} {}", call.method, call.path)).collect();
    let one = format!("/tasks/{ID}");
    let list = format!("GET /tasks?status=failed&after={ID}&limit=3");
    assert_eq!(
        asked[..5],
        ["POST /tasks", "POST /tasks", &list, &format!("GET {one}"), &format!("DELETE {one}")]
    );
    assert_eq!(asked[5..7], [format!("GET {one}/journal?after=6&limit=30"), format!("POST {one}/rerun")]);
    let reruns: Vec<_> =
        peer.calls()[6..].iter().map(|call| String::from_utf8(call.body.clone()).unwrap()).collect();
    assert_eq!(reruns, ["{}", r#"{"from":2}"#, r#"{"from":"judge"}"#]);
    let bodies: Vec<Value> =
        peer.calls()[..2].iter().map(|call| serde_json::from_slice(&call.body).unwrap()).collect();
    assert_eq!((&bodies[0]["goal"], &bodies[1]["contract"]), (&json!("do it"), &json!("code.validate")));
    assert_eq!(
        (&bodies[0]["budget"], &bodies[0]["priority"]),
        (&json!({ "max_tokens": 50 }), &json!("high"))
    );
    let submitted = &peer.calls()[0];
    assert_eq!(submitted.header("octollm-budget"), Some("tokens=5"));
    assert_eq!(submitted.header("x-correlation-id"), Some(cx.correlation_id().as_str()));
    assert_eq!(submitted.header("octollm-timeout"), None, "a limit of ours would become the task's");
}

#[tokio::test(start_paused = true)]
async fn cards_that_cannot_be_read_are_an_error() {
    let peer = Peer::start(|_| async { Answer::Json(200, json!({ "arms": 7 })) }).await;
    for (url, kind) in [
        (peer.url.clone(), ErrorKind::BadResponse),
        (format!("http://{}", unused_host()), ErrorKind::Unreachable),
    ] {
        assert_eq!(orchestrator(&url).cards().await.unwrap_err().kind, kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_is_sent_with_its_members_and_its_handle_is_of_the_task_that_has_its_key() {
    let peer = Peer::start(|_| async {
        let mut existing = task("queued", 0);
        existing["existing"] = true.into();
        Answer::Json(200, existing)
    })
    .await;
    let client = orchestrator(&peer.url);
    let job = || Submission::of(&check()).unwrap().unique("daily").attempts(5).priority(Priority::Low);
    let later = job().run_in(Duration::from_millis(1_500));
    let handle = client.submit_job::<Check>(later).await.unwrap();
    assert_eq!((handle.id().as_str(), handle.existing()), (ID, true));
    let goal = Submission::from(TaskRequest::new("do it")).run_at("2026-11-27T10:00:00Z".parse().unwrap());
    client.submit_job::<TaskRequest>(goal).await.unwrap();
    let bodies: Vec<Value> =
        peer.calls().iter().map(|call| serde_json::from_slice(&call.body).unwrap()).collect();
    let job_of = |body: &Value| {
        ["contract", "run_at", "run_in_seconds", "unique", "attempts"].map(|member| body[member].clone())
    };
    let (absent, low) = (Value::Null, json!("low"));
    assert_eq!(
        job_of(&bodies[0]),
        [json!("code.validate"), absent.clone(), json!(1.5), json!("daily"), json!(5)]
    );
    assert_eq!(bodies[0]["priority"], low);
    let expected = [json!("task.run"), json!("2026-11-27T10:00:00Z"), absent.clone(), absent.clone(), absent];
    assert_eq!(job_of(&bodies[1]), expected);
    assert_eq!(bodies[1]["input"]["goal"], "do it");

    // What cannot be is not sent.
    for wrong in [job().unique("a b"), job().attempts(0), job().run_in(Duration::MAX)] {
        let error = client.submit_job::<Check>(wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValidationFailed);
    }
    let error = client.submit_job::<TaskRequest>(job()).await.unwrap_err();
    assert_eq!((error.kind(), error.failure().may_have_executed), (ErrorKind::BadRequest, false));
    assert_eq!(peer.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_that_a_poll_finds_is_an_update() {
    let asked = AtomicUsize::new(0);
    let peer = Peer::start(move |_| {
        let poll = asked.fetch_add(1, Ordering::SeqCst);
        let mut answer = task(["queued", "queued", "processing", "queued", "completed"][poll.min(4)], 0);
        answer["attempt"] = [1, 2, 2, 3, 4][poll.min(4)].into();
        if (1..4).contains(&poll) {
            answer["error"] = json!({ "type": "unavailable", "message": "not now" });
        }
        async move { Answer::Json(200, answer) }
    })
    .await;
    let (client, id) = (orchestrator(&peer.url), ID.parse().unwrap());
    let mut updates = client.watch(&id, None, &Context::detached()).await.unwrap();
    let mut seen = Vec::new();
    while let Some(update) = updates.next().await {
        if let TaskUpdate::Status { status, error, .. } = update {
            seen.push((status, error.is_some()));
        }
    }
    use TaskStatus::{Completed, Processing, Queued};
    let expected = [(Queued, false), (Queued, true), (Processing, false), (Queued, true), (Completed, false)];
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_followed_to_its_end() {
    let asked = AtomicUsize::new(0);
    let peer = Peer::start(move |_| {
        let answer = match asked.fetch_add(1, Ordering::SeqCst) {
            0 => task("queued", 0),
            1 => task("processing", 40),
            2 => return std::future::ready(Answer::Last(vec![])),
            3 => return std::future::ready(Answer::Json(503, json!({}))),
            4 => task("processing", 40),
            _ => task("completed", 100),
        };
        std::future::ready(Answer::Json(200, answer))
    })
    .await;
    let client = orchestrator(&peer.url);
    let (id, cx) = (ID.parse().unwrap(), Context::detached());
    let mut updates = client.watch(&id, Some(10), &cx).await.unwrap();
    let mut seen = Vec::new();
    while let Some(update) = updates.next().await {
        seen.push(match &update {
            TaskUpdate::Progress { progress, seq, .. } => format!("{seq} {progress} %"),
            TaskUpdate::Status { status, seq, .. } => format!("{seq} {status}"),
            other => format!("{other:?}"),
        });
        assert_eq!(update.is_last(), seen.len() == 6);
    }
    assert_eq!(seen, ["11 0 %", "12 queued", "13 40 %", "14 processing", "15 100 %", "16 completed"]);
    let done = finished(&client, &id, &cx).await.unwrap();
    assert_eq!(done.result.unwrap().output, 7);
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_as_they_are() {
    let peer = Peer::start(|_| async {
        Answer::Json(
            404,
            json!({ "status": 404, "code": "task_not_found", "detail": "there is no such task" }),
        )
    })
    .await;
    let client = orchestrator(&peer.url);
    let id = ID.parse().unwrap();
    let failure = client.watch(&id, None, &Context::detached()).await.unwrap_err();
    assert_eq!(failure.kind, ErrorKind::TaskNotFound);

    let mut parts = ContextParts::new();
    parts.deadline = Some(octollm_core::deadline::Deadline::after(Duration::ZERO));
    let late = Context::from_parts(parts, std::sync::Arc::new(()));
    let failure = client.get(&id, &late).await.unwrap_err();
    assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::DeadlineExceeded, false));
    assert_eq!(peer.calls().len(), 1);
    assert!(OrchestratorClient::new("127.0.0.1:8000").is_err());
}

/// Answers each request as the next of these says, the last one for ever.
async fn telling(answers: Vec<(u16, Value)>) -> Peer {
    let asked = AtomicUsize::new(0);
    Peer::start(move |_| {
        let place = asked.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
        let (status, body) = answers[place].clone();
        std::future::ready(Answer::Json(status, body))
    })
    .await
}

fn ended(status: &str, members: Value) -> Value {
    let mut task = task(status, 100);
    task["result"] = Value::Null;
    task.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    task
}

#[tokio::test(start_paused = true)]
async fn a_program_without_a_context_runs_a_task_and_reads_its_typed_output()
-> Result<(), Box<dyn std::error::Error>> {
    let output = json!({ "result": { "output": { "is_valid": true } } });
    let answers =
        vec![(202, task("queued", 0)), (200, task("processing", 40)), (200, ended("completed", output))];
    let peer = telling(answers).await;
    let verdict = orchestrator(&peer.url).run(check()).await?;
    assert_eq!(verdict, Verdict { is_valid: true });
    let calls = peer.calls();
    let submitted: Value = serde_json::from_slice(&calls[0].body)?;
    assert_eq!((&submitted["contract"], &submitted["input"]), (&json!("code.validate"), &json!(check())));
    let ids: HashSet<_> = calls.iter().map(|call| call.header("x-correlation-id")).collect();
    assert_eq!(ids.len(), 1, "all requests are one piece of work");

    // A goal in words is answered by the result as a whole.
    let result = json!({ "result": { "output": "done", "confidence": 0.5 } });
    let peer = telling(vec![(202, task("queued", 0)), (200, ended("completed", result))]).await;
    let result = orchestrator(&peer.url).run(TaskRequest::new("do it")).await?;
    assert_eq!((result.output, result.confidence), ("done".into(), Some(0.5)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_task_that_a_reflex_answers_is_read_from_that_answer() {
    let peer = Peer::start(|request| async move {
        match &*request.method {
            "POST" => {
                Answer::Json(200, ended("completed", json!({ "result": { "output": "hello yourself" } })))
            }
            _ => Answer::Json(404, json!({ "status": 404, "code": "task_not_found" })),
        }
    })
    .await;
    let client = orchestrator(&peer.url);
    let result = client.run(TaskRequest::new("hello")).await.unwrap();
    assert_eq!(result.output, "hello yourself");
    let handle = client.submit(TaskRequest::new("hello")).await.unwrap();
    assert_eq!(handle.status().await.unwrap().status, TaskStatus::Completed);
    assert_eq!(handle.cancel().await.unwrap().status, TaskStatus::Completed);
    assert!(handle.journal().await.unwrap().is_empty());
    let (mut updates, mut last) = (handle.watch().await.unwrap(), None);
    while let Some(update) = updates.next().await {
        last = Some(update);
    }
    assert!(matches!(last, Some(TaskUpdate::Status { status: TaskStatus::Completed, .. })));
    assert_eq!(peer.calls().len(), 2, "nobody else knows of the task");
}

#[tokio::test(start_paused = true)]
async fn a_handle_follows_and_cancels_its_task() {
    let peer = Peer::start(|request| async move {
        match (&*request.method, &*request.path) {
            ("POST", _) => Answer::Json(202, task("queued", 0)),
            ("DELETE", _) => Answer::Json(200, ended("cancelled", json!({}))),
            _ => Answer::Json(200, task("processing", 40)),
        }
    })
    .await;
    let handle = orchestrator(&peer.url).submit(check()).await.unwrap();
    assert_eq!((handle.id().as_str(), handle.status().await.unwrap().status), (ID, TaskStatus::Processing));
    let first = handle.watch().await.unwrap().next().await.unwrap();
    assert!(matches!(first, TaskUpdate::Progress { progress: 40, .. }));
    assert_eq!(handle.cancel().await.unwrap().status, TaskStatus::Cancelled);
    // A task outlives the handle, and whoever waits for it.
    let waiting = tokio::time::timeout(Duration::from_secs(60), handle.output());
    assert!(waiting.await.is_err());
    drop(handle);
    assert_eq!(peer.calls().iter().filter(|call| call.method == "DELETE").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_taken_up_by_its_id_and_rerun_from_a_step() {
    let journal = json!({ "steps": [{
        "step": "judge", "contract": "code.validate", "outcome": "failed", "duration_ms": 1.0, "tokens_used": 0,
        "cost_dollars": 0.0, "at": "2026-01-01T00:00:00Z",
    }] });
    let peer = telling(vec![(200, journal), (202, task("queued", 0)), (202, task("queued", 0))]).await;
    let handle = orchestrator(&peer.url).task::<Check>(ID.parse().unwrap());
    assert!(peer.calls().is_empty());
    let step = handle.journal().await.unwrap().remove(0).step;
    assert_eq!(handle.rerun().await.unwrap().status, TaskStatus::Queued);
    handle.rerun_from(step).await.unwrap();
    handle.rerun_from(3).await.unwrap();
    handle.rerun_from("count").await.unwrap();
    let sent: Vec<_> =
        peer.calls()[1..].iter().map(|call| String::from_utf8(call.body.clone()).unwrap()).collect();
    assert_eq!(sent, ["{}", r#"{"from":"judge"}"#, r#"{"from":3}"#, r#"{"from":"count"}"#]);
}

#[tokio::test(start_paused = true)]
async fn all_pages_of_a_journal_are_requested() {
    let page = |next: Value| (200, json!({ "steps": [journal_step()], "next": next }));
    let peer = telling(vec![page(json!(4)), page(json!(u64::MAX)), page(Value::Null)]).await;
    let handle = orchestrator(&peer.url).task::<Check>(ID.parse().unwrap());
    assert_eq!(handle.journal().await.unwrap().len(), 3);
    let asked: Vec<_> = peer.calls().iter().map(|call| call.path.clone()).collect();
    let path = format!("/tasks/{ID}/journal");
    let pages =
        ["?limit=1000".to_owned(), "?after=4&limit=1000".into(), format!("?after={}&limit=1000", u64::MAX)];
    assert_eq!(asked, pages.map(|query| format!("{path}{query}")));
    // One that does not advance would never end.
    let peer = telling(vec![page(json!(4)), page(json!(4))]).await;
    let handle = orchestrator(&peer.url).task::<Check>(ID.parse().unwrap());
    assert_eq!(handle.journal().await.unwrap_err().kind(), ErrorKind::BadResponse);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_without_an_output_is_a_failed_call() {
    let failed = json!({
        "error": { "type": "budget_exhausted", "message": "the budget is used up", "details": null },
        "metadata": { "arms_used": [], "tokens_used": 7, "cost_dollars": 0.5, "duration_seconds": 1.0 },
    });
    let later = json!({
        "error": { "type": "quota_frozen", "message": "come back in May" }, "progress": { "percent": "half" },
    });
    let shape = json!({ "result": { "output": "yes" } });
    for (end, kind) in [
        (ended("failed", failed), ErrorKind::BudgetExhausted),
        (ended("failed", later), ErrorKind::ArmFailed),
        (ended("cancelled", json!({})), ErrorKind::Cancelled),
        (ended("completed", shape), ErrorKind::BadResponse),
    ] {
        let peer = telling(vec![(202, task("queued", 0)), (200, end)]).await;
        let error = orchestrator(&peer.url).run(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.endpoint()), (kind, Some(&*peer.url)));
        assert_eq!(error.contract().name(), "code.validate");
        assert_eq!(error.usage().tokens, if kind == ErrorKind::BudgetExhausted { 7 } else { 0 });
    }
    for (body, may_have_executed) in [
        (json!({ "error": "busy" }), true),
        (json!({ "status": 503, "code": "overloaded", "retryable": true }), false),
    ] {
        let peer = telling(vec![(503, body)]).await;
        let error = orchestrator(&peer.url).submit(check()).await.unwrap_err();
        assert_eq!((error.retryable(), error.may_have_executed()), (!may_have_executed, may_have_executed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_context_submits_nothing() {
    let peer = telling(vec![(202, task("queued", 0))]).await;
    let mut parts = ContextParts::new();
    parts.budget = "tokens=5".parse().unwrap();
    let cx = Context::from_parts(parts, std::sync::Arc::new(()));
    cx.spend(Usage::tokens(5)).unwrap();
    let refused =
        Orchestrator::submit(&orchestrator(&peer.url), Submission::of(&check()).unwrap(), &cx).await;
    let failure = refused.unwrap_err();
    assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::BudgetExhausted, false));
    assert!(peer.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_no_amount_is_not_submitted() {
    let peer = Peer::start(|_| async { Answer::Json(202, task("queued", 0)) }).await;
    let client = orchestrator(&peer.url);
    for dollars in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
        let budget = TaskBudget { max_cost_dollars: Some(dollars), ..TaskBudget::default() };
        for submission in [TaskRequest::new("do it").into(), Submission::of(&check()).unwrap()] {
            let submission = submission.budget(budget);
            let refused = Orchestrator::submit(&client, submission, &Context::detached()).await.unwrap_err();
            assert_eq!(
                (refused.kind, refused.may_have_executed),
                (ErrorKind::ValidationFailed, false),
                "{dollars}"
            );
        }
    }
    assert_eq!(peer.calls().len(), 0);
}

/// An orchestrator that accepts every task, and answers each poll with the next of these, the last one for ever.
async fn accepting(polls: Vec<Answer>) -> Peer {
    let polled = AtomicUsize::new(0);
    Peer::start(move |request| {
        std::future::ready(match &*request.method {
            "POST" => Answer::Json(202, task("queued", 0)),
            _ => polls[polled.fetch_add(1, Ordering::SeqCst).min(polls.len() - 1)].clone(),
        })
    })
    .await
}

fn submissions(peer: &Peer) -> usize {
    peer.calls().iter().filter(|call| call.method == "POST").count()
}

/// An answer without a body that asks to wait.
fn busy(retry_after: u64) -> Answer {
    let head = format!("HTTP/1.1 503 X\r\nretry-after: {retry_after}\r\ncontent-length: 0\r\n\r\n");
    Answer::Raw(head.into_bytes())
}

#[tokio::test(start_paused = true)]
async fn an_accepted_task_that_cannot_be_followed_is_not_reported_as_one_that_may_be_submitted_again() {
    let problem = |status: u16, code: &str| {
        Answer::Json(status, json!({ "status": status, "code": code, "detail": "no" }))
    };
    for (poll, kind, can_be_awaited_again) in [
        (Answer::Last(vec![]), ErrorKind::ConnectionLost, true),
        (Answer::Json(503, json!({ "error": "restarting" })), ErrorKind::Unavailable, true),
        (problem(404, "task_not_found"), ErrorKind::TaskNotFound, false),
        (problem(401, "unauthenticated"), ErrorKind::Unauthenticated, false),
        (Answer::Json(200, json!({ "task_id": 7 })), ErrorKind::BadResponse, false),
    ] {
        let peer = accepting(vec![poll]).await;
        let client = orchestrator(&peer.url);
        let error = client.run(check()).await.unwrap_err();
        assert_eq!((error.kind(), error.usage()), (kind, Usage::UNMETERED));
        assert!(error.may_have_executed() && !error.retryable(), "{error}");
        assert_eq!((submissions(&peer), error.endpoint()), (1, Some(&*peer.url)));

        // The id in the error leads to the task, whose output can be awaited again.
        assert!(error.to_string().contains(ID), "{error}");
        let id = error.failure().details.as_ref().unwrap()["task_id"].as_str().unwrap().parse().unwrap();
        let error = client.task::<Check>(id).output().await.unwrap_err();
        assert_eq!((error.kind(), error.usage()), (kind, Usage::UNMETERED));
        assert_eq!((error.may_have_executed(), error.retryable()), (true, can_be_awaited_again), "{kind}");
        assert_eq!(error.failure().details.as_ref().unwrap()["task_id"], ID);
        assert_eq!(submissions(&peer), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_is_followed_by_its_id_after_its_orchestrator_was_gone() {
    let host = unused_host();
    let (client, mut listener) = (orchestrator(&format!("http://{host}")), network().listen(&host).unwrap());
    let accepts_one = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap().await.unwrap();
        let mut request = [0; 4096];
        assert!(socket.read(&mut request).await.unwrap() > 0);
        socket.write_all(&json_answer(202, &task("queued", 0))).await.unwrap();
    });
    let error = client.run(check()).await.unwrap_err();
    accepts_one.await.unwrap();
    assert_eq!((error.kind(), error.usage()), (ErrorKind::Unreachable, Usage::UNMETERED));
    assert!(error.may_have_executed() && !error.retryable(), "{error}");

    let output = json!({ "result": { "output": { "is_valid": true } } });
    let back = network().listen(&host).unwrap();
    Peer::listen(back, String::new(), move |_| {
        std::future::ready(Answer::Json(200, ended("completed", output.clone())))
    });
    let id = error.failure().details.as_ref().unwrap()["task_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(client.task::<Check>(id).output().await.unwrap(), Verdict { is_valid: true });
}

#[tokio::test(start_paused = true)]
async fn a_task_that_failed_is_not_reported_as_one_that_has_not_run() {
    let refused = json!({
        "error": { "type": "unavailable", "message": "busy", "details": ["a"], "retryable": true,
                   "may_have_executed": false },
        "metadata": { "arms_used": [], "tokens_used": 7, "cost_dollars": 0.5, "duration_seconds": 1.0 },
    });
    let peer = accepting(vec![Answer::Json(200, ended("failed", refused))]).await;
    let client = orchestrator(&peer.url);
    for error in [
        client.run(check()).await.unwrap_err(),
        client.task::<Check>(ID.parse().unwrap()).output().await.unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.usage().tokens, error.usage().unmetered),
            (ErrorKind::Unavailable, 7, 0)
        );
        assert!(error.may_have_executed() && !error.retryable(), "{error}");
        let details = error.failure().details.as_ref().unwrap();
        assert_eq!((&details["task_id"], &details["details"]), (&json!(ID), &json!(["a"])));
    }
}

#[tokio::test(start_paused = true)]
async fn a_submission_that_may_have_been_accepted_is_not_to_be_repeated() {
    let peer = Peer::start(|_| async { Answer::Last(vec![]) }).await;
    let client = orchestrator(&peer.url);
    let submitted = client.submit(check()).await.map(drop);
    for error in [client.run(check()).await.unwrap_err(), submitted.unwrap_err()] {
        assert_eq!((error.kind(), error.usage()), (ErrorKind::ConnectionLost, Usage::UNMETERED));
        assert!(error.may_have_executed() && !error.retryable(), "{error}");
    }
    // One that was refused may be.
    let peer = Peer::start(|_| async { busy(2) }).await;
    let error = orchestrator(&peer.url).run(check()).await.unwrap_err();
    assert_eq!((error.may_have_executed(), error.retryable(), error.usage()), (false, true, Usage::ZERO));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
}

/// When a task was polled that its orchestrator answers so, and how following it ended.
async fn polled(polls: Vec<Answer>, cx: &Context) -> (Vec<Duration>, Result<TaskStatus, ErrorKind>) {
    let (begun, times) =
        (tokio::time::Instant::now(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
    let (count, noted) = (AtomicUsize::new(0), times.clone());
    let peer = Peer::start(move |_| {
        noted.lock().unwrap().push(begun.elapsed());
        std::future::ready(polls[count.fetch_add(1, Ordering::SeqCst).min(polls.len() - 1)].clone())
    })
    .await;
    let end = finished(&orchestrator(&peer.url), &ID.parse().unwrap(), cx).await;
    let times = times.lock().unwrap().clone();
    (times, end.map(|task| task.status).map_err(|failure| failure.kind))
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_asked_to_wait_waits() {
    let queued = || Answer::Json(200, task("queued", 0));
    let done = Answer::Json(200, task("completed", 100));
    // A restart, seen by the first poll and by later ones.
    for (before, count) in [(vec![], 5), (vec![queued(), queued()], 8)] {
        let restart = vec![busy(5); count];
        let first = before.len();
        let (times, end) = polled([before, restart, vec![done.clone()]].concat(), &Context::detached()).await;
        assert_eq!(end, Ok(TaskStatus::Completed));
        let waits: Vec<_> = times[first..=first + count].windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.iter().all(|wait| *wait >= Duration::from_secs(5)), "{waits:?}");
    }
    // Longer than anybody waits.
    for before in [vec![], vec![queued()]] {
        let (times, end) = polled([before, vec![busy(61)]].concat(), &Context::detached()).await;
        assert_eq!(end, Err(ErrorKind::Unavailable));
        assert!(times.last().unwrap() < &Duration::from_secs(2), "{times:?}");
    }
    // Beyond the deadline.
    for before in [vec![], vec![queued()]] {
        let mut parts = ContextParts::new();
        parts.deadline = Some(octollm_core::deadline::Deadline::after(Duration::from_secs(12)));
        let cx = Context::from_parts(parts, std::sync::Arc::new(()));
        let begun = tokio::time::Instant::now();
        let (times, end) = polled([before, vec![busy(5)]].concat(), &cx).await;
        assert_eq!(end, Err(ErrorKind::Unavailable), "{times:?}");
        assert!(begun.elapsed() < Duration::from_secs(12), "{times:?}");
    }
}

/// Answers one request on a host that nobody listens on after it.
async fn one_answer(host: &str, answer: Vec<u8>) {
    let mut listener = network().listen(host).unwrap();
    let (mut socket, _) = listener.accept().await.unwrap().await.unwrap();
    let mut request = [0; 4096];
    assert!(socket.read(&mut request).await.unwrap() > 0);
    socket.write_all(&answer).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_orchestrator_is_not_seen_by_who_submits_and_waits() {
    let refused = json!({ "status": 503, "code": "unavailable", "detail": "restarting", "retryable": true,
                          "retry_after": 1 });
    // The task is submitted before the restart, while it begins, and while nobody listens.
    for (first, posts) in
        [(Some(json_answer(202, &task("queued", 0))), 0), (Some(json_answer(503, &refused)), 1), (None, 1)]
    {
        let host = unused_host();
        let url = format!("http://{host}");
        let client = OrchestratorClient::builder(&url).connector(network()).retries(10).build().unwrap();
        let run = tokio::spawn(async move { client.run(check()).await });
        if let Some(answer) = first {
            one_answer(&host, answer).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let polled = AtomicUsize::new(0);
        let done = json!({ "result": { "output": { "is_valid": true } } });
        let peer = Peer::listen(network().listen(&host).unwrap(), url, move |request| {
            let is_done = polled.fetch_add(1, Ordering::SeqCst) > 3;
            std::future::ready(match &*request.method {
                "POST" => Answer::Json(202, task("queued", 0)),
                _ if is_done => Answer::Json(200, ended("completed", done.clone())),
                _ => Answer::Json(200, task("processing", 10)),
            })
        });
        assert_eq!(run.await.unwrap().unwrap(), Verdict { is_valid: true });
        assert_eq!(submissions(&peer), posts);
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_run_twice_is_sent_again_and_a_submission_only_where_nothing_has_run() {
    let problem = |code: &str| {
        Answer::Json(503, json!({ "status": 503, "code": code, "detail": "no", "retryable": true }))
    };
    let (cx, id) = (Context::detached(), ID.parse::<TaskId>().unwrap());
    for (first, twice) in
        [(Answer::Last(vec![]), false), (problem("unavailable"), true), (Answer::Json(500, json!({})), false)]
    {
        for (operation, safe) in [("get", true), ("cancel", true), ("submit", false), ("rerun", false)] {
            let (count, answer) = (AtomicUsize::new(0), first.clone());
            let peer = Peer::start(move |_| {
                let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
                std::future::ready(if is_first {
                    answer.clone()
                } else {
                    Answer::Json(200, task("queued", 0))
                })
            })
            .await;
            let client = orchestrator(&peer.url);
            let answer = match operation {
                "get" => client.get(&id, &cx).await,
                "cancel" => client.cancel(&id, &cx).await,
                "submit" => Orchestrator::submit(&client, Submission::of(&check()).unwrap(), &cx).await,
                _ => client.rerun(&id, None, &cx).await,
            };
            // A 500 says that it would fail again.
            let again = twice || safe && !matches!(first, Answer::Json(500, _));
            assert_eq!(
                (answer.is_ok(), peer.calls().len()),
                (again, 1 + usize::from(again)),
                "{operation} {first:?}"
            );
            let attempts: Vec<_> = peer
                .calls()
                .iter()
                .map(|call| call.header("octollm-attempt").unwrap_or("1").to_owned())
                .collect();
            assert_eq!(attempts, ["1", "2"][..attempts.len()]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_spares_an_orchestrator_that_fails_and_not_one_that_is_full() {
    let (cx, id) = (Context::detached(), ID.parse::<TaskId>().unwrap());
    let peer = Peer::start(|_| async { Answer::Json(500, json!({})) }).await;
    let client = OrchestratorClient::builder(&peer.url).connector(network()).retries(0).build().unwrap();
    let mut kinds = Vec::new();
    for _ in 0..20 {
        kinds.push(client.get(&id, &cx).await.unwrap_err().kind);
    }
    assert_eq!((&kinds[..5], peer.calls().len()), (&[ErrorKind::ArmFailed; 5][..], 5));
    assert_eq!(kinds[5..], [ErrorKind::CircuitOpen; 15]);

    let full =
        json!({ "status": 503, "code": "overloaded", "detail": "10000 tasks wait", "retryable": true });
    let peer = Peer::start(move |request| {
        let full = full.clone();
        async move {
            if request.method == "POST" {
                Answer::Json(503, full)
            } else {
                Answer::Json(200, task("queued", 0))
            }
        }
    })
    .await;
    let client = orchestrator(&peer.url);
    for _ in 0..10 {
        let error = client.submit(check()).await.map(drop).unwrap_err();
        assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::Overloaded, false));
        client.get(&id, &cx).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_gets_no_token_says_nothing_of_the_orchestrator() {
    let (cx, id) = (Context::detached(), ID.parse::<TaskId>().unwrap());
    let peer = Peer::start(|_| async { Answer::Json(500, json!({})) }).await;
    let client = OrchestratorClient::builder(&peer.url).connector(network()).retries(0).build().unwrap();
    for _ in 0..5 {
        assert_eq!(client.get(&id, &cx).await.unwrap_err().kind, ErrorKind::ArmFailed);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let caller = Caller::Known(std::sync::Arc::new(Grant::new("ada", ["tasks:read"]).links(Vec::new())));
    let error = client.on_behalf_of(caller).get(&id, &cx).await.unwrap_err();
    assert_eq!((error.kind, error.may_have_executed), (ErrorKind::Unauthenticated, false));
    // It was the probe, and has not closed the breaker.
    assert_eq!(client.get(&id, &cx).await.unwrap_err().kind, ErrorKind::ArmFailed);
    assert_eq!(client.get(&id, &cx).await.unwrap_err().kind, ErrorKind::CircuitOpen);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_context_sends_nothing_again() {
    let peer = Peer::start(|_| async { busy(5) }).await;
    let client = orchestrator(&peer.url);
    let token = tokio_util::sync::CancellationToken::new();
    let cx = Context::detached().with_cancellation(token.clone());
    let asked = tokio::spawn(async move { client.get(&ID.parse().unwrap(), &cx).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    token.cancel();
    assert_eq!(asked.await.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(peer.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_runs_ends_with_its_context() {
    let peer = Peer::start(|_| async { Answer::Silence }).await;
    let client = orchestrator(&peer.url);
    let token = tokio_util::sync::CancellationToken::new();
    let cx = Context::detached().with_cancellation(token.clone());
    let id: TaskId = ID.parse().unwrap();
    let begun = tokio::time::Instant::now();
    let (answer, ()) = tokio::join!(client.get(&id, &cx), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        token.cancel();
    });
    assert_eq!((answer.unwrap_err().kind, begun.elapsed().as_secs()), (ErrorKind::Cancelled, 1));
}
