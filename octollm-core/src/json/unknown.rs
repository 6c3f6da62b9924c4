//! Members that a schema does not know.
//!
//! What serde takes aside before it knows what it is (a flattened struct, an enum with a tag) it reads and ignores
//! the members that are left over. The published schema refuses them, so the input is compared with the schema.

use std::{cell::Cell, collections::BTreeSet};

use serde_json::{Map, Value};

use super::shape::{join, note};
use crate::contract::referred;

/// How many schemas may refer to each other on the way to one value.
const MAX_STEPS: usize = 2_000;

/// How often a schema and a value are compared for one input. Where several variants fit at each level of a value, the number
/// doubles with each.
const MAX_VISITS: u32 = 2_000_000;

/// The value has too many parts that fit several variants.
#[derive(Debug)]
pub(super) struct TooAmbiguous;

/// The paths of the members of a value that its schema refuses, as far as they are reported.
///
/// Only names are looked at: that the value fits otherwise is known.
pub(super) fn unknown(schema: &Value, value: &Value) -> Result<Vec<String>, TooAmbiguous> {
    let mut found = Vec::new();
    let walk = Walk { root: schema, visits: Cell::new(MAX_VISITS) };
    walk.visit(schema, value, "", 0, &mut BTreeSet::new(), &mut found);
    if walk.visits.get() == 0 { Err(TooAmbiguous) } else { Ok(found) }
}

struct Walk<'a> {
    root: &'a Value,
    /// How many visits are left.
    visits: Cell<u32>,
}

impl<'a> Walk<'a> {
    /// Notes which members a schema knows, and which of them all it refuses.
    fn visit<'v>(
        &self,
        schema: &'a Value,
        value: &'v Value,
        path: &str,
        steps: usize,
        known: &mut BTreeSet<&'v str>,
        found: &mut Vec<String>,
    ) {
        let (Some(schema), true) = (schema.as_object(), steps < MAX_STEPS && self.has_visits()) else {
            return;
        };
        if let Some(definition) = self.referred(schema) {
            self.visit(definition, value, path, steps + 1, known, found);
        }
        for branch in list(schema, "allOf") {
            self.visit(branch, value, path, steps + 1, known, found);
        }
        for key in ["anyOf", "oneOf"] {
            let fitting = list(schema, key).filter(|branch| self.fits(branch, value, steps + 1));
            let visited = fitting.map(|branch| {
                let (mut known, mut found) = (BTreeSet::new(), Vec::new());
                self.visit(branch, value, path, steps + 1, &mut known, &mut found);
                (known, found)
            });
            // Of several that fit, the one that refuses least is meant.
            if let Some((more_known, more_found)) = visited.min_by_key(|(_, found)| found.len()) {
                known.extend(more_known);
                found.extend(more_found);
            }
        }
        match value {
            Value::Object(members) => self.members(schema, members, path, steps, known, found),
            Value::Array(items) => self.items(schema, items, path, steps, found),
            _ => {}
        }
    }

    fn members<'v>(
        &self,
        schema: &'a Map<String, Value>,
        members: &'v Map<String, Value>,
        path: &str,
        steps: usize,
        known: &mut BTreeSet<&'v str>,
        found: &mut Vec<String>,
    ) {
        let named = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        for (name, member) in members {
            let schema = match (named.and_then(|named| named.get(name)), others) {
                (Some(schema), _) => Some(schema),
                (None, Some(Value::Bool(false))) => {
                    note(found, || join(path, name));
                    None
                }
                (None, Some(schema)) => Some(schema),
                (None, None) => continue,
            };
            known.insert(name);
            if let Some(schema) = schema {
                self.visit(schema, member, &join(path, name), steps + 1, &mut BTreeSet::new(), found);
            }
        }
        if schema.get("unevaluatedProperties") == Some(&Value::Bool(false)) {
            for name in members.keys() {
                if known.insert(name) {
                    note(found, || join(path, name));
                }
            }
        }
    }

    fn items(
        &self,
        schema: &'a Map<String, Value>,
        items: &[Value],
        path: &str,
        steps: usize,
        found: &mut Vec<String>,
    ) {
        let first: Vec<_> = list(schema, "prefixItems").collect();
        for (index, item) in items.iter().enumerate() {
            if let Some(schema) = first.get(index).copied().or_else(|| schema.get("items")) {
                let path = format!("{path}[{index}]");
                self.visit(schema, item, &path, steps + 1, &mut BTreeSet::new(), found);
            }
        }
    }

    /// Whether a value is of the type that a schema is for; members without a place do not count.
    fn fits(&self, schema: &'a Value, value: &Value, steps: usize) -> bool {
        let Some(schema) = schema.as_object() else { return schema != &Value::Bool(false) };
        if steps >= MAX_STEPS || !self.has_visits() {
            return true;
        }
        let fits = |schema: &'a Value, value: &Value| self.fits(schema, value, steps + 1);
        let is_one_of =
            |key: &str| list(schema, key).next().is_none_or(|_| list(schema, key).any(|it| fits(it, value)));
        has_type(schema.get("type"), value)
            && schema.get("const").is_none_or(|only| only == value)
            && schema.get("enum").is_none_or(|all| all.as_array().is_some_and(|all| all.contains(value)))
            && self.referred(schema).is_none_or(|definition| fits(definition, value))
            && list(schema, "allOf").all(|it| fits(it, value))
            && is_one_of("anyOf")
            && is_one_of("oneOf")
            && match value {
                Value::Object(members) => {
                    list(schema, "required")
                        .all(|name| name.as_str().is_some_and(|it| members.contains_key(it)))
                        && schema.get("properties").and_then(Value::as_object).is_none_or(|named| {
                            named
                                .iter()
                                .all(|(name, schema)| members.get(name).is_none_or(|it| fits(schema, it)))
                        })
                }
                Value::Array(items) => {
                    schema.get("items").is_none_or(|schema| items.iter().all(|item| fits(schema, item)))
                }
                _ => true,
            }
    }

    /// Takes one visit.
    fn has_visits(&self) -> bool {
        let left = self.visits.get().saturating_sub(1);
        self.visits.set(left);
        left > 0
    }

    fn referred(&self, schema: &Map<String, Value>) -> Option<&'a Value> {
        referred(self.root, schema.get("$ref")?.as_str()?)
    }
}

fn list<'a>(schema: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    schema.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn has_type(expected: Option<&Value>, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("number") => value.is_number(),
        Some("integer") => {
            value.is_u64() || value.is_i64() || value.as_f64().is_some_and(|it| it.fract() == 0.0)
        }
        _ => true,
    };
    match expected {
        None => true,
        Some(Value::Array(names)) => names.iter().any(is),
        Some(name) => is(name),
    }
}
