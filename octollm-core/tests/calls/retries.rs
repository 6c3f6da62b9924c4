//! Further attempts: when, where, and what they cost.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::AtomicU32,
    task::{Context as Poll_, Poll},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    budget::{Budget, Usage},
    contract::{ContractRef, ContractSpec, Keys, Spec, TaskContract},
    error::{ArmError, CallError, ErrorKind, Failure},
    mesh::{Fault, Mesh},
    orchestrator::finished,
    resilience::RetryLayer,
    task::{TaskRequest, TaskResult, TaskStatus},
    transport::{Call, Reply, from_service},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};

use crate::support::*;

/// What a layer of calls wraps.
type Calls = tower::util::BoxCloneSyncService<Call, Reply, CallError>;

async fn flaky(failures: u32) -> Mesh {
    Mesh::builder().arm::<Measure>("flaky", Flaky(AtomicU32::new(failures))).start().await
}

#[tokio::test(start_paused = true)]
async fn attempts_share_one_budget_and_their_use_is_summed() {
    let mesh = flaky(2).await;
    let cx = limited(&mesh, Budget::tokens(130), None);
    let seen = cx.call(measure(1)).retry(2).await.unwrap();
    assert_eq!((seen.attempt, seen.tokens), (3, Some(50)));
    assert_eq!(cx.used(), Usage::tokens(120));
    let ids: std::collections::HashSet<_> = mesh.calls().iter().map(|call| call.request_id.clone()).collect();
    assert_eq!((ids.len(), steps(&mesh)), (3, vec!["0".into(), "0".into(), "0".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_ends_the_attempts_with_what_all_of_them_used() {
    let mesh = flaky(9).await;
    let error = mesh.call(measure(1)).retry(5).budget(Budget::tokens(80)).await.unwrap_err();
    assert_eq!((error.kind(), error.usage()), (ErrorKind::Unavailable, Usage::tokens(80)));
    assert_eq!(mesh.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn attempts_and_waits_end_within_the_time() {
    let mesh = mesh().await;
    let begun = Instant::now();
    mesh.fault("worker", Fault::Hang.once());
    let error = mesh.call(measure(1)).retry(3).within(ms(500)).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::DeadlineExceeded, ms(500)));
    // What asks to wait longer than there is time fails at once.
    let mut busy = Failure::of(ErrorKind::Overloaded);
    busy.retry_after = Some(Duration::from_secs(5));
    mesh.fault("worker", Fault::Error(busy.clone()).once());
    let begun = Instant::now();
    let error = mesh.call(measure(1)).retry(3).within(ms(4_900)).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::Overloaded, Duration::ZERO));
    mesh.fault("worker", Fault::Error(busy).once());
    assert_eq!(mesh.call(measure(1)).retry(3).within(ms(5_100)).await.unwrap().attempt, 2);
    assert_eq!(begun.elapsed(), ms(5_000));
}

#[tokio::test(start_paused = true)]
async fn only_what_is_safe_is_sent_again() {
    let mesh = mesh().await;
    mesh.fault("worker", Fault::Crash.once());
    assert_eq!(mesh.call(measure(1)).retry(1).await.unwrap().attempt, 2);
    // It may have been charged.
    mesh.fault("worker", Fault::Crash.once());
    let error = mesh.call(Charge { number: 1 }).retry(1).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::ConnectionLost, true));
    // It was not even begun.
    mesh.fault("worker", Fault::error(ErrorKind::Unreachable).once());
    assert_eq!(mesh.call(Charge { number: 7 }).retry(1).await.unwrap(), 7);
    assert_eq!(mesh.calls_of::<Charge>().len(), 3);
    // Nobody asked for it.
    mesh.fault("worker", Fault::error(ErrorKind::Unreachable).once());
    assert_eq!(mesh.call(measure(1)).await.unwrap_err().kind(), ErrorKind::Unreachable);
}

/// The caller's idea of `work.measure`, which the arm's card calls idempotent: here it is not.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Cautious {
    number: u64,
    ms: u64,
    spends: Spends,
}

