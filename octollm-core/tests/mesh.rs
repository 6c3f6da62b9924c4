//! The mesh: calls, faults, the record, and what travels over its hops.
#![cfg(feature = "mesh")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    budget::{Budget, Usage},
    bus::{Overflow, Signal},
    context::ContextParts,
    contract::ContractRef,
    deadline::Deadline,
    error::{ArmError, ErrorKind},
    mesh::{Fault, Mesh, RecordedCall},
    orchestrator::Orchestrator,
    plan::{Plan, PlanRunner, PlanStep},
    task::{TaskRequest, TaskResult, TaskStatus},
    transport::StepKey,
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

/// Adds one, after a while.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "number.increment", output = u64, idempotent, timeout = "10s")]
struct Increment {
    number: u64,
    #[serde(default)]
    ms: u64,
}

/// Calls the next hop, and returns what is left there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "relay.pass", output = Vec<Left>, timeout = "60s")]
struct Pass {
    hops: u32,
}

/// What a hop has left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Left {
    ms: u64,
    tokens: Option<u64>,
    correlation: String,
}

fn add(number: u64) -> Increment {
    Increment { number, ms: 0 }
}

fn slow(ms: u64) -> Increment {
    Increment { number: 0, ms }
}

/// Counts how often it was started, brought to its end, and dropped before.
#[derive(Debug, Clone, Default)]
struct Adder(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    started: AtomicUsize,
    ended: AtomicUsize,
    dropped: AtomicUsize,
}

struct Guard<'a>(&'a Counts, bool);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let counter = if self.1 { &self.0.ended } else { &self.0.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Adder {
    /// Started, ended, dropped.
    fn counts(&self) -> (usize, usize, usize) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        (count(&self.0.started), count(&self.0.ended), count(&self.0.dropped))
    }
}

#[async_trait]
impl Arm<Increment> for Adder {
    async fn execute(&self, input: Increment, _: &Context) -> Result<u64, ArmError> {
        self.0.started.fetch_add(1, Ordering::Relaxed);
        let mut guard = Guard(&self.0, false);
        if input.ms > 0 {
            tokio::time::sleep(Duration::from_millis(input.ms)).await;
        }
        guard.1 = true;
        Ok(input.number + 1)
    }
}

/// Takes 100 ms and 10 tokens itself, and calls the next hop; the last one waits for the adder for an hour.
struct Relay;

#[async_trait]
impl Arm<Pass> for Relay {
    async fn execute(&self, input: Pass, cx: &Context) -> Result<Vec<Left>, ArmError> {
        let left = Left {
            ms: u64::try_from(cx.remaining().unwrap_or_default().as_millis()).unwrap_or_default(),
            tokens: cx.budget().tokens,
            correlation: cx.correlation_id().to_string(),
        };
        cx.spend(Usage::tokens(10))?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut all = vec![left];
        match input.hops {
            0 => {}
            1 => drop(cx.call(slow(9_000)).await?),
            more => all.extend(cx.call(Pass { hops: more - 1 }).await?),
        }
        Ok(all)
    }
}

/// Adds one to as many numbers as the goal says, all at once.
struct Review;

#[async_trait]
impl Arm<TaskRequest> for Review {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let count: u64 = request.goal.parse()?;
        Ok(TaskResult::of(&cx.call_all((0..count).map(add)).await?)?)
    }
}

