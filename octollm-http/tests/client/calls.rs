//! Calls that go as they should, and what travels with them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request};
use octollm_core::{
    budget::Cost,
    contract::{ContractRef, Spec},
    error::ErrorKind,
    id::StepKey,
    parts::ContextParts,
    transport::{Call, Transport},
};
use octollm_http::{client::Target, wire::Problem};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower::{ServiceExt, util::MapRequestLayer};

use crate::peer::{Answer, Check, Peer, Verdict, arms, card, cause, check, judge, judge_within, usual};

#[tokio::test(start_paused = true)]
async fn a_call_is_typed_both_ways() {
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let arms = judge(&peer.url);
    assert_eq!(arms.call(check()).await.unwrap(), Verdict { is_valid: true });
    let output = arms.call_json(&"code.validate".parse().unwrap(), &json!({ "code": "x" })).await.unwrap();
    assert_eq!(output, json!({ "is_valid": true }));
    let calls = peer.calls();
    assert_eq!((&*calls[0].method, &*calls[0].path), ("POST", "/validate"));
    assert_eq!(calls[0].body, br#"{"code":"fn main() {}"}"#);
    assert_eq!(calls[1].body, br#"{"code":"x"}"#);
    assert_eq!((peer.asked_for_card(), peer.accepted()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_contract_with_a_time_limit_that_nobody_lives_to_see_is_called() {
    let peer = Peer::arm(|_| async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Answer::verdict()
    })
    .await;
    let contract: ContractRef = "code.validate".parse().unwrap();
    let mut call = Call::new(contract.clone(), StepKey::Order(0), "{}".into(), ContextParts::new());
    call.spec = Some(Spec::new(contract).with_timeout(Duration::MAX));
    Transport::call(&judge(&peer.url), call).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_context_travels_in_the_head() {
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let mut parts = ContextParts::new();
    parts.budget = "tokens=7;cost_usd=0.5".parse().unwrap();
    parts.trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
    let cx = judge(&peer.url).context_of(parts);
    cx.call(check()).await.unwrap();
    let call = &peer.calls()[0];
    let host = peer.url.strip_prefix("http://").unwrap();
    for (name, value) in [
        ("host", host),
        ("content-type", "application/json"),
        ("accept", "application/json"),
        ("x-correlation-id", cx.correlation_id().as_str()),
        ("octollm-budget", "tokens=7;cost_usd=0.5"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ] {
        assert_eq!(call.header(name), Some(value), "{name}");
    }
    assert_ne!(call.header("x-request-id").unwrap(), cx.request_id().as_str());
    let left: u64 = call.header("octollm-timeout").unwrap().parse().unwrap();
    assert!((25_000..=30_000).contains(&left), "{left}");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_piece_of_work_holds_for_its_calls() {
    let peer = Peer::arm(|_| async { Answer::Silence }).await;
    let arms = judge(&peer.url);
    let error = arms.within(Duration::from_millis(150)).call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let left: u64 = peer.calls()[0].header("octollm-timeout").unwrap().parse().unwrap();
    assert!(left <= 150, "{left}");
    peer.until_open(0).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_used_up_comes_back() {
    let peer = Peer::arm(|_| async {
        Answer::Raw(
            b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\noctollm-usage: tokens=12;cost_usd=0.25\r\n\r\n{\"is_valid\":true}"
                .to_vec(),
        )
    })
    .await;
    let cx = judge(&peer.url).context();
    cx.call_all([check(), check()]).await.unwrap();
    assert_eq!((cx.used().tokens, cx.used().cost), (24, Cost::from_dollars(0.5).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn an_arm_may_be_mounted_below_a_path_and_serve_without_a_card() {
    let peer = Peer::start(|_| async { Answer::verdict() }).await;
    let url = format!("{}/arms/judge/", peer.url);
    let arms = arms().endpoint_serving::<Check>("judge", &url).build().unwrap();
    arms.call(check()).await.unwrap();
    assert_eq!(peer.calls()[0].path, "/arms/judge/validate");
    assert_eq!(peer.asked_for_card(), 0);
    assert_eq!(arms.cards().await[0].capabilities, ["code.validate"]);
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_pieces_and_may_be_large() {
    let peer = Peer::arm(|_| async {
        let padding = "x".repeat(300_000);
        let chunk = format!("{{\"padding\":\"{padding}\",");
        let last = "\"is_valid\":true}";
        let body = format!("{:x}\r\n{chunk}\r\n{:x}\r\n{last}\r\n0\r\n\r\n", chunk.len(), last.len());
        Answer::Raw(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}").into_bytes())
    })
    .await;
    let arms = judge(&peer.url);
    arms.call(check()).await.unwrap();
    arms.call(check()).await.unwrap();
    assert_eq!(peer.accepted(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_layer_sees_every_request_and_may_change_it() {
    let peer = Peer::arm(|_| async { Answer::verdict() }).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let layer = MapRequestLayer::new(move |mut request: Request<Bytes>| {
        let target = request.extensions().get::<Target>().unwrap().clone();
        assert_eq!(&*target.arm, "judge");
        assert!(target.deadline.is_some());
        if let Some(contract) = target.contract {
            assert_eq!((contract.to_string().as_str(), target.idempotent), ("code.validate", false));
            count.fetch_add(1, Ordering::Relaxed);
        }
        request.headers_mut().insert("authorization", HeaderValue::from_static("Bearer abc"));
        request
    });
    let arms = arms().endpoint("judge", &peer.url).request_layer(layer).build().unwrap();
    arms.clone().call(check()).await.unwrap();
    arms.call(check()).await.unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 2);
    assert_eq!(peer.calls()[1].header("authorization"), Some("Bearer abc"));
    assert_eq!(peer.accepted(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_layers_own_error_reaches_the_caller() {
    let peer = Peer::start(|_| async { Answer::verdict() }).await;
    let refuse = tower::layer::layer_fn(|_inner| {
        tower::service_fn(|_: Request<Bytes>| async {
            Err::<http::Response<Bytes>, tower::BoxError>("out of order".into())
        })
    });
    let arms = arms().endpoint_serving::<Check>("judge", &peer.url).request_layer(refuse).build().unwrap();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!((error.kind(), error.arm()), (ErrorKind::Internal, Some("judge")));
    assert_eq!(cause(&error), "out of order");
}

#[tokio::test(start_paused = true)]
async fn schemas_that_differ_are_told_where_a_call_fails() {
    let mut other = card("judge");
    other.contracts[0].fingerprint = "feed".into();
    let peer = Peer::with_card(other, |request| async move {
        match request.connection {
            _ if request.body == br#"{"code":"shape"}"# => Answer::Json(200, json!({ "ok": 1 })),
            _ => Answer::Json(422, json!({ "detail": "no" })),
        }
    })
    .await;
    let arms = judge(&peer.url);
    for (code, kind) in [("shape", ErrorKind::BadResponse), ("rule", ErrorKind::ValidationFailed)] {
        let error = arms.call(Check { code: code.into() }).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().ends_with("the schemas of caller and arm differ"), "{error}");
        assert_eq!(error.failure().details.as_ref().unwrap()["schemas"]["arm"], "feed");
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "note.store", output = ())]
struct StoreNote {}

#[tokio::test(start_paused = true)]
async fn an_answer_without_content_is_the_output_of_a_contract_that_has_none() {
    let peer = Peer::start(|_| async { Answer::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()) }).await;
    let arms = arms().endpoint_serving::<StoreNote>("notes", &peer.url).build().unwrap();
    arms.call(StoreNote {}).await.unwrap();
    arms.call(StoreNote {}).await.unwrap();
    assert_eq!(peer.accepted(), 1);
    let output = arms.call_json(&"note.store".parse().unwrap(), &json!({})).await.unwrap();
    assert_eq!(output, json!(null));
}

#[tokio::test(start_paused = true)]
async fn a_usage_that_cannot_be_read_is_an_error_and_what_can_be_is_counted() {
    let peer = Peer::arm(|request| async move {
        let usage =
            if request.body == br#"{"code":"float"}"# { "tokens=10.0" } else { "tokens=7;cost_usd=much" };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 17\r\noctollm-usage: {usage}\r\n\r\n");
        Answer::Raw([head.as_bytes(), b"{\"is_valid\":true}"].concat())
    })
    .await;
    let cx = judge(&peer.url).context();
    cx.call(Check { code: "float".into() }).await.unwrap();
    assert_eq!(cx.used().tokens, 10);
    let error = cx.call(check()).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::BadResponse, true));
    assert_eq!((cx.used().tokens, cx.used().unmetered), (17, 1));
}

#[tokio::test(start_paused = true)]
async fn calls_whose_usage_nobody_reports_are_unmetered() {
    let usage = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\noctollm-usage: tokens=0\r\n\r\n{\"is_valid\":true}";
    for (answer, unmetered) in [
        (Answer::verdict(), 1),
        (Answer::Raw(usage.into()), 0),
        (Answer::Json(500, json!({})), 1),
        (Answer::Last(vec![]), 1),
        (Answer::Silence, 1),
        // Of a proxy, perhaps.
        (Answer::Json(503, json!({ "error": "no healthy upstream" })), 1),
        // The work has not run.
        (Answer::Json(422, json!({})), 0),
        (Answer::Json(503, json!({ "status": 503, "code": "overloaded" })), 0),
    ] {
        let name = format!("{answer:?}");
        let peer = Peer::arm(move |_| std::future::ready(answer.clone())).await;
        let cx = judge(&peer.url).context();
        let _ = cx.call(check()).await;
        assert_eq!((cx.used().unmetered, cx.used().tokens), (unmetered, 0), "{name}");
    }
    // Each attempt is one.
    let peer = Peer::arm(|_| async {
        Answer::Json(504, json!({ "status": 504, "code": "timeout", "retryable": true }))
    });
    let arms = arms().endpoint_serving::<Idempotent>("judge", peer.await.url).build().unwrap();
    let cx = arms.context();
    let error = cx.call(Idempotent {}).retry(2).await.unwrap_err();
    assert_eq!((error.attempts(), error.usage().unmetered, cx.used().unmetered), (3, 3, 3));
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.look", output = (), idempotent)]
struct Idempotent {}

#[tokio::test(start_paused = true)]
async fn an_arm_that_spends_and_hangs_reports_it_before_its_caller_stops_waiting() {
    let peer = Peer::arm(|request| async move {
        // As a server of ours does it: the limit it was given ends the work, and the answer has the usage.
        let limit = request.header("octollm-timeout").unwrap().parse().unwrap();
        tokio::time::sleep(Duration::from_millis(limit)).await;
        let body = br#"{"status":504,"code":"deadline_exceeded"}"#;
        let head =
            format!("HTTP/1.1 504 X\r\ncontent-length: {}\r\noctollm-usage: tokens=100\r\n\r\n", body.len());
        Answer::Raw([head.as_bytes(), body].concat())
    })
    .await;
    for time in [Duration::from_millis(20), Duration::from_secs(1), Duration::from_secs(20)] {
        let cx = judge_within(&peer.url, usual()).within(time);
        let error = cx.call(check()).await.unwrap_err();
        assert_eq!((error.kind(), cx.used().tokens), (ErrorKind::DeadlineExceeded, 100), "{time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_is_an_answer_of_another_server() {
    // The program around it has a server of its own, on axum.
    let peer = Peer::arm(|_| async { Answer::Json(503, json!({ "error": "down for lunch" })) }).await;
    let arms = judge(&peer.url);
    let handler = async move || -> Result<String, axum::response::Response> {
        let verdict = arms.call(check()).await.map_err(Problem::from)?;
        Ok(verdict.is_valid.to_string())
    };
    let app = axum::Router::new().route("/check", axum::routing::get(handler));
    let request = Request::get("/check").body(axum::body::Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    let problem: Problem = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (problem.code, problem.retryable, problem.may_have_executed),
        (ErrorKind::Unavailable, false, true)
    );
    assert!(problem.detail.contains("down for lunch"), "{}", problem.detail);
}
