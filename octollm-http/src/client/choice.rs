//! The choice of an endpoint for a call, as a function of what is known of each.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

use octollm_core::__private::machines::two_choices;

/// What is known of an endpoint before a call, beside its load: less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// It would reject the call.
    pub(super) rejects: bool,
    /// The call has failed there.
    pub(super) is_avoided: bool,
    /// It fails more often than the other endpoints.
    pub(super) is_ejected: bool,
    /// What its card says of its status: 0 is healthy.
    pub(super) status: u8,
    /// Its cost, as its card says: 1 is cheap.
    pub(super) cost_tier: u8,
}

impl Rank {
    /// An endpoint with nothing against it, of this status and cost.
    pub(super) const fn good(status: u8, cost_tier: u8) -> Self {
        Self { rejects: false, is_avoided: false, is_ejected: false, status, cost_tier }
    }
}

/// Chooses one of `count` endpoints: the best rank, and of equal ones the one with less load of two at random (the power of
/// two choices). An endpoint without a rank is none to choose. `best` is the best possible rank.
///
/// Usually two endpoints are looked at, whatever their number. All are where one of these two does not have the best rank.
pub(super) fn choose(
    count: usize,
    best: Rank,
    rank: impl Fn(usize) -> Option<Rank>,
    load: impl Fn(usize) -> f64,
    random: u64,
) -> Option<usize> {
    let less_loaded = |one: usize, other: usize| if load(other) < load(one) { other } else { one };
    if let Some((one, other)) = two_of(count, random)
        && [one, other].into_iter().all(|position| rank(position) == Some(best))
    {
        return Some(less_loaded(one, other));
    }
    let ranks = || (0..count).filter_map(|position| Some((rank(position)?, position)));
    let (least, first) = ranks().min()?;
    let equal = || ranks().filter(|(rank, _)| *rank == least).map(|(_, position)| position);
    // A rank may change while it is looked at, so that there may be fewer the second time.
    Some(match two_of(equal().count(), random) {
        Some((one, other)) => {
            less_loaded(equal().nth(one).unwrap_or(first), equal().nth(other).unwrap_or(first))
        }
        None => first,
    })
}

/// Two different positions, in random order; `None` where there are fewer than two.
fn two_of(count: usize, random: u64) -> Option<(usize, usize)> {
    (count > 1).then(|| two_choices(count, random))
}

/// Random bits, which need not be hard to guess: SplitMix64 of Steele, Lea and Flood, one for each thread.
pub(super) fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0_u8));
    }
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Rank = Rank::good(0, 3);

    fn shares(ranks: &[Option<Rank>], loads: &[f64]) -> Vec<usize> {
        let mut shares = vec![0; ranks.len()];
        for _ in 0..10_000 {
            if let Some(chosen) = choose(ranks.len(), GOOD, |i| ranks[i], |i| loads[i], random()) {
                shares[chosen] += 1;
            }
        }
        shares
    }

    #[test]
    fn equal_endpoints_have_equal_shares_and_the_most_loaded_none() {
        let even = shares(&[Some(GOOD); 4], &[1.0; 4]);
        assert!(even.iter().all(|share| (2_300..2_700).contains(share)), "{even:?}");
        let loaded = shares(&[Some(GOOD); 3], &[1.0, 1.0, 5.0]);
        assert_eq!(loaded[2], 0, "{loaded:?}");
    }

    #[test]
    fn a_worse_rank_is_chosen_where_no_better_one_is_left() {
        let avoided = Rank { is_avoided: true, ..GOOD };
        let open = Rank { rejects: true, ..GOOD };
        assert_eq!(shares(&[Some(avoided), Some(GOOD)], &[0.0, 9.0]), [0, 10_000]);
        assert_eq!(shares(&[Some(avoided), Some(open)], &[9.0, 0.0]), [10_000, 0]);
        assert_eq!(shares(&[None, Some(open)], &[0.0, 9.0]), [0, 10_000]);
        assert_eq!(shares(&[None, None], &[0.0, 0.0]), [0, 0]);
        let expensive = Rank::good(0, 5);
        assert_eq!(shares(&[Some(expensive), Some(GOOD), Some(Rank::good(1, 1))], &[0.0; 3]), [0, 10_000, 0]);
    }

    proptest! {
        #[test]
        fn no_better_rank_is_passed_over(tiers in prop::collection::vec(prop::option::of(1_u8..4), 0..9), random: u64) {
            let rank = |position: usize| tiers[position].map(|tier| Rank::good(0, tier));
            let chosen = choose(tiers.len(), Rank::good(0, 1), rank, |_| 1.0, random);
            prop_assert_eq!(chosen.and_then(|position| tiers[position]), tiers.iter().flatten().min().copied());
        }
    }
}
