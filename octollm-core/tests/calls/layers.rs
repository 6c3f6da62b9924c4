//! The layers of `resilience` around calls: circuit breakers, hedges, bulkheads, time limits, and the retry budget.

use std::{
    collections::VecDeque,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context as Poll_, Poll},
    time::Duration,
};

use octollm_core::{
    Context,
    budget::Usage,
    contract::{ContractRef, Spec},
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    explain::CallEvent,
    id::StepKey,
    mesh::{Fault, Mesh},
    parts::ContextParts,
    resilience::{
        BreakerLayer, BreakerState, BulkheadLayer, HedgeLayer, RetryBudget, RetryLayer, TimeoutLayer,
    },
    transport::{Call, Reply},
};
use serde_json::json;
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimit};

use crate::support::*;

/// Answers each call as the next entry of its script does, and the last entry goes on. It counts its calls.
#[derive(Clone, Default)]
struct Scripted(Arc<Script>);

#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    calls: AtomicU32,
    running: AtomicU32,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Ok(u64),
    Fails(ErrorKind),
    Hangs,
}

impl Scripted {
    fn of(answers: impl IntoIterator<Item = Answer>) -> Self {
        let scripted = Self::default();
        scripted.script(answers);
        scripted
    }

    fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        *self.0.answers.lock().unwrap() = answers.into_iter().collect();
    }

    fn calls(&self) -> u32 {
        self.0.calls.load(Ordering::SeqCst)
    }

    fn running(&self) -> u32 {
        self.0.running.load(Ordering::SeqCst)
    }
}

struct Running(Arc<Script>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service<Call> for Scripted {
    type Response = Reply;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Poll_<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        self.0.running.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.0.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0] };
        let running = Running(self.0.clone());
        Box::pin(async move {
            let _running = running;
            match answer {
                Answer::Ok(after) => {
                    tokio::time::sleep(ms(after)).await;
                    Ok(Reply::new("1".into(), "judge", "http://judge").with_usage(Usage::tokens(10)))
                }
                Answer::Fails(kind) => {
                    Err(CallError::new(call.contract, Failure::of(kind)).with_endpoint("http://judge"))
                }
                Answer::Hangs => pending().await,
            }
        })
    }
}

fn call() -> Call {
    let contract: ContractRef = "work.measure".parse().unwrap();
    let mut call = Call::new(contract.clone(), StepKey::Order(0), "{}".into(), ContextParts::new());
    call.spec = Some(Spec::new(contract).idempotent());
    call
}

async fn send<S: Service<Call, Response = Reply, Error = CallError> + Clone>(
    service: &S,
) -> Result<Reply, CallError> {
    service.clone().oneshot(call()).await
}

async fn kind<S: Service<Call, Response = Reply, Error = CallError> + Clone>(service: &S) -> ErrorKind {
    send(service).await.unwrap_err().kind()
}

const DOWN: Answer = Answer::Fails(ErrorKind::ConnectionLost);

