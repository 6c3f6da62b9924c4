//! The entries of a journal: how they are made from calls, replayed, and shown.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{
    budget::{Budget, Usage},
    clock::Clock,
    contract::{ContractRef, hex},
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    id::StepKey,
    orchestrator::{JournalStep, StepOutcome},
    store::{JournalEntry, Recorded},
    task::{TaskError, TaskRecord},
    transport::{Call, Reply, ServedBy},
};

/// The part of an entry that is known when the call is made.
#[derive(Clone)]
pub(super) struct Draft {
    pub(super) step: StepKey,
    batch: Option<StepKey>,
    pub(super) contract: ContractRef,
    idempotent: bool,
    pub(super) input_digest: String,
    budget_left: Budget,
    time_left: Option<Duration>,
    begun: Instant,
}

impl Draft {
    pub(super) fn of(call: &Call, input_digest: String) -> Self {
        Self {
            step: call.step.clone(),
            batch: call.batch.clone(),
            contract: call.contract.clone(),
            idempotent: call.is_idempotent(),
            input_digest,
            budget_left: call.parts.budget,
            time_left: call.parts.deadline.map(Deadline::remaining),
            begun: Instant::now(),
        }
    }

    pub(super) fn entry(&self, seq: u64, recorded: Recorded, clock: &Clock) -> JournalEntry {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        JournalEntry {
            seq,
            step: self.step.clone(),
            batch: self.batch.clone(),
            contract: self.contract.clone(),
            idempotent: self.idempotent,
            input_digest: self.input_digest.clone(),
            recorded,
            served_by: ServedBy::default(),
            usage: Usage::default(),
            budget_left: self.budget_left,
            time_left_ms: self.time_left.map(milliseconds),
            duration_ms: self.begun.elapsed().as_secs_f64() * 1e3,
            at: clock.now(),
        }
    }
}

pub(super) fn replay(entry: JournalEntry) -> Result<Reply, CallError> {
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
            Ok(Reply::new(Bytes::from(output.as_str().to_owned()), served_by).with_usage(usage))
        }
        // Only answers are replayed.
        Recorded::Begun | Recorded::Again { .. } | Recorded::Handle(_) => {
            Err(CallError::new(contract, Failure::of(ErrorKind::OutcomeUnknown)))
        }
    }
}

pub(super) fn served_by(error: &CallError) -> ServedBy {
    let mut served_by = ServedBy::new(error.arm().unwrap_or_default(), error.endpoint().unwrap_or_default());
    served_by.attempts = error.attempts();
    served_by
}

pub(super) fn outcome_unknown(call: &Call) -> CallError {
    let failure = Failure::new(
        ErrorKind::OutcomeUnknown,
        "an earlier attempt may have been executed, and the call is not idempotent: a rerun from this step makes it again",
    );
    CallError::new(call.contract.clone(), failure)
}

/// The longest time of its own that a program is assumed to take: a crash may lie in it.
const OWN_TIME: Duration = Duration::from_secs(30);

/// The time from the previous answer to the call of each entry.
pub(super) fn own_times(record: &TaskRecord, entries: &[JournalEntry]) -> HashMap<u64, Duration> {
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

/// The first half of the SHA-256 of the input with its keys sorted, in hexadecimal digits. Numbers keep every digit.
pub(super) fn digest(input: &[u8]) -> String {
    let mut text = String::with_capacity(input.len());
    match serde_json::from_slice::<&RawValue>(input) {
        Ok(value) => canonical(value, 0, &mut text),
        Err(_) => text.push_str(&String::from_utf8_lossy(input)),
    }
    hex(&Sha256::digest(text)[..16])
}

/// Below this depth the text is taken as it is.
const SORTED_DEPTH: usize = 64;

fn canonical(value: &RawValue, depth: usize, text: &mut String) {
    let raw = value.get();
    let sorted = depth < SORTED_DEPTH;
    if let Some(fields) = (sorted && raw.starts_with('{')).then(|| read::<BTreeMap<String, &RawValue>>(raw)) {
        text.push('{');
        for (key, value) in fields.into_iter().flatten() {
            text.push_str(&Value::String(key).to_string());
            text.push(':');
            canonical(value, depth + 1, text);
            text.push(',');
        }
        text.push('}');
    } else if let Some(items) = (sorted && raw.starts_with('[')).then(|| read::<Vec<&RawValue>>(raw)) {
        text.push('[');
        for item in items.into_iter().flatten() {
            canonical(item, depth + 1, text);
            text.push(',');
        }
        text.push(']');
    } else {
        text.push_str(raw);
    }
}

/// The text was read as JSON before.
fn read<'a, T: serde::Deserialize<'a>>(raw: &'a str) -> Option<T> {
    serde_json::from_str(raw).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_knows_every_digit_and_no_order_of_keys() {
        let of = |text: &str| digest(text.as_bytes());
        assert_eq!(of(r#"{"a":1,"b":[{"c":2,"d":3}]}"#), of(r#"{ "b": [{"d":3, "c":2}], "a": 1 }"#));
        assert_ne!(of("[18446744073709551617]"), of("[18446744073709551618]"));
        assert_ne!(of(r#"{"a":"1"}"#), of(r#"{"a":1}"#));
        assert_ne!(of(r#"["a,b"]"#), of(r#"["a","b"]"#));
    }
}
