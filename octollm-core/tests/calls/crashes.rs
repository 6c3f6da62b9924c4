//! A brain that dies in the middle of batches, plans and retries under limits.

use std::collections::HashSet;

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    budget::Budget,
    error::{ArmError, ErrorKind},
    mesh::Fault,
    orchestrator::finished,
    plan::{Plan, PlanRunner},
    task::{TaskRequest, TaskResult, TaskStatus},
};
use serde_json::{Value, json};

use crate::support::*;

/// Two batches at once, one of them under a budget that does not suffice, then a plan under a budget, a batch under a time
/// limit, and named calls between those that are counted.
struct Everything;

#[async_trait]
impl Arm<TaskRequest> for Everything {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let narrow = cx.with_budget(Budget::tokens(400));
        let spending =
            |number: u64| measure(number).taking(100 + 37 * (number % 3)).spending(Spends::Tokens(15));
        let starved =
            narrow.call_all((0..9).map(spending)).budget(Budget::tokens(60)).at_once(3).retry(1).each();
        let fed = narrow.call_all((10..14).map(spending)).named("fed").at_once(2).retry(1);
        let (starved, fed) = tokio::join!(starved, fed);
        let plan: Plan = serde_json::from_value(json!({ "steps": [
            { "id": "all", "contract": "work.measure", "each": [20, 21, 22],
              "input": { "number": { "$item": "" }, "ms": 80, "spends": "Nothing" } },
            { "id": "last", "contract": "work.measure", "input": { "number": { "$output": "all", "pointer": "/2/number" },
              "ms": 50, "spends": "Nothing" } },
        ] }))?;
        let plan = PlanRunner::new()
            .contract::<Measure>()
            .run(&plan, &narrow.with_budget(Budget::tokens(50)))
            .await?;
        let named = cx.call(measure(30).taking(60)).named("named").await?;
        let late = cx
            .call_all((40..44).map(|number| measure(number).taking(120)))
            .at_once(1)
            .within(ms(300))
            .each()
            .await;
        let late: Vec<_> =
            late.iter().map(|end| end.as_ref().map_or_else(|error| error.kind().code(), |_| "ok")).collect();
        let sum = starved.iter().filter(|end| end.is_ok()).count() + fed?.len() + late.len();
        let end = cx.call(measure(sum as u64).taking(90)).await?;
        Ok(TaskResult::new(json!([end.number, named.number, plan.outputs["last"]["number"], late])))
    }
}

/// The first members of the result: what does not depend on the time that a crash costs.
async fn crashed_at(times: &[u64]) -> Value {
    let mesh = builder().brain(Everything).start().await;
    let eleven = |input: &Measure| input.number == 11;
    mesh.fault("worker", Fault::error(ErrorKind::Unavailable).once().when(eleven));
    let task = mesh.submit(TaskRequest::new("go")).await.unwrap();
    for time in times {
        tokio::time::sleep(ms(*time)).await;
        mesh.crash_brain().await.unwrap();
    }
    let task = finished(&mesh.brain(), &task.task_id, &mesh.context()).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed, "{times:?}: {task:?}");
    assert!(task.metadata.tokens_used <= 150, "{times:?}: {task:?}");
    let mut answered = HashSet::new();
    for call in mesh.calls().iter().filter(|call| call.output().is_some()) {
        assert!(answered.insert(call.step.to_string()), "{times:?}: {} was answered before", call.step);
    }
    json!(task.result.unwrap().output.to_value().as_array().unwrap()[..3])
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_at_any_time_the_task_completes_and_asks_for_no_answer_again() {
    let undisturbed = crashed_at(&[]).await;
    assert_eq!(undisturbed, json!([11, 30, 22]));
    for time in (5..1_300).step_by(31) {
        assert_eq!(crashed_at(&[time]).await, undisturbed, "{time}");
        assert_eq!(crashed_at(&[time, 31_000 + time / 2]).await, undisturbed, "{time}");
    }
}
