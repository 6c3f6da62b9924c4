//! Tasks over HTTP.

use std::time::Duration;

use http::header;
use octollm::{
    bus::MemoryBus,
    http::{Server, server::HttpService},
    orchestrator::TaskPage,
    task::Task,
};

use crate::{
    cards::judge,
    golden::{NOW, TASK, read},
    review::brain,
    served::{JSON, PROBLEM, ask},
};

fn server() -> HttpService {
    Server::new("orchestrator").orchestrator(brain(MemoryBus::new())).open_to_all().into_service().unwrap()
}

const REVIEW: &str = r#"{"contract":"crate.review","input":{"path":"src/lib.rs"}}"#;

#[tokio::test(start_paused = true)]
async fn a_task_is_taken() {
    let server = server();
    let answer = ask(&server, "POST", "/tasks", REVIEW).await;
    let task: Task = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer.head[header::LOCATION], format!("tasks/{}", task.task_id));
    let fixed = answer.fixed([("task_id", TASK), ("created_at", NOW), ("updated_at", NOW)]);
    fixed.is(202, JSON, "task_submitted.json");

    // Now it runs, and waits for the arm that it called.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let page = ask(&server, "GET", "/tasks?status=processing&limit=1", "").await;
    let page: TaskPage = serde_json::from_slice(&page.body).unwrap();
    assert_eq!((page.tasks.len(), page.next), (1, None));
    let path = format!("/tasks/{}", task.task_id);
    for (method, status) in [("GET", "processing"), ("DELETE", "cancelled"), ("DELETE", "cancelled")] {
        let answer = ask(&server, method, &path, "").await;
        let task: Task = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status.as_u16(), task.status.as_str()), (200, status), "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_the_key_is_there() {
    let (server, job) = (server(), REVIEW.replace(r#""input""#, r#""unique":"nightly","input""#));
    let first: Task =
        serde_json::from_slice(&ask(&server, "POST", "/tasks", job.clone()).await.body).unwrap();
    let answer = ask(&server, "POST", "/tasks", job).await;
    assert_eq!(answer.head[header::LOCATION], format!("tasks/{}", first.task_id));
    let fixed = answer.fixed([("task_id", TASK), ("created_at", NOW), ("updated_at", NOW)]);
    fixed.is(200, JSON, "task_existing.json");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_task_of_this_server() {
    let unknown = ask(&server(), "GET", &format!("/tasks/{TASK}"), "").await;
    unknown.is(404, PROBLEM, "problem_task_not_found.json");
    let goal = ask(&server(), "POST", "/tasks", read("task_request_full.json")).await;
    assert_eq!(goal.status, 404, "this brain runs no goals in words");
}

#[tokio::test(start_paused = true)]
async fn the_arms_it_knows() {
    for path in ["/capabilities", "/arms"] {
        ask(&server(), "GET", path, "").await.is(200, JSON, "capabilities_orchestrator.json");
    }
    let arms: serde_json::Value = serde_json::from_str(&read("capabilities_orchestrator.json")).unwrap();
    assert_eq!(arms["arms"], serde_json::json!([judge()]));
}
