//! What a system logs: which lines belong together, and one line for each request.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use http::{Response, StatusCode};
use octollm::{
    context::{Caller, ContextParts},
    http::server::HttpBody,
    orchestrator::finished,
    plan::{Plan, PlanRunner},
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
    task::Submission,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tower::{ServiceExt, layer::layer_fn};
use tracing::{Level, info};

use crate::logged::{Line, Log};

/// Calls another arm.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "report.outer", output = u64, idempotent)]
struct Outer {
    number: u64,
}

/// Is called.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "report.inner", output = u64, idempotent)]
struct Inner {
    number: u64,
}

/// Waits for ever.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "report.wait", output = ())]
struct Wait {}

/// Logs a line wherever it is.
#[derive(Clone, Default)]
struct Talks(Arc<Notify>);

#[async_trait]
impl Arm<Inner> for Talks {
    async fn execute(&self, input: Inner, _: &Context) -> Result<u64, ArmError> {
        info!("inner {}", input.number);
        Ok(input.number)
    }
}

#[async_trait]
impl Arm<Outer> for Talks {
    async fn execute(&self, input: Outer, cx: &Context) -> Result<u64, ArmError> {
        info!("outer");
        Ok(cx.call(Inner { number: input.number }).await?)
    }
}

#[async_trait]
impl Arm<Wait> for Talks {
    async fn execute(&self, _: Wait, _: &Context) -> Result<(), ArmError> {
        self.0.notify_one();
        std::future::pending().await
    }
}

/// Runs as a task: a call, a batch, and a call on a thread of the runtime.
#[async_trait]
impl Arm<TaskRequest> for Talks {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        info!("task");
        cx.call(Outer { number: 1 }).await?;
        cx.call_all([Inner { number: 2 }, Inner { number: 3 }]).await?;
        tokio::spawn(cx.call(Inner { number: 4 })).await??;
        Ok(TaskResult::new("done"))
    }
}

#[async_trait]
impl Reflex for Talks {
    async fn react(&self, _: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        info!("reflex");
        Ok(Reaction::Pass)
    }
}

fn plan() -> Plan {
    let steps = r#"{ "steps": [
        { "id": "a", "contract": "report.inner", "input": { "number": 5 } },
        { "id": "b", "contract": "report.outer", "input": { "number": 6 }, "after": ["a"] }
    ] }"#;
    steps.parse().unwrap()
}

/// Every line with this message: that there are so many, and what they have.
fn each_has(log: &Log, message: &str, count: usize, fields: &[(&str, &str)]) {
    let lines = log.said(message);
    assert_eq!(lines.len(), count, "{message}: {lines:#?}");
    for line in lines {
        for (name, value) in fields {
            assert_eq!(line.all.get(*name).map(String::as_str), Some(*value), "{name}: {line:#?}");
        }
        assert!(line.all.contains_key("request"), "{line:#?}");
    }
}

/// Names of spans are the same for every request.
fn names_are_fixed(log: &Log) {
    let names: BTreeSet<_> = log.lines().into_iter().flat_map(|line| line.spans).collect();
    let known = ["arm", "call", "request", "task"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
}

#[tokio::test]
async fn lines_from_the_reflex_to_the_called_arm_have_one_correlation_id() {
    let log = Log::start();
    let inner = Server::new("inner").arm::<Inner>(Talks::default()).bind("127.0.0.1:0").await.unwrap();
    let to_inner = Arms::builder().endpoint("inner", inner.url()).build().unwrap();
    let outer = Server::new("outer").arm::<Outer>(Talks::default()).arms(to_inner);
    let outer = outer.bind("127.0.0.1:0").await.unwrap();
    let arms = Arms::builder().endpoint("inner", inner.url()).endpoint("outer", outer.url()).build().unwrap();
    let brain = Brain::builder().arm::<TaskRequest>(Talks::default()).arm::<Plan>(PlanRunner::default());
    let brain = Server::new("brain").orchestrator(brain.arms(arms).build().unwrap());
    let brain = brain.bind("127.0.0.1:0").await.unwrap();
    let behind = OrchestratorClient::new(brain.url()).unwrap();
    let reflex = Server::new("reflex").reflex(Talks::default()).orchestrator(behind);
    let reflex = reflex.bind("127.0.0.1:0").await.unwrap();
    let client = OrchestratorClient::new(reflex.url()).unwrap();
    for server in [inner, outer, brain, reflex] {
        tokio::spawn(server.run());
    }

    let cx = |correlation: &str| {
        let parts = ContextParts::of("submitted".parse().unwrap(), correlation.parse().unwrap());
        Context::from_parts(parts, Arc::new(()))
    };
    let run = async |submission: Submission, correlation: &str| {
        let cx = cx(correlation);
        let task = Orchestrator::submit(&client, submission, &cx).await.unwrap();
        let task = finished(&client, &task.task_id, &cx).await.unwrap();
        assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error);
        task.task_id.to_string()
    };
    let task = run(TaskRequest::new("all of it").into(), "work-7").await;
    each_has(&log, "reflex", 1, &[("correlation", "work-7"), ("route", "/tasks"), ("method", "POST")]);
    let at = |contract| [("correlation", "work-7"), ("task", &*task), ("contract", contract)];
    each_has(&log, "task", 1, &at("task.run"));
    each_has(&log, "outer", 1, &at("report.outer"));
    for number in 1..=4 {
        each_has(&log, &format!("inner {number}"), 1, &at("report.inner"));
    }

    let planned = run(Submission::of(&plan()).unwrap(), "work-8").await;
    let at = |contract| [("correlation", "work-8"), ("task", &*planned), ("contract", contract)];
    each_has(&log, "inner 5", 1, &at("report.inner"));
    each_has(&log, "inner 6", 1, &at("report.inner"));
    names_are_fixed(&log);
    let ended = log.said("the run of a task has ended");
    assert_eq!(ended.len(), 2, "{ended:#?}");
    assert_eq!((&*ended[0].own["status"], &*ended[0].all["task"]), ("completed", &*task));
}

