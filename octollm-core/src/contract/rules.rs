//! The rules of a contract in its schema.
//!
//! `JsonSchema` reads some of the words in `#[garde(..)]`, and some of these differently from what is checked. The derives
//! write down all rules of a type, and this adds them to the schema of the type, where they stand in the JSON.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    patterns::{ipv4, ipv6, literal},
    schema::{COMPOSED, percent_decoded},
    unruled::{escaped, readable},
};

/// Added to the description of what has a rule that no schema expresses.
const FURTHER: &str = "A further rule applies, which this schema does not express.";

/// A schema to which the rules of types are added.
#[derive(Debug)]
pub struct SchemaRules {
    pub(super) root: Value,
    /// JSON pointer to the schema that the next rule is for.
    at: String,
    /// The types whose rules were added, and where.
    entered: BTreeSet<(&'static str, String)>,
    /// The members and items whose rules are known, if they have any.
    pub(super) covered: BTreeSet<String>,
    /// Where rules were added.
    pub(super) ruled: BTreeSet<String>,
    /// Where a type stands that runs no rules.
    pub(super) unruled: BTreeSet<String>,
    /// Rules that have no place in the schema.
    lost: Vec<String>,
}

/// One end of a range.
#[derive(Debug, Clone, PartialEq)]
pub enum RangeEnd {
    /// There is none.
    Open,
    /// This number is the last one within.
    At(Value),
    /// A number that no schema can hold.
    Unknown,
}

impl SchemaRules {
    pub(super) fn new(root: Value) -> Self {
        Self {
            root,
            at: String::new(),
            entered: BTreeSet::new(),
            covered: BTreeSet::new(),
            ruled: BTreeSet::new(),
            unruled: BTreeSet::new(),
            lost: Vec::new(),
        }
    }

    /// The schema with the rules, and the path of the first rule in it that is not run, or not in it.
    pub(super) fn finish(self) -> (Value, Option<String>) {
        let wrong = self.lost.first().cloned().or_else(|| self.unknown_rule()).or_else(|| self.unrun_rule());
        (self.root, wrong)
    }

    /// The rules of a type, at its definition where it has one; once at each place.
    pub fn of_type<T: ?Sized>(&mut self, rules: &mut dyn FnMut(&mut Self)) {
        if self.root.pointer(&self.at).is_none() {
            self.lost.push(self.path());
            return;
        }
        let at = self.target(&self.at).unwrap_or_else(|| self.at.clone());
        if self.entered.insert((std::any::type_name::<T>(), at.clone())) {
            self.at_all(vec![at], "", rules);
        }
    }

    /// The rules of a member.
    pub fn member(&mut self, name: &str, rules: &mut dyn FnMut(&mut Self)) {
        self.below(&format!("/properties/{}", escaped(name)), rules);
    }

    /// The rules of an item of a tuple.
    pub fn item(&mut self, index: usize, rules: &mut dyn FnMut(&mut Self)) {
        self.below(&format!("/prefixItems/{index}"), rules);
    }

    /// The rules of all items of a list, or all values of a map.
    pub fn each(&mut self, rules: &mut dyn FnMut(&mut Self)) {
        let places = self.places_of_items();
        self.at_all(places, "/items", rules);
    }

    /// The rules of what may be null, where it is not.
    pub fn present(&mut self, rules: &mut dyn FnMut(&mut Self)) {
        let either = self.root.pointer(&self.at).and_then(|schema| schema.get("anyOf")?.as_array());
        let place = match either.map(Vec::as_slice) {
            Some([some, none]) if *none == json!({ "type": "null" }) && is_composed(some) => {
                format!("{}/anyOf/0", self.at)
            }
            _ => self.at.clone(),
        };
        self.at_all(vec![place], "", rules);
    }

    /// The rules of a variant that stands beside its tag.
    pub fn tagged(&mut self, tag: &str, name: &str, rules: &mut dyn FnMut(&mut Self)) {
        let places = self.reach();
        let tag = escaped(tag);
        let places: Vec<_> = places
            .into_iter()
            .filter(|at| {
                let own = self.root.pointer(&format!("{at}/properties/{tag}"));
                own.is_some_and(|own| {
                    let is_among =
                        |all: &Value| all.as_array().is_some_and(|all| all.iter().any(|it| it == name));
                    own.get("const").is_some_and(|only| only == name) || own.get("enum").is_some_and(is_among)
                })
            })
            .collect();
        self.at_all(places, &format!("/properties/{}", escaped(name)), rules);
    }

