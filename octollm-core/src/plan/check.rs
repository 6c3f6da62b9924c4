//! The checks of a plan before it runs.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::{
    Plan, PlanStep,
    run::Order,
    template::{Reader, Template},
};
use crate::{
    card::ArmCard,
    contract::{ContractCard, ContractRef, Violation},
};

/// A plan without mistakes.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) steps: Vec<CheckedStep>,
    pub(super) order: Order,
    /// Calls that steps may make whose number of items is not known yet, and the limit of all calls.
    pub(super) calls_left: usize,
    pub(super) max_calls: usize,
}

/// A step whose references exist.
#[derive(Debug)]
pub(super) struct CheckedStep {
    pub(super) id: String,
    pub(super) contract: ContractRef,
    pub(super) input: Template,
    pub(super) each: Option<Template>,
}

/// Checks a plan, and returns all of its mistakes. Without cards, contracts and the fields of their inputs are not checked.
pub(super) fn check(
    plan: &Plan,
    cards: Option<&[ArmCard]>,
    max_steps: usize,
    max_calls: usize,
) -> Result<Checked, Vec<Violation>> {
    if plan.steps.is_empty() {
        return Err(vec![Violation::new("steps", "is empty")]);
    }
    if plan.steps.len() > max_steps {
        let count = plan.steps.len();
        return Err(vec![Violation::new(
            "steps",
            format!("has {count} steps; at most {max_steps} are allowed"),
        )]);
    }
    let mut violations = Vec::new();
    let ids = ids(&plan.steps, &mut violations);
    let offered = cards.map(Offered::new);
    let (mut steps, mut needs) = (Vec::new(), Vec::new());
    for (position, step) in plan.steps.iter().enumerate() {
        let path = format!("steps[{position}]");
        let card = offered.as_ref().and_then(|offered| offered.find(&step.contract, &path, &mut violations));
        let (checked, needed) = references(step, &path, &ids, &mut violations);
        if let Some(card) = card {
            missing_fields(card, &checked.input, &path, &mut violations);
        }
        steps.push(checked);
        needs.push(needed);
    }
    let calls: usize = plan.steps.iter().map(known_calls).sum();
    let calls_left = max_calls.checked_sub(calls);
    if calls_left.is_none() {
        let message = format!("make {calls} calls; at most {max_calls} are allowed");
        violations.push(Violation::new("steps", message));
    }
    let order = Order::new(needs);
    let cycles = order.as_ref().err().into_iter().flatten();
    for cycle in cycles {
        let names = cycle.iter().chain(cycle.first()).map(|step| plan.steps[*step].id.as_str());
        let path = names.collect::<Vec<_>>().join(" → ");
        violations
            .push(Violation::new(format!("steps[{}]", cycle[0]), format!("is part of a cycle: {path}")));
    }
    match (order, calls_left) {
        (Ok(order), Some(calls_left)) if violations.is_empty() => {
            Ok(Checked { steps, order, calls_left, max_calls })
        }
        _ => Err(violations),
    }
}

/// The number of calls of a step, 0 where it depends on an output.
fn known_calls(step: &PlanStep) -> usize {
    match &step.each {
        None => 1,
        Some(Value::Array(items)) => items.len(),
        Some(literal) => literal.get("$literal").and_then(Value::as_array).map_or(0, Vec::len),
    }
}

fn ids<'a>(steps: &'a [PlanStep], violations: &mut Vec<Violation>) -> HashMap<&'a str, usize> {
    let mut ids = HashMap::new();
    for (position, step) in steps.iter().enumerate() {
        let path = || format!("steps[{position}].id");
        if !is_id(&step.id) {
            violations.push(Violation::new(path(), "is not 1 to 64 of letters, digits, `_`, `.` and `-`"));
        }
        if let Some(first) = ids.get(&*step.id) {
            violations.push(Violation::new(path(), format!("`{}` is the id of steps[{first}] too", step.id)));
        } else {
            ids.insert(&*step.id, position);
        }
    }
    ids
}

/// No brackets: those count the items of a step, in the names of its calls.
fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

/// Reads the references of a step, and returns the steps that it needs.
fn references(
    step: &PlanStep,
    path: &str,
    ids: &HashMap<&str, usize>,
    violations: &mut Vec<Violation>,
) -> (CheckedStep, BTreeSet<usize>) {
    let mut reader = Reader { steps: ids, violations, needs: BTreeSet::new(), item: false };
    let each = step.each.as_ref().map(|each| {
        let template = reader.read(each, &format!("{path}.each"));
        if matches!(&template, Template::Object(_))
            || matches!(&template, Template::Literal(value) if !value.is_array())
        {
            reader.violations.push(Violation::new(
                format!("{path}.each"),
                "is neither a list nor an object that stands for one",
            ));
        }
        template
    });
    reader.item = each.is_some();
    let input = reader.read(&step.input, &format!("{path}.input"));
    for (position, id) in step.after.iter().enumerate() {
        reader.step(id, &format!("{path}.after[{position}]"));
    }
    let (id, contract) = (step.id.clone(), step.contract.clone());
    (CheckedStep { id, contract, input, each }, reader.needs)
}

/// The contracts that the arms offer.
struct Offered<'a> {
    contracts: HashMap<ContractRef, &'a ContractCard>,
}

impl<'a> Offered<'a> {
    fn new(cards: &'a [ArmCard]) -> Self {
        let all = cards.iter().flat_map(|card| &card.contracts);
        Self { contracts: all.filter_map(|card| Some((card.reference()?, card))).collect() }
    }

    fn find(
        &self,
        contract: &ContractRef,
        path: &str,
        violations: &mut Vec<Violation>,
    ) -> Option<&'a ContractCard> {
        let card = self.contracts.get(contract).copied();
        if card.is_none() {
            let mut offered: Vec<_> = self.contracts.keys().map(ContractRef::to_string).collect();
            offered.sort();
            let offered = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
            let message = format!("{contract} is not offered; offered: {offered}");
            violations.push(Violation::new(format!("{path}.contract"), message));
        }
        card
    }
}

/// Checks the fields that the contract requires, as far as they are known before the plan runs.
fn missing_fields(card: &ContractCard, input: &Template, path: &str, violations: &mut Vec<Violation>) {
    let has = |field: &str| match input {
        Template::Object(fields) => fields.iter().any(|(key, _)| key == field),
        Template::Literal(Value::Object(fields)) => fields.contains_key(field),
        // The output of a step or an item is not known yet.
        Template::Output { .. } | Template::Item { .. } => true,
        Template::Literal(_) | Template::Array(_) => false,
    };
    let required = card.input_schema.get("required").and_then(Value::as_array);
    for field in required.into_iter().flatten().filter_map(Value::as_str).filter(|field| !has(field)) {
        violations.push(Violation::new(format!("{path}.input.{field}"), "missing field"));
    }
}
