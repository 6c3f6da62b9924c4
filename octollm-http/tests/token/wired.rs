//! Tokens between servers and clients: what is sent, what is accepted, and what fails before it is sent.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    Arm, Context,
    error::{ArmError, ErrorKind},
    id::TaskId,
    parts::{Caller, ContextParts},
    transport::Transport,
};
use octollm_http::{
    Arms, OrchestratorClient, Server,
    io::Pipes,
    server::{HttpBody, HttpService},
    token::{KeySet, SigningKey, TokenIssuer, TokenVerifier},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::{ServiceExt, layer::layer_fn};

use crate::support::{Clock, claims_of};

/// Says on whose behalf it is called.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.look", output = String, idempotent)]
pub(crate) struct Look {}

/// Fetches nothing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "data.fetch", output = String, idempotent)]
pub(crate) struct Fetch {}

/// Looks, after some seconds, and fetches if it should.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.review", output = String, timeout = "2h")]
pub(crate) struct Review {
    pub(crate) after: u64,
    pub(crate) fetch: bool,
}

fn whose(cx: &Context) -> String {
    let grant = cx.caller().grant().expect("a known caller");
    let (issuer, actor) = (grant.issuer.as_deref().unwrap_or("-"), grant.actor.as_deref().unwrap_or("-"));
    format!("{} of {issuer} by {actor}", grant.subject)
}

pub(crate) struct Judge;

#[async_trait]
impl Arm<Look> for Judge {
    async fn execute(&self, _: Look, cx: &Context) -> Result<String, ArmError> {
        Ok(whose(cx))
    }
}

#[async_trait]
impl Arm<Fetch> for Judge {
    async fn execute(&self, _: Fetch, cx: &Context) -> Result<String, ArmError> {
        Ok(whose(cx))
    }
}

pub(crate) struct Coder;

#[async_trait]
impl Arm<Review> for Coder {
    async fn execute(&self, input: Review, cx: &Context) -> Result<String, ArmError> {
        tokio::time::sleep(Duration::from_secs(input.after)).await;
        if input.fetch {
            cx.call(Fetch {}).await?;
        }
        Ok(cx.call(Look {}).await?)
    }
}

/// A network, the root `brain`, and the authorizations that servers received.
pub(crate) struct System {
    pub(crate) pipes: Pipes,
    pub(crate) root: SigningKey,
    pub(crate) portal: SigningKey,
    pub(crate) clock: Clock,
    pub(crate) sent: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl System {
    pub(crate) fn new() -> Self {
        let key = || SigningKey::generate().unwrap();
        let (pipes, clock) = (Pipes::new(), Clock::runtime());
        Self { pipes, root: key(), portal: key(), clock, sent: Arc::default() }
    }

    pub(crate) fn verifier(&self, id: &str) -> TokenVerifier {
        let brain = KeySet::new("brain").with_key(&self.root).unwrap().speaks_for("portal");
        TokenVerifier::builder().audience(id).root(brain).clock(self.clock.read()).build().unwrap()
    }

    pub(crate) fn issuer(&self) -> TokenIssuer {
        TokenIssuer::root("brain", self.root.clone()).clock(self.clock.read()).build().unwrap()
    }

    pub(crate) fn arm(&self, id: &str) -> TokenIssuer {
        TokenIssuer::arm(id, SigningKey::generate().unwrap()).clock(self.clock.read()).build().unwrap()
    }

    /// Serves on a host, and records what arrives.
    pub(crate) fn serve(&self, host: &str, server: Server) {
        let (sent, name) = (self.sent.clone(), host.to_owned());
        let records = layer_fn(move |inner: HttpService| {
            let (sent, name) = (sent.clone(), name.clone());
            inner.map_request(move |request: Request<HttpBody>| {
                let to = format!("{} {name}{}", request.method(), request.uri().path());
                sent.lock().unwrap().push((to, request.headers().clone()));
                request
            })
        });
        tokio::spawn(server.layer(records).listen(self.pipes.listen(host).unwrap()).unwrap().run());
    }

    pub(crate) fn judge(&self) {
        let judge = Server::new("judge").arm::<Look>(Judge).arm::<Fetch>(Judge);
        self.serve("judge", judge.authenticate(self.verifier("judge")));
    }

    /// The arms `judge` and `coder`, as they are called with tokens of an issuer.
    pub(crate) fn arms(&self, issuer: Option<TokenIssuer>) -> Arms {
        let arms = Arms::builder().connector(self.pipes.clone()).endpoint("judge", "http://judge");
        let arms = arms.endpoint_serving::<Review>("coder", "http://coder");
        issuer.into_iter().fold(arms, |arms, issuer| arms.tokens(issuer)).build().unwrap()
    }

    /// The same, where the card of the coder is read.
    pub(crate) fn with_cards(&self, issuer: TokenIssuer) -> Arms {
        let arms = Arms::builder().connector(self.pipes.clone()).tokens(issuer);
        arms.endpoint("judge", "http://judge").endpoint("coder", "http://coder").build().unwrap()
    }

    pub(crate) fn sent_to(&self, to: &str) -> Vec<HeaderMap> {
        let sent = self.sent.lock().unwrap();
        sent.iter().filter(|(target, _)| target == to).map(|(_, head)| head.clone()).collect()
    }

    /// The claims of the last token that was sent to a route.
    pub(crate) fn token_to(&self, to: &str) -> Value {
        let heads = self.sent_to(to);
        let field = heads.last().expect(to)[header::AUTHORIZATION].to_str().unwrap();
        claims_of(field.strip_prefix("Bearer ").unwrap())
    }
}

pub(crate) fn known(arms: &Arms, scopes: &[&str]) -> Context {
    let mut parts = ContextParts::new();
    parts.caller = Caller::known("ali", scopes.iter().copied());
    arms.context_of(parts)
}

const REVIEW: Review = Review { after: 0, fetch: false };

#[tokio::test(start_paused = true)]
async fn calls_of_calls_are_on_behalf_of_one_subject() {
    let system = System::new();
    system.judge();
    let coder = Server::new("coder").arm::<Review>(Coder).needs::<Look>();
    let coder = coder.arms(system.arms(Some(system.arm("coder")))).authenticate(system.verifier("coder"));
    system.serve("coder", coder);
    let arms = system.with_cards(system.issuer());
    let cx = known(&arms, &["code:*"]);
    for _ in 0..3 {
        assert_eq!(cx.call(REVIEW).await.unwrap(), "ali of brain by coder");
    }
    let (first, second) = (system.token_to("POST coder/review"), system.token_to("POST judge/look"));
    let names = |claims: &Value| {
        ["iss", "sub", "aud", "scope"].map(|claim| claims[claim].as_str().unwrap().to_owned())
    };
    assert_eq!(names(&first), ["brain", "ali", "coder", "code:review"]);
    assert_eq!(names(&second), ["coder", "ali", "judge", "code:look"]);
    assert_eq!(second["prf"], json!([first["dlg"]]));
    assert_eq!(second["dlg"], Value::Null, "the judge needs nothing");
    // No token went on, and each was issued once.
    let tokens = |to: &str| {
        system.sent_to(to).iter().map(|head| head[header::AUTHORIZATION].clone()).collect::<Vec<_>>()
    };
    let (first, second) = (tokens("POST coder/review"), tokens("POST judge/look"));
    assert!(first.iter().all(|token| *token == first[0]) && second.iter().all(|token| *token == second[0]));
    assert!(!first.contains(&second[0]));
    // Cards are asked for without a token.
    assert!(
        system.sent_to("GET judge/capabilities").iter().all(|head| !head.contains_key(header::AUTHORIZATION))
    );

    // What the coder does not need it cannot call, whatever the caller has.
    let error = known(&arms, &["code:*", "data:*"]).call(Review { after: 0, fetch: true }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UpstreamFailed);
    assert!(error.to_string().contains("the scope data:fetch is not granted to coder"), "{error}");
    assert!(system.sent_to("POST judge/fetch").is_empty());
    // What the caller does not have the coder does not get.
    let error = known(&arms, &["code:review"]).call(REVIEW).await.unwrap_err();
    assert!(error.to_string().contains("has not delegated to this arm"), "{error}");
    let error = known(&arms, &["code:look"]).call(REVIEW).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::InsufficientScope, false));
    // A root whose own program calls acts for itself.
    assert_eq!(arms.call(REVIEW).await.unwrap(), "brain of brain by coder");
}

