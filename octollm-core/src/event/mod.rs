//! Events, the channels on which they are published, and patterns of channels.
//!
//! An [`Event`] is published on a [`Channel`] `<domain>:<entity>:<action>`. Its type `<entity>.<action>` and its channel
//! derive from each other, so they cannot disagree. A [`Pattern`] is a channel in which a whole segment may be `*`.
//!
//! ```
//! use octollm_core::event::{Event, Pattern};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let started = Event::new("task.started", "brain", serde_json::json!({ "step": 1 }))?.with_subject("task_1");
//! let completed = Event::new("task.completed", "brain", serde_json::json!({}))?.caused_by(&started);
//!
//! assert_eq!(completed.channel().as_str(), "events:task:completed");
//! assert_eq!(completed.causation_id(), Some(started.id()));
//! assert!("events:task:*".parse::<Pattern>()?.matches(completed.channel()));
//! # Ok(())
//! # }
//! ```

mod channel;
mod error;
mod raw;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value};
use uuid::Uuid;

pub use self::channel::{Channel, Pattern, Patterns};
pub use self::error::{ChannelError, EventError};
pub use self::raw::RawEvent;
use self::raw::SPECVERSION;

/// Something that happened, published on its [`Channel`].
///
/// As JSON it is the native form of the wire. Setters take it and give it back, so they chain; an empty text given to
/// one of them takes that attribute away. Clones share their attributes until one of them is changed, so cloning is cheap
/// whatever the size.
#[derive(Clone, PartialEq)]
pub struct Event(Arc<Attributes>);

#[derive(Debug, Clone, PartialEq)]
struct Attributes {
    channel: Channel,
    id: String,
    timestamp: Timestamp,
    source: String,
    data: Value,
    subject: Option<String>,
    correlation_id: Option<String>,
    causation_id: Option<String>,
    traceparent: Option<String>,
    partition_key: Option<String>,
    expires_at: Option<Timestamp>,
}

impl Event {
    /// An event of the type `<entity>.<action>` in the domain `events`, that happens now and has a new id.
    ///
    /// # Errors
    /// When the type breaks the rules of a channel, or `source` is empty.
    pub fn new(
        event_type: &str,
        source: impl Into<String>,
        data: impl Into<Value>,
    ) -> Result<Self, EventError> {
        Self::on(Channel::from_event_type(event_type)?, source, data)
    }

    /// An event on a channel, whose type derives from it.
    ///
    /// # Errors
    /// When `source` is empty.
    pub fn on(
        channel: Channel,
        source: impl Into<String>,
        data: impl Into<Value>,
    ) -> Result<Self, EventError> {
        Ok(Self(Arc::new(Attributes {
            channel,
            id: Uuid::now_v7().to_string(),
            timestamp: Timestamp::now(),
            source: filled("source", source.into())?,
            data: data.into(),
            subject: None,
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            partition_key: None,
            expires_at: None,
        })))
    }

    /// An event that carries a value of a type.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when `data` cannot be written as JSON.
    pub fn of<T: Serialize + ?Sized>(
        event_type: &str,
        source: impl Into<String>,
        data: &T,
    ) -> Result<Self, EventError> {
        let data = serde_json::to_value(data).map_err(|source| EventError::Data { source })?;
        Self::new(event_type, source, data)
    }

    /// Makes it a consequence of `parent`: of the same piece of work, and caused by it.
    ///
    /// Where the parent names no piece of work, the parent's id names it from here on.
    #[must_use]
    pub fn caused_by(self, parent: &Event) -> Self {
        self.with_correlation_id(parent.correlation_id().unwrap_or(parent.id()))
            .with_causation_id(parent.id())
    }

    /// Gives it the id it has elsewhere.
    ///
    /// # Errors
    /// When `id` is empty.
    pub fn with_id(mut self, id: impl Into<String>) -> Result<Self, EventError> {
        self.change().id = filled("id", id.into())?;
        Ok(self)
    }

    /// Tells it on the same entity and action of another domain.
    ///
    /// # Errors
    /// When `domain` is not a segment of a channel.
    pub fn with_domain(mut self, domain: &str) -> Result<Self, EventError> {
        let channel = self.0.channel.in_domain(domain)?;
        self.change().channel = channel;
        Ok(self)
    }

