//! Tasks: work that a brain was asked for, and what became of it.

mod event;
mod record;
mod request;
mod status;
mod update;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{
    event::{TaskChange, TaskEvent, TaskSpent},
    record::{Lease, TaskRecord},
    request::{Priority, Submission, TaskBudget, TaskRequest},
    status::TaskStatus,
    update::TaskUpdate,
};
use crate::{
    budget::Cost,
    contract::TaskContract,
    error::{ErrorKind, Failure},
    id::{RequestId, StepKey, TaskId},
    json::RawJson,
    parts::Caller,
    trace::TraceContext,
    update::Progress,
};

/// A task as its owner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct Task {
    /// Names it.
    pub task_id: TaskId,
    /// Where it stands.
    pub status: TaskStatus,
    /// The goal in words; what runs another contract has none.
    pub goal: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// What came of it, once completed.
    pub result: Option<TaskResult>,
    /// Why it failed, if it did.
    pub error: Option<TaskError>,
    /// What it took.
    pub metadata: TaskMetadata,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was completed.
    pub completed_at: Option<Timestamp>,
    /// When it failed.
    pub failed_at: Option<Timestamp>,
}

impl Task {
    /// The output of a completed task, whose contract is `C`. A goal in words is answered by its result as a whole.
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

/// Where a task comes from: what of its submitter's context it continues.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Origin {
    /// Who submitted it, and what they may do.
    pub caller: Caller,
    /// Names the piece of work over all its requests.
    pub correlation_id: RequestId,
    /// The trace in which it was submitted.
    pub trace: Option<TraceContext>,
}

impl Origin {
    /// A submission by this caller, without a trace.
    pub fn new(caller: Caller, correlation_id: RequestId) -> Self {
        Self { caller, correlation_id, trace: None }
    }

    /// Sets the trace that the task continues.
    #[must_use]
    pub fn trace(mut self, trace: Option<TraceContext>) -> Self {
        self.trace = trace;
        self
    }
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskResult {
    /// The contract's own JSON; for a goal in words, whatever answers it.
    pub output: RawJson,
    /// From 0 to 1, where the arm tells.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// Whether the output was checked and held, where the arm tells.
    #[serde(default)]
    pub validation_passed: Option<bool>,
}

impl TaskResult {
    /// An output, and nothing said about it.
    pub fn new(output: impl Into<RawJson>) -> Self {
        Self { output: output.into(), confidence: None, validation_passed: None }
    }

    /// An output of any type.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of(output: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self::new(RawJson::of(output)?))
    }

    /// Says how sure the arm is, from 0 to 1.
    #[must_use]
    pub fn confidence(mut self, confidence: f64) -> Self {
        self.confidence = confidence.is_finite().then(|| confidence.clamp(0.0, 1.0));
        self
    }

    /// Says whether the output was checked and held.
    #[must_use]
    pub fn validation_passed(mut self, passed: bool) -> Self {
        self.validation_passed = Some(passed);
        self
    }
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskError {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// One line for people.
    pub message: String,
    /// More, for programs.
    #[serde(default)]
    pub details: Option<Value>,
    /// Whether the same work can succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// Whether the work may have been done, wholly or in part.
    #[serde(default = "yes")]
    pub may_have_executed: bool,
    /// The step whose error ended the task, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "step_text")]
    #[schemars(with = "Option<String>")]
    pub step: Option<StepKey>,
}

fn yes() -> bool {
    true
}

impl TaskError {
    /// Names the step whose error ended the task.
    #[must_use]
    pub fn at_step(mut self, step: Option<StepKey>) -> Self {
        self.step = step;
        self
    }

    /// The failure that it was, for a caller who waits for the task.
    pub fn into_failure(self) -> Failure {
        Failure {
            details: self.details,
            retryable: self.retryable,
            may_have_executed: self.may_have_executed,
            ..Failure::new(self.kind, self.message)
        }
    }
}

/// On the wire a step is a text: digits for a position, and a name else.
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

/// What a task took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskMetadata {
    /// The arms that answered its calls, each once, in the order of their first answer.
    pub arms_used: Vec<String>,
    /// Tokens read and written by models.
    pub tokens_used: u64,
    /// What it cost.
    #[serde(rename = "cost_dollars")]
    pub cost: Cost,
    /// How long it ran, without waiting in the queue.
    #[schemars(range(min = 0))]
    pub duration_seconds: f64,
    /// What was given when it was submitted.
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
