//! The form of CloudEvents 1.0.

use std::borrow::Cow;

use jiff::Timestamp;
use octollm_core::error::InvalidValue;
use octollm_core::event::{Channel, Event};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The JSON of a CloudEvent in structured mode.
#[derive(Serialize, Deserialize)]
pub(crate) struct CloudEvent<'a> {
    specversion: Cow<'a, str>,
    id: Cow<'a, str>,
    source: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlationid: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    causationid: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partitionkey: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expirytime: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<Cow<'a, str>>,
    #[serde(default)]
    data: Cow<'a, Value>,
    #[serde(default, skip_serializing)]
    data_base64: Option<IgnoredAny>,
}

pub(crate) const JSON: &str = "application/json";

/// Names of the attributes in the native form and in CloudEvents, in the order in which they are written.
pub(crate) const NAMES: [(&str, &str); 12] = [
    ("event_type", "type"),
    ("timestamp", "time"),
    ("source", "source"),
    ("id", "id"),
    ("specversion", "specversion"),
    ("subject", "subject"),
    ("correlation_id", "correlationid"),
    ("causation_id", "causationid"),
    ("traceparent", "traceparent"),
    ("partition_key", "partitionkey"),
    ("expires_at", "expirytime"),
    ("domain", "domain"),
];

impl<'a> CloudEvent<'a> {
    pub(crate) fn of(event: &'a Event) -> Self {
        let domain = event.channel().domain();
        Self {
            specversion: Cow::Borrowed(event.specversion()),
            id: Cow::Borrowed(event.id()),
            source: Cow::Borrowed(event.source()),
            kind: Cow::Borrowed(event.event_type()),
            time: Some(Cow::Owned(event.timestamp().to_string())),
            subject: event.subject().map(Cow::Borrowed),
            datacontenttype: Some(Cow::Borrowed(JSON)),
            correlationid: event.correlation_id().map(Cow::Borrowed),
            causationid: event.causation_id().map(Cow::Borrowed),
            traceparent: event.traceparent().map(Cow::Borrowed),
            partitionkey: event.partition_key().map(Cow::Borrowed),
            expirytime: event.expires_at().map(|at| Cow::Owned(at.to_string())),
            domain: Some(domain).filter(|domain| *domain != Channel::DEFAULT_DOMAIN).map(Cow::Borrowed),
            data: Cow::Borrowed(event.data()),
            data_base64: None,
        }
    }

    pub(crate) fn into_event(self) -> Result<Event, InvalidValue> {
        if self.data_base64.is_some() {
            let found = self.datacontenttype.map_or_else(|| "binary".to_owned(), Cow::into_owned);
            return Err(not_json(&found));
        }
        if let Some(content_type) = &self.datacontenttype {
            check_content_type(content_type)?;
        }
        let values = [
            Some(self.kind),
            Some(self.time.unwrap_or_else(now)),
            Some(self.source),
            Some(self.id),
            Some(self.specversion),
            self.subject,
            self.correlationid,
            self.causationid,
            self.traceparent,
            self.partitionkey,
            self.expirytime,
            self.domain,
        ];
        let attributes = NAMES.iter().zip(values).filter_map(|((native, _), value)| Some((native, value?)));
        Event::from_attributes(attributes, self.data.into_owned())
    }
}

/// Accepts JSON only: `application/json`, `text/json`, and types that end in `+json`.
pub(crate) fn check_content_type(content_type: &str) -> Result<(), InvalidValue> {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == JSON || essence == "text/json" || essence.ends_with("+json") {
        return Ok(());
    }
    Err(not_json(content_type))
}

fn not_json(found: &str) -> InvalidValue {
    invalid(format!("the data is {found:?} and not JSON"))
}

/// The error of an event.
pub(crate) fn invalid(reason: String) -> InvalidValue {
    InvalidValue::new("event").because(reason)
}

/// The time of a CloudEvent that has none.
pub(crate) fn now<'a>() -> Cow<'a, str> {
    Cow::Owned(Timestamp::now().to_string())
}
