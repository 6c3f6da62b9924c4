//! What an arm tells about a contract it serves.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{ContractRef, ContractSpec, Effects, NoChunk, TaskContract};

/// A contract as an arm's card shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContractCard {
    /// `code.validate`
    pub name: String,
    /// 1 or more (default 1).
    #[serde(default = "first_version")]
    pub version: u32,
    /// Changes when a schema changes: see [`fingerprint`]. Empty where the card has none.
    #[serde(default)]
    pub fingerprint: String,
    /// The route on the arm's server.
    pub path: String,
    /// The scope a caller's token needs.
    #[serde(default)]
    pub scope: String,
    /// Whether running it twice has the same effect as running it once.
    #[serde(default)]
    pub idempotent: bool,
    /// Whether a call with an idempotency key runs once.
    #[serde(default)]
    pub keys: Keys,
    /// How long the answer to a key is retained, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_retained_s: Option<u64>,
    /// How long one execution may take, in milliseconds.
    pub timeout_ms: u64,
    /// One sentence about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// A name for people; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Requests in plain words that it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// What it changes beyond its output, where that is stated.
    #[serde(default, deserialize_with = "known_effects", skip_serializing_if = "Option::is_none")]
    pub effects: Option<Effects>,
    /// JSON Schema of the input.
    #[serde(default)]
    pub input_schema: Value,
    /// JSON Schema of the output.
    #[serde(default)]
    pub output_schema: Value,
    /// JSON Schema of what is streamed; null where nothing is.
    #[serde(default)]
    pub chunk_schema: Value,
}

/// Which calls with an idempotency key an arm runs once, whatever arrives again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Keys {
    /// The record is shared by all instances, and survives each of them.
    Shared,
    /// The record is lost with the process that holds it.
    Instance,
    /// Keys are ignored. A word that this version does not know is read as this.
    #[default]
    #[serde(other)]
    None,
}

/// A word that this version does not know states nothing.
fn known_effects<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Effects>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_default())
}

fn first_version() -> u32 {
    1
}

impl ContractCard {
    /// The card of `C`.
    pub fn of<C: TaskContract>() -> Self {
        let ContractSpec { name, version, path, scope, timeout, idempotent, .. } = C::SPEC;
        let ContractSpec { summary, title, tags, examples, effects, .. } = C::SPEC;
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let input_schema = closed(schemars::schema_for!(C).to_value());
        let output_schema =
            schemars::SchemaGenerator::new(schemars::generate::SchemaSettings::default().for_serialize())
                .into_root_schema_for::<C::Output>()
                .to_value();
        let streams = std::any::TypeId::of::<C::Chunk>() != std::any::TypeId::of::<NoChunk>();
        let chunk_schema = if streams { schemars::schema_for!(C::Chunk).to_value() } else { Value::Null };
        Self {
            name: name.into(),
            version,
            fingerprint: fingerprint(&[&input_schema, &output_schema, &chunk_schema]),
            path: path.into(),
            scope: scope.into(),
            idempotent,
            keys: Keys::None,
            keys_retained_s: None,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            summary: summary.into(),
            title: title.into(),
            tags: owned(tags),
            examples: owned(examples),
            effects,
            input_schema,
            output_schema,
            chunk_schema,
        }
    }

    /// The fingerprint that the card of `C` has. It is computed at each call: see [`ContractSpec::fingerprint`].
    pub fn fingerprint_of<C: TaskContract>() -> String {
        Self::of::<C>().fingerprint
    }

    /// Name and version; `None` where a foreign card names no contract.
    pub fn reference(&self) -> Option<ContractRef> {
        ContractRef::new(&*self.name, self.version).ok()
    }
}

/// Servers refuse fields that an input does not have, at any depth; the schema says so. Left alone is what is chosen
/// among alternatives: there serde itself looks past unknown fields.
fn closed(mut schema: Value) -> Value {
    const OPEN: [&str; 5] = ["additionalProperties", "allOf", "anyOf", "oneOf", "$ref"];
    let Some(object) = schema.as_object_mut() else { return schema };
    if object.contains_key("properties") && !OPEN.iter().any(|key| object.contains_key(*key)) {
        object.insert("additionalProperties".into(), Value::Bool(false));
    }
    for (key, inner) in object {
        match (key.as_str(), inner) {
            ("properties" | "$defs", Value::Object(schemas)) => {
                schemas.values_mut().for_each(|schema| *schema = closed(schema.take()));
            }
            ("items" | "additionalProperties", inner @ Value::Object(_)) => *inner = closed(inner.take()),
            _ => {}
        }
    }
    schema
}

/// 32 hexadecimal digits that tell whether two parties mean the same schemas.
///
/// Taken from the schemas in canonical form, without titles and descriptions: better words are no drift. The first
/// half of their SHA-256.
pub fn fingerprint(schemas: &[&Value]) -> String {
    let mut digest = Sha256::new();
    for schema in schemas {
        digest.update(canonical(schema, true).to_string());
        digest.update([0]);
    }
    hex(&digest.finalize()[..16])
}

/// The same value with sorted keys, whatever map serde_json was built with.
pub(crate) fn canonical(value: &Value, without_prose: bool) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object
                .iter()
                .filter(|(key, value)| {
                    !(without_prose
                        && value.is_string()
                        && matches!(key.as_str(), "title" | "description" | "$schema"))
                })
                .map(|(key, value)| (key.clone(), canonical(value, without_prose)))
                .collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| canonical(item, without_prose)).collect())
        }
        scalar => scalar.clone(),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
