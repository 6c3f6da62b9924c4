//! A bus as a caller may use it.

use std::sync::Arc;

use async_trait::async_trait;
use octollm_core::bus::{BusError, EventBus, Overflow};
use octollm_core::contract::TaskContract;
use octollm_core::error::{ArmError, ErrorKind};
use octollm_core::mesh::Mesh;
use octollm_core::parts::{Caller, ContextParts};
use octollm_core::{Arm, Context};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::*;

fn context(caller: Caller) -> Context {
    let mut parts = ContextParts::new();
    parts.caller = caller;
    Context::from_parts(parts, Arc::new(()))
}

/// The kind of the failure and the scope that was missing.
fn denial(error: BusError) -> (ErrorKind, String) {
    assert!(!error.retryable());
    let BusError::Denied { source } = error else { panic!("{error:?}") };
    let scope = source.details.as_ref().and_then(|details| details["scope"].as_str());
    (source.kind, scope.expect("it names the scope").to_owned())
}

async fn scopes_case<B: EventBus + Clone>(bus: B) {
    let ann = context(Caller::known("ann", ["events.task:*", "audit.login:publish"]));
    let ann = ann.bus(&bus);
    let mut received = ann.subscribe(pattern("events:task:*"), Overflow::DropNewest(8)).await.unwrap();

    // `publish` is granted by name alone.
    let denied = ann.publish(event_on("events:task:completed")).await.unwrap_err();
    assert_eq!(denial(denied), (ErrorKind::InsufficientScope, "events.task:publish".into()));
    ann.publish(event_on("audit:login:failed")).await.unwrap();

    for (wanted, scope) in [
        ("audit:login:failed", "audit.login:subscribe"),
        ("events:task:*,events:arm:registered", "events.arm:subscribe"),
        ("events:*:completed", "events:admin"),
        ("*:task:completed", "events:admin"),
    ] {
        let denied = ann.subscribe(pattern(wanted), Overflow::DropNewest(8)).await.unwrap_err();
        assert_eq!(denial(denied), (ErrorKind::InsufficientScope, scope.into()), "{wanted}");
    }

    // A batch has a result for each event, by index.
    let batch = ["audit:login:failed", "events:task:failed", "audit:login:passed"].map(event_on);
    let results = ann.publish_all(batch.into()).await;
    assert!(matches!(&results[..], [Ok(()), Err(BusError::Denied { .. }), Ok(())]), "{results:?}");

    let root = context(Caller::known("root", ["events:admin"]));
    drop(root.bus(&bus).subscribe(all(), Overflow::DropNewest(8)).await.unwrap());
    let nobody = context(Caller::Anonymous);
    let denied = nobody.bus(&bus).publish(event_on("events:task:failed")).await.unwrap_err();
    assert_eq!(denial(denied), (ErrorKind::Unauthenticated, "events.task:publish".into()));

    // What was denied did not reach the bus; an unchecked caller has every right.
    context(Caller::Unchecked).bus(&bus).publish(event_on("events:task:queued")).await.unwrap();
    let Some(Signal::Event(first)) = received.next().await else { panic!("an event was published") };
    assert_eq!(first.channel().as_str(), "events:task:queued");
}

#[tokio::test(start_paused = true)]
async fn a_caller_needs_the_scope_of_a_channel() {
    scopes_case(pub_sub()).await;
    scopes_case(durable()).await;
    scopes_case(Arc::new(plain())).await;
}

/// Publishes a note.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "note.publish", output = ())]
struct Note {}

struct Publisher(MemoryBus);

#[async_trait]
impl Arm<Note> for Publisher {
    async fn execute(&self, _: Note, cx: &Context) -> Result<(), ArmError> {
        cx.bus(&self.0).publish(event_on("events:note:added")).await?;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_caller_of_an_arm_learns_which_scope_is_missing() {
    let bus = pub_sub();
    let mesh = Mesh::builder().arm("publisher", Publisher(bus)).start().await;
    let call = |scopes: &[&str]| {
        let mut parts = ContextParts::new();
        parts.caller = Caller::known("ann", scopes.iter().copied());
        Context::from_parts(parts, mesh.transport()).call(Note {})
    };
    let error = call(&[Note::SPEC.scope]).await.unwrap_err();
    assert_eq!(error.failure().kind, ErrorKind::InsufficientScope);
    assert_eq!(error.failure().details, Some(serde_json::json!({ "scope": "events.note:publish" })));
    call(&[Note::SPEC.scope, "events.note:publish"]).await.unwrap();
}
