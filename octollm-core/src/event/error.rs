//! Why attributes or bytes are not an event.

use crate::error::InvalidValue;

/// Attributes or bytes are not an [`Event`](super::Event), or not the event that a reader expects.
///
/// Attributes have the names of the native form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEvent {
    /// The event type or the domain is not valid.
    #[error("the event type or its domain is not valid")]
    Channel {
        /// The rule that is broken.
        #[from]
        source: InvalidValue,
    },
    /// A required attribute is missing.
    #[error("the attribute `{attribute}` is missing")]
    Missing {
        /// Name of the attribute.
        attribute: &'static str,
    },
    /// An attribute is given more than once.
    #[error("the attribute `{attribute}` is given more than once")]
    Repeated {
        /// Name of the attribute.
        attribute: &'static str,
    },
    /// A required attribute is an empty text.
    #[error("the attribute `{attribute}` is empty")]
    Empty {
        /// Name of the attribute.
        attribute: &'static str,
    },
    /// An attribute is not UTF-8.
    #[error("the attribute `{attribute}` is not UTF-8")]
    NotUtf8 {
        /// Name of the attribute.
        attribute: &'static str,
        /// Position of the first invalid byte.
        source: std::str::Utf8Error,
    },
    /// A timestamp is not RFC 3339.
    #[error("the attribute `{attribute}` is not an RFC 3339 timestamp")]
    Timestamp {
        /// Name of the attribute.
        attribute: &'static str,
        /// The parser's error.
        source: jiff::Error,
    },
    /// The `specversion` is not `1.0`.
    #[error("the specversion {found:?} is not supported")]
    Version {
        /// The version found.
        found: String,
    },
    /// The data has a media type other than JSON.
    #[error("the data is {found:?} and not JSON")]
    ContentType {
        /// The media type found.
        found: String,
    },
    /// The event has another type than its reader reads.
    #[error("the event type {found:?} is not expected here")]
    OtherType {
        /// The event's type.
        found: String,
    },
    /// The data cannot be written as JSON, or does not have the form that its reader reads.
    #[error("the data does not have the expected form")]
    Data {
        /// The error of serde.
        source: serde_json::Error,
    },
    /// The bytes are not JSON, or not the JSON of an event: an attribute is missing, repeated or of another type.
    #[error("the bytes are not the JSON of an event")]
    Json {
        /// The error of serde. Its [`is_data`](serde_json::Error::is_data) is true where the bytes are JSON.
        source: serde_json::Error,
    },
}
