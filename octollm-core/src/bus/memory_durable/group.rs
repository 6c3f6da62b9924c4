//! The events that a group has to deliver. It decides by the `now` it is given, and never waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::order::{Hold, Item, Lanes};
use crate::bus::engine::{Counters, Settlement, later};
use crate::bus::{Backoff, Bound, ConsumeOptions, DeadLetter, Ended, Gap, GroupStatus, Nack};
use crate::event::{Event, Pattern};

/// An item waits in `lanes`, from where it is let out to be `leased`; from there it leaves for good, goes back, or goes to
/// `resting` and from there back. What leaves for good without being handled is in `dead`.
///
/// Whoever last held an item may still settle it after the lease has expired, until another consumer has it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) pattern: Pattern,
    lanes: Lanes,
    leased: HashMap<u64, Leased>,
    resting: HashMap<u64, Item>,
    /// Size of all these.
    bytes: usize,
    /// When each lease expires and each rest is over.
    due: BTreeSet<(Instant, u64)>,
    members: HashMap<u64, Member>,
    dead: BTreeMap<u64, Dead>,
    dead_bytes: usize,
    max_dead: Bound,
    gap: Option<Gap>,
    last_token: u64,
    counters: Arc<Counters>,
}

/// What a member may hold, and under which terms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) max_in_flight: usize,
    pub(super) lease: Duration,
    pub(super) max_attempts: u32,
    pub(super) backoff: Backoff,
}

/// What a member gets when it asks.
#[derive(Debug)]
pub(super) enum Turn {
    Claim(Claim),
    Gap(Gap),
    /// Nothing before something changes or this moment comes.
    Wait(Option<Instant>),
    /// Nothing ever again.
    Ended(Ended),
}

/// A delivery.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    number: u64,
    hold: Hold,
    terms: Terms,
    pub(super) event: Event,
    pub(super) attempt: u32,
}

/// Another consumer has the event or had it since, or it is a dead letter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost;

#[derive(Debug)]
struct Member {
    terms: Terms,
    in_flight: usize,
    closing: bool,
}

#[derive(Debug)]
struct Leased {
    item: Item,
    until: Instant,
    terms: Terms,
}

#[derive(Debug)]
struct Dead {
    item: Item,
    reason: String,
}

impl From<&ConsumeOptions> for Terms {
    fn from(options: &ConsumeOptions) -> Self {
        Self {
            max_in_flight: options.max_in_flight,
            lease: options.lease,
            max_attempts: options.max_attempts,
            backoff: options.backoff,
        }
    }
}

impl Group {
    pub(super) fn new(pattern: Pattern, max_dead: Bound, counters: Arc<Counters>) -> Self {
        Self {
            pattern,
            lanes: Lanes::default(),
            leased: HashMap::new(),
            resting: HashMap::new(),
            bytes: 0,
            due: BTreeSet::new(),
            members: HashMap::new(),
            dead: BTreeMap::new(),
            dead_bytes: 0,
            max_dead,
            gap: None,
            last_token: 0,
            counters,
        }
    }

    pub(super) fn push(&mut self, number: u64, item: Item) {
        self.bytes += item.size;
        self.lanes.enter(number, item);
    }

    /// The next member to ask receives it.
    pub(super) fn mark(&mut self, gap: Gap) {
        self.gap = Some(gap);
    }

    /// Whether an event of this size may come on top of those that were published and have not left for good.
    pub(super) fn has_room(&self, bound: Bound, size: usize) -> bool {
        bound.holds(self.backlog() + 1, self.bytes + size)
    }

    pub(super) fn join(&mut self, member: u64, terms: Terms) {
        self.members.insert(member, Member { terms, in_flight: 0, closing: false });
    }

    /// What the member holds stays its own until the leases expire.
    pub(super) fn leave(&mut self, member: u64) {
        self.members.remove(&member);
    }

    /// The member gets nothing more.
    pub(super) fn close(&mut self, member: u64) {
        if let Some(state) = self.members.get_mut(&member) {
            state.closing = true;
        }
    }

