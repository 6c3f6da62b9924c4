//! The native form of an event: its attributes as texts and as JSON, and its size.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value};

use super::json::needs_escapes;
use super::{Attributes, Channel, Event, invalid, optional, required};
use crate::error::InvalidValue;
use crate::id;
use crate::json::read_output;

/// The JSON of an event. Attributes from `id` on are optional in events of other systems.
#[derive(Serialize, Deserialize)]
struct NativeEvent<'a> {
    event_type: Cow<'a, str>,
    timestamp: Cow<'a, str>,
    source: Cow<'a, str>,
    #[serde(default)]
    data: Cow<'a, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    specversion: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    causation_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition_key: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<Cow<'a, str>>,
}

/// The only version that is written and read.
pub(super) const SPECVERSION: &str = "1.0";

/// Names of the attributes in the order of [`Event::attributes`].
const NAMES: [&str; 12] = [
    "event_type",
    "timestamp",
    "source",
    "id",
    "specversion",
    "subject",
    "correlation_id",
    "causation_id",
    "traceparent",
    "partition_key",
    "expires_at",
    "domain",
];

impl Event {
    /// Returns the size in bytes that a bus compares with its limit: the data as compact JSON plus the text attributes.
    /// It does not depend on the encoding.
    pub fn size(&self) -> usize {
        self.size_with(json_len(&self.0.data))
    }

    /// The same for data of which the length is known.
    pub(super) fn size_with(&self, data: usize) -> usize {
        let Attributes { channel, id, source, subject, correlation_id, .. } = &*self.0;
        let optional =
            [subject, correlation_id, &self.0.causation_id, &self.0.traceparent, &self.0.partition_key];
        let texts: usize = optional.into_iter().flatten().map(String::len).sum();
        channel.as_str().len() + id.len() + source.len() + texts + data
    }

    /// Returns the attributes as texts under their names in the native form, without the data. An encoding writes these.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        let native = NativeEvent::of(self);
        let values = [
            Some(native.event_type),
            Some(native.timestamp),
            Some(native.source),
            native.id,
            native.specversion,
            native.subject,
            native.correlation_id,
            native.causation_id,
            native.traceparent,
            native.partition_key,
            native.expires_at,
            native.domain,
        ];
        NAMES.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?)))
    }

    /// Creates an event from [`attributes`](Self::attributes) in any order. Attributes of other names are ignored.
    ///
    /// `event_type`, `timestamp` and `source` are required. An event without `id` gets a new one.
    ///
    /// # Errors
    /// [`InvalidValue`] for the first attribute that is missing, repeated or not valid.
    pub fn from_attributes(
        attributes: impl IntoIterator<Item = (impl AsRef<str>, impl Into<String>)>,
        data: impl Into<Value>,
    ) -> Result<Self, InvalidValue> {
        let mut values = [const { None::<String> }; NAMES.len()];
        for (name, value) in attributes {
            let Some(index) = NAMES.iter().position(|known| *known == name.as_ref()) else {
                continue;
            };
            if values[index].replace(value.into()).is_some() {
                return Err(invalid(format!("`{}` is given more than once", NAMES[index])));
            }
        }
        let [event_type, timestamp, source, id, specversion, rest @ ..] =
            values.map(|value| value.map(Cow::Owned));
        let [subject, correlation_id, causation_id, traceparent, partition_key, expires_at, domain] = rest;
        let required = |value: Option<_>, name| value.ok_or_else(|| invalid(format!("`{name}` is missing")));
        let native = NativeEvent {
            event_type: required(event_type, "event_type")?,
            timestamp: required(timestamp, "timestamp")?,
            source: required(source, "source")?,
            data: Cow::Owned(data.into()),
            id,
            specversion,
            subject,
            correlation_id,
            causation_id,
            traceparent,
            partition_key,
            expires_at,
            domain,
        };
        native.check()
    }

    /// Reads the native JSON form. In contrast to serde, the error names the attribute.
    ///
    /// # Errors
    /// [`InvalidValue`] when the bytes do not have that form, or for the first attribute that is not valid.
    pub fn from_json(bytes: &[u8]) -> Result<Self, InvalidValue> {
        let native: NativeEvent<'_> = read_output(bytes).map_err(|error| invalid(error.to_string()))?;
        native.check()
    }
}

