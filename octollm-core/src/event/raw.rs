//! An event's attributes as texts.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
