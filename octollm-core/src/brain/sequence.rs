//! In which order answers reach the program.

use std::collections::{BTreeMap, BTreeSet};

/// What stands before the next answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing: the answer may be returned.
    Now,
    /// The recorded answer of this number, which the program has not asked for yet.
    NotAsked(u64),
    /// The answer of this number, which is being recorded, or was asked for and not returned yet.
    Pending(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Recorded,
    Asked,
}

/// The order of a task's answers: those of earlier runs as they were recorded, then those of this run as they come.
///
/// The program must see its answers in the order in which they are recorded, in every run alike: only then do races end
/// as they did. So an answer waits until those before it were returned, or given up.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    open: BTreeMap<u64, Place>,
    /// Places of failures whose calls are made again. No answer waits for them.
    again: BTreeSet<u64>,
    next: u64,
}

impl Sequence {
    /// Continues after these numbers of recorded answers; `last` is the greatest of all entries.
    pub(super) fn after(recorded: impl Iterator<Item = u64>, last: Option<u64>) -> Self {
        let open: BTreeMap<_, _> = recorded.map(|seq| (seq, Place::Recorded)).collect();
        Self { open, again: BTreeSet::new(), next: last.map_or(0, |last| last + 1) }
    }

    /// The next answer of a call that failed may take this place.
    pub(super) fn hold(&mut self, seq: u64) {
        self.again.insert(seq);
    }

    /// A number for an entry that no answer waits for.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The place of a new answer: the one that is held for it, while no later answer has been returned; else after all
    /// that are known.
    pub(super) fn enter(&mut self, held: Option<u64>) -> u64 {
        let held = held.filter(|seq| self.again.remove(seq));
        let seq = held.unwrap_or_else(|| self.number());
        self.open.insert(seq, Place::Asked);
        seq
    }

    /// The program asks for a recorded answer.
    pub(super) fn ask(&mut self, seq: u64) {
        if let Some(place) = self.open.get_mut(&seq) {
            *place = Place::Asked;
        }
    }

    /// What stands before this answer.
    pub(super) fn turn(&self, seq: u64) -> Turn {
        match self.open.first_key_value() {
            Some((first, place)) if *first < seq => match place {
                Place::Recorded => Turn::NotAsked(*first),
                Place::Asked => Turn::Pending(*first),
            },
            _ => Turn::Now,
        }
    }

    /// This answer was returned, or is no longer wanted.
    pub(super) fn leave(&mut self, seq: u64) {
        self.open.remove(&seq);
        self.again = self.again.split_off(&seq);
    }

    /// The others no longer wait for what stands before them, unless it has moved by now. Returns whether it was there.
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
