//! Tasks: work with an id that a brain has accepted, its status and its result.

mod event;
mod record;
mod request;
mod submission;
mod update;

use std::{fmt, str::FromStr};

/// A time of day: the start of a task.
#[doc(no_inline)]
pub use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub(crate) use self::record::StepKeys;
pub use self::{
    event::TaskEvent,
    record::TaskRecord,
    request::{Priority, TaskBudget, TaskRequest},
    submission::Submission,
    update::TaskUpdate,
};
use crate::{
    budget::Cost,
    contract::{ContractRef, TaskContract},
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    invalid::InvalidValue,
    json::RawJson,
    size,
    update::Progress,
};

/// A task as its owner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct Task {
    /// Id of the task.
    pub task_id: TaskId,
    /// Status of the task.
    pub status: TaskStatus,
    /// Contract of the task. `None` where an orchestrator of an earlier version does not state it.
    #[serde(default, deserialize_with = "readable")]
    pub contract: Option<ContractRef>,
    /// Goal in words. `None` for a task of another contract than [`TaskRequest`].
    pub goal: Option<String>,
    /// Progress of the task. One of a later version that cannot be read is the default.
    #[serde(deserialize_with = "readable")]
    pub progress: Progress,
    /// Result of a completed task.
    pub result: Option<TaskResult>,
    /// Error of a failed task; that of the attempt before while a further [attempt](Submission::attempts) waits or runs.
    pub error: Option<TaskError>,
    /// Number of the attempt, from 1. A rerun and each further [attempt](Submission::attempts) start a new one.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
    /// Time before which the latest attempt is not started. `None` where nothing delays it.
    #[serde(default)]
    pub run_at: Option<Timestamp>,
    /// Whether the task was there before the submission that returned it, whose [uniqueness key](Submission::unique) it has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// Usage, duration, and what was submitted with the task.
    pub metadata: TaskMetadata,
    /// Time of the submission.
    pub created_at: Timestamp,
    /// Time of the last change.
    pub updated_at: Timestamp,
    /// Time of completion.
    pub completed_at: Option<Timestamp>,
    /// Time of the failure.
    pub failed_at: Option<Timestamp>,
}

impl Task {
    /// The output of a completed task of the contract `C`. For [`TaskRequest`] the output is the whole [`TaskResult`].
    ///
    /// # Errors
    /// The failure of a failed task; [`ErrorKind::Cancelled`] for a cancelled one; [`ErrorKind::BadResponse`] where the output
    /// has another shape, or the task is not finished.
    pub fn into_output<C: TaskContract>(self) -> Result<C::Output, Failure> {
        let shape = |error: serde_json::Error| {
            Failure::new(ErrorKind::BadResponse, format!("the output has another shape: {error}"))
        };
        match (self.status, self.result, self.error) {
            (TaskStatus::Completed, Some(result), _) => {
                let is_goal = C::SPEC.reference() == TaskRequest::SPEC.reference();
                let output = if is_goal { RawJson::of(&result).map_err(shape)? } else { result.output };
                output.read().map_err(shape)
            }
            (TaskStatus::Failed, _, Some(error)) => Err(error.into_failure()),
            (TaskStatus::Cancelled, ..) => Err(Failure::new(ErrorKind::Cancelled, "the task was cancelled")),
            (status, ..) => {
                let message = format!("a task that is {status} has neither result nor error");
                Err(Failure::new(ErrorKind::BadResponse, message))
            }
        }
    }
}

/// The status of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskStatus {
    /// Waits for a brain, for its start, or for its next attempt. Becomes processing, cancelled, or failed where it cannot be run.
    Queued,
    /// Runs. Becomes completed, failed or cancelled, or queued again where its brain released it or a further attempt follows.
    Processing,
    /// Has a result. Final.
    Completed,
    /// Has an error. Becomes queued by a rerun.
    Failed,
    /// Was cancelled on request. Final.
    Cancelled,
    /// A status of a later version, of another service. Not final.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl TaskStatus {
    /// Every status that a task of this version can have.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Processing, Self::Completed, Self::Failed, Self::Cancelled];

    /// Whether a task of this status may change to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Queued, Self::Processing | Self::Cancelled | Self::Failed)
                | (Self::Processing, Self::Completed | Self::Failed | Self::Cancelled | Self::Queued)
                | (Self::Failed, Self::Queued)
        )
    }

    /// Whether the task is completed, failed or cancelled.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The name of the status on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TaskStatus {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(InvalidValue::new("task status"))
    }
}

