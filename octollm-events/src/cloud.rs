//! CloudEvents 1.0 as JSON.

use std::borrow::Cow;

use octollm_core::event::RawEvent;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::DecodeError;

/// The attributes under the names CloudEvents has for them.
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
    data_base64: Option<serde::de::IgnoredAny>,
}

pub(crate) const JSON: &str = "application/json";

impl<'a> From<RawEvent<'a>> for CloudEvent<'a> {
    fn from(raw: RawEvent<'a>) -> Self {
        Self {
            // An event always has both; only one that was read from elsewhere might lack them.
            specversion: raw.specversion.unwrap_or_default(),
            id: raw.id.unwrap_or_default(),
            source: raw.source,
            kind: raw.event_type,
            time: Some(raw.timestamp),
            subject: raw.subject,
            datacontenttype: Some(Cow::Borrowed(JSON)),
            correlationid: raw.correlation_id,
            causationid: raw.causation_id,
            traceparent: raw.traceparent,
            partitionkey: raw.partition_key,
            expirytime: raw.expires_at,
            domain: raw.domain,
            data: raw.data,
            data_base64: None,
        }
    }
}

impl<'a> TryFrom<CloudEvent<'a>> for RawEvent<'a> {
    type Error = DecodeError;

    fn try_from(event: CloudEvent<'a>) -> Result<Self, DecodeError> {
        if event.data_base64.is_some() {
            let found = event.datacontenttype.map_or_else(|| "binary".to_owned(), Cow::into_owned);
            return Err(DecodeError::ContentType { found });
        }
        if let Some(kind) = &event.datacontenttype {
            check_content_type(kind)?;
        }
        // The time is optional there; when it came is the best that is known then.
        let time = event.time.unwrap_or_else(now);
        Ok(Self {
            id: Some(event.id),
            specversion: Some(event.specversion),
            subject: event.subject,
            correlation_id: event.correlationid,
            causation_id: event.causationid,
            traceparent: event.traceparent,
            partition_key: event.partitionkey,
            expires_at: event.expirytime,
            domain: event.domain,
            ..Self::new(event.kind, time, event.source, event.data)
        })
    }
}

/// Refuses data that is not JSON: `application/json`, or any type with `+json`.
pub(crate) fn check_content_type(content_type: &str) -> Result<(), DecodeError> {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == JSON || essence == "text/json" || essence.ends_with("+json") {
        return Ok(());
    }
    Err(DecodeError::ContentType { found: content_type.to_owned() })
}

pub(crate) fn now<'a>() -> Cow<'a, str> {
    Cow::Owned(jiff::Timestamp::now().to_string())
}
