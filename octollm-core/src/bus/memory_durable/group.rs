//! The events of one group: which member receives what, and what happens to it. Pure: it does not wait and reads no
//! clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::queue::KeyedQueue;
use super::store::{Item, Limit};
use crate::bus::{BusError, ConsumeOptions, DeadLetter, FailedAttempt, Gap, GroupStatus, Nack};
use crate::deadline::later;
use crate::event::{Event, Pattern};

/// An event waits in `queue`, is then `leased`, and from there is removed, returns to `queue`, or waits in `delayed` to
/// return there. An event that is not delivered again is in `dead`.
///
/// The last consumer that received an event can settle it after the lease has expired, until another consumer receives
/// it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) pattern: Pattern,
    queue: KeyedQueue,
    leased: HashMap<u64, Leased>,
    /// Events that are retried later.
    delayed: HashMap<u64, Item>,
    /// Sum of the sizes of the events above.
    bytes: usize,
    /// The times at which leases expire and delays end.
    due: BTreeSet<(Instant, u64)>,
    members: HashMap<u64, Member>,
    /// Dead letters with their reasons.
    dead: BTreeMap<u64, (Item, String)>,
    dead_bytes: usize,
    max_dead: Limit,
    /// For the next member that receives something.
    pub(super) gap: Option<Gap>,
    last_token: u64,
    /// Numbers of expired events and of deleted dead letters.
    expired: u64,
    discarded: u64,
}

/// Identifies a delivery. Tokens are unique in a group and members in the bus, so that a delivery of a removed group is
/// not one of a new group of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    token: u64,
    pub(super) member: u64,
    pub(super) since: Instant,
}

/// What a member receives.
#[derive(Debug)]
pub(super) enum Turn {
    Claim(Claim),
    Gap(Gap),
    /// Nothing until the group changes or this time comes.
    Wait(Option<Instant>),
}

/// A delivery.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    number: u64,
    holder: Holder,
    options: ConsumeOptions,
    pub(super) event: Event,
    pub(super) attempt: u32,
}

/// The event has gone to another consumer or to the dead letters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost;

#[derive(Debug)]
struct Member {
    options: ConsumeOptions,
    in_flight: usize,
}

#[derive(Debug)]
struct Leased {
    item: Item,
    until: Instant,
    options: ConsumeOptions,
}

impl Group {
    pub(super) fn new(pattern: Pattern, max_dead: Limit) -> Self {
        Self {
            pattern,
            queue: KeyedQueue::default(),
            leased: HashMap::new(),
            delayed: HashMap::new(),
            bytes: 0,
            due: BTreeSet::new(),
            members: HashMap::new(),
            dead: BTreeMap::new(),
            dead_bytes: 0,
            max_dead,
            gap: None,
            last_token: 0,
            expired: 0,
            discarded: 0,
        }
    }

    pub(super) fn push(&mut self, number: u64, item: Item) {
        self.bytes += item.size;
        self.queue.push(number, item);
    }

    /// # Errors
    /// [`BusError::Full`] when there is no room for another event of this size.
    pub(super) fn check_room(&self, backlog: Limit, size: usize) -> Result<(), BusError> {
        backlog.check(self.backlog() + 1, self.bytes + size)
    }

    pub(super) fn join(&mut self, member: u64, options: ConsumeOptions) {
        self.members.insert(member, Member { options, in_flight: 0 });
    }

    /// The leases of the member stay until they expire.
    pub(super) fn leave(&mut self, member: u64) {
        self.members.remove(&member);
    }

    /// Returns whether the member has no deliveries.
    pub(super) fn is_idle(&mut self, member: u64, now: Instant) -> bool {
        self.advance(now);
        self.members.get(&member).is_none_or(|state| state.in_flight == 0)
    }

