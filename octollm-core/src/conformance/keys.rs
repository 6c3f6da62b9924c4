//! The cases of stores of idempotency keys.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    Subject,
    support::{at_once, dropped_after, eventually},
};
use crate::{
    budget::{Cost, Usage},
    contract::Keys,
    error::{ErrorKind, Failure},
    idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun},
};

type Stores = dyn Subject<dyn IdempotencyStore>;
type Store = Arc<dyn IdempotencyStore>;

/// Runs one case of the suite of stores of idempotency keys, by its name. The macro
/// [`idempotency_store_tests`](crate::idempotency_store_tests) has a test for each.
///
/// # Panics
/// When the case does not hold, or there is none of this name.
pub async fn idempotency_store(case: &str, subject: impl Subject<dyn IdempotencyStore>) {
    let subject: &Stores = &subject;
    crate::__idempotency_store_cases! { __conformance_run case subject }
}

/// Writes a test for each case of the suite of stores of idempotency keys: see [`conformance`](crate::conformance).
///
/// The store is opened with a retention of one to three seconds, and room for a hundred records.
#[macro_export]
macro_rules! idempotency_store_tests {
    ($(#[$attribute:meta])+ $subject:expr) => {
        $crate::__idempotency_store_cases! {
            __conformance_tests idempotency_store [$(#[$attribute])+] $subject
        }
    };
    ($subject:expr) => {
        $crate::idempotency_store_tests! { #[::tokio::test] $subject }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __idempotency_store_cases {
    ($then:ident $($with:tt)*) => {
        $crate::$then! { [$($with)*]
            cases:
                a_run_begins_once
                an_answer_is_returned_as_it_was
                a_failure_is_returned_as_it_was
                a_key_with_another_input_is_refused
                a_released_key_begins_again
                a_key_that_must_exist_is_unknown_without_a_record
                a_run_whose_lease_expires_is_unknown
                an_abandoned_run_is_unknown_at_the_latest_after_its_lease
                an_end_counts_for_its_own_run_alone
                an_end_counts_once
                records_are_independent
                of_many_runs_at_once_one_begins
                an_answer_is_retained_and_then_deleted
                dropped_operations_are_whole_or_nothing
                records_are_there_after_reopening;
        }
    };
}

/// The cases under the name of a module, as the list has it.
mod cases {
    pub(super) use super::*;
}

/// Longer than any case.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(200);

fn run(record: &str) -> KeyedRun {
    let record = format!("{:0>64}", record.bytes().map(|byte| format!("{byte:02x}")).collect::<String>());
    KeyedRun { record, input: "0123456789abcdef0123456789abcdef".to_owned(), run: Uuid::new_v4() }
}

fn output(text: &'static str) -> KeyedAnswer {
    let usage = Usage::metered(1_000, 20).with_cached(7).with_cost(Cost::from_nano_dollars(1));
    let began = Timestamp::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
    KeyedAnswer::new(Ok(Bytes::from_static(text.as_bytes())), usage, began, Duration::from_millis(1_234))
}

async fn pair(subject: &Stores) -> (Store, Store) {
    (subject.open().await, subject.open().await)
}

async fn begin(store: &Store, run: &KeyedRun, lease: Duration) -> Begun {
    store.begin(run, lease, false).await.expect("the store is available")
}

async fn finish(store: &Store, run: &KeyedRun, answer: KeyedAnswer) {
    store.finish(run, answer).await.expect("the store is available");
}

async fn release(store: &Store, run: &KeyedRun, may_have_executed: bool) {
    store.release(run, may_have_executed).await.expect("the store is available");
}

async fn a_run_begins_once(subject: &Stores) {
    let (store, other) = pair(subject).await;
    assert_ne!(store.keys(), Keys::None, "a store of records honours keys");
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Run);
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Running);
    assert_eq!(begin(&other, &run("a"), LONG).await, Begun::Running, "another handle has the same records");
    let must_exist = other.begin(&run("a"), LONG, true).await.expect("the store is available");
    assert_eq!(must_exist, Begun::Running);
}

async fn an_answer_is_returned_as_it_was(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for (name, text) in [("a", r#"{"n":1.10,"b":1E400,"a":"\u0000\ud83d\ude00"}"#), ("b", ""), ("c", "null")]
    {
        let first = run(name);
        assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
        finish(&store, &first, output(text)).await;
        for store in [&store, &other] {
            assert_eq!(begin(store, &run(name), LONG).await, Begun::Answered(output(text)));
        }
    }
    let large = Bytes::from(format!("\"{}\"", "\u{1f419}".repeat(300_000)));
    let first = run("large");
    assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
    finish(&store, &first, KeyedAnswer { result: Ok(large.clone()), ..output("") }).await;
    let Begun::Answered(answer) = begin(&other, &run("large"), LONG).await else {
        panic!("a large answer is there")
    };
    assert!(answer.result.is_ok_and(|bytes| bytes == large), "a large answer is whole");
}

async fn a_failure_is_returned_as_it_was(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let first = run("a");
    let failure = Failure {
        details: Some(serde_json::json!({ "a": [1.5, null, "\0"] })),
        retry_after: Some(Duration::from_secs(3)),
        ..Failure::new(ErrorKind::ArmFailed, "it failed\n\u{1f419}\0")
    };
    let answer = KeyedAnswer { result: Err(failure), ..output("") };
    assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
    finish(&store, &first, answer.clone()).await;
    assert_eq!(begin(&other, &run("a"), LONG).await, Begun::Answered(answer));
}

async fn a_key_with_another_input_is_refused(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let first = run("a");
    let another = KeyedRun { input: "f".repeat(32), ..run("a") };
    assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
    assert_eq!(begin(&other, &another, LONG).await, Begun::OtherInput, "while it runs");
    finish(&store, &first, output("1")).await;
    assert_eq!(begin(&other, &another, LONG).await, Begun::OtherInput, "and when it is answered");
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Answered(output("1")), "its own is as it was");
}

async fn a_released_key_begins_again(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for (name, may_have_executed) in [("a", false), ("b", true)] {
        for store in [&store, &other] {
            let again = run(name);
            assert_eq!(
                begin(store, &again, LONG).await,
                Begun::Run,
                "it may have executed: {may_have_executed}"
            );
            release(store, &again, may_have_executed).await;
        }
    }
    let must_exist = store.begin(&run("b"), LONG, true).await.expect("the store is available");
    assert_eq!(must_exist, Begun::Run, "a release after work leaves a record");
}

async fn a_key_that_must_exist_is_unknown_without_a_record(subject: &Stores) {
    let (store, _) = pair(subject).await;
    for _ in 0..2 {
        let begun = store.begin(&run("a"), LONG, true).await.expect("the store is available");
        assert_eq!(begun, Begun::Unknown);
    }
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Run, "that it is unknown leaves no record");
}

async fn a_run_whose_lease_expires_is_unknown(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (first, begun) = (run("a"), Instant::now());
    assert_eq!(begin(&store, &first, SHORT).await, Begun::Run);
    eventually("a lease expires", async || match begin(&other, &run("a"), LONG).await {
        Begun::Running => None,
        Begun::Unknown => Some(()),
        begun => panic!("it is running, then unknown, and never {begun:?}"),
    })
    .await;
    assert!(begun.elapsed() >= SHORT, "not before: {:?}", begun.elapsed());
    finish(&store, &first, output("late")).await;
    let late = begin(&other, &run("a"), LONG).await;
    assert!(
        [Begun::Unknown, Begun::Answered(output("late"))].contains(&late),
        "a late answer is recorded or not, and the run does not begin again: {late:?}"
    );
}

async fn an_abandoned_run_is_unknown_at_the_latest_after_its_lease(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let first = run("a");
    assert_eq!(begin(&store, &first, SHORT).await, Begun::Run);
    store.abandon(&run("a"));
    assert_eq!(
        begin(&other, &run("a"), LONG).await,
        Begun::Running,
        "another run of the key does not end this one"
    );
    store.abandon(&first);
    eventually("an abandoned run is unknown", async || {
        (begin(&other, &run("a"), LONG).await == Begun::Unknown).then_some(())
    })
    .await;
}

async fn an_end_counts_for_its_own_run_alone(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let (first, stranger) = (run("a"), run("a"));
    assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
    finish(&other, &stranger, output("2")).await;
    assert_eq!(
        begin(&store, &run("a"), LONG).await,
        Begun::Running,
        "an answer of another run is not recorded"
    );
    release(&other, &stranger, true).await;
    release(&other, &stranger, false).await;
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Running, "and its release has no effect");
    release(&store, &first, true).await;
    let second = run("a");
    assert_eq!(begin(&other, &second, LONG).await, Begun::Run);
    finish(&store, &first, output("1")).await;
    release(&store, &first, false).await;
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Running, "an earlier run ends no later one");
    finish(&other, &second, output("2")).await;
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Answered(output("2")));
    finish(&store, &run("unknown"), output("1")).await;
    assert_eq!(begin(&store, &run("unknown"), LONG).await, Begun::Run, "an end makes no record");
}

