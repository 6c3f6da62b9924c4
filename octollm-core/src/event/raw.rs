//! An event's attributes as texts, and how long they are.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::{Channel, Event, EventError};

/// The attributes of an event as the texts they are on a wire, named as in the native JSON form.
///
/// Every encoding meets here: it fills one in and turns it into an [`Event`], which checks it, or asks an event for its
/// [`raw`](Event::raw) form and writes that. `id`, `specversion` and all that follows them may be missing, as in events
/// of other systems; then an id is minted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RawEvent<'a> {
    /// `<entity>.<action>`.
    pub event_type: Cow<'a, str>,
    /// When it happened, RFC 3339.
    pub timestamp: Cow<'a, str>,
    /// What published it.
    pub source: Cow<'a, str>,
    /// Its data.
    #[serde(default)]
    pub data: Cow<'a, Value>,
    /// Its identity, unique for its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
    /// The version of this form, `1.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specversion: Option<Cow<'a, str>>,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Cow<'a, str>>,
    /// The piece of work it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<Cow<'a, str>>,
    /// The id of the event that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Cow<'a, str>>,
    /// The W3C trace context it was published in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Cow<'a, str>>,
    /// Events of one key stay in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_key: Option<Cow<'a, str>>,
    /// When it stops being worth delivering, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Cow<'a, str>>,
    /// The first segment of its channel where that is not `events`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Cow<'a, str>>,
}

/// The version written, and the only one read.
pub(super) const SPECVERSION: &str = "1.0";

impl<'a> RawEvent<'a> {
    /// The four attributes every event has, without the others.
    pub fn new(
        event_type: impl Into<Cow<'a, str>>,
        timestamp: impl Into<Cow<'a, str>>,
        source: impl Into<Cow<'a, str>>,
        data: Cow<'a, Value>,
    ) -> Self {
        Self {
            event_type: event_type.into(),
            timestamp: timestamp.into(),
            source: source.into(),
            data,
            id: None,
            specversion: None,
            subject: None,
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            partition_key: None,
            expires_at: None,
            domain: None,
        }
    }
}

impl TryFrom<RawEvent<'_>> for Event {
    type Error = EventError;

    fn try_from(raw: RawEvent<'_>) -> Result<Self, EventError> {
        if let Some(found) = raw.specversion.filter(|version| version != SPECVERSION) {
            return Err(EventError::Version { found: found.into_owned() });
        }
        let mut channel = Channel::from_event_type(&raw.event_type)?;
        if let Some(domain) = raw.domain {
            channel = channel.in_domain(&domain)?;
        }
        let mut event = Event::on(channel, raw.source, raw.data.into_owned())?
            .with_timestamp(timestamp("timestamp", &raw.timestamp)?);
        if let Some(id) = raw.id {
            event = event.with_id(id)?;
        }
        if let Some(at) = raw.expires_at {
            event = event.with_expires_at(timestamp("expires_at", &at)?);
        }
        Ok(event
            .with_subject(raw.subject.unwrap_or_default())
            .with_correlation_id(raw.correlation_id.unwrap_or_default())
            .with_causation_id(raw.causation_id.unwrap_or_default())
            .with_traceparent(raw.traceparent.unwrap_or_default())
            .with_partition_key(raw.partition_key.unwrap_or_default()))
    }
}

fn timestamp(attribute: &'static str, text: &str) -> Result<jiff::Timestamp, EventError> {
    text.parse().map_err(|source| EventError::Timestamp { attribute, source })
}

/// The length of a value as compact JSON, without writing it.
pub(super) fn json_len(value: &Value) -> usize {
    // Members are divided by commas, and what contains them has two brackets.
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
    2 + text.len() + text.bytes().map(|byte| usize::from(ESCAPE[usize::from(byte)])).sum::<usize>()
}

/// By how much the escape of a byte is longer than the byte.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn raw() -> RawEvent<'static> {
        RawEvent::new("task.completed", "2025-11-10T10:30:00Z", "orchestrator", Cow::Owned(Value::Null))
    }

    #[test]
    fn four_attributes_are_an_event() {
        let event = Event::try_from(raw()).unwrap();
        assert_eq!(event.channel().as_str(), "events:task:completed");
        assert_eq!(event.id().len(), 36, "an id was minted");
        assert_eq!(event.subject(), None);
    }

    #[test]
    fn each_fault_has_its_error() {
        let version = RawEvent { specversion: Some("0.3".into()), ..raw() };
        assert!(matches!(Event::try_from(version), Err(EventError::Version { found }) if found == "0.3"));
        let time = RawEvent { timestamp: "yesterday".into(), ..raw() };
        assert!(matches!(Event::try_from(time), Err(EventError::Timestamp { attribute: "timestamp", .. })));
        let expiry = RawEvent { expires_at: Some("2025-13-01".into()), ..raw() };
        assert!(matches!(
            Event::try_from(expiry),
            Err(EventError::Timestamp { attribute: "expires_at", .. })
        ));
        let source = RawEvent { source: "".into(), ..raw() };
        assert!(matches!(Event::try_from(source), Err(EventError::Empty { attribute: "source" })));
        let id = RawEvent { id: Some("".into()), ..raw() };
        assert!(matches!(Event::try_from(id), Err(EventError::Empty { attribute: "id" })));
        let domain = RawEvent { domain: Some("*".into()), ..raw() };
        assert!(matches!(Event::try_from(domain), Err(EventError::Channel { .. })));
    }

    proptest! {
        #[test]
        fn the_length_of_json_is_that_of_its_text(text in prop::collection::vec(any::<char>(), 0..40), ascii in "[\\x00-\\x7f]*", integer: i64, float: f64, large: u64) {
            let text: String = text.into_iter().collect();
            let value = json!({ (text.as_str()): [text, ascii, integer, float, large, null, true, false], "": {}, "a": [] });
            prop_assert_eq!(json_len(&value), value.to_string().len());
        }
    }
}
