//! The card of a contract: what an arm publishes about it.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{ContractRef, ContractSpec, Effects, TaskContract, schema};
use crate::{invalid::ConfigError, parts::is_scope};

/// A contract as an arm's card shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(transform = without_defaults)]
#[non_exhaustive]
pub struct ContractCard {
    /// `code.validate`
    pub name: String,
    /// 1 or more (default 1).
    #[serde(default = "first_version", deserialize_with = "version")]
    #[schemars(range(min = 1))]
    pub version: u32,
    /// Changes when a schema changes: see [`fingerprint`]. Empty where the card has none.
    #[serde(default, deserialize_with = "lenient")]
    #[schemars(regex(pattern = "^([0-9a-f]{32})?$"))]
    pub fingerprint: String,
    /// The route on the arm's server.
    #[serde(default, deserialize_with = "lenient")]
    #[schemars(regex(pattern = "^/"))]
    pub path: String,
    /// The scope a caller's token needs.
    #[serde(default, deserialize_with = "lenient")]
    pub scope: String,
    /// Whether running it twice has the same effect as running it once.
    #[serde(default, deserialize_with = "lenient")]
    pub idempotent: bool,
    /// Whether a call with an idempotency key runs once.
    #[serde(default, deserialize_with = "lenient")]
    pub keys: Keys,
    /// How long the output of a call with a key is retained, in seconds.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub keys_retained_s: Option<u64>,
    /// How long one execution may take, in milliseconds.
    #[serde(default = "default_timeout", deserialize_with = "timeout")]
    pub timeout_ms: u64,
    /// One sentence about it.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// A human-readable name; empty where there is none.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Keywords.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Example requests in plain words.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// What it changes beyond its output, where that is stated.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub effects: Option<Effects>,
    /// JSON Schema of the input.
    #[serde(default)]
    pub input_schema: Value,
    /// JSON Schema of the output.
    #[serde(default)]
    pub output_schema: Value,
    /// JSON Schema of a chunk; null where nothing is streamed.
    #[serde(default)]
    pub chunk_schema: Value,
}

/// Whether an arm runs a call with an idempotency key once, however often it arrives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
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

/// Reads a member of a foreign card. One of another form is read as if it were missing, so that it does not hide the rest.
pub(crate) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_default())
}

/// What is no version is read as 0, which no contract has.
fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    lenient(deserializer)
}

/// What is no time limit is read as the default one.
fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(match lenient(deserializer)? {
        0 => default_timeout(),
        timeout => timeout,
    })
}

/// Foreign cards alone may lack these: what a server publishes has them.
fn without_defaults(schema: &mut schemars::Schema) {
    for member in ["/properties/path", "/properties/timeout_ms"] {
        if let Some(member) = schema.pointer_mut(member).and_then(Value::as_object_mut) {
            member.remove("default");
        }
    }
}

fn default_timeout() -> u64 {
    u64::try_from(ContractSpec::DEFAULT_TIMEOUT.as_millis()).unwrap_or(u64::MAX)
}

fn first_version() -> u32 {
    1
}

impl ContractCard {
    /// The card of `C`.
    pub fn of<C: TaskContract>() -> Self {
        Self::with_input::<C>(schema::input::<C>())
    }

    fn with_input<C: TaskContract>(input_schema: Value) -> Self {
        let ContractSpec { name, version, path, scope, timeout, idempotent, .. } = C::SPEC;
        let ContractSpec { summary, title, tags, examples, effects, .. } = C::SPEC;
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let (output_schema, chunk_schema) = (schema::output::<C>(), schema::chunk::<C>());
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

    /// The card of `C`, checked: its name has a form in other protocols, its scope is [one](is_scope), its input is an object in
    /// JSON, and the rules in its schema are those that are run. Answers are cached only where it is idempotent and
    /// streams nothing.
    ///
    /// The derive macro refuses most mistakes. This finds the rest, such as those of a contract that is written by hand or is
    /// `#[serde(transparent)]`.
    ///
    /// # Errors
    /// A [`ConfigError`] for the first of these that does not hold.
    pub fn checked<C: TaskContract>() -> Result<Self, ConfigError> {
        let (input, unpublished) = schema::ruled_input::<C>();
        let card = Self::with_input::<C>(input);
        let contract = ContractRef::new(&*card.name, card.version).map_err(|error| {
            ConfigError::new(card.name.clone(), "cannot be the name of a contract").with_source(error)
        })?;
        if !is_scope(&card.scope) {
            let reason = format!("has the scope {:?}, which is not of the form `entity:verb`", card.scope);
            return Err(ConfigError::new(contract.to_string(), reason));
        }
        if let Some(path) = unpublished {
            let reason = format!(
                "has rules at `{path}` that are not both run and published: derive `Validate` for the type that has them \
                 and for each type on the way to it"
            );
            return Err(ConfigError::new(contract.to_string(), reason));
        }
        if C::SPEC
            .cache
            .is_some_and(|time| time.is_zero() || !card.idempotent || !card.chunk_schema.is_null())
        {
            let reason = "has answers that cannot be cached: it has to be idempotent, to stream nothing, and to set a time above 0";
            return Err(ConfigError::new(contract.to_string(), reason));
        }
        if card.input_schema.get("type").and_then(Value::as_str) == Some("object") {
            return Ok(card);
        }
        Err(ConfigError::new(contract.to_string(), "has an input that is not an object in JSON"))
    }

    /// The fingerprint that the card of `C` has. It is computed at each call: see [`ContractSpec::fingerprint`].
    pub fn fingerprint_of<C: TaskContract>() -> String {
        Self::of::<C>().fingerprint
    }

    /// Whether a call with an idempotency key that was first made `age` ago runs once all the same, whichever instance of
    /// the arm gets it.
    pub fn honours_keys_for(&self, age: std::time::Duration) -> bool {
        self.keys == Keys::Shared && self.keys_retained_s.is_some_and(|seconds| age.as_secs() < seconds)
    }

    /// Sets the conventional path, such as `/v2/validate`, if a foreign card has none.
    pub(crate) fn completed(mut self) -> Self {
        if self.path.is_empty() {
            let verb = self.name.rsplit('.').next().unwrap_or_default();
            self.path = match self.version {
                1 => format!("/{verb}"),
                version => format!("/v{version}/{verb}"),
            };
        }
        self
    }

    /// Name and version; `None` where a foreign card names no contract.
    pub fn reference(&self) -> Option<ContractRef> {
        ContractRef::new(&*self.name, self.version).ok()
    }
}

/// The digest by which two parties compare their schemas: 32 hexadecimal digits.
///
/// It is the first half of the SHA-256 of the schemas in canonical form, without titles and descriptions.
pub fn fingerprint(schemas: &[&Value]) -> String {
    let mut digest = Sha256::new();
    for schema in schemas {
        digest.update(canonical(schema).to_string());
        digest.update([0]);
    }
    hex(&digest.finalize()[..16])
}

/// The same schema with sorted keys, whatever map serde_json was built with, and without titles and descriptions.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object
                .iter()
                .filter(|(key, value)| {
                    !(value.is_string() && matches!(key.as_str(), "title" | "description" | "$schema"))
                })
                .map(|(key, value)| (key.clone(), canonical(value)))
                .collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        scalar => scalar.clone(),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let mut text = String::with_capacity(bytes.len() * 2);
    text.extend(digits.map(|digit| char::from(DIGITS[usize::from(digit)])));
    text
}