    /// The rules of a variant without a tag, by its position.
    pub fn untagged(&mut self, index: usize, rules: &mut dyn FnMut(&mut Self)) {
        let places: Vec<_> = self
            .reach()
            .into_iter()
            .map(|at| format!("{at}/anyOf/{index}"))
            .filter(|at| self.root.pointer(at).is_some())
            .take(1)
            .collect();
        self.at_all(places, &format!("/anyOf/{index}"), rules);
    }

    /// Everything below is checked by the types there, whatever its schema has.
    pub fn skip(&mut self) {
        let below: Vec<_> = self.properties_below(&self.at);
        self.covered.extend(below);
        self.unruled.remove(&self.at);
    }

    /// The rules of a type that stands for a part of an object, beside others.
    pub fn part(&mut self, rules: &mut dyn FnMut(&mut Self)) {
        rules(self);
        self.unruled.remove(&self.at);
    }

    /// The type of the value runs no rules: what it is made of must have none.
    pub fn unruled(&mut self) {
        self.unruled.insert(self.at.clone());
    }

    /// A length: characters of a text, items of a list, members of a map.
    pub fn length(&mut self, min: Option<usize>, max: Option<usize>) {
        let mut is_placed = false;
        for (kind, least, most) in [
            ("string", "minLength", "maxLength"),
            ("array", "minItems", "maxItems"),
            ("object", "minProperties", "maxProperties"),
        ] {
            if !self.has_type(kind) {
                continue;
            }
            is_placed = true;
            if let Some(min) = min.filter(|min| *min > 0) {
                self.tighten(least, min.into(), |new, old| new > old);
            }
            if let Some(max) = max {
                self.tighten(most, max.into(), |new, old| new < old);
            }
        }
        if !is_placed {
            self.described();
        }
    }

    /// A range of numbers, both ends included.
    pub fn range(&mut self, min: RangeEnd, max: RangeEnd) {
        for (end, key, is_minimum) in [(min, "minimum", true), (max, "maximum", false)] {
            match end {
                RangeEnd::Open => {}
                RangeEnd::At(value) if value.is_number() => {
                    self.tighten(key, value, |new, old| if is_minimum { new > old } else { new < old });
                }
                _ => self.described(),
            }
        }
    }

    /// Text of ASCII characters only.
    pub fn ascii(&mut self) {
        self.pattern(r"^[\x00-\x7f]*$".into());
    }

    /// Text of letters and digits only, of any script.
    pub fn alphanumeric(&mut self) {
        self.pattern(r"^[\p{Alphabetic}\p{N}]*$".into());
    }

    /// Text that begins so.
    pub fn prefix(&mut self, text: &str) {
        self.pattern(format!("^{}", literal(text)));
    }

    /// Text that ends so.
    pub fn suffix(&mut self, text: &str) {
        self.pattern(format!("{}$", literal(text)));
    }

    /// Text with that in it.
    pub fn contains(&mut self, text: &str) {
        // `JsonSchema` writes this rule with escapes that ECMA-262 does not have.
        let foreign: String = text
            .chars()
            .flat_map(|c| [r"\.+*?()|[]{}^$#&-~".contains(c).then_some('\\'), Some(c)])
            .flatten()
            .collect();
        if let Some(here) = self.here()
            && here.get("pattern").is_some_and(|pattern| *pattern == foreign)
        {
            here.remove("pattern");
        }
        self.pattern(literal(text));
    }

    /// Text that is an IP address of either kind.
    pub fn ip(&mut self) {
        // No format of JSON Schema.
        if let Some(here) = self.here()
            && here.get("format").is_some_and(|format| format == "ip")
        {
            here.remove("format");
        }
        self.pattern(format!("^({}|{})$", ipv4(), ipv6()));
    }

    /// Text that is an IPv4 address.
    pub fn ipv4(&mut self) {
        self.pattern(format!("^{}$", ipv4()));
    }

    /// Text that is an IPv6 address.
    pub fn ipv6(&mut self) {
        self.pattern(format!("^{}$", ipv6()));
    }

    /// A rule that no schema expresses: the description mentions it.
    pub fn described(&mut self) {
        let Some(here) = self.here() else { return };
        let text = match here.get("description").and_then(Value::as_str) {
            Some(text) if text.ends_with(FURTHER) => return,
            Some(text) => format!("{text}\n\n{FURTHER}"),
            None => FURTHER.into(),
        };
        here.insert("description".into(), text.into());
    }

