//! A brain as an arm of another brain.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    brain::Brain,
    budget::{Budget, Cost, Usage},
    context::ContextParts,
    dispatcher::Dispatcher,
    error::{ArmError, CallError, ErrorKind},
    id::StepKey,
    orchestrator::{Orchestrator, StepOutcome, whole_journal},
    task::{TaskBudget, TaskQuery, TaskRequest, TaskResult, TaskStatus},
};

use crate::{
    scripted::{Does, Scripted, on, program},
    support::{Compute, Computer, Local, anyone, brain, brain_on, compute, end_of, goal, run, shared_store},
    trouble::{Trouble, away},
};

const SECOND: Duration = Duration::from_secs(1);

/// Has the inner brain compute.
struct Outer;

#[async_trait]
impl Arm<TaskRequest> for Outer {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let number = request.goal.parse()?;
        Ok(TaskResult::new(cx.call(Compute { number }).await?))
    }
}

/// The outer brain calls the inner one as an arm.
fn nested(arms: &Local) -> (Brain, Brain) {
    let inner = brain(arms);
    let mut arm = Dispatcher::new("computer");
    arm.serve::<Compute>(inner.clone());
    let outer = Brain::builder().arm::<TaskRequest>(Outer).arms(Local::of(arm)).build().unwrap();
    (outer, inner)
}

