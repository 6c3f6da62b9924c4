//! Which step may run when.

use std::collections::BTreeSet;

/// Steps by their position in the plan, and what each needs. Never a circle.
#[derive(Debug)]
pub(super) struct Order {
    needs: Vec<BTreeSet<usize>>,
}

/// How far a plan is.
#[derive(Debug, Default)]
pub(super) struct Done {
    started: BTreeSet<usize>,
    done: BTreeSet<usize>,
}

impl Done {
    /// A step is done.
    pub(super) fn add(&mut self, step: usize) {
        self.done.insert(step);
    }

    pub(super) fn count(&self) -> usize {
        self.done.len()
    }
}

impl Order {
    /// Takes what each step needs.
    ///
    /// # Errors
    /// Steps that need each other in a circle: each circle from its first step in the plan, in the order of need.
    pub(super) fn new(needs: Vec<BTreeSet<usize>>) -> Result<Self, Vec<Vec<usize>>> {
        let order = Self { needs };
        let mut done = Done::default();
        loop {
            let ready = order.start_ready(&mut done);
            if ready.is_empty() {
                break;
            }
            ready.into_iter().for_each(|step| done.add(step));
        }
        let stuck: BTreeSet<usize> =
            (0..order.needs.len()).filter(|step| !done.done.contains(step)).collect();
        if stuck.is_empty() { Ok(order) } else { Err(order.circles(&stuck)) }
    }

    /// The steps that may run now and were not given out yet, in the order of the plan.
    pub(super) fn start_ready(&self, done: &mut Done) -> Vec<usize> {
        let ready: Vec<usize> = (0..self.needs.len())
            .filter(|step| !done.started.contains(step) && self.needs[*step].is_subset(&done.done))
            .collect();
        done.started.extend(&ready);
        ready
    }

    /// Each stuck step needs another stuck one: following them ends in a circle.
    fn circles(&self, stuck: &BTreeSet<usize>) -> Vec<Vec<usize>> {
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for &start in stuck {
            let (mut way, mut at) = (Vec::new(), start);
            while seen.insert(at) {
                way.push(at);
                match self.needs[at].intersection(stuck).next() {
                    Some(&next) => at = next,
                    None => break,
                }
            }
            // A way that ends in an earlier one has no circle of its own.
            if let Some(begin) = way.iter().position(|step| *step == at) {
                let mut circle = way.split_off(begin);
                let first = circle.iter().enumerate().min_by_key(|(_, step)| **step).map_or(0, |(at, _)| at);
                circle.rotate_left(first);
                circles.push(circle);
            }
        }
        circles
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Steps in a shuffled order, each of which needs only such as come before it there.
    fn plans_without_circles() -> impl Strategy<Value = Vec<BTreeSet<usize>>> {
        (1_usize..24)
            .prop_flat_map(|count| {
                let order = Just((0..count).collect::<Vec<_>>()).prop_shuffle();
                let picks =
                    prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), count);
                (order, picks)
            })
            .prop_map(|(order, picks)| {
                let mut needs = vec![BTreeSet::new(); order.len()];
                for (at, picks) in picks.iter().enumerate().skip(1) {
                    needs[order[at]] = picks.iter().map(|pick| order[pick.index(at)]).collect();
                }
                needs
            })
    }

    proptest! {
        #[test]
        fn every_step_is_started_once_and_behind_what_it_needs(
            needs in plans_without_circles(),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 24),
        ) {
            let order = Order::new(needs.clone()).unwrap();
            let (mut done, mut running, mut ran) = (Done::default(), Vec::new(), Vec::new());
            for pick in picks {
                let ready = order.start_ready(&mut done);
                prop_assert!(ready.is_sorted());
                for step in &ready {
                    prop_assert!(needs[*step].iter().all(|need| ran.contains(need)));
                }
                running.extend(ready);
                if running.is_empty() {
                    break;
                }
                let finished = running.swap_remove(pick.index(running.len()));
                done.add(finished);
                ran.push(finished);
            }
            prop_assert_eq!(ran.len(), needs.len());
            ran.sort_unstable();
            prop_assert!(ran.into_iter().eq(0..needs.len()));
        }

        #[test]
        fn a_circle_is_found_wherever_it_is(needs in plans_without_circles(), length in 1_usize..5, at in any::<prop::sample::Index>()) {
            let (mut needs, before) = (needs.clone(), needs.len());
            for step in 0..length {
                needs.push([before + (step + 1) % length].into());
            }
            // Something outside needs the circle, and is stuck without being part of it.
            let outside = at.index(before);
            needs[outside].insert(before);
            let circles = Order::new(needs).unwrap_err();
            prop_assert_eq!(circles, vec![(before..before + length).collect::<Vec<_>>()]);
        }

        #[test]
        fn needs_of_any_kind_are_ordered_or_refused(needs in prop::collection::vec(prop::collection::btree_set(0_usize..12, 0..3), 12)) {
            if let Err(circles) = Order::new(needs.clone()) {
                prop_assert!(!circles.is_empty());
                for circle in circles {
                    let next = circle.iter().cycle().skip(1);
                    prop_assert!(circle.iter().zip(next).all(|(step, next)| needs[*step].contains(next)));
                }
            }
        }
    }
}
