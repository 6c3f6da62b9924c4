//! Why an event is no bytes, and why bytes are no event.

use octollm_core::event::EventError;

/// An event could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// It could not be written as JSON.
    #[error("the event could not be written as JSON")]
    Json {
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Bytes are not an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They are not JSON.
    #[error("the bytes are not JSON")]
    NotJson {
        /// What is wrong with them.
        source: serde_json::Error,
    },
    /// They are JSON, but not of an event's form: an attribute is missing, there twice or of another type.
    #[error("the JSON does not have the form of an event")]
    Shape {
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A field that every event has is missing.
    #[error("the field `{field}` is missing")]
    Missing {
        /// Its name.
        field: &'static str,
    },
    /// A field is there twice.
    #[error("the field `{field}` is there twice")]
    Repeated {
        /// Its name.
        field: &'static str,
    },
    /// A field is not UTF-8.
    #[error("the field `{field}` is not text")]
    NotText {
        /// Its name.
        field: &'static str,
        /// Where it is not.
        source: std::str::Utf8Error,
    },
    /// The data is of a kind other than JSON.
    #[error("the data is {found:?} and not JSON")]
    ContentType {
        /// What it says it is.
        found: String,
    },
    /// An attribute breaks the rules of an event.
    #[error("the attributes are not those of an event")]
    Event {
        /// Which, and how.
        #[from]
        source: EventError,
    },
}

impl DecodeError {
    pub(crate) fn json(source: serde_json::Error) -> Self {
        if source.is_data() { Self::Shape { source } } else { Self::NotJson { source } }
    }
}
