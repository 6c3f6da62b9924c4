//! The bounds of the bus.

use crate::bus::BusError;

/// What a [`MemoryDurableBus`](super::MemoryDurableBus) may be told. Checked when the bus is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryDurableConfig {
    /// The largest event taken, in the bytes of [`Event::size`](crate::event::Event::size). 1 MiB unless told.
    pub max_event_bytes: usize,
    /// How many events are kept for groups to come; older ones are a gap to them. 65 536 unless told.
    pub history: usize,
    /// How many events a group may have that are not settled; then publishing to it is [`BusError::Full`]. 1 048 576
    /// unless told.
    pub max_backlog: usize,
    /// How many events may wait for their time at once. 65 536 unless told.
    pub max_delayed: usize,
    /// How many dead letters a group keeps; then the oldest go and are counted. 65 536 unless told.
    pub max_dead_letters: usize,
}

impl Default for MemoryDurableConfig {
    fn default() -> Self {
        const MANY: usize = 64 * 1024;
        Self {
            max_event_bytes: 1024 * 1024,
            history: MANY,
            max_backlog: 16 * MANY,
            max_delayed: MANY,
            max_dead_letters: MANY,
        }
    }
}

impl MemoryDurableConfig {
    pub(super) fn validate(&self) -> Result<(), BusError> {
        let invalid = |setting, problem| Err(BusError::InvalidSetting { setting, problem });
        if self.max_backlog == 0 {
            return invalid("max_backlog", "is zero");
        }
        if self.max_dead_letters == 0 {
            return invalid("max_dead_letters", "is zero");
        }
        if self.history > self.max_backlog {
            return invalid("history", "is more than a group may have as backlog");
        }
        Ok(())
    }
}
