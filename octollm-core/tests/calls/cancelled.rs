//! Calls that their arms answer with `cancelled`: an answer like any other.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    budget::Usage,
    contract::TaskContract,
    error::{ArmError, CallError, ErrorKind},
    id::{StepKey, TaskId},
    mesh::{Fault, Mesh},
    orchestrator::{Orchestrator, StepOutcome, finished, whole_journal},
    store::{MemoryStore, TaskStore},
    task::{Submission, Task, TaskBudget, TaskRequest, TaskResult, TaskStatus},
};
use serde_json::{Value, json};

use crate::support::*;

/// Whether the arms no longer answer with `cancelled`.
type Mended = Arc<AtomicBool>;

/// Spends 40 tokens, and is cancelled by its operator until it is mended.
async fn cancelled<T>(cx: Context, mended: Mended, output: T) -> Result<T, ArmError> {
    cx.spend(Usage::tokens(40))?;
    if mended.load(Ordering::Relaxed) {
        return Ok(output);
    }
    Err(ArmError::new(ErrorKind::Cancelled, "an operator cancelled it"))
}

struct System {
    mesh: Mesh,
    store: Arc<MemoryStore>,
    mended: Mended,
}

/// Odd measurements and all charges are answered with `cancelled`.
async fn system(program: impl Arm<TaskRequest>) -> System {
    let (mended, store) = (Mended::default(), Arc::new(MemoryStore::new()));
    let (of_measure, of_charge) = (mended.clone(), mended.clone());
    let measures = arm_fn(move |input: Measure, cx: Context| {
        let mended = of_measure.clone();
        async move {
            let odd = input.number % 2 == 1;
            let seen = Worker.execute(input, &cx).await?;
            if odd { cancelled(cx, mended, seen).await } else { Ok(seen) }
        }
    });
    let charges = arm_fn(move |input: Charge, cx: Context| cancelled(cx, of_charge.clone(), input.number));
    let mesh = Mesh::builder()
        .arm::<Measure>("worker", measures)
        .arm::<Charge>("worker", charges)
        .brain(program)
        .store(store.clone());
    System { mesh: mesh.start().await, store, mended }
}

impl System {
    async fn run(&self) -> Task {
        self.mesh.run(TaskRequest::new("go")).await.unwrap()
    }

    /// The tokens and the unmetered calls of a task.
    async fn used(&self, id: &TaskId) -> (u64, u64) {
        let used = self.store.get(id).await.unwrap().unwrap().usage().unwrap();
        (used.tokens, used.unmetered)
    }

    fn calls_of<C: TaskContract>(&self, step: &str) -> usize {
        self.mesh.calls_of::<C>().iter().filter(|call| call.step.to_string() == step).count()
    }
}

fn kind<T>(answer: &Result<T, CallError>) -> &'static str {
    answer.as_ref().map_or_else(|error| error.kind().code(), |_| "ok")
}

/// Calls `first`, and then goes where its answer leads: to 2 after a cancellation, else to 4.
fn goes_on<C: TaskContract + Clone + Sync>(first: C) -> impl Arm<TaskRequest> {
    arm_fn(move |_: TaskRequest, cx: Context| {
        let first = first.clone();
        async move {
            let answer = cx.call(first).await;
            let next = if answer.is_err() { 2 } else { 4 };
            cx.call(measure(next)).await?;
            Ok::<_, ArmError>(TaskResult::new(json!([kind(&answer), next])))
        }
    })
}

