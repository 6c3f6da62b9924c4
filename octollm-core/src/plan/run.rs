//! Which step of a plan may run when, and the loop that runs them.

use std::collections::{BTreeSet, HashMap, VecDeque};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::Value;
use tokio::task::coop::consume_budget;

use super::{
    PlanOutput,
    check::{Checked, CheckedStep},
    template::Missing,
};
use crate::{
    budget::Budget,
    context::{Context, Shares, UnsentCall, count_ended},
    contract::{ContractRef, Spec},
    error::{ArmError, CallError, ErrorKind},
    json::read_value,
    transport::StepKey,
    update::Phase,
};

/// Runs a plan to its end, or to its first failure.
pub(super) async fn run(
    plan: Checked,
    specs: &HashMap<ContractRef, Spec>,
    calls_at_once: usize,
    cx: &Context,
) -> Result<PlanOutput, ArmError> {
    let mut run = Run::new(plan, specs, cx);
    cx.phase(Phase::Execution);
    run.tell();
    run.start_ready()?;
    let (mut calls, mut shares) = (FuturesUnordered::new(), Shares::default());
    loop {
        while calls.len() < calls_at_once && !run.waiting.is_empty() {
            let places = run.waiting.len().min(calls_at_once - calls.len());
            let Some(share) = shares.take(cx.budget(), places) else { break };
            let Some(place) = run.waiting.pop_front() else { break };
            let call = run.call(place, share)?.answer(read_value);
            calls.push(async move { (place, share, call.await) });
        }
        let Some((place, share, answer)) = calls.next().await else { break };
        shares.give_back(share);
        if let Err(error) = run.answered(place, answer) {
            count_ended(cx, &mut calls);
            return Err(error);
        }
        // Calls that never wait must not hold the thread for as long as the plan lasts.
        consume_budget().await;
    }
    Ok(run.output())
}

/// One call of a step.
#[derive(Debug, Clone, Copy)]
struct Place {
    step: usize,
    /// Which item it is for, where the step runs for each of a list.
    item: Option<usize>,
}

struct Run<'a> {
    plan: Checked,
    specs: &'a HashMap<ContractRef, Spec>,
    cx: &'a Context,
    done: Done,
    /// Calls that may be made now, in the order in which they became ready.
    waiting: VecDeque<Place>,
    /// By step: the items it runs for, and how many of their calls were not answered yet.
    items: Vec<Vec<Value>>,
    open: Vec<usize>,
    /// By step: what it answered; null until then.
    outputs: Vec<Value>,
}

impl<'a> Run<'a> {
    fn new(plan: Checked, specs: &'a HashMap<ContractRef, Spec>, cx: &'a Context) -> Self {
        let steps = plan.steps.len();
        Self {
            plan,
            specs,
            cx,
            done: Done::default(),
            waiting: VecDeque::new(),
            items: vec![Vec::new(); steps],
            open: vec![0; steps],
            outputs: vec![Value::Null; steps],
        }
    }

    fn tell(&self) {
        self.cx.progress_steps(self.done.count() as u64, self.plan.steps.len() as u64);
    }

    /// Queues the calls of all steps that may run now. A step for each of no items is done at once, and others may
    /// become ready by that.
    fn start_ready(&mut self) -> Result<(), ArmError> {
        loop {
            let ready = self.plan.order.start_ready(&mut self.done);
            if ready.is_empty() {
                return Ok(());
            }
            for step in ready {
                self.start(step)?;
            }
        }
    }

    fn start(&mut self, step: usize) -> Result<(), ArmError> {
        let Some(each) = &self.plan.steps[step].each else {
            self.open[step] = 1;
            self.waiting.push_back(Place { step, item: None });
            return Ok(());
        };
        let id = &self.plan.steps[step].id;
        let items = match each.fill(&self.outputs, None).map_err(|missing| unfit(id, missing))? {
            Value::Array(items) => items,
            _ => return Err(unfit(id, Missing("`each` stands for something that is no list".into()))),
        };
        self.open[step] = items.len();
        self.outputs[step] = Value::Array(vec![Value::Null; items.len()]);
        self.waiting.extend((0..items.len()).map(|item| Place { step, item: Some(item) }));
        if items.is_empty() {
            self.finished(step);
        }
        self.items[step] = items;
        Ok(())
    }

    /// The call of a place. All calls of a plan are one batch: several may fail before the plan ends.
    fn call(&self, place: Place, share: Budget) -> Result<UnsentCall, ArmError> {
        let CheckedStep { id, contract, input, .. } = &self.plan.steps[place.step];
        let item = place.item.and_then(|item| self.items[place.step].get(item));
        let name = name(id, place);
        let input = input.fill(&self.outputs, item).map_err(|missing| unfit(&name, missing))?;
        let first = self.plan.steps.first().map_or_else(|| name.clone(), |step| step.id.clone());
        let request = UnsentCall::json(self.cx.clone(), StepKey::Name(name), contract, &input)
            .with_spec(self.specs.get(contract).cloned());
        Ok(request.of_batch(StepKey::Name(first), share))
    }

    fn answered(&mut self, place: Place, answer: Result<Value, CallError>) -> Result<(), ArmError> {
        let Place { step, item } = place;
        let output = answer.map_err(|error| failed(&name(&self.plan.steps[step].id, place), error))?;
        match item {
            Some(item) => self.outputs[step][item] = output,
            None => self.outputs[step] = output,
        }
        self.open[step] -= 1;
        if self.open[step] == 0 {
            self.finished(step);
            self.start_ready()?;
        }
        Ok(())
    }

    fn finished(&mut self, step: usize) {
        self.done.add(step);
        self.tell();
    }

    fn output(self) -> PlanOutput {
        let ran: Vec<_> = self.plan.steps.into_iter().map(|step| step.id).collect();
        PlanOutput { outputs: ran.iter().cloned().zip(self.outputs).collect(), ran }
    }
}

/// The same whatever the order in which calls are answered: the journal knows them by it.
fn name(id: &str, place: Place) -> String {
    match place.item {
        Some(item) => format!("{id}[{item}]"),
        None => id.to_owned(),
    }
}

fn failed(step: &str, error: CallError) -> ArmError {
    ArmError::from(error).at_step(step)
}

/// An answer was of another form than the plan takes it for.
fn unfit(step: &str, Missing(what): Missing) -> ArmError {
    ArmError::new(ErrorKind::BadResponse, what).at_step(step)
}

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
