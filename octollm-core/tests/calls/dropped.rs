//! Calls that are dropped before they have ended: what they used counts, and none is left with an unknown outcome.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    budget::{Budget, Usage},
    card::ArmCard,
    error::{ArmError, CallError, ErrorKind},
    mesh::{Fault, Mesh},
    orchestrator::{Orchestrator, finished},
    plan::{Plan, PlanRunner},
    task::{TaskRequest, TaskResult, TaskStatus},
    transport::{Call, Reply, StepKey, Transport},
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::support::*;

/// Spends 20 tokens at once and works for a second, or fails after 50 ms for number 0.
struct Spender;

async fn spend(number: u64, cx: &Context) -> Result<(), ArmError> {
    if number == 0 {
        sleep(ms(50)).await;
        return Err(ArmError::failed("no luck"));
    }
    cx.spend(Usage::tokens(20))?;
    sleep(ms(1_000)).await;
    Ok(())
}

#[async_trait]
impl Arm<Measure> for Spender {
    async fn execute(&self, input: Measure, cx: &Context) -> Result<Seen, ArmError> {
        spend(input.number, cx).await?;
        Ok(Seen { number: input.number, tokens: None, attempt: 1 })
    }
}

async fn spenders() -> Mesh {
    Mesh::builder().arm::<Measure>("spender", Spender).start().await
}

/// Never answers, and does not say what it uses.
struct Elsewhere;

#[async_trait]
impl Transport for Elsewhere {
    async fn call(&self, _: Call) -> Result<Reply, CallError> {
        std::future::pending().await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        Vec::new()
    }
}

