//! The entries of a task's journal.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    budget::{Budget, Usage},
    contract::ContractRef,
    error::Failure,
    id::StepKey,
    json::RawJson,
};

/// An entry of a task's journal: one call, and what is known of its end. A store reads the members that are public here, and
/// stores the entry as serde writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Position among the entries of the task. Answers are replayed in this order.
    pub seq: u64,
    /// Step of the call.
    pub step: StepKey,
    /// First step of the batch of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) batch: Option<StepKey>,
    /// Contract of the call.
    pub contract: ContractRef,
    /// Whether the caller's contract is idempotent.
    pub(crate) idempotent: bool,
    /// Digest of the input, whatever the order of its keys.
    pub(crate) input_digest: String,
    /// What is known of the end of the call.
    pub(crate) recorded: Recorded,
    /// Arm and endpoint that answered, and the number of attempts.
    pub(crate) served_by: ServedBy,
    /// Usage of the call, with all that its arm called.
    pub(crate) usage: Usage,
    /// Budget of the task when the call was made.
    pub(crate) budget_left: Budget,
    /// Time that the task had when the call was made, in milliseconds.
    pub(crate) time_left_ms: Option<u64>,
    /// Duration of the call, in milliseconds.
    pub(crate) duration_ms: f64,
    /// Time of the record, by the store's clock.
    pub at: Timestamp,
}

impl JournalEntry {
    /// Whether the call has ended.
    pub fn is_answered(&self) -> bool {
        self.recorded.is_answered()
    }

    /// The size of the output or of the message in bytes.
    pub fn size(&self) -> usize {
        match &self.recorded {
            Recorded::Output(output) => output.as_str().len(),
            Recorded::Failure(failure) => failure.message.len(),
            Recorded::Begun | Recorded::Again { .. } | Recorded::Handle(_) => 0,
        }
    }
}

/// The arm that answered a call, its endpoint, and the number of attempts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ServedBy {
    pub(crate) arm: Arc<str>,
    pub(crate) endpoint: Arc<str>,
    pub(crate) attempts: u32,
}

/// What is known of the end of a call: what its caller received, or that it was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Recorded {
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
    /// The failure of a failed call.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failure(failure) => Some(failure),
            _ => None,
        }
    }

    /// Whether the call has ended.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self, Self::Output(_) | Self::Failure(_))
    }
}
