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
}

fn record() -> TaskRecord {
    let request = TaskRequest::new("goal").into();
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
    }
}

proptest! {
    #[test]
    fn whatever_is_tried_the_record_stays_consistent(changes in prop::collection::vec(
        prop_oneof![
            Just(Change::Claim), Just(Change::Complete), Just(Change::Fail),
            Just(Change::Cancel), Just(Change::Release), Just(Change::Rerun),
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
            prop_assert_eq!(task.error.is_some(), task.status == TaskStatus::Failed);
            prop_assert_eq!(record.lease.is_some(), task.status == TaskStatus::Processing);
            prop_assert!(!matches!(before.task.status, TaskStatus::Completed | TaskStatus::Cancelled) || before == record);
            prop_assert!(record.run >= before.run && record.attempt >= before.attempt);
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
