//! The states of a record, and what is stored of it.

use proptest::prelude::*;

use super::*;
use crate::{
    error::{ErrorKind, Failure},
    task::TaskRequest,
};

#[derive(Debug, Clone, Copy)]
enum Change {
    Claim,
    Complete,
    Fail,
    Cancel,
    Release,
    Rerun,
    Retry,
}

fn record() -> TaskRecord {
    let request = Submission::from(TaskRequest::new("goal")).attempts(3);
    TaskRecord::new(request, &ContextParts::new(), Duration::from_secs(60), Timestamp::UNIX_EPOCH)
}

fn apply(record: &mut TaskRecord, change: Change, now: Timestamp) -> Result<(), Failure> {
    match change {
        Change::Claim => record.claim("b", now, now),
        Change::Complete => record.complete(TaskResult::new("done"), now),
        Change::Fail => record.fail((&Failure::of(ErrorKind::ArmFailed)).into(), now),
        Change::Cancel => record.cancel(now),
        Change::Release => record.release(now),
        Change::Rerun => record.rerun(false, now),
        Change::Retry => record.retry((&Failure::of(ErrorKind::Unavailable)).into(), now),
    }
}

proptest! {
    #[test]
    fn whatever_is_tried_the_record_stays_consistent(changes in prop::collection::vec(
        prop_oneof![
            Just(Change::Claim), Just(Change::Complete), Just(Change::Fail),
            Just(Change::Cancel), Just(Change::Release), Just(Change::Rerun), Just(Change::Retry),
        ], 0..24,
    )) {
        let now = Timestamp::UNIX_EPOCH;
        let mut record = record();
        for change in changes {
            let before = record.clone();
            if apply(&mut record, change, now).is_err() {
                prop_assert_eq!(&before, &record);
            }
            let task = &record.task;
            prop_assert_eq!(task.result.is_some(), task.status == TaskStatus::Completed);
            let retried = !task.status.is_finished() && record.retries() > 0;
            prop_assert_eq!(task.error.is_some(), task.status == TaskStatus::Failed || retried);
            prop_assert_eq!(task.failed_at.is_some(), task.status == TaskStatus::Failed);
            prop_assert!(record.attempts_left() <= 2);
            prop_assert_eq!(record.lease.is_some(), task.status == TaskStatus::Processing);
            prop_assert!(!matches!(before.task.status, TaskStatus::Completed | TaskStatus::Cancelled) || before == record);
            prop_assert!(record.run >= before.run && record.attempt() >= before.attempt());
        }
    }
}

#[test]
fn a_key_is_of_one_step_of_one_task_and_one_generation() {
    let mut one = record();
    let (order, name) = (StepKey::Order(0), StepKey::Name("0".into()));
    let first = key(&one, &order).unwrap();
    assert_ne!(Some(&first), key(&one, &name).as_ref());
    assert_ne!(Some(&first), key(&record(), &order).as_ref());
    let now = Timestamp::UNIX_EPOCH;
    let again = |record: &mut TaskRecord, discarded| {
        apply(record, Change::Claim, now).unwrap();
        apply(record, Change::Fail, now).unwrap();
        record.rerun(discarded, now).unwrap();
        key(record, &order).unwrap()
    };
    assert_eq!(again(&mut one, false), first);
    assert_ne!(again(&mut one, true), first);
    assert!(!format!("{one:?}").contains(&one.secret.0));
}

#[test]
fn a_stored_record_is_read_again() {
    let mut record = record();
    record.trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<TaskRecord>(&text).unwrap(), record);
}

#[test]
fn no_change_is_earlier_than_the_one_before_whatever_the_clocks_say() {
    let mut record = record();
    let at = |second| Timestamp::from_second(second).unwrap();
    apply(&mut record, Change::Claim, at(100)).unwrap();
    apply(&mut record, Change::Complete, at(40)).unwrap();
    assert_eq!((record.task.updated_at, record.task.completed_at), (at(100), Some(at(100))));
}

fn key(record: &TaskRecord, step: &StepKey) -> Option<IdempotencyKey> {
    record.idempotency_key(step, record.generation())
}

#[test]
fn a_rerun_has_all_attempts_again_and_no_delay() {
    let (mut record, now) = (record(), Timestamp::UNIX_EPOCH);
    for left in [1, 0] {
        apply(&mut record, Change::Claim, now).unwrap();
        apply(&mut record, Change::Retry, now).unwrap();
        record.run_in(Duration::from_secs(9), now);
        assert_eq!((record.attempts_left(), record.retries()), (left, 2 - left));
        assert!(!record.is_free(now + Duration::from_secs(8)));
        record.run_in(Duration::ZERO, now);
    }
    apply(&mut record, Change::Claim, now).unwrap();
    assert!(apply(&mut record, Change::Retry, now).is_err(), "none is left");
    record.run_in(Duration::from_secs(9), now);
    apply(&mut record, Change::Fail, now).unwrap();
    apply(&mut record, Change::Rerun, now).unwrap();
    assert_eq!((record.attempt(), record.attempts_left(), record.task().error.as_ref()), (4, 2, None));
    assert!(record.is_free(now));
}

#[test]
fn a_uniqueness_key_is_of_one_caller_one_contract_and_one_token() {
    let submission = |goal: &str| Submission::from(TaskRequest::new(goal)).unique("daily");
    let of = |submission: Submission, caller: Caller| {
        let mut parts = ContextParts::new();
        parts.caller = caller;
        TaskRecord::new(submission, &parts, Duration::ZERO, Timestamp::UNIX_EPOCH).unique_key()
    };
    let known = |subject: &str| Grant::new(subject, ["task:run"]);
    let by = |grant: Grant| of(submission("a"), Caller::Known(std::sync::Arc::new(grant)));
    let first = by(known("ann"));
    assert_eq!(of(TaskRequest::new("a").into(), Caller::Unchecked), None);
    assert_eq!(of(submission("b"), Caller::known("ann", ["other:scope"])), first, "of any input and scopes");
    let mut acting = known("ann");
    acting.actor = Some("judge".into());
    let other_contract = Submission { contract: "task.walk".parse().unwrap(), ..submission("a") };
    let others = [
        of(submission("a"), Caller::Unchecked),
        of(submission("a").unique("weekly"), Caller::known("ann", ["task:run"])),
        of(other_contract, Caller::known("ann", ["task:run"])),
        by(known("bob")),
        by(known("ann").issuer("i")),
        by(known("ann").issuer("")),
        by(known("ann").task(TaskId::new())),
        by(acting),
    ];
    let all: std::collections::HashSet<_> = others.iter().chain([&first]).collect();
    assert_eq!(all.len(), 9);
}