/// Selects tasks for a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskQuery {
    /// Lists only tasks of this status.
    pub status: Option<TaskStatus>,
    /// Lists only tasks that are older than this one: the cursor.
    pub after: Option<TaskId>,
    /// Lists at most so many tasks, 1 to 100 (default 20). A page of long tasks has fewer.
    pub limit: Option<usize>,
}

impl TaskQuery {
    /// The largest limit of a page.
    pub const MAX_LIMIT: usize = 100;

    /// Lists only tasks of this status.
    #[must_use]
    pub fn status(mut self, status: TaskStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Lists only tasks that are older than this one.
    #[must_use]
    pub fn after(mut self, id: TaskId) -> Self {
        self.after = Some(id);
        self
    }

    /// Lists at most so many tasks.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// The result of a completed task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskResult {
    /// Output of the contract as JSON. The output for a goal in words has any form.
    pub output: RawJson,
    /// Confidence of the arm, from 0 to 1. `None` where the arm reports none.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// Whether the output passed validation. `None` where the arm reports nothing.
    #[serde(default)]
    pub validation_passed: Option<bool>,
}

impl TaskResult {
    /// A result with this output. A float that is infinite or NaN is null in a `serde_json::Value`: see [`of`](Self::of).
    pub fn new(output: impl Into<RawJson>) -> Self {
        Self { output: output.into(), confidence: None, validation_passed: None }
    }

    /// A result with an output of any type.
    ///
    /// # Errors
    /// When the output cannot be written as JSON, as with a float that is infinite or NaN.
    pub fn of(output: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self::new(RawJson::of(output)?))
    }

    /// Sets the confidence. A value outside of 0 to 1 is clamped; one that is not finite is dropped.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = confidence.is_finite().then(|| confidence.clamp(0.0, 1.0));
        self
    }

    /// Sets whether the output passed validation.
    #[must_use]
    pub fn validation_passed(mut self, passed: bool) -> Self {
        self.validation_passed = Some(passed);
        self
    }
}

/// The error of a failed task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskError {
    /// Kind of the error. One of a later version, of another service, is read as [`ArmFailed`](ErrorKind::ArmFailed).
    #[serde(rename = "type", deserialize_with = "known_kind")]
    pub kind: ErrorKind,
    /// Message for people, in one line.
    pub message: String,
    /// Details for programs.
    #[serde(default)]
    pub details: Option<Value>,
    /// Whether a retry can succeed.
    #[serde(default)]
    pub retryable: bool,
    /// Whether the work may have run, wholly or in part.
    #[serde(default = "yes")]
    pub may_have_executed: bool,
    /// Step whose error ended the task. `None` where the arm itself failed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "step_text")]
    #[schemars(with = "Option<String>")]
    pub step: Option<StepKey>,
}

fn yes() -> bool {
    true
}

fn first_attempt() -> u32 {
    1
}

fn known_kind<'de, D: Deserializer<'de>>(from: D) -> Result<ErrorKind, D::Error> {
    Ok(String::deserialize(from)?.parse().unwrap_or(ErrorKind::ArmFailed))
}

fn readable<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(from: D) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).unwrap_or_default())
}

impl TaskError {
    /// Sets the step whose error ended the task.
    #[must_use]
    pub fn at_step(mut self, step: Option<StepKey>) -> Self {
        self.step = step;
        self
    }

    /// Bytes of what can be large: the message and the details, as text.
    pub(crate) fn size(&self) -> usize {
        self.message.len() + self.details.as_ref().map_or(0, size::text)
    }

    /// The same, in memory.
    pub(crate) fn memory(&self) -> usize {
        self.message.len() + self.details.as_ref().map_or(0, size::memory)
    }

