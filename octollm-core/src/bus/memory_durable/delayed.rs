//! What is to be published later.

use std::collections::HashMap;

use tokio::task::AbortHandle;

use crate::event::Event;

/// Events that wait for their time, each with the task that waits for it.
#[derive(Debug, Default)]
pub(super) struct Delayed(HashMap<u64, (Event, AbortHandle)>);

impl Delayed {
    pub(super) fn insert(&mut self, number: u64, event: Event, alarm: AbortHandle) {
        self.0.insert(number, (event, alarm));
    }

    /// The event whose time has come, unless it was taken back.
    pub(super) fn remove(&mut self, number: u64) -> Option<Event> {
        self.0.remove(&number).map(|(event, _)| event)
    }

    /// Takes back every event of this id. Whether there was one.
    pub(super) fn cancel(&mut self, event_id: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|_, (event, alarm)| {
            let stays = event.id() != event_id;
            if !stays {
                alarm.abort();
            }
            stays
        });
        self.0.len() < before
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.0.values().for_each(|(_, alarm)| alarm.abort());
    }
}
