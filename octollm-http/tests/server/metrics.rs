//! The metrics at `GET /metrics`.

use http::Method;
use octollm_core::{error::Failure, metrics, parts::Caller};
use octollm_http::{Authenticate, Server};
use serde_json::json;
use tower::layer::layer_fn;

use crate::{
    arms::{Echo, Panic, Wait, Worker, start},
    peer::{Peer, post},
    routed::hello,
};

const ECHO: &str = r#"{"text":"a"}"#;

/// A server of its own, since the metrics are those of the process.
fn served(id: &str, set: impl FnOnce(Server) -> Server) -> (Peer, Worker) {
    let worker = Worker::default();
    let server = Server::new(id).arm::<Echo>(worker.clone()).arm::<Wait>(worker.clone());
    (start(set(server.arm::<Panic>(worker.clone()))), worker)
}

/// The value of a line, without which it is `None`.
fn value(page: &str, line: &str) -> Option<f64> {
    page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

fn requests(page: &str, server: &str, method: &str, route: &str, status: &str) -> Option<f64> {
    let labels = format!("method=\"{method}\",route=\"{route}\",server=\"{server}\",status=\"{status}\"");
    value(page, &format!("octollm_http_requests_total{{{labels}}}"))
}

async fn page(peer: Peer) -> String {
    let answer = peer.send("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n").await;
    assert_eq!((answer.status, answer.field("x-request-id").is_some()), (200, true), "{answer:?}");
    assert_eq!(answer.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    answer.body
}

#[tokio::test(start_paused = true)]
async fn requests_and_runs_are_counted_by_route_contract_and_outcome() {
    let (peer, _) = served("counting", |server| server);
    for (body, status) in [(ECHO, 200), (r#"{"text":"fail"}"#, 500), (r#"{"text":1}"#, 422), (ECHO, 200)] {
        assert_eq!(peer.post("/echo", "", body).await.status, status);
    }
    assert_eq!(peer.post("/wait", "", r#"{"ms":700}"#).await.status, 200);
    assert_eq!(peer.post("/v2/panic", "", "{}").await.status, 500);
    let executed = json!({ "contract": "text.echo", "input": { "text": "a" } }).to_string();
    assert_eq!(peer.post("/execute", "", &executed).await.status, 200);
    let page = page(peer).await;
    for (method, route, status, count) in [
        ("POST", "/echo", "2xx", 2.0),
        ("POST", "/echo", "4xx", 1.0),
        ("POST", "/echo", "5xx", 1.0),
        ("POST", "/v2/panic", "5xx", 1.0),
        ("POST", "/execute", "2xx", 1.0),
    ] {
        assert_eq!(
            requests(&page, "counting", method, route, status),
            Some(count),
            "{route} {status}: {page}"
        );
    }
    let runs = |contract: &str, code: &str| {
        let labels = format!("arm=\"counting\",code=\"{code}\",contract=\"{contract}\"");
        value(&page, &format!("octollm_arm_runs_total{{{labels}}}"))
    };
    assert_eq!(runs("text.echo", "ok"), Some(3.0), "by its route and by the envelope: {page}");
    assert_eq!(runs("text.echo", "arm_failed"), Some(1.0));
    assert_eq!(runs("text.echo", "validation_failed"), Some(1.0));
    assert_eq!(runs("work.panic@2", "arm_panicked"), Some(1.0));
    // On the server's clock.
    let wait = "method=\"POST\",route=\"/wait\",server=\"counting\"";
    let within = |seconds: &str| {
        value(&page, &format!("octollm_http_request_duration_seconds_bucket{{{wait},le=\"{seconds}\"}}"))
    };
    assert_eq!((within("0.5"), within("1")), (Some(0.0), Some(1.0)), "{page}");
    let contract = "octollm_arm_run_duration_seconds_count{arm=\"counting\",contract=\"work.wait\"}";
    assert_eq!(value(&page, contract), Some(1.0));
    let bytes = value(&page, "octollm_http_request_body_bytes_total{server=\"counting\"}").unwrap();
    assert!(bytes > ECHO.len() as f64 * 2.0, "{bytes}");
}

#[tokio::test(start_paused = true)]
async fn labels_are_bounded_whatever_callers_send() {
    let (peer, _) = served("bounded", |server| server);
    for number in 0..50 {
        for request in [
            format!("GET /swordfish{number}?a=swordfish HTTP/1.1\r\nHost: x\r\n\r\n"),
            format!("GET /tasks/swordfish{number} HTTP/1.1\r\nHost: swordfish{number}\r\n\r\n"),
            format!("SWORDFISH{number} /echo HTTP/1.1\r\nHost: x\r\n\r\n"),
            format!(
                "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-ID: swordfish{number}\r\nOctollm-Task: swordfish\r\n\r\n"
            ),
        ] {
            peer.send(request).await;
        }
        let executed = json!({ "contract": format!("swordfish.a{number}"), "input": {} }).to_string();
        peer.post("/execute", "Authorization: Bearer swordfish\r\n", &executed)
            .await
            .is_problem(404, "contract_not_offered");
    }
    let page = page(peer).await;
    assert!(!page.to_lowercase().contains("swordfish"), "{page}");
    assert_eq!(requests(&page, "bounded", "other", "unmatched", "4xx"), Some(100.0), "{page}");
    assert_eq!(requests(&page, "bounded", "POST", "/execute", "4xx"), Some(50.0));
    let lines = page.lines().filter(|line| line.contains("server=\"bounded\"") && line.contains("_total{"));
    assert!(lines.clone().count() < 12, "{:?}", lines.collect::<Vec<_>>());
}

/// Knows one reader of metrics.
struct Doorman;

#[async_trait::async_trait]
impl Authenticate for Doorman {
    async fn authenticate(&self, head: &http::request::Parts) -> Result<Caller, Failure> {
        Ok(match head.headers.get("authorization").map(http::HeaderValue::as_bytes) {
            Some(b"Bearer ops") => Caller::known("ops", ["metrics:read"]),
            Some(_) => Caller::known("ali", ["text:echo"]),
            None => Caller::Anonymous,
        })
    }
}

#[tokio::test(start_paused = true)]
async fn the_metrics_are_open_or_need_a_scope_or_are_not_there() {
    let get = |field: &str| format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{field}\r\n");
    let (open, _) = served("open-page", |server| server.authenticate(Doorman));
    assert_eq!(open.get("/metrics").await.status, 200, "needs no identity, as the card");
    let mut line = open.connect().await;
    line.write("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(line.head().await.starts_with("HTTP/1.1 200"));
    let (guarded, _) =
        served("guarded-page", |server| server.authenticate(Doorman).metrics_scope("metrics:read"));
    guarded.get("/metrics").await.is_problem(401, "unauthenticated");
    guarded.send(get("Authorization: Bearer ali\r\n")).await.is_problem(403, "insufficient_scope");
    assert_eq!(guarded.send(get("Authorization: Bearer ops\r\n")).await.status, 200);
    let (without, _) = served("no-page", |server| server.without_metrics());
    without.get("/metrics").await.is_problem(404, "not_found");
    for (peer, is_there) in [(open, true), (guarded, true), (without, false)] {
        let document = peer.get("/openapi.json").await.json();
        assert_eq!(document["paths"]["/metrics"]["get"].is_object(), is_there);
    }
    // The path is free for a route of the user then.
    let own = Server::new("own-page").without_metrics().route(Method::GET, "/metrics", hello());
    assert_eq!(start(own).get("/metrics").await.status, 200);
    let refused = Server::new("odd-page").metrics_scope("everything").open_to_all().into_service();
    assert_eq!(refused.unwrap_err().setting(), "metrics_scope");
}

#[tokio::test(start_paused = true)]
async fn overload_and_dropped_requests_are_counted_while_the_page_answers() {
    let (peer, worker) = served("loaded", |server| server.max_in_flight(1));
    let mut held = peer.connect().await;
    held.write(post("/wait", "", "{}")).await;
    worker.0.begun(1).await;
    for _ in 0..3 {
        peer.post("/echo", "", ECHO).await.is_problem(503, "overloaded");
    }
    let busy = page(peer).await;
    assert_eq!(value(&busy, "octollm_http_requests_running{server=\"loaded\"}"), Some(1.0), "{busy}");
    assert_eq!(value(&busy, "octollm_http_refused_total{limit=\"in_flight\",server=\"loaded\"}"), Some(3.0));
    assert_eq!(requests(&busy, "loaded", "POST", "/echo", "5xx"), Some(3.0));
    drop(held);
    worker.0.dropped(1).await;
    let quiet = page(peer).await;
    assert_eq!(value(&quiet, "octollm_http_requests_running{server=\"loaded\"}"), Some(0.0));
    assert_eq!(requests(&quiet, "loaded", "POST", "/wait", "dropped"), Some(1.0), "{quiet}");
    let cancelled = "octollm_arm_runs_total{arm=\"loaded\",code=\"cancelled\",contract=\"work.wait\"}";
    assert_eq!(value(&quiet, cancelled), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_request_through_layers_is_counted_once() {
    let (peer, _) = served("layered-page", |server| {
        server.layer(layer_fn(|service| service)).layer(layer_fn(|service| service))
    });
    assert_eq!(peer.post("/echo", "", ECHO).await.status, 200);
    assert_eq!(requests(&page(peer).await, "layered-page", "POST", "/echo", "2xx"), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn metrics_of_the_program_are_on_the_same_page() {
    let counter = metrics::prometheus::register_int_counter!("judge_tokens_total", "Tokens.").unwrap();
    counter.inc_by(17);
    let (peer, _) = served("with-own", |server| server);
    assert_eq!(value(&page(peer).await, "judge_tokens_total "), Some(17.0));
}
