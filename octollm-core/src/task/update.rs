//! Live updates of a task.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::{TaskError, TaskResult, TaskStatus};
use crate::{id::TaskId, json::RawJson, update::Phase};

/// A live update of a task. Updates are numbered from 1 over all runs of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskUpdate {
    /// Progress of the task.
    Progress {
        /// The task.
        task_id: TaskId,
        /// Number of the update.
        seq: u64,
        /// Percentage, 0 to 100.
        progress: u8,
        /// Phase of the work.
        phase: Phase,
        /// Message of the arm.
        message: String,
    },
    /// A part of the output.
    Chunk {
        /// The task.
        task_id: TaskId,
        /// Number of the update.
        seq: u64,
        /// Chunk of the contract, as JSON.
        data: RawJson,
    },
    /// A new status. A final status is the last update of a run.
    Status {
        /// The task.
        task_id: TaskId,
        /// Number of the update.
        seq: u64,
        /// The new status.
        status: TaskStatus,
        /// Result of a completed task.
        #[serde(skip_serializing_if = "Option::is_none")]
        result: Option<TaskResult>,
        /// Error of a failed task.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<TaskError>,
    },
    /// Updates that are no longer stored.
    Gap {
        /// The task.
        task_id: TaskId,
        /// Number of the last update that is missing.
        seq: u64,
        /// Number of updates that are missing.
        missed: u64,
    },
}

impl TaskUpdate {
    /// The task.
    pub fn task_id(&self) -> &TaskId {
        match self {
            Self::Progress { task_id, .. }
            | Self::Chunk { task_id, .. }
            | Self::Status { task_id, .. }
            | Self::Gap { task_id, .. } => task_id,
        }
    }

    /// The number of the update.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Progress { seq, .. }
            | Self::Chunk { seq, .. }
            | Self::Status { seq, .. }
            | Self::Gap { seq, .. } => *seq,
        }
    }

    /// Sets the number. A store calls this when it appends the update.
    #[must_use]
    pub fn with_seq(mut self, number: u64) -> Self {
        match &mut self {
            Self::Progress { seq, .. }
            | Self::Chunk { seq, .. }
            | Self::Status { seq, .. }
            | Self::Gap { seq, .. } => *seq = number,
        }
        self
    }

    /// Bytes of its chunk or of its message; 0 where it has neither.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Chunk { data, .. } => data.as_str().len(),
            Self::Progress { message, .. } => message.len(),
            Self::Status { error, .. } => error.as_ref().map_or(0, TaskError::memory),
            Self::Gap { .. } => 0,
        }
    }

    /// Whether this is a final status. A failed task has further updates after a rerun.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Status { status, .. } if status.is_finished())
    }
}

/// The members of all variants: serde buffers the values of tagged enums, which raw JSON does not support.
#[derive(Deserialize)]
struct Members {
    r#type: String,
    task_id: TaskId,
    seq: u64,
    progress: Option<u8>,
    phase: Option<Phase>,
    message: Option<String>,
    data: Option<RawJson>,
    status: Option<TaskStatus>,
    #[serde(default)]
    result: Option<TaskResult>,
    #[serde(default)]
    error: Option<TaskError>,
    missed: Option<u64>,
}

impl<'de> Deserialize<'de> for TaskUpdate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Members::deserialize(deserializer)?;
        let (task_id, seq) = (read.task_id, read.seq);
        let missing = D::Error::missing_field;
        Ok(match &*read.r#type {
            "progress" => Self::Progress {
                task_id,
                seq,
                progress: read.progress.ok_or_else(|| missing("progress"))?,
                phase: read.phase.unwrap_or_default(),
                message: read.message.unwrap_or_default(),
            },
            "chunk" => Self::Chunk { task_id, seq, data: read.data.unwrap_or_default() },
            "status" => Self::Status {
                task_id,
                seq,
                status: read.status.ok_or_else(|| missing("status"))?,
                result: read.result,
                error: read.error,
            },
            "gap" => Self::Gap { task_id, seq, missed: read.missed.ok_or_else(|| missing("missed"))? },
            other => return Err(D::Error::unknown_variant(other, &["progress", "chunk", "status", "gap"])),
        })
    }
}
