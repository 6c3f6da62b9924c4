//! Arms that register with tokens and proofs, and those that try to take their place.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    Arm, Context,
    brain::Brain,
    card::{ArmCard, ArmStatus},
    error::ArmError,
    parts::{Caller, Grant},
    task::{TaskRequest, TaskResult},
};
use octollm_http::{
    Arms, OrchestratorClient, Registry, Server,
    registry::{Announce, Announcement},
    resolve::Resolver,
    server::HttpService,
    token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tower::ServiceExt;

use crate::{
    support::{Key, b64},
    wired::{Judge, Look, System},
};

struct Plans;

#[async_trait]
impl Arm<TaskRequest> for Plans {
    async fn execute(&self, _: TaskRequest, _: &Context) -> Result<TaskResult, ArmError> {
        Ok(TaskResult::new("done"))
    }
}

/// The server of a brain with a registry, and the root `brain` that issues the tokens of arms.
fn brain(system: &System, registry: Registry) -> Server {
    let brain = Brain::builder().arm(Plans).build().unwrap();
    Server::new("orchestrator")
        .orchestrator(brain)
        .registry(registry)
        .authenticate(system.verifier("orchestrator"))
}

fn registry() -> Registry {
    Registry::builder().allow("http://judge").allow("http://judge-2").build().unwrap()
}

/// A client of that brain for an arm with this name, whose tokens a root issues.
fn client(system: &System, subject: &str) -> OrchestratorClient {
    let client = OrchestratorClient::builder("http://orchestrator").connector(system.pipes.clone());
    let client = client.tokens(system.issuer(), "orchestrator").build().unwrap();
    client.on_behalf_of(Caller::known(subject, ["arms.judge:register", "code:serve", "arms:admin"]))
}

fn judge(client: impl Announce, key: &SigningKey) -> Server {
    Server::new("judge").arm::<Look>(Judge).register(client).registration_key(key.clone())
}

struct Running {
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Running {
    async fn ends(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
    }
}

fn serve(system: &System, host: &str, server: Server) -> Running {
    let (stop, stopped) = oneshot::channel();
    let bound = server.listen(system.pipes.listen(host).unwrap()).unwrap();
    let server = tokio::spawn(bound.run_until(async {
        let _ = stopped.await;
    }));
    Running { stop, server }
}

/// Statuses of the arms in a registry.
fn statuses(registry: &Registry) -> Vec<(String, ArmStatus)> {
    registry.cards().into_iter().map(|card| (card.arm_id, card.status)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_arm_registers_while_it_serves_and_leaves_before_it_ends() {
    let (system, registry, key) = (System::new(), registry(), SigningKey::generate().unwrap());
    let mut found = registry.resolver();
    assert!(found.next().await.unwrap().is_empty());
    system.serve("orchestrator", brain(&system, registry.clone()));
    let server = judge(client(&system, "ops"), &key).endpoint("http://judge").open_to_all();
    let running = serve(&system, "judge", server);
    let endpoints = found.next().await.unwrap();
    assert_eq!((&*endpoints[0].arm, &*endpoints[0].url), ("judge", "http://judge"));
    let card = endpoints[0].card.as_ref().unwrap();
    assert_eq!(card.key, key.public_jwk(), "links are made out to this key");
    // It is renewed: after ten minutes it is there.
    sleep(Duration::from_secs(600)).await;
    assert_eq!(statuses(&registry), [("judge".to_owned(), ArmStatus::Healthy)]);
    // Each at a third of 30 s, give or take a tenth.
    let sent = system.sent_to("POST orchestrator/arms/register");
    assert!((54..=67).contains(&sent.len()), "{}", sent.len());
    let proofs: std::collections::HashSet<_> =
        sent.iter().map(|head| head["octollm-proof"].clone()).collect();
    assert_eq!(proofs.len(), sent.len());
    running.ends().await;
    assert_eq!(statuses(&registry), [("judge".to_owned(), ArmStatus::Unavailable)]);
    assert!(found.next().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_orchestrator_that_was_away_or_restarted_learns_of_its_arms_again() {
    let (system, key) = (System::new(), SigningKey::generate().unwrap());
    let server = judge(client(&system, "ops"), &key).endpoint("http://judge").open_to_all();
    let _judge = serve(&system, "judge", server);
    sleep(Duration::from_secs(60)).await;
    let first = registry();
    let running = serve(&system, "orchestrator", brain(&system, first.clone()));
    // At most 10 s of back-off.
    sleep(Duration::from_secs(11)).await;
    assert_eq!(statuses(&first), [("judge".to_owned(), ArmStatus::Healthy)]);
    running.server.abort();
    let _ = running.server.await;
    let second = registry();
    system.serve("orchestrator", brain(&system, second.clone()));
    sleep(Duration::from_secs(12)).await;
    assert_eq!(statuses(&second), [("judge".to_owned(), ArmStatus::Healthy)]);
}

#[tokio::test(start_paused = true)]
async fn two_processes_of_an_arm_share_its_key() {
    let (system, registry, key) = (System::new(), registry(), SigningKey::generate().unwrap());
    system.serve("orchestrator", brain(&system, registry.clone()));
    let process = |host: &str| {
        let server = judge(client(&system, "ops"), &key).endpoint(format!("http://{host}")).open_to_all();
        serve(&system, host, server)
    };
    let (one, _two) = (process("judge"), process("judge-2"));
    sleep(Duration::from_secs(1)).await;
    let mut found = registry.resolver();
    assert_eq!(found.next().await.unwrap().len(), 2);
    one.ends().await;
    assert_eq!(found.next().await.unwrap()[0].url, "http://judge-2");
    assert_eq!(statuses(&registry), [("judge".to_owned(), ArmStatus::Healthy)]);
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_is_registered_is_found_and_called() {
    let (system, registry, key) = (System::new(), registry(), SigningKey::generate().unwrap());
    system.serve("orchestrator", brain(&system, registry.clone()));
    let server = judge(client(&system, "ops"), &key).endpoint("http://judge");
    let _judge = serve(&system, "judge", server.authenticate(system.verifier("judge")));
    // A program elsewhere follows the orchestrator.
    let mut found = client(&system, "ops").resolver();
    let mut endpoints = found.next().await.unwrap();
    while endpoints.is_empty() {
        endpoints = found.next().await.unwrap();
    }
    let arms = Arms::builder().connector(system.pipes.clone()).tokens(system.issuer());
    let arms = arms.endpoint("judge", &*endpoints[0].url).build().unwrap();
    let cx = arms.on_behalf_of(Caller::known("ali", ["code:look"]));
    assert_eq!(cx.call(Look {}).await.unwrap(), "ali of brain by -");
}

/// A registration as it is sent, to be changed on its way.
struct Sent {
    proof: String,
    token: String,
    body: String,
}

/// What an orchestrator receives from an arm with this card and key.
struct Recorder(std::sync::Mutex<Vec<Arc<str>>>);

#[async_trait]
impl Announce for Recorder {
    async fn announce(&self, announcement: &Announcement) -> Result<Duration, octollm_core::error::Failure> {
        self.0.lock().unwrap().push(String::from_utf8(announcement.body().to_vec()).unwrap().into());
        Ok(Duration::from_secs(30))
    }

    fn at(&self) -> &str {
        "recorder"
    }
}

struct Scene {
    system: System,
    service: HttpService,
    registry: Registry,
    body: Value,
}

impl Scene {
    async fn new() -> Self {
        let (system, registry) = (System::new(), registry());
        let service = brain(&system, registry.clone()).into_service().unwrap();
        let recorder = Arc::new(Recorder(std::sync::Mutex::default()));
        let server =
            Server::new("judge").arm::<Look>(Judge).register(recorder.clone()).endpoint("http://judge");
        let _running = serve(&system, "judge", server.open_to_all());
        sleep(Duration::from_secs(1)).await;
        let body = serde_json::from_str(&recorder.0.lock().unwrap()[0]).unwrap();
        Self { system, service, registry, body }
    }

    fn token(&self, subject: &str, scopes: &[&str]) -> String {
        let grant = Grant::new(subject, scopes.iter().copied());
        let token = self.system.issuer().issue(&grant, scopes, &ArmCard::new("orchestrator")).unwrap();
        token.expose_secret().to_owned()
    }

    /// A registration by `ops` with this key, with changed claims of its proof.
    fn sent(&self, key: &Key, change: Value) -> Sent {
        let mut body = self.body.clone();
        body["card"]["key"] = key.jwk();
        self.signed(key, body.to_string(), change)
    }

    fn signed(&self, key: &Key, body: String, change: Value) -> Sent {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body.as_bytes());
        let mut claims = json!({
            "iss": "judge", "aud": "orchestrator", "iat": self.system.clock.now().as_second(),
            "jti": format!("{:?}", std::time::SystemTime::now()), "htm": "POST", "htp": "/arms/register", "bsh": b64(digest),
        });
        crate::world::merge(&mut claims, &change);
        let proof = key.sign(&json!({ "alg": "EdDSA", "typ": "registration+jwt" }), &claims);
        Sent { proof, token: self.token("ops", &SCOPES), body }
    }

    async fn send(&self, sent: &Sent) -> (u16, Value) {
        let request = Request::post("/arms/register")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", sent.token))
            .header("octollm-proof", &sent.proof);
        let request = request.body(Full::from(sent.body.clone())).unwrap();
        let answer = self.service.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn status(&self, sent: &Sent) -> u16 {
        self.send(sent).await.0
    }
}

const SCOPES: [&str; 2] = ["arms.judge:register", "code:serve"];

#[tokio::test(start_paused = true)]
async fn a_takeover_is_refused_also_after_the_registration_has_ended() {
    let scene = Scene::new().await;
    let (key, evil) = (Key::new(), Key::new());
    assert_eq!(scene.status(&scene.sent(&key, json!({}))).await, 201);
    for _ in 0..2 {
        assert_eq!(scene.status(&scene.sent(&evil, json!({}))).await, 409, "another key");
        let other = Sent { token: scene.token("eve", &SCOPES), ..scene.sent(&key, json!({})) };
        assert_eq!(scene.status(&other).await, 409, "another subject");
        let mut leaving = scene.body.clone();
        (leaving["card"]["key"], leaving["lifetime_s"]) = (evil.jwk(), 0.into());
        assert_eq!(
            scene.status(&scene.signed(&evil, leaving.to_string(), json!({}))).await,
            409,
            "leaving for it"
        );
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(statuses(&scene.registry)[0].1, ArmStatus::Unavailable);
    }
    assert_eq!(scene.registry.clear("judge"), Some(vec![]));
    assert_eq!(scene.status(&scene.sent(&evil, json!({}))).await, 201);
    assert_eq!(scene.status(&scene.sent(&key, json!({}))).await, 409);
}

#[tokio::test(start_paused = true)]
async fn a_proof_that_is_not_of_this_request_is_refused() {
    let scene = Scene::new().await;
    let (key, other) = (Key::new(), Key::new());
    let good = scene.sent(&key, json!({}));
    let now = scene.system.clock.now().as_second();
    for change in [
        json!({ "iss": "jury" }),
        json!({ "aud": "judge" }),
        json!({ "aud": ["orchestrator"] }),
        json!({ "iat": now - 61 }),
        json!({ "iat": now + 61 }),
        json!({ "iat": 0 }),
        json!({ "htm": "DELETE" }),
        json!({ "htp": "/tasks" }),
        json!({ "bsh": b64("x") }),
        json!({ "jti": "" }),
    ] {
        assert_eq!(scene.status(&scene.sent(&key, change.clone())).await, 401, "{change}");
    }
    for proof in [
        String::new(),
        "x".into(),
        good.token.clone(),
        scene.sent(&other, json!({})).proof,
        key.sign(&json!({ "alg": "none", "typ": "registration+jwt" }), &json!({})),
        good.proof.replace('.', ""),
    ] {
        assert_eq!(scene.status(&Sent { proof, ..scene.sent(&key, json!({})) }).await, 401);
    }
    // Another card under the same proof.
    let mut body: Value = serde_json::from_str(&good.body).unwrap();
    body["card"]["endpoint"] = "http://judge-2".into();
    assert_eq!(scene.status(&Sent { body: body.to_string(), ..scene.sent(&key, json!({})) }).await, 401);
    // A proof is no token, and a token no proof.
    assert_eq!(scene.status(&Sent { token: good.proof.clone(), ..scene.sent(&key, json!({})) }).await, 401);
    assert!(scene.registry.cards().is_empty());
    assert_eq!(scene.status(&good).await, 201);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_is_replayed_is_refused() {
    let scene = Scene::new().await;
    let key = Key::new();
    let recorded = scene.sent(&key, json!({}));
    assert_eq!(scene.status(&recorded).await, 201);
    let (status, problem) = scene.send(&recorded).await;
    assert_eq!((status, &problem["code"]), (401, &json!("unauthenticated")));
    // It does not bring back an arm that has left.
    let mut leaving = scene.body.clone();
    (leaving["card"]["key"], leaving["lifetime_s"]) = (key.jwk(), 0.into());
    assert_eq!(scene.status(&scene.signed(&key, leaving.to_string(), json!({}))).await, 200);
    for seconds in [0, 30, 45, 3600] {
        sleep(Duration::from_secs(seconds)).await;
        assert_eq!(scene.status(&recorded).await, 401, "{seconds}");
    }
    assert_eq!(statuses(&scene.registry)[0].1, ArmStatus::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn scopes_are_those_of_the_arm_and_of_each_contract() {
    let scene = Scene::new().await;
    let key = Key::new();
    for (scopes, status) in [
        (&["code:serve"][..], 403),
        (&["arms.judge:register"], 403),
        (&["arms.judge:*", "code:*"], 403),
        (&["arms.jury:register", "code:serve"], 403),
        (&["arms.judge:register", "data:serve"], 403),
        (&SCOPES, 201),
    ] {
        let sent = Sent { token: scene.token("ops", scopes), ..scene.sent(&key, json!({})) };
        assert_eq!(scene.status(&sent).await, status, "{scopes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_name_of_an_issuer_is_no_name_of_an_arm() {
    let scene = Scene::new().await;
    let key = Key::new();
    for (id, status) in [("brain", 409), ("orchestrator", 409), ("other", 201)] {
        let mut body = scene.body.clone();
        (body["card"]["arm_id"], body["card"]["key"]) = (id.into(), key.jwk());
        let scopes = [&*format!("arms.{id}:register"), "code:serve"];
        let sent = scene.signed(&key, body.to_string(), json!({ "iss": id }));
        assert_eq!(scene.status(&Sent { token: scene.token("ops", &scopes), ..sent }).await, status, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_arm_has_an_issuer_that_can_do_nothing_else() {
    let (system, registry, key) = (System::new(), registry(), SigningKey::generate().unwrap());
    let own = SigningKey::generate().unwrap();
    // The orchestrator accepts of it these scopes alone.
    let keys = KeySet::new("judge-ops").with_key(&own).unwrap();
    let verifier = TokenVerifier::builder()
        .root(KeySet::new("brain").with_key(&system.root).unwrap())
        .identity_provider(keys, "orchestrator", SCOPES)
        .clock(system.clock.read());
    let brain = Brain::builder().arm(Plans).build().unwrap();
    let brain = Server::new("orchestrator").orchestrator(brain).registry(registry.clone()).tokens(verifier);
    system.serve("orchestrator", brain);
    let issuer = TokenIssuer::root("judge-ops", own).clock(system.clock.read()).build().unwrap();
    let client = OrchestratorClient::builder("http://orchestrator").connector(system.pipes.clone());
    let client = client.tokens(issuer, "orchestrator").build().unwrap();
    let server = judge(client.clone(), &key).endpoint("http://judge").open_to_all();
    let _judge = serve(&system, "judge", server);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(statuses(&registry), [("judge".to_owned(), ArmStatus::Healthy)]);
    let refused = client.on_behalf_of(Caller::known("judge-ops", ["tasks:*"]));
    assert!(refused.submit(TaskRequest::new("anything")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_card_has_one_key() {
    let system = System::new();
    let key = SigningKey::generate().unwrap();
    let setting = |server: Server| {
        server.listen(system.pipes.listen("nobody").unwrap()).unwrap_err().setting().to_owned()
    };
    let client = || client(&system, "ops");
    let open = || Server::new("judge").arm::<Look>(Judge).endpoint("http://judge").open_to_all();
    let calls = || system.arms(Some(system.arm("judge")));
    assert_eq!(setting(open().arms(calls()).register(client())), "registration_key");
    assert_eq!(setting(open().arms(calls()).registration_key(key.clone())), "registration_key");
    let secret = SigningKey::from_secret(&"s".repeat(32).into()).unwrap();
    assert_eq!(setting(open().registration_key(secret)), "registration_key");
    let none = Server::new("judge").arm::<Look>(Judge).open_to_all().register(client());
    assert_eq!(setting(none), "endpoint");
    assert_eq!(setting(open().endpoint("judge").register(client())), "endpoint");
    let mounted = open().register(client()).into_service();
    assert_eq!(mounted.unwrap_err().setting(), "register");
}
