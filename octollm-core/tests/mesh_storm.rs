//! A brain that crashes again and again while plans run.
#![cfg(feature = "mesh")]

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    error::{ArmError, ErrorKind},
    mesh::{Fault, Mesh, RecordedCall},
    orchestrator::finished,
    plan::{Plan, PlanRunner, PlanStep},
    task::TaskStatus,
};
use octollm_macros::TaskContract;
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Adds one, after a while.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.increment", output = u64, idempotent, timeout = "10s")]
struct Increment {
    number: u64,
    ms: u64,
}

struct Adder;

#[async_trait]
impl Arm<Increment> for Adder {
    async fn execute(&self, input: Increment, _: &Context) -> Result<u64, ArmError> {
        tokio::time::sleep(Duration::from_millis(input.ms)).await;
        Ok(input.number + 1)
    }
}

fn step(id: String, ms: u64) -> PlanStep {
    PlanStep::new(id, "number.increment".parse().unwrap(), json!({ "number": 1, "ms": ms }))
}

async fn storm(crashes: Vec<u64>, lengths: Vec<u64>, fault: Option<usize>) {
    let mesh = Mesh::builder()
        .arm::<Increment>("adder", Adder)
        .brain(PlanRunner::new().contract::<Increment>())
        .start()
        .await;
    if let Some(after) = fault {
        mesh.fault("adder", Fault::Slow(Duration::from_secs(3)).once().after(after));
    }
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let steps = lengths.iter().enumerate().map(|(at, ms)| {
            let step = step(format!("s{at}"), *ms);
            if at % 3 == 2 { step.after(format!("s{}", at - 1)) } else { step }
        });
        tasks.push(mesh.submit(Plan::new(steps)).await.unwrap().task_id);
    }
    for wait in crashes {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        mesh.crash_brain().await.unwrap();
    }
    for id in &tasks {
        let task = finished(&mesh.brain(), id, &mesh.context()).await.unwrap();
        assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error.map(|error| error.kind));
        let mut answered = HashMap::new();
        for call in mesh.calls().iter().filter(|call| call.task_id.as_ref() == Some(id)) {
            let before = answered.entry(call.step.to_string()).or_insert(0);
            assert_eq!(*before, 0, "{} was answered and is called again", call.step);
            *before += u32::from(call.output().is_some());
        }
        assert!(answered.values().all(|count| *count == 1) && answered.len() == lengths.len());
    }
    let failed = |call: &RecordedCall| call.failure().is_some_and(|f| f.kind != ErrorKind::Cancelled);
    assert!(!mesh.calls().iter().any(failed));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_crash_at_any_time_costs_no_answered_step(
        crashes in prop::collection::vec(0_u64..9_000, 0..6),
        lengths in prop::collection::vec(0_u64..4_000, 1..7),
        fault in prop::option::of(0_usize..10),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(storm(crashes, lengths, fault));
    }
}
