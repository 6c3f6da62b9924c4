//! Tokens together with what else a call can have: retries, batches, plans, other servers around, redirects.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, middleware};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    Arm, Context,
    contract::TaskContract,
    deadline::Deadline,
    error::{ArmError, ErrorKind},
    id::IdempotencyKey,
    parts::{Caller, ContextParts},
    plan::{Plan, PlanRunner, PlanStep},
    transport::{Call, StepKey, Transport},
};
use octollm_http::{Arms, Server, token::TokenIssuer};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::{ServiceExt, layer::layer_fn, service_fn};

use crate::wired::{Coder, Fetch, Look, Review, System, known};

const REVIEW: Review = Review { after: 0, fetch: false };

/// Looks many times at once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.survey", output = Vec<String>)]
struct Survey {
    looks: usize,
}

#[async_trait]
impl Arm<Survey> for Coder {
    async fn execute(&self, input: Survey, cx: &Context) -> Result<Vec<String>, ArmError> {
        Ok(cx.call_all((0..input.looks).map(|_| Look {})).await?)
    }
}

/// A judge that is not available for its first requests.
fn busy_judge(system: &System, refusals: usize) {
    let count = Arc::new(AtomicUsize::new(0));
    let busy = layer_fn(move |inner: octollm_http::server::HttpService| {
        let count = count.clone();
        service_fn(move |request: Request<octollm_http::server::HttpBody>| {
            let is_call = request.method() == Method::POST;
            let refused = is_call && count.fetch_add(1, Ordering::Relaxed) < refusals;
            let inner = inner.clone();
            async move {
                if !refused {
                    return inner.oneshot(request).await.map(|answer| answer.map(Body::new));
                }
                let answer = Response::builder().status(503).header("retry-after", "8");
                Ok(answer.body(Body::empty()).unwrap())
            }
        })
    });
    let judge = Server::new("judge").arm::<Look>(crate::wired::Judge);
    system.serve("judge", judge.authenticate(system.verifier("judge")).layer(busy));
}

