//! Events as flat fields.

use std::borrow::Cow;

use bytes::Bytes;
use octollm_core::event::{Event, RawEvent};

use crate::cloud::{JSON, check_content_type, now};
use crate::{DecodeError, EncodeError, Encoding};

/// An attribute's names in the two encodings, in the order they are written.
const NAMES: [(&str, &str); ATTRIBUTES] = [
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
const ATTRIBUTES: usize = 12;
const CONTENT_TYPE: &str = "datacontenttype";
const DATA: &str = "data";

pub(crate) fn write(encoding: Encoding, event: &Event) -> Result<Vec<(&'static str, Bytes)>, EncodeError> {
    let raw = event.raw();
    let data = serde_json::to_vec(&raw.data).map_err(|source| EncodeError::Json { source })?;
    let values = [
        Some(raw.event_type),
        Some(raw.timestamp),
        Some(raw.source),
        raw.id,
        raw.specversion,
        raw.subject,
        raw.correlation_id,
        raw.causation_id,
        raw.traceparent,
        raw.partition_key,
        raw.expires_at,
        raw.domain,
    ];
    let mut fields = Vec::with_capacity(ATTRIBUTES + 2);
    for (names, value) in NAMES.into_iter().zip(values) {
        if let Some(value) = value {
            fields.push((name(encoding, names), Bytes::from(value.into_owned())));
        }
    }
    if encoding == Encoding::CloudEvents {
        fields.push((CONTENT_TYPE, Bytes::from_static(JSON.as_bytes())));
    }
    fields.push((DATA, data.into()));
    Ok(fields)
}

pub(crate) fn read<N, V>(
    encoding: Encoding,
    fields: impl IntoIterator<Item = (N, V)>,
) -> Result<Event, DecodeError>
where
    N: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let mut values: [Option<String>; ATTRIBUTES] = Default::default();
    let mut data = None;
    for (field, value) in fields {
        let (field, value) = (field.as_ref(), value.as_ref());
        if field == DATA.as_bytes() {
            fill(&mut data, DATA, serde_json::from_slice(value).map_err(DecodeError::json)?)?;
        } else if encoding == Encoding::CloudEvents && field == CONTENT_TYPE.as_bytes() {
            check_content_type(&text(CONTENT_TYPE, value)?)?;
        } else if let Some(place) = NAMES.iter().position(|names| name(encoding, *names).as_bytes() == field)
        {
            let name = name(encoding, NAMES[place]);
            fill(&mut values[place], name, text(name, value)?)?;
        }
    }
    let [event_type, timestamp, source, id, specversion, rest @ ..] =
        values.map(|value| value.map(Cow::Owned));
    let [subject, correlation_id, causation_id, traceparent, partition_key, expires_at, domain] = rest;
    let required = |value: Option<_>, place: usize| {
        value.ok_or(DecodeError::Missing { field: name(encoding, NAMES[place]) })
    };
    let mut time = timestamp;
    if encoding == Encoding::CloudEvents {
        time = time.or_else(|| Some(now()));
    }
    let raw = RawEvent {
        id,
        specversion,
        subject,
        correlation_id,
        causation_id,
        traceparent,
        partition_key,
        expires_at,
        domain,
        ..RawEvent::new(
            required(event_type, 0)?,
            required(time, 1)?,
            required(source, 2)?,
            Cow::Owned(data.unwrap_or_default()),
        )
    };
    Ok(Event::try_from(raw)?)
}

fn name(encoding: Encoding, (native, cloud): (&'static str, &'static str)) -> &'static str {
    match encoding {
        Encoding::Native => native,
        Encoding::CloudEvents => cloud,
    }
}

fn text(field: &'static str, bytes: &[u8]) -> Result<String, DecodeError> {
    let text = std::str::from_utf8(bytes).map_err(|source| DecodeError::NotText { field, source })?;
    Ok(text.to_owned())
}

fn fill<T>(slot: &mut Option<T>, field: &'static str, value: T) -> Result<(), DecodeError> {
    if slot.replace(value).is_some() { Err(DecodeError::Repeated { field }) } else { Ok(()) }
}
