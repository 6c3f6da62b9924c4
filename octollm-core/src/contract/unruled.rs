//! Finding the rules in a schema that nothing runs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::rules::SchemaRules;

/// Rules in the schema that nothing runs.
impl SchemaRules {
    /// The first member that has a rule of a type which does not run it.
    pub(super) fn unknown_rule(&self) -> Option<String> {
        let mut members = self.properties_below("").into_iter();
        let unknown = members.find(|at| !self.covered.contains(at) && self.has_rule_within(at))?;
        Some(readable(&unknown))
    }

    /// The first value of a type that runs no rules, such as a tuple, and is made of one that has some.
    pub(super) fn unrun_rule(&self) -> Option<String> {
        let unrun = self.unruled.iter().find(|at| self.is_made_of_ruled_types(at))?;
        Some(readable(unrun))
    }

    /// Whether a value refers to a type that has rules, itself or in its items.
    fn is_made_of_ruled_types(&self, at: &str) -> bool {
        let (mut open, mut seen) = (vec![at.to_owned()], BTreeSet::new());
        while let Some(at) = open.pop() {
            let Some(schema) = self.root.pointer(&at) else { continue };
            if !seen.insert(at.clone()) {
                continue;
            }
            if let Some(target) = self.target(&at) {
                if self.has_rules(&target) {
                    return true;
                }
                open.push(target);
            }
            open.extend(parts(schema, &at));
        }
        false
    }

    /// Whether rules were added to a definition, or stand in it.
    fn has_rules(&self, definition: &str) -> bool {
        let is_within = |at: &str| {
            let below = at.strip_prefix(definition);
            below.is_some_and(|below| {
                below.is_empty() || below.starts_with('/') && !below.starts_with("/$defs/")
            })
        };
        self.ruled.iter().any(|at| is_within(at)) || self.root.pointer(definition).is_some_and(has_rule)
    }

    /// Whether the value of a member, or an item in it, has a rule or is of a type that has some.
    fn has_rule_within(&self, member: &str) -> bool {
        let (mut open, mut seen) = (vec![member.to_owned()], BTreeSet::new());
        while let Some(at) = open.pop() {
            let Some(schema) = self.root.pointer(&at) else { continue };
            if !seen.insert(at.clone()) {
                continue;
            }
            if self.target(&at).is_some_and(|target| self.has_rules(&target)) || has_rule(schema) {
                return true;
            }
            open.extend(parts(schema, &at));
        }
        false
    }

    /// All members that can be reached from a schema.
    pub(super) fn properties_below(&self, from: &str) -> Vec<String> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        let mut open = vec![from.to_owned()];
        while let Some(at) = open.pop() {
            let Some(schema) = self.root.pointer(&at) else { continue };
            if !seen.insert(at.clone()) {
                continue;
            }
            open.extend(parts(schema, &at));
            open.extend(self.target(&at));
            let members = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
            let members: Vec<_> = members.map(|name| format!("{at}/properties/{}", escaped(name))).collect();
            found.extend(members.iter().cloned());
            open.extend(members);
        }
        found
    }
}

/// Pointers to the schemas of which the one at `at` is composed, and to those of its items.
fn parts(schema: &Value, at: &str) -> Vec<String> {
    let branches = ["oneOf", "anyOf", "allOf", "prefixItems"].into_iter().flat_map(|key| {
        let branches = schema.get(key).and_then(Value::as_array).map_or(0, Vec::len);
        (0..branches).map(move |index| format!("{at}/{key}/{index}"))
    });
    branches.chain(["items", "additionalProperties"].map(|key| format!("{at}/{key}"))).collect()
}

/// Whether a member has a rule that is not one of its type: what `JsonSchema` writes for `#[garde(..)]`.
fn has_rule(schema: &Value) -> bool {
    let Some(object) = schema.as_object() else { return false };
    let number = |key: &str| object.get(key).and_then(Value::as_f64);
    let formed = ["format", "pattern", "const", "enum"].iter().any(|key| object.contains_key(*key));
    let (least, most) = (number("minLength"), number("maxLength"));
    let of_text = (least.is_some() || most.is_some()) && !formed && (least, most) != (Some(1.0), Some(1.0));
    let (least, most) = (number("minItems"), number("maxItems"));
    let of_list = (least.is_some() || most.is_some()) && least != most;
    let of_number = object.get("format").and_then(Value::as_str).is_some_and(|format| {
        let (least, most) = (number("minimum"), number("maximum"));
        let intrinsic: BTreeMap<&str, [&[f64]; 2]> = BTreeMap::from([
            ("uint8", [&[0.0, 1.0] as &[f64], &[255.0] as &[f64]]),
            ("uint16", [&[0.0, 1.0], &[65_535.0]]),
            ("int8", [&[-128.0], &[127.0]]),
            ("int16", [&[-32_768.0], &[32_767.0]]),
            ("uint32", [&[0.0, 1.0], &[]]),
            ("uint64", [&[0.0, 1.0], &[]]),
            ("uint128", [&[0.0, 1.0], &[]]),
            ("uint", [&[0.0, 1.0], &[]]),
            ("int32", [&[], &[]]),
            ("int64", [&[], &[]]),
            ("int", [&[], &[]]),
            ("int128", [&[], &[]]),
            ("float", [&[], &[]]),
            ("double", [&[], &[]]),
        ]);
        intrinsic.get(format).is_some_and(|[min, max]| {
            least.is_some_and(|least| !min.contains(&least)) || most.is_some_and(|most| !max.contains(&most))
        })
    });
    of_text || of_list || of_number
}

/// A JSON pointer into a schema as people write it: `lines[].count`.
pub(super) fn readable(pointer: &str) -> String {
    let mut path = String::new();
    let mut segments = pointer.split('/').skip(1);
    while let Some(segment) = segments.next() {
        match segment {
            "properties" => {
                let name = segments.next().unwrap_or_default();
                path = join(&path, &name.replace("~1", "/").replace("~0", "~"));
            }
            "items" | "additionalProperties" => path.push_str("[]"),
            "$defs" => path = segments.next().unwrap_or_default().to_owned(),
            _ => {}
        }
    }
    path
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A key in a JSON pointer.
pub(super) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
