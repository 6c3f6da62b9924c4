//! Contracts, arms and a transport for the tests: arms in this process, each call counted.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    card::ArmCard,
    dispatcher::{Dispatcher, Execution},
    error::{ArmError, CallError, ErrorKind, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, finished},
    store::MemoryStore,
    task::{Submission, Task, TaskRequest},
    transport::{Call, Reply, ServedBy, Transport},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Adds one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.increment", output = u64, idempotent)]
pub(crate) struct Increment {
    pub(crate) number: u64,
}

/// Doubles.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.double", output = u64, idempotent)]
pub(crate) struct Double {
    pub(crate) number: u64,
}

/// A task of its own kind.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.compute", output = u64, timeout = "60s")]
pub(crate) struct Compute {
    pub(crate) number: u64,
}

pub(crate) struct Adder;

#[async_trait]
impl Arm<Increment> for Adder {
    async fn execute(&self, input: Increment, cx: &Context) -> Result<u64, ArmError> {
        cx.spend(octollm_core::budget::Usage::tokens(10))?;
        Ok(input.number + 1)
    }
}

#[async_trait]
impl Arm<Double> for Adder {
    async fn execute(&self, input: Double, _: &Context) -> Result<u64, ArmError> {
        Ok(input.number * 2)
    }
}

/// Arms in this process. Calls can be made to fail, and to hang.
#[derive(Clone)]
pub(crate) struct Local(Arc<Shared>);

struct Shared {
    arm: Dispatcher,
    calls: Mutex<Vec<String>>,
    failing: Mutex<Vec<String>>,
    hanging: Mutex<Vec<String>>,
}

impl Local {
    pub(crate) fn new() -> Self {
        let mut arm = Dispatcher::new("adder");
        arm.serve::<Increment>(Adder);
        arm.serve::<Double>(Adder);
        Self::of(arm)
    }

    pub(crate) fn of(arm: Dispatcher) -> Self {
        let (calls, failing, hanging) = Default::default();
        Self(Arc::new(Shared { arm, calls, failing, hanging }))
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.0.calls.lock().unwrap().clone()
    }

    pub(crate) fn fail(&self, contract: &str) {
        self.0.failing.lock().unwrap().push(contract.into());
    }

    pub(crate) fn hang(&self, contract: &str) {
        self.0.hanging.lock().unwrap().push(contract.into());
    }

    pub(crate) fn heal(&self) {
        self.0.failing.lock().unwrap().clear();
        self.0.hanging.lock().unwrap().clear();
    }
}

#[async_trait]
impl Transport for Local {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let name = call.contract.to_string();
        self.0.calls.lock().unwrap().push(name.clone());
        let failing = self.0.failing.lock().unwrap().contains(&name);
        if failing {
            return Err(CallError::new(call.contract, Failure::new(ErrorKind::Unavailable, "not now")));
        }
        let hanging = self.0.hanging.lock().unwrap().contains(&name);
        if hanging {
            std::future::pending::<()>().await;
        }
        let route = self
            .0
            .arm
            .find(&call.contract)
            .map_err(|failure| CallError::new(call.contract.clone(), failure))?;
        let outcome = route.execute(&call.input, Execution::new(call.parts, Arc::new(()))).await;
        let served_by = ServedBy::new("adder", "in-process");
        match outcome.result {
            Ok(output) => Ok(Reply::new(output, served_by).with_usage(outcome.usage)),
            Err(error) => Err(CallError::new(call.contract, error.into_failure())
                .with_arm("adder")
                .with_usage(outcome.usage)),
        }
    }

    async fn cards(&self) -> Vec<ArmCard> {
        vec![self.0.arm.card().clone()]
    }
}

/// (n + 1) * 2 + 1, in three calls.
pub(crate) struct Computer;

#[async_trait]
impl Arm<Compute> for Computer {
    async fn execute(&self, input: Compute, cx: &Context) -> Result<u64, ArmError> {
        let number = cx.call(Increment { number: input.number }).await?;
        cx.progress_steps(1, 3);
        let number = cx.call(Double { number }).await?;
        cx.progress_steps(2, 3);
        Ok(cx.call(Increment { number }).await?)
    }
}

/// A store that several brains can share.
pub(crate) fn shared_store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new())
}

pub(crate) fn brain(arms: &Local) -> Brain {
    brain_on(arms, shared_store())
}

pub(crate) fn brain_on(arms: &Local, store: Arc<MemoryStore>) -> Brain {
    Brain::builder().arm::<Compute>(Computer).arms(arms.clone()).store(store).build().unwrap()
}

/// A clock that follows tokio's, and is this number of seconds ahead of the time of day.
pub(crate) fn clock_ahead(seconds: u64) -> impl Fn() -> Timestamp {
    let (at, started) = (Timestamp::now() + Duration::from_secs(seconds), Instant::now());
    move || at + started.elapsed()
}

pub(crate) fn anyone() -> Context {
    Context::detached()
}

pub(crate) fn compute(number: u64) -> Submission {
    Submission::of(&Compute { number }).unwrap()
}

pub(crate) fn goal(goal: &str) -> Submission {
    TaskRequest::new(goal).into()
}

pub(crate) async fn run(brain: &Brain, submission: Submission) -> Task {
    let id = brain.submit(submission, &anyone()).await.unwrap().task_id;
    end_of(brain, &id).await
}

pub(crate) async fn end_of(brain: &Brain, id: &TaskId) -> Task {
    finished(brain, id, &anyone()).await.unwrap()
}
