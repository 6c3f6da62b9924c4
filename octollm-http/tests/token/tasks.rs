//! Tokens of tasks: those that waited, and those that were recovered.

use std::{sync::Arc, time::Duration};

use octollm_core::{
    Context,
    brain::Brain,
    card::ArmCard,
    error::ErrorKind,
    orchestrator::{Orchestrator, finished},
    parts::{Caller, ContextParts, Grant},
    store::MemoryStore,
    task::{Submission, TaskQuery, TaskStatus},
};
use octollm_http::{
    OrchestratorClient, Server,
    token::{KeySet, TokenIssuer, TokenVerifier},
};
use serde_json::json;

use crate::{
    support::unauthenticated,
    wired::{Coder, Review, System, known},
};

/// A brain on a store: a root, whose tasks are submitted by the subjects of the root `portal`.
fn brain_on(system: &System, store: &Arc<MemoryStore>) -> Brain {
    let brain = Brain::builder().name("brain").arm::<Review>(Coder).arms(system.arms(Some(system.issuer())));
    brain.store(store.clone()).clock(system.clock.read()).max_running(1).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn tasks_that_waited_or_were_recovered_run_with_fresh_tokens() {
    let system = System::new();
    system.judge();
    let store = Arc::new(MemoryStore::new());
    let brain = brain_on(&system, &store);
    let portal = KeySet::new("portal").with_key(&system.portal).unwrap();
    let verifier =
        TokenVerifier::builder().audience("brain").root(portal).clock(system.clock.read()).build().unwrap();
    system.serve("brain", Server::new("brain").orchestrator(brain.clone()).authenticate(verifier));
    let portal =
        TokenIssuer::root("portal", system.portal.clone()).clock(system.clock.read()).build().unwrap();
    let client = OrchestratorClient::builder("http://brain").connector(system.pipes.clone());
    let client = client.tokens(portal, "brain").build().unwrap();
    let (ali, eve) = (known(&system.arms(None), &["code:*"]), {
        let mut parts = ContextParts::new();
        parts.caller = Caller::known("eve", ["code:*"]);
        Context::from_parts(parts, Arc::new(()))
    });
    let submit = |after| Submission::of(&Review { after, fetch: false }).unwrap();
    // The second waits for the first, and then for itself.
    let first = Orchestrator::submit(&client, submit(3_000), &ali).await.unwrap().task_id;
    let second = Orchestrator::submit(&client, submit(3_000), &ali).await.unwrap().task_id;
    let begun = tokio::time::Instant::now();
    for id in [&first, &second] {
        let task = finished(&client, id, &ali).await.unwrap();
        assert_eq!(task.result.unwrap().output, json!("ali of portal by -"));
        let claims = system.token_to("POST judge/look");
        assert_eq!((&claims["iss"], &claims["task"]), (&json!("brain"), &json!(id)));
        assert_eq!(claims["sub_id"], json!({ "format": "iss_sub", "iss": "portal", "sub": "ali" }));
    }
    assert!(begun.elapsed().as_secs() >= 6_000);
    // To others it does not exist.
    assert_eq!(client.get(&second, &eve).await.unwrap_err().kind, ErrorKind::TaskNotFound);
    let anyone = OrchestratorClient::builder("http://brain").connector(system.pipes.clone()).build().unwrap();
    assert!(
        unauthenticated(&Orchestrator::submit(&anyone, submit(0), &ali).await.unwrap_err())
            .contains("a caller that is known")
    );

    // Another brain recovers a task an hour after its submission.
    let third = Orchestrator::submit(&client, submit(3_600), &ali).await.unwrap().task_id;
    tokio::time::sleep(Duration::from_secs(3_000)).await;
    brain.close().await;
    let successor = brain_on(&system, &store);
    successor.recover().await.unwrap();
    let mut parts = ContextParts::new();
    parts.caller = Caller::Known(Grant::new("ali", ["code:*"]).issuer("portal").into());
    let task = finished(&successor, &third, &Context::from_parts(parts, Arc::new(()))).await.unwrap();
    assert_eq!(task.result.unwrap().output, json!("ali of portal by -"));
}

#[tokio::test(start_paused = true)]
async fn a_client_on_behalf_of_a_caller_is_that_for_all_operations() {
    let system = System::new();
    system.judge();
    let brain = brain_on(&system, &Arc::new(MemoryStore::new()));
    let portal = KeySet::new("portal").with_key(&system.portal).unwrap();
    let verifier = TokenVerifier::builder().audience("brain").root(portal).clock(system.clock.read());
    system.serve("brain", Server::new("brain").orchestrator(brain).authenticate(verifier.build().unwrap()));
    let portal =
        TokenIssuer::root("portal", system.portal.clone()).clock(system.clock.read()).build().unwrap();
    let client = OrchestratorClient::builder("http://brain").connector(system.pipes.clone());
    let client = client.tokens(portal, "brain").build().unwrap();
    let ali = client.on_behalf_of(Caller::known("ali", ["code:*"]));
    let cx = Context::detached();
    let submission = Submission::of(&Review { after: 60, fetch: true }).unwrap();
    let id = Orchestrator::submit(&ali, submission, &cx).await.unwrap().task_id;
    assert_eq!(ali.get(&id, &cx).await.unwrap().task_id, id);
    assert_eq!(ali.list(TaskQuery::default(), &cx).await.unwrap().tasks.len(), 1);
    assert!(ali.watch(&id, None, &cx).await.unwrap().next().await.is_some());
    assert_eq!(finished(&ali, &id, &cx).await.unwrap().status, TaskStatus::Failed, "it may not fetch");
    assert!(ali.journal(&id, None, None, &cx).await.is_ok());
    ali.rerun(&id, None, &cx).await.unwrap();
    assert_eq!(ali.cancel(&id, &cx).await.unwrap().status, TaskStatus::Cancelled);
    // The caller of a context comes first, and one without credentials is nobody else.
    let with = |caller: Caller| {
        let mut parts = ContextParts::new();
        parts.caller = caller;
        Context::from_parts(parts, Arc::new(()))
    };
    let eve = with(Caller::known("eve", ["code:*"]));
    assert_eq!(ali.get(&id, &eve).await.unwrap_err().kind, ErrorKind::TaskNotFound);
    assert_eq!(ali.get(&id, &with(Caller::Anonymous)).await.unwrap_err().kind, ErrorKind::Unauthenticated);
    // A client without a caller has no token.
    assert_eq!(client.list(TaskQuery::default(), &cx).await.unwrap_err().kind, ErrorKind::Unauthenticated);
    assert_eq!(ali.cards().await.unwrap().len(), client.cards().await.unwrap().len());
    let asked = system.sent_to("GET brain/capabilities");
    assert!(asked.iter().all(|head| !head.contains_key(http::header::AUTHORIZATION)));
}

#[tokio::test(start_paused = true)]
async fn a_client_with_a_token_sends_it_with_all_operations() {
    let system = System::new();
    system.judge();
    let brain = brain_on(&system, &Arc::new(MemoryStore::new()));
    let portal = KeySet::new("portal").with_key(&system.portal).unwrap();
    let verifier = TokenVerifier::builder().audience("brain").root(portal).clock(system.clock.read());
    system.serve("brain", Server::new("brain").orchestrator(brain).authenticate(verifier.build().unwrap()));
    let portal =
        TokenIssuer::root("portal", system.portal.clone()).clock(system.clock.read()).build().unwrap();
    let token = portal.issue(&Grant::new("ali", ["code:*"]), &["code:*"], &ArmCard::new("brain")).unwrap();
    let client = OrchestratorClient::builder("http://brain").connector(system.pipes.clone());
    let ali = client.bearer(token).build().unwrap();
    let cx = Context::detached();
    let submission = Submission::of(&Review { after: 60, fetch: false }).unwrap();
    let id = Orchestrator::submit(&ali, submission, &cx).await.unwrap().task_id;
    assert_eq!(ali.list(TaskQuery::default(), &cx).await.unwrap().tasks.len(), 1);
    assert!(ali.watch(&id, None, &cx).await.unwrap().next().await.is_some());
    assert_eq!(ali.cancel(&id, &cx).await.unwrap().status, TaskStatus::Cancelled);
    let refused = OrchestratorClient::builder("http://brain").bearer("a\nb").build().unwrap_err();
    assert_eq!(refused.setting(), "bearer");
}
