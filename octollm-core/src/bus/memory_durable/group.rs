//! What a group owes its members. It decides by the `now` it is given, and never waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::{Item, Lanes};
use crate::bus::engine::Counters;
use crate::bus::{Backoff, ConsumeOptions, DeadLetter, Gap, GroupStatus, Nack, Settlement};
use crate::event::{Event, Patterns};

/// An item waits in `lanes`, from where it is let out to be `leased`; from there it leaves for good, goes back, or goes to
/// `resting` and from there back. What leaves for good without being worked off is in `dead`.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) patterns: Patterns,
    lanes: Lanes,
    leased: HashMap<u64, Leased>,
    resting: HashMap<u64, Item>,
    /// When each lease runs out and each rest is over.
    due: BTreeSet<(Instant, u64)>,
    members: HashMap<u64, Member>,
    dead: BTreeMap<u64, Dead>,
    max_dead: usize,
    gap: Option<Gap>,
    last_token: u64,
    counters: Arc<Counters>,
}

/// What a member may hold, and under which terms.
#[derive(Debug, Clone)]
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
    Closed,
}

/// A delivery: `token` tells it from every other one of the same event.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    member: u64,
    number: u64,
    token: u64,
    pub(super) event: Arc<Event>,
    pub(super) attempt: u32,
}

/// Somebody else may have the event by now.
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
    token: u64,
    until: Instant,
    member: u64,
    max_attempts: u32,
    backoff: Backoff,
}

#[derive(Debug)]
struct Dead {
    event: Arc<Event>,
    reason: String,
    attempts: u32,
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
    pub(super) fn new(patterns: Patterns, max_dead: usize, counters: Arc<Counters>) -> Self {
        Self {
            patterns,
            lanes: Lanes::default(),
            leased: HashMap::new(),
            resting: HashMap::new(),
            due: BTreeSet::new(),
            members: HashMap::new(),
            dead: BTreeMap::new(),
            max_dead,
            gap: None,
            last_token: 0,
            counters,
        }
    }

    pub(super) fn push(&mut self, number: u64, item: Item) {
        self.lanes.enter(number, item);
    }

    /// The next member to ask hears of it.
    pub(super) fn mark(&mut self, gap: Gap) {
        self.gap = Some(gap);
    }

    /// Everything that was published for it and has not left for good.
    pub(super) fn backlog(&self) -> usize {
        self.lanes.len() + self.leased.len() + self.resting.len()
    }

    pub(super) fn join(&mut self, member: u64, terms: Terms) {
        self.members.insert(member, Member { terms, in_flight: 0, closing: false });
    }

    /// What the member holds stays its own until the leases run out.
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

    /// When something happens without anybody's doing.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn take(&mut self, member: u64, now: Instant) -> Turn {
        self.advance(now);
        let Some(state) = self.members.get_mut(&member).filter(|state| !state.closing) else {
            return Turn::Closed;
        };
        if let Some(gap) = self.gap.take() {
            return Turn::Gap(gap);
        }
        if state.in_flight >= state.terms.max_in_flight {
            return Turn::Wait(self.next_due());
        }
        while let Some((number, mut item)) = self.lanes.pop() {
            if item.expiry.is_over(|| now) {
                self.counters.add_expired(1);
                self.lanes.left(&item);
                continue;
            }
            item.attempts += 1;
            state.in_flight += 1;
            self.last_token += 1;
            let (token, until) = (self.last_token, later(now, state.terms.lease));
            let claim =
                Claim { member, number, token, event: Arc::clone(&item.event), attempt: item.attempts };
            let Terms { max_attempts, backoff, .. } = state.terms;
            self.leased.insert(number, Leased { item, token, until, member, max_attempts, backoff });
            self.due.insert((until, number));
            return Turn::Claim(claim);
        }
        Turn::Wait(self.next_due())
    }

    pub(super) fn settle(&mut self, claim: &Claim, settlement: Settlement, now: Instant) -> Result<(), Lost> {
        self.advance(now);
        let leased = self.reclaim(claim.number, |leased| leased.is_of(claim)).ok_or(Lost)?;
        let (number, last) = (claim.number, leased.item.attempts >= leased.max_attempts);
        let mut item = leased.item;
        match settlement {
            Settlement::Ack | Settlement::Nack(Nack::Drop) => self.lanes.left(&item),
            Settlement::Nack(Nack::DeadLetter { reason }) => self.bury(number, item, reason),
            Settlement::Nack(Nack::Retry { .. }) if last => self.bury(number, item, EXHAUSTED.to_owned()),
            Settlement::Nack(Nack::Retry { after }) => {
                let rest = after.unwrap_or_else(|| leased.backoff.after(item.attempts));
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
        let leased = self.leased.get_mut(&claim.number).filter(|leased| leased.is_of(claim)).ok_or(Lost)?;
        self.due.remove(&(leased.until, claim.number));
        leased.until = later(now, time);
        self.due.insert((leased.until, claim.number));
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

    /// At most `limit` dead letters behind the entry `after`.
    pub(super) fn dead_letters(&mut self, after: Option<u64>, limit: usize, now: Instant) -> Vec<DeadLetter> {
        self.advance(now);
        let behind = self.dead.range(after.map_or(0, |after| after.saturating_add(1))..).take(limit);
        let letter = |(number, dead): (&u64, &Dead)| {
            DeadLetter::of_event(
                number.to_string(),
                Arc::clone(&dead.event),
                dead.reason.clone(),
                dead.attempts,
            )
        };
        behind.map(letter).collect()
    }

    /// Takes a dead letter out.
    pub(super) fn exhume(&mut self, entry: u64, now: Instant) -> Option<Arc<Event>> {
        self.advance(now);
        self.dead.remove(&entry).map(|dead| dead.event)
    }

    /// Does what has come due.
    fn advance(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.due.first().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, number));
            if let Some(item) = self.resting.remove(&number) {
                self.lanes.put_back(number, item);
            } else if let Some(leased) = self.reclaim(number, |_| true) {
                if leased.item.attempts >= leased.max_attempts {
                    self.bury(number, leased.item, EXHAUSTED.to_owned());
                } else {
                    self.lanes.put_back(number, leased.item);
                }
            }
        }
    }

    /// Ends a lease, if it is the one meant.
    fn reclaim(&mut self, number: u64, meant: impl Fn(&Leased) -> bool) -> Option<Leased> {
        let leased = self.leased.get(&number).filter(|leased| meant(leased))?;
        self.due.remove(&(leased.until, number));
        if let Some(member) = self.members.get_mut(&leased.member) {
            member.in_flight -= 1;
        }
        self.leased.remove(&number)
    }

    fn rest(&mut self, number: u64, item: Item, rest: Duration, now: Instant) {
        if rest.is_zero() {
            self.lanes.put_back(number, item);
            return;
        }
        self.resting.insert(number, item);
        self.due.insert((later(now, rest), number));
    }

    fn bury(&mut self, number: u64, item: Item, reason: String) {
        self.lanes.left(&item);
        self.dead.insert(number, Dead { event: item.event, reason, attempts: item.attempts });
        if self.dead.len() > self.max_dead {
            self.dead.pop_first();
            self.counters.add_discarded(1);
        }
    }
}