async fn survives_and_is_run_again<C: TaskContract + Clone + Sync>(first: C) {
    let system = system(goes_on(first)).await;
    let two = |input: &Measure| input.number == 2;
    system.mesh.fault("worker", Fault::error(ErrorKind::Unavailable).once().when(two));
    let failed = system.run().await;
    assert_eq!((failed.status, failed.metadata.tokens_used), (TaskStatus::Failed, 40));
    system.mended.store(true, Ordering::Relaxed);
    let task = system.mesh.rerun(&failed.task_id).await.unwrap();
    assert_eq!(task.result.expect("another answer").output, json!(["cancelled", 2]));
    assert_eq!(system.calls_of::<C>("0"), 1, "it is not made again");
    assert_eq!(system.used(&task.task_id).await, (40, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_that_the_program_survives_is_replayed_by_a_rerun() {
    survives_and_is_run_again(measure(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_a_cancelled_call_that_must_not_run_twice_is_known() {
    survives_and_is_run_again(Charge { number: 1 }).await;
}

#[tokio::test(start_paused = true)]
async fn the_usage_of_a_cancelled_call_survives_a_crash_and_counts_in_the_budget() {
    let program = arm_fn(|_: TaskRequest, cx: Context| async move {
        let survived = cx.call(measure(1)).await;
        let charged = cx.call(Charge { number: 1 }).await;
        cx.call(measure(2).taking(5_000)).await?;
        let seen = cx.call(measure(4)).await?;
        Ok::<_, ArmError>(TaskResult::new(json!([kind(&survived), kind(&charged), seen.tokens])))
    });
    let system = system(program).await;
    let budget = TaskBudget { max_tokens: Some(100), ..TaskBudget::default() };
    let submission = Submission::of(&TaskRequest::new("go")).unwrap().budget(budget);
    let brain = system.mesh.brain();
    let id = brain.submit(submission, &system.mesh.context()).await.unwrap().task_id;
    tokio::time::sleep(ms(1_000)).await;
    system.mended.store(true, Ordering::Relaxed);
    system.mesh.crash_brain().await.unwrap();
    let task = finished(&system.mesh.brain(), &id, &system.mesh.context()).await.unwrap();
    assert_eq!(task.result.expect("no result").output, json!(["cancelled", "cancelled", 20]));
    assert_eq!(system.used(&id).await, (80, 0));
    assert_eq!((system.calls_of::<Measure>("0"), system.calls_of::<Charge>("1")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_a_cancelled_call_ends_names_its_step() {
    let program = arm_fn(|_: TaskRequest, cx: Context| async move {
        cx.call(measure(2)).await?;
        let seen = cx.call(measure(1)).await?;
        Ok::<_, ArmError>(TaskResult::new(seen.number))
    });
    let system = system(program).await;
    let failed = system.run().await;
    let error = failed.error.expect("it has not failed");
    assert_eq!((error.kind, error.step), (ErrorKind::Cancelled, Some(StepKey::Order(1))));
    let brain = system.mesh.brain();
    let journal = whole_journal(&brain, &failed.task_id, &system.mesh.context()).await.unwrap();
    assert_eq!((journal.len(), journal[1].outcome), (2, StepOutcome::Failed));
    system.mended.store(true, Ordering::Relaxed);
    let task = system.mesh.rerun(&failed.task_id).await.unwrap();
    assert_eq!((task.status, task.metadata.tokens_used), (TaskStatus::Completed, 80));
    assert_eq!((system.calls_of::<Measure>("0"), system.calls_of::<Measure>("1")), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn the_cancelled_calls_of_a_batch_are_replayed() {
    let program = arm_fn(|_: TaskRequest, cx: Context| async move {
        let measured = cx.call_all((0..4).map(measure)).each().await;
        let charged = cx.call_all((0..2).map(|number| Charge { number })).named("charge").each().await;
        cx.call(measure(8)).await?;
        let kinds = measured.iter().map(kind).chain(charged.iter().map(kind));
        Ok::<_, ArmError>(TaskResult::new(Value::from(kinds.collect::<Vec<_>>())))
    });
    let system = system(program).await;
    let last = |input: &Measure| input.number == 8;
    system.mesh.fault("worker", Fault::error(ErrorKind::Unavailable).once().when(last));
    let failed = system.run().await;
    assert_eq!(failed.status, TaskStatus::Failed);
    system.mended.store(true, Ordering::Relaxed);
    let task = system.mesh.rerun(&failed.task_id).await.unwrap();
    let kinds = ["ok", "cancelled", "ok", "cancelled", "cancelled", "cancelled"];
    assert_eq!(task.result.expect("no result").output, json!(kinds));
    assert_eq!(system.used(&task.task_id).await, (160, 0));
    assert_eq!(system.mesh.calls().len(), 8, "each once, and the last twice");
}