#[tokio::test(start_paused = true)]
async fn fault_20_an_open_breaker_is_ready_and_rejects_and_one_call_is_its_probe() {
    let scripted = Scripted::of([DOWN]);
    let states = Arc::new(Mutex::new(Vec::new()));
    let seen = states.clone();
    let layer = BreakerLayer::new().on_transition(move |state| seen.lock().unwrap().push(state));
    let mut service = layer.layer(scripted.clone());
    for _ in 0..5 {
        assert_eq!(kind(&service).await, ErrorKind::ConnectionLost);
    }
    assert!(service.ready().await.is_ok());
    let error = send(&service).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_executed()), (ErrorKind::CircuitOpen, false));
    let wait = error.retry_after().unwrap();
    assert!(wait <= ms(1_000) && wait >= ms(750), "{wait:?}");
    advance(wait).await;
    scripted.script([Answer::Ok(100)]);
    let many = futures_util::future::join_all((0..1_000).map(|_| send(&service))).await;
    assert_eq!((many.iter().filter(|answer| answer.is_ok()).count(), scripted.calls()), (1, 6));
    assert!(send(&service).await.is_ok());
    let states = states.lock().unwrap().clone();
    assert!(
        matches!(states[..], [BreakerState::Open { .. }, BreakerState::HalfOpen, BreakerState::Closed]),
        "{states:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn fault_21_a_probe_that_is_dropped_or_hangs_or_is_answered_with_a_4xx_leaves_nothing_half_open() {
    let scripted = Scripted::of([DOWN]);
    let service = BreakerLayer::default().layer(scripted.clone());
    for _ in 0..5 {
        send(&service).await.unwrap_err();
    }
    advance(ms(1_000)).await;
    scripted.script([Answer::Hangs]);
    // One that is cancelled gives its place back at once.
    for _ in 0..3 {
        assert!(tokio::time::timeout(ms(10), send(&service)).await.is_err());
    }
    assert_eq!(scripted.calls(), 8);
    // One that hangs loses it.
    let mut hangs = Box::pin(send(&service));
    assert!(futures_util::FutureExt::now_or_never(hangs.as_mut()).is_none());
    assert_eq!(kind(&service).await, ErrorKind::CircuitOpen);
    advance(ms(2_000)).await;
    scripted.script([Answer::Fails(ErrorKind::ValidationFailed)]);
    assert_eq!(kind(&service).await, ErrorKind::ValidationFailed);
    scripted.script([Answer::Ok(0)]);
    assert!(send(&service).await.is_ok(), "the 4xx has closed it");
    drop(hangs);
    assert!(send(&service).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn fault_15_seven_answers_of_429_leave_the_breaker_closed() {
    let scripted = Scripted::of([Answer::Fails(ErrorKind::RateLimited)]);
    let service = BreakerLayer::default().layer(scripted.clone());
    for _ in 0..7 {
        assert_eq!(kind(&service).await, ErrorKind::RateLimited);
    }
    assert_eq!(scripted.calls(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_retried_after_its_wait_and_not_at_once() {
    let scripted = Scripted::of([DOWN]);
    let breaker = BreakerLayer::default().layer(scripted.clone());
    for _ in 0..5 {
        send(&breaker).await.unwrap_err();
    }
    scripted.script([Answer::Ok(0)]);
    let service = RetryLayer::default().layer(breaker);
    let begun = Instant::now();
    assert_eq!(send(&service).await.unwrap().attempts, 2);
    assert!(begun.elapsed() >= ms(750) && begun.elapsed() <= ms(1_001), "{:?}", begun.elapsed());
    assert_eq!(scripted.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn fault_16_retries_of_a_target_that_always_fails_are_a_fifth_of_the_calls_and_ten_a_second() {
    let scripted = Scripted::of([Answer::Fails(ErrorKind::Unavailable)]);
    let service = RetryLayer::new().layer(scripted.clone());
    // 100 calls a second, for a minute.
    let (begun, mut calls) = (Instant::now(), Vec::new());
    for _ in 0..6_000 {
        let service = service.clone();
        calls.push(tokio::spawn(async move { send(&service).await }));
        tokio::time::sleep(ms(10)).await;
    }
    for call in calls {
        call.await.unwrap().unwrap_err();
    }
    let most = 1.2 * 6_000.0 + 10.0 * begun.elapsed().as_secs_f64() + 100.0;
    let sent = scripted.calls();
    assert!(f64::from(sent) <= most && sent > 7_000, "{sent} of {most}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_the_budget_refuses_fails_with_what_failed() {
    let scripted = Scripted::of([Answer::Fails(ErrorKind::Unavailable)]);
    let service = RetryLayer::new().retries(5).budget(RetryBudget::new(0, 0)).layer(scripted.clone());
    let error = send(&service).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts(), scripted.calls()), (ErrorKind::Unavailable, 2, 2));
    let error = send(&service).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts(), scripted.calls()), (ErrorKind::Unavailable, 1, 3));
    let free = RetryLayer::new().retries(5).without_budget().layer(scripted.clone());
    assert_eq!(send(&free).await.unwrap_err().attempts(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_large_input_is_stored_only_where_the_call_asks_for_attempts() {
    let scripted = Scripted::of([Answer::Fails(ErrorKind::Unavailable)]);
    let service = RetryLayer::default().layer(scripted.clone());
    let with = |bytes: usize, retry: Option<u32>| {
        let mut call = call();
        (call.input, call.retry) = (vec![b' '; bytes].into(), retry);
        service.clone().oneshot(call)
    };
    for (bytes, retry, attempts) in
        [(64 << 10, None, 3), ((64 << 10) + 1, None, 1), (1 << 20, Some(1), 2), (1 << 20, Some(4), 5)]
    {
        assert_eq!(with(bytes, retry).await.unwrap_err().attempts(), attempts, "{bytes} {retry:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fault_17_a_retry_layer_below_another_makes_one_attempt() {
    let scripted = Scripted::of([Answer::Fails(ErrorKind::Unavailable)]);
    let layers = ServiceBuilder::new()
        .layer(RetryLayer::default())
        .layer(RetryLayer::default())
        .layer(RetryLayer::default());
    let service = layers.service(scripted.clone());
    assert_eq!((send(&service).await.unwrap_err().attempts(), scripted.calls()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_late_call_is_hedged_within_the_budget_and_the_loser_is_cancelled() {
    let scripted = Scripted::of([Answer::Ok(20)]);
    let service = HedgeLayer::new().budget(RetryBudget::new(0, 0)).layer(scripted.clone());
    for _ in 0..20 {
        send(&service).await.unwrap();
    }
    assert_eq!(scripted.calls(), 20);
    scripted.script([Answer::Hangs, Answer::Ok(5), Answer::Ok(200)]);
    let begun = Instant::now();
    let reply = send(&service).await.unwrap();
    assert_eq!((reply.attempts, reply.usage), (2, Usage::tokens(10).plus(Usage::UNMETERED)));
    assert!(begun.elapsed() >= ms(25) && begun.elapsed() <= ms(32), "{:?}", begun.elapsed());
    assert_eq!((scripted.calls(), scripted.running()), (22, 0));
    // The budget had one token: 200 late calls make 200 attempts.
    futures_util::future::join_all((0..200).map(|_| send(&service))).await;
    assert_eq!(scripted.calls(), 222);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_idempotent_or_fails_at_once_is_not_hedged() {
    let scripted = Scripted::of([Answer::Ok(20)]);
    let service = HedgeLayer::new().layer(scripted.clone());
    for _ in 0..20 {
        send(&service).await.unwrap();
    }
    scripted.script([Answer::Ok(500)]);
    let mut once = call();
    once.spec = None;
    service.clone().oneshot(once).await.unwrap();
    assert_eq!(scripted.calls(), 21);
    scripted.script([DOWN]);
    assert_eq!(kind(&service).await, ErrorKind::ConnectionLost);
    assert_eq!(scripted.calls(), 22);
    // Where the first fails after the second was sent, the second counts.
    scripted.script([Answer::Hangs, DOWN]);
    assert!(tokio::time::timeout(ms(100), send(&service)).await.is_err());
    assert_eq!((scripted.calls(), scripted.running()), (24, 0));
}

#[tokio::test(start_paused = true)]
async fn fault_22_a_hedge_goes_to_another_endpoint() {
    let mesh = Mesh::builder()
        .arm::<Measure>("first", Worker)
        .arm::<Measure>("second", Worker)
        .layer(HedgeLayer::new())
        .start()
        .await;
    for number in 0..20 {
        mesh.call(measure(number)).await.unwrap();
    }
    mesh.forget_calls();
    mesh.fault("first", Fault::Hang.always());
    let (answer, steps) = mesh.context().call(measure(1)).explained().await;
    answer.unwrap();
    let arms: Vec<_> = mesh.calls().iter().map(|call| call.arm.clone()).collect();
    assert_eq!(arms, ["first", "second"]);
    let kinds: Vec<_> = steps
        .iter()
        .map(|(_, what)| match what {
            CallEvent::Sent { arm, attempt, .. } => format!("{arm} {attempt}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["first 1", "Hedged", "second 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_refuses_at_once_or_after_a_wait_and_places_come_back_on_drop() {
    let scripted = Scripted::of([Answer::Ok(100)]);
    let mut service = BulkheadLayer::new(2).layer(scripted.clone());
    let hung: Vec<_> = (0..2).map(|_| Box::pin(send(&service))).collect();
    let answers = futures_util::future::join_all((0..3).map(|_| send(&service))).await;
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err()).collect::<Vec<_>>();
    assert_eq!((refused.len(), scripted.calls()), (1, 2));
    assert_eq!((refused[0].kind(), refused[0].may_have_executed()), (ErrorKind::Overloaded, false));
    // A future that was not polled holds no place; one that was gives it back when it is dropped.
    drop(hung);
    for _ in 0..10 {
        let mut running: Vec<_> = (0..2).map(|_| Box::pin(service.call(call()))).collect();
        assert!(running.iter_mut().all(|call| futures_util::FutureExt::now_or_never(call).is_none()));
        assert_eq!(kind(&service).await, ErrorKind::Overloaded);
    }
    assert_eq!(scripted.running(), 0);
    // With a wait, as many wait as run.
    let waiting = BulkheadLayer::new(2).wait(ms(50)).layer(scripted.clone());
    let begun = Instant::now();
    let answers = futures_util::future::join_all((0..5).map(|_| send(&waiting))).await;
    assert_eq!((answers.iter().filter(|answer| answer.is_ok()).count(), begun.elapsed()), (2, ms(100)));
    let patient = BulkheadLayer::new(2).wait(ms(150)).layer(scripted.clone());
    let answers = futures_util::future::join_all((0..5).map(|_| send(&patient))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
    assert_eq!(kind(&BulkheadLayer::new(0).wait(ms(50)).layer(scripted)).await, ErrorKind::Overloaded);
}

/// Never answers. When a call is dropped the function runs.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<Option<AtDrop>>>);

type AtDrop = Box<dyn FnOnce() + Send>;

impl Drop for Watched {
    fn drop(&mut self) {
        let at_drop = self.0.lock().unwrap().take();
        at_drop.into_iter().for_each(|at_drop| at_drop());
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_of_a_bulkhead_comes_back_after_the_call_has_been_dropped() {
    let watched = Watched::default();
    let inner = {
        let watched = watched.0.clone();
        tower::service_fn(move |_: Call| {
            let running = Watched(watched.clone());
            async move {
                let _running = running;
                pending::<Result<Reply, CallError>>().await
            }
        })
    };
    // None may wait, so that a call without a place is refused at once.
    let service = BulkheadLayer::new(1).wait(Duration::from_secs(9)).max_waiting(0).layer(inner);
    for _ in 0..3 {
        let mut running = Box::pin(service.clone().call(call()));
        assert!(futures_util::FutureExt::now_or_never(&mut running).is_none(), "it has the place");
        let (mut other, refused) = (service.clone(), Arc::new(Mutex::new(None)));
        let seen = refused.clone();
        *watched.0.lock().unwrap() = Some(Box::new(move || {
            let answer = futures_util::FutureExt::now_or_never(other.call(call()));
            *seen.lock().unwrap() = answer.map(|answer| answer.unwrap_err().kind());
        }));
        drop(running);
        assert_eq!(*refused.lock().unwrap(), Some(ErrorKind::Overloaded), "until the call is gone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_and_a_hedge_that_share_a_budget_count_each_call_once() {
    for (shared, left) in [(true, 10), (false, 10)] {
        let scripted = Scripted::of([Answer::Ok(0)]);
        let budget = RetryBudget::default();
        while budget.withdraw(Instant::now()) {}
        let hedge = HedgeLayer::new().budget(budget.clone());
        let retry = if shared { RetryLayer::new().budget(budget.clone()) } else { RetryLayer::new() };
        let service = ServiceBuilder::new().layer(retry).layer(hedge).service(scripted.clone());
        for number in 0..50 {
            let mut call = call();
            call.retry = (number % 2 == 0).then_some(0);
            service.clone().oneshot(call).await.unwrap();
        }
        assert_eq!(budget.left(Instant::now()), left, "{shared}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_retries_ends_at_its_deadline_too() {
    for (retries, asked) in [(0, None), (2, Some(0)), (2, None)] {
        let scripted = Scripted::of([Answer::Hangs]);
        let service = RetryLayer::new().retries(retries).layer(scripted.clone());
        let (mut call, begun) = (call(), Instant::now());
        (call.retry, call.parts.deadline) = (asked, Some(Deadline::after(ms(500))));
        let error = service.oneshot(call).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (ErrorKind::DeadlineExceeded, ms(500)));
        assert_eq!(
            (error.may_have_executed(), error.usage(), scripted.running()),
            (true, Usage::UNMETERED, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_ends_each_attempt_and_the_call_may_have_executed() {
    let scripted = Scripted::of([Answer::Hangs, Answer::Ok(10)]);
    let service = ServiceBuilder::new()
        .layer(RetryLayer::default())
        .layer(TimeoutLayer::new(ms(100)))
        .service(scripted.clone());
    let reply = send(&service).await.unwrap();
    assert_eq!((reply.attempts, scripted.running()), (2, 0));
    // What the first has used is not known.
    assert_eq!(reply.usage, Usage::tokens(10).plus(Usage::UNMETERED));
    let hanging = TimeoutLayer::new(ms(100)).layer(Scripted::of([Answer::Hangs]));
    let error = send(&hanging).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.may_have_executed(), error.usage()),
        (ErrorKind::Timeout, true, Usage::UNMETERED)
    );
}

/// Is ready only where it was polled, and panics where a clone is called that was not.
#[derive(Debug, Default)]
struct PolledFirst(bool);

impl Clone for PolledFirst {
    fn clone(&self) -> Self {
        Self(false)
    }
}

impl Service<Call> for PolledFirst {
    type Response = Reply;
    type Error = CallError;
    type Future = std::future::Ready<Result<Reply, CallError>>;

    fn poll_ready(&mut self, _: &mut Poll_<'_>) -> Poll<Result<(), CallError>> {
        self.0 = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        assert!(std::mem::take(&mut self.0), "it was not polled");
        let failure = Failure::of(ErrorKind::Unavailable);
        std::future::ready(Err(CallError::new(call.contract, failure)))
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    let service = ServiceBuilder::new()
        .layer(RetryLayer::default())
        .layer(BulkheadLayer::new(1).wait(Duration::from_secs(9)))
        .layer(HedgeLayer::new())
        .layer(BreakerLayer::new().failures(99))
        .layer(TimeoutLayer::new(ms(100)))
        .service(PolledFirst::default());
    let answers = futures_util::future::join_all((0..2).map(|_| send(&service))).await;
    assert_eq!(answers.into_iter().map(|answer| answer.unwrap_err().attempts()).collect::<Vec<_>>(), [3, 3]);
}

/// One call at a time, and the others wait until it is ready.
fn one_at_a_time<S>(service: S) -> ConcurrencyLimit<S> {
    ConcurrencyLimit::new(service, 1)
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_rejects_is_ready_where_the_service_below_is_not() {
    let scripted = Scripted::of([DOWN]);
    let limited = one_at_a_time(scripted.clone());
    let breaker = BreakerLayer::new().failures(1).layer(limited.clone());
    assert_eq!(kind(&breaker).await, ErrorKind::ConnectionLost);
    let mut holding = limited.clone();
    holding.ready().await.unwrap();
    let answer = futures_util::FutureExt::now_or_never(send(&breaker)).expect("an open breaker is ready");
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::CircuitOpen);
    // A call that is admitted all the same waits for the place.
    let mut polled = breaker.clone();
    polled.ready().await.unwrap();
    advance(ms(1_000)).await;
    scripted.script([Answer::Ok(0)]);
    let mut probe = Box::pin(polled.call(call()));
    assert!(futures_util::FutureExt::now_or_never(&mut probe).is_none());
    drop(holding);
    assert!(probe.await.is_ok());

    let scripted = Scripted::of([Answer::Hangs]);
    let bulkhead = BulkheadLayer::new(1).layer(one_at_a_time(scripted));
    let mut hung = Box::pin(send(&bulkhead));
    assert!(futures_util::FutureExt::now_or_never(&mut hung).is_none());
    let answer = futures_util::FutureExt::now_or_never(send(&bulkhead)).expect("a full bulkhead is ready");
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_rejected_reserves_nothing_below() {
    let scripted = Scripted::of([Answer::Ok(0)]);
    let limited = one_at_a_time(scripted.clone());
    let is_free = || futures_util::FutureExt::now_or_never(limited.clone().ready()).is_some();

    // Polled while a probe was due, and called once that runs.
    let breaker = BreakerLayer::new().failures(1).layer(limited.clone());
    scripted.script([DOWN, Answer::Ok(0)]);
    assert_eq!(kind(&breaker).await, ErrorKind::ConnectionLost);
    advance(ms(1_000)).await;
    let mut idle = breaker.clone();
    idle.ready().await.unwrap();
    assert!(!is_free(), "the place of the call that follows");
    let mut probe = Box::pin(breaker.clone().call(call()));
    assert!(futures_util::FutureExt::now_or_never(&mut probe).is_none());
    assert_eq!(idle.call(call()).await.unwrap_err().kind(), ErrorKind::CircuitOpen);
    assert!(probe.await.is_ok(), "an idle service has no place");

    let bulkhead = BulkheadLayer::new(0).layer(limited.clone());
    let mut idle = bulkhead.clone();
    assert_eq!(idle.ready().await.unwrap().call(call()).await.unwrap_err().kind(), ErrorKind::Overloaded);
    assert!(is_free());
}

#[tokio::test(start_paused = true)]
async fn explained_returns_the_steps_of_a_call() {
    let mesh = Mesh::builder().arm::<Measure>("first", Worker).arm::<Measure>("second", Worker).start().await;
    mesh.fault("first", Fault::error(ErrorKind::Unavailable).once());
    let (answer, steps) = mesh.context().call(measure(1)).retry(2).explained().await;
    assert_eq!(answer.unwrap().attempt, 2);
    let what: Vec<_> = steps.iter().map(|(_, what)| what).collect();
    let [
        CallEvent::Sent { arm: one, .. },
        CallEvent::Failed { kind, endpoint },
        CallEvent::Retried { after, .. },
        CallEvent::Sent { arm: other, attempt: 2, .. },
    ] = &what[..]
    else {
        panic!("{what:?}")
    };
    assert_eq!((&**one, &**other, *kind), ("first", "second", ErrorKind::Unavailable));
    assert_eq!(endpoint.as_deref(), Some("in-process/first"));
    assert!(*after <= ms(50) && steps[3].0 >= *after);
    // A call that is refused before it is sent has no steps.
    let contract: ContractRef = "work.measure".parse().unwrap();
    let (refused, steps) =
        Context::detached().call_json(&contract, &json!({})).within(Duration::ZERO).explained().await;
    assert_eq!((refused.unwrap_err().kind(), steps.len()), (ErrorKind::DeadlineExceeded, 0));
}
