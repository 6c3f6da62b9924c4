//! Values are stored as they are.

use std::time::Duration;

use serde_json::json;

use super::{Stores, fixture::*};
use crate::{
    budget::{Cost, Usage},
    clock,
    error::{ErrorKind, Failure},
    json::RawJson,
    parts::{Caller, ContextParts, Grant},
    store::Recorded,
    task::{Priority, TaskBudget, TaskError, TaskRecord, TaskResult},
    update::Progress,
};

/// NUL, quotes, markup, a text that looks escaped, right-to-left, combining, beyond the basic plane, a non-character.
const TEXT: &str = "\0 \u{1} ' \" \\ \\u0000 %_$1 ?; -- \r\n\t\u{2028} \u{5d0} e\u{301} \u{1f419} \u{fffd}\u{ffff}\u{10ffff}";

fn raw(text: &str) -> RawJson {
    RawJson::from_slice(text.as_bytes()).expect("valid JSON")
}

pub(super) async fn unusual_text_is_stored_as_it_is(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut submission = submission(json!({ TEXT: [TEXT, "\u{0}"] }));
    (submission.goal, submission.metadata) = (Some(TEXT.to_owned()), raw(r#"{"a":"\u0000\ud83d\ude00"}"#));
    let mut parts = ContextParts::new();
    parts.caller = Caller::Known(std::sync::Arc::new(Grant::new(TEXT, ["a:b"]).issuer(TEXT)));
    let record = TaskRecord::new(submission, &parts, LONG, clock::now());
    let id = record.id().clone();
    let mut effects = all_effects(&record, 1);
    effects.events.push(event(&id, 2).with_subject(id.as_str()).with_correlation_id(TEXT));
    let text = crate::event::Event::new("suite.happened", "suite", json!({ TEXT: TEXT }));
    effects.events.push(text.expect("a valid event").with_subject(id.as_str()).with_partition_key(TEXT));
    store.create(record.clone(), effects.clone(), MANY, MANY).await.expect("the task is stored");
    assert_eq!(state(&other, &id).await.events, effects.events, "its events are as they were");
    let listed = other.list(&crate::task::TaskQuery::default(), Some(record.caller())).await;
    assert_eq!(listed.expect("tasks are listed").len(), 1, "its owner finds it");
    let mut claimed = claim(&store, TEXT, LONG, 1).await.remove(0);
    assert_eq!(claimed.holder(), Some(TEXT));
    assert_eq!(
        (claimed.input().as_str(), claimed.task()),
        (record.input().as_str(), get(&other, &id).await.task())
    );
    let step = entry(5, TEXT, Recorded::Failure(Box::new(Failure::new(ErrorKind::ArmFailed, TEXT))));
    store.append(&id, 1, step.clone()).await.expect("the entry is written");
    store
        .append(&id, 1, entry(6, "", Recorded::Handle(TEXT.to_owned())))
        .await
        .expect("the entry is written");
    let updates = vec![chunk(&id, TEXT), progress(&id, TEXT)];
    store.append_updates(&id, 1, 0, updates.clone()).await.expect("the updates are appended");
    let held = store.renew(TEXT, LONG, &[(id.clone(), 1)]).await.expect("the lease is renewed");
    assert_eq!(held, [(id.clone(), 1)], "its holder has the lease");
    let stored = state(&other, &id).await;
    assert_eq!(stored.journal[1], content(&step), "the entry of the step is as it was");
    let last: Vec<_> =
        stored.updates.iter().rev().take(2).rev().map(|update| update.clone().with_seq(0)).collect();
    assert_eq!(last, updates, "the updates are as they were");
    claimed.fail(TaskError::from(&Failure::new(ErrorKind::ArmFailed, TEXT)), clock::now()).expect("it runs");
    store.commit(claimed.clone(), effects_of(&claimed)).await.expect("the change is stored");
    let error = get(&other, &id).await.into_task().error.expect("it has failed");
    assert_eq!(error.message, TEXT, "the error is as it was");
}

pub(super) async fn numbers_are_stored_to_the_digit(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let text = r#"{"z":1.10,"a":1E400,"n":123456789012345678901234567890.000,"z":-0.0,"s":"\u00e9"}"#;
    let record = record_of(submission(raw(text)));
    put(&store, &record).await;
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    let id = record.id().clone();
    assert_eq!(record.input().as_str(), text, "the input has its digits, its order and its double key");
    store
        .append(&id, 1, entry(u64::from(u32::MAX) + 7, u32::MAX, output(text)))
        .await
        .expect("it is written");
    assert_eq!(
        state(&other, &id).await.journal,
        [content(&entry(u64::from(u32::MAX) + 7, u32::MAX, output(text)))],
        "the entry is as it was"
    );
    record.complete(TaskResult::new(raw(text)), clock::now()).expect("it runs");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    let result = get(&other, &id).await.into_task().result.expect("it has a result");
    assert_eq!(result.output.as_str(), text, "the result has its digits");
}

pub(super) async fn large_values_are_stored_whole(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let large = RawJson::of("\u{1f419}x".repeat(400_000).as_str()).expect("valid JSON");
    let record = record_of(submission(large.clone()));
    put(&store, &record).await;
    let id = record.id().clone();
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    store.append(&id, 1, entry(0, 0, Recorded::Output(large.clone()))).await.expect("the entry is written");
    record.complete(TaskResult::new(large.clone()), clock::now()).expect("it runs");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    let stored = get(&other, &id).await;
    assert!(stored.input() == &large, "the input is whole");
    assert!(
        stored.task().result.as_ref().is_some_and(|result| result.output == large),
        "the result is whole"
    );
    let journal = other.journal(&id, None, 1).await.expect("the journal is read");
    assert!(content(&journal[0]) == content(&entry(0, 0, Recorded::Output(large))), "the entry is whole");
}

pub(super) async fn a_finished_task_is_read_as_it_was_stored(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut parts = ContextParts::new();
    parts.caller = Caller::known("somebody", ["suite:work"]);
    parts.trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
    let budget =
        TaskBudget { max_tokens: Some(u64::MAX), max_time_seconds: Some(0.1), max_cost_dollars: Some(0.3) };
    let submission = submission(json!([])).priority(Priority::Critical).budget(budget);
    put(&store, &TaskRecord::new(submission, &parts, LONG, clock::now())).await;
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    let usage = Usage::metered(1_000, 200).with_cached(10).with_cost(Cost::from_nano_dollars(1));
    let progress = Progress { percentage: 99, message: "almost".to_owned(), ..Progress::default() };
    record.report(
        usage,
        vec!["judge".to_owned(), "lister".to_owned()],
        Duration::from_nanos(1_234_567),
        progress,
    );
    let failure =
        Failure { details: Some(json!({ "at": [1.5, null] })), ..Failure::of(ErrorKind::Unavailable) };
    let error = TaskError::from(&failure).at_step(Some("last".into()));
    record.fail(error, clock::now()).expect("it runs");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    record.set_revision(record.revision() + 1);
    assert_eq!(get(&other, record.id()).await, record);
    let listed = other.list(&crate::task::TaskQuery::default(), None).await.expect("tasks are listed");
    assert_eq!(*listed[0], record, "a list has the whole record");
}
