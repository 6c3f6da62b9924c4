//! The checks of a plan before it runs, and its inputs with references to earlier outputs.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::{Plan, PlanStep, run::Order};
use crate::{
    card::ArmCard,
    contract::{ContractCard, ContractRef, Violation},
};

/// A plan without mistakes.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) steps: Vec<CheckedStep>,
    pub(super) order: Order,
}

/// A step whose references exist.
#[derive(Debug)]
pub(super) struct CheckedStep {
    pub(super) id: String,
    pub(super) contract: ContractRef,
    pub(super) input: Template,
    pub(super) each: Option<Template>,
}

/// Checks a plan, and returns all of its mistakes.
pub(super) fn check(plan: &Plan, cards: &[ArmCard], max_steps: usize) -> Result<Checked, Vec<Violation>> {
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
    let offered = Offered::new(cards);
    let (mut steps, mut needs) = (Vec::new(), Vec::new());
    for (position, step) in plan.steps.iter().enumerate() {
        let path = format!("steps[{position}]");
        let card = offered.find(&step.contract, &path, &mut violations);
        let (checked, needed) = references(step, &path, &ids, &mut violations);
        if let Some(card) = card {
            missing_fields(card, &checked.input, &path, &mut violations);
        }
        steps.push(checked);
        needs.push(needed);
    }
    let order = Order::new(needs);
    let cycles = order.as_ref().err().into_iter().flatten();
    for cycle in cycles {
        let names = cycle.iter().chain(cycle.first()).map(|step| plan.steps[*step].id.as_str());
        let path = names.collect::<Vec<_>>().join(" → ");
        violations
            .push(Violation::new(format!("steps[{}]", cycle[0]), format!("is part of a cycle: {path}")));
    }
    match order {
        Ok(order) if violations.is_empty() => Ok(Checked { steps, order }),
        _ => Err(violations),
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

/// An input, or a part of one.
#[derive(Debug)]
pub(super) enum Template {
    Literal(Value),
    /// A part of the output of a step.
    Output {
        step: usize,
        id: String,
        pointer: String,
    },
    /// A part of the item that the step runs for.
    Item {
        pointer: String,
    },
    Array(Vec<Template>),
    Object(Vec<(String, Template)>),
}

/// A part that an output or an item lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing(pub(super) String);

impl Template {
    /// Replaces the references by values. An output may stand in many places: the result is bounded.
    pub(super) fn fill(&self, outputs: &[Value], item: Option<&Value>) -> Result<Value, Missing> {
        self.fill_within(outputs, item, &mut Room(MAX_FILLED))
    }

    fn fill_within(
        &self,
        outputs: &[Value],
        item: Option<&Value>,
        room: &mut Room,
    ) -> Result<Value, Missing> {
        let missing = |of: &str, pointer: &str| Missing(format!("{of} has no `{pointer}`"));
        match self {
            Self::Literal(value) => room.copy(value),
            Self::Output { step, id, pointer } => {
                let output = outputs.get(*step).and_then(|output| output.pointer(pointer));
                room.copy(output.ok_or_else(|| missing(&format!("the output of {id}"), pointer))?)
            }
            Self::Item { pointer } => {
                let part = item.and_then(|item| item.pointer(pointer));
                room.copy(part.ok_or_else(|| missing("the item", pointer))?)
            }
            Self::Array(items) => items.iter().map(|part| part.fill_within(outputs, item, room)).collect(),
            Self::Object(fields) => {
                let mut fill =
                    |(key, part): &(String, Self)| Ok((key.clone(), part.fill_within(outputs, item, room)?));
                Ok(Value::Object(fields.iter().map(&mut fill).collect::<Result<Map<_, _>, _>>()?))
            }
        }
    }
}

/// Memory of one filled input, or of the items of one step, in bytes.
const MAX_FILLED: usize = 64 << 20;

/// Memory that values may still take, in bytes, about as serde_json allocates it.
#[derive(Debug)]
pub(super) struct Room(pub(super) usize);

impl Room {
    /// Copies a value while there is room.
    fn copy(&mut self, value: &Value) -> Result<Value, Missing> {
        self.take(value)?;
        Ok(value.clone())
    }

    /// Takes the room of a value.
    ///
    /// # Errors
    /// When there is not enough.
    pub(super) fn take(&mut self, value: &Value) -> Result<(), Missing> {
        const NODE: usize = 64;
        let own = match value {
            Value::String(text) => NODE + text.len(),
            _ => NODE,
        };
        self.0 =
            self.0.checked_sub(own).ok_or_else(|| Missing("the values of the plan are too large".into()))?;
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.take(item)),
            Value::Object(fields) => fields.iter().try_for_each(|(key, field)| {
                self.0 = self.0.saturating_sub(NODE + key.len());
                self.take(field)
            }),
            _ => Ok(()),
        }
    }
}

/// Reads templates, and collects their mistakes.
pub(super) struct Reader<'a> {
    /// The steps of the plan by their ids.
    pub(super) steps: &'a HashMap<&'a str, usize>,
    pub(super) violations: &'a mut Vec<Violation>,
    /// The steps that were referred to.
    pub(super) needs: BTreeSet<usize>,
    /// Whether the step has items.
    pub(super) item: bool,
}

