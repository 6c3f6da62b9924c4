//! How the steps of a plan run: the order, and the loop.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    mem,
};

use serde_json::Value;

use super::{
    PlanOutput,
    check::{Checked, CheckedStep},
    template::{Missing, Room, Template},
};
use crate::{
    budget::Budget,
    context::{Calls, Context, UnsentCall, run_calls},
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
    let mut run = PlanRun::new(plan, specs, cx);
    cx.phase(Phase::Execution);
    run.report_progress();
    run.start_ready()?;
    loop {
        run_calls(&mut run, cx, calls_at_once, read_value).await?;
        // Every call that was recorded has ended.
        run.recorded.clear();
        if run.later.is_empty() {
            return Ok(run.output());
        }
        mem::swap(&mut run.waiting, &mut run.later);
    }
}

/// One call of a step.
#[derive(Debug, Clone, Copy)]
struct Place {
    step: usize,
    /// Position of the item, where the step runs for each of a list.
    item: Option<usize>,
}

struct PlanRun<'a> {
    plan: Checked,
    specs: &'a HashMap<ContractRef, Spec>,
    cx: &'a Context,
    done: Done,
    /// Calls that may be made now, in the order in which they became ready.
    waiting: VecDeque<Place>,
    /// Calls that wait for those in `recorded`.
    later: VecDeque<Place>,
    /// Calls that are made before others: see [`Transport::resumed`](crate::transport::Transport::resumed).
    recorded: HashSet<StepKey>,
    /// By step: its items, and the number of calls that are not answered yet.
    items: Vec<Vec<Value>>,
    open: Vec<usize>,
    /// By step: its output, null until then.
    outputs: Vec<Value>,
    room: Room,
}

/// Memory of the outputs of one plan, in bytes.
const MAX_OUTPUTS: usize = 256 << 20;

impl<'a> PlanRun<'a> {
    fn new(plan: Checked, specs: &'a HashMap<ContractRef, Spec>, cx: &'a Context) -> Self {
        let steps = plan.steps.len();
        let first = plan.steps.first().map(|step| StepKey::Name(step.id.clone()));
        let recorded = first.map(|first| cx.resumed(&first)).unwrap_or_default();
        Self {
            plan,
            specs,
            cx,
            done: Done::default(),
            waiting: VecDeque::new(),
            later: VecDeque::new(),
            recorded,
            items: vec![Vec::new(); steps],
            open: vec![0; steps],
            outputs: vec![Value::Null; steps],
            room: Room(MAX_OUTPUTS),
        }
    }

    fn report_progress(&self) {
        self.cx.progress_steps(self.done.count() as u64, self.plan.steps.len() as u64);
    }

    /// Queues the calls of all steps that may run now. A step without items is done at once, and others may become ready by that.
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
            self.queue(Place { step, item: None });
            return Ok(());
        };
        let id = &self.plan.steps[step].id;
        let items = match each.fill(&self.outputs, None).map_err(|missing| unfit(id, missing))? {
            Value::Array(items) => items,
            _ => return Err(unfit(id, Missing("`each` stands for a value that is not a list".into()))),
        };
        if matches!(each, Template::Output { .. }) {
            let (count, most) = (items.len(), self.plan.max_calls);
            let left = self.plan.calls_left.checked_sub(count).ok_or_else(|| {
                let message = format!("`each` has {count} items, and a plan makes at most {most} calls");
                unfit(id, Missing(message))
            });
            self.plan.calls_left = left?;
        }
        self.open[step] = items.len();
        self.outputs[step] = Value::Array(vec![Value::Null; items.len()]);
        (0..items.len()).for_each(|item| self.queue(Place { step, item: Some(item) }));
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

    fn finished(&mut self, step: usize) {
        self.done.add(step);
        self.report_progress();
    }

    /// Queues a call. While recorded calls are made first, others wait.
    fn queue(&mut self, place: Place) {
        let step = || StepKey::Name(name(&self.plan.steps[place.step].id, place));
        let is_later = !self.recorded.is_empty() && !self.recorded.contains(&step());
        if is_later { self.later.push_back(place) } else { self.waiting.push_back(place) }
    }

    fn output(self) -> PlanOutput {
        let ran: Vec<_> = self.plan.steps.into_iter().map(|step| step.id).collect();
        PlanOutput { outputs: ran.iter().cloned().zip(self.outputs).collect(), ran }
    }
}

