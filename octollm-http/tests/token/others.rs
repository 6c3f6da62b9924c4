//! Tasks of other callers, and tasks that their owners or administrators run again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    Arm, Context,
    brain::Brain,
    error::{ArmError, ErrorKind},
    parts::{Caller, Grant},
};
use octollm_http::{
    OrchestratorClient, Server,
    token::{ExposeSecret, KeySet, TokenIssuer, TokenVerifier},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::wired::{Look, System};

/// Looks, and then fails while it is set to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.watch", output = String)]
struct Watch {}

struct Fails(Arc<AtomicBool>);

#[async_trait]
impl Arm<Watch> for Fails {
    async fn execute(&self, _: Watch, cx: &Context) -> Result<String, ArmError> {
        let first = cx.call(Look {}).named("first").await?;
        if self.0.load(Ordering::Relaxed) {
            return Err("it fails".into());
        }
        assert_eq!(first, cx.call(Look {}).named("second").await?);
        Ok(first)
    }
}

/// A server of a brain that accepts tokens of `portal`, and whether its tasks fail.
fn brain(system: &System) -> (Server, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(true));
    let brain = Brain::builder().name("brain").arm::<Watch>(Fails(fails.clone()));
    let brain = brain.arms(system.arms(Some(system.issuer()))).clock(system.clock.read()).build().unwrap();
    let portal = KeySet::new("portal").with_key(&system.portal).unwrap();
    let verifier = TokenVerifier::builder().audience("brain").root(portal).clock(system.clock.read());
    (Server::new("brain").orchestrator(brain).authenticate(verifier.build().unwrap()), fails)
}

fn portal(system: &System) -> TokenIssuer {
    TokenIssuer::root("portal", system.portal.clone()).clock(system.clock.read()).build().unwrap()
}

fn client(system: &System) -> OrchestratorClient {
    let client = OrchestratorClient::builder("http://brain").connector(system.pipes.clone());
    client.tokens(portal(system), "brain").build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_rerun_by_the_owner_renews_the_grant_and_one_by_an_administrator_does_not() {
    let system = System::new();
    system.judge();
    let (server, fails) = brain(&system);
    system.serve("brain", server);
    let ali = client(&system).on_behalf_of(Caller::known("ali", ["code:*"]));
    let admin = client(&system).on_behalf_of(Caller::known("root", ["tasks:admin", "code:*"]));
    let eve = client(&system).on_behalf_of(Caller::known("eve", ["code:*"]));
    let mine = ali.submit(Watch {}).await.unwrap();
    let id = mine.id().clone();
    mine.output().await.unwrap_err();
    fails.store(false, Ordering::Relaxed);
    let looks = system.sent_to("POST judge/look").len();
    tokio::time::sleep(Duration::from_secs(24 * 3600 + 1)).await;

    let theirs = eve.task::<Watch>(id.clone());
    assert_eq!(theirs.rerun().await.unwrap_err().kind(), ErrorKind::TaskNotFound);
    let theirs = admin.task::<Watch>(id.clone());
    theirs.rerun().await.unwrap();
    let error = theirs.output().await.unwrap_err();
    assert!(error.to_string().contains("the grant of the task has ended"), "{error}");
    assert_eq!(system.sent_to("POST judge/look").len(), looks, "nothing was called");

    let mine = ali.task::<Watch>(id);
    mine.rerun().await.unwrap();
    assert_eq!(mine.output().await.unwrap(), "ali of portal by -");
    assert_eq!(
        system.sent_to("POST judge/look").len(),
        looks + 1,
        "the first call is answered in the journal"
    );
}

/// Bad input: another caller's task → 404, the same as one that never was.
#[tokio::test(start_paused = true)]
async fn the_task_of_another_caller_is_404_byte_for_byte() {
    let system = System::new();
    system.judge();
    let (server, _) = brain(&system);
    let service = server.into_service().unwrap();
    let token = |subject: &str| {
        let grant = Grant::new(subject, ["code:watch", "tasks:*"]);
        let card = octollm_core::card::ArmCard::new("brain");
        portal(&system).issue(&grant, &["code:watch", "tasks:*"], &card).unwrap().expose_secret().to_owned()
    };
    let ask =
        async |method: Method, path: String, subject: &str, body: &'static str| -> (u16, HeaderMap, String) {
            let request = Request::builder().method(method).uri(path).header("x-request-id", "the-same");
            let request = request.header(header::AUTHORIZATION, format!("Bearer {}", token(subject)));
            let request = request.header("content-type", "application/json").body(Full::from(body)).unwrap();
            let answer = service.clone().oneshot(request).await.unwrap();
            let (mut head, body) = answer.into_parts();
            head.headers.remove(header::DATE);
            let body = body.collect().await.unwrap().to_bytes();
            (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
        };
    let submission = r#"{"contract":"code.watch","input":{}}"#;
    let (status, head, body) = ask(Method::POST, "/tasks".into(), "ali", submission).await;
    assert_eq!(status, 202, "{body}");
    let there = format!("/{}", head[header::LOCATION].to_str().unwrap());
    let never = "/tasks/task_3fK9aZ0qLw81bXyT";
    for (method, suffix, body) in [
        (Method::GET, "", ""),
        (Method::DELETE, "", ""),
        (Method::GET, "/journal", ""),
        (Method::POST, "/rerun", "{}"),
        (Method::POST, "/rerun", r#"{"from":"first"}"#),
    ] {
        let other = ask(method.clone(), format!("{there}{suffix}"), "eve", body).await;
        let absent = ask(method.clone(), format!("{never}{suffix}"), "eve", body).await;
        // The body names the task that the request names, and nothing else of it.
        let other =
            (other.0, other.1, other.2.replace(there.trim_start_matches("/tasks/"), "task_3fK9aZ0qLw81bXyT"));
        assert_eq!(other, absent, "{method} {suffix}");
        assert_eq!(other.0, 404, "{method} {suffix}");
        let own = ask(method.clone(), format!("{there}{suffix}"), "ali", body).await;
        assert_ne!(own.0, 404, "{method} {suffix}");
    }
    let list = ask(Method::GET, "/tasks".into(), "eve", "").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&list.2).unwrap()["tasks"], serde_json::json!([]));
}
