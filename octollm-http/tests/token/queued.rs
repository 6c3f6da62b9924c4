//! Tokens of jobs: issued by a caller, and verified by a worker.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    bus::MemoryDurableBus,
    error::{ArmError, ErrorKind},
    parts::{Caller, ContextParts},
    worker::{QueuedArms, Worker},
};
use octollm_http::token::{KeySet, SigningKey, TokenIssuer, TokenVerifier};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// Says on whose behalf it is called.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.inspect", output = String, idempotent, timeout = "2h")]
struct Inspect {}

struct Judge;

#[async_trait]
impl Arm<Inspect> for Judge {
    async fn execute(&self, _: Inspect, cx: &Context) -> Result<String, ArmError> {
        let grant = cx.caller().grant().expect("a known caller");
        Ok(format!("{} of {}", grant.subject, grant.issuer.as_deref().unwrap_or("-")))
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// Calls by a queue. The token has this life, and the worker starts after this time. It knows another root, unless `is_trusted`.
async fn called(
    caller: Caller,
    life: Duration,
    away: Duration,
    is_trusted: bool,
) -> Result<String, ErrorKind> {
    let (bus, root) = (MemoryDurableBus::new(), SigningKey::generate().unwrap());
    let signing = if is_trusted { root.clone() } else { SigningKey::generate().unwrap() };
    let issuer = TokenIssuer::root("brain", signing).life(life).build().unwrap();
    let roots = KeySet::new("brain").with_key(&root).unwrap();
    let verifier = TokenVerifier::builder().audience("judge").root(roots).max_life(2 * HOUR);
    let arms = QueuedArms::builder("brain", bus.clone()).contract::<Inspect>("judge").tokens(issuer);
    let mut parts = ContextParts::new();
    parts.caller = caller;
    let cx = Context::from_parts(parts, Arc::new(arms.connect().await.unwrap()));
    let call = tokio::spawn(cx.call(Inspect {}));
    sleep(away).await;
    let worker = Worker::new(bus).id("judge").arm(Judge).authenticate(verifier.build().unwrap());
    let worker = tokio::spawn(worker.run());
    let answer = call.await.unwrap();
    worker.abort();
    answer.map_err(|error| error.kind())
}

fn ann() -> Caller {
    Caller::known("ann", ["code:inspect"])
}

#[tokio::test(start_paused = true)]
async fn a_worker_verifies_the_token_of_a_job() {
    assert_eq!(called(ann(), HOUR, Duration::ZERO, true).await, Ok("ann of brain".into()));
    assert_eq!(called(Caller::Unchecked, HOUR, Duration::ZERO, true).await, Ok("brain of brain".into()));
    assert_eq!(called(ann(), HOUR, Duration::ZERO, false).await, Err(ErrorKind::Unauthenticated));
    let other = Caller::known("ann", ["code:run"]);
    assert_eq!(called(other, HOUR, Duration::ZERO, true).await, Err(ErrorKind::InsufficientScope));
    assert_eq!(called(Caller::Anonymous, HOUR, Duration::ZERO, true).await, Err(ErrorKind::Unauthenticated));
}

#[tokio::test(start_paused = true)]
async fn a_token_has_to_outlive_the_wait_of_its_job() {
    let away = Duration::from_secs(10 * 60);
    assert_eq!(called(ann(), HOUR, away, true).await, Ok("ann of brain".into()));
    assert_eq!(called(ann(), Duration::from_secs(300), away, true).await, Err(ErrorKind::Unauthenticated));
}
