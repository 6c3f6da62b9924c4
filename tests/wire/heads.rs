//! Heads: what travels beside the bodies.

use std::{
    convert::Infallible,
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use octollm::{
    Context,
    budget::Usage,
    context::ContextParts,
    deadline::Deadline,
    http::{Arms, Server, server::HttpService},
    limit::RateLimit,
    prelude::*,
};
use tower::{layer::layer_fn, service_fn};

use crate::{
    contracts::{Judge, ValidateCode, Verdict, code},
    golden::{TASK, hold, parsed},
    served::{Answer, ask, send},
};

/// A head as lines, sorted by name.
fn lines(first: &str, head: &HeaderMap) -> String {
    let mut fields: Vec<_> =
        head.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
    fields.sort();
    format!("{first}\n{}", fields.concat())
}

type Heads = Arc<Mutex<Vec<String>>>;

/// Arms whose calls go to a server in this process; each head on the way is kept.
fn arms(service: HttpService, heads: Heads) -> Arms {
    let layer = layer_fn(move |_| {
        let (service, heads) = (service.clone(), heads.clone());
        service_fn(move |request: Request<Bytes>| {
            let (service, heads) = (service.clone(), heads.clone());
            async move { Ok::<_, Infallible>(carry(service, heads, request).await) }
        })
    });
    Arms::builder()
        .endpoint_serving::<ValidateCode>("judge", "http://judge-arm:8103")
        .request_layer(layer)
        .build()
        .unwrap()
}

async fn carry(service: HttpService, heads: Heads, mut request: Request<Bytes>) -> Response<Bytes> {
    // Each request has an id of its own: here all have the same.
    request.headers_mut().insert("x-request-id", "req-1".parse().unwrap());
    let asked = lines(&format!("{} {}", request.method(), request.uri().path()), request.headers());
    let Answer { status, head, body } = send(&service, request).await;
    heads.lock().unwrap().extend([asked, lines(&status.to_string(), &head)]);
    let mut response = Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (status, head);
    response
}

/// Notes what reaches it.
struct Noting(Arc<Mutex<String>>);

#[async_trait]
impl Arm<ValidateCode> for Noting {
    async fn execute(&self, task: ValidateCode, cx: &Context) -> Result<Verdict, ArmError> {
        let mut note = String::new();
        let trace =
            cx.trace().map(|trace| (trace.traceparent().to_owned(), trace.tracestate().map(str::to_owned)));
        writeln!(note, "{} {:?} {trace:?}", cx.correlation_id(), cx.task_id())?;
        writeln!(note, "{:?} {} {}", cx.remaining(), cx.budget(), cx.attempt())?;
        *self.0.lock().unwrap() = note;
        Judge.execute(task, cx).await
    }
}

async fn call(parts: ContextParts) -> (Vec<String>, String, Usage) {
    let (heads, note) = (Heads::default(), Arc::default());
    let server = Server::new("judge").arm(Noting(Arc::clone(&note))).open_to_all().into_service().unwrap();
    let cx = arms(server, heads.clone()).context_of(parts);
    cx.call(code("fn main() {}")).await.unwrap();
    let (heads, note) = (heads.lock().unwrap().clone(), note.lock().unwrap().clone());
    (heads, note, cx.used())
}

#[tokio::test(start_paused = true)]
async fn everything_that_can_travel() {
    let mut parts = ContextParts::new();
    parts.correlation_id = parsed("review-7");
    parts.task_id = Some(parsed(TASK));
    parts.deadline = Some(Deadline::after(Duration::from_millis(1500)));
    parts.budget = parsed("tokens=9000;cost_usd=0.25");
    let trace: octollm::trace::TraceContext =
        parsed("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    parts.trace = Some(trace.with_tracestate("vendor=opaque"));
    let (heads, note, used) = call(parts).await;
    hold("head_request_full.txt", &heads[0]);
    hold("head_answer_full.txt", &heads[1]);
    assert_eq!(
        note,
        format!(
            "review-7 Some({TASK}) Some((\"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\", Some(\"vendor=opaque\")))\n\
             Some(1.406s) tokens=9000;cost_usd=0.25 1\n"
        )
    );
    // What the arm used up is taken from what its caller has left.
    assert_eq!((used.tokens, used.cost.nano_dollars()), (120, 2_500_000));
}

#[tokio::test(start_paused = true)]
async fn what_always_travels() {
    let mut parts = ContextParts::new();
    parts.correlation_id = parsed("review-7");
    let (heads, note, _) = call(parts).await;
    hold("head_request_least.txt", &heads[0]);
    assert_eq!(note, "review-7 None None\nSome(9.75s)  1\n");
}

#[tokio::test(start_paused = true)]
async fn errors_have_heads_too() {
    let server = Server::new("judge").arm(Judge).open_to_all().into_service().unwrap();
    for (code, name) in [("busy", "head_answer_unavailable.txt"), ("broken", "head_answer_failed.txt")] {
        let answer =
            ask(&server, "POST", "/validate", format!(r#"{{"code":"{code}","language":"rust"}}"#)).await;
        hold(name, &lines(&answer.status.to_string(), &answer.head));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_reported_in_heads() {
    let limit = RateLimit::new(100, Duration::from_secs(60)).burst(1);
    let server = Server::new("judge").arm(Judge).rate_limit(limit).open_to_all().into_service().unwrap();
    let body = || r#"{"code":"fn main() {}","language":"rust"}"#;
    for name in ["head_answer_counted.txt", "head_answer_rate_limited.txt"] {
        let answer = ask(&server, "POST", "/validate", body()).await;
        hold(name, &lines(&answer.status.to_string(), &answer.head));
    }
}