    /// Converts to a failure, for a caller that waits for the task.
    pub fn into_failure(self) -> Failure {
        Failure {
            details: self.details,
            retryable: self.retryable,
            may_have_executed: self.may_have_executed,
            ..Failure::new(self.kind, self.message)
        }
    }
}

/// Writes a step as text: digits for a position, otherwise the name.
mod step_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::id::StepKey;

    pub(super) fn serialize<S: Serializer>(step: &Option<StepKey>, to: S) -> Result<S::Ok, S::Error> {
        match step {
            Some(step) => to.collect_str(step),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<StepKey>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.map(|text| StepKey::from_text(&text)))
    }
}

impl From<&Failure> for TaskError {
    fn from(failure: &Failure) -> Self {
        let violations =
            (!failure.violations.is_empty()).then(|| serde_json::json!({ "violations": failure.violations }));
        Self {
            kind: failure.kind,
            message: failure.message.clone(),
            details: failure.details.clone().or(violations),
            retryable: failure.retryable,
            may_have_executed: failure.may_have_executed,
            step: None,
        }
    }
}

/// Usage and duration of a task, and what was submitted with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskMetadata {
    /// Arms that answered calls of the task, each once, in the order of their first answer.
    pub arms_used: Vec<String>,
    /// Tokens read and written by models.
    pub tokens_used: u64,
    /// Cost in US dollars.
    #[serde(rename = "cost_dollars")]
    pub cost: Cost,
    /// Time that the task ran, in seconds, without the time in the queue.
    #[schemars(range(min = 0))]
    pub duration_seconds: f64,
    /// Metadata of the submission.
    #[serde(default = "RawJson::object", skip_serializing_if = "RawJson::is_empty_object")]
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub submitted: RawJson,
}

impl Default for TaskMetadata {
    fn default() -> Self {
        Self {
            arms_used: Vec::new(),
            tokens_used: 0,
            cost: Cost::ZERO,
            duration_seconds: 0.0,
            submitted: RawJson::object(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_a_later_version_is_not_final() {
        let status: TaskStatus = serde_json::from_str("\"input_required\"").unwrap();
        assert_eq!(status, TaskStatus::Unknown);
        assert!(!status.is_finished() && TaskStatus::ALL.iter().all(|next| !status.may_become(*next)));
        assert!("unknown".parse::<TaskStatus>().is_err(), "nobody asks for it");
    }

    #[test]
    fn a_task_without_its_contract_is_read() {
        let task = TaskRecord::answered(
            Submission::from(TaskRequest::new("do it")),
            TaskResult::new(7),
            Timestamp::UNIX_EPOCH,
        );
        let mut written = serde_json::to_value(&task).unwrap();
        assert_eq!(written["contract"], "task.run");
        // No name of a contract in this version.
        written["contract"] = serde_json::json!({ "name": "task.run" });
        assert_eq!(serde_json::from_value::<Task>(written.clone()).unwrap().contract, None);
        written.as_object_mut().unwrap().remove("contract");
        assert_eq!(serde_json::from_value::<Task>(written).unwrap(), Task { contract: None, ..task });
    }

    #[test]
    fn an_error_and_a_progress_of_a_later_version_are_read_as_far_as_they_are_known() {
        let submission = Submission::from(TaskRequest::new("do it"));
        let task = TaskRecord::answered(submission, TaskResult::new(7), Timestamp::UNIX_EPOCH);
        let mut later = serde_json::to_value(&task).unwrap();
        later["status"] = "failed".into();
        later["error"] =
            serde_json::json!({ "type": "quota_frozen", "message": "come back in May", "retryable": true });
        for progress in [serde_json::json!("half"), serde_json::json!({ "current_step": "dreaming" })] {
            later["progress"] = progress;
            let read: Task = serde_json::from_value(later.clone()).unwrap();
            assert_eq!(read.progress, Progress::default());
            let failure = read.into_output::<TaskRequest>().unwrap_err();
            assert_eq!((failure.kind, &*failure.message), (ErrorKind::ArmFailed, "come back in May"));
            assert!(failure.retryable && failure.may_have_executed);
        }
    }
}
