//! What happened.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::raw::{SPECVERSION, json_len};
use super::{Channel, EventError, RawEvent};

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn type_and_channel_derive_from_each_other() {
        let event = Event::new("task.completed", "brain", json!({})).unwrap();
        assert_eq!(event.channel().as_str(), "events:task:completed");
        let event = Event::on("audit:task:seen".parse().unwrap(), "brain", json!({})).unwrap();
        assert_eq!(event.event_type(), "task.seen");
    }

    #[test]
    fn a_consequence_names_its_cause() {
        let root = Event::new("task.queued", "brain", Value::Null).unwrap();
        let child = Event::new("task.started", "brain", Value::Null).unwrap().caused_by(&root);
        let grandchild = Event::new("task.completed", "brain", Value::Null).unwrap().caused_by(&child);
        assert_eq!(child.correlation_id(), Some(root.id()));
        assert_eq!(grandchild.correlation_id(), Some(root.id()));
        assert_eq!(grandchild.causation_id(), Some(child.id()));
    }

    #[test]
    fn an_empty_text_takes_the_attribute_away() {
        let event = Event::new("a.b", "s", Value::Null).unwrap().with_subject("x").with_subject("");
        assert_eq!(event.subject(), None);
        assert!(matches!(Event::new("a.b", "", Value::Null), Err(EventError::Empty { attribute: "source" })));
        assert!(matches!(event.with_id(""), Err(EventError::Empty { attribute: "id" })));
    }

    #[test]
    fn every_attribute_survives_json() {
        let event =
            Event::on("audit:task:seen".parse().unwrap(), "brain", json!({ "nul": "\0", "n": [1.5, null] }))
                .unwrap()
                .with_subject("task_1")
                .with_correlation_id("c")
                .with_causation_id("p")
                .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
                .with_partition_key("k")
                .with_expires_at("2030-01-01T00:00:00.000000001Z".parse().unwrap());
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn size_counts_data_and_texts() {
        let event = Event::new("a.b", "src", json!({ "k": "é\n" })).unwrap().with_id("id").unwrap();
        let data = serde_json::to_string(event.data()).unwrap();
        assert_eq!(event.size(), "events:a:b".len() + "src".len() + "id".len() + data.len());
        assert_eq!(event.clone().with_subject("12345").size(), event.size() + 5);
    }

    #[test]
    fn clones_share_until_one_is_changed() {
        let event = Event::new("a.b", "s", json!("x".repeat(1000))).unwrap();
        let clone = event.clone();
        assert!(std::ptr::eq(event.data(), clone.data()));
        let changed = clone.with_subject("task_1");
        assert_eq!((event.subject(), changed.subject()), (None, Some("task_1")));
        assert_eq!(event.data(), changed.data());
    }

    #[test]
    fn data_reads_as_a_type() {
        let event = Event::of("a.b", "s", &vec![1, 2]).unwrap();
        assert_eq!(event.data_as::<Vec<u8>>().unwrap(), [1, 2]);
        assert!(matches!(event.data_as::<String>(), Err(EventError::Data { .. })));
    }
}