#[tokio::test(start_paused = true)]
async fn a_brain_is_an_arm() {
    let arms = Local::new();
    let (outer, inner) = nested(&arms);
    let task = run(&outer, goal("4")).await;
    assert_eq!(task.result.unwrap().output, serde_json::json!(11));
    assert_eq!(task.metadata.tokens_used, 20, "what the inner task used counts here too");
    let inner = inner.list(TaskQuery::default(), &anyone()).await.unwrap();
    assert_eq!(inner.tasks[0].status, TaskStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn the_trace_of_the_caller_continues_through_both() {
    let arms = Scripted::new(|_| Does::Answers("5"));
    let mut arm = Dispatcher::new("computer");
    arm.serve::<Compute>(on(&shared_store(), &arms, Computer));
    let builder = Brain::builder().arm::<TaskRequest>(Outer).arms(Local::of(arm));
    let outer = builder.build().unwrap();
    let mut parts = ContextParts::new();
    parts.trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
    let cx = Context::from_parts(parts.clone(), Arc::new(()));
    let id = outer.submit(goal("4"), &cx).await.unwrap().task_id;
    assert_eq!(end_of(&outer, &id).await.status, TaskStatus::Completed);
    let called = arms.last().parts;
    assert_eq!(called.trace.unwrap().trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(called.correlation_id, parts.correlation_id);
}

#[tokio::test(start_paused = true)]
async fn a_brain_that_cannot_follow_its_task_does_not_report_that_nothing_has_run() {
    let store = Trouble::new();
    let hangs = program(|_: Compute, _| std::future::pending());
    let brain = Brain::builder().arm::<Compute>(hangs).store(store.clone()).build().unwrap();
    // The task does not begin here, so that it is followed in the store.
    store.fails(|operation, _| matches!(operation, "claim" | "get").then(away));
    let cx = anyone();
    let error = Arm::<Compute>::execute(&brain, Compute { number: 4 }, &cx).await.unwrap_err();
    assert_eq!((error.kind(), error.failure().may_have_executed), (ErrorKind::Unavailable, true));
    assert_eq!(cx.used(), Usage::UNMETERED);
}

#[tokio::test(start_paused = true)]
async fn cancelling_the_outer_task_cancels_the_inner_one() {
    let arms = Local::new();
    arms.hang("number.double");
    let (outer, inner) = nested(&arms);
    let id = outer.submit(goal("4"), &anyone()).await.unwrap().task_id;
    while arms.calls().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    outer.cancel(&id, &anyone()).await.unwrap();
    let inner_id = inner.list(TaskQuery::default(), &anyone()).await.unwrap().tasks[0].task_id.clone();
    assert_eq!(end_of(&inner, &inner_id).await.status, TaskStatus::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn the_inner_task_has_no_more_than_the_outer() {
    let arms = Local::new();
    let (outer, inner) = nested(&arms);
    // The first call uses ten tokens, so that there is nothing left for the second.
    let budget = TaskBudget { max_tokens: Some(10), ..TaskBudget::default() };
    let task = run(&outer, goal("4").budget(budget)).await;
    assert_eq!(task.error.unwrap().kind, ErrorKind::BudgetExhausted);
    let inner = inner.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.remove(0);
    assert_eq!(inner.error.unwrap().kind, ErrorKind::BudgetExhausted);
    assert_eq!(arms.calls(), ["number.increment"]);

    arms.hang("number.double");
    let (outer, inner) = nested(&arms);
    let budget = TaskBudget { max_time_seconds: Some(2.0), ..TaskBudget::default() };
    let started = tokio::time::Instant::now();
    let task = run(&outer, goal("4").budget(budget)).await;
    assert_eq!(task.error.unwrap().kind, ErrorKind::DeadlineExceeded);
    let id = inner.list(TaskQuery::default(), &anyone()).await.unwrap().tasks[0].task_id.clone();
    assert!(end_of(&inner, &id).await.status.is_finished());
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_child_gets_what_is_left() {
    let budget = Budget::tokens(100).after(Usage::tokens(30));
    assert_eq!(budget, Budget::tokens(70));
}

#[tokio::test(start_paused = true)]
async fn what_an_inner_task_used_until_its_time_was_up_counts() {
    let spender = program(|_, cx: Context| async move {
        cx.spend(Usage::tokens(100))?;
        std::future::pending().await
    });
    for (within, busy) in [(2_000, false), (2_000, true), (7, false)] {
        let inner = Brain::builder().arm::<Compute>(spender.clone()).max_running(1).build().unwrap();
        if busy {
            // The place is taken for half of the time.
            let half = TaskBudget { max_time_seconds: Some(1.0), ..TaskBudget::default() };
            inner.submit(compute(0).budget(half), &anyone()).await.unwrap();
        }
        let mut arm = Dispatcher::new("computer");
        arm.serve::<Compute>(inner.clone());
        let cx = Context::root(Arc::new(Local::of(arm)));
        let late = cx.call(Compute { number: 4 }).within(Duration::from_millis(within)).await.unwrap_err();
        assert_eq!((late.kind(), late.may_have_executed()), (ErrorKind::DeadlineExceeded, true));
        assert_eq!(cx.used(), Usage::tokens(100), "{within} ms, busy: {busy}");
        let task = inner.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.remove(0);
        assert!(task.status.is_finished(), "{task:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_inner_task_used_is_reported_in_full() {
    let mut used = Usage::metered(70, 30).with_cached(20).with_cost(Cost::from_nano_dollars(5));
    used.unmetered = 1;
    let spender = program(move |input: Compute, cx: Context| async move {
        cx.spend(used)?;
        Ok(input.number)
    });
    let mut arm = Dispatcher::new("computer");
    arm.serve::<Compute>(Brain::builder().arm::<Compute>(spender).build().unwrap());
    let cx = Context::root(Arc::new(Local::of(arm)));
    cx.call(Compute { number: 4 }).await.unwrap();
    assert_eq!(cx.used(), used);
}

#[tokio::test(start_paused = true)]
async fn an_inner_task_that_an_operator_cancels_has_answered_its_call() {
    let arms = Local::new();
    arms.hang("number.double");
    let (outer, inner) = nested(&arms);
    let id = outer.submit(goal("4"), &anyone()).await.unwrap().task_id;
    tokio::time::sleep(SECOND).await;
    let inner_id = inner.list(TaskQuery::default(), &anyone()).await.unwrap().tasks[0].task_id.clone();
    inner.cancel(&inner_id, &anyone()).await.unwrap();
    let task = end_of(&outer, &id).await;
    let error = task.error.expect("it has not failed");
    assert_eq!((error.kind, error.step), (ErrorKind::Cancelled, Some(StepKey::Order(0))));
    assert_eq!(task.metadata.tokens_used, 10);
    let journal = whole_journal(&outer, &id, &anyone()).await.unwrap();
    assert_eq!(journal[0].outcome, StepOutcome::Failed);
}

/// Calls a brain as an arm, as a caller with nothing but a deadline of a minute.
async fn calls(brain: &Brain) -> Result<u64, CallError> {
    let mut arm = Dispatcher::new("computer");
    arm.serve::<Compute>(brain.clone());
    Context::root(Arc::new(Local::of(arm))).call(Compute { number: 4 }).await
}

/// Calls a brain that closes after a second, and returns its answer, which comes by then.
async fn closes_while_it_is_called(brain: &Brain) -> Result<u64, CallError> {
    let close = async {
        tokio::time::sleep(SECOND).await;
        brain.close().await;
    };
    let both = async { tokio::join!(calls(brain), close).0 };
    tokio::time::timeout(2 * SECOND, both).await.expect("the caller waits on")
}

#[tokio::test(start_paused = true)]
async fn a_brain_that_closes_answers_the_callers_whose_tasks_nobody_runs() {
    for drained in [false, true] {
        let arms = Local::new();
        arms.hang("number.double");
        // Nobody else can have its store.
        let private = Brain::builder().arm::<Compute>(Computer).arms(arms.clone()).build().unwrap();
        if drained {
            private.drain().await;
        }
        let error = closes_while_it_is_called(&private).await.unwrap_err();
        assert_eq!((error.kind(), error.retryable()), (ErrorKind::Unavailable, true));
        assert_eq!(error.may_have_executed(), !drained);
        let used = if drained { Usage::ZERO } else { Usage::tokens(10).plus(Usage::UNMETERED) };
        assert_eq!(error.usage(), used);
        let task = private.list(TaskQuery::default(), &anyone()).await.unwrap().tasks.remove(0);
        assert_eq!(task.status, TaskStatus::Cancelled);
        let refused = calls(&private).await.unwrap_err();
        assert_eq!((refused.kind(), refused.may_have_executed()), (ErrorKind::Unavailable, false));
    }
    // Others could have run the task, and have not.
    let shared = brain(&Local::new());
    shared.drain().await;
    let error = closes_while_it_is_called(&shared).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::Unavailable, false));
}

#[tokio::test(start_paused = true)]
async fn a_caller_of_a_brain_that_closes_gets_the_answer_of_the_one_that_continues() {
    let (arms, store) = (Local::new(), shared_store());
    arms.hang("number.double");
    let one = brain_on(&arms, store.clone());
    let close = async {
        tokio::time::sleep(SECOND).await;
        arms.heal();
        one.close().await;
        tokio::time::sleep(SECOND).await;
        brain_on(&arms, store.clone()).recover().await.unwrap();
    };
    assert_eq!(tokio::join!(calls(&one), close).0.unwrap(), 11);
}
