//! What the bus stores: the history, the groups, and the events that are published later.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::SignedDuration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::group::{Group, Holder};
use crate::bus::{BusError, ConsumeOptions, DeadLetter, FailedAttempt, Gap};
use crate::clock;
use crate::event::{Event, Expiry, Pattern};

#[derive(Debug)]
pub(super) struct Store {
    limits: Limits,
    groups: HashMap<Arc<str>, GroupSlot>,
    history: VecDeque<(u64, Item)>,
    history_bytes: usize,
    /// Whether the history has lost its oldest events.
    trimmed: bool,
    /// Events that are published later, each with its timer.
    delayed: HashMap<u64, (Item, AbortHandle)>,
    delayed_bytes: usize,
    last_number: u64,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct GroupSlot {
    pub(super) group: Group,
    /// Wakes the members.
    pub(super) changed: Arc<Notify>,
}

/// A member that has joined a group.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) group: Arc<str>,
    pub(super) member: u64,
    pub(super) changed: Arc<Notify>,
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

/// An event on its way through a group.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) event: Event,
    pub(super) expiry: Expiry,
    pub(super) size: usize,
    /// Number of deliveries.
    pub(super) attempts: u32,
    /// The last delivery.
    pub(super) holder: Option<Holder>,
    /// The last deliveries that failed.
    pub(super) history: Vec<(Holder, FailedAttempt)>,
}

impl Store {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            groups: HashMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            trimmed: false,
            delayed: HashMap::new(),
            delayed_bytes: 0,
            last_number: 0,
            closed: false,
        }
    }

    /// Returns a number greater than all before.
    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// # Errors
    /// [`BusError::Closed`].
    pub(super) fn check_open(&self) -> Result<(), BusError> {
        if self.closed { Err(BusError::Closed) } else { Ok(()) }
    }

    /// # Errors
    /// [`BusError::Full`] when one of the groups has no room for the event.
    pub(super) fn check_room(&self, item: &Item) -> Result<(), BusError> {
        for slot in self.groups.values() {
            if slot.group.pattern.matches(item.event.channel()) {
                slot.group.check_room(self.limits.backlog, item.size)?;
            }
        }
        Ok(())
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
        while !self.limits.history.allows(self.history.len(), self.history_bytes) {
            let Some((_, oldest)) = self.history.pop_front() else { return };
            self.history_bytes -= oldest.size;
            self.trimmed = true;
        }
    }

    /// # Errors
    /// [`BusError::Full`].
    pub(super) fn check_delayed(&self, size: usize) -> Result<(), BusError> {
        self.limits.delayed.check(self.delayed.len() + 1, self.delayed_bytes + size)
    }

    pub(super) fn delay(&mut self, number: u64, item: Item, timer: AbortHandle) {
        self.delayed_bytes += item.size;
        self.delayed.insert(number, (item, timer));
    }

    /// Returns an event whose delay has passed, unless it was cancelled.
    pub(super) fn take_delayed(&mut self, number: u64) -> Option<Item> {
        let (item, _) = self.delayed.remove(&number)?;
        self.delayed_bytes -= item.size;
        Some(item)
    }

    /// Cancels the events with this id. Returns whether there was one.
    pub(super) fn cancel_delayed(&mut self, event_id: &str) -> bool {
        let before = self.delayed.len();
        for (_, (item, timer)) in self.delayed.extract_if(|_, (item, _)| item.event.id() == event_id) {
            self.delayed_bytes -= item.size;
            timer.abort();
        }
        self.delayed.len() < before
    }

    /// Delivers a dead letter again.
    pub(super) fn replay(&mut self, name: &str, entry: u64, now: Instant) -> Result<(), BusError> {
        let (backlog, number) = (self.limits.backlog, self.number());
        let slot = self.slot(name)?;
        let unknown = || BusError::UnknownDeadLetter { entry: entry.to_string() };
        let size = slot.group.dead_letter_size(entry, now).ok_or_else(unknown)?;
        slot.group.check_room(backlog, size)?;
        let item = slot.group.remove_dead_letter(entry).ok_or_else(unknown)?;
        // The caller wants the event delivered, so it does not expire.
        let event = item.event.without_expiry();
        let item =
            Item { event, expiry: Expiry::Never, attempts: 0, holder: None, history: Vec::new(), ..item };
        slot.group.push(number, item);
        slot.changed.notify_waiters();
        Ok(())
    }

    pub(super) fn join(
        &mut self,
        name: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Membership, BusError> {
        self.check_open()?;
        if !self.groups.contains_key(name) {
            let group = self.create(pattern.clone(), options.from_start);
            self.groups.insert(name.into(), GroupSlot { group, changed: Arc::default() });
        }
        let (member, name) = (self.number(), Arc::<str>::from(name));
        let slot = self.slot(&name)?;
        if slot.group.pattern != pattern {
            let pattern = slot.group.pattern.to_string();
            return Err(BusError::OtherPattern { group: name.to_string(), pattern });
        }
        slot.group.join(member, options);
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
        self.delayed.drain().for_each(|(_, (_, timer))| timer.abort());
        self.delayed_bytes = 0;
        self.groups.values().for_each(|slot| slot.changed.notify_waiters());
    }

    fn create(&self, pattern: Pattern, from_start: bool) -> Group {
        let mut group = Group::new(pattern, self.limits.dead_letters);
        if from_start {
            if self.trimmed {
                group.gap = Some(Gap::Trimmed { event_ids: Vec::new() });
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

impl Item {
    pub(super) fn new(event: Event, size: usize) -> Self {
        let expiry = Expiry::of(&event);
        Self { event, expiry, size, attempts: 0, holder: None, history: Vec::new() }
    }

    /// Records that the last delivery has failed. The last reason of a delivery is the one that counts.
    pub(super) fn failed(&mut self, reason: &str, now: Instant) {
        self.not_failed();
        let Some(holder) = self.holder else { return };
        if self.history.len() == DeadLetter::MAX_HISTORY {
            self.history.remove(0);
        }
        let passed = SignedDuration::try_from(now.saturating_duration_since(holder.since));
        let time = clock::now();
        let at = passed.ok().and_then(|passed| time.checked_sub(passed).ok()).unwrap_or(time);
        self.history.push((holder, FailedAttempt::new(at, holder.member.to_string(), reason)));
    }

    /// Removes the record of the last delivery, which has not failed after all.
    pub(super) fn not_failed(&mut self) {
        if self.history.last().is_some_and(|(holder, _)| Some(*holder) == self.holder) {
            self.history.pop();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.delayed.values().for_each(|(_, timer)| timer.abort());
    }
}
