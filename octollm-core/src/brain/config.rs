//! The limits of a brain.

use std::time::Duration;

use crate::error::ConfigError;

/// The limits of a brain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrainConfig {
    /// Tasks that run at a time (default 256).
    pub max_running: usize,
    /// Tasks that wait in the store (default 10 000); more are refused as overloaded.
    pub max_queued: usize,
    /// Bytes of what was submitted with those (default 64 MiB); more are refused as overloaded.
    pub max_queued_bytes: usize,
    /// The longest time limit that a submission can ask for (default 24 hours); a longer one is shortened to it. A
    /// submission without a time limit has that of its contract.
    pub max_task_time: Duration,
    /// How long a task is held without being renewed (default 30 s, 100 ms to a day); after that another brain may claim
    /// it. It is renewed at a third of this time, and an operation of the store has to take less than that.
    pub lease: Duration,
}

impl Default for BrainConfig {
    fn default() -> Self {
        Self {
            max_running: 256,
            max_queued: 10_000,
            max_queued_bytes: 64 * 1024 * 1024,
            max_task_time: Duration::from_secs(24 * 3600),
            lease: Duration::from_secs(30),
        }
    }
}

impl BrainConfig {
    /// Checks every limit.
    ///
    /// # Errors
    /// The first that lets nothing through or is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let counts = [
            ("max_running", self.max_running),
            ("max_queued", self.max_queued),
            ("max_queued_bytes", self.max_queued_bytes),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::new(field, "is 0"));
        }
        if self.max_task_time.is_zero() {
            return Err(ConfigError::new("max_task_time", "is 0"));
        }
        if self.lease < Duration::from_millis(100) || self.lease > Duration::from_secs(86_400) {
            return Err(ConfigError::new("lease", "is not between 100 ms and a day"));
        }
        Ok(())
    }
}
