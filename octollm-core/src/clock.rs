//! What time it is on the wall.

use jiff::Timestamp;
use tokio::time::Instant;

/// Tells the time of day for records. Durations and deadlines never come from here.
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

    /// Starts from the system's clock and then follows tokio's, so that a test which pauses time pauses this too.
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
