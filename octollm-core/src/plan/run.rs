//! The loop that runs a plan.

use std::collections::{HashMap, VecDeque};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::Value;
use tokio::task::coop::consume_budget;

use super::{
    PlanOutput,
    check::{Checked, CheckedStep},
    order::Done,
    template::Missing,
};
use crate::{
    budget::Budget,
    context::{Context, Request, Shares, read_value},
    contract::{ContractRef, Spec},
    error::{ArmError, CallError, ErrorKind},
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
        run.answered(place, answer)?;
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
        self.cx.steps(self.done.count() as u64, self.plan.steps.len() as u64);
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
    fn call(&self, place: Place, share: Budget) -> Result<Request, ArmError> {
        let CheckedStep { id, contract, input, .. } = &self.plan.steps[place.step];
        let item = place.item.and_then(|item| self.items[place.step].get(item));
        let name = name(id, place);
        let input = input.fill(&self.outputs, item).map_err(|missing| unfit(&name, missing))?;
        let first = self.plan.steps.first().map_or_else(|| name.clone(), |step| step.id.clone());
        let request = Request::json(self.cx.clone(), StepKey::Name(name), contract, &input)
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