impl Calls<Value> for PlanRun<'_> {
    type Place = Place;
    type Error = ArmError;

    fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn next(&mut self, share: Budget) -> Option<Result<(Place, UnsentCall), ArmError>> {
        let place = self.waiting.pop_front()?;
        Some(self.call(place, share).map(|call| (place, call)))
    }

    fn answered(&mut self, place: Place, answer: Result<Value, CallError>) -> Result<(), ArmError> {
        let Place { step, item } = place;
        let output = answer.map_err(|error| failed(&name(&self.plan.steps[step].id, place), error))?;
        self.room.take(&output).map_err(|missing| unfit(&name(&self.plan.steps[step].id, place), missing))?;
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
}

/// The name of a call in the journal. It does not depend on the order of the answers.
fn name(id: &str, place: Place) -> String {
    match place.item {
        Some(item) => format!("{id}[{item}]"),
        None => id.to_owned(),
    }
}

fn failed(step: &str, error: CallError) -> ArmError {
    ArmError::from(error).at_step(step)
}

/// The error for an answer of another form than the plan expects.
fn unfit(step: &str, Missing(what): Missing) -> ArmError {
    ArmError::new(ErrorKind::BadResponse, what).at_step(step)
}

/// The steps that each step needs, by their positions in the plan, without a cycle.
#[derive(Debug)]
pub(super) struct Order {
    needs: Vec<BTreeSet<usize>>,
}

/// The steps that were started, and those that are done.
#[derive(Debug, Default)]
pub(super) struct Done {
    started: BTreeSet<usize>,
    done: BTreeSet<usize>,
}

impl Done {
    /// Marks a step as done.
    pub(super) fn add(&mut self, step: usize) {
        self.done.insert(step);
    }

    pub(super) fn count(&self) -> usize {
        self.done.len()
    }
}

impl Order {
    /// The order of steps with these needs.
    ///
    /// # Errors
    /// The cycles, each from its first step in the plan, in the order of need.
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
        if stuck.is_empty() { Ok(order) } else { Err(order.cycles(&stuck)) }
    }

    /// Starts the steps that may run now, and returns them in the order of the plan.
    pub(super) fn start_ready(&self, done: &mut Done) -> Vec<usize> {
        let ready: Vec<usize> = (0..self.needs.len())
            .filter(|step| !done.started.contains(step) && self.needs[*step].is_subset(&done.done))
            .collect();
        done.started.extend(&ready);
        ready
    }

    /// Each stuck step needs another stuck one: following them ends in a cycle.
    fn cycles(&self, stuck: &BTreeSet<usize>) -> Vec<Vec<usize>> {
        let mut seen = BTreeSet::new();
        let mut cycles = Vec::new();
        for &start in stuck {
            let (mut path, mut at) = (Vec::new(), start);
            while seen.insert(at) {
                path.push(at);
                match self.needs[at].intersection(stuck).next() {
                    Some(&next) => at = next,
                    None => break,
                }
            }
            // A path that ends in an earlier one has no cycle of its own.
            if let Some(begin) = path.iter().position(|step| *step == at) {
                let mut cycle = path.split_off(begin);
                let first = cycle.iter().enumerate().min_by_key(|(_, step)| **step).map_or(0, |(at, _)| at);
                cycle.rotate_left(first);
                cycles.push(cycle);
            }
        }
        cycles
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
        fn every_step_is_started_once_and_after_what_it_needs(
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
