//! What a token that is not of the subject itself is good for at the routes of tasks.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    brain::Brain,
    id::TaskId,
    parts::Grant,
    store::{MemoryStore, TaskStore},
};
use octollm_http::{
    Server,
    server::HttpService,
    token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    support::{card, claims_of},
    wired::{Coder, Review, System},
};

/// A brain that accepts tokens of `portal`, and the arm `coder`, to which `portal` delegates.
struct World {
    system: System,
    store: Arc<MemoryStore>,
    service: HttpService,
    portal: TokenIssuer,
    coder_key: SigningKey,
    coder: TokenIssuer,
    verifier: TokenVerifier,
}

impl World {
    fn new() -> Self {
        let system = System::new();
        system.judge();
        let store = Arc::new(MemoryStore::new());
        let brain = Brain::builder().name("brain").arm::<Review>(Coder).store(store.clone());
        let brain =
            brain.arms(system.arms(Some(system.issuer()))).clock(system.clock.read()).build().unwrap();
        let keys = || KeySet::new("portal").with_key(&system.portal).unwrap();
        let verifier = |audience: &str| {
            TokenVerifier::builder()
                .audience(audience)
                .root(keys())
                .clock(system.clock.read())
                .build()
                .unwrap()
        };
        let server = Server::new("brain").orchestrator(brain).authenticate(verifier("brain"));
        let coder_key = SigningKey::generate().unwrap();
        let portal =
            TokenIssuer::root("portal", system.portal.clone()).clock(system.clock.read()).build().unwrap();
        let coder = TokenIssuer::arm("coder", coder_key.clone()).clock(system.clock.read()).build().unwrap();
        let (service, verifier) = (server.into_service().unwrap(), verifier("coder"));
        Self { system, store, service, portal, coder_key, coder, verifier }
    }

    /// A token of the subject `ali`.
    fn token(&self, task: Option<&TaskId>, scopes: &[&str]) -> String {
        let mut grant = Grant::new("ali", scopes.iter().copied());
        grant.task = task.cloned();
        let card = octollm_core::card::ArmCard::new("brain");
        self.portal.issue(&grant, scopes, &card).unwrap().expose_secret().to_owned()
    }

    /// A token of the coder for the brain, by the link that `portal` gave it for `ali`.
    fn by_link(&self, task: Option<&TaskId>, scopes: &[&str]) -> String {
        let mut ali = Grant::new("ali", ["code:*", "text:*"]);
        ali.task = task.cloned();
        let grant = self.at_coder(&ali, scopes);
        let card = octollm_core::card::ArmCard::new("brain");
        self.coder.issue(&grant, scopes, &card).unwrap().expose_secret().to_owned()
    }

