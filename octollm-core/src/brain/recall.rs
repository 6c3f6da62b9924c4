//! What is recorded of the calls that a run makes.

use std::collections::{HashMap, HashSet};

use super::sequence::Sequence;
use crate::{
    error::{ErrorKind, Failure},
    id::StepKey,
    store::{JournalEntry, Recorded},
    transport::Call,
};

/// What one run knows of the journal of its task.
#[derive(Default)]
pub(super) struct State {
    /// Entries of earlier runs that this one has not come to yet.
    recorded: HashMap<StepKey, JournalEntry>,
    /// Steps that this run has taken.
    taken: HashSet<StepKey>,
    pub(super) sequence: Sequence,
    pub(super) arms: Vec<String>,
    /// Steps of this run that ended with a failure.
    pub(super) failed: HashSet<StepKey>,
    /// Where the failures stood whose calls are made again.
    pub(super) again: HashMap<StepKey, u64>,
    pub(super) mismatch: Option<Failure>,
}

/// What the journal knows of a call that is being made.
pub(super) enum Known {
    /// Its answer.
    Answer(Box<JournalEntry>),
    /// That it was begun, and is not known to have ended.
    Begun(Box<JournalEntry>),
    /// Nothing.
    Nothing,
}

impl State {
    pub(super) fn new(entries: Vec<JournalEntry>) -> Self {
        let answered = entries.iter().filter(|entry| entry.recorded.is_answered()).map(|entry| entry.seq);
        let last_of_all = entries.iter().map(|entry| entry.seq).max();
        let mut state = Self { sequence: Sequence::after(answered, last_of_all), ..Self::default() };
        for entry in entries {
            match entry.recorded {
                Recorded::Again { last } if last_of_all <= Some(last) => {
                    state.sequence.hold(entry.seq);
                    state.again.insert(entry.step, entry.seq);
                }
                Recorded::Again { .. } => {}
                _ => drop(state.recorded.insert(entry.step.clone(), entry)),
            }
        }
        state
    }

    /// What is recorded of a step, if it is of this very question.
    pub(super) fn recall(&mut self, call: &Call, digest: &str) -> Result<Known, Failure> {
        if !self.taken.insert(call.step.clone()) {
            return Err(of_another_program(format!("step {} is called twice in one run", call.step)));
        }
        let Some(entry) = self.recorded.remove(&call.step) else { return Ok(Known::Nothing) };
        if entry.contract != call.contract {
            let (was, is) = (&entry.contract, &call.contract);
            return Err(of_another_program(format!("step {} was {was} and is now {is}", call.step)));
        }
        if entry.input_digest != digest {
            let (step, contract) = (&call.step, &call.contract);
            return Err(of_another_program(format!(
                "step {step} calls {contract} with another input than it did"
            )));
        }
        if !entry.recorded.is_answered() {
            return Ok(Known::Begun(Box::new(entry)));
        }
        self.sequence.ask(entry.seq);
        self.used_arm(&entry.served_by.arm);
        if entry.recorded.failure().is_some() {
            self.failed.insert(entry.step.clone());
        }
        Ok(Known::Answer(Box::new(entry)))
    }

    pub(super) fn used_arm(&mut self, arm: &str) {
        if !arm.is_empty() && !self.arms.iter().any(|used| used == arm) {
            self.arms.push(arm.to_owned());
        }
    }

    /// Why the run does not fit the journal, once it has ended, and well after so many ordered `calls`. What was recorded
    /// after the entry `made_again` may be left out.
    pub(super) fn mismatch(&self, calls: Option<u32>, made_again: Option<u64>) -> Option<Failure> {
        let left_out = |calls: u32| {
            let due = self.recorded.values().filter(|entry| {
                matches!(entry.step, StepKey::Order(order) if order >= calls)
                    && made_again.is_none_or(|failure| entry.seq < failure)
            });
            let JournalEntry { step, contract, .. } = due.min_by_key(|entry| &entry.step)?;
            Some(of_another_program(format!("step {step} was {contract} and is no longer taken")))
        };
        self.mismatch.clone().or_else(|| calls.and_then(left_out))
    }
}

fn of_another_program(how: String) -> Failure {
    Failure::new(ErrorKind::JournalMismatch, format!("the journal is of another program: {how}"))
}