#[tokio::test]
async fn lines_in_a_mesh_have_the_caller_too() {
    let log = Log::start();
    let mesh = Mesh::builder()
        .arm::<Inner>("inner", Talks::default())
        .arm::<Outer>("outer", Talks::default())
        .brain::<TaskRequest>(Talks::default())
        .start()
        .await;
    let mut parts = ContextParts::of("first".parse().unwrap(), "work-9".parse().unwrap());
    parts.caller = Caller::known("ali", ["report:*"]);
    let cx = Context::from_parts(parts, mesh.transport());
    assert_eq!(cx.call(Outer { number: 1 }).await.unwrap(), 1);
    for (message, contract) in [("outer", "report.outer"), ("inner 1", "report.inner")] {
        each_has(&log, message, 1, &[("correlation", "work-9"), ("caller", "ali"), ("contract", contract)]);
    }
    // The called arm is within the one that calls it.
    assert_eq!(log.said("inner 1")[0].spans, ["call", "arm", "call", "arm"]);

    let task = mesh.run(TaskRequest::new("all of it")).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed);
    let id = task.task_id.to_string();
    assert_eq!(log.said("task")[0].spans, ["task", "arm"]);
    each_has(&log, "inner 3", 1, &[("task", &id), ("contract", "report.inner")]);
    names_are_fixed(&log);
}

#[tokio::test]
async fn ids_and_traces_that_are_malformed_are_replaced_and_logged() {
    let log = Log::start();
    let server = Server::new("inner").arm::<Inner>(Talks::default()).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run());
    let long = "a".repeat(129);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (name, value, line) in [
        ("x-request-id", &*long, "malformed id replaced"),
        ("x-request-id", "a\tb", "malformed id replaced"),
        ("x-request-id", "<script>", "malformed id replaced"),
        ("x-correlation-id", &*long, "malformed id replaced"),
        ("traceparent", "00-x", "malformed trace ignored"),
        ("traceparent", &format!("{trace}-{trace}"), "malformed trace ignored"),
        ("traceparent", &trace.replace('4', "\u{e4}"), "malformed trace ignored"),
        ("traceparent", &format!("{trace}\r\ntraceparent: {trace}"), "malformed trace ignored"),
    ] {
        let before = log.said(line).len();
        let body = r#"{"number":1}"#;
        let length = body.len();
        let request = format!(
            "POST /inner HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n{name}: {value}\r\n\r\n{body}"
        );
        let answer = send(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {value}: {answer}");
        assert!(!answer.contains(value), "{answer}");
        let lines = log.said(line);
        assert_eq!(lines.len(), before + 1, "{name}: {value}");
        let logged = &lines[before].own;
        assert_eq!(logged["name"], name);
        let id = format!("x-request-id: {}", logged["id"]);
        assert!(name == "x-correlation-id" || answer.contains(&id), "{id}: {answer}");
    }
    // CR and LF cannot be in a value: they end the field, or fold it, which is no HTTP.
    let folded = "GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: a\r\n b\r\n\r\n";
    assert!(send(address, folded).await.starts_with("HTTP/1.1 400"));
    let ended = "GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: a\rb\r\n\r\n";
    assert!(send(address, ended).await.starts_with("HTTP/1.1 400"));
}