    fn pattern(&mut self, pattern: String) {
        let Some(here) = self.here() else { return };
        match here.get("pattern") {
            Some(known) if *known == pattern => {}
            Some(_) => {
                let all = here.entry("allOf").or_insert_with(|| json!([]));
                let more = json!({ "pattern": pattern });
                if let Some(all) = all.as_array_mut().filter(|all| !all.contains(&more)) {
                    all.push(more);
                }
            }
            None => {
                here.insert("pattern".into(), pattern.into());
            }
        }
    }

    /// Sets a bound where there is none that is tighter.
    fn tighten(&mut self, key: &str, bound: Value, is_tighter: impl Fn(f64, f64) -> bool) {
        let Some(here) = self.here() else { return };
        let known = here.get(key).and_then(Value::as_f64);
        if known.is_none_or(|known| bound.as_f64().is_some_and(|bound| is_tighter(bound, known))) {
            here.insert(key.into(), bound);
        }
    }

    /// The schema in hand, which takes keywords.
    fn here(&mut self) -> Option<&mut Map<String, Value>> {
        if self.root.pointer(&self.at).is_none() {
            self.lost.push(self.path());
        }
        self.ruled.insert(self.at.clone());
        let schema = self.root.pointer_mut(&self.at)?;
        if *schema == Value::Bool(true) {
            *schema = json!({});
        }
        schema.as_object_mut()
    }

    fn below(&mut self, below: &str, rules: &mut dyn FnMut(&mut Self)) {
        let places: Vec<_> = self
            .reach()
            .into_iter()
            .map(|at| at + below)
            .filter(|at| self.root.pointer(at).is_some())
            .collect();
        self.covered.extend(places.iter().cloned());
        self.at_all(places, below, rules);
    }

    /// Adds rules at each place; where there is none, they are lost.
    fn at_all(&mut self, mut places: Vec<String>, below: &str, rules: &mut dyn FnMut(&mut Self)) {
        if places.is_empty() {
            places.push(self.at.clone() + below);
        }
        for place in places {
            let before = std::mem::replace(&mut self.at, place);
            rules(self);
            self.at = before;
        }
    }

    fn places_of_items(&self) -> Vec<String> {
        let all = self.reach().into_iter();
        all.flat_map(|at| ["items", "additionalProperties", "patternProperties"].map(|key| (at.clone(), key)))
            .flat_map(|(at, key)| {
                let place = format!("{at}/{key}");
                match (self.root.pointer(&place), key) {
                    (Some(Value::Object(patterns)), "patternProperties") => {
                        patterns.keys().map(|pattern| format!("{place}/{}", escaped(pattern))).collect()
                    }
                    (Some(Value::Object(_)), _) => vec![place],
                    _ => Vec::new(),
                }
            })
            .collect()
    }

    /// Where the schema in hand refers to, if it does.
    pub(super) fn target(&self, at: &str) -> Option<String> {
        let reference = self.root.pointer(at)?.get("$ref")?.as_str()?.strip_prefix('#')?;
        Some(percent_decoded(reference).into_owned())
    }

    /// The schemas that describe the value in hand together.
    fn reach(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut open = vec![self.at.clone()];
        while let Some(at) = open.pop() {
            let Some(object) = self.root.pointer(&at).and_then(Value::as_object) else { continue };
            if found.contains(&at) {
                continue;
            }
            for key in ["oneOf", "anyOf", "allOf"] {
                let branches = object.get(key).and_then(Value::as_array).map_or(0, Vec::len);
                open.extend((0..branches).rev().map(|index| format!("{at}/{key}/{index}")));
            }
            open.extend(self.target(&at));
            found.push(at);
        }
        found
    }

    fn has_type(&self, kind: &str) -> bool {
        self.reach().iter().any(|at| match self.root.pointer(at).and_then(|schema| schema.get("type")) {
            Some(Value::Array(kinds)) => kinds.iter().any(|it| it == kind),
            Some(only) => only == kind,
            None => false,
        })
    }

    /// The schema in hand as people write it: `lines[].count`.
    fn path(&self) -> String {
        readable(&self.at)
    }
}

fn is_composed(schema: &Value) -> bool {
    COMPOSED.iter().any(|key| schema.get(key).is_some())
}