async fn an_end_counts_once(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let first = run("a");
    assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
    finish(&store, &first, output("1")).await;
    finish(&other, &first, output("2")).await;
    release(&other, &first, false).await;
    release(&store, &first, true).await;
    store.abandon(&first);
    assert_eq!(begin(&other, &run("a"), LONG).await, Begun::Answered(output("1")), "the first end counts");
}

async fn records_are_independent(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for number in 0..50 {
        assert_eq!(begin(&store, &run(&format!("{number}")), LONG).await, Begun::Run, "{number}");
    }
    let first = run("x");
    assert_eq!(begin(&other, &first, LONG).await, Begun::Run);
    finish(&other, &first, output("1")).await;
    for number in 0..50 {
        assert_eq!(begin(&other, &run(&format!("{number}")), LONG).await, Begun::Running, "{number}");
    }
}

async fn of_many_runs_at_once_one_begins(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for round in 0..5 {
        let name = format!("{round}");
        let runs = (0..16).map(|number| {
            let (store, run) = (if number % 2 == 0 { store.clone() } else { other.clone() }, run(&name));
            async move { (begin(&store, &run, LONG).await, run) }
        });
        let begun = at_once(runs).await;
        let started: Vec<_> = begun.iter().filter(|(begun, _)| *begun == Begun::Run).collect();
        assert_eq!(started.len(), 1, "one of them begins");
        let running = begun.iter().filter(|(begun, _)| *begun == Begun::Running).count();
        assert_eq!(running, 15, "the others are answered that it runs");
        release(&store, &started[0].1, true).await;
        assert_eq!(begin(&other, &run(&name), LONG).await, Begun::Run, "it is released by its own run");
    }
}

