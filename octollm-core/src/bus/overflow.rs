//! What happens when a listener is too slow.

use super::BusError;

/// What a subscription does with an event for which it has no room. It is always chosen; nothing waits without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The publisher waits for room: nothing is lost, and a slow listener slows its publishers down, the other listeners
    /// with them. There is room for [`Overflow::BLOCK_CAPACITY`] events.
    Block,
    /// The oldest of so many events goes. The listener is told how many went, before what is left of them.
    DropOldest(usize),
    /// The new event goes once so many wait. The listener is told how many went, after those that waited.
    DropNewest(usize),
    /// The subscription ends with [`Ended::SlowConsumer`](super::Ended::SlowConsumer), once so many events wait and one
    /// more comes. Those that waited are still delivered.
    Disconnect(usize),
}

impl Overflow {
    /// How many events wait under [`Overflow::Block`].
    pub const BLOCK_CAPACITY: usize = 1024;

    /// How many events may wait.
    pub fn capacity(self) -> usize {
        match self {
            Self::Block => Self::BLOCK_CAPACITY,
            Self::DropOldest(events) | Self::DropNewest(events) | Self::Disconnect(events) => events,
        }
    }

    /// # Errors
    /// [`BusError::InvalidSetting`] when there would be room for no event.
    pub(super) fn validate(self) -> Result<(), BusError> {
        if self.capacity() == 0 {
            return Err(BusError::InvalidSetting { setting: "overflow", problem: "has room for no event" });
        }
        Ok(())
    }
}