impl Leased {
    /// Tokens are a group's own and members the bus's, so no claim on a group that was removed is good for its successor.
    fn is_of(&self, claim: &Claim) -> bool {
        (self.token, self.member) == (claim.token, claim.member)
    }
}

const EXHAUSTED: &str = "no attempts left";

/// What lies beyond the clock's range is far enough as 30 years from now.
fn later(now: Instant, by: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    now.checked_add(by).unwrap_or(now + FAR)
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::engine::queue::Expiry;

    const SECOND: Duration = Duration::from_secs(1);

    pub(super) fn group(members: u64, terms: &Terms) -> Group {
        let mut group =
            Group::new("a:b:*".parse::<crate::event::Pattern>().unwrap().into(), 4, Arc::default());
        (0..members).for_each(|member| group.join(member, terms.clone()));
        group
    }

    pub(super) fn terms() -> Terms {
        Terms { max_in_flight: 8, lease: SECOND, max_attempts: 3, backoff: Backoff::default() }
    }

    pub(super) fn item(key: &str) -> Item {
        let event = Event::new("a.b", "s", 0).unwrap().with_partition_key(key);
        Item { event: Arc::new(event), expiry: Expiry::Never, attempts: 0 }
    }

    fn claim(group: &mut Group, member: u64, now: Instant) -> Claim {
        match group.take(member, now) {
            Turn::Claim(claim) => claim,
            other => panic!("no claim but {other:?}"),
        }
    }

    #[test]
    fn a_lease_that_ran_out_is_lost_to_its_owner() {
        let (mut group, now) = (group(2, &terms()), Instant::now());
        group.push(1, item(""));
        let stale = claim(&mut group, 0, now);
        assert!(matches!(group.take(1, now), Turn::Wait(Some(at)) if at == now + SECOND));
        let fresh = claim(&mut group, 1, now + SECOND);
        assert_eq!(fresh.attempt, 2);
        assert_eq!(group.settle(&stale, Settlement::Ack, now + SECOND), Err(Lost));
        assert_eq!(group.extend(&stale, SECOND, now + SECOND), Err(Lost));
        assert_eq!(group.settle(&fresh, Settlement::Ack, now + SECOND), Ok(()));
        assert_eq!((group.backlog(), group.next_due()), (0, None));
    }

    #[test]
    fn the_last_attempt_ends_among_the_dead() {
        let (mut group, mut now) = (group(1, &terms()), Instant::now());
        group.push(1, item("k"));
        for attempt in 1..=3 {
            let claim = claim(&mut group, 0, now);
            assert_eq!(claim.attempt, attempt);
            group.settle(&claim, Settlement::Nack(Nack::retry()), now).unwrap();
            now += SECOND;
        }
        let dead = group.dead_letters(None, 9, now);
        assert_eq!((dead.len(), dead[0].attempts, dead[0].reason.as_str()), (1, 3, EXHAUSTED));
        assert!(group.dead_letters(Some(1), 9, now).is_empty());
        assert_eq!(group.backlog(), 0);
    }

    #[test]
    fn dead_letters_are_bounded_and_counted() {
        let (mut group, now) = (group(1, &terms()), Instant::now());
        for number in 1..=6 {
            group.push(number, item(""));
            let claim = claim(&mut group, 0, now);
            group.settle(&claim, Settlement::Nack(Nack::dead_letter("bad")), now).unwrap();
        }
        assert_eq!(group.dead_letters(None, 9, now).len(), 4);
        assert_eq!(group.counters.counts().discarded, 2);
    }

    #[test]
    fn a_member_that_left_keeps_its_leases_until_they_run_out() {
        let (mut group, now) = (group(2, &terms()), Instant::now());
        group.push(1, item(""));
        group.push(2, item(""));
        let (one, _two) = (claim(&mut group, 0, now), claim(&mut group, 0, now));
        group.leave(0);
        assert_eq!(group.settle(&one, Settlement::Ack, now), Ok(()));
        assert_eq!(claim(&mut group, 1, now + SECOND).attempt, 2);
    }
}
