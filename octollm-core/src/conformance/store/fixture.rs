//! Tasks, entries and effects of the cases, and what a store has of a task.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;

use super::Stores;
use crate::{
    budget::{Budget, Usage},
    clock,
    contract::ContractRef,
    event::Event,
    id::{StepKey, TaskId},
    json::{RawJson, digest},
    parts::ContextParts,
    store::{Claim, JournalEntry, Recorded, SideEffects, StoreError, TaskStore},
    task::{Priority, Submission, TaskRecord, TaskRequest, TaskUpdate},
    update::Phase,
};

/// A limit that nothing here reaches, of tasks, entries and bytes.
pub(super) const MANY: usize = 1 << 30;
/// Long enough for the operations of a case on a slow machine.
pub(super) const LONG: Duration = Duration::from_secs(600);
/// A lease that is to expire.
pub(super) const SHORT: Duration = Duration::from_millis(300);
/// The relay of the cases.
pub(super) const RELAY: &str = "suite";

pub(super) type Store = Arc<dyn TaskStore>;

/// Two handles on one store.
pub(super) async fn pair(subject: &Stores) -> (Store, Store) {
    (subject.open().await, subject.open().await)
}

pub(super) fn contract(name: &str) -> ContractRef {
    name.parse().expect("a valid contract")
}

pub(super) fn submission(input: impl Into<RawJson>) -> Submission {
    let mut submission = Submission::from(TaskRequest::new("suite"));
    (submission.contract, submission.input) = (contract("suite.work"), input.into());
    submission.goal = None;
    submission
}

pub(super) fn record_of(submission: Submission) -> TaskRecord {
    TaskRecord::new(submission, &ContextParts::new(), Duration::from_secs(3_600), clock::now())
}

pub(super) fn queued(number: u64) -> TaskRecord {
    record_of(submission(Value::from(number)))
}

pub(super) fn of_priority(priority: Priority) -> TaskRecord {
    record_of(submission(Value::Null).priority(priority))
}

/// The event and the update of the record's status.
pub(super) fn effects_of(record: &TaskRecord) -> SideEffects {
    SideEffects::of_change(record, "suite")
}

/// Stores a task with its effects.
pub(super) async fn put(store: &Store, record: &TaskRecord) {
    store.create(record.clone(), effects_of(record), MANY, MANY).await.expect("the task is stored");
}

pub(super) async fn get(store: &Store, id: &TaskId) -> TaskRecord {
    let record = store.get(id).await.expect("the task is read").expect("the task is there");
    TaskRecord::clone(&record)
}

/// Claims tasks of the contract `suite.work`.
pub(super) async fn claim(store: &Store, holder: &str, lease: Duration, limit: usize) -> Vec<TaskRecord> {
    let claimed = claim_of(store, holder, &["suite.work"], lease, limit).await;
    claimed.into_iter().map(|(record, _)| record).collect()
}

pub(super) async fn claim_of(
    store: &Store,
    holder: &str,
    contracts: &[&str],
    lease: Duration,
    limit: usize,
) -> Vec<(TaskRecord, Duration)> {
    let contracts: Vec<_> = contracts.iter().map(|name| contract(name)).collect();
    let claim = Claim { holder, contracts: &contracts, lease, limit, max_running: &[], source: "suite" };
    let claimed = store.claim(&claim).await.expect("tasks are claimed");
    claimed.tasks.into_iter().map(|(record, left)| (TaskRecord::clone(&record), left)).collect()
}

/// Stores a task, and claims it with a long lease.
pub(super) async fn running(store: &Store, number: u64) -> TaskRecord {
    put(store, &queued(number)).await;
    let mut claimed = claim(store, "brain", LONG, 1).await;
    assert_eq!(claimed.len(), 1, "the task is claimed");
    claimed.remove(0)
}

pub(super) fn entry(seq: u64, step: impl Into<StepKey>, recorded: Recorded) -> JournalEntry {
    JournalEntry {
        seq,
        step: step.into(),
        batch: None,
        contract: contract("suite.step"),
        idempotent: true,
        input_digest: digest(b"{}"),
        generation: 0,
        begun: None,
        recorded,
        served_by: Default::default(),
        usage: Usage::tokens(seq),
        budget_left: Budget::UNLIMITED,
        time_left_ms: Some(1_000),
        duration_ms: 1.5,
        at: Timestamp::UNIX_EPOCH,
    }
}

pub(super) fn output(text: &str) -> Recorded {
    Recorded::Output(RawJson::from_slice(text.as_bytes()).expect("valid JSON"))
}

pub(super) fn chunk(id: &TaskId, text: &str) -> TaskUpdate {
    let data = RawJson::of(text).expect("valid JSON");
    TaskUpdate::Chunk { task_id: id.clone(), seq: 0, data }
}

pub(super) fn progress(id: &TaskId, message: &str) -> TaskUpdate {
    let (task_id, message) = (id.clone(), message.to_owned());
    TaskUpdate::Progress { task_id, seq: 0, progress: 40, phase: Phase::default(), message }
}

/// All effects that a change can have.
pub(super) fn all_effects(record: &TaskRecord, number: u64) -> SideEffects {
    let mut effects = effects_of(record);
    effects.events.push(event(record.id(), number));
    effects.updates.push(chunk(record.id(), &format!("part {number}")));
    effects.journal.push(entry(number, format!("step {number}"), output("1")));
    effects
}

pub(super) fn event(id: &TaskId, number: u64) -> Event {
    let event = Event::new("suite.happened", "suite", number).expect("a valid event");
    event.with_subject(id.as_str()).with_partition_key(id.as_str())
}

/// What a store has of a task.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) record: Option<TaskRecord>,
    pub(super) journal: Vec<String>,
    pub(super) updates: Vec<TaskUpdate>,
    /// Events that are not published.
    pub(super) events: Vec<Event>,
}

pub(super) async fn state(store: &Store, id: &TaskId) -> State {
    let record = store.get(id).await.expect("the task is read").map(|record| TaskRecord::clone(&record));
    let journal = store.journal(id, None, MANY).await.expect("the journal is read");
    let updates = store.updates_after(id, 0, MANY).await.expect("updates are read");
    let events = pending(store).await;
    let events = events.into_iter().filter(|event| event.subject() == Some(id.as_str())).collect();
    State { record, journal: journal.iter().map(content).collect(), updates, events }
}

/// An entry without its time, which the store sets.
pub(super) fn content(entry: &JournalEntry) -> String {
    let entry = JournalEntry { at: Timestamp::UNIX_EPOCH, ..entry.clone() };
    serde_json::to_string(&entry).expect("an entry can be written")
}

/// The events that are not published.
pub(super) async fn pending(store: &Store) -> Vec<Event> {
    store.pending_events(RELAY, MANY).await.expect("events are read")
}

pub(super) fn ids(records: &[TaskRecord]) -> Vec<&TaskId> {
    records.iter().map(TaskRecord::id).collect()
}

pub(super) fn assert_conflict<T: std::fmt::Debug>(what: &str, result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Conflict)), "{what} is a conflict, not {result:?}");
}

pub(super) fn assert_not_found<T: std::fmt::Debug>(what: &str, result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::NotFound)), "{what} finds no task, not {result:?}");
}

pub(super) fn assert_full<T: std::fmt::Debug>(what: &str, result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Full)), "{what} is refused for lack of room, not {result:?}");
}
