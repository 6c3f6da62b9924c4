//! The states of a task, and the ways between them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::InvalidValue;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskStatus {
    /// Waits for a brain. Becomes processing, or cancelled, or failed where it cannot be run at all.
    Queued,
    /// Is being run. Becomes completed, failed or cancelled; queued again where its brain let go of it.
    Processing,
    /// Has a result. Final.
    Completed,
    /// Has an error. Becomes queued when it is run again.
    Failed,
    /// Was given up on request. Final.
    Cancelled,
    /// A status that this version does not know, of another service. Not final.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl TaskStatus {
    /// Every status that a task of this version can have.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Processing, Self::Completed, Self::Failed, Self::Cancelled];

    /// Whether a task may go from here to there.
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Queued, Self::Processing | Self::Cancelled | Self::Failed)
                | (Self::Processing, Self::Completed | Self::Failed | Self::Cancelled | Self::Queued)
                | (Self::Failed, Self::Queued)
        )
    }

    /// Whether the task is done with: completed, failed or cancelled.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The word on the wire.
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
}
