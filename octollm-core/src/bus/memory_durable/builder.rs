//! The limits of a bus in memory.

use std::time::Duration;

use super::{MemoryBus, MemoryDurableBus};
use crate::bus::BusError;
use crate::error::ConfigError;

/// Builds a [`MemoryDurableBus`].
///
/// Each limit is a number of events and the sum of their [`size`](crate::event::Event::size)s in bytes.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryDurableBusBuilder {
    max_event_bytes: usize,
    block_timeout: Duration,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) history: Limit,
    pub(super) backlog: Limit,
    pub(super) delayed: Limit,
    pub(super) dead_letters: Limit,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl MemoryDurableBusBuilder {
    pub(super) fn new() -> Self {
        Self {
            max_event_bytes: MemoryBus::DEFAULT_MAX_EVENT_BYTES,
            block_timeout: MemoryBus::DEFAULT_BLOCK_TIMEOUT,
            limits: Limits::default(),
        }
    }

    /// Sets the size of the largest event that is accepted (default 1 MiB). Each limit below has room for such an
    /// event, except that the history can be empty.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets the time for which a publisher waits for a subscriber under
    /// [`Overflow::Block`](crate::bus::Overflow::Block) (default 5 s). It does not wait if that is zero.
    pub fn block_timeout(mut self, timeout: Duration) -> Self {
        self.block_timeout = timeout;
        self
    }

    /// Limits the events that are stored for later groups (default 65 536 events, 64 MiB). A group that starts with the
    /// history receives a gap if older events were deleted.
    pub fn history(mut self, events: usize, bytes: usize) -> Self {
        self.limits.history = Limit { events, bytes };
        self
    }

    /// Limits the unsettled events of a group (default 1 048 576 events, 256 MiB). Publishing another one to the group
    /// returns [`BusError::Full`].
    pub fn backlog(mut self, events: usize, bytes: usize) -> Self {
        self.limits.backlog = Limit { events, bytes };
        self
    }

    /// Limits the events that are to be published later (default 65 536 events, 64 MiB). Adding another one returns
    /// [`BusError::Full`].
    pub fn delayed(mut self, events: usize, bytes: usize) -> Self {
        self.limits.delayed = Limit { events, bytes };
        self
    }

    /// Limits the dead letters of a group (default 65 536 events, 64 MiB). The oldest are deleted to make room.
    pub fn dead_letters(mut self, events: usize, bytes: usize) -> Self {
        self.limits.dead_letters = Limit { events, bytes };
        self
    }

    /// Creates the bus.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that is not valid.
    pub fn build(self) -> Result<MemoryDurableBus, ConfigError> {
        let invalid = |setting, reason| Err(ConfigError::new(setting, reason));
        let live = MemoryBus::with_limits(self.max_event_bytes, self.block_timeout)?;
        let Limits { history, backlog, delayed, dead_letters } = self.limits;
        for (setting, limit) in [("backlog", backlog), ("delayed", delayed), ("dead_letters", dead_letters)] {
            if !limit.allows(1, self.max_event_bytes) {
                return invalid(setting, "has no room for the largest event");
            }
        }
        if !backlog.allows(history.events, history.bytes) {
            return invalid("history", "is greater than the backlog");
        }
        Ok(MemoryDurableBus::over(live, self.limits))
    }
}

impl Default for Limits {
    fn default() -> Self {
        const EVENTS: usize = 64 * 1024;
        const BYTES: usize = 64 * 1024 * 1024;
        let limit = Limit { events: EVENTS, bytes: BYTES };
        let backlog = Limit { events: 16 * EVENTS, bytes: 4 * BYTES };
        Self { history: limit, backlog, delayed: limit, dead_letters: limit }
    }
}

impl Limit {
    pub(super) fn allows(self, events: usize, bytes: usize) -> bool {
        events <= self.events && bytes <= self.bytes
    }

    /// # Errors
    /// [`BusError::Full`].
    pub(super) fn check(self, events: usize, bytes: usize) -> Result<(), BusError> {
        let Self { events: most, bytes: most_bytes } = self;
        if self.allows(events, bytes) {
            Ok(())
        } else {
            Err(BusError::Full { events: most, bytes: most_bytes })
        }
    }
}