async fn an_answer_is_retained_and_then_deleted(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let retention = store.retention();
    let limits = Duration::from_secs(1)..=Duration::from_secs(3);
    assert!(
        limits.contains(&retention),
        "open the store with a retention of one to three seconds, not {retention:?}"
    );
    let first = run("a");
    assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
    let finished = Instant::now();
    finish(&store, &first, output("1")).await;
    loop {
        let (asked, begun) = (finished.elapsed(), begin(&other, &run("a"), LONG).await);
        if begun == Begun::Run {
            break;
        }
        assert_eq!(begun, Begun::Answered(output("1")));
        assert!(asked < retention + Duration::from_secs(30), "the record is deleted after {retention:?}");
        sleep(retention / 20).await;
    }
    let retained = finished.elapsed();
    assert!(retained >= retention, "it is retained for {retention:?}, not {retained:?}");
}

async fn dropped_operations_are_whole_or_nothing(subject: &Stores) {
    let (store, other) = pair(subject).await;
    for polls in 0.. {
        let first = run(&format!("{polls}"));
        let begun = dropped_after(polls, store.begin(&first, SHORT, false)).await;
        // Whether or not it has begun: after the lease there is a record, or there is none.
        let second = KeyedRun { run: Uuid::new_v4(), ..first.clone() };
        let mut lives = eventually("a dropped run ends", async || match begin(&other, &second, LONG).await {
            Begun::Running => None,
            begun => Some(begun),
        })
        .await;
        assert!([Begun::Run, Begun::Unknown].contains(&lives), "{lives:?}");
        if begun.is_some() {
            break;
        }
        if lives == Begun::Run {
            dropped_after(polls, store.finish(&second, output("1"))).await;
            lives = begin(&other, &first, LONG).await;
            assert!([Begun::Running, Begun::Answered(output("1"))].contains(&lives), "{lives:?}");
            finish(&store, &second, output("1")).await;
            assert_eq!(
                begin(&other, &first, LONG).await,
                Begun::Answered(output("1")),
                "a repeated end counts"
            );
        }
    }
}

async fn records_are_there_after_reopening(subject: &Stores) {
    let store = subject.open().await;
    let (first, second) = (run("a"), run("b"));
    assert_eq!(begin(&store, &first, LONG).await, Begun::Run);
    finish(&store, &first, output("1")).await;
    assert_eq!(begin(&store, &second, LONG).await, Begun::Run);
    drop(store);
    let store = subject.open().await;
    assert_eq!(begin(&store, &run("a"), LONG).await, Begun::Answered(output("1")));
    assert_eq!(begin(&store, &run("b"), LONG).await, Begun::Running);
    finish(&store, &second, output("2")).await;
    assert_eq!(begin(&store, &run("b"), LONG).await, Begun::Answered(output("2")), "its run can end");
}
