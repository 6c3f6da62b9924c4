//! A brain of one contract, over an arm whose answers are fixed. Time is paused, so durations are exact.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm::{
    Context,
    budget::{Cost, Usage},
    bus::MemoryBus,
    card::ArmCard,
    context::ContextParts,
    error::Failure,
    orchestrator::Orchestrator,
    prelude::*,
    store::MemoryStore,
    task::{Submission, Task, TaskBudget},
    transport::{Call, Reply, Transport},
    update::Phase,
};

use crate::{cards::judge, contracts::code, golden::parsed};

/// Reviews a crate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "crate.review", output = String, timeout = "60s")]
pub(crate) struct Review {
    pub(crate) path: String,
}

struct Reviewer;

#[async_trait]
impl Arm<Review> for Reviewer {
    async fn execute(&self, task: Review, cx: &Context) -> Result<String, ArmError> {
        let first = cx.call(code("fn main() {}")).await?;
        cx.phase(Phase::Execution);
        cx.progress_steps(1, 2);
        cx.progress(50, "judging src/lib.rs");
        let again = cx.call(code(&task.path)).named("lib").await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(format!("{} of 2 are valid", [first, again].iter().filter(|verdict| verdict.is_valid).count()))
    }
}

/// Answers after 12 ms, and not at all where the code is `busy`.
struct Judges;

#[async_trait]
impl Transport for Judges {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        tokio::time::sleep(Duration::from_millis(12)).await;
        if call.input.windows(4).any(|bytes| bytes == b"busy") {
            let mut busy = Failure::new(ErrorKind::Unavailable, "the parser is being updated");
            busy.retry_after = Some(Duration::from_secs(30));
            let told = CallError::new(call.contract, busy).with_arm("judge");
            return Err(told.with_endpoint("http://judge-arm:8103"));
        }
        let usage = Usage::tokens(120).with_cost(Cost::from_nano_dollars(2_500_000));
        let output = br#"{"is_valid":true,"issues":[]}"#.as_slice().into();
        Ok(Reply::new(output, "judge", "http://judge-arm:8103").with_usage(usage))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        vec![judge()]
    }
}

pub(crate) fn brain(bus: MemoryBus) -> Brain {
    brain_on(bus, Arc::new(MemoryStore::new()))
}

pub(crate) fn brain_on(bus: MemoryBus, store: Arc<MemoryStore>) -> Brain {
    let builder = Brain::builder().arm::<Review>(Reviewer).arms(Judges).bus(bus).store(store);
    builder.build().unwrap()
}

/// Who submits.
pub(crate) fn caller() -> Context {
    let mut parts = ContextParts::new();
    parts.correlation_id = parsed("review-7");
    Context::from_parts(parts, Arc::new(()))
}

/// Queues a review; one of `busy` fails at its second call.
pub(crate) async fn submit(brain: &Brain, path: &str) -> Task {
    let budget = TaskBudget { max_tokens: Some(500), ..TaskBudget::default() };
    let submission = Submission::of(&Review { path: path.into() }).unwrap().budget(budget);
    brain.submit(submission, &caller()).await.unwrap()
}
