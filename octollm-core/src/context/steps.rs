//! Which number a call without a name gets.

use std::collections::BTreeSet;

/// Numbers the calls of one piece of work in the order in which they are built.
///
/// A call that is given a name after it was built gives its number back. It is free again once no later number is in use,
/// so that calls that are built and named at once on several threads leave the same numbers in every run.
#[derive(Debug, Default)]
pub(super) struct Steps {
    next: u32,
    /// Given back while a later number was in use.
    returned: BTreeSet<u32>,
}

impl Steps {
    /// How many numbers are taken.
    pub(super) fn count(&self) -> u32 {
        self.next
    }

    /// Takes the numbers of so many calls that follow each other, and returns the first.
    pub(super) fn take(&mut self, calls: usize) -> u32 {
        let first = self.next;
        self.next = after(first, calls);
        first
    }

    /// Gives the numbers of so many calls back.
    pub(super) fn give_back(&mut self, first: u32, calls: usize) {
        self.returned.extend(first..after(first, calls));
        while let Some(last) = self.next.checked_sub(1).filter(|last| self.returned.remove(last)) {
            self.next = last;
        }
    }
}

fn after(first: u32, calls: usize) -> u32 {
    first.saturating_add(u32::try_from(calls).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_leave_the_same_numbers_whatever_the_order_in_which_they_are_given(
            counts in prop::collection::vec(1_usize..4, 1..8),
            seed in any::<prop::sample::Index>(),
        ) {
            let mut steps = Steps::default();
            prop_assert_eq!(steps.take(2), 0);
            let mut named: Vec<_> = counts.iter().map(|&count| (steps.take(count), count)).collect();
            while !named.is_empty() {
                let (first, count) = named.swap_remove(seed.index(named.len()));
                steps.give_back(first, count);
            }
            prop_assert_eq!((steps.take(1), steps.returned.len()), (2, 0));
        }
    }

    #[test]
    fn a_number_before_one_in_use_stays_a_hole() {
        let mut steps = Steps::default();
        let (named, unnamed) = (steps.take(1), steps.take(1));
        steps.give_back(named, 1);
        assert_eq!((unnamed, steps.take(1), steps.count()), (1, 2, 3));
    }
}
