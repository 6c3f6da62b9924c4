//! Tasks: as they are asked for, and as they stand.

use std::time::Duration;

use octollm::{
    budget::{Cost, Usage},
    context::{Caller, ContextParts},
    error::{ErrorKind, Failure},
    id::StepKey,
    orchestrator::TaskPage,
    prelude::*,
    task::{Priority, Submission, Task, TaskBudget, TaskError, TaskRecord},
    trace::TraceContext,
    update::{Phase, Progress, Update},
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
    request.context = json!({ "root": "./parser" }).into();
    request.priority = Priority::High;
    request.budget =
        TaskBudget { max_tokens: Some(10_000), max_time_seconds: Some(60.0), max_cost_dollars: Some(1.0) };
    request.metadata = json!({ "ticket": 4711 }).into();
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
    assert_eq!(read.to_json(), json!(request()));
}

#[test]
fn a_contract_by_name() {
    let submission = Submission::of(&code("fn main() {}"))
        .unwrap()
        .priority(Priority::Low)
        .budget(TaskBudget { max_tokens: Some(500), ..TaskBudget::default() });
    hold("submission_by_contract.json", &pretty(&submission.to_json().to_value()));
    assert_eq!(Submission::from_json(read("submission_by_contract.json").as_bytes()).unwrap(), submission);
}

#[test]
fn a_job() {
    let start = parsed("2025-11-10T22:00:00Z");
    let job =
        Submission::of(&code("fn main() {}")).unwrap().unique("nightly-2025-11-10").attempts(5).run_at(start);
    hold("submission_job.json", &pretty(&job.to_json().to_value()));
    assert_eq!(Submission::from_json(read("submission_job.json").as_bytes()).unwrap(), job);
    // A goal in words is submitted as a job by its contract.
    let job = Submission::from(request()).run_in(Duration::from_secs(60));
    hold("submission_goal_job.json", &pretty(&job.to_json().to_value()));
    assert_eq!(Submission::from_json(read("submission_goal_job.json").as_bytes()).unwrap(), job);
}

/// A task that waits.
fn queued() -> TaskRecord {
    let trace = parsed::<TraceContext>("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let mut parts = ContextParts::new();
    (parts.caller, parts.correlation_id) = (Caller::known("alice", ["task:run"]), parsed("review-7"));
    parts.trace = Some(trace);
    let submission = Submission::from(request()).attempts(5).unique("review-parser");
    let record = TaskRecord::new(submission, &parts, Duration::from_secs(60), parsed(NOW));
    // Its id and its secret are new each time.
    let mut stored = serde_json::to_value(&record).unwrap();
    stored["task"]["task_id"] = TASK.into();
    stored["secret"] = "0123456789abcdef0123456789abcdef".into();
    serde_json::from_value(stored).unwrap()
}

/// The task two seconds later.
fn processing() -> TaskRecord {
    let mut record = queued();
    record.claim("orchestrator-1", parsed("2025-11-10T10:30:32Z"), parsed("2025-11-10T10:30:02Z")).unwrap();
    record
}

/// The task at its end, with what it used.
fn ended() -> TaskRecord {
    let mut record = processing();
    let usage = Usage::tokens(1_200).with_cost(Cost::from_nano_dollars(25_000_000));
    let arms = vec!["lister".into(), "judge".into()];
    record.report(usage, arms, Duration::from_millis(9_500), progress());
    record
}

fn progress() -> Progress {
    let mut progress = Progress::default();
    for update in [
        Update::Phase(Phase::Execution),
        Update::Progress(0, "judging src/lib.rs".into()),
        Update::Steps(2, 5),
    ] {
        progress.apply(&update);
    }
    progress
}

pub(crate) fn completed() -> Task {
    let mut record = ended();
    let result = TaskResult::new(json!({ "findings": [] })).confidence(0.9).validation_passed(true);
    record.complete(result, parsed("2025-11-10T10:30:11.5Z")).unwrap();
    record.into_task()
}

pub(crate) fn failed() -> Task {
    let mut record = ended();
    let step = StepKey::Name("judge[3]".into());
    let error = TaskError::from(&Failure::of(ErrorKind::DeadlineExceeded)).at_step(Some(step));
    record.fail(error, parsed("2025-11-10T10:30:11.5Z")).unwrap();
    record.into_task()
}

#[test]
fn a_task_in_each_status() {
    hold_json("task_queued.json", queued().task());
    let mut running = processing();
    running.report(Usage::ZERO, Vec::new(), Duration::ZERO, progress());
    hold_json("task_processing.json", running.task());
    hold_json("task_completed.json", &completed());
    hold_json("task_failed.json", &failed());
    // Another attempt follows the one that failed.
    let (mut waiting, now) = (ended(), parsed("2025-11-10T10:30:11.5Z"));
    let failure = Failure::new(ErrorKind::Unavailable, "code.validate: the parser is being updated");
    waiting.retry(TaskError::from(&failure).at_step(Some(StepKey::Order(1))), now).unwrap();
    waiting.run_in(Duration::from_millis(700), now);
    hold_json("task_waiting.json", waiting.task());
    let mut cancelled = ended();
    cancelled.cancel(parsed("2025-11-10T10:30:11.5Z")).unwrap();
    hold_json("task_cancelled.json", cancelled.task());
}

#[test]
fn a_page_of_tasks() {
    hold_json("task_page.json", &TaskPage::new(vec![queued().into_task()], Some(parsed(TASK))));
    hold_json("task_page_last.json", &TaskPage::new(Vec::new(), None));
}

#[test]
fn a_task_as_a_store_keeps_it() {
    hold_again("stored_task.json", &processing());
}
