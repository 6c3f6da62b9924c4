//! The two encodings.

use bytes::Bytes;
use octollm_core::error::InvalidValue;
use octollm_core::event::Event;

use crate::cloud::{CloudEvent, JSON, NAMES, check_content_type, invalid, now};

/// An encoding of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// The native JSON form. Of an event of another system, `event_type`, `timestamp` and `source` are required.
    #[default]
    Native,
    /// CloudEvents 1.0 in JSON, structured mode. Unknown extension attributes are ignored.
    CloudEvents,
}

impl Encoding {
    /// Returns the media type of an encoded event.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Native => "application/json",
            Self::CloudEvents => "application/cloudevents+json",
        }
    }

    /// Writes an event as a JSON document.
    ///
    /// # Errors
    /// [`InvalidValue`] when the event cannot be written.
    pub fn encode(self, event: &Event) -> Result<Bytes, InvalidValue> {
        self.write(event).map(|(bytes, _)| bytes.into())
    }

    /// The same, with the [size](Event::size) of the event.
    pub(crate) fn write(self, event: &Event) -> Result<(Vec<u8>, usize), InvalidValue> {
        let mut bytes = Vec::with_capacity(USUAL);
        let size = match self {
            Self::Native => event.write_json(&mut bytes)?,
            Self::CloudEvents => {
                serde_json::to_writer(&mut bytes, &CloudEvent::of(event))
                    .map_err(|error| invalid(error.to_string()))?;
                event.size()
            }
        };
        Ok((bytes, size))
    }

    /// Reads an event from a JSON document.
    ///
    /// # Errors
    /// [`InvalidValue`] when the bytes are not an event.
    pub fn decode(self, bytes: &[u8]) -> Result<Event, InvalidValue> {
        match self {
            Self::Native => Event::from_json(bytes),
            Self::CloudEvents => parse::<CloudEvent<'_>>(bytes)?.into_event(),
        }
    }

    /// Writes an event as fields: one for each attribute, and `data` as JSON.
    ///
    /// # Errors
    /// [`InvalidValue`] when the data cannot be written.
    pub fn to_fields(self, event: &Event) -> Result<Vec<(&'static str, Bytes)>, InvalidValue> {
        let mut fields = Vec::with_capacity(NAMES.len() + 2);
        self.each_field(event, |name, value| fields.push((name, Bytes::copy_from_slice(value))))?;
        Ok(fields)
    }

    /// The same, one by one.
    pub(crate) fn each_field(
        self,
        event: &Event,
        mut add: impl FnMut(&'static str, &[u8]),
    ) -> Result<(), InvalidValue> {
        let mut data = Vec::with_capacity(256);
        event.write_data(&mut data)?;
        for (native, value) in event.attributes() {
            let both = NAMES.iter().find(|(name, _)| self == Self::CloudEvents && *name == native);
            add(both.map_or(native, |both| self.name(*both)), value.as_bytes());
        }
        if self == Self::CloudEvents {
            add(CONTENT_TYPE, JSON.as_bytes());
        }
        add(DATA, &data);
        Ok(())
    }

    /// Reads an event from fields in any order. Fields of other names are ignored.
    ///
    /// # Errors
    /// [`InvalidValue`] when the fields are not those of an event.
    pub fn from_fields<N, V>(self, fields: impl IntoIterator<Item = (N, V)>) -> Result<Event, InvalidValue>
    where
        N: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let (mut attributes, mut data) = (Vec::with_capacity(NAMES.len()), None);
        for (field, value) in fields {
            let (field, value) = (field.as_ref(), value.as_ref());
            if field == DATA.as_bytes() {
                if data.replace(parse(value)?).is_some() {
                    return Err(invalid(format!("`{DATA}` is given more than once")));
                }
            } else if self == Self::CloudEvents && field == CONTENT_TYPE.as_bytes() {
                check_content_type(&text(CONTENT_TYPE, value)?)?;
            } else if let Some((native, _)) = NAMES.iter().find(|both| self.name(**both).as_bytes() == field)
            {
                attributes.push((*native, text(native, value)?));
            }
        }
        if self == Self::CloudEvents && attributes.iter().all(|(native, _)| *native != "timestamp") {
            attributes.push(("timestamp", now().into_owned()));
        }
        Event::from_attributes(attributes, data.unwrap_or(serde_json::Value::Null))
    }

    fn name(self, (native, cloud): (&'static str, &'static str)) -> &'static str {
        match self {
            Self::Native => native,
            Self::CloudEvents => cloud,
        }
    }
}

/// Room for an event as most are.
const USUAL: usize = 512;
const CONTENT_TYPE: &str = "datacontenttype";
const DATA: &str = "data";

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, InvalidValue> {
    octollm_core::json::read_output(bytes).map_err(|error| invalid(error.to_string()))
}

fn text(attribute: &'static str, bytes: &[u8]) -> Result<String, InvalidValue> {
    let text = std::str::from_utf8(bytes);
    Ok(text.map_err(|error| invalid(format!("`{attribute}` is not UTF-8: {error}")))?.to_owned())
}