    /// Returns when the next lease expires or the next delay ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Returns `None` if the member does not belong to this group.
    pub(super) fn take(&mut self, member: u64, now: Instant) -> Option<Turn> {
        self.advance(now);
        let Member { options, in_flight } = *self.members.get(&member)?;
        if let Some(gap) = self.gap.take() {
            return Some(Turn::Gap(gap));
        }
        if in_flight >= options.max_in_flight {
            return Some(Turn::Wait(self.next_due()));
        }
        while let Some((number, mut item)) = self.queue.pop() {
            if item.expiry.is_over(|| now) {
                self.expired += 1;
                self.remove(&item);
                continue;
            }
            self.last_token += 1;
            let holder = Holder { token: self.last_token, member, since: now };
            item.attempts += 1;
            item.holder = Some(holder);
            let claim = Claim { number, holder, options, event: item.event.clone(), attempt: item.attempts };
            self.lease(number, item, options, later(now, options.lease));
            return Some(Turn::Claim(claim));
        }
        Some(Turn::Wait(self.next_due()))
    }

    pub(super) fn settle(
        &mut self,
        claim: &Claim,
        outcome: Result<(), Nack>,
        now: Instant,
    ) -> Result<(), Lost> {
        self.advance(now);
        let number = claim.number;
        let held = self.end_lease(number, |item| item.holder == Some(claim.holder));
        let Some(mut item) = held.or_else(|| self.queue.take(number, claim.holder)) else {
            return self.settle_dead(claim, outcome, now);
        };
        let last = item.attempts >= claim.options.max_attempts;
        match outcome {
            Ok(()) | Err(Nack::Drop) => self.remove(&item),
            Err(Nack::DeadLetter { reason }) => {
                item.failed(&reason, now);
                self.add_dead_letter(number, item, reason);
            }
            Err(Nack::Retry { after, reason }) => {
                item.failed(reason.as_deref().unwrap_or(FailedAttempt::REFUSED), now);
                if last {
                    self.add_dead_letter(number, item, NO_ATTEMPTS.to_owned());
                } else {
                    let delay = after.unwrap_or_else(|| claim.options.backoff(item.attempts));
                    self.delay(number, item, delay, now);
                }
            }
            Err(Nack::Release) => {
                item.attempts -= 1;
                item.not_failed();
                self.queue.put_back(number, item);
            }
        }
        Ok(())
    }

    pub(super) fn extend(&mut self, claim: &Claim, time: Duration, now: Instant) -> Result<(), Lost> {
        self.advance(now);
        let (number, until) = (claim.number, later(now, time));
        let holds = |leased: &&mut Leased| leased.item.holder == Some(claim.holder);
        if let Some(leased) = self.leased.get_mut(&number).filter(holds) {
            self.due.remove(&(leased.until, number));
            leased.until = until;
            self.due.insert((until, number));
            return Ok(());
        }
        let is_full = |member: &Member| member.in_flight >= member.options.max_in_flight;
        if self.members.get(&claim.holder.member).is_some_and(is_full) {
            return Err(Lost);
        }
        let mut item = self.queue.take(number, claim.holder).ok_or(Lost)?;
        item.not_failed();
        self.lease(number, item, claim.options, until);
        Ok(())
    }

    pub(super) fn status(&mut self, now: Instant) -> GroupStatus {
        self.advance(now);
        GroupStatus {
            members: self.members.len(),
            pending: self.leased.len(),
            waiting: self.queue.len() + self.delayed.len(),
            dead_letters: self.dead.len(),
            expired: self.expired,
            discarded: self.discarded,
        }
    }

    /// Returns at most `limit` dead letters after the entry `after`.
    pub(super) fn dead_letters(&mut self, after: Option<u64>, limit: usize, now: Instant) -> Vec<DeadLetter> {
        self.advance(now);
        let wanted = self.dead.range(after.map_or(0, |after| after.saturating_add(1))..).take(limit);
        let letter = |(number, (item, reason)): (&u64, &(Item, String))| {
            let history = item.history.iter().map(|(_, failed)| failed.clone()).collect();
            DeadLetter::new(number.to_string(), Ok(item.event.clone()), reason.clone(), item.attempts)
                .with_history(history)
        };
        wanted.map(letter).collect()
    }

    pub(super) fn dead_letter_size(&mut self, entry: u64, now: Instant) -> Option<usize> {
        self.advance(now);
        self.dead.get(&entry).map(|(item, _)| item.size)
    }

    pub(super) fn remove_dead_letter(&mut self, entry: u64) -> Option<Item> {
        let (item, reason) = self.dead.remove(&entry)?;
        self.dead_bytes -= dead_size(&item, &reason);
        Some(item)
    }

