//! Events, their channels, and patterns of channels.
//!
//! An [`Event`] is published on a [`Channel`] `<domain>:<entity>:<action>`. Its type `<entity>.<action>` and its
//! channel derive from each other, so they cannot disagree. A [`Pattern`] is a channel in which a whole segment may be
//! `*`.
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

mod attributes;
mod channel;
mod json;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::attributes::SPECVERSION;
pub use self::channel::{Channel, Pattern};
use crate::contract::ContractRef;
use crate::error::InvalidValue;
use crate::id;

/// Something that happened, published on its [`Channel`].
///
/// Its serde form is the native JSON form of the wire. Each `with_` method sets one attribute; an empty text removes an
/// optional one. Clones share their attributes, so cloning is cheap.
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
    /// Creates an event of the type `<entity>.<action>` in the domain `events`, with the current time and a new id.
    ///
    /// # Errors
    /// [`InvalidValue`] when the type is not valid or `source` is empty.
    pub fn new(
        event_type: &str,
        source: impl Into<String>,
        data: impl Into<Value>,
    ) -> Result<Self, InvalidValue> {
        Self::on(Channel::from_event_type(event_type)?, source, data)
    }

    /// Creates an event on a channel, with the current time and a new id. Its type derives from the channel.
    ///
    /// # Errors
    /// [`InvalidValue`] when `source` is empty.
    pub fn on(
        channel: Channel,
        source: impl Into<String>,
        data: impl Into<Value>,
    ) -> Result<Self, InvalidValue> {
        let timestamp = Timestamp::now();
        Ok(Self(Arc::new(Attributes {
            channel,
            id: id::ordered_uuid_text(timestamp),
            timestamp,
            source: required("source", source.into())?,
            data: data.into(),
            subject: None,
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            partition_key: None,
            expires_at: None,
        })))
    }

    /// Creates an event whose data is a serialized value.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`InvalidValue`] when the value cannot be written as JSON.
    pub fn of<T: Serialize + ?Sized>(
        event_type: &str,
        source: impl Into<String>,
        data: &T,
    ) -> Result<Self, InvalidValue> {
        let data = serde_json::to_value(data).map_err(bad_data)?;
        Self::new(event_type, source, data)
    }

    /// Creates an event by which servers drop their cached answers of a contract, or of all contracts: `cache.invalidated`. They
    /// receive it if it is published on the bus that they are given.
    ///
    /// # Errors
    /// [`InvalidValue`] when `source` is empty.
    pub fn cache_invalidated(
        source: impl Into<String>,
        contract: impl Into<Option<ContractRef>>,
    ) -> Result<Self, InvalidValue> {
        let data = match contract.into() {
            Some(contract) => json!({ "contract": contract }),
            None => json!({}),
        };
        Self::new("cache.invalidated", source, data)
    }

    /// Sets the causation id to the id of `parent`, and the correlation id to that of `parent`, or to the id of
    /// `parent` if it has no correlation id.
    #[must_use]
    pub fn caused_by(self, parent: &Event) -> Self {
        self.with_correlation_id(parent.correlation_id().unwrap_or(parent.id()))
            .with_causation_id(parent.id())
    }

    /// Sets the id.
    ///
    /// # Errors
    /// [`InvalidValue`] when `id` is empty.
    pub fn with_id(mut self, id: impl Into<String>) -> Result<Self, InvalidValue> {
        self.change().id = required("id", id.into())?;
        Ok(self)
    }

    /// Moves the event to another domain. Entity and action stay the same.
    ///
    /// # Errors
    /// [`InvalidValue`] when `domain` is not a segment of a channel.
    pub fn with_domain(mut self, domain: &str) -> Result<Self, InvalidValue> {
        let channel = self.0.channel.with_domain(domain)?;
        self.change().channel = channel;
        Ok(self)
    }

    /// Sets the time of the event.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: Timestamp) -> Self {
        self.change().timestamp = timestamp;
        self
    }

    /// Sets the subject of the event, such as the id of a task.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        self.change().subject = optional(subject);
        self
    }

    /// Sets the correlation id, which is shared by all events of one piece of work.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Self {
        self.change().correlation_id = optional(id);
        self
    }

    /// Sets the causation id, which is the id of the event that caused this one.
    #[must_use]
    pub fn with_causation_id(mut self, id: impl Into<String>) -> Self {
        self.change().causation_id = optional(id);
        self
    }

    /// Sets the W3C trace context.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.change().traceparent = optional(traceparent);
        self
    }

    /// Sets the partition key. A bus with order per key delivers the events of one key in the order of publication.
    #[must_use]
    pub fn with_partition_key(mut self, key: impl Into<String>) -> Self {
        self.change().partition_key = optional(key);
        self
    }

    /// Sets the time from which on the event is not delivered.
    #[must_use]
    pub fn with_expires_at(mut self, at: Timestamp) -> Self {
        self.change().expires_at = Some(at);
        self
    }

    /// Removes the time from which on the event is not delivered. A bus does so for [replays](crate::bus::DurableBus::replay).
    #[must_use]
    pub fn without_expiry(mut self) -> Self {
        if self.expires_at().is_some() {
            self.change().expires_at = None;
        }
        self
    }

    /// Returns the channel.
    pub fn channel(&self) -> &Channel {
        &self.0.channel
    }

    /// Returns the type, `<entity>.<action>`.
    pub fn event_type(&self) -> &str {
        self.0.channel.event_type()
    }

    /// Returns the id, which is unique within the source. By default it is a UUID v7.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Returns the time of the event.
    pub fn timestamp(&self) -> Timestamp {
        self.0.timestamp
    }

    /// Returns the name of the publisher.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Returns the data.
    pub fn data(&self) -> &Value {
        &self.0.data
    }

    /// Deserializes the data.
    ///
    /// # Errors
    /// [`InvalidValue`] when the data is not of that type.
    pub fn data_as<T: DeserializeOwned>(&self) -> Result<T, InvalidValue> {
        T::deserialize(&self.0.data).map_err(bad_data)
    }

    /// Returns the version of the envelope, `1.0`.
    pub fn specversion(&self) -> &'static str {
        SPECVERSION
    }

    /// Returns the subject.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// Returns the correlation id.
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.correlation_id.as_deref()
    }

    /// Returns the causation id.
    pub fn causation_id(&self) -> Option<&str> {
        self.0.causation_id.as_deref()
    }

    /// Returns the W3C trace context.
    pub fn traceparent(&self) -> Option<&str> {
        self.0.traceparent.as_deref()
    }

    /// Returns the partition key.
    pub fn partition_key(&self) -> Option<&str> {
        self.0.partition_key.as_deref()
    }

    /// Returns the time from which on the event is not delivered.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.0.expires_at
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

