//! The time of day.

use jiff::Timestamp;
use tokio::time::Instant;

/// The time of day for the records of tasks. Durations and deadlines follow tokio's clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Source);

#[derive(Debug, Clone, Copy)]
enum Source {
    System,
    Runtime { started: Instant, at: Timestamp },
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that starts at the system's time and then follows tokio's clock, so that a test that pauses time pauses it too.
    pub fn runtime() -> Self {
        Self(Source::Runtime { started: Instant::now(), at: Timestamp::now() })
    }

    /// The time now, in UTC.
    pub fn now(&self) -> Timestamp {
        match self.0 {
            Source::System => Timestamp::now(),
            Source::Runtime { started, at } => at.checked_add(started.elapsed()).unwrap_or(at),
        }
    }
}