    /// Sets when it happened.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: Timestamp) -> Self {
        self.change().timestamp = timestamp;
        self
    }

    /// Sets what it is about, such as a task's id.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        self.change().subject = given(subject);
        self
    }

    /// Sets the piece of work it belongs to.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Self {
        self.change().correlation_id = given(id);
        self
    }

    /// Sets the id of the event that led to it.
    #[must_use]
    pub fn with_causation_id(mut self, id: impl Into<String>) -> Self {
        self.change().causation_id = given(id);
        self
    }

    /// Sets the W3C trace context it is published in.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.change().traceparent = given(traceparent);
        self
    }

    /// Sets the key within which a bus keeps events in order.
    #[must_use]
    pub fn with_partition_key(mut self, key: impl Into<String>) -> Self {
        self.change().partition_key = given(key);
        self
    }

    /// Sets when it stops being worth delivering.
    #[must_use]
    pub fn with_expires_at(mut self, at: Timestamp) -> Self {
        self.change().expires_at = Some(at);
        self
    }

    /// The channel on which it is published.
    pub fn channel(&self) -> &Channel {
        &self.0.channel
    }

    /// `<entity>.<action>`.
    pub fn event_type(&self) -> &str {
        self.0.channel.event_type()
    }

    /// Its identity, unique for its source: a UUID v7 where we made it.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// When it happened.
    pub fn timestamp(&self) -> Timestamp {
        self.0.timestamp
    }

    /// What published it.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Its data.
    pub fn data(&self) -> &Value {
        &self.0.data
    }

    /// Its data, as a type.
    ///
    /// # Errors
    /// [`EventError::Data`] when the data is not of that type.
    pub fn data_as<T: DeserializeOwned>(&self) -> Result<T, EventError> {
        T::deserialize(&self.0.data).map_err(|source| EventError::Data { source })
    }

    /// The version of the envelope, `1.0`.
    pub fn specversion(&self) -> &'static str {
        SPECVERSION
    }

    /// What it is about.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// The piece of work it belongs to.
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.correlation_id.as_deref()
    }

    /// The id of the event that led to it.
    pub fn causation_id(&self) -> Option<&str> {
        self.0.causation_id.as_deref()
    }

    /// The W3C trace context it was published in.
    pub fn traceparent(&self) -> Option<&str> {
        self.0.traceparent.as_deref()
    }

    /// The key within which a bus keeps events in order.
    pub fn partition_key(&self) -> Option<&str> {
        self.0.partition_key.as_deref()
    }

    /// When it stops being worth delivering.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.0.expires_at
    }

    /// What a bus compares with its limit: the bytes of the data as compact JSON and of every text attribute.
    ///
    /// It is the same whatever encoding carries the event.
    pub fn size(&self) -> usize {
        let Attributes { channel, id, source, subject, correlation_id, .. } = &*self.0;
        let optional =
            [subject, correlation_id, &self.0.causation_id, &self.0.traceparent, &self.0.partition_key];
        let texts: usize = optional.into_iter().flatten().map(String::len).sum();
        channel.as_str().len() + id.len() + source.len() + texts + json_len(&self.0.data)
    }

    /// Its attributes as texts, for an encoding to write.
    pub fn raw(&self) -> RawEvent<'_> {
        RawEvent {
            id: Some(Cow::Borrowed(&self.0.id)),
            specversion: Some(Cow::Borrowed(SPECVERSION)),
            subject: self.subject().map(Cow::Borrowed),
            correlation_id: self.correlation_id().map(Cow::Borrowed),
            causation_id: self.causation_id().map(Cow::Borrowed),
            traceparent: self.traceparent().map(Cow::Borrowed),
            partition_key: self.partition_key().map(Cow::Borrowed),
            expires_at: self.0.expires_at.map(|at| Cow::Owned(at.to_string())),
            domain: Some(self.0.channel.domain())
                .filter(|domain| *domain != Channel::DEFAULT_DOMAIN)
                .map(Cow::Borrowed),
            ..RawEvent::new(
                self.event_type(),
                self.0.timestamp.to_string(),
                self.0.source.as_str(),
                Cow::Borrowed(&self.0.data),
            )
        }
    }

    fn change(&mut self) -> &mut Attributes {
        Arc::make_mut(&mut self.0)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = RawEvent::<'static>::deserialize(deserializer)?;
        Event::try_from(raw).map_err(D::Error::custom)
    }
}

fn filled(attribute: &'static str, text: String) -> Result<String, EventError> {
    if text.is_empty() { Err(EventError::Empty { attribute }) } else { Ok(text) }
}

fn given(text: impl Into<String>) -> Option<String> {
    Some(text.into()).filter(|text| !text.is_empty())
}

/// The length of a value as compact JSON, without writing it.
fn json_len(value: &Value) -> usize {
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