/// The error of an event.
fn invalid(reason: impl Into<Cow<'static, str>>) -> InvalidValue {
    InvalidValue::new("event").because(reason)
}

fn bad_data(error: serde_json::Error) -> InvalidValue {
    invalid(format!("the data does not have the expected form: {error}"))
}

fn required(attribute: &'static str, text: String) -> Result<String, InvalidValue> {
    if text.is_empty() { Err(invalid(format!("`{attribute}` is empty"))) } else { Ok(text) }
}

fn optional(text: impl Into<String>) -> Option<String> {
    Some(text.into()).filter(|text| !text.is_empty())
}

/// The `expires_at` of an event on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    Never,
    At(Instant),
    /// It had expired when it was published.
    Past,
}

impl Expiry {
    /// Reads the clocks only if the event expires.
    pub(crate) fn of(event: &Event) -> Self {
        event.expires_at().map_or(Self::Never, |at| Self::from_wall(at, Timestamp::now(), Instant::now()))
    }

    /// Converts a time of the wall clock, which shows `wall` when the monotonic clock shows `now`.
    fn from_wall(expires_at: Timestamp, wall: Timestamp, now: Instant) -> Self {
        // The difference of two timestamps does not overflow. A negative one is not a `Duration`.
        match Duration::try_from(expires_at.duration_since(wall)) {
            Ok(Duration::ZERO) | Err(_) => Self::Past,
            Ok(left) => now.checked_add(left).map_or(Self::Never, Self::At),
        }
    }

    /// Calls `now` only if the result depends on it.
    pub(crate) fn is_over(self, now: impl FnOnce() -> Instant) -> bool {
        match self {
            Self::Never => false,
            Self::At(at) => now() >= at,
            Self::Past => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_time_becomes_a_monotonic_one() {
        let (wall, now) = (Timestamp::UNIX_EPOCH, Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(Expiry::from_wall(wall + second, wall, now), Expiry::At(now + second));
        assert_eq!(Expiry::from_wall(wall, wall, now), Expiry::Past);
        assert_eq!(Expiry::from_wall(wall - second, wall, now), Expiry::Past);
        assert_ne!(Expiry::from_wall(Timestamp::MAX, Timestamp::MIN, now), Expiry::Past);
    }

    #[test]
    fn an_event_expires_at_its_time() {
        let now = Instant::now();
        assert!(Expiry::At(now).is_over(|| now));
        assert!(!Expiry::At(now + Duration::from_millis(1)).is_over(|| now));
        assert!(Expiry::Past.is_over(|| now));
        assert!(!Expiry::Never.is_over(|| now));
    }
}