impl<'a> NativeEvent<'a> {
    fn of(event: &'a Event) -> Self {
        let domain = event.channel().domain();
        Self {
            event_type: Cow::Borrowed(event.event_type()),
            timestamp: Cow::Owned(event.timestamp().to_string()),
            source: Cow::Borrowed(event.source()),
            data: Cow::Borrowed(event.data()),
            id: Some(Cow::Borrowed(event.id())),
            specversion: Some(Cow::Borrowed(SPECVERSION)),
            subject: event.subject().map(Cow::Borrowed),
            correlation_id: event.correlation_id().map(Cow::Borrowed),
            causation_id: event.causation_id().map(Cow::Borrowed),
            traceparent: event.traceparent().map(Cow::Borrowed),
            partition_key: event.partition_key().map(Cow::Borrowed),
            expires_at: event.expires_at().map(|at| Cow::Owned(at.to_string())),
            domain: Some(domain).filter(|domain| *domain != Channel::DEFAULT_DOMAIN).map(Cow::Borrowed),
        }
    }

    fn check(self) -> Result<Event, InvalidValue> {
        if let Some(found) = self.specversion.filter(|version| version != SPECVERSION) {
            return Err(invalid(format!("the specversion {found:?} is not supported")));
        }
        let mut channel = Channel::from_event_type(&self.event_type)?;
        if let Some(domain) = self.domain {
            channel = channel.with_domain(&domain)?;
        }
        let text = |value: Option<Cow<'_, str>>| value.and_then(optional);
        Ok(Event(Arc::new(Attributes {
            channel,
            source: required("source", self.source.into_owned())?,
            timestamp: timestamp("timestamp", &self.timestamp)?,
            id: match self.id {
                Some(id) => required("id", id.into_owned())?,
                None => id::ordered_uuid_text(jiff::Timestamp::now()),
            },
            expires_at: self.expires_at.map(|at| timestamp("expires_at", &at)).transpose()?,
            data: self.data.into_owned(),
            subject: text(self.subject),
            correlation_id: text(self.correlation_id),
            causation_id: text(self.causation_id),
            traceparent: text(self.traceparent),
            partition_key: text(self.partition_key),
        })))
    }
}

fn timestamp(attribute: &'static str, text: &str) -> Result<jiff::Timestamp, InvalidValue> {
    text.parse().map_err(|error| invalid(format!("`{attribute}` is not an RFC 3339 timestamp: {error}")))
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        NativeEvent::of(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NativeEvent::deserialize(deserializer)?.check().map_err(D::Error::custom)
    }
}

/// Returns the length of a value as compact JSON without writing it.
fn json_len(value: &Value) -> usize {
    // Commas stand between members, and two brackets around them.
    let within = |members: usize, texts: usize| 2 + texts + members.saturating_sub(1);
    match value {
        Value::Null | Value::Bool(true) => 4,
        Value::Bool(false) => 5,
        Value::Number(number) => number_len(number),
        Value::String(text) => text_len(text),
        Value::Array(items) => within(items.len(), items.iter().map(json_len).sum()),
        Value::Object(members) => {
            let texts = members.iter().map(|(name, value)| text_len(name) + 1 + json_len(value)).sum();
            within(members.len(), texts)
        }
    }
}

fn number_len(number: &Number) -> usize {
    let digits = |number: u64| 1 + number.checked_ilog10().unwrap_or(0) as usize;
    match (number.as_u64(), number.as_i64()) {
        (Some(number), _) => digits(number),
        (_, Some(number)) => 1 + digits(number.unsigned_abs()),
        _ => number.to_string().len(),
    }
}

fn text_len(text: &str) -> usize {
    if !needs_escapes(text.as_bytes()) {
        return 2 + text.len();
    }
    2 + text.len() + text.bytes().map(|byte| usize::from(ESCAPE[usize::from(byte)])).sum::<usize>()
}

/// Number of bytes that escaping adds to each byte.
const ESCAPE: [u8; 256] = {
    let mut escape = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escape[byte] = if matches!(byte, 0x08 | 0x09 | 0x0a | 0x0c | 0x0d) { 1 } else { 5 };
        byte += 1;
    }
    escape[b'"' as usize] = 1;
    escape[b'\\' as usize] = 1;
    escape
};
