//! One call: its limits, its name, its updates, and what becomes of it when it is not awaited.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, future::join_all, stream};
use octollm_core::{
    Arm, Context,
    arm::arm_fn,
    budget::{Budget, Usage},
    contract::{ContractRef, ContractSpec, Spec, TaskContract},
    deadline::Deadline,
    error::{ArmError, ErrorKind, Failure},
    mesh::{Fault, Mesh},
    plan::{Plan, PlanRunner, PlanStep},
    task::{TaskRequest, TaskResult, TaskStatus},
    transport::StepKey,
    update::{Update, UpdateSink},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn the_time_counts_from_the_first_poll() {
    let mesh = mesh().await;
    mesh.fault("worker", Fault::Hang.once());
    let call = mesh.call(measure(1)).within(ms(500));
    tokio::time::sleep(ms(10_000)).await;
    let begun = Instant::now();
    let error = call.await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::DeadlineExceeded, ms(500)));
    assert_eq!((error.arm(), error.endpoint()), (Some("worker"), Some("in-process/worker")));
}

#[tokio::test(start_paused = true)]
async fn a_call_with_no_time_at_all_is_refused_before_it_is_sent() {
    let mesh = mesh().await;
    let error = mesh.call(measure(1)).within(Duration::ZERO).retry(3).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::DeadlineExceeded, false));
    let each = mesh.context().call_all([measure(1)]).within(Duration::ZERO).each().await;
    assert_eq!(each[0].as_ref().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(mesh.calls().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_facts_leaves_the_time_to_its_caller() {
    let mesh = mesh().await;
    mesh.fault("worker", Fault::Hang.always());
    let contract: ContractRef = "work.charge".parse().unwrap();
    let begun = Instant::now();
    let call = || mesh.context().call_json(&contract, &json!({ "number": 1 }));
    call().await.unwrap_err();
    assert_eq!(begun.elapsed(), ms(30_000));
    call().within(ms(60_000)).await.unwrap_err();
    assert_eq!(begun.elapsed(), ms(90_000));
    call().within(ms(60_000)).spec(Spec::new(contract.clone())).await.unwrap_err();
    assert_eq!(begun.elapsed(), ms(120_000));
}

#[tokio::test(start_paused = true)]
async fn limits_of_a_call_only_narrow_those_of_its_context() {
    let mesh = mesh().await;
    let cx = limited(&mesh, Budget::tokens(100), Some(ms(200)));
    assert_eq!(cx.call(measure(1)).budget(Budget::tokens(30)).await.unwrap().tokens, Some(30));
    assert_eq!(cx.call(measure(1)).budget(Budget::tokens(300)).await.unwrap().tokens, Some(100));
    let begun = Instant::now();
    let error = cx.call(measure(1).taking(900)).within(ms(800)).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::DeadlineExceeded, ms(200)));
    let refused = cx.call(measure(1)).await.unwrap_err();
    assert_eq!((refused.kind(), refused.may_have_executed()), (ErrorKind::DeadlineExceeded, false));
    assert_eq!(refused.step(), Some(&StepKey::Order(3)));
    assert_eq!(mesh.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_narrower_context_shares_steps_and_counts_in_both() {
    let mesh = mesh().await;
    let cx = limited(&mesh, Budget::tokens(100), Some(ms(1_000)));
    let narrow = cx.with_budget(Budget::tokens(40)).with_deadline(Deadline::after(ms(5_000)));
    assert_eq!((narrow.deadline(), narrow.budget()), (cx.deadline(), Budget::tokens(40)));
    narrow.call(measure(0).spending(Spends::Tokens(25))).await.unwrap();
    assert_eq!((narrow.used(), cx.used()), (Usage::tokens(25), Usage::tokens(25)));
    cx.call(measure(1).spending(Spends::Tokens(70))).await.unwrap();
    // 15 are left of its own, but only 5 of the outer one's.
    assert_eq!(narrow.budget(), Budget::tokens(5));
    assert!(narrow.spend(Usage::tokens(6)).is_err());
    assert_eq!(narrow.call(measure(2)).await.unwrap_err().kind(), ErrorKind::BudgetExhausted);
    assert_eq!(cx.with_budget(Budget::tokens(900)).budget(), Budget::tokens(0));
    assert_eq!(steps(&mesh), ["0", "1"]);
}

#[tokio::test(start_paused = true)]
async fn contexts_narrow_each_other_as_often_as_one_likes() {
    let mesh = mesh().await;
    let cx = limited(&mesh, Budget::tokens(20_000), None);
    let narrow = (10_000..20_000).rev().fold(cx.clone(), |cx, left| cx.with_budget(Budget::tokens(left)));
    assert_eq!(narrow.budget(), Budget::tokens(10_000));
    narrow.call(measure(0).spending(Spends::Tokens(1))).await.unwrap();
    assert_eq!((cx.used(), narrow.budget()), (Usage::tokens(1), Budget::tokens(9_999)));
    drop(narrow);
    cx.call(measure(1)).await.unwrap();
    assert_eq!(steps(&mesh), ["0", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_gives_the_order_back_once_no_later_one_is_in_use() {
    let mesh = mesh().await;
    let cx = mesh.context();
    cx.call(measure(0)).named("first").await.unwrap();
    let (a, b) = (cx.call(measure(1)), cx.call(measure(2)));
    let (a, b) = (a.named("late"), b.named("later"));
    a.await.unwrap();
    b.await.unwrap();
    cx.call(measure(3)).await.unwrap();
    drop(cx.call(measure(4)));
    cx.call(measure(5)).await.unwrap();
    assert_eq!(steps(&mesh), ["first", "late", "later", "0", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_has_ended_holds_nothing_and_stays_pending() {
    let mesh = mesh().await;
    let cx = mesh.context();
    let mut call = cx.call(measure(1));
    assert_eq!((&mut call).await.unwrap().number, 1);
    assert!((&mut call).now_or_never().is_none());
    let mut all = cx.call_all([measure(1)]);
    assert_eq!((&mut all).await.unwrap().len(), 1);
    assert!((&mut all).now_or_never().is_none());
    let mut each = cx.call_all([measure(1)]).each();
    assert_eq!((&mut each).await.len(), 1);
    assert!((&mut each).now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_call_is_a_future_for_everything_that_takes_one() {
    let mesh = mesh().await;
    let cx = mesh.context();
    let all = join_all((0..4).map(|number| cx.call(measure(number)).within(ms(900)))).await;
    assert_eq!(
        all.into_iter().filter_map(Result::ok).map(|seen| seen.number).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    let some: Vec<_> =
        stream::iter((4..8).map(|number| cx.call(measure(number)))).buffered(2).collect().await;
    assert!(some.iter().all(Result::is_ok));
    let elsewhere = tokio::spawn(cx.call(measure(8)).named("elsewhere"));
    assert_eq!(elsewhere.await.unwrap().unwrap().number, 8);
    let (a, b) = tokio::join!(cx.call(measure(9).taking(20)), cx.call(measure(10).taking(10)));
    assert_eq!((a.unwrap().number, b.unwrap().number), (9, 10));
    assert_eq!(steps(&mesh), ["0", "1", "2", "3", "4", "5", "6", "7", "elsewhere", "8", "9"]);
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Tell {
    lines: Vec<String>,
}

impl TaskContract for Tell {
    type Output = usize;
    type Chunk = String;
    const SPEC: ContractSpec = ContractSpec::new("text.tell", "/tell", "text:tell");
}

struct Teller;

#[async_trait]
impl Arm<Tell> for Teller {
    async fn execute(&self, input: Tell, cx: &Context) -> Result<usize, ArmError> {
        for line in &input.lines {
            cx.chunk::<Tell>(line).await;
            cx.progress(50, line.clone());
        }
        Ok(input.lines.len())
    }
}

/// Streams what has no exact JSON, and then what has.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Numbers {}

impl TaskContract for Numbers {
    type Output = ();
    type Chunk = (f64, u128);
    const SPEC: ContractSpec = ContractSpec::new("number.stream", "/stream", "number:stream");
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_json_cannot_carry_exactly_is_left_out() {
    let arm = arm_fn(|_: Numbers, cx: Context| async move {
        for chunk in [(f64::NAN, 1), (1.0, u128::MAX), (f64::INFINITY, 1), (1.0, 1)] {
            cx.chunk::<Numbers>(&chunk).await;
        }
        Ok(())
    });
    let mesh = Mesh::builder().arm("numbers", arm).start().await;
    let sink = Arc::new(Slow::default());
    mesh.call(Numbers {}).updates(sink.clone()).await.unwrap();
    assert_eq!(*sink.0.lock().unwrap(), [Update::Chunk(json!([1.0, 1]))]);
}

/// Takes a second for each chunk.
#[derive(Default)]
struct Slow(Mutex<Vec<Update>>);

#[async_trait]
impl UpdateSink for Slow {
    fn update(&self, update: Update) {
        self.0.lock().unwrap().push(update);
    }

    async fn chunk(&self, chunk: Value) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.update(Update::Chunk(chunk));
    }
}

#[tokio::test(start_paused = true)]
async fn progress_and_chunks_of_the_called_arm_return_and_chunks_are_awaited() {
    let mesh = Mesh::builder().arm("teller", Teller).start().await;
    let (sink, begun) = (Arc::new(Slow::default()), Instant::now());
    let lines = vec!["one".to_owned(), "two".to_owned()];
    assert_eq!(mesh.call(Tell { lines }).updates(sink.clone()).await.unwrap(), 2);
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    let update = |line: &str| [Update::Chunk(line.into()), Update::Progress(50, line.into())];
    assert_eq!(*sink.0.lock().unwrap(), [update("one"), update("two")].concat());
}

/// Returns more than fits into a `u64`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Huge {}

impl TaskContract for Huge {
    type Output = u128;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("number.huge", "/huge", "number:huge");
}

#[tokio::test(start_paused = true)]
async fn a_number_that_json_values_would_round_is_whole_or_refused() {
    let arm = arm_fn(|_: Huge, _| async { Ok(u128::MAX) });
    let mesh = Mesh::builder().arm("huge", arm).start().await;
    assert_eq!(mesh.call(Huge {}).await.unwrap(), u128::MAX);
    let contract: ContractRef = "number.huge".parse().unwrap();
    let error = mesh.context().call_json(&contract, &json!({})).named("big").await.unwrap_err();
    assert_eq!((error.kind(), error.arm()), (ErrorKind::BadResponse, Some("huge")));
    assert!(error.to_string().contains(&u128::MAX.to_string()), "{error}");
    assert_eq!(error.step(), Some(&StepKey::Name("big".into())));
}

#[tokio::test(start_paused = true)]
async fn a_plan_hands_no_rounded_number_on() {
    let arm = arm_fn(|_: Huge, _| async { Ok(u128::MAX) });
    let mesh = Mesh::builder().arm("huge", arm).brain(PlanRunner::new()).start().await;
    let step = |id: &str, input: Value| PlanStep::new(id, "number.huge".parse().unwrap(), input);
    let plan = Plan::new([step("big", json!({})), step("next", json!({ "number": { "$output": "big" } }))]);
    let task = mesh.submit(plan).await.unwrap();
    let task =
        octollm_core::orchestrator::finished(&mesh.brain(), &task.task_id, &mesh.context()).await.unwrap();
    let error = task.error.unwrap();
    assert_eq!(error.kind, ErrorKind::UpstreamFailed);
    assert!(error.message.contains(&u128::MAX.to_string()), "{}", error.message);
    assert_eq!(mesh.calls().len(), 1, "the second step got nothing");
}

#[tokio::test(start_paused = true)]
async fn facts_of_another_contract_are_refused() {
    let mesh = mesh().await;
    let contract: ContractRef = "work.charge".parse().unwrap();
    let other = Spec::new("work.measure".parse().unwrap());
    let error = mesh.context().call_json(&contract, &json!({ "number": 1 })).spec(other).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::BadRequest, false));
    assert_eq!(mesh.calls().len(), 0);
}

/// Gives one call up after a second, and makes another.
struct Patient;

#[async_trait]
impl Arm<TaskRequest> for Patient {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let first = cx.call(measure(1).taking(50_000)).within(ms(1_000)).await;
        let kind = first.map_or_else(|error| error.kind(), |_| ErrorKind::Internal);
        let second = cx.call(measure(2).taking(3_000)).await?;
        Ok(TaskResult::new(json!([kind, second.number])))
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_that_passed_is_replayed_after_a_crash() {
    let mesh = builder().brain(Patient).start().await;
    let task = mesh.submit(TaskRequest::new("wait")).await.unwrap();
    tokio::time::sleep(ms(2_000)).await;
    mesh.crash_brain().await.unwrap();
    let task =
        octollm_core::orchestrator::finished(&mesh.brain(), &task.task_id, &mesh.context()).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed, "{task:?}");
    assert_eq!(task.result.unwrap().output, json!(["deadline_exceeded", 2]));
    assert_eq!(steps(&mesh), ["0", "1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_fault_can_depend_on_a_typed_input() {
    let mesh = mesh().await;
    let odd = |input: &Measure| input.number % 2 == 1;
    mesh.fault("worker", Fault::Error(Failure::of(ErrorKind::Unavailable)).always().when(odd));
    let each = mesh.context().call_all((0..4).map(measure)).each().await;
    assert_eq!(each.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_never_waits_ends_at_the_deadline_all_the_same() {
    let greedy = arm_fn(|_: Charge, _| async {
        loop {
            // Time passes only where nothing waits: it is moved on by hand.
            tokio::time::advance(ms(20)).await;
            for _ in 0..1_000 {
                tokio::task::coop::consume_budget().await;
            }
        }
    });
    let mesh = Mesh::builder().arm("greedy", greedy).start().await;
    let begun = Instant::now();
    let error = mesh.call(Charge { number: 1 }).within(ms(1_000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(begun.elapsed() < ms(1_200), "{:?}", begun.elapsed());
}
