//! How a run replays its journal: which calls are recorded, and in which order their answers are returned.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::{
    error::{ErrorKind, Failure},
    id::StepKey,
    store::{JournalEntry, Recorded},
    transport::Call,
};

/// The state of the journal in one run.
#[derive(Default)]
pub(super) struct State {
    /// Entries of earlier runs whose calls this run has not made yet.
    recorded: HashMap<StepKey, JournalEntry>,
    /// Steps of the calls of this run.
    taken: HashSet<StepKey>,
    pub(super) sequence: Sequence,
    pub(super) arms: Vec<String>,
    /// Steps of this run that ended with a failure.
    pub(super) failed: HashSet<StepKey>,
    /// Positions of the failures whose calls are made again.
    pub(super) again: HashMap<StepKey, u64>,
    pub(super) mismatch: Option<Failure>,
}

/// The record of a call that is being made.
pub(super) enum Known {
    /// The answer.
    Answer(Box<JournalEntry>),
    /// The call was begun, and is not known to have ended.
    Begun(Box<JournalEntry>),
    /// There is none.
    Nothing,
}

impl State {
    pub(super) fn new(entries: Vec<JournalEntry>) -> Self {
        let answered = entries.iter().filter(|entry| entry.recorded.is_answered()).map(|entry| entry.seq);
        let last_of_all = entries.iter().map(|entry| entry.seq).max();
        let mut state = Self { sequence: Sequence::after(answered, last_of_all), ..Self::default() };
        for entry in entries {
            if entry.recorded.is_answered() {
                state.used_arm(&entry.served_by.arm);
            }
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

    /// Takes the record of a call.
    ///
    /// # Errors
    /// A failure where the record is of another call.
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

    /// The failure of a run that does not match the journal. A run that has ended well has made so many ordered `calls`, and has
    /// to have made all recorded ones up to the entry `made_again`.
    pub(super) fn mismatch(&self, calls: Option<u32>, made_again: Option<u64>) -> Option<Failure> {
        let missing = |calls: u32| {
            let due = self.recorded.values().filter(|entry| {
                matches!(entry.step, StepKey::Order(order) if order >= calls)
                    && made_again.is_none_or(|failure| entry.seq < failure)
            });
            let JournalEntry { step, contract, .. } = due.min_by_key(|entry| &entry.step)?;
            Some(of_another_program(format!("step {step} was {contract} and is no longer taken")))
        };
        self.mismatch.clone().or_else(|| calls.and_then(missing))
    }
}

fn of_another_program(how: String) -> Failure {
    Failure::new(ErrorKind::JournalMismatch, format!("the journal is of another program: {how}"))
}

/// What the next answer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing: the answer may be returned.
    Now,
    /// The recorded answer with this number, which the program has not asked for yet.
    NotAsked(u64),
    /// The answer with this number, which is being recorded or has not been returned yet.
    Pending(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Recorded,
    Asked,
}

/// The order of a task's answers: those of earlier runs as they were recorded, then those of this run as they come.
///
/// Every run has to receive its answers in the order in which they are recorded, so that races end as they did. An answer
/// waits until those before it were returned or dropped.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    open: BTreeMap<u64, Place>,
    /// Positions of failures whose calls are made again. No answer waits for them.
    again: BTreeSet<u64>,
    next: u64,
}

impl Sequence {
    /// Continues after these numbers of recorded answers; `last` is the greatest of all entries.
    pub(super) fn after(recorded: impl Iterator<Item = u64>, last: Option<u64>) -> Self {
        let open: BTreeMap<_, _> = recorded.map(|seq| (seq, Place::Recorded)).collect();
        Self { open, again: BTreeSet::new(), next: last.map_or(0, |last| last + 1) }
    }

    /// Reserves a position for the next answer of a call that failed.
    pub(super) fn hold(&mut self, seq: u64) {
        self.again.insert(seq);
    }

    /// The number of an entry that no answer waits for.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The position of a new answer: the one that is reserved for it, while no later answer has been returned, else the last.
    pub(super) fn enter(&mut self, held: Option<u64>) -> u64 {
        let held = held.filter(|seq| self.again.remove(seq));
        let seq = held.unwrap_or_else(|| self.number());
        self.open.insert(seq, Place::Asked);
        seq
    }

