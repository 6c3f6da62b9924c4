//! Many calls at a time: order, names, limits over all of them, and the budget they share.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    budget::{Budget, Usage},
    context::CALLS_AT_ONCE,
    error::{ArmError, CallError, ErrorKind},
    mesh::{Fault, Mesh},
    orchestrator::finished,
    plan::{Plan, PlanRunner},
    task::{TaskRequest, TaskResult, TaskStatus},
    transport::{Call, Reply, StepKey},
};
use serde_json::json;
use tokio::time::Instant;

use crate::support::*;

/// What a layer of calls wraps.
type Calls = tower::util::BoxCloneSyncService<Call, Reply, CallError>;

#[tokio::test(start_paused = true)]
async fn ten_calls_that_spend_all_they_get_stay_within_the_budget() {
    let mesh = mesh().await;
    let cx = limited(&mesh, Budget::tokens(1_000), None);
    let calls = (0..10).map(|number| measure(number).taking(10).spending(Spends::Everything));
    let seen = cx.call_all(calls).await.unwrap();
    assert!(seen.iter().all(|seen| seen.tokens == Some(100)), "{seen:?}");
    assert_eq!(cx.used(), Usage::tokens(1_000));
    let refused = cx.call_all([measure(1)]).await.unwrap_err();
    assert_eq!((refused.kind(), refused.may_have_executed()), (ErrorKind::BudgetExhausted, false));
}

#[tokio::test(start_paused = true)]
async fn what_a_call_leaves_goes_to_the_next_and_none_starts_with_nothing() {
    let mesh = mesh().await;
    let cx = mesh.context();
    let calls = (0..20).map(|number| measure(number).taking(10));
    // Less than one token a place: most calls wait until one that does not need its token returns it.
    let each = cx.call_all(calls).budget(Budget::tokens(3)).each().await;
    assert!(each.iter().all(|seen| seen.as_ref().unwrap().tokens == Some(1)), "{each:?}");
    let calls = (0..3).map(|number| measure(number).spending(Spends::Tokens(10)));
    let seen = cx.call_all(calls).budget(Budget::tokens(90)).at_once(1).await.unwrap();
    assert_eq!(seen.iter().map(|seen| seen.tokens.unwrap()).collect::<Vec<_>>(), [90, 80, 70]);
}

