//! An orchestrator elsewhere.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use octollm_core::{
    Context,
    error::ErrorKind,
    id::TaskId,
    orchestrator::{Orchestrator, TaskQuery, TaskUpdate, finished},
    parts::ContextParts,
    task::{Submission, TaskRequest, TaskStatus},
    transport::NoArms,
};
use octollm_http::client::OrchestratorClient;
use serde_json::{Value, json};

use crate::peer::{Answer, Peer, check, orchestrator};

const ID: &str = "task_3fK9aZ0qLw81bXyT";

fn task(status: &str, percentage: u8) -> Value {
    json!({
        "task_id": ID, "status": status, "goal": "g", "result": { "output": 7 }, "error": null,
        "progress": { "current_step": "execution", "completed_steps": 0, "total_steps": 0,
                      "percentage": percentage, "message": "" },
        "metadata": { "arms_used": [], "tokens_used": 0, "cost_dollars": 0.0, "duration_seconds": 0.0 },
        "created_at": "2025-11-10T10:30:00Z", "updated_at": "2025-11-10T10:30:00Z",
        "completed_at": null, "failed_at": null,
    })
}

#[tokio::test(start_paused = true)]
async fn each_route_is_asked_as_the_wire_says() {
    let peer = Peer::start(|request| async move {
        match (&*request.method, &*request.path) {
            ("POST", _) => Answer::Json(202, task("queued", 0)),
            (_, "/capabilities") => Answer::Json(200, json!({ "arms": [{ "arm_id": "judge" }] })),
            (_, path) if path.starts_with("/tasks?") => Answer::Json(200, json!({ "tasks": [], "next": ID })),
            _ => Answer::Json(200, task("cancelled", 0)),
        }
    })
    .await;
    let client = orchestrator(&peer.url);
    let mut parts = ContextParts::new();
    parts.budget = "tokens=5".parse().unwrap();
    let cx = Context::from_parts(parts, std::sync::Arc::new(NoArms));
    let id: TaskId = ID.parse().unwrap();

    let queued = Orchestrator::submit(&client, TaskRequest::new("do it").into(), &cx).await.unwrap();
    assert_eq!((queued.status, &queued.task_id), (TaskStatus::Queued, &id));
    Orchestrator::submit(&client, Submission::of(&check()).unwrap(), &cx).await.unwrap();
    let query = TaskQuery::default().status(TaskStatus::Failed).after(id.clone()).limit(3);
    assert_eq!(client.list(query, &cx).await.unwrap().next, Some(id.clone()));
    client.get(&id, &cx).await.unwrap();
    assert_eq!(client.cancel(&id, &cx).await.unwrap().status, TaskStatus::Cancelled);
    assert_eq!(client.cards().await[0].arm_id, "judge");

    let asked: Vec<_> = peer.calls().iter().map(|call| format!("{} {}", call.method, call.path)).collect();
    let one = format!("/tasks/{ID}");
    let list = format!("GET /tasks?status=failed&after={ID}&limit=3");
    assert_eq!(asked, ["POST /tasks", "POST /tasks", &list, &format!("GET {one}"), &format!("DELETE {one}")]);
    let bodies: Vec<Value> =
        peer.calls()[..2].iter().map(|call| serde_json::from_slice(&call.body).unwrap()).collect();
    assert_eq!((&bodies[0]["goal"], &bodies[1]["contract"]), (&json!("do it"), &json!("code.validate")));
    let submitted = &peer.calls()[0];
    assert_eq!(submitted.header("octollm-budget"), Some("tokens=5"));
    assert_eq!(submitted.header("x-correlation-id"), Some(cx.correlation_id().as_str()));
    assert_eq!(submitted.header("octollm-timeout"), None, "a limit of ours would become the task's");
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
    let mut told = Vec::new();
    while let Some(update) = updates.next().await {
        told.push(match &update {
            TaskUpdate::Progress { progress, seq, .. } => format!("{seq} {progress} %"),
            TaskUpdate::Status { status, seq, .. } => format!("{seq} {status}"),
            other => format!("{other:?}"),
        });
        assert_eq!(update.is_last(), told.len() == 6);
    }
    assert_eq!(told, ["11 0 %", "12 queued", "13 40 %", "14 processing", "15 100 %", "16 completed"]);
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
    let late = Context::from_parts(parts, std::sync::Arc::new(NoArms));
    let failure = client.get(&id, &late).await.unwrap_err();
    assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::DeadlineExceeded, false));
    assert_eq!(peer.calls().len(), 1);
    assert!(OrchestratorClient::new("127.0.0.1:8000").is_err());
}