    /// Marks a recorded answer that the program asks for.
    pub(super) fn ask(&mut self, seq: u64) {
        if let Some(place) = self.open.get_mut(&seq) {
            *place = Place::Asked;
        }
    }

    /// What this answer waits for.
    pub(super) fn turn(&self, seq: u64) -> Turn {
        match self.open.first_key_value() {
            Some((first, place)) if *first < seq => match place {
                Place::Recorded => Turn::NotAsked(*first),
                Place::Asked => Turn::Pending(*first),
            },
            _ => Turn::Now,
        }
    }

    /// Removes an answer that was returned or dropped.
    pub(super) fn leave(&mut self, seq: u64) {
        self.open.remove(&seq);
        self.again = self.again.split_off(&seq);
    }

    /// Removes what other answers wait for, unless it has moved meanwhile. Returns whether it was removed.
    pub(super) fn skip(&mut self, before: Turn) -> bool {
        let (seq, place) = match before {
            Turn::Now => return false,
            Turn::NotAsked(seq) => (seq, Place::Recorded),
            Turn::Pending(seq) => (seq, Place::Asked),
        };
        let there = self.open.get(&seq) == Some(&place);
        if there {
            self.open.remove(&seq);
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_waits_for_those_before_it() {
        let mut sequence = Sequence::after([2, 5].into_iter(), Some(6));
        assert_eq!(sequence.turn(5), Turn::NotAsked(2));
        sequence.ask(2);
        assert_eq!((sequence.turn(2), sequence.turn(5)), (Turn::Now, Turn::Pending(2)));
        sequence.leave(2);
        assert_eq!(sequence.turn(5), Turn::Now);
        let new = sequence.enter(None);
        assert_eq!((new, sequence.turn(new)), (7, Turn::NotAsked(5)));
        assert!(sequence.skip(Turn::NotAsked(5)));
        assert_eq!(sequence.turn(new), Turn::Now);
    }

    #[test]
    fn two_that_wait_for_one_answer_skip_it_once() {
        let mut sequence = Sequence::after([1, 2].into_iter(), Some(2));
        let before = sequence.turn(9);
        assert!(sequence.skip(before) && !sequence.skip(before));
        let before = sequence.turn(9);
        sequence.ask(2);
        assert!(!sequence.skip(before), "it has been asked for since");
        assert_eq!(sequence.turn(9), Turn::Pending(2));
    }

    #[test]
    fn an_answer_takes_the_place_of_its_failure_until_a_later_one_was_returned() {
        let fresh = || {
            let mut sequence = Sequence::after([1, 4].into_iter(), Some(4));
            sequence.hold(2);
            sequence.hold(3);
            sequence
        };
        let mut sequence = fresh();
        sequence.leave(1);
        assert_eq!((sequence.turn(4), sequence.enter(Some(3))), (Turn::Now, 3));
        assert_eq!(sequence.turn(4), Turn::Pending(3));
        sequence.leave(3);
        assert_eq!((sequence.enter(Some(2)), sequence.enter(Some(3))), (5, 6));
        let mut sequence = fresh();
        sequence.leave(4);
        assert_eq!(sequence.enter(Some(3)), 5);
    }

    proptest! {
        #[test]
        fn answers_leave_in_the_order_of_their_numbers(asked in Just((0_u64..8).collect::<Vec<_>>()).prop_shuffle(), fresh in 0_usize..4) {
            let mut sequence = Sequence::after(0..8, Some(7));
            let mut waiting: Vec<u64> = Vec::new();
            let mut left = Vec::new();
            let news = (0..fresh).map(|_| sequence.enter(None)).collect::<Vec<_>>();
            for seq in news.into_iter().chain(asked) {
                sequence.ask(seq);
                waiting.push(seq);
                while let Some(at) = waiting.iter().position(|seq| sequence.turn(*seq) == Turn::Now) {
                    let seq = waiting.swap_remove(at);
                    sequence.leave(seq);
                    left.push(seq);
                }
            }
            prop_assert_eq!(left, (0..8 + fresh as u64).collect::<Vec<_>>());
        }
    }
}
