//! Arms that answer as a test says, and programs that call them.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    brain::Brain,
    card::ArmCard,
    contract::{ContractCard, Keys},
    error::{ArmError, CallError, ErrorKind, Failure},
    id::TaskId,
    orchestrator::Orchestrator,
    store::MemoryStore,
    task::Task,
    transport::{Call, IdempotencyKey, Reply, Transport},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::support::{Compute, anyone, compute, end_of, shared_store};

const SECOND: Duration = Duration::from_secs(1);

/// Charges an amount: not twice.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.charge", output = u64)]
pub(crate) struct Charge {
    pub(crate) amount: u64,
}

/// Measures a text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.measure", output = u64, idempotent)]
pub(crate) struct Measure {
    pub(crate) text: String,
}

/// What an arm does with one call.
pub(crate) enum Does {
    Answers(&'static str),
    After(Duration, &'static str),
    Fails(CallError),
    Hangs,
    /// Reports a handle, and hangs unless it got one.
    Follows(&'static str),
    /// Reports a handle after so long, and hangs unless it got one.
    FollowsAfter(Duration, &'static str),
}

type Script = dyn FnMut(&Call) -> Does + Send;

/// Arms whose answers are a closure's. They note every call.
#[derive(Clone)]
pub(crate) struct Scripted(Arc<Parts>);

struct Parts {
    script: Mutex<Box<Script>>,
    calls: Mutex<Vec<Call>>,
    cards: Mutex<Vec<ArmCard>>,
}

impl Scripted {
    pub(crate) fn new(script: impl FnMut(&Call) -> Does + Send + 'static) -> Self {
        let script = Mutex::new(Box::new(script) as Box<Script>);
        Self(Arc::new(Parts { script, calls: Mutex::default(), cards: Mutex::default() }))
    }

    pub(crate) fn now(&self, script: impl FnMut(&Call) -> Does + Send + 'static) {
        *self.0.script.lock().unwrap() = Box::new(script);
    }

    /// The steps that were called, in order.
    pub(crate) fn steps(&self) -> Vec<String> {
        self.0.calls.lock().unwrap().iter().map(|call| call.step.to_string()).collect()
    }

    /// The idempotency keys of the calls of a step, in order.
    pub(crate) fn keys(&self, step: &str) -> Vec<Option<IdempotencyKey>> {
        let calls = self.0.calls.lock().unwrap();
        calls.iter().filter(|call| call.step.to_string() == step).map(|call| call.parts.key.clone()).collect()
    }

    pub(crate) fn last(&self) -> Call {
        self.0.calls.lock().unwrap().last().unwrap().clone()
    }

    /// The card of an arm that remembers the keys of [`Charge`] for so long.
    pub(crate) fn remembers_keys(&self, time: Duration) {
        let (mut card, mut contract) = (ArmCard::new("arm"), ContractCard::of::<Charge>());
        (contract.keys, contract.keys_retained_s) = (Keys::Shared, Some(time.as_secs()));
        card.contracts.push(contract);
        *self.0.cards.lock().unwrap() = vec![card];
    }
}

#[async_trait]
impl Transport for Scripted {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.0.calls.lock().unwrap().push(call.clone());
        let does = (self.0.script.lock().unwrap())(&call);
        let reply = |text: &'static str| Ok(Reply::new(Bytes::from_static(text.as_bytes()), "arm", "here"));
        match does {
            Does::Answers(text) => reply(text),
            Does::After(time, text) => {
                sleep(time).await;
                reply(text)
            }
            Does::Fails(error) => Err(error),
            Does::Hangs => std::future::pending().await,
            Does::Follows(text) | Does::FollowsAfter(_, text) if call.handle == Some("job-1".to_owned()) => {
                reply(text)
            }
            Does::Follows(_) | Does::FollowsAfter(..) => {
                if let Does::FollowsAfter(time, _) = does {
                    sleep(time).await;
                }
                call.updates.unwrap().handle("job-1".to_owned()).await.unwrap();
                std::future::pending().await
            }
        }
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.cards.lock().unwrap().clone()
    }
}

pub(crate) fn error(call: &Call, kind: ErrorKind) -> CallError {
    CallError::new(call.contract.clone(), Failure::of(kind)).with_arm("arm")
}

pub(crate) fn program<W>(
    function: impl Fn(Compute, Context) -> W + Send + Sync + 'static,
) -> Arc<dyn Arm<Compute>>
where
    W: Future<Output = Result<u64, ArmError>> + Send + 'static,
{
    Arc::new(arm_fn(function))
}

pub(crate) fn on(store: &Arc<MemoryStore>, arms: &Scripted, program: impl Arm<Compute>) -> Brain {
    let builder = Brain::builder().arm::<Compute>(program).arms(arms.clone());
    builder.store(store.clone()).build().unwrap()
}

pub(crate) async fn again(brain: &Brain, id: &TaskId) -> Task {
    brain.rerun(id, None, &anyone()).await.unwrap();
    end_of(brain, id).await
}

/// Has a brain run the program until it hangs, closes that brain, which is as good as a crash here, and has another one end
/// it.
pub(crate) async fn interrupted(
    arms: &Scripted,
    program: Arc<dyn Arm<Compute>>,
    then: impl FnMut(&Call) -> Does + Send + 'static,
) -> Task {
    let store = shared_store();
    let one = on(&store, arms, program.clone());
    let id = one.submit(compute(1), &anyone()).await.unwrap().task_id;
    sleep(5 * SECOND).await;
    one.close().await;
    arms.now(then);
    let two = on(&store, arms, program);
    two.recover().await.unwrap();
    end_of(&two, &id).await
}
