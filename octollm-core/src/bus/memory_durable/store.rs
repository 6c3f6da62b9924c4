//! Everything the bus keeps.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::MemoryDurableConfig;
use super::group::{Group, Terms};
use super::lanes::Item;
use crate::bus::engine::Counters;
use crate::bus::{BusError, ConsumeOptions, Gap, GapReason, Start};
use crate::event::{Event, Patterns};

/// The history, the groups and what waits for its time.
#[derive(Debug)]
pub(super) struct Store {
    config: MemoryDurableConfig,
    counters: Arc<Counters>,
    groups: HashMap<Arc<str>, GroupSlot>,
    history: VecDeque<(u64, Item)>,
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
        let limit = self.config.max_backlog;
        let full = |slot: &GroupSlot| {
            slot.group.backlog() >= limit && slot.group.patterns.matches(item.event.channel())
        };
        if self.groups.values().any(full) { Err(BusError::Full { limit }) } else { Ok(()) }
    }

    pub(super) fn append(&mut self, item: &Item) {
        let number = self.number();
        for slot in self.groups.values_mut() {
            if slot.group.patterns.matches(item.event.channel()) {
                slot.group.push(number, item.clone());
                slot.changed.notify_waiters();
            }
        }
        self.history.push_back((number, item.clone()));
        if self.history.len() > self.config.history {
            self.history.pop_front();
            self.trimmed = true;
        }
    }

    pub(super) fn join(
        &mut self,
        name: &str,
        patterns: Patterns,
        options: &ConsumeOptions,
    ) -> Result<Membership, BusError> {
        self.check_open()?;
        if !self.groups.contains_key(name) {
            let group = self.found(patterns.clone(), options.start);
            self.groups.insert(name.into(), GroupSlot { group, changed: Arc::default() });
        }
        let (member, name) = (self.number(), Arc::<str>::from(name));
        let slot = self.slot(&name)?;
        if slot.group.patterns != patterns {
            let existing = slot.group.patterns.to_string();
            return Err(BusError::OtherPatterns { group: name.to_string(), existing });
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

    /// Makes a group, from what the bus still has or from now on.
    fn found(&self, patterns: Patterns, start: Start) -> Group {
        let mut group = Group::new(patterns, self.config.max_dead_letters, Arc::clone(&self.counters));
        if start == Start::Beginning {
            if self.trimmed {
                group.mark(Gap::new(GapReason::Trimmed));
            }
            for (number, item) in &self.history {
                if group.patterns.matches(item.event.channel()) {
                    group.push(*number, item.clone());
                }
            }
        }
        group
    }
}

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
