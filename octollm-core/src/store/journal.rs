//! What a journal remembers of a call.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    budget::{Budget, Usage},
    contract::ContractRef,
    error::Failure,
    id::StepKey,
    json::RawJson,
    transport::ServedBy,
};

/// One call of a task, as its journal remembers it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JournalEntry {
    /// Its place among the entries of the task. Answers are replayed in this order.
    pub seq: u64,
    /// Which call it was.
    pub step: StepKey,
    /// The first step of the batch that it belonged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<StepKey>,
    /// What was asked.
    pub contract: ContractRef,
    /// Whether running it twice does no more than running it once, as its caller knew.
    pub idempotent: bool,
    /// Digest of the input, whatever the order of its keys.
    pub input_digest: String,
    /// What is known of its end.
    pub recorded: Recorded,
    /// The arm that answered, where, and at which attempt.
    pub served_by: ServedBy,
    /// What it used, with all that the arm called.
    pub usage: Usage,
    /// What the task had left when the call was made.
    pub budget_left: Budget,
    /// How long the task still had then, in milliseconds.
    pub time_left_ms: Option<u64>,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// When it was recorded, by the store's clock.
    pub at: Timestamp,
}

/// What is known of the end of a call: what its caller saw, or that it was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recorded {
    /// It is about to be made, and must not be made twice.
    Begun,
    /// It failed, and is made again. Its next answer takes the place of the failure in the order, unless there are entries
    /// after number `last` by then.
    Again {
        /// The greatest number of all entries when this was decided.
        last: u64,
    },
    /// A transport follows it by this handle, whose text is the transport's own.
    Handle(String),
    /// The output, as it came.
    Output(RawJson),
    /// A failure.
    Failure(Box<Failure>),
}

impl Recorded {
    /// The failure, where it is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failure(failure) => Some(failure),
            _ => None,
        }
    }

    /// Whether the call has ended.
    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Output(_) | Self::Failure(_))
    }
}
