//! What the routes of an arm server answer.

use serde_json::json;
use tower::ServiceExt;

use crate::{
    arms::{Worker, server, start},
    peer::Peer,
    tasks::brain,
};

fn peer() -> Peer {
    start(server(&Worker::default()))
}

#[tokio::test(start_paused = true)]
async fn a_contract_has_a_route_of_its_own() {
    let answer =
        peer().post("/echo", "X-Request-ID: r1\r\nX-Correlation-ID: c1\r\n", r#"{"text":"hi"}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json(), json!({ "text": "hi", "caller": null }));
    assert_eq!(answer.field("x-request-id"), Some("r1"));
    assert_eq!(answer.field("x-correlation-id"), Some("c1"));
    assert_eq!(answer.field("content-type"), Some("application/json"));
    assert_eq!(answer.field("octollm-usage"), Some("tokens=3;cost_usd=0"));
    assert_eq!(answer.head.matches("date:").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_envelope_picks_the_contract() {
    let peer = peer();
    let body =
        json!({ "task_id": "task_3fK9aZ0qLw81bXyT", "contract": "text.echo", "input": { "text": "hi" } });
    let answer = peer.post("/execute", "", &body.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let executed = answer.json();
    assert_eq!(executed["task_id"], "task_3fK9aZ0qLw81bXyT");
    assert_eq!(executed["status"], "completed");
    assert_eq!(executed["output"]["text"], "hi");
    assert_eq!(executed["provenance"]["arm_id"], "worker");
    assert!(executed["provenance"]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(executed["provenance"]["duration_ms"].is_u64());

    let body = json!({ "contract": "text.echo@7", "input": {} }).to_string();
    let problem = peer.post("/execute", "", &body).await.is_problem(404, "contract_not_offered");
    assert_eq!(problem["details"]["offered"][0], "text.echo");
    let body = json!({ "contract": "text.echo", "input": { "text": 1 } }).to_string();
    peer.post("/execute", "", &body).await.is_problem(422, "validation_failed");
    let body = r#"{"contract":"text.echo","input":{"text":"a","text":"b"}}"#;
    peer.post("/execute", "", body).await.is_problem(400, "bad_request");
}

#[tokio::test(start_paused = true)]
async fn a_server_tells_about_itself() {
    let peer = peer();
    let health = peer.get("/health").await.json();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["version"], "1.2.3");
    assert!(health["uptime_seconds"].is_u64());

    let card = peer.get("/capabilities").await.json();
    assert_eq!(card["arm_id"], "worker");
    assert_eq!(card["endpoint"], serde_json::Value::Null, "the host that a caller asks is not repeated");
    assert_eq!(card["status"], "healthy");
    assert_eq!(card["contracts"][2]["path"], "/v2/panic");

    let ready = peer.get("/ready").await;
    assert_eq!((ready.status, ready.json()["ready"].as_bool()), (200, Some(true)));
}

#[tokio::test(start_paused = true)]
async fn one_failed_check_is_not_ready() {
    let server = server(&Worker::default()).check("redis", || async { true });
    let server = server.check("judge", || async { false }).check("slow", std::future::pending);
    let peer = start(server.check("panics", || -> std::future::Ready<bool> { panic!("a check panics") }));
    let answer = peer.get("/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json()["checks"],
        json!({ "judge": false, "panics": false, "redis": true, "slow": false })
    );
}

#[tokio::test(start_paused = true)]
async fn head_is_get_without_the_body() {
    let peer = peer();
    let get = peer.get("/capabilities").await;
    let mut line = peer.connect().await;
    line.write("HEAD /capabilities HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let head = line.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains(&format!("content-length: {}", get.body.len())), "{head}");
    assert_eq!(line.closed().await, b"");
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_inside_stays_inside() {
    let peer = peer();
    let failed = peer.post("/echo", "", r#"{"text":"fail"}"#).await;
    let problem = failed.is_problem(500, "arm_failed");
    assert_eq!(problem["may_have_executed"], true);
    assert_eq!(failed.field("octollm-usage"), Some("tokens=3;cost_usd=0"));
    let panicked = peer.post("/v2/panic", "", "{}").await;
    panicked.is_problem(500, "arm_panicked");
    assert!(!format!("{failed:?}{panicked:?}").contains("swordfish"));
    assert_eq!(peer.get("/health").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_nested_too_where_the_server_says_so() {
    let layer = tower::layer::layer_fn(|service: octollm_http::server::HttpService| {
        tower::service_fn(move |request: http::Request<octollm_http::server::HttpBody>| {
            let service = service.clone();
            async move {
                match request.uri().path() {
                    "/layer" => Err("the layer fails".into()),
                    _ => Ok::<_, Box<dyn std::error::Error + Send + Sync>>(service.oneshot(request).await?),
                }
            }
        })
    });
    let nested = start(server(&Worker::default()).orchestrator(brain()).nested_errors().layer(layer));
    for (answer, status, code) in [
        (nested.get("/nowhere").await, 404, "not_found"),
        (nested.post("/echo", "", r#"{"text":1}"#).await, 422, "validation_failed"),
        (nested.post("/echo", "", "{").await, 400, "bad_request"),
        (nested.post("/echo", "", r#"{"text":"fail"}"#).await, 500, "arm_failed"),
        (nested.get("/tasks/task_3fK9aZ0qLw81bXyT").await, 404, "task_not_found"),
        (nested.get("/layer").await, 500, "internal"),
    ] {
        let problem = answer.is_problem(status, code);
        assert_eq!(problem["error"], json!({ "code": code, "message": problem["message"] }));
        // Our own client reads it as any problem.
        let ours: octollm_http::wire::Problem = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(ours.code.code(), code);
    }
    let document = nested.get("/openapi.json").await.json();
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Problem"]["properties"]["error"]["$ref"], "#/components/schemas/NestedError");
    assert_eq!(schemas["NestedError"]["required"], json!(["code", "message"]));

    let flat = start(server(&Worker::default()));
    assert!(flat.get("/nowhere").await.is_problem(404, "not_found").get("error").is_none());
    let document = flat.get("/openapi.json").await.json();
    assert!(document["components"]["schemas"]["Problem"]["properties"].get("error").is_none());
}
