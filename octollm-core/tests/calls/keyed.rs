//! Calls with an idempotency key: each runs once, whatever happens around it.

use std::{
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use octollm_core::{
    Context,
    arm::arm_fn,
    budget::Usage,
    contract::{Keys, TaskContract},
    dispatcher::Dispatcher,
    error::{ArmError, ErrorKind, Failure},
    id::IdempotencyKey,
    idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun, MemoryIdempotencyStore},
    parts::{Caller, ContextParts},
};
use tokio::time::{advance, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

/// An arm that charges, counts how often it has begun, and ends as the number in its input says.
fn payments(store: impl IdempotencyStore) -> (Dispatcher, Arc<AtomicU32>) {
    let runs = Arc::new(AtomicU32::new(0));
    let count = runs.clone();
    let mut dispatcher = Dispatcher::new("payments");
    dispatcher.idempotency(store);
    dispatcher.serve::<Charge>(arm_fn(move |input: Charge, cx| {
        let count = count.clone();
        async move {
            let run = count.fetch_add(1, SeqCst) + 1;
            cx.spend(Usage::tokens(7))?;
            match input.number {
                FAILS => return Err(ArmError::failed("no money")),
                FAILS_FOR_NOW => return Err(ArmError::failed("not now").retryable()),
                PANICS => panic!("half way"),
                SLOW => sleep(SECOND).await,
                HANGS => pending().await,
                _ => {}
            }
            Ok(input.number * 1_000 + u64::from(run))
        }
    }));
    dispatcher.serve::<Measure>(Worker);
    (dispatcher, runs)
}

const FAILS: u64 = 1;
const FAILS_FOR_NOW: u64 = 2;
const PANICS: u64 = 3;
const SLOW: u64 = 4;
const HANGS: u64 = 5;

fn keyed(key: &str) -> ContextParts {
    let mut parts = ContextParts::new();
    parts.key = IdempotencyKey::new(key);
    parts
}

fn by(caller: Caller) -> ContextParts {
    let mut parts = keyed("k");
    parts.caller = caller;
    parts
}

fn repeated(key: &str) -> ContextParts {
    let mut parts = keyed(key);
    parts.repeated = true;
    parts
}

/// The output or the failure, and the context.
async fn charge(arm: &Dispatcher, parts: ContextParts, number: u64) -> (Result<Bytes, Failure>, Context) {
    let mut cx = Context::from_parts(parts, Arc::new(()));
    let input = format!("{{\"number\":{number}}}");
    let answer = arm.execute(&Charge::SPEC.reference(), input.as_bytes(), &mut cx).await;
    (answer.map_err(ArmError::into_failure), cx)
}

async fn kind(arm: &Dispatcher, parts: ContextParts, number: u64) -> Option<ErrorKind> {
    charge(arm, parts, number).await.0.err().map(|failure| failure.kind)
}

#[tokio::test(start_paused = true)]
async fn two_calls_at_once_with_one_key_run_once() {
    let (arm, runs) = payments(MemoryIdempotencyStore::new());
    let ((first, cx), (second, _)) =
        tokio::join!(charge(&arm, keyed("k"), SLOW), charge(&arm, keyed("k"), SLOW));
    assert_eq!((first.unwrap(), cx.used(), cx.is_replayed()), ("4001".into(), Usage::tokens(7), false));
    let running = second.unwrap_err();
    assert_eq!((running.kind, running.retry_after), (ErrorKind::Conflict, Some(SECOND)));
    assert!(running.retryable && running.may_have_executed);
    let (replayed, again) = charge(&arm, keyed("k"), SLOW).await;
    assert_eq!(
        (replayed.unwrap(), again.used(), again.is_replayed()),
        ("4001".into(), Usage::tokens(7), true)
    );
    assert_eq!(again.executed(), cx.executed());
    assert_eq!(cx.executed().map(|(_, took)| took), Some(SECOND));
    assert_eq!(runs.load(SeqCst), 1);
}

#[tokio::test]
async fn a_key_is_for_one_input_in_any_form() {
    let (arm, runs) = payments(MemoryIdempotencyStore::new());
    let contract = Charge::SPEC.reference();
    for input in ["{\"number\":9}", " { \"number\" : 9 } "] {
        let mut cx = Context::from_parts(keyed("k"), Arc::new(()));
        assert_eq!(arm.execute(&contract, input.as_bytes(), &mut cx).await.unwrap(), "9001");
    }
    let other = charge(&arm, keyed("k"), 8).await.0.unwrap_err();
    assert_eq!((other.kind, other.may_have_executed), (ErrorKind::ValidationFailed, false));
    assert_eq!(runs.load(SeqCst), 1);
}

#[tokio::test]
async fn another_caller_has_a_record_of_its_own_and_none_without_the_scope() {
    let (arm, runs) = payments(MemoryIdempotencyStore::new());
    let of = |subject: &str, scope: &str| by(Caller::known(subject, [scope]));
    assert_eq!(charge(&arm, of("me", "work:charge"), 9).await.0.unwrap(), "9001");
    assert_eq!(charge(&arm, of("you", "work:charge"), 9).await.0.unwrap(), "9002");
    assert_eq!(charge(&arm, of("me", "work:*"), 9).await.0.unwrap(), "9001");
    assert_eq!(kind(&arm, of("me", "work:measure"), 9).await, Some(ErrorKind::InsufficientScope));
    assert_eq!(kind(&arm, by(Caller::Anonymous), 9).await, Some(ErrorKind::Unauthenticated));
    assert_eq!(runs.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_work_is_replayed_and_one_that_may_be_repeated_releases_the_key() {
    for (number, expected, total) in [
        (FAILS, ErrorKind::ArmFailed, 1),
        (PANICS, ErrorKind::ArmPanicked, 1),
        (HANGS, ErrorKind::DeadlineExceeded, 1),
        (FAILS_FOR_NOW, ErrorKind::ArmFailed, 3),
    ] {
        let (arm, runs) = payments(MemoryIdempotencyStore::new());
        let (first, cx) = charge(&arm, keyed("k"), number).await;
        let first = first.unwrap_err();
        assert_eq!(first.kind, expected);
        for parts in [keyed("k"), repeated("k")] {
            let (again, replay) = charge(&arm, parts, number).await;
            assert_eq!((again.unwrap_err(), replay.used()), (first.clone(), cx.used()));
            assert_eq!(replay.is_replayed(), total == 1);
        }
        assert_eq!(runs.load(SeqCst), total, "{expected}");
    }
    // What is refused before the arm runs leaves nothing.
    let (arm, runs) = payments(MemoryIdempotencyStore::new().max_records(1));
    let contract = Charge::SPEC.reference();
    for key in ["a", "b", "c"] {
        let mut cx = Context::from_parts(keyed(key), Arc::new(()));
        let refused = arm.execute(&contract, b"{\"nimber\":9}", &mut cx).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ValidationFailed);
    }
    assert!(charge(&arm, keyed("a"), 9).await.0.is_ok());
    assert_eq!(runs.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_a_call_that_was_dropped_or_cancelled_is_unknown() {
    for cancels in [false, true] {
        let (arm, runs) = payments(MemoryIdempotencyStore::new());
        let token = CancellationToken::new();
        let mut cx = Context::from_parts(keyed("k"), Arc::new(())).with_cancellation(token.clone());
        let (contract, input) = (Charge::SPEC.reference(), format!("{{\"number\":{HANGS}}}"));
        {
            let mut call = pin!(arm.execute(&contract, input.as_bytes(), &mut cx));
            assert!(timeout(SECOND, &mut call).await.is_err());
            if cancels {
                token.cancel();
                assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Cancelled);
            }
        }
        for parts in [keyed("k"), repeated("k")] {
            let unknown = charge(&arm, parts, HANGS).await.0.unwrap_err();
            assert_eq!((unknown.kind, unknown.may_have_executed), (ErrorKind::OutcomeUnknown, true));
        }
        assert_eq!(runs.load(SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_store_refuses_before_the_arm_runs_until_records_expire() {
    let (arm, runs) = payments(MemoryIdempotencyStore::new().max_records(2));
    assert_eq!(arm.card().contracts[0].keys_retained_s, Some(600));
    for key in ["a", "b"] {
        assert!(charge(&arm, keyed(key), 9).await.0.is_ok());
    }
    let full = charge(&arm, keyed("c"), 9).await.0.unwrap_err();
    assert_eq!((full.kind, full.may_have_executed, runs.load(SeqCst)), (ErrorKind::Overloaded, false, 2));
    assert!(full.retryable && full.retry_after.is_some());
    assert!(charge(&arm, ContextParts::new(), 9).await.0.is_ok(), "a call without a key needs no record");
    assert_eq!(charge(&arm, keyed("a"), 9).await.0.unwrap(), "9001", "it is still replayed");
    advance(Duration::from_secs(599)).await;
    assert_eq!(kind(&arm, keyed("c"), 9).await, Some(ErrorKind::Overloaded));
    advance(SECOND).await;
    assert_eq!(charge(&arm, keyed("c"), 9).await.0.unwrap(), "9004");
}

#[tokio::test(start_paused = true)]
async fn answers_are_bounded_in_bytes_and_a_call_whose_answer_is_dropped_does_not_run_again() {
    let (arm, runs) = payments(MemoryIdempotencyStore::new().max_bytes(10));
    for (key, number) in [("a", 10), ("b", 10), ("c", 10)] {
        assert!(charge(&arm, keyed(key), number).await.0.is_ok());
    }
    assert_eq!(kind(&arm, keyed("a"), 10).await, Some(ErrorKind::OutcomeUnknown));
    assert_eq!(charge(&arm, keyed("b"), 10).await.0.unwrap(), "10002");
    assert_eq!(charge(&arm, keyed("c"), 10).await.0.unwrap(), "10003");
    assert!(charge(&arm, keyed("large"), 10_000_000_000).await.0.is_ok());
    assert_eq!(kind(&arm, keyed("large"), 10_000_000_000).await, Some(ErrorKind::OutcomeUnknown));
    assert_eq!(runs.load(SeqCst), 4);
}

#[tokio::test]
async fn a_repeated_call_without_a_record_runs_only_where_records_are_shared() {
    let (arm, runs) = payments(MemoryIdempotencyStore::new());
    assert_eq!(kind(&arm, repeated("k"), 9).await, Some(ErrorKind::OutcomeUnknown));
    assert_eq!(runs.load(SeqCst), 0);
    let store = Arc::new(MemoryIdempotencyStore::new().shared());
    let ((one, _), (two, other)) = (payments(store.clone()), payments(store));
    assert_eq!(charge(&one, repeated("k"), 9).await.0.unwrap(), "9001");
    assert_eq!(charge(&two, repeated("k"), 9).await.0.unwrap(), "9001");
    assert_eq!(other.load(SeqCst), 0);
}

#[tokio::test]
async fn cards_state_who_has_the_records() {
    let of = |arm: &Dispatcher| {
        let cards = arm.card().contracts.iter();
        cards.map(|card| (card.keys, card.keys_retained_s)).collect::<Vec<_>>()
    };
    let idempotent = (Keys::None, None);
    let (arm, _) = payments(MemoryIdempotencyStore::new().retained_for(SECOND * 5));
    assert_eq!(of(&arm), [(Keys::Instance, Some(5)), idempotent]);
    let (arm, _) = payments(MemoryIdempotencyStore::new().shared());
    assert_eq!(of(&arm), [(Keys::Shared, Some(600)), idempotent]);
    let (arm, runs) = payments(());
    assert_eq!(of(&arm), [idempotent, idempotent]);
    for _ in 0..2 {
        assert!(charge(&arm, keyed("k"), 9).await.0.is_ok());
    }
    assert_eq!(runs.load(SeqCst), 2);
    for _ in 0..2 {
        let mut cx = Context::from_parts(keyed("k"), Arc::new(()));
        arm.execute(&Measure::SPEC.reference(), br#"{"number":1,"ms":0,"spends":"Nothing"}"#, &mut cx)
            .await
            .unwrap();
        assert_eq!(cx.executed(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn many_records_that_end_at_once_make_room_and_are_not_found() {
    let store = MemoryIdempotencyStore::new().max_records(2_000);
    let run = |key: usize| KeyedRun::new(&keyed(&key.to_string()), &Charge::SPEC.reference(), b"{}").unwrap();
    for key in 0..2_000 {
        let run = run(key);
        assert_eq!(store.begin(&run, SECOND, false).await.unwrap(), Begun::Run);
        let answer = KeyedAnswer::new(Ok("1".into()), Usage::ZERO, jiff::Timestamp::UNIX_EPOCH, SECOND);
        store.finish(&run, answer).await.unwrap();
    }
    assert_eq!(store.begin(&run(2_000), SECOND, false).await.unwrap(), Begun::Full);
    advance(Duration::from_secs(600)).await;
    for key in (0..2_000).rev() {
        assert_eq!(store.begin(&run(key), SECOND, false).await.unwrap(), Begun::Run, "{key}");
    }
    assert!(format!("{store:?}").contains("bytes: 0"));
    assert_eq!(store.begin(&run(2_000), SECOND, false).await.unwrap(), Begun::Full);
}

/// A store that is away.
#[derive(Clone, Copy, PartialEq)]
enum Away {
    AtBegin,
    AtFinish,
    Hangs,
}

struct Trouble(Away, MemoryIdempotencyStore);

/// Begins runs, and answers that later.
struct Slow(MemoryIdempotencyStore);

#[async_trait]
impl IdempotencyStore for Slow {
    fn keys(&self) -> Keys {
        Keys::Shared
    }

    fn retention(&self) -> Duration {
        self.0.retention()
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        let begun = self.0.begin(run, lease, must_exist).await;
        sleep(SECOND).await;
        begun
    }

    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure> {
        self.0.finish(run, answer).await
    }

    async fn release(&self, run: &KeyedRun, may_have_executed: bool) -> Result<(), Failure> {
        self.0.release(run, may_have_executed).await
    }

    fn withdraw(&self, run: &KeyedRun) {
        // That of the store in memory does not wait.
        let _ = futures_util::FutureExt::now_or_never(self.0.release(run, false));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_while_its_record_begins_runs_when_it_is_repeated() {
    let (arm, runs) = payments(Slow(MemoryIdempotencyStore::new()));
    assert!(timeout(SECOND / 2, charge(&arm, keyed("k"), 9)).await.is_err());
    assert_eq!(charge(&arm, repeated("k"), 9).await.0.unwrap(), "9001");
    assert_eq!(charge(&arm, repeated("k"), 9).await.0.unwrap(), "9001");
    assert_eq!(runs.load(SeqCst), 1);
}

#[async_trait]
impl IdempotencyStore for Trouble {
    fn keys(&self) -> Keys {
        Keys::Shared
    }

    fn retention(&self) -> Duration {
        self.1.retention()
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        match self.0 {
            Away::AtBegin => Err(Failure::new(ErrorKind::Internal, "the database is away")),
            Away::Hangs => pending().await,
            Away::AtFinish => self.1.begin(run, lease, must_exist).await,
        }
    }

    async fn finish(&self, _: &KeyedRun, _: KeyedAnswer) -> Result<(), Failure> {
        Err(Failure::of(ErrorKind::Unavailable))
    }

    async fn release(&self, _: &KeyedRun, _: bool) -> Result<(), Failure> {
        Err(Failure::of(ErrorKind::Unavailable))
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_never_makes_a_call_run_twice() {
    let (arm, runs) = payments(Trouble(Away::AtBegin, MemoryIdempotencyStore::new()));
    let away = charge(&arm, keyed("k"), 9).await.0.unwrap_err();
    assert_eq!((away.may_have_executed, runs.load(SeqCst)), (false, 0));
    let (arm, runs) = payments(Trouble(Away::Hangs, MemoryIdempotencyStore::new()));
    let late = timeout(SECOND * 6, charge(&arm, keyed("k"), 9)).await.unwrap().0.unwrap_err();
    assert_eq!((late.kind, late.may_have_executed, runs.load(SeqCst)), (ErrorKind::Unavailable, false, 0));

    // The answer is not recorded: its caller gets it, and nobody after. A lease ends the record.
    let (arm, runs) = payments(Trouble(Away::AtFinish, MemoryIdempotencyStore::new()));
    assert_eq!(charge(&arm, keyed("k"), 9).await.0.unwrap(), "9001");
    assert_eq!(kind(&arm, keyed("k"), 9).await, Some(ErrorKind::Conflict));
    advance(Duration::from_secs(109)).await;
    assert_eq!(kind(&arm, keyed("k"), 9).await, Some(ErrorKind::Conflict));
    advance(SECOND).await;
    assert_eq!(kind(&arm, keyed("k"), 9).await, Some(ErrorKind::OutcomeUnknown), "100 s, and 10 s more");
    assert_eq!(runs.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_comes_late_does_not_end_the_record_of_another() {
    let store = MemoryIdempotencyStore::new();
    let run = || KeyedRun::new(&keyed("k"), &Charge::SPEC.reference(), b"{}").unwrap();
    let answer = |text: &'static str| {
        KeyedAnswer::new(Ok(text.into()), Usage::ZERO, jiff::Timestamp::UNIX_EPOCH, SECOND)
    };
    let (first, second) = (run(), run());
    assert_eq!(store.begin(&first, SECOND, false).await.unwrap(), Begun::Run);
    store.release(&first, true).await.unwrap();
    assert_eq!(store.begin(&second, SECOND, true).await.unwrap(), Begun::Run);
    store.finish(&first, answer("1")).await.unwrap();
    store.abandon(&first);
    assert_eq!(store.begin(&first, SECOND, false).await.unwrap(), Begun::Running);
    store.finish(&second, answer("2")).await.unwrap();
    store.abandon(&second);
    store.release(&second, false).await.unwrap();
    assert_eq!(store.begin(&first, SECOND, false).await.unwrap(), Begun::Answered(answer("2")));
    let debug = format!("{store:?}");
    assert!(debug.contains("records: 1") && debug.contains("bytes: 1"), "{debug}");
    advance(Duration::from_secs(600)).await;
    assert_eq!(store.begin(&first, SECOND, true).await.unwrap(), Begun::Unknown);
    assert!(format!("{store:?}").contains("bytes: 0"));
}