#[tokio::test(start_paused = true)]
async fn calls_of_equal_cost_all_succeed_under_a_budget_that_suffices() {
    let mesh = mesh().await;
    for (calls, budget) in [(20, 2_000), (20, 2_200), (40, 4_400), (100, 10_000), (100, 12_000)] {
        for at_once in [1, 7, CALLS_AT_ONCE, 100] {
            let cx = limited(&mesh, Budget::tokens(budget), None);
            let batch = (0..calls)
                .map(|number| measure(number).taking(10 + number % 7).spending(Spends::Tokens(100)));
            let outputs = cx.call_all(batch).at_once(at_once).await;
            assert!(outputs.is_ok(), "{calls} calls under {budget}, {at_once} at once: {outputs:?}");
            assert_eq!(cx.used(), Usage::tokens(calls * 100));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_so_many_run_at_once() {
    let mesh = mesh().await;
    for (at_once, took) in [(0, 320), (1, 320), (5, 70), (CALLS_AT_ONCE, 20), (100, 10)] {
        let begun = Instant::now();
        let calls = (0..32).map(|number| measure(number).taking(10));
        mesh.context().call_all(calls).at_once(at_once).await.unwrap();
        assert_eq!(begun.elapsed(), ms(took), "{at_once}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_bounds_the_whole_batch_and_refuses_what_was_not_sent() {
    let mesh = mesh().await;
    let begun = Instant::now();
    let calls = (0..5).map(|number| measure(number).taking(100));
    let each = mesh.context().call_all(calls).at_once(1).within(ms(250)).each().await;
    assert_eq!(begun.elapsed(), ms(250));
    let ends: Vec<_> = each
        .iter()
        .map(|end| {
            end.as_ref().map_err(|error| (error.kind(), error.may_have_executed())).map(|seen| seen.number)
        })
        .collect();
    let late = |executed| Err((ErrorKind::DeadlineExceeded, executed));
    assert_eq!(ends, [Ok(0), Ok(1), late(true), late(false), late(false)]);
    assert_eq!(mesh.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_named_batch_names_its_steps_and_each_has_its_result() {
    let mesh = mesh().await;
    mesh.fault("worker", Fault::error(ErrorKind::ArmFailed).once().after(1));
    let cx = mesh.context();
    let each = cx.call_all((0..3).map(measure)).named("judge").each().await;
    assert_eq!(each.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(each[1].as_ref().unwrap_err().step(), Some(&StepKey::Name("judge[1]".into())));
    cx.call(measure(9)).await.unwrap();
    assert_eq!(steps(&mesh), ["judge[0]", "judge[1]", "judge[2]", "0"]);
    assert!(cx.call_all(Vec::<Measure>::new()).named("none").await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_batch_or_a_plan_names_the_first_one() {
    static SEEN: Mutex<Vec<(String, Option<String>)>> = Mutex::new(Vec::new());
    let recording = tower::layer::layer_fn(|service: Calls| {
        tower::util::MapRequest::new(service, |call: Call| {
            let batch = call.batch.as_ref().map(StepKey::to_string);
            SEEN.lock().unwrap().push((call.step.to_string(), batch));
            call
        })
    });
    let mesh = builder().layer(recording).start().await;
    let cx = mesh.context();
    cx.call(measure(0)).await.unwrap();
    cx.call_all((0..2).map(measure)).await.unwrap();
    cx.call_all((0..2).map(measure)).named("n").await.unwrap();
    let step = |id: &str| json!({ "id": id, "contract": "work.charge", "input": { "number": 1 } });
    let plan: Plan = serde_json::from_value(json!({ "steps": [step("p"), step("q")] })).unwrap();
    PlanRunner::new().run(&plan, &cx).await.unwrap();
    let seen: Vec<_> = SEEN
        .lock()
        .unwrap()
        .iter()
        .map(|(step, batch)| format!("{step}:{}", batch.as_deref().unwrap_or("-")))
        .collect();
    assert_eq!(seen, ["0:-", "1:1", "2:1", "n[0]:n[0]", "n[1]:n[0]", "p:p", "q:p"]);
}

#[tokio::test(start_paused = true)]
async fn two_batches_at_once_are_numbered_as_they_were_made() {
    let mesh = mesh().await;
    let cx = mesh.context();
    let first = cx.call_all((0..3).map(|number| measure(number).taking(20)));
    let second = cx.call_all((3..6).map(|number| measure(number).taking(10)));
    let (second, first) = tokio::join!(second.at_once(1), first.at_once(2));
    let numbers = |seen: Vec<Seen>| seen.into_iter().map(|seen| seen.number).collect::<Vec<_>>();
    assert_eq!((numbers(first.unwrap()), numbers(second.unwrap())), (vec![0, 1, 2], vec![3, 4, 5]));
    for call in mesh.calls() {
        assert_eq!(call.step.to_string(), call.input()["number"].to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_for_each_call_of_a_batch_and_stays_within_the_budget() {
    let mesh = Mesh::builder().arm::<Measure>("flaky", Flaky(AtomicU32::new(3))).start().await;
    let cx = mesh.context();
    let calls = cx.call_all((0..3).map(measure)).at_once(1).retry(3).budget(Budget::tokens(1_000));
    let seen = calls.await.unwrap();
    let seen: Vec<_> = seen.iter().map(|seen| (seen.attempt, seen.tokens.unwrap())).collect();
    assert_eq!(seen, [(4, 880), (1, 840), (1, 800)]);
    assert_eq!(cx.used(), Usage::tokens(240));
    assert_eq!(steps(&mesh), ["0", "0", "0", "0", "1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_plan_shares_its_budget_and_so_do_the_batches_below_it() {
    let mesh = mesh().await;
    let plan: Plan = serde_json::from_value(json!({ "steps": [
        { "id": "a", "contract": "work.batch", "input": { "times": 5 } },
        { "id": "b", "contract": "work.batch", "input": { "times": 5 } },
        { "id": "c", "contract": "work.measure", "input": { "number": 1, "ms": 0, "spends": "Nothing" } },
    ] }))
    .unwrap();
    let cx = limited(&mesh, Budget::tokens(900), None);
    let output = PlanRunner::new().run(&plan, &cx).await.unwrap();
    assert_eq!(output.outputs["a"], json!([60, 60, 60, 60, 60]));
    assert_eq!(output.outputs["b"], json!([60, 60, 60, 60, 60]));
    assert_eq!(output.outputs["c"]["tokens"], 300);
    assert_eq!(cx.used(), Usage::tokens(600));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_context_ends_what_runs_and_refuses_what_waits() {
    static ENDS: Mutex<Vec<(ErrorKind, bool)>> = Mutex::new(Vec::new());
    static LEFT: AtomicU32 = AtomicU32::new(0);
    let spawner = octollm_core::arm::arm_fn(|_: Charge, cx: octollm_core::Context| async move {
        let calls = cx.call_all((0..4).map(|number| measure(number).taking(1_000))).at_once(2).each();
        tokio::spawn(async move {
            for end in calls.await {
                let error = end.unwrap_err();
                ENDS.lock().unwrap().push((error.kind(), error.may_have_executed()));
            }
            LEFT.store(1, Ordering::Relaxed);
        });
        std::future::pending().await
    });
    let mesh = Mesh::builder().arm("spawner", spawner).arm::<Measure>("worker", Worker).start().await;
    let gone = tokio::time::timeout(ms(100), mesh.call(Charge { number: 0 })).await;
    assert!(gone.is_err());
    tokio::time::sleep(ms(1)).await;
    assert_eq!(LEFT.load(Ordering::Relaxed), 1);
    let cancelled = |executed| (ErrorKind::Cancelled, executed);
    assert_eq!(*ENDS.lock().unwrap(), [cancelled(true), cancelled(true), cancelled(false), cancelled(false)]);
    assert_eq!(mesh.calls_to("worker").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_calls_that_never_wait_lets_others_run() {
    let mesh = Mesh::builder()
        .arm("ready", arm_fn(|input: Charge, _| async move { Ok(input.number) }))
        .start()
        .await;
    let (cx, contract) = (mesh.context(), Charge { number: 0 });
    let batch = cx.call_all(vec![contract; 1_000]).at_once(1);
    let other = async {
        tokio::task::yield_now().await;
        mesh.calls().len()
    };
    let (ran, all) = tokio::join!(tokio::spawn(batch), other);
    assert_eq!(ran.unwrap().unwrap().len(), 1_000);
    assert!(all < 1_000, "{all}");
}

/// Runs a batch that its time or its budget ends half way, and returns what became of it after another call.
struct HalfWay;

#[async_trait]
impl Arm<TaskRequest> for HalfWay {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let calls = (0..5).map(|number| measure(number).taking(100).spending(Spends::Tokens(10)));
        let batch = cx.call_all(calls).at_once(1);
        let batch = match request.goal.as_str() {
            "time" => batch.within(ms(250)),
            _ => batch.budget(Budget::tokens(20)),
        };
        let each = batch.each().await;
        let ends: Vec<_> =
            each.iter().map(|end| end.as_ref().map_or_else(|error| error.kind().code(), |_| "ok")).collect();
        // The crash comes here.
        cx.call(measure(ends.iter().filter(|end| **end == "ok").count() as u64).taking(3_000)).await?;
        Ok(TaskResult::new(json!(ends)))
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_a_limit_refused_are_refused_again_after_a_crash() {
    for (goal, ends) in [
        ("time", ["ok", "ok", "deadline_exceeded", "deadline_exceeded", "deadline_exceeded"]),
        ("budget", ["ok", "ok", "budget_exhausted", "budget_exhausted", "budget_exhausted"]),
    ] {
        let mesh = builder().brain(HalfWay).start().await;
        let task = mesh.submit(TaskRequest::new(goal)).await.unwrap();
        tokio::time::sleep(ms(1_000)).await;
        let made = mesh.calls().len();
        mesh.crash_brain().await.unwrap();
        let task = finished(&mesh.brain(), &task.task_id, &mesh.context()).await.unwrap();
        assert_eq!(task.status, TaskStatus::Completed, "{task:?}");
        assert_eq!(task.result.unwrap().output, json!(ends));
        assert_eq!(mesh.calls().len(), made + 1, "only the last call is made again");
    }
}

#[tokio::test(start_paused = true)]
async fn what_all_calls_of_a_batch_or_a_plan_used_until_their_deadline_counts() {
    let spender = arm_fn(|_: Charge, cx: Context| async move {
        cx.spend(Usage::tokens(7))?;
        std::future::pending::<Result<u64, ArmError>>().await
    });
    let mesh = Mesh::builder().arm("spender", spender).start().await;
    let cx = mesh.context();
    let late = cx.call_all((0..3).map(|number| Charge { number })).at_once(2).within(ms(100)).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(cx.used(), Usage::tokens(14));
    let step = |id: &str| json!({ "id": id, "contract": "work.charge", "input": { "number": 1 } });
    let plan: Plan = serde_json::from_value(json!({ "steps": [step("a"), step("b"), step("c")] })).unwrap();
    let cx = limited(&mesh, Budget::UNLIMITED, Some(ms(100)));
    let late = PlanRunner::new().run(&plan, &cx).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(cx.used(), Usage::tokens(21));
    assert_eq!(mesh.calls().len(), 5, "what was not sent is refused");
}
