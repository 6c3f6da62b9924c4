//! The entries of a task's journal: how they are made from calls, and replayed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    budget::{Budget, Usage},
    contract::ContractRef,
    error::{CallError, ErrorKind, Failure},
    id::StepKey,
    json::{InputDigest, RawJson},
    task::TaskRecord,
    transport::{Call, Reply},
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
    pub(crate) input_digest: InputDigest,
    /// Generation of the idempotency key that the call has.
    #[serde(default, skip_serializing_if = "is_first")]
    pub(crate) generation: u32,
    /// Position of the begun entry of a call whose recorded failure says that its outcome is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) begun: Option<u64>,
    /// What is known of the end of the call.
    pub(crate) recorded: Recorded,
    /// Arm and endpoint that answered, and the number of attempts.
    pub(crate) served_by: ServedBy,
    /// Usage of the call, with all that its arm called. A call that is begun is unmetered until its answer is recorded.
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

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_first(generation: &u32) -> bool {
    *generation == 0
}

impl JournalEntry {
    /// Position of the begin of a call whose outcome is unknown. For an answer, its own position.
    pub(crate) fn position(&self) -> u64 {
        self.begun.unwrap_or(self.seq)
    }

    /// Whether the call has ended.
    pub fn is_answered(&self) -> bool {
        self.recorded.is_answered()
    }

    /// The size of the error of a failed call in bytes, as its owner reads it.
    pub(crate) fn error_size(&self) -> usize {
        self.recorded.failure().map_or(0, Failure::size)
    }

    /// Bytes of what can be large in memory: the names, and the output, the error or the handle.
    pub fn size(&self) -> usize {
        let step = |step: &StepKey| match step {
            StepKey::Name(name) => name.len(),
            StepKey::Order(_) => 0,
        };
        let ServedBy { arm, endpoint, .. } = &self.served_by;
        let names = step(&self.step) + self.batch.as_ref().map_or(0, step) + arm.len() + endpoint.len();
        names
            + match &self.recorded {
                Recorded::Output(output) => output.as_str().len(),
                Recorded::Failure(failure) => failure.memory(),
                Recorded::Handle(handle) => handle.len(),
                Recorded::Begun | Recorded::Again { .. } => 0,
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

/// The part of an entry that is known when the call is made.
pub(crate) struct Draft {
    pub(crate) step: StepKey,
    batch: Option<StepKey>,
    pub(crate) contract: ContractRef,
    idempotent: bool,
    pub(crate) input_digest: InputDigest,
    pub(crate) generation: u32,
    budget_left: Budget,
    time_left: Option<Duration>,
    begun: Instant,
}

impl Draft {
    /// A call with an idempotency key of this generation.
    pub(crate) fn of(call: &Call, input_digest: InputDigest, generation: u32) -> Self {
        let begun = Instant::now();
        Self {
            step: call.step.clone(),
            batch: call.batch.clone(),
            contract: call.contract.clone(),
            idempotent: call.is_idempotent(),
            input_digest,
            generation,
            budget_left: call.parts.budget,
            time_left: call.parts.deadline.map(|end| end.instant().saturating_duration_since(begun)),
            begun,
        }
    }

    /// An entry of this call that is made now. The clock of the store showed the first time of `clock` at the second.
    pub(crate) fn entry(&self, seq: u64, recorded: Recorded, clock: (Timestamp, Instant)) -> JournalEntry {
        let now = Instant::now();
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let usage = if recorded.is_answered() { Usage::ZERO } else { Usage::UNMETERED };
        JournalEntry {
            seq,
            step: self.step.clone(),
            batch: self.batch.clone(),
            contract: self.contract.clone(),
            idempotent: self.idempotent,
            input_digest: self.input_digest,
            generation: self.generation,
            begun: None,
            recorded,
            served_by: ServedBy::default(),
            usage,
            budget_left: self.budget_left,
            time_left_ms: self.time_left.map(milliseconds),
            duration_ms: now.duration_since(self.begun).as_secs_f64() * 1e3,
            at: clock.0.checked_add(now.duration_since(clock.1)).unwrap_or(clock.0),
        }
    }
}

pub(crate) fn replay(entry: JournalEntry) -> Result<Reply, CallError> {
    let JournalEntry { contract, recorded, served_by, usage, .. } = entry;
    match recorded {
        Recorded::Failure(failure) => {
            let mut error =
                CallError::new(contract, *failure).with_usage(usage).with_attempts(served_by.attempts);
            if !served_by.arm.is_empty() {
                error = error.with_arm(&*served_by.arm);
            }
            Err(if served_by.endpoint.is_empty() { error } else { error.with_endpoint(&*served_by.endpoint) })
        }
        Recorded::Output(output) => {
            let ServedBy { arm, endpoint, attempts } = served_by;
            let output = Bytes::from(output.as_str().to_owned());
            Ok(Reply { attempts, ..Reply::new(output, arm, endpoint).with_usage(usage) })
        }
        // Only answers are replayed.
        Recorded::Begun | Recorded::Again { .. } | Recorded::Handle(_) => {
            Err(CallError::new(contract, Failure::of(ErrorKind::OutcomeUnknown)))
        }
    }
}

pub(crate) fn served_by(answer: Result<&Reply, &CallError>) -> ServedBy {
    match answer {
        Ok(reply) => {
            ServedBy { arm: reply.arm.clone(), endpoint: reply.endpoint.clone(), attempts: reply.attempts }
        }
        Err(error) => ServedBy {
            arm: error.arm().unwrap_or_default().into(),
            endpoint: error.endpoint().unwrap_or_default().into(),
            attempts: error.attempts(),
        },
    }
}

pub(crate) fn outcome_unknown(call: &Call) -> CallError {
    let failure = Failure::new(
        ErrorKind::OutcomeUnknown,
        "an earlier attempt may have been executed, and the call is not idempotent: a rerun from this step makes it again",
    );
    CallError::new(call.contract.clone(), failure)
}

/// The longest time of its own that a program is assumed to take: a crash may lie in it.
const OWN_TIME: Duration = Duration::from_secs(30);

/// The time from the previous answer to the call of each entry.
pub(crate) fn own_times(record: &TaskRecord, entries: &[JournalEntry]) -> HashMap<u64, Duration> {
    let mut before = record.deadline_at().and_then(|end| end.checked_sub(record.time_limit()).ok());
    let answered = entries.iter().filter(|entry| entry.recorded.is_answered());
    let times = answered.map(|entry| {
        let since = before.map_or(0.0, |before| entry.at.duration_since(before).as_secs_f64());
        before = Some(entry.at);
        let own = (since - entry.duration_ms / 1e3).clamp(0.0, OWN_TIME.as_secs_f64());
        (entry.seq, Duration::try_from_secs_f64(own).unwrap_or_default())
    });
    times.collect()
}
