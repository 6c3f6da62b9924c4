//! The schemas of a contract, as its card shows them.

use std::{
    any::TypeId,
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{SchemaRules, TaskContract};

/// JSON Schema of the input: an object, and closed, because servers refuse what an input does not have.
pub(super) fn input<C: TaskContract>() -> Value {
    ruled_input::<C>().0
}

/// The same, and the path of the first rule that is not both run and published.
pub(super) fn ruled_input<C: TaskContract>() -> (Value, Option<String>) {
    let mut rules = SchemaRules::new(schema_of::<C>());
    C::schema_rules(&mut rules);
    let (schema, wrong) = rules.finish();
    (of_input::<C>(schema), wrong)
}

fn of_input<C: TaskContract>(mut schema: Value) -> Value {
    let Some(root) = schema.as_object_mut() else { return schema };
    // A unit struct is read as an object without members.
    if root.get("type") == Some(&json!("null")) {
        root.insert("type".into(), json!("object"));
    }
    let is_bare = root.get("type") == Some(&json!("object"))
        && !["properties", "additionalProperties", "$ref", "allOf", "anyOf", "oneOf"]
            .iter()
            .any(|key| root.contains_key(*key));
    if is_bare && !takes_anything::<C>() {
        root.insert("additionalProperties".into(), json!(false));
    }
    finished(schema)
}

/// JSON Schema of what is read by `T` and by nothing else: closed, and with bounds at its numbers.
pub fn input_schema<T: JsonSchema>() -> Value {
    finished(schema_of::<T>())
}

fn finished(mut schema: Value) -> Value {
    bound_numbers(&mut schema);
    close(schema)
}

/// The same, computed once for each type.
pub(crate) fn input_of<C: TaskContract>() -> Arc<Value> {
    static KNOWN: LazyLock<Mutex<HashMap<TypeId, Arc<Value>>>> = LazyLock::new(Mutex::default);
    let known = |id| KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    let id = TypeId::of::<C>();
    known(id).unwrap_or_else(|| {
        let schema = Arc::new(input::<C>());
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(id, schema.clone());
        schema
    })
}

/// JSON Schema of the output: any JSON, with room for more members later.
pub(super) fn output<C: TaskContract>() -> Value {
    output_schema::<C::Output>()
}

/// JSON Schema of what is written by `T`, with room for more members later.
pub fn output_schema<T: JsonSchema>() -> Value {
    let generator = SchemaGenerator::new(SchemaSettings::default().for_serialize());
    generator.into_root_schema_for::<T>().to_value()
}

/// JSON Schema of what is streamed; null where nothing is.
pub(super) fn chunk<C: TaskContract>() -> Value {
    if has_chunks::<C>() { schema_of::<C::Chunk>() } else { Value::Null }
}

/// Whether anything is streamed.
pub(crate) fn has_chunks<C: TaskContract>() -> bool {
    TypeId::of::<C::Chunk>() != TypeId::of::<()>()
}

fn schema_of<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Adds the bounds of the type of each integer and `f32`, which `format` names and no validator checks, where the schema has none.
fn bound_numbers(schema: &mut Value) {
    let object = match schema {
        Value::Object(object) => object,
        Value::Array(schemas) => return schemas.iter_mut().for_each(bound_numbers),
        _ => return,
    };
    let bounds = match object.get("format").and_then(Value::as_str) {
        Some("int32") => Some((json!(i32::MIN), json!(i32::MAX))),
        Some("uint32") => Some((json!(u32::MIN), json!(u32::MAX))),
        Some("int64" | "int") => Some((json!(i64::MIN), json!(i64::MAX))),
        Some("uint64" | "uint") => Some((json!(u64::MIN), json!(u64::MAX))),
        Some("float") => Some((json!(f32::MIN), json!(f32::MAX))),
        _ => None,
    };
    if let Some((minimum, maximum)) = bounds {
        object.entry("minimum").or_insert(minimum);
        object.entry("maximum").or_insert(maximum);
    }
    for (key, value) in object {
        if !matches!(key.as_str(), "default" | "const" | "enum" | "example" | "examples") {
            bound_numbers(value);
        }
    }
}

/// Whether an object of any members is read: `{"type": "object"}` may be a struct without fields, or a map.
fn takes_anything<C: TaskContract>() -> bool {
    let mut is_ignored = false;
    let mut probe = serde_json::Deserializer::from_str(r#"{"no such member of any contract":null}"#);
    let read = serde_ignored::deserialize::<_, _, C>(&mut probe, |_| is_ignored = true);
    read.is_ok() && !is_ignored
}

/// Closes every object of a schema, at any depth: no members but those it names.
///
/// A schema stands for a whole value, or for a part of an object whose other members stand elsewhere (what is flattened
/// into a struct, and what stands beside a tag). A whole is closed by `additionalProperties`, or by
/// `unevaluatedProperties` where it has parts; a part is not, as it cannot know the rest. A definition that is a part
/// anywhere is closed where it is used as a whole.
fn close(mut schema: Value) -> Value {
    let mut closing = Closing::default();
    closing.parts_in(&schema, &schema, Stands::ForAll);
    closing.visit(&mut schema, Stands::ForAll);
    if let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        for (name, definition) in definitions {
            let stands = if closing.parts.contains(name) { Stands::ForPart } else { Stands::ForAll };
            closing.visit(definition, stands);
        }
    }
    schema
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stands {
    /// For the whole of a value.
    ForAll,
    /// For some of the members of an object.
    ForPart,
}

#[derive(Default)]
struct Closing {
    /// The definitions that stand for a part somewhere.
    parts: BTreeSet<String>,
    /// In which roles a definition was looked into already.
    seen: BTreeMap<String, BTreeSet<Stands>>,
}

/// What chooses, or adds to, a schema.
pub(super) const COMPOSED: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];

impl Closing {
    /// Finds the definitions that stand for parts.
    fn parts_in(&mut self, schema: &Value, root: &Value, stands: Stands) {
        let Some(object) = schema.as_object() else { return };
        if let Some(name) = definition(object) {
            let stands = within(object, stands);
            if stands == Stands::ForPart {
                self.parts.insert(name.clone());
            }
            let definition = root.get("$defs").and_then(|all| all.get(&name));
            let is_new = self.seen.entry(name).or_default().insert(stands);
            if let (true, Some(definition)) = (is_new, definition) {
                self.parts_in(definition, root, stands);
            }
        }
        for branch in branches(object) {
            self.parts_in(branch, root, within(object, stands));
        }
        for value in values(object) {
            self.parts_in(value, root, Stands::ForAll);
        }
    }

    fn visit(&self, schema: &mut Value, stands: Stands) {
        let Some(object) = schema.as_object_mut() else { return };
        let inner = within(object, stands);
        for key in ["allOf", "anyOf", "oneOf"] {
            for branch in object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                self.visit(branch, inner);
            }
        }
        for key in ["properties", "patternProperties"] {
            for value in
                object.get_mut(key).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
            {
                self.visit(value, Stands::ForAll);
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(value) = object.get_mut(key) {
                self.visit(value, Stands::ForAll);
            }
        }
        for value in object.get_mut("prefixItems").and_then(Value::as_array_mut).into_iter().flatten() {
            self.visit(value, Stands::ForAll);
        }
        if stands == Stands::ForAll && !object.contains_key("additionalProperties") {
            let is_composed = COMPOSED.iter().any(|key| is_composed(object, key));
            let is_open_reference = definition(object).is_some_and(|name| self.parts.contains(&name));
            if is_composed && (inner == Stands::ForPart || is_open_reference) {
                object.entry("unevaluatedProperties").or_insert(json!(false));
            } else if !is_composed && object.contains_key("properties") {
                object.insert("additionalProperties".into(), json!(false));
            }
        }
    }
}

/// What branches and references of a schema stand for: parts, where it has members of its own or several branches add up.
fn within(object: &Map<String, Value>, stands: Stands) -> Stands {
    let composed = COMPOSED.iter().filter(|key| is_composed(object, key)).count();
    let adds_up = is_composed(object, "allOf") || composed > 1;
    if object.contains_key("properties") || adds_up { Stands::ForPart } else { stands }
}

/// Whether a schema is composed by this keyword; not where it has further rules for a text there.
fn is_composed(object: &Map<String, Value>, key: &str) -> bool {
    let is_for_text =
        |schema: &Value| schema.as_object().is_some_and(|it| it.keys().all(|key| key == "pattern"));
    match object.get(key) {
        Some(Value::Array(all)) if key == "allOf" => !all.iter().all(is_for_text),
        other => other.is_some(),
    }
}

/// The name of the definition that a schema refers to.
fn definition(object: &Map<String, Value>) -> Option<String> {
    let name = object.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
    Some(percent_decoded(name).replace("~1", "/").replace("~0", "~"))
}

/// What a reference within a schema is to.
pub(crate) fn referred<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(&percent_decoded(reference.strip_prefix('#')?))
}

/// The text of a fragment, without the escapes of a URI.
pub(super) fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn branches(object: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| object.get(key)?.as_array()).flatten()
}

/// The schemas of members and items.
fn values(object: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let members = ["properties", "patternProperties"];
    let members = members.into_iter().filter_map(|key| object.get(key)?.as_object()).flat_map(Map::values);
    let items = ["items", "additionalProperties"].into_iter().filter_map(|key| object.get(key));
    let tuple = object.get("prefixItems").and_then(Value::as_array).into_iter().flatten();
    members.chain(items).chain(tuple)
}
