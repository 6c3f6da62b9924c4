//! How a brain works.

use std::time::Duration;

/// The limits of a brain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrainConfig {
    /// How many tasks run at a time.
    pub max_running: usize,
    /// How many may wait; what comes beyond that is refused as overloaded.
    pub max_queued: usize,
    /// How long a task is held without a word; then another brain may take it. Renewed at a third.
    pub lease: Duration,
}

impl Default for BrainConfig {
    /// 256 running, 10 000 waiting, a lease of 30 s.
    fn default() -> Self {
        Self { max_running: 256, max_queued: 10_000, lease: Duration::from_secs(30) }
    }
}

impl BrainConfig {
    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        if self.max_running == 0 {
            return Err(InvalidConfig("max_running is 0"));
        }
        if self.max_queued == 0 {
            return Err(InvalidConfig("max_queued is 0"));
        }
        if self.lease < Duration::from_millis(100) || self.lease > Duration::from_secs(86_400) {
            return Err(InvalidConfig("lease is not between 100 ms and a day"));
        }
        Ok(())
    }
}

/// A limit that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the brain's configuration is invalid: {0}")]
pub struct InvalidConfig(&'static str);
