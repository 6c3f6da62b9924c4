//! Failures of a bus.

use super::Bound;
use super::engine::Capability;

/// A failure of a bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The event is larger than the bus takes; it was delivered to nobody.
    #[error("the event has {size} bytes, and the bus takes at most {limit}")]
    TooLarge {
        /// Its [`size`](crate::event::Event::size).
        size: usize,
        /// The largest size taken.
        limit: usize,
    },
    /// The bus denies this in its capabilities.
    #[error("the bus does not offer {capability}")]
    Unsupported {
        /// What it denies.
        capability: Capability,
    },
    /// A setting is not valid.
    #[error("the setting `{setting}` {problem}")]
    InvalidSetting {
        /// Its name.
        setting: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is no room for the event until others are settled; it was delivered to nobody.
    #[error("the bus has room for at most {bound}")]
    Full {
        /// What there is room for.
        bound: Bound,
    },
    /// The broker cannot be reached now.
    #[error("the bus is not available")]
    Unavailable {
        /// The error of its driver, where there is one.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
    /// The lease expired, and the event has gone to another consumer since or has become a dead letter.
    #[error("the lease of event {event_id:?} is lost")]
    LeaseLost {
        /// The event's id.
        event_id: String,
    },
    /// The group consumes other patterns than those given.
    #[error("the group {group:?} already consumes {existing:?}")]
    OtherPattern {
        /// The group's name.
        group: String,
        /// The patterns it was made with.
        existing: String,
    },
    /// There is no such group.
    #[error("there is no group {group:?}")]
    UnknownGroup {
        /// The name given.
        group: String,
    },
    /// The group has no such dead letter.
    #[error("there is no dead letter {entry:?}")]
    UnknownDeadLetter {
        /// The entry given.
        entry: String,
    },
}

impl BusError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }
}