    /// Returns the number of events that are not settled.
    fn backlog(&self) -> usize {
        self.queue.len() + self.leased.len() + self.delayed.len()
    }

    /// Expires leases and ends delays that are due.
    fn advance(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.due.first().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, number));
            if let Some(item) = self.delayed.remove(&number) {
                self.queue.put_back(number, item);
                continue;
            }
            let max_attempts = self.leased.get(&number).map(|leased| leased.options.max_attempts);
            if let (Some(max_attempts), Some(mut item)) = (max_attempts, self.end_lease(number, |_| true)) {
                item.failed(FailedAttempt::LEASE_EXPIRED, now);
                if item.attempts >= max_attempts {
                    self.add_dead_letter(number, item, NO_ATTEMPTS.to_owned());
                } else {
                    self.queue.put_back(number, item);
                }
            }
        }
    }

    fn lease(&mut self, number: u64, item: Item, options: ConsumeOptions, until: Instant) {
        if let Some(member) = item.holder.and_then(|holder| self.members.get_mut(&holder.member)) {
            member.in_flight += 1;
        }
        self.leased.insert(number, Leased { item, until, options });
        self.due.insert((until, number));
    }

    /// Ends a lease if `matches` returns `true` for its item.
    fn end_lease(&mut self, number: u64, matches: impl Fn(&Item) -> bool) -> Option<Item> {
        self.leased.get(&number).filter(|leased| matches(&leased.item))?;
        let Leased { item, until, .. } = self.leased.remove(&number)?;
        self.due.remove(&(until, number));
        if let Some(member) = item.holder.and_then(|holder| self.members.get_mut(&holder.member)) {
            member.in_flight -= 1;
        }
        Some(item)
    }

    fn delay(&mut self, number: u64, item: Item, delay: Duration, now: Instant) {
        if delay.is_zero() {
            self.queue.put_back(number, item);
            return;
        }
        self.delayed.insert(number, item);
        self.due.insert((later(now, delay), number));
    }

    /// Removes an item that was popped.
    fn remove(&mut self, item: &Item) {
        self.queue.remove(item);
        self.bytes -= item.size;
    }

    fn add_dead_letter(&mut self, number: u64, item: Item, reason: String) {
        self.remove(&item);
        self.dead_bytes += dead_size(&item, &reason);
        self.dead.insert(number, (item, reason));
        self.limit_dead_letters();
    }

    /// Deletes the oldest dead letters beyond the limit.
    fn limit_dead_letters(&mut self) {
        while !self.max_dead.allows(self.dead.len(), self.dead_bytes) {
            let Some((_, (oldest, reason))) = self.dead.pop_first() else { return };
            self.dead_bytes -= dead_size(&oldest, &reason);
            self.discarded += 1;
        }
    }

    /// Settles an event that became a dead letter because its last lease expired.
    fn settle_dead(&mut self, claim: &Claim, outcome: Result<(), Nack>, now: Instant) -> Result<(), Lost> {
        let holds = |(item, _): &&mut (Item, String)| item.holder == Some(claim.holder);
        let (item, last_reason) = self.dead.get_mut(&claim.number).filter(holds).ok_or(Lost)?;
        match outcome {
            Ok(()) | Err(Nack::Drop) => {
                self.remove_dead_letter(claim.number);
            }
            Err(Nack::DeadLetter { reason }) => {
                self.dead_bytes -= dead_size(item, last_reason);
                item.failed(&reason, now);
                *last_reason = reason;
                self.dead_bytes += dead_size(item, last_reason);
                self.limit_dead_letters();
            }
            // No attempts are left.
            Err(Nack::Retry { reason, .. }) => {
                self.dead_bytes -= dead_size(item, last_reason);
                item.failed(reason.as_deref().unwrap_or(FailedAttempt::REFUSED), now);
                self.dead_bytes += dead_size(item, last_reason);
                self.limit_dead_letters();
            }
            Err(Nack::Release) => return Err(Lost),
        }
        Ok(())
    }
}

/// Size of a dead letter in bytes.
fn dead_size(item: &Item, reason: &str) -> usize {
    item.size + reason.len() + item.history.iter().map(|(_, failed)| failed.reason.len()).sum::<usize>()
}

const NO_ATTEMPTS: &str = "no attempts left";

#[cfg(test)]
mod tests;
