//! The inputs of a plan with references to earlier outputs, and how they are filled.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::contract::Violation;

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