impl TaskContract for Cautious {
    type Output = Seen;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("work.measure", "/measure", "work:measure");
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_facts_decide_and_not_the_card() {
    let mesh = mesh().await;
    assert!(
        mesh.context().cards().await[0]
            .contracts
            .iter()
            .any(|card| card.name == "work.measure" && card.idempotent)
    );
    mesh.fault("worker", Fault::DropReply.always());
    let cautious = Cautious { number: 1, ms: 0, spends: Spends::Nothing };
    let error = mesh.call(cautious).retry(3).await.unwrap_err();
    assert!(error.may_have_executed());
    assert_eq!(mesh.calls().len(), 1);
    let contract: ContractRef = "work.measure".parse().unwrap();
    let call = || mesh.context().call_json(&contract, &json!(measure(1))).retry(1);
    let count = || mesh.calls().len();
    call().await.unwrap_err();
    assert_eq!(count(), 2, "no facts, no second attempt");
    let spec = Spec::new(contract.clone());
    call().spec(spec.clone()).await.unwrap_err();
    assert_eq!(count(), 3, "not idempotent by default");
    call().spec(spec.idempotent()).await.unwrap_err();
    assert_eq!(count(), 5);
}

#[tokio::test(start_paused = true)]
async fn another_attempt_goes_to_another_arm() {
    let mesh = Mesh::builder().arm::<Measure>("first", Worker).arm::<Measure>("second", Worker).start().await;
    mesh.fault("first", Fault::error(ErrorKind::Unavailable).always());
    mesh.fault("second", Fault::error(ErrorKind::Unavailable).once());
    let error = mesh.call(measure(1)).retry(2).await.unwrap_err();
    assert_eq!(error.arm(), Some("first"));
    let arms: Vec<_> = mesh.calls().iter().map(|call| call.arm.clone()).collect();
    assert_eq!(arms, ["first", "second", "first"], "never the same one twice running");
    assert_eq!(mesh.call(measure(1)).retry(1).await.unwrap().attempt, 2);
}

/// A layer of a user's own: each call is made at the arm that the last one was not made at.
#[derive(Clone)]
struct Elsewhere;

#[derive(Clone)]
struct ElsewhereService(Calls);

impl Layer<Calls> for Elsewhere {
    type Service = ElsewhereService;