impl Reader<'_> {
    pub(super) fn read(&mut self, value: &Value, path: &str) -> Template {
        match value {
            Value::Array(items) => {
                let items = items.iter().enumerate();
                Template::Array(items.map(|(at, item)| self.read(item, &format!("{path}[{at}]"))).collect())
            }
            Value::Object(object) => self.reference(object, path).unwrap_or_else(|| {
                let fields = object.iter();
                let read =
                    |(key, part): (&String, _)| (key.clone(), self.read(part, &format!("{path}.{key}")));
                Template::Object(fields.map(read).collect())
            }),
            scalar => Template::Literal(scalar.clone()),
        }
    }

    /// Reads an object that stands for another value.
    fn reference(&mut self, object: &Map<String, Value>, path: &str) -> Option<Template> {
        let nothing = || Template::Literal(Value::Null);
        if let Some(step) = object.get("$output") {
            self.no_fields_beside(object, &["$output", "pointer"], path);
            let pointer = object
                .get("pointer")
                .map_or(Some(String::new()), |pointer| self.pointer(pointer, &format!("{path}.pointer")));
            let Some(id) = step.as_str() else {
                self.violations.push(Violation::new(format!("{path}.$output"), "is not the id of a step"));
                return Some(nothing());
            };
            let step = self.step(id, path);
            return Some(match (step, pointer) {
                (Some(step), Some(pointer)) => Template::Output { step, id: id.to_owned(), pointer },
                _ => nothing(),
            });
        }
        if let Some(pointer) = object.get("$item") {
            self.no_fields_beside(object, &["$item"], path);
            if !self.item {
                self.violations.push(Violation::new(path, "refers to an item, but the step has no `each`"));
            }
            let pointer = self.pointer(pointer, &format!("{path}.$item"));
            return Some(pointer.map_or_else(nothing, |pointer| Template::Item { pointer }));
        }
        let literal = object.get("$literal")?;
        self.no_fields_beside(object, &["$literal"], path);
        Some(Template::Literal(literal.clone()))
    }

    /// The step with this id, which is needed from now on.
    pub(super) fn step(&mut self, id: &str, path: &str) -> Option<usize> {
        let step = self.steps.get(id).copied();
        match step {
            Some(step) => self.needs.extend([step]),
            None => self.violations.push(Violation::new(path, format!("there is no step `{id}`"))),
        }
        step
    }

    fn pointer(&mut self, pointer: &Value, path: &str) -> Option<String> {
        let pointer = pointer.as_str().filter(|pointer| is_pointer(pointer));
        if pointer.is_none() {
            self.violations.push(Violation::new(path, "is not a JSON pointer such as `/files/0`"));
        }
        pointer.map(str::to_owned)
    }

    fn no_fields_beside(&mut self, object: &Map<String, Value>, known: &[&str], path: &str) {
        for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
            self.violations.push(Violation::new(
                format!("{path}.{key}"),
                format!("is not allowed beside `{}`", known[0]),
            ));
        }
    }
}

/// Source: RFC 6901, section 3.
fn is_pointer(text: &str) -> bool {
    let escapes = |(at, _): (usize, &str)| matches!(text.as_bytes().get(at + 1), Some(b'0' | b'1'));
    (text.is_empty() || text.starts_with('/')) && text.match_indices('~').all(escapes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> (Template, Vec<Violation>) {
        let steps = HashMap::from([("list", 0)]);
        let mut violations = Vec::new();
        let mut reader =
            Reader { steps: &steps, violations: &mut violations, needs: BTreeSet::new(), item: true };
        (reader.read(&value, "input"), violations)
    }

    #[test]
    fn places_are_filled_wherever_they_are() {
        let (template, violations) = read(json!({
            "all": { "$output": "list" },
            "some": [1, { "$output": "list", "pointer": "/files/1/a~1b" }],
            "item": { "deep": { "$item": "" } },
            "schema": { "$ref": "#/x" },
            "kept": { "$literal": { "$output": "list" } },
        }));
        assert!(violations.is_empty(), "{violations:?}");
        let output = json!({ "files": [0, { "a/b": true }] });
        let filled = template.fill(std::slice::from_ref(&output), Some(&json!(7))).unwrap();
        assert_eq!(
            filled,
            json!({
                "all": output, "some": [1, true], "item": { "deep": 7 },
                "schema": { "$ref": "#/x" }, "kept": { "$output": "list" },
            })
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let (template, _) = read(json!([{ "$output": "list", "pointer": "/files" }]));
        let missing = template.fill(&[json!({})], None).unwrap_err();
        assert_eq!(missing, Missing("the output of list has no `/files`".into()));
    }

    #[test]
    fn every_malformed_reference_is_reported() {
        let (_, violations) = read(json!({
            "a": { "$output": "nobody" },
            "b": [{ "$output": 7 }],
            "c": { "$output": "list", "pointer": "files" },
            "d": { "$output": "list", "pointer": "/a~2", "more": 1 },
            "e": { "$item": 1 },
        }));
        let paths: Vec<_> = violations.iter().map(|violation| violation.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "input.a",
                "input.b[0].$output",
                "input.c.pointer",
                "input.d.more",
                "input.d.pointer",
                "input.e.$item"
            ]
        );
    }
}
