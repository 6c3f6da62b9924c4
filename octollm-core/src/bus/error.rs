//! What can go wrong on a bus.

use super::engine::Capability;

/// A bus did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The event is larger than the bus takes; nothing of it was delivered.
    #[error("the event has {size} bytes and the bus takes {limit}")]
    TooLarge {
        /// Its [`size`](crate::event::Event::size).
        size: usize,
        /// The largest size taken.
        limit: usize,
    },
    /// The bus cannot do this, and says so in its capabilities.
    #[error("the bus does not offer {capability}")]
    Unsupported {
        /// What it cannot do.
        capability: Capability,
    },
    /// A setting makes no sense.
    #[error("the setting `{setting}` {problem}")]
    InvalidSetting {
        /// Its name.
        setting: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is no room for another event until some are settled; nothing of it was delivered.
    #[error("the bus has no room for more than {limit} events")]
    Full {
        /// How many it holds.
        limit: usize,
    },
    /// The broker cannot be reached now.
    #[error("the bus is not available")]
    Unavailable {
        /// What its driver says.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
    /// The delivery belongs to somebody else by now: its lease ran out before it was settled.
    #[error("the lease of event {event_id:?} is lost")]
    LeaseLost {
        /// The event's id.
        event_id: String,
    },
    /// The group listens to other patterns than those asked for.
    #[error("the group {group:?} consumes {existing:?} and not what was asked for")]
    OtherPatterns {
        /// The group's name.
        group: String,
        /// The patterns it was made with.
        existing: String,
    },
    /// There is no such group.
    #[error("there is no group {group:?}")]
    UnknownGroup {
        /// The name asked for.
        group: String,
    },
    /// The group has no such dead letter.
    #[error("there is no dead letter {entry:?}")]
    UnknownDeadLetter {
        /// The entry asked for.
        entry: String,
    },
}

impl BusError {
    /// Whether the same call may go well later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }
}