#[tokio::test(start_paused = true)]
async fn what_dropped_calls_have_used_in_this_process_counts() {
    let mesh = spenders().await;
    let cx = mesh.context();
    let outer = cx.with_budget(Budget::tokens(1_000));
    outer.call_all((0..3).map(measure)).await.unwrap_err();
    assert_eq!((cx.used(), outer.used()), (Usage::tokens(40), Usage::tokens(40)));
    assert!(timeout(ms(500), outer.call(measure(1))).await.is_err());
    assert_eq!((cx.used(), outer.budget()), (Usage::tokens(60), Budget::tokens(940)));
    assert!(timeout(ms(500), outer.call(measure(1)).retry(2)).await.is_err());
    assert_eq!(cx.used(), Usage::tokens(80));
    drop(outer.call(measure(1)));
    assert_eq!(cx.used(), Usage::tokens(80), "it was not sent");
    let step = |id: u64| json!({ "id": id.to_string(), "contract": "work.measure", "input": measure(id) });
    let plan: Plan = serde_json::from_value(json!({ "steps": [step(0), step(1), step(2)] })).unwrap();
    PlanRunner::new().contract::<Measure>().run(&plan, &outer).await.unwrap_err();
    assert_eq!(cx.used(), Usage::tokens(120));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_to_another_process_is_unmetered() {
    let cx = Context::root(Arc::new(Elsewhere));
    let narrow = cx.with_budget(Budget::tokens(10));
    assert!(timeout(ms(100), narrow.call(measure(1))).await.is_err());
    assert_eq!((cx.used().unmetered, narrow.used()), (1, Usage::UNMETERED));
    assert!(timeout(ms(100), cx.call_all((0..3).map(measure)).at_once(2)).await.is_err());
    assert_eq!((cx.used().unmetered, narrow.used()), (3, Usage::UNMETERED));
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_dropped_has_used_what_all_attempts_did() {
    let flaky = arm_fn(|input: Measure, cx: Context| async move {
        cx.spend(Usage::tokens(7))?;
        if cx.attempt() > 2 {
            sleep(ms(60_000)).await;
        }
        Err::<Seen, _>(ArmError::new(ErrorKind::Unavailable, format!("not {}", input.number)))
    });
    let mesh = Mesh::builder().arm("flaky", flaky).start().await;
    let cx = mesh.context();
    assert!(timeout(ms(5_000), cx.call(measure(1)).retry(5)).await.is_err());
    assert_eq!(cx.used(), Usage::tokens(21));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_and_a_brain_as_an_arm_count_them() {
    let program = arm_fn(|_: TaskRequest, cx: Context| async move {
        cx.call_all((1..4).map(measure)).await?;
        Ok(TaskResult::new(0))
    });
    let mesh = Mesh::builder().arm::<Measure>("spender", Spender).brain(program).start().await;
    let id = mesh.submit(TaskRequest::new("go")).await.unwrap().task_id;
    sleep(ms(100)).await;
    let task = mesh.brain().cancel(&id, &mesh.context()).await.unwrap();
    assert_eq!((task.status, task.metadata.tokens_used), (TaskStatus::Cancelled, 60));

    let outer = Mesh::builder().arm::<TaskRequest>("inner", mesh.brain()).start().await;
    let cx = outer.context();
    assert!(timeout(ms(100), cx.call(TaskRequest::new("go"))).await.is_err());
    assert_eq!(
        cx.used(),
        Usage::UNMETERED.plus(Usage::UNMETERED).plus(Usage::UNMETERED),
        "its calls run in a task of their own"
    );
    // What the arm itself has used is known.
    let program = arm_fn(|_: TaskRequest, cx: Context| async move {
        cx.spend(Usage::tokens(9))?;
        std::future::pending().await
    });
    let mesh = Mesh::builder().brain(program).start().await;
    let outer = Mesh::builder().arm::<TaskRequest>("inner", mesh.brain()).start().await;
    let cx = outer.context();
    assert!(timeout(ms(100), cx.call(TaskRequest::new("go"))).await.is_err());
    assert_eq!(cx.used(), Usage::tokens(9));
}

/// Pays after a time that depends on its number. These numbers fail once: 0 without having paid, others with an unknown outcome.
fn cashier(fails: &[u64]) -> (Arc<Mutex<Vec<u64>>>, impl Arm<Charge>) {
    let paid = Arc::new(Mutex::new(Vec::new()));
    let (shared, fails) = (paid.clone(), Arc::new(Mutex::new(fails.to_vec())));
    let arm = arm_fn(move |input: Charge, _| {
        let (paid, fails) = (shared.clone(), fails.clone());
        async move {
            sleep(ms(50 + 75 * input.number)).await;
            let mut fails = fails.lock().unwrap();
            if let Some(at) = fails.iter().position(|number| *number == input.number) {
                fails.remove(at);
                let kind = if input.number == 0 { ErrorKind::Unavailable } else { ErrorKind::ArmFailed };
                return Err(ArmError::new(kind, "not now"));
            }
            paid.lock().unwrap().push(input.number);
            Ok(input.number)
        }
    });
    (paid, arm)
}

fn till() -> impl Arm<TaskRequest> {
    arm_fn(|request: TaskRequest, cx: Context| async move {
        if request.goal == "batch" {
            return Ok(TaskResult::of(&cx.call_all((0..3).map(|number| Charge { number })).await?)?);
        }
        let step = |id: &str, number: u64| json!({ "id": id, "contract": "work.charge", "input": { "number": number } });
        let steps = [step("a", 0), step("b", 1), step("c", 2)];
        let plan: Plan = serde_json::from_value(json!({ "steps": steps }))?;
        Ok(TaskResult::new(json!(PlanRunner::new().contract::<Charge>().run(&plan, &cx).await?.outputs)))
    })
}

#[tokio::test(start_paused = true)]
async fn calls_that_must_not_run_twice_are_awaited_after_a_failure() {
    for goal in ["batch", "plan"] {
        let (paid, arm) = cashier(&[0]);
        let mesh = Mesh::builder().arm("cashier", arm).brain(till()).start().await;
        let begun = Instant::now();
        let failed = mesh.run(TaskRequest::new(goal)).await.unwrap();
        assert_eq!(failed.status, TaskStatus::Failed, "{goal}");
        assert_eq!((begun.elapsed(), paid.lock().unwrap().clone()), (ms(200), vec![1, 2]), "{goal}");
        let done = mesh.rerun(&failed.task_id).await.unwrap();
        assert_eq!((done.status, &*paid.lock().unwrap()), (TaskStatus::Completed, &vec![1, 2, 0]), "{goal}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_beside_a_call_whose_outcome_is_unknown() {
    for goal in ["batch", "plan"] {
        let (paid, arm) = cashier(&[0]);
        let mesh = Mesh::builder().arm("cashier", arm).brain(till()).start().await;
        mesh.fault("cashier", Fault::Hang.once().when(|input: &Charge| input.number == 1));
        let failed = mesh.run(TaskRequest::new(goal)).await.unwrap();
        assert_eq!(*paid.lock().unwrap(), [2], "{goal}");
        let unknown = mesh.rerun(&failed.task_id).await.unwrap();
        let error = unknown.error.unwrap();
        assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{goal}");
        let step = if goal == "batch" { StepKey::Order(1) } else { StepKey::Name("b".into()) };
        assert_eq!((error.step, mesh.calls().len()), (Some(step.clone()), 4), "{goal}: its arm is asked");
        mesh.brain().rerun(&unknown.task_id, Some(&step), &mesh.context()).await.unwrap();
        let done = finished(&mesh.brain(), &unknown.task_id, &mesh.context()).await.unwrap();
        assert_eq!(done.status, TaskStatus::Completed, "{goal}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_call_is_sent_after_the_first_failure_and_the_deadline_ends_all() {
    let (paid, arm) = cashier(&[]);
    let mesh = Mesh::builder().arm("cashier", arm).start().await;
    mesh.fault("cashier", Fault::error(ErrorKind::Unavailable).once());
    let cx = mesh.context();
    cx.call_all((0..9).map(|number| Charge { number })).at_once(3).await.unwrap_err();
    assert_eq!((mesh.calls().len() <= 3, paid.lock().unwrap().len() <= 2), (true, true));
    mesh.fault("cashier", Fault::error(ErrorKind::Unavailable).once());
    let begun = Instant::now();
    let calls = [Charge { number: 1 }, Charge { number: 100 }];
    mesh.context().call_all(calls).within(ms(500)).await.unwrap_err();
    assert!(begun.elapsed() <= ms(500));
}

#[tokio::test(start_paused = true)]
async fn a_context_is_cancelled_once_its_arm_has_ended() {
    let (sender, mut contexts) = tokio::sync::mpsc::unbounded_channel();
    let arm = arm_fn(move |input: Charge, cx: Context| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(cx.with_budget(Budget::tokens(5)));
            if input.number == 0 { Err(ArmError::failed("no")) } else { Ok(input.number) }
        }
    });
    let mesh = Mesh::builder().arm("sender", arm).arm::<Measure>("spender", Spender).start().await;
    for number in [0, 1] {
        let _ = mesh.call(Charge { number }).await;
        let cx = contexts.recv().await.unwrap();
        assert!(cx.is_cancelled(), "{number}");
        timeout(ms(1), cx.cancelled()).await.unwrap();
        assert_eq!(cx.call(measure(1)).await.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
