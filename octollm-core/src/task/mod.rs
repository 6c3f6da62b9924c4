//! Tasks: work that a brain was asked for, and what became of it.

mod event;
mod record;
mod request;
mod status;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{
    event::{TaskChange, TaskEvent, TaskSpent},
    record::{Lease, TaskRecord},
    request::{InvalidSubmission, Priority, Submission, TaskBudget, TaskRequest},
    status::{IllegalTransition, TaskStatus},
};
use crate::{
    budget::Cost,
    error::{ErrorKind, Failure},
    id::TaskId,
    update::Progress,
};

/// A task as its owner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskResult {
    /// The contract's own JSON; for a goal in words, whatever answers it.
    pub output: Value,
    /// From 0 to 1, where the arm tells.
    #[serde(default)]
    pub confidence: Option<f64>,
    /// Whether the output was checked and held, where the arm tells.
    #[serde(default)]
    pub validation_passed: Option<bool>,
}

impl TaskResult {
    /// An output, and nothing said about it.
    pub fn new(output: impl Into<Value>) -> Self {
        Self { output: output.into(), confidence: None, validation_passed: None }
    }

    /// An output of any type.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of(output: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self::new(serde_json::to_value(output)?))
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

impl From<&Failure> for TaskError {
    fn from(failure: &Failure) -> Self {
        let violations =
            (!failure.violations.is_empty()).then(|| serde_json::json!({ "violations": failure.violations }));
        Self {
            kind: failure.kind,
            message: failure.message.clone(),
            details: failure.details.clone().or(violations),
        }
    }
}

/// What a task took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
    pub duration_seconds: f64,
    /// What was given when it was submitted.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub submitted: Map<String, Value>,
}