    /// Whether the member holds nothing.
    pub(super) fn is_idle(&mut self, member: u64, now: Instant) -> bool {
        self.advance(now);
        self.members.get(&member).is_none_or(|state| state.in_flight == 0)
    }

    /// When something happens by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn take(&mut self, member: u64, now: Instant) -> Turn {
        self.advance(now);
        let Some(state) = self.members.get_mut(&member) else { return Turn::Ended(Ended::GroupRemoved) };
        if state.closing {
            return Turn::Ended(Ended::ConsumerClosed);
        }
        if let Some(gap) = self.gap.take() {
            return Turn::Gap(gap);
        }
        let terms = state.terms;
        if state.in_flight >= terms.max_in_flight {
            return Turn::Wait(self.next_due());
        }
        while let Some((number, mut item)) = self.lanes.pop() {
            if item.expiry.is_over(|| now) {
                self.counters.add_expired(1);
                self.gone(&item);
                continue;
            }
            self.last_token += 1;
            let hold = Hold { token: self.last_token, member };
            item.attempts += 1;
            item.hold = Some(hold);
            let claim = Claim { number, hold, terms, event: item.event.clone(), attempt: item.attempts };
            self.lease(number, item, terms, later(now, terms.lease));
            return Turn::Claim(claim);
        }
        Turn::Wait(self.next_due())
    }

    pub(super) fn settle(&mut self, claim: &Claim, settlement: Settlement, now: Instant) -> Result<(), Lost> {
        self.advance(now);
        let number = claim.number;
        let held = self.reclaim(number, |item| item.is_held_by(claim.hold));
        let Some(mut item) = held.or_else(|| self.lanes.take_back(number, claim.hold)) else {
            return self.settle_dead(claim, settlement);
        };
        let last = item.attempts >= claim.terms.max_attempts;
        match settlement {
            Settlement::Ack | Settlement::Nack(Nack::Drop) => self.gone(&item),
            Settlement::Nack(Nack::DeadLetter { reason }) => self.bury(number, item, reason),
            Settlement::Nack(Nack::Retry { .. }) if last => self.bury(number, item, EXHAUSTED.to_owned()),
            Settlement::Nack(Nack::Retry { after }) => {
                let rest = after.unwrap_or_else(|| claim.terms.backoff.after(item.attempts));
                self.rest(number, item, rest, now);
            }
            Settlement::Release => {
                item.attempts -= 1;
                self.lanes.put_back(number, item);
            }
        }
        Ok(())
    }

    pub(super) fn extend(&mut self, claim: &Claim, time: Duration, now: Instant) -> Result<(), Lost> {
        self.advance(now);
        let (number, until) = (claim.number, later(now, time));
        if let Some(leased) = self.leased.get_mut(&number).filter(|leased| leased.item.is_held_by(claim.hold))
        {
            self.due.remove(&(leased.until, number));
            leased.until = until;
            self.due.insert((until, number));
            return Ok(());
        }
        let holds_enough = |state: &Member| state.in_flight >= state.terms.max_in_flight;
        if self.members.get(&claim.hold.member).is_some_and(holds_enough) {
            return Err(Lost);
        }
        let item = self.lanes.take_back(number, claim.hold).ok_or(Lost)?;
        self.lease(number, item, claim.terms, until);
        Ok(())
    }

    pub(super) fn status(&mut self, now: Instant) -> GroupStatus {
        self.advance(now);
        GroupStatus {
            members: self.members.len(),
            pending: self.leased.len(),
            waiting: self.lanes.len() + self.resting.len(),
            dead_letters: self.dead.len(),
        }
    }

    /// At most `limit` dead letters after the entry `after`.
    pub(super) fn dead_letters(&mut self, after: Option<u64>, limit: usize, now: Instant) -> Vec<DeadLetter> {
        self.advance(now);
        let wanted = self.dead.range(after.map_or(0, |after| after.saturating_add(1))..).take(limit);
        let letter = |(number, Dead { item, reason }): (&u64, &Dead)| {
            DeadLetter::of_event(number.to_string(), item.event.clone(), reason.clone(), item.attempts)
        };
        wanted.map(letter).collect()
    }

    pub(super) fn dead_letter(&mut self, entry: u64, now: Instant) -> Option<&Item> {
        self.advance(now);
        self.dead.get(&entry).map(|dead| &dead.item)
    }

    /// Takes a dead letter out.
    pub(super) fn exhume(&mut self, entry: u64) -> Option<Item> {
        let item = self.dead.remove(&entry)?.item;
        self.dead_bytes -= item.size;
        Some(item)
    }

    /// Number of events that were published for it and have not left for good.
    fn backlog(&self) -> usize {
        self.lanes.len() + self.leased.len() + self.resting.len()
    }

    /// Does what has come due.
    fn advance(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.due.first().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, number));
            if let Some(item) = self.resting.remove(&number) {
                self.lanes.put_back(number, item);
                continue;
            }
            let max_attempts = self.leased.get(&number).map(|leased| leased.terms.max_attempts);
            if let (Some(max_attempts), Some(item)) = (max_attempts, self.reclaim(number, |_| true)) {
                if item.attempts >= max_attempts {
                    self.bury(number, item, EXHAUSTED.to_owned());
                } else {
                    self.lanes.put_back(number, item);
                }
            }
        }
    }

    /// Begins a lease.
    fn lease(&mut self, number: u64, item: Item, terms: Terms, until: Instant) {
        if let Some(member) = item.hold.and_then(|hold| self.members.get_mut(&hold.member)) {
            member.in_flight += 1;
        }
        self.leased.insert(number, Leased { item, until, terms });
        self.due.insert((until, number));
    }

    /// Ends a lease, if its item is the one meant.
    fn reclaim(&mut self, number: u64, meant: impl Fn(&Item) -> bool) -> Option<Item> {
        self.leased.get(&number).filter(|leased| meant(&leased.item))?;
        let Leased { item, until, .. } = self.leased.remove(&number)?;
        self.due.remove(&(until, number));
        if let Some(member) = item.hold.and_then(|hold| self.members.get_mut(&hold.member)) {
            member.in_flight -= 1;
        }
        Some(item)
    }

    fn rest(&mut self, number: u64, item: Item, rest: Duration, now: Instant) {
        if rest.is_zero() {
            self.lanes.put_back(number, item);
            return;
        }
        self.resting.insert(number, item);
        self.due.insert((later(now, rest), number));
    }

    /// An item that was let out has left for good.
    fn gone(&mut self, item: &Item) {
        self.lanes.left(item);
        self.bytes -= item.size;
    }

    fn bury(&mut self, number: u64, item: Item, reason: String) {
        self.gone(&item);
        self.dead_bytes += item.size;
        self.dead.insert(number, Dead { item, reason });
        while !self.max_dead.holds(self.dead.len(), self.dead_bytes) {
            let Some((_, oldest)) = self.dead.pop_first() else { return };
            self.dead_bytes -= oldest.item.size;
            self.counters.add_discarded(1);
        }
    }

    /// Settles late what became a dead letter because its last lease expired.
    fn settle_dead(&mut self, claim: &Claim, settlement: Settlement) -> Result<(), Lost> {
        let dead =
            self.dead.get_mut(&claim.number).filter(|dead| dead.item.is_held_by(claim.hold)).ok_or(Lost)?;
        match settlement {
            Settlement::Ack | Settlement::Nack(Nack::Drop) => {
                self.exhume(claim.number);
            }
            Settlement::Nack(Nack::DeadLetter { reason }) => dead.reason = reason,
            // No attempt is left.
            Settlement::Nack(Nack::Retry { .. }) => {}
            Settlement::Release => return Err(Lost),
        }
        Ok(())
    }
}

const EXHAUSTED: &str = "no attempts left";

#[cfg(test)]
mod tests;
