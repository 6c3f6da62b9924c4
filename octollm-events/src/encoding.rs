//! The two encodings.

use bytes::Bytes;
use octollm_core::event::{Event, RawEvent};

use crate::cloud::CloudEvent;
use crate::{DecodeError, EncodeError, fields};

/// How events are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// The project's own JSON form. Events of other systems that have no more than `event_type`, `timestamp`, `source` and
    /// `data` are read too.
    #[default]
    Native,
    /// CloudEvents 1.0 in JSON, structured mode. Extension attributes it does not know are passed over.
    CloudEvents,
}

impl Encoding {
    /// The media type of what [`encode`](Self::encode) writes.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Native => "application/json",
            Self::CloudEvents => "application/cloudevents+json",
        }
    }

    /// Writes an event as one JSON document.
    ///
    /// # Errors
    /// [`EncodeError::Json`].
    pub fn encode(self, event: &Event) -> Result<Bytes, EncodeError> {
        let written = match self {
            Self::Native => serde_json::to_vec(event),
            Self::CloudEvents => serde_json::to_vec(&CloudEvent::from(event.raw())),
        };
        written.map(Bytes::from).map_err(|source| EncodeError::Json { source })
    }

    /// Reads an event from one JSON document.
    ///
    /// # Errors
    /// [`DecodeError`] says in which way the bytes are no event.
    pub fn decode(self, bytes: &[u8]) -> Result<Event, DecodeError> {
        let raw: RawEvent<'_> = match self {
            Self::Native => serde_json::from_slice(bytes).map_err(DecodeError::json)?,
            Self::CloudEvents => {
                serde_json::from_slice::<CloudEvent<'_>>(bytes).map_err(DecodeError::json)?.try_into()?
            }
        };
        Ok(Event::try_from(raw)?)
    }

    /// Writes an event as fields: one for each attribute it has, and `data` as JSON.
    ///
    /// # Errors
    /// [`EncodeError::Json`].
    pub fn to_fields(self, event: &Event) -> Result<Vec<(&'static str, Bytes)>, EncodeError> {
        fields::write(self, event)
    }

    /// Reads an event from fields, in any order. Fields it does not know are passed over.
    ///
    /// # Errors
    /// [`DecodeError`] says in which way the fields are no event.
    pub fn from_fields<N, V>(self, fields: impl IntoIterator<Item = (N, V)>) -> Result<Event, DecodeError>
    where
        N: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        fields::read(self, fields)
    }
}
