//! The calls of a task, as its owner reads them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Orchestrator;
use crate::{
    budget::Budget,
    context::Context,
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    store::{JournalEntry, Recorded},
    task::TaskError,
};

/// The largest limit of a page of a journal.
pub const MAX_STEPS: usize = 1_000;

/// One call of a task, as its owner sees it: see [`Orchestrator::journal`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct JournalStep {
    /// Position of the call among the task's calls, from 0, or its name.
    pub step: StepKey,
    /// Contract of the call.
    pub contract: ContractRef,
    /// Arm that answered. Empty where none is known.
    #[serde(default)]
    pub arm: String,
    /// Endpoint of the arm. Empty where it is not known.
    #[serde(default)]
    pub endpoint: String,
    /// Number of attempts.
    #[serde(default = "one")]
    pub attempts: u32,
    /// Outcome of the call.
    pub outcome: StepOutcome,
    /// Error of a failed call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// Budget of the task when the call was made.
    #[serde(default)]
    pub budget_left: Budget,
    /// Time to the deadline when the call was made, in milliseconds.
    #[serde(default)]
    pub time_left_ms: Option<u64>,
    /// Duration of the call, in milliseconds.
    #[schemars(range(min = 0))]
    pub duration_ms: f64,
    /// Tokens that the call used, with all that its arm called.
    pub tokens_used: u64,
    /// Cost of the call in US dollars, with all that its arm called.
    #[schemars(range(min = 0))]
    pub cost_dollars: f64,
    /// Time of the answer. For an unknown outcome, time of the call.
    pub at: Timestamp,
}

impl From<JournalEntry> for JournalStep {
    fn from(entry: JournalEntry) -> Self {
        let outcome = match &entry.recorded {
            Recorded::Output(_) => StepOutcome::Answered,
            Recorded::Failure(_) => StepOutcome::Failed,
            Recorded::Begun | Recorded::Again { .. } | Recorded::Handle(_) => StepOutcome::Unknown,
        };
        Self {
            error: entry.recorded.failure().map(TaskError::from),
            outcome,
            step: entry.step,
            contract: entry.contract,
            arm: entry.served_by.arm.as_ref().into(),
            endpoint: entry.served_by.endpoint.as_ref().into(),
            attempts: entry.served_by.attempts,
            budget_left: entry.budget_left,
            time_left_ms: entry.time_left_ms,
            duration_ms: entry.duration_ms,
            tokens_used: entry.usage.tokens,
            cost_dollars: entry.usage.cost.dollars(),
            at: entry.at,
        }
    }
}

fn one() -> u32 {
    1
}

/// The outcome of a call of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepOutcome {
    /// The call returned an output.
    Answered,
    /// The call failed.
    Failed,
    /// No answer is recorded: the call runs, or the process died during it. An outcome of a later version, of another service, is
    /// read as this one.
    #[serde(other)]
    Unknown,
}

/// Returns all calls of a task, in the order in which they were answered: every page of [`Orchestrator::journal`].
///
/// # Errors
/// As [`Orchestrator::journal`]. [`BadResponse`](ErrorKind::BadResponse) where a page is not after the one before.
///
/// # Cancel safety
/// Reads alone: dropping the future changes nothing.
pub async fn whole_journal(
    orchestrator: &dyn Orchestrator,
    id: &TaskId,
    cx: &Context,
) -> Result<Vec<JournalStep>, Failure> {
    let (mut steps, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = orchestrator.journal(id, after, Some(MAX_STEPS), cx).await?;
        steps.extend(page);
        match next {
            None => return Ok(steps),
            Some(_) if next > after => after = next,
            Some(_) => {
                return Err(Failure::new(
                    ErrorKind::BadResponse,
                    "the journal has a page that does not advance",
                ));
            }
        }
    }
}
