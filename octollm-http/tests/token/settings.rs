//! Settings of servers and clients: audiences, and header fields for one arm.

use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    card::ArmCard,
    parts::{Caller, Grant},
};
use octollm_http::{
    Arms, Authenticate, Server,
    server::HttpService,
    token::{ExposeSecret, KeySet, TokenVerifier, TokenVerifierBuilder},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::wired::{Coder, Judge, Look, Review, System, known};

fn builder(system: &System) -> TokenVerifierBuilder {
    let brain = KeySet::new("brain").with_key(&system.root).unwrap();
    TokenVerifier::builder().root(brain).clock(system.clock.read())
}

/// The status of a call with a token for an audience.
async fn called(service: &HttpService, system: &System, audience: &str) -> u16 {
    let callee = ArmCard::new(audience);
    let token = system.issuer().issue(&Grant::new("ali", ["code:*"]), &["code:look"], &callee).unwrap();
    let request = Request::post("/look")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {}", token.expose_secret()))
        .body(Full::<bytes::Bytes>::from("{}"))
        .unwrap();
    service.clone().oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_server_is_its_audience_unless_the_verifier_has_one() {
    let system = System::new();
    let judge = || Server::new("judge").arm::<Look>(Judge);
    let own = judge().tokens(builder(&system)).into_service().unwrap();
    let another = judge().tokens(builder(&system).audience("verdicts")).into_service().unwrap();
    for (service, audience, status) in
        [(&own, "judge", 200), (&own, "verdicts", 401), (&another, "judge", 401), (&another, "verdicts", 200)]
    {
        assert_eq!(called(service, &system, audience).await, status, "{audience}");
    }
    // The setting that was made last holds.
    let nobody = |_: &http::request::Parts| Ok(Caller::Anonymous);
    let first = judge().tokens(builder(&system)).authenticate(nobody).into_service().unwrap();
    let last = judge().authenticate(nobody).tokens(builder(&system)).into_service().unwrap();
    assert_eq!((called(&first, &system, "judge").await, called(&last, &system, "judge").await), (401, 200));
}

#[tokio::test(start_paused = true)]
async fn a_server_reports_the_mistakes_of_its_verifier() {
    let error = Server::new("judge").tokens(TokenVerifier::builder()).into_service().unwrap_err();
    assert_eq!(error.setting(), "root");
    let long = std::time::Duration::from_secs(1_000_000);
    let error = Server::new("judge").tokens(builder(&System::new()).max_life(long)).bind("127.0.0.1:0").await;
    assert_eq!(error.unwrap_err().setting(), "max_life");
}

#[tokio::test(start_paused = true)]
async fn the_document_states_which_scopes_a_token_needs() {
    let system = System::new();
    let verifier = || builder(&system);
    let judge = || Server::new("judge").arm::<Review>(Coder).metrics_scope("metrics:read");
    let by_setting = judge().tokens(verifier());
    let by_hand = judge().authenticate(verifier().audience("judge").build().unwrap());
    let last_setting = judge().tokens(verifier()).authenticate(Unasked);
    for (server, is_stated) in [(by_setting, true), (by_hand, true), (last_setting, false)] {
        let request = Request::get("/openapi.json").body(Full::<bytes::Bytes>::default()).unwrap();
        let answer = server.into_service().unwrap().oneshot(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&body).unwrap();
        let security = |path: &str, method: &str| document["paths"][path][method]["security"].clone();
        let needs = |scopes: Value| if is_stated { json!([{ "token": scopes }]) } else { Value::Null };
        assert_eq!(security("/review", "post"), needs(json!(["code:review"])));
        assert_eq!(security("/execute", "post"), needs(json!([])), "it depends on the body");
        assert_eq!(security("/metrics", "get"), needs(json!(["metrics:read"])));
        assert_eq!(security("/health", "get"), Value::Null);
        let scheme = &document["components"]["securitySchemes"]["token"]["scheme"];
        assert_eq!(scheme == "bearer", is_stated, "{scheme}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_keys_that_are_served_are_in_the_document() {
    let system = System::new();
    let keys = KeySet::new("brain").with_key(&system.root).unwrap();
    for serves in [false, true] {
        let server = Server::new("judge").open_to_all();
        let server = if serves { server.jwks(keys.clone()) } else { server };
        let request = Request::get("/openapi.json").body(Full::<bytes::Bytes>::default()).unwrap();
        let answer = server.into_service().unwrap().oneshot(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&body).unwrap();
        let route = &document["paths"]["/.well-known/jwks.json"]["get"];
        assert_eq!(route["operationId"] == "jwks", serves, "{route}");
    }
}

/// An authenticator that has seen no head.
struct Unasked;

#[async_trait::async_trait]
impl Authenticate for Unasked {
    async fn authenticate(&self, _: &http::request::Parts) -> Result<Caller, octollm_core::error::Failure> {
        Ok(Caller::known("ali", ["code:*"]))
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_is_sent_to_its_arm_only() {
    let system = System::new();
    system.judge();
    system.serve("coder", Server::new("coder").arm::<Review>(Coder).authenticate(Unasked));
    let arms = Arms::builder().connector(system.pipes.clone()).tokens(system.issuer());
    let arms = arms.endpoint("judge", "http://judge").endpoint("coder", "http://coder");
    let arms = arms.header("judge", "X-Api-Key", "one").header("judge", "x-team", "parser").header(
        "coder",
        "authorization",
        "Bearer fixed",
    );
    assert!(!format!("{arms:?}").contains("fixed"));
    let arms = arms.build().unwrap();
    let cx = known(&arms, &["code:*"]);
    cx.call(Look {}).await.unwrap();
    cx.call(Review { after: 0, fetch: false }).await.unwrap_err();
    let field = |head: &HeaderMap, name: &str| {
        head.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (target, key) in [
        ("POST judge/look", Some("one")),
        ("GET judge/capabilities", Some("one")),
        ("POST coder/review", None),
        ("GET coder/capabilities", None),
    ] {
        let heads = system.sent_to(target);
        assert!(!heads.is_empty(), "{target}");
        for head in heads {
            assert_eq!(field(&head, "x-api-key"), Vec::from_iter(key), "{target}");
            assert_eq!(field(&head, "x-team").len(), key.iter().count(), "{target}");
        }
    }
    assert_eq!(system.token_to("POST judge/look")["aud"], "judge", "beside the token");
    for target in ["POST coder/review", "GET coder/capabilities"] {
        assert_eq!(field(&system.sent_to(target)[0], "authorization"), ["Bearer fixed"], "in place of one");
    }
}

#[test]
fn a_header_that_cannot_be_sent_is_refused() {
    let arms = || Arms::builder().endpoint("judge", "http://localhost:1");
    for (arm, name, value, setting, problem) in [
        ("coder", "x-key", "a", "coder", "not among the arms"),
        ("judge", "x key", "secret", "header x key of judge", "is not the name"),
        ("judge", "x-key", "secret\r\nhost: a", "header x-key of judge", "malformed value"),
        ("judge", "Host", "secret", "header Host of judge", "by the client itself"),
        ("judge", "transfer-encoding", "secret", "header transfer-encoding of judge", "by the client itself"),
    ] {
        let error = arms().header(arm, name, value).build().unwrap_err();
        let text = error.to_string();
        assert_eq!(error.setting(), setting);
        assert!(text.contains(problem) && !text.contains("secret"), "{text}");
    }
    let twice = arms().header("judge", "x-key", "a").header("judge", "X-Key", "b").build();
    assert!(twice.unwrap_err().to_string().contains("is set twice"));
    let remote = || Arms::builder().endpoint("judge", "http://judge:1").endpoint("coder", "http://coder:1");
    let with_key = || remote().header("judge", "x-key", "a");
    assert_eq!(with_key().build().unwrap_err().setting(), "judge", "in cleartext");
    assert!(with_key().cleartext().build().is_ok() && remote().build().is_ok());
}