/// Sends bytes, and reads until the server closes the connection.
async fn send(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn request(line: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer swordfish\r\nX-Request-ID: r-1\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn one(log: &Log) -> Line {
    let lines = log.of("octollm::access");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines[0].clone()
}

#[tokio::test]
async fn each_request_is_one_line_with_its_route_and_without_its_path() {
    let talks = Talks::default();
    let server = Server::new("logged").arm::<Inner>(talks.clone()).arm::<Wait>(talks.clone());
    let server = server.orchestrator(Brain::builder().build().unwrap());
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run());
    let task = "GET /tasks/task_3fK9aZ0qLw81bXyT";
    for (line, body, method, route, status, level) in [
        ("POST /inner", r#"{"number":1}"#, "POST", "/inner", "200", Level::INFO),
        ("POST /inner", r#"{"number":true}"#, "POST", "/inner", "422", Level::INFO),
        ("POST /inner?a=swordfish", r#"{"number":1}"#, "POST", "/inner", "200", Level::INFO),
        ("GET /swordfish", "", "GET", "unmatched", "404", Level::INFO),
        ("BREW /inner", "", "other", "unmatched", "501", Level::INFO),
        (task, "", "GET", "/tasks/{id}", "404", Level::INFO),
        ("GET /health", "", "GET", "/health", "200", Level::DEBUG),
        ("GET /metrics", "", "GET", "/metrics", "200", Level::DEBUG),
    ] {
        let log = Log::start();
        send(address, &request(line, body)).await;
        let seen = one(&log);
        let own = |name: &str| seen.own.get(name).cloned().unwrap_or_default();
        assert_eq!(own("method"), method, "{line}: {seen:#?}");
        assert_eq!((own("route"), own("status"), seen.level), (route.into(), status.into(), level), "{line}");
        assert_eq!(
            (own("request"), own("server"), &*seen.message),
            ("r-1".into(), "logged".into(), "answered")
        );
        assert!(own("duration_ms").parse::<f64>().unwrap() >= 0.0);
        // Neither the path nor the token is anywhere.
        let lines = format!("{:#?}", log.lines());
        assert!(!lines.contains("swordfish") && !lines.contains("task_3f"), "{line}: {lines}");
    }

    let log = Log::start();
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller.write_all(request("POST /wait", "{}").as_bytes()).await.unwrap();
    talks.0.notified().await;
    assert_eq!(log.of("octollm::access").len(), 0);
    drop(caller);
    while log.of("octollm::access").is_empty() {
        tokio::task::yield_now().await;
    }
    let dropped = one(&log);
    assert_eq!((&*dropped.own["route"], &*dropped.all["request"]), ("/wait", "r-1"), "{dropped:#?}");
    assert!(dropped.message.starts_with("dropped") && !dropped.own.contains_key("status"));
}

#[tokio::test]
async fn a_layer_that_answers_itself_is_logged_once_too() {
    let teapot = |service| {
        tower::service_fn(move |request: http::Request<HttpBody>| {
            let service: octollm::http::server::HttpService =
                octollm::http::server::HttpService::clone(&service);
            async move {
                if request.uri().path() != "/inner" {
                    let mut response = Response::new(HttpBody::default());
                    *response.status_mut() = StatusCode::IM_A_TEAPOT;
                    return Ok(response);
                }
                service.oneshot(request).await
            }
        })
    };
    let server = Server::new("layered").arm::<Inner>(Talks::default()).layer(layer_fn(teapot));
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run());
    for (line, route, status) in [("POST /inner", "/inner", "200"), ("GET /pot", "unmatched", "418")] {
        let log = Log::start();
        send(address, &request(line, r#"{"number":1}"#)).await;
        let seen = one(&log);
        assert_eq!((&*seen.own["route"], &*seen.own["status"]), (route, status), "{seen:#?}");
        if route == "/inner" {
            assert_eq!(log.said("inner 1")[0].spans, ["request", "arm"]);
        }
    }
}

#[tokio::test]
async fn a_server_in_axum_logs_its_route_and_not_the_prefix() {
    let log = Log::start();
    let service = Server::new("mounted").arm::<Inner>(Talks::default()).open_to_all().into_service().unwrap();
    let app = axum::Router::new().nest_service("/arms/secret", service);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let answer = send(address, &request("POST /arms/secret/inner", r#"{"number":1}"#)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(one(&log).own["route"], "/inner");
    assert_eq!(log.said("inner 1")[0].spans, ["request", "arm"]);
    assert_eq!(log.said("inner 1")[0].all["route"], "/inner");
}