async fn mesh() -> (Mesh, Adder) {
    let adder = Adder::default();
    let mesh = Mesh::builder()
        .arm::<Increment>("adder", adder.clone())
        .arm::<Pass>("relay", Relay)
        .brain(Review)
        .brain(PlanRunner::new().contract::<Increment>())
        .start()
        .await;
    (mesh, adder)
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_through_brain_and_arms() {
    let (mesh, _) = mesh().await;
    let mut events =
        mesh.bus().subscribe("events:task:*".parse().unwrap(), Overflow::DropOldest(64)).await.unwrap();
    let task = mesh.run(TaskRequest::new("3")).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed);
    assert_eq!(task.result.unwrap().output, json!([1, 2, 3]));
    assert_eq!(task.metadata.arms_used, ["adder"]);
    let calls = mesh.calls_to("adder");
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|call| call.task_id.as_ref() == Some(&task.task_id)));
    assert!(mesh.calls().iter().all(|call| call.from.as_deref() == Some("orchestrator")));
    let Some(Signal::Event(event)) = events.next().await else { panic!("no event") };
    assert_eq!(event.event_type(), "task.queued");
}

#[tokio::test(start_paused = true)]
async fn a_crash_drops_the_arm_in_the_middle() {
    let (mesh, adder) = mesh().await;
    mesh.fault("adder", Fault::Crash.once());
    let error = mesh.call(slow(50)).await.unwrap_err();
    assert_eq!((error.kind(), error.arm()), (ErrorKind::ConnectionLost, Some("adder")));
    assert!(error.may_have_executed() && error.retryable());
    assert_eq!(adder.counts(), (1, 0, 1));
    assert_eq!(mesh.call(add(1)).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_hangs_is_ended_by_the_deadline() {
    let (mesh, adder) = mesh().await;
    mesh.fault("adder", Fault::Hang.once());
    let begun = Instant::now();
    let error = mesh.call(add(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(adder.counts(), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_arm_answers_in_time_or_never_starts() {
    let (mesh, adder) = mesh().await;
    mesh.fault("adder", Fault::Slow(Duration::from_secs(3)).once());
    mesh.fault("adder", Fault::Slow(Duration::from_secs(30)).once());
    let begun = Instant::now();
    assert_eq!(mesh.call(add(1)).await.unwrap(), 2);
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    assert_eq!(mesh.call(add(1)).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(adder.counts(), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_arm_answers_the_failure_that_was_planned() {
    let (mesh, adder) = mesh().await;
    mesh.fault("adder", Fault::error(ErrorKind::Overloaded).times(2));
    for _ in 0..2 {
        let error = mesh.call(add(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(!error.may_have_executed());
    }
    assert_eq!(mesh.call(add(1)).await.unwrap(), 2);
    assert_eq!(adder.counts(), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_arm_whose_reply_is_lost_has_run() {
    let (mesh, adder) = mesh().await;
    mesh.fault("adder", Fault::DropReply.once());
    let error = mesh.call(slow(20)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert!(error.may_have_executed());
    assert_eq!(adder.counts(), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn faults_are_for_one_arm_and_one_contract_and_those_left_are_returned() {
    let (mesh, _) = mesh().await;
    mesh.fault("adder", Fault::Crash.always().on::<Pass>());
    mesh.fault("relay", Fault::Crash.once().after(1));
    mesh.fault("nobody", Fault::Hang.once());
    assert_eq!(mesh.call(add(1)).await.unwrap(), 2);
    assert_eq!(mesh.call(Pass { hops: 0 }).await.unwrap().len(), 1);
    assert!(mesh.call(Pass { hops: 0 }).await.is_err());
    assert_eq!(mesh.unfired(), ["adder: crash", "nobody: hang"]);
    mesh.heal("nobody");
    assert_eq!(mesh.unfired(), ["adder: crash"]);
}

#[tokio::test(start_paused = true)]
async fn every_call_is_recorded_as_it_was() {
    let (mesh, _) = mesh().await;
    mesh.fault("adder", Fault::error(ErrorKind::Unavailable).once().after(1));
    let cx = mesh.context();
    assert_eq!(cx.call(add(4)).await.unwrap(), 5);
    cx.call(add(5)).named("second").await.unwrap_err();
    let running = tokio::spawn(mesh.call(slow(1_000)));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let calls = mesh.calls();
    let [first, second, third] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((first.order, first.attempt, &*first.arm, &first.from), (0, 1, "adder", &None));
    assert_eq!(first.contract.to_string(), "number.increment");
    assert_eq!((first.input(), first.output()), (json!({ "number": 4, "ms": 0 }), Some(json!(5))));
    assert_eq!((first.at, first.duration, &first.fault), (Duration::ZERO, Some(Duration::ZERO), &None));
    assert_eq!(first.correlation_id, *cx.correlation_id());
    assert_eq!(second.correlation_id, *cx.correlation_id());
    assert_ne!(third.correlation_id, *cx.correlation_id());
    assert_eq!(second.step, StepKey::Name("second".into()));
    assert_eq!(second.failure().unwrap().kind, ErrorKind::Unavailable);
    assert!(second.fault.is_some());
    assert_eq!((third.is_running(), third.duration), (true, None));
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let third = mesh.calls().pop().unwrap();
    assert!(third.is_dropped());
    assert_eq!(third.duration, Some(Duration::from_millis(400)));
    let count = |calls: Vec<RecordedCall>, condition: &dyn Fn(&RecordedCall) -> bool| {
        calls.iter().filter(|call| condition(call)).count()
    };
    assert_eq!(count(mesh.calls(), &|call| call.correlation_id == *cx.correlation_id()), 2);
    assert_eq!(count(mesh.calls_of::<Increment>(), &|call| call.failure().is_some()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_cancels_three_hops_down() {
    let (mesh, adder) = mesh().await;
    let call = mesh.call(Pass { hops: 3 });
    let gone = tokio::time::timeout(Duration::from_secs(1), call).await;
    assert!(gone.is_err());
    assert_eq!(adder.counts(), (1, 0, 1));
    let calls = mesh.calls();
    assert_eq!(calls.len(), 4);
    assert!(calls.iter().all(|call| call.is_dropped()));
    assert_eq!(calls.last().unwrap().from.as_deref(), Some("relay"));
}

#[tokio::test(start_paused = true)]
async fn deadline_and_budget_shrink_from_hop_to_hop() {
    let (mesh, _) = mesh().await;
    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(Duration::from_secs(30)));
    parts.budget = Budget::tokens(100);
    let cx = Context::from_parts(parts, mesh.transport());
    let left = cx.call(Pass { hops: 3 }).await.unwrap();
    let expected = [(30_000, 100), (29_900, 90), (29_800, 80)];
    assert_eq!(left.iter().map(|left| (left.ms, left.tokens.unwrap())).collect::<Vec<_>>(), expected);
    assert!(left.iter().all(|left| left.correlation == cx.correlation_id().as_str()));
    assert_eq!((cx.used(), cx.budget()), (Usage::tokens(30), Budget::tokens(70)));

    let mut parts = ContextParts::new();
    parts.deadline = Some(Deadline::after(Duration::from_millis(250)));
    let error = Context::from_parts(parts, mesh.transport()).call(Pass { hops: 9 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let mut parts = ContextParts::new();
    parts.budget = Budget::tokens(15);
    let error = Context::from_parts(parts, mesh.transport()).call(Pass { hops: 9 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BudgetExhausted);
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_in_time_ends_a_batch() {
    let (mesh, adder) = mesh().await;
    mesh.fault("adder", Fault::error(ErrorKind::Unavailable).once().after(1));
    let begun = Instant::now();
    let error = mesh.context().call_all([slow(9_000), add(1), slow(9_000)]).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::Unavailable, Duration::ZERO));
    assert_eq!(adder.counts().1, 0);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_calls_and_none_is_lost() {
    let (mesh, adder) = mesh().await;
    mesh.fault("adder", Fault::Crash.times(10).after(500));
    let outputs =
        mesh.context().call_all((0..10_000).map(|number| Increment { number, ms: number % 7 })).each().await;
    assert_eq!(outputs.len(), 10_000);
    let mut lost = 0;
    for (number, output) in outputs.into_iter().enumerate() {
        match output {
            Ok(output) => assert_eq!(output, number as u64 + 1),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionLost);
                lost += 1;
            }
        }
    }
    assert_eq!(lost, 10);
    let (started, ended, dropped) = adder.counts();
    assert_eq!((started, ended + dropped), (10_000, 10_000));
    let calls = mesh.calls();
    assert!(calls.iter().enumerate().all(|(order, call)| call.order == order));
    let failed = calls.iter().filter(|call| call.failure().is_some()).count();
    assert_eq!((calls.len(), failed), (10_000, 10));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_contract_is_refused_as_on_the_wire() {
    let (mesh, adder) = mesh().await;
    let contract: ContractRef = "number.increment".parse().unwrap();
    let cx = mesh.context();
    for (input, kind) in [
        (json!({ "number": "one" }), ErrorKind::ValidationFailed),
        (json!({ "number": 1, "more": 1 }), ErrorKind::ValidationFailed),
        (json!({}), ErrorKind::ValidationFailed),
    ] {
        assert_eq!(cx.call_json(&contract, &input).await.unwrap_err().kind(), kind, "{input}");
    }
    assert_eq!(adder.counts(), (0, 0, 0));
    let unknown = "number.decrement".parse().unwrap();
    let error = cx.call_json(&unknown, &json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContractNotOffered);
    assert_eq!(error.failure().details, Some(json!({ "offered": ["number.increment", "relay.pass"] })));
    let ids: Vec<_> = cx.cards().await.into_iter().map(|card| card.arm_id).collect();
    assert_eq!(ids, ["adder", "relay"]);
}

#[tokio::test(start_paused = true)]
async fn a_plan_goes_on_where_its_brain_crashed() {
    let (mesh, adder) = mesh().await;
    let step = |id: &str, ms: u64| {
        PlanStep::new(id, "number.increment".parse().unwrap(), json!({ "number": 1, "ms": ms }))
    };
    let mut last = step("last", 0);
    last.input["number"] = json!({ "$output": "long" });
    let plan = Plan::new([step("short", 10), step("long", 5_000), last.after("short")]);
    let task = mesh.submit(plan).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    mesh.crash_brain().await.unwrap();
    assert_eq!(adder.counts(), (2, 1, 1));
    let mut updates = mesh.brain().watch(&task.task_id, None, &mesh.context()).await.unwrap();
    while updates.next().await.is_some() {}
    let task = mesh.brain().get(&task.task_id, &mesh.context()).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed, "{task:?}");
    assert_eq!(
        task.result.unwrap().output.to_value()["outputs"],
        json!({ "short": 2, "long": 2, "last": 3 })
    );
    let steps: Vec<_> = mesh.calls().iter().map(|call| call.step.to_string()).collect();
    assert_eq!(steps, ["short", "long", "long", "last"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_time_ended_while_no_brain_ran_it_may_have_executed() {
    let adder = arm_fn(|input: Increment, cx: Context| async move {
        cx.spend(Usage::tokens(5))?;
        Ok(input.number + 1)
    });
    let program = arm_fn(|_: TaskRequest, cx: Context| async move {
        cx.call(add(1)).await?;
        Err::<TaskResult, ArmError>(std::future::pending().await)
    });
    let mesh = Mesh::builder().arm("adder", adder).brain(program).start().await;
    let mut request = TaskRequest::new("charge");
    request.budget.max_time_seconds = Some(20.0);
    let task = mesh.submit(request).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    mesh.crash_brain().await.unwrap();
    let (brain, cx) = (mesh.brain(), mesh.context());
    let task = octollm_core::orchestrator::finished(&brain, &task.task_id, &cx).await.unwrap();
    let error = task.error.unwrap();
    assert_eq!((error.kind, error.may_have_executed), (ErrorKind::DeadlineExceeded, true));
    assert_eq!((task.metadata.tokens_used, task.metadata.arms_used), (5, vec!["adder".to_owned()]));
}
