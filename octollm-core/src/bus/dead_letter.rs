//! What could not be worked off.

use std::sync::Arc;

use bytes::Bytes;

use crate::event::Event;

/// An event that a group gave up. It stays until it is replayed or its group is removed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The bus's own name for it, unique in its group.
    pub entry: String,
    /// What was to be delivered.
    pub body: DeadLetterBody,
    /// Why it was given up.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
}

/// The contents of a [`DeadLetter`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DeadLetterBody {
    /// An event.
    Event(Arc<Event>),
    /// Bytes that are no event, as they were found.
    Undecodable(Bytes),
}

impl DeadLetter {
    /// A dead letter that was an event.
    pub fn of_event(
        entry: impl Into<String>,
        event: Arc<Event>,
        reason: impl Into<String>,
        attempts: u32,
    ) -> Self {
        Self { entry: entry.into(), body: DeadLetterBody::Event(event), reason: reason.into(), attempts }
    }

    /// A dead letter that never was an event.
    pub fn undecodable(entry: impl Into<String>, bytes: Bytes, reason: impl Into<String>) -> Self {
        Self {
            entry: entry.into(),
            body: DeadLetterBody::Undecodable(bytes),
            reason: reason.into(),
            attempts: 0,
        }
    }

    /// The event, if it is one.
    pub fn event(&self) -> Option<&Arc<Event>> {
        match &self.body {
            DeadLetterBody::Event(event) => Some(event),
            DeadLetterBody::Undecodable(_) => None,
        }
    }
}