fn authorizations(system: &System, to: &str) -> Vec<String> {
    let sent = system.sent_to(to);
    sent.iter().map(|head| head[header::AUTHORIZATION].to_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_token_and_a_retry_that_outlives_it() {
    let system = System::new();
    busy_judge(&system, 2);
    let issuer = TokenIssuer::root("brain", system.root.clone()).clock(system.clock.read());
    let arms = system.arms(Some(issuer.life(Duration::from_secs(5)).build().unwrap()));
    let ali = known(&arms, &["code:look"]);
    assert_eq!(ali.call(Look {}).retry(2).await.unwrap(), "ali of brain by -");
    let tokens = authorizations(&system, "POST judge/look");
    assert_eq!(tokens.len(), 3);
    assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2], "each attempt has a token that is valid then");
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_not_tried_again() {
    let system = System::new();
    system.judge();
    let stranger = TokenIssuer::root("stranger", system.portal.clone()).clock(system.clock.read());
    let arms = system.arms(Some(stranger.build().unwrap()));
    let error = known(&arms, &["code:look"]).call(Look {}).retry(5).await.unwrap_err();
    assert_eq!((error.kind(), error.retryable()), (ErrorKind::Unauthenticated, false));
    assert_eq!(system.sent_to("POST judge/look").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn delegation_and_a_batch() {
    let system = System::new();
    system.judge();
    let coder = Server::new("coder").arm::<Survey>(Coder).needs::<Look>();
    let coder = coder.arms(system.arms(Some(system.arm("coder")))).authenticate(system.verifier("coder"));
    system.serve("coder", coder);
    let ali = known(&system.with_cards(system.issuer()), &["code:*"]);
    let seen = ali.call(Survey { looks: 20 }).await.unwrap();
    assert_eq!(seen, vec!["ali of brain by coder"; 20]);
    let mut tokens = authorizations(&system, "POST judge/look");
    assert_eq!(tokens.len(), 20);
    tokens.dedup();
    assert_eq!(tokens.len(), 1, "the token of the batch is issued once");
}

#[tokio::test(start_paused = true)]
async fn delegation_and_a_plan() {
    let system = System::new();
    system.judge();
    let arms = Arms::builder().connector(system.pipes.clone()).endpoint("judge", "http://judge");
    let arms = arms.tokens(system.arm("planner")).build().unwrap();
    let planner = Server::new("planner").arm::<Plan>(PlanRunner::new()).arms(arms);
    let planner = planner.needs_scope("code:*").authenticate(system.verifier("planner"));
    system.serve("planner", planner);
    let arms = Arms::builder().connector(system.pipes.clone()).endpoint("planner", "http://planner");
    let ali = known(&arms.tokens(system.issuer()).build().unwrap(), &["plan:run", "code:look", "data:fetch"]);
    let step = |id: &str, contract| PlanStep::new(id, contract, json!({}));
    let plan = Plan::new([step("a", Look::SPEC.reference()), step("b", Look::SPEC.reference()).after("a")]);
    let outputs = ali.call(plan).await.unwrap();
    assert_eq!(outputs.read::<String>("b").unwrap(), "ali of brain by planner");
    // The planner does not need `data:fetch`, whatever is in a plan.
    let error = ali.call(Plan::new([step("a", Fetch::SPEC.reference())])).await.unwrap_err();
    assert!(error.to_string().contains("the scope data:fetch is not granted to planner"), "{error}");
    assert!(system.sent_to("POST judge/fetch").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_card_without_needs_delegates_nothing() {
    let system = System::new();
    system.judge();
    let coder = Server::new("coder").arm::<Review>(Coder).arms(system.arms(Some(system.arm("coder"))));
    system.serve("coder", coder.authenticate(system.verifier("coder")));
    let error = known(&system.with_cards(system.issuer()), &["code:*"]).call(REVIEW).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UpstreamFailed);
    assert!(error.to_string().contains("its card needs `key` and `needs`"), "{error}");
    assert_eq!(system.token_to("POST coder/review").get("dlg"), None);
    assert!(system.sent_to("POST judge/look").is_empty());
}

/// Asks a coder that is mounted into axum, whose middleware says that `ann` calls.
async fn ask_mounted(system: &System, issuer: TokenIssuer) -> (u16, Value) {
    let coder = Server::new("coder").arm::<Review>(Coder).needs::<Look>().identity_from_extensions();
    let coder = coder.arms(system.arms(Some(issuer))).into_service().unwrap();
    let identify =
        middleware::from_fn(async |mut request: axum::extract::Request, next: middleware::Next| {
            request.extensions_mut().insert(Caller::known("ann", ["code:*"]));
            next.run(request).await
        });
    let app = Router::new().nest_service("/arms/coder", coder).layer(identify);
    let request = Request::post("/arms/coder/review").header("content-type", "application/json");
    let body = Body::from(r#"{"after":0,"fetch":false}"#);
    let answer = app.oneshot(request.body(body).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn delegation_and_an_identity_from_an_extension() {
    let system = System::new();
    system.judge();
    // A root vouches for the callers of its service.
    let (status, seen) = ask_mounted(&system, system.issuer()).await;
    assert_eq!((status, seen), (200, json!("ann of brain by -")));
    // An arm has no link for them.
    let (status, problem) = ask_mounted(&system, system.arm("coder")).await;
    assert_eq!((status, &problem["code"]), (502, &json!("upstream_failed")));
    assert_eq!(system.sent_to("POST judge/look").len(), 1, "{problem}");
    let arms = system.arms(Some(system.arm("coder")));
    let error = known(&arms, &["code:look"]).call(Look {}).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::Unauthenticated, false));
    assert!(error.to_string().contains("only a root can call on"), "{error}");
}

/// Fault 25: redirect to another host → not followed, token never leaves its origin.
#[tokio::test(start_paused = true)]
async fn a_token_does_not_follow_a_redirect() {
    let system = System::new();
    let redirect = service_fn(async |_: Request<octollm_http::server::HttpBody>| {
        let answer = Response::builder().status(307).header("location", "http://eve/look");
        Ok::<_, std::convert::Infallible>(answer.body(Full::<bytes::Bytes>::default()).unwrap())
    });
    system.serve("judge", Server::new("judge").route(Method::POST, "/look", redirect));
    system.serve("eve", Server::new("judge").arm::<Look>(crate::wired::Judge));
    let arms = Arms::builder().connector(system.pipes.clone()).tokens(system.issuer());
    let arms = arms.endpoint_serving::<Look>("judge", "http://judge").build().unwrap();
    let error = known(&arms, &["code:look"]).call(Look {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
    assert_eq!(authorizations(&system, "POST judge/look").len(), 1);
    assert!(system.sent_to("POST eve/look").is_empty());
}

/// Charges, and returns how often it has.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.charge", output = usize)]
struct Charge {}

#[derive(Default)]
struct Bank(AtomicUsize);

#[async_trait]
impl Arm<Charge> for Bank {
    async fn execute(&self, _: Charge, _: &Context) -> Result<usize, ArmError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_of_one_caller_who_may_call() {
    let system = System::new();
    let bank = Server::new("judge").arm::<Charge>(Bank::default());
    system.serve("judge", bank.authenticate(system.verifier("judge")));
    let arms = system.arms(Some(system.issuer()));
    let charge = async |subject: &str, scope: &str| {
        let mut parts = ContextParts::new();
        parts.caller = Caller::known(subject, [scope]);
        parts.key = IdempotencyKey::new("k");
        parts.deadline = Some(Deadline::after(Duration::from_secs(30)));
        let call = Call::new(Charge::SPEC.reference(), StepKey::Order(0), "{}".into(), parts);
        Transport::call(&arms, call).await.map(|reply| reply.output)
    };
    for _ in 0..2 {
        assert_eq!(charge("ali", "code:charge").await.unwrap(), "1");
        assert_eq!(charge("bob", "code:*").await.unwrap(), "2");
        let refused = charge("ali", "code:look").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InsufficientScope, "also for what is recorded");
    }
}