#[tokio::test(start_paused = true)]
async fn an_arm_without_a_key_cannot_call_on() {
    let system = System::new();
    system.judge();
    let coder = Server::new("coder").arm::<Review>(Coder).needs::<Look>();
    system.serve("coder", coder.arms(system.arms(None)).authenticate(system.verifier("coder")));
    let arms = system.with_cards(system.issuer());
    let error = known(&arms, &["code:*"]).call(REVIEW).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UpstreamFailed);
    assert!(error.to_string().contains("no key to call on with"), "{error}");
    assert!(system.sent_to("POST judge/look").is_empty(), "nothing was sent, least of all the token");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_for_the_arm_that_is_configured_whatever_its_card_says() {
    let system = System::new();
    system.judge();
    // It has another name here than on its card.
    let mallory = Server::new("judge").arm::<Look>(Judge).authenticate(system.verifier("judge"));
    system.serve("mallory", mallory);
    let arms = Arms::builder().connector(system.pipes.clone()).tokens(system.issuer());
    let arms = arms.endpoint("mallory", "http://mallory").build().unwrap();
    let error = known(&arms, &["code:*"]).call(Look {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert_eq!(system.token_to("POST mallory/look")["aud"], "mallory");
}

/// Sends a request to a mounted judge.
async fn ask(
    system: &System,
    path: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> (u16, Option<String>, Value) {
    let judge = Server::new("judge").arm::<Look>(Judge).authenticate(system.verifier("judge"));
    let mut request = Request::post(path).header("content-type", "application/json");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body.to_owned())).unwrap();
    let answer = judge.into_service().unwrap().oneshot(request).await.unwrap();
    let challenge =
        answer.headers().get(header::WWW_AUTHENTICATE).map(|field| field.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, challenge, serde_json::from_slice(&body).unwrap())
}

fn token(system: &System, scopes: &[&str], task: Option<&TaskId>) -> String {
    let mut grant = octollm_core::parts::Grant::new("ali", ["code:*", "data:*"]);
    grant.task = task.cloned();
    let card = octollm_core::card::ArmCard::new("judge");
    let token = system.issuer().issue(&grant, scopes, &card).unwrap();
    format!("Bearer {}", octollm_http::token::ExposeSecret::expose_secret(&token))
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_challenged_as_the_rfc_says() {
    let system = System::new();
    let good = token(&system, &["code:look"], None);
    let other = token(&system, &["data:fetch"], None);
    let lower = good.replacen("Bearer", "bearer", 1);
    for (field, status, challenge) in [
        (None, 401, Some("Bearer")),
        (Some("Bearer"), 401, Some("Bearer error=\"invalid_token\"")),
        (Some("Bearer x"), 401, Some("Bearer error=\"invalid_token\"")),
        (Some("Basic YTpi"), 401, Some("Bearer error=\"invalid_token\"")),
        (Some(good.strip_prefix("Bearer ").unwrap()), 401, Some("Bearer error=\"invalid_token\"")),
        (Some(&*format!("{good} x")), 401, Some("Bearer error=\"invalid_token\"")),
        (Some(&*other), 403, Some("Bearer error=\"insufficient_scope\", scope=\"code:look\"")),
        (Some(&*good), 200, None),
        (Some(&*lower), 200, None),
    ] {
        let fields: Vec<_> = field.map(|field| ("authorization", field)).into_iter().collect();
        for (path, body) in [("/look", "{}"), ("/execute", r#"{"contract":"code.look","input":{}}"#)] {
            let (answered, shown, body) = ask(&system, path, &fields, body).await;
            assert_eq!((answered, shown.as_deref()), (status, challenge), "{path} {field:?} {body}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_good_for_its_task() {
    let system = System::new();
    let (task, other) = (TaskId::new(), TaskId::new());
    let bound = token(&system, &["code:look"], Some(&task));
    let execute =
        |task: &TaskId| json!({ "task_id": task, "contract": "code.look", "input": {} }).to_string();
    for (path, header, body, status) in [
        ("/look", None, "{}".to_owned(), 200),
        ("/look", Some(&task), "{}".to_owned(), 200),
        ("/look", Some(&other), "{}".to_owned(), 403),
        ("/execute", None, execute(&task), 200),
        ("/execute", None, execute(&other), 403),
        ("/execute", Some(&task), execute(&other), 403),
        ("/execute", Some(&other), execute(&task), 403),
        ("/execute", None, r#"{"contract":"code.look","input":{}}"#.to_owned(), 200),
    ] {
        let mut fields = vec![("authorization", &*bound)];
        fields.extend(header.map(|task| ("octollm-task-id", task.as_str())));
        let (answered, _, problem) = ask(&system, path, &fields, &body).await;
        assert_eq!(answered, status, "{path} {header:?} {body} {problem}");
        if path == "/execute" && status == 200 {
            assert_eq!(problem["task_id"], json!(task));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn public_keys_are_published() {
    let system = System::new();
    let keys = KeySet::new("brain").with_key(&system.root).unwrap();
    let arms = system.arms(Some(system.arm("coder")));
    let key = arms.public_key().unwrap();
    let coder =
        Server::new("coder").arm::<Review>(Coder).needs::<Look>().needs::<Look>().needs_scope("data:*");
    let service =
        coder.arms(arms).jwks(keys.clone()).authenticate(system.verifier("coder")).into_service().unwrap();
    let get = async |path: &str| -> Value {
        let request = Request::get(path).body(Full::<bytes::Bytes>::default()).unwrap();
        let answer = service.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 200, "needs no token");
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    };
    let card = get("/capabilities").await;
    assert_eq!((&card["needs"], &card["key"]), (&json!(["code:look", "data:*"]), &Value::Object(key)));
    assert_eq!(get("/.well-known/jwks.json").await, keys.to_jwks());
    let next = SigningKey::generate().unwrap();
    keys.set_jwks(&Value::Object(next.public_jwk().unwrap()).to_string()).unwrap();
    assert_eq!(get("/.well-known/jwks.json").await["keys"][0]["kid"], next.kid(), "as it is now");
    // The key of a root is on no card.
    assert_eq!(system.arms(Some(system.issuer())).public_key(), None);
}

#[test]
fn tokens_are_sent_in_cleartext_to_this_machine_only() {
    let issuer = || TokenIssuer::root("brain", SigningKey::generate().unwrap()).build().unwrap();
    for (url, is_local) in [
        ("http://127.0.0.1:1", true),
        ("http://127.9.9.9:1", true),
        ("http://[::1]:1/x", true),
        ("http://localhost:1", true),
        #[cfg(feature = "tls")]
        ("https://judge:1", true),
        ("http://judge:1", false),
        ("http://10.0.0.1:1", false),
        ("http://0.0.0.0:1", false),
        ("http://localhost.example:1", false),
        ("http://127.0.0.1.example:1", false),
        ("http://127.0.0.1:1, http://judge:1", false),
    ] {
        let arms = || Arms::builder().endpoint("judge", url).tokens(issuer());
        assert_eq!(
            arms().build().err().map(|error| error.setting() == "judge"),
            (!is_local).then_some(true),
            "{url}"
        );
        assert!(arms().cleartext().build().is_ok());
        assert!(Arms::builder().endpoint("judge", url).build().is_ok(), "without tokens");
        if url.contains(',') {
            continue;
        }
        let brain = || OrchestratorClient::builder(url).tokens(issuer(), "brain");
        assert_eq!(brain().build().is_ok(), is_local, "{url}");
        assert!(brain().cleartext().build().is_ok());
        let bearer = || OrchestratorClient::builder(url).bearer("secret");
        assert_eq!(bearer().build().is_ok(), is_local, "{url}");
        assert!(bearer().cleartext().build().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn two_headers_are_refused() {
    let system = System::new();
    let good = token(&system, &["code:look"], None);
    let fields = [("authorization", &*good), ("authorization", &*good)];
    assert_eq!(ask(&system, "/look", &fields, "{}").await.0, 400);
}