    /// What the coder is granted by a token of `portal` with a link for these scopes.
    fn at_coder(&self, ali: &Grant, scopes: &[&str]) -> Arc<Grant> {
        let token = self.portal.issue(ali, &["code:look"], &card("coder", &self.coder_key, scopes)).unwrap();
        self.verifier.verify(token.expose_secret()).unwrap()
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: &'static str,
    ) -> (u16, HeaderMap, Value) {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = match token {
            "" => request,
            token => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
        };
        let answer =
            self.service.clone().oneshot(request.body(Full::<Bytes>::from(body)).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn submit(&self, token: &str) -> TaskId {
        let submission = r#"{"contract":"code.review","input":{"after":1,"fetch":false}}"#;
        let (status, _, task) = self.ask(Method::POST, "/tasks", token, submission).await;
        assert_eq!(status, 202, "{task}");
        serde_json::from_value(task["task_id"].clone()).unwrap()
    }

    /// The statuses of all routes of a task, and whether a list has it.
    async fn statuses(&self, id: &TaskId, token: &str) -> ([u16; 4], bool) {
        let mut statuses = [0; 4];
        let routes =
            [(Method::GET, ""), (Method::GET, "/journal"), (Method::POST, "/rerun"), (Method::DELETE, "")];
        for (status, (method, suffix)) in statuses.iter_mut().zip(routes) {
            *status = self.ask(method, &format!("/tasks/{id}{suffix}"), token, "{}").await.0;
        }
        let (_, _, page) = self.ask(Method::GET, "/tasks?limit=100", token, "").await;
        let is_listed = page["tasks"]
            .as_array()
            .is_some_and(|tasks| tasks.iter().any(|task| task["task_id"] == id.as_str()));
        (statuses, is_listed)
    }
}

const SEEN: ([u16; 4], bool) = ([200, 200, 409, 200], true);
const HIDDEN: ([u16; 4], bool) = ([404; 4], false);
const SCOPE: ([u16; 4], bool) = ([403; 4], false);

#[tokio::test(start_paused = true)]
async fn a_link_has_no_tasks_but_its_own() {
    let world = World::new();
    let first = world.submit(&world.token(None, &["code:*"])).await;
    let other = world.submit(&world.token(None, &["code:*"])).await;
    let below = world.submit(&world.by_link(Some(&first), &["code:*"])).await;
    let mine = world.submit(&world.by_link(None, &["code:*"])).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let review = &["code:review"];
    for (token, expected) in [
        // A link for another scope: nothing that exists, and not what it did not submit.
        (world.by_link(None, &["text:count"]), [HIDDEN, HIDDEN, SCOPE, SCOPE]),
        (world.by_link(None, review), [HIDDEN, HIDDEN, SEEN, SEEN]),
        // Without the header of the task.
        (world.by_link(Some(&first), review), [SEEN, HIDDEN, SEEN, HIDDEN]),
        (world.by_link(Some(&other), review), [HIDDEN, SEEN, HIDDEN, HIDDEN]),
        (world.token(Some(&first), review), [SEEN, HIDDEN, SEEN, HIDDEN]),
        (world.token(Some(&first), &["text:count"]), [SCOPE, HIDDEN, SCOPE, HIDDEN]),
        (world.token(Some(&first), &["tasks:admin"]), [SEEN, HIDDEN, SEEN, HIDDEN]),
        // The subject itself.
        (world.token(None, review), [SEEN, SEEN, SEEN, SEEN]),
        (world.token(None, &["text:count"]), [SCOPE, SCOPE, SCOPE, SCOPE]),
        (world.token(None, &["tasks:admin"]), [SEEN, SEEN, SEEN, SEEN]),
    ] {
        let claims = claims_of(&token);
        let mut seen = Vec::new();
        for id in [&first, &other, &below, &mine] {
            seen.push(world.statuses(id, &token).await);
        }
        assert_eq!(seen, expected, "{claims}");
    }
    let (_, head, _) =
        world.ask(Method::GET, &format!("/tasks/{first}"), &world.token(None, &["text:count"]), "").await;
    let challenge = head[header::WWW_AUTHENTICATE].to_str().unwrap();
    assert!(challenge.contains("scope=\"code:review\""), "{challenge}");
    drop(world.system);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_passes_a_link_on_makes_it_neither_longer_nor_wider() {
    let world = World::new();
    let clock = world.system.clock;
    // An edge that verifies the token of the coder, and calls on as the root `portal`.
    let keys = KeySet::new("portal").with_key(&world.system.portal).unwrap();
    let edge = TokenVerifier::builder().audience("edge").root(keys).clock(clock.read()).build().unwrap();
    for task in [None, Some(TaskId::new())] {
        let mut ali = Grant::new("ali", ["code:*"]);
        ali.task = task.clone();
        let grant = world.at_coder(&ali, &["code:*"]);
        let to_edge = octollm_core::card::ArmCard::new("edge");
        let token = world.coder.issue(&grant, &["code:*"], &to_edge).unwrap();
        let at_edge = edge.verify(token.expose_secret()).unwrap();
        tokio::time::sleep(Duration::from_secs(100)).await;
        let judge_key = SigningKey::generate().unwrap();
        let brain = card("brain", &judge_key, &["code:*"]);
        let token = world.portal.issue(&at_edge, &["code:*"], &brain).unwrap();
        let claims = claims_of(token.expose_secret());
        assert_eq!((&claims["act"]["sub"], &claims["sub"]), (&json!("coder"), &json!("ali")));
        assert_eq!(claims["exp"].as_i64().unwrap(), at_edge.valid_until.unwrap().as_second());
        assert_eq!(claims["task"], json!(task));
        assert_eq!(claims.get("dlg"), None, "the count of links does not begin anew");
        // The task ends with the link, and the token has no other tasks.
        let own = world.submit(&world.token(None, &["code:*"])).await;
        let id = world.submit(token.expose_secret()).await;
        let record = world.store.get(&id).await.unwrap().unwrap();
        let end = record.caller().grant().unwrap().valid_until.unwrap();
        assert!(end <= at_edge.valid_until.unwrap() && end > clock.now());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.statuses(&id, token.expose_secret()).await, SEEN);
        assert_eq!(world.statuses(&own, token.expose_secret()).await, HIDDEN);
        // The same subject without an arm in between has a token of its own.
        let mut itself = Grant::clone(&at_edge);
        itself.actor = None;
        let other = world.portal.issue(&itself, &["code:*"], &brain).unwrap();
        let claims = claims_of(other.expose_secret());
        assert!(claims.get("act").is_none() && claims.get("dlg").is_some(), "{claims}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_route_of_tasks_is_401_without_a_token() {
    let world = World::new();
    let id = world.submit(&world.token(None, &["code:*"])).await;
    let there = format!("/tasks/{id}");
    let submission = r#"{"contract":"code.review","input":{"after":1,"fetch":false}}"#;
    for (method, path, body) in [
        (Method::GET, "/tasks", ""),
        (Method::GET, "/tasks?status=failed", ""),
        (Method::POST, "/tasks", submission),
        (Method::POST, "/tasks", r#"{"goal":""}"#),
        (Method::GET, &*there, ""),
        (Method::GET, "/tasks/task_3fK9aZ0qLw81bXyT", ""),
        (Method::GET, "/tasks/none", ""),
        (Method::DELETE, &*there, ""),
        (Method::GET, &*format!("{there}/journal"), ""),
        (Method::POST, &*format!("{there}/rerun"), "{}"),
    ] {
        let (status, head, problem) = world.ask(method.clone(), path, "", body).await;
        assert_eq!((status, &problem["code"]), (401, &json!("unauthenticated")), "{method} {path}");
        assert_eq!(head[header::WWW_AUTHENTICATE], "Bearer", "{method} {path}");
        assert_eq!((&problem["task_id"], &problem["may_have_executed"]), (&Value::Null, &json!(false)));
    }
}
