//! How calls that run at once share a budget.

use crate::budget::{Budget, Cost, Usage};

/// The part of a budget that is reserved by the calls of one batch that run now.
///
/// It only counts: what is left is given to it, and who waits is the caller's business.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    reserved: Usage,
}

impl Shares {
    /// Reserves the share of one more call: (what is left − what is reserved) ÷ `places`, rounded up. `places` is how many
    /// calls can start now, this one included.
    ///
    /// `left` has to include what the running calls have reserved. `None` where all of it is reserved: the call waits until
    /// one of those returns its share. Where nothing is left at all the share is 0, which no call can run with.
    pub(crate) fn take(&mut self, left: Budget, places: usize) -> Option<Budget> {
        let places = u64::try_from(places).unwrap_or(u64::MAX).max(1);
        let tokens = part(left.tokens, self.reserved.tokens, places)?;
        let cost = part(left.cost.map(Cost::nano_dollars), self.reserved.cost.nano_dollars(), places)?;
        let share = Budget { tokens, cost: cost.map(Cost::from_nano_dollars) };
        self.reserved = self.reserved.plus(usage(share));
        Some(share)
    }

    /// Returns the share of a call that has ended. What the call used has to be subtracted from what is left before the
    /// next share is taken.
    pub(crate) fn give_back(&mut self, share: Budget) {
        let share = usage(share);
        let cost = self.reserved.cost.nano_dollars().saturating_sub(share.cost.nano_dollars());
        let tokens = self.reserved.tokens.saturating_sub(share.tokens);
        self.reserved = Usage::tokens(tokens).with_cost(Cost::from_nano_dollars(cost));
    }
}

/// The share in one dimension; `Some(None)` where it has no limit.
fn part(left: Option<u64>, reserved: u64, places: u64) -> Option<Option<u64>> {
    let Some(left) = left else { return Some(None) };
    let free = left.saturating_sub(reserved);
    if free == 0 && left > 0 { None } else { Some(Some(free.div_ceil(places))) }
}

fn usage(share: Budget) -> Usage {
    Usage::tokens(share.tokens.unwrap_or(0)).with_cost(share.cost.unwrap_or(Cost::ZERO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ten_calls_share_a_thousand_tokens_evenly() {
        let mut shares = Shares::default();
        let left = Budget::tokens(1_000);
        for places in (1..=10).rev() {
            assert_eq!(shares.take(left, places), Some(Budget::tokens(100)));
        }
        assert_eq!(shares.take(left, 1), None);
        // One ends having used 10: what it did not use is free again.
        shares.give_back(Budget::tokens(100));
        assert_eq!(shares.take(left.after(Usage::tokens(10)), 1), Some(Budget::tokens(90)));
    }

    #[test]
    fn a_spent_budget_is_a_share_of_nothing_and_no_limit_is_none() {
        let mut shares = Shares::default();
        assert_eq!(shares.take(Budget::tokens(0), 4), Some(Budget::tokens(0)));
        assert_eq!(shares.take(Budget::UNLIMITED, 4), Some(Budget::UNLIMITED));
        let cents = |cents: u64| Some(Cost::from_nano_dollars(cents * 10_000_000));
        let share = shares.take(Budget { tokens: None, cost: cents(100) }, 4);
        assert_eq!(share, Some(Budget { tokens: None, cost: cents(25) }));
    }

    proptest! {
        /// Calls that stay within their shares stay within the budget together, each starts with more than nothing for as
        /// long as something is left, and all of them get their turn.
        #[test]
        fn calls_within_their_shares_are_within_the_budget(
            limit in 0_u64..2_000,
            at_once in 1_usize..12,
            calls in prop::collection::vec((any::<prop::sample::Index>(), 0_u64..=100), 1..40),
        ) {
            let (mut shares, mut used) = (Shares::default(), 0);
            let (mut running, mut waiting): (Vec<Budget>, usize) = (Vec::new(), calls.len());
            for (which, percent) in &calls {
                let left = Budget::tokens(limit - used);
                while running.len() < at_once && waiting > 0 {
                    let Some(share) = shares.take(left, (at_once - running.len()).min(waiting)) else { break };
                    prop_assert_eq!(share.tokens == Some(0), used == limit);
                    running.push(share);
                    waiting -= 1;
                }
                prop_assert!(!running.is_empty());
                let reserved: u64 = running.iter().filter_map(|share| share.tokens).sum();
                prop_assert!(reserved <= limit - used);
                let ended = running.swap_remove(which.index(running.len()));
                used += ended.tokens.unwrap_or(0) * percent / 100;
                shares.give_back(ended);
            }
            prop_assert!(used <= limit && running.is_empty() && waiting == 0);
        }
    }
}
