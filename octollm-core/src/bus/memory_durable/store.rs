//! Everything that the bus stores.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::MemoryDurableConfig;
use super::group::{Group, Terms};
use super::order::Item;
use crate::bus::engine::{Counters, Expiry};
use crate::bus::{Bound, BusError, ConsumeOptions, Gap, GapReason, Start};
use crate::event::Pattern;

/// The history, the groups and what waits for its time.
#[derive(Debug)]
pub(super) struct Store {
    config: MemoryDurableConfig,
    counters: Arc<Counters>,
    groups: HashMap<Arc<str>, GroupSlot>,
    history: VecDeque<(u64, Item)>,
    history_bytes: usize,
    trimmed: bool,
    pub(super) delayed: Delayed,
    last_number: u64,
    closed: bool,
}

/// A group, and what its members wait for.
#[derive(Debug)]
pub(super) struct GroupSlot {
    pub(super) group: Group,
    pub(super) changed: Arc<Notify>,
}

/// A member that has joined.
#[derive(Debug, Clone)]
pub(super) struct Membership {
    pub(super) group: Arc<str>,
    pub(super) member: u64,
    pub(super) changed: Arc<Notify>,
}

impl Store {
    pub(super) fn new(config: MemoryDurableConfig, counters: Arc<Counters>) -> Self {
        Self {
            config,
            counters,
            groups: HashMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            trimmed: false,
            delayed: Delayed::default(),
            last_number: 0,
            closed: false,
        }
    }

    /// A number later than all before.
    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// # Errors
    /// [`BusError::Closed`].
    pub(super) fn check_open(&self) -> Result<(), BusError> {
        if self.closed { Err(BusError::Closed) } else { Ok(()) }
    }

    /// Refuses an event for which a group has no room.
    pub(super) fn check_room(&self, item: &Item) -> Result<(), BusError> {
        let bound = self.config.backlog;
        let full = |slot: &GroupSlot| {
            !slot.group.has_room(bound, item.size) && slot.group.pattern.matches(item.event.channel())
        };
        if self.groups.values().any(full) { Err(BusError::Full { bound }) } else { Ok(()) }
    }

    pub(super) fn append(&mut self, item: &Item) {
        let number = self.number();
        for slot in self.groups.values_mut() {
            if slot.group.pattern.matches(item.event.channel()) {
                slot.group.push(number, item.clone());
                slot.changed.notify_waiters();
            }
        }
        self.history_bytes += item.size;
        self.history.push_back((number, item.clone()));
        while !self.config.history.holds(self.history.len(), self.history_bytes) {
            let Some((_, oldest)) = self.history.pop_front() else { return };
            self.history_bytes -= oldest.size;
            self.trimmed = true;
        }
    }

    /// Delivers a dead letter again.
    pub(super) fn replay(&mut self, name: &str, entry: u64, now: Instant) -> Result<(), BusError> {
        let (bound, number) = (self.config.backlog, self.number());
        let slot = self.slot(name)?;
        let unknown = || BusError::UnknownDeadLetter { entry: entry.to_string() };
        let size = slot.group.dead_letter(entry, now).ok_or_else(unknown)?.size;
        if !slot.group.has_room(bound, size) {
            return Err(BusError::Full { bound });
        }
        let item = slot.group.exhume(entry).ok_or_else(unknown)?;
        // Whoever replays it wants it delivered, however old it is.
        slot.group.push(number, Item { expiry: Expiry::Never, attempts: 0, hold: None, ..item });
        slot.changed.notify_waiters();
        Ok(())
    }

    pub(super) fn join(
        &mut self,
        name: &str,
        pattern: Pattern,
        options: &ConsumeOptions,
    ) -> Result<Membership, BusError> {
        self.check_open()?;
        if !self.groups.contains_key(name) {
            let group = self.found(pattern.clone(), options.start);
            self.groups.insert(name.into(), GroupSlot { group, changed: Arc::default() });
        }
        let (member, name) = (self.number(), Arc::<str>::from(name));
        let slot = self.slot(&name)?;
        if slot.group.pattern != pattern {
            let existing = slot.group.pattern.to_string();
            return Err(BusError::OtherPattern { group: name.to_string(), existing });
        }
        slot.group.join(member, Terms::from(options));
        Ok(Membership { member, changed: Arc::clone(&slot.changed), group: name })
    }

    /// # Errors
    /// [`BusError::UnknownGroup`].
    pub(super) fn slot(&mut self, name: &str) -> Result<&mut GroupSlot, BusError> {
        self.groups.get_mut(name).ok_or_else(|| BusError::UnknownGroup { group: name.to_owned() })
    }

    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.groups.remove(name).inspect(|slot| slot.changed.notify_waiters()).is_some()
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.delayed = Delayed::default();
        self.groups.values().for_each(|slot| slot.changed.notify_waiters());
    }

    /// A new group, from what the bus still has or from now on.
    fn found(&self, pattern: Pattern, start: Start) -> Group {
        let mut group = Group::new(pattern, self.config.dead_letters, Arc::clone(&self.counters));
        if start == Start::Beginning {
            if self.trimmed {
                group.mark(Gap::new(GapReason::Trimmed));
            }
            for (number, item) in &self.history {
                if group.pattern.matches(item.event.channel()) {
                    group.push(*number, item.clone());
                }
            }
        }
        group
    }
}

/// Events that wait for their time, each with the task that waits for it.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    waiting: HashMap<u64, (Item, AbortHandle)>,
    bytes: usize,
}

impl Delayed {
    /// # Errors
    /// [`BusError::Full`].
    pub(super) fn check_room(&self, bound: Bound, item: &Item) -> Result<(), BusError> {
        let room = bound.holds(self.waiting.len() + 1, self.bytes + item.size);
        if room { Ok(()) } else { Err(BusError::Full { bound }) }
    }

    pub(super) fn insert(&mut self, number: u64, item: Item, alarm: AbortHandle) {
        self.bytes += item.size;
        self.waiting.insert(number, (item, alarm));
    }

    /// The event whose time has come, unless it was taken back.
    pub(super) fn remove(&mut self, number: u64) -> Option<Item> {
        let (item, _) = self.waiting.remove(&number)?;
        self.bytes -= item.size;
        Some(item)
    }

    /// Takes back every event of this id. Whether there was one.
    pub(super) fn cancel(&mut self, event_id: &str) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|_, (item, alarm)| {
            let stays = item.event.id() != event_id;
            if !stays {
                self.bytes -= item.size;
                alarm.abort();
            }
            stays
        });
        self.waiting.len() < before
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.waiting.values().for_each(|(_, alarm)| alarm.abort());
    }
}
