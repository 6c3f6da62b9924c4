//! Tasks: as they are asked for, and as they stand.

use octollm::{
    budget::Cost,
    context::Caller,
    failure::{ErrorKind, Failure},
    orchestrator::TaskPage,
    prelude::*,
    task::{Lease, Priority, Task, TaskBudget, TaskError, TaskRecord},
    update::{Phase, Update},
};
use serde_json::json;

use crate::{
    contracts::code,
    golden::{NOW, TASK, hold, hold_again, hold_json, parsed, pretty, read},
};

fn request() -> TaskRequest {
    let mut request = TaskRequest::new("Review the crate in ./parser");
    request.constraints = vec!["Change nothing".into()];
    request.acceptance_criteria = vec!["Every finding names a line".into()];
    request.context.insert("root".into(), "./parser".into());
    request.priority = Priority::High;
    request.budget =
        TaskBudget { max_tokens: Some(10_000), max_time_seconds: Some(60.0), max_cost_dollars: Some(1.0) };
    request.metadata.insert("ticket".into(), 4711.into());
    request
}

#[test]
fn a_goal_in_words() {
    hold_json("task_request_full.json", &request());
    let least = TaskRequest::new("Review the crate in ./parser");
    hold_json("task_request_minimal.json", &least);
    // What is left out has a default; nothing but the goal has to be there.
    let goal_alone = br#"{"goal":"Review the crate in ./parser"}"#;
    assert_eq!(Submission::from_json(goal_alone).unwrap(), Submission::from(least));
    let read = Submission::from_json(read("task_request_full.json").as_bytes()).unwrap();
    assert_eq!(read, Submission::from(request()));
    assert_eq!(pretty(&read.to_json()), pretty(&json!(request())));
}

#[test]
fn a_contract_by_name() {
    let submission = Submission::of(&code("fn main() {}"))
        .unwrap()
        .with_priority(Priority::Low)
        .with_budget(TaskBudget { max_tokens: Some(500), ..TaskBudget::default() });
    hold("submission_by_contract.json", &pretty(&submission.to_json()));
    assert_eq!(Submission::from_json(read("submission_by_contract.json").as_bytes()).unwrap(), submission);
}

/// A task that waits.
fn queued() -> TaskRecord {
    let mut record = TaskRecord::new(
        request().into(),
        Caller::known("alice", ["task:run"]),
        parsed("review-7"),
        parsed(NOW),
    );
    record.task.task_id = parsed(TASK);
    record
}

/// The task two seconds later.
fn processing() -> TaskRecord {
    let mut record = queued();
    let lease = Lease { holder: "orchestrator-1".into(), until: parsed("2025-11-10T10:30:32Z") };
    record.start(lease, parsed("2025-11-10T10:31:02Z"), parsed("2025-11-10T10:30:02Z")).unwrap();
    let progress = &mut record.task.progress;
    for update in [
        Update::Phase(Phase::Execution),
        Update::Progress(0, "judging src/lib.rs".into()),
        Update::Steps(2, 5),
    ] {
        progress.apply(&update);
    }
    record
}

/// The task at its end, with what it took.
fn ended() -> TaskRecord {
    let mut record = processing();
    let taken = &mut record.task.metadata;
    taken.arms_used = vec!["lister".into(), "judge".into()];
    taken.tokens_used = 1_200;
    taken.cost = Cost::from_nano_dollars(25_000_000);
    taken.duration_seconds = 9.5;
    record
}

pub(crate) fn completed() -> Task {
    let mut record = ended();
    let result = TaskResult::new(json!({ "findings": [] })).confidence(0.9).validation_passed(true);
    record.complete(result, parsed("2025-11-10T10:30:11.5Z")).unwrap();
    record.task
}

pub(crate) fn failed() -> Task {
    let mut record = ended();
    let mut failure = Failure::of(ErrorKind::DeadlineExceeded);
    failure.details = Some(json!({ "step": "judge[3]" }));
    record.fail(TaskError::from(&failure), parsed("2025-11-10T10:30:11.5Z")).unwrap();
    record.task
}

#[test]
fn a_task_in_each_status() {
    hold_json("task_queued.json", &queued().task);
    hold_json("task_processing.json", &processing().task);
    hold_json("task_completed.json", &completed());
    hold_json("task_failed.json", &failed());
    let mut cancelled = ended();
    cancelled.cancel(parsed("2025-11-10T10:30:11.5Z")).unwrap();
    hold_json("task_cancelled.json", &cancelled.task);
}

#[test]
fn a_page_of_tasks() {
    hold_json("task_page.json", &TaskPage::new(vec![queued().task], Some(parsed(TASK))));
    hold_json("task_page_last.json", &TaskPage::new(Vec::new(), None));
}

#[test]
fn a_task_as_a_store_keeps_it() {
    hold_again("stored_task.json", &processing());
}