    fn layer(&self, service: Calls) -> ElsewhereService {
        ElsewhereService(service)
    }
}

impl Service<Call> for ElsewhereService {
    type Response = Reply;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Poll_<'_>) -> Poll<Result<(), CallError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let (first, again) = (self.0.call(call.clone()), self.0.clone());
        Box::pin(async move {
            let Err(error) = first.await else { return again.oneshot(call).await };
            let mut call = call;
            call.avoid.extend(error.endpoint().map(Into::into));
            again.oneshot(call).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_of_a_users_own_stands_above_the_choice_of_an_arm() {
    let mesh = Mesh::builder()
        .arm::<Charge>("first", Worker)
        .arm::<Charge>("second", Worker)
        .layer(Elsewhere)
        .start()
        .await;
    mesh.fault("first", Fault::Crash.once());
    assert_eq!(mesh.call(Charge { number: 3 }).await.unwrap(), 3);
    let arms: Vec<_> = mesh.calls().iter().map(|call| call.arm.clone()).collect();
    assert_eq!(arms, ["first", "second"]);
    // Whatever a layer does, the call ends in time.
    mesh.fault("second", Fault::Hang.always());
    mesh.fault("first", Fault::Slow(ms(400)).always());
    let begun = Instant::now();
    mesh.call(Charge { number: 3 }).within(ms(500)).await.unwrap_err();
    assert_eq!(begun.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn a_retry_layer_around_calls_that_ask_for_attempts_does_not_multiply_them() {
    let flaky = Flaky(AtomicU32::new(u32::MAX));
    let mesh = Mesh::builder().arm::<Measure>("flaky", flaky).layer(RetryLayer::default()).start().await;
    assert_eq!(mesh.call(measure(1)).await.unwrap_err().attempts(), 3);
    for (retries, attempts) in [(0, 1), (2, 3), (4, 5)] {
        mesh.forget_calls();
        let error = mesh.call(measure(1)).retry(retries).await.unwrap_err();
        assert_eq!((error.attempts(), mesh.calls().len()), (attempts, attempts as usize), "{retries}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_makes_as_many_retries_as_it_says_and_a_wait_of_zero_is_none() {
    for retries in [0, 1, 6] {
        let flaky = Flaky(AtomicU32::new(u32::MAX));
        let none = Duration::ZERO;
        let layer = RetryLayer::new().retries(retries).backoff(none).throttled_backoff(none);
        let mesh = Mesh::builder().arm::<Measure>("flaky", flaky).layer(layer).start().await;
        let begun = Instant::now();
        let error = mesh.call(measure(1)).await.unwrap_err();
        assert_eq!((error.attempts(), begun.elapsed()), (retries + 1, Duration::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn any_transport_can_have_layers_and_keys_make_a_call_safe() {
    let mesh = mesh().await;
    mesh.fault("worker", Fault::DropReply.once());
    let layer = RetryLayer::default().keys_honoured(|call| match call.contract.name() {
        "work.charge" => Keys::Shared,
        _ => Keys::None,
    });
    let service = layer.layer(mesh.transport());
    let transport = std::sync::Arc::new(from_service(service, mesh.transport()));
    // Without a key it is not safe, whatever the arm honours.
    let cx = Context::root(transport);
    assert_eq!(cx.call(Charge { number: 1 }).await.unwrap_err().kind(), ErrorKind::ConnectionLost);
    mesh.fault("worker", Fault::DropReply.times(2));
    assert_eq!(cx.call(measure(1)).await.unwrap().attempt, 3, "three attempts by default");
    assert_eq!(cx.cards().await.len(), 1);
}

/// Measures with retries, waits, and measures again.
struct Stubborn;

#[async_trait]
impl Arm<TaskRequest> for Stubborn {
    async fn execute(&self, _: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let first = cx.call(measure(1)).retry(2).named("first").await?;
        let second = cx.call(measure(2).taking(5_000)).retry(1).await?;
        Ok(TaskResult::new(json!([first.attempt, second.number])))
    }
}

#[tokio::test(start_paused = true)]
async fn all_attempts_are_one_step_of_a_journal() {
    let mesh = builder().brain(Stubborn).start().await;
    mesh.fault("worker", Fault::Crash.times(2));
    let task = mesh.submit(TaskRequest::new("go")).await.unwrap();
    tokio::time::sleep(ms(2_000)).await;
    mesh.crash_brain().await.unwrap();
    let task = finished(&mesh.brain(), &task.task_id, &mesh.context()).await.unwrap();
    assert_eq!(task.status, TaskStatus::Completed, "{task:?}");
    assert_eq!(task.result.unwrap().output, json!([3, 2]));
    assert_eq!(steps(&mesh), ["first", "first", "first", "0", "0"]);
}

#[tokio::test(start_paused = true)]
async fn only_the_hop_beside_a_failure_tries_again() {
    let mesh = mesh().await;
    mesh.fault("worker", Fault::error(ErrorKind::Unavailable).always().on::<Measure>());
    let error = mesh.call(MeasureMany { times: 1 }).retry(5).await.unwrap_err();
    assert!(!error.retryable());
    assert_eq!((mesh.calls_of::<MeasureMany>().len(), mesh.calls_of::<Measure>().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_last_error_counts_all_attempts() {
    let mesh = flaky(9).await;
    let error = mesh.call(measure(1)).retry(2).await.unwrap_err();
    assert_eq!((error.attempts(), error.usage()), (3, Usage::tokens(120)));
}

/// Spends tokens and fails at its first attempt, reports a handle, and hangs at the second.
#[derive(Clone)]
struct Reports;

impl Service<Call> for Reports {
    type Response = Reply;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Poll_<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        Box::pin(async move {
            match &call.handle {
                None => {
                    let sink = call.updates.clone().unwrap();
                    sink.handle("job-7".to_owned()).await.unwrap();
                    let failure = Failure::of(ErrorKind::Unavailable);
                    Err(CallError::new(call.contract, failure).with_usage(Usage::tokens(40)))
                }
                Some(handle) if call.parts.deadline.is_some_and(|until| until.remaining() > ms(10_000)) => {
                    Ok(Reply::new(json!(handle.as_str()).to_string().into(), "", ""))
                }
                Some(_) => std::future::pending().await,
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_has_the_handle_of_the_one_before() {
    let service = RetryLayer::default().layer(Reports);
    let cx = Context::root(std::sync::Arc::new(from_service(service, mesh().await.transport())));
    let contract: ContractRef = "work.measure".parse().unwrap();
    assert_eq!(cx.call_json(&contract, &json!({})).await.unwrap(), "job-7");
    assert_eq!(cx.used(), Usage::tokens(40));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_during_a_further_attempt_leaves_what_was_used() {
    let service = RetryLayer::default().layer(Reports);
    let cx = Context::root(std::sync::Arc::new(from_service(service, mesh().await.transport())));
    let error = cx.call(measure(1)).within(ms(5_000)).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::DeadlineExceeded, 2));
    // What the second attempt has used nobody says.
    let used = Usage::tokens(40).plus(Usage::UNMETERED);
    assert_eq!((error.usage(), cx.used()), (used, used));
}
