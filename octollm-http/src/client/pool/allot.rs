//! The allotment of connections to callers, as a state machine without I/O and clock.

mod shared;

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The limits of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The most connections: busy, idle, and being opened.
    pub(super) open: usize,
    /// The most connections that are idle for longer than [`SURPLUS`]; with 0 none is idle at all.
    pub(super) idle: usize,
    /// The most connections of one arm.
    pub(super) share: usize,
    /// Whether an arm gets another connection only while it holds fewer than are free.
    pub(super) reserve: bool,
    /// Time after which an idle connection expires.
    pub(super) idle_timeout: Duration,
}

/// Time for which more connections than the limit may be idle. Calls to many endpoints leave a connection of one and take that of
/// another all the time.
pub(super) const SURPLUS: Duration = Duration::from_secs(1);

/// One arm at one origin in one runtime, whose connections are interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneId(usize);

/// Position of a caller in the queue of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// A connection that several callers use at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedId(u64);

/// The permission of a caller to use or open a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permit<T, S> {
    /// Use this connection, which has been idle since then.
    Use(T, Instant),
    /// Use this connection beside others.
    Join(SharedId, S),
    /// Open a connection, after closing this one to make room.
    Open(Option<Closing<T, S>>),
    /// Open a connection that others are to use too, after closing this one to make room.
    OpenShared(Option<Closing<T, S>>),
}

/// A connection that is no longer counted: it is closed when this is dropped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Closing<T, S> {
    Own(#[allow(dead_code, reason = "only dropped")] T),
    Shared(#[allow(dead_code, reason = "only dropped")] S),
}

/// A caller that is served, with its lane and its permit.
pub(super) type Next<T, S, W> = (W, LaneId, Permit<T, S>);

/// The next caller, and a connection to close.
pub(super) type Freed<T, S, W> = (Option<Next<T, S, W>>, Option<Closing<T, S>>);

/// Counts the connections of a pool and allots them to callers. A `T` serves one caller at a time, an `S` several at once. A waiting
/// caller leaves a `W`.
///
/// A connection that becomes free goes to a waiting caller before it counts as idle: to the arm that holds fewest,
/// within one arm to the lane that holds fewest, within a lane to the one who waits longest. No caller waits while it
/// could be served, except for a connection that is being opened and will have a place for it.
#[derive(Debug)]
pub(super) struct Allotment<T, S, W> {
    limits: Limits,
    lanes: Vec<Lane<T, S, W>>,
    /// Connections that each arm holds.
    arms: Vec<usize>,
    open: usize,
    idle: usize,
    waiting: usize,
    next_ticket: u64,
}

#[derive(Debug)]
struct Lane<T, S, W> {
    arm: usize,
    /// Connections in use or being opened.
    busy: usize,
    /// Callers that a connection may serve at once; 0 where it serves one at a time.
    places: usize,
    /// Callers that the last shared connection could serve at once, which is expected of the next ones.
    expected: Option<usize>,
    exclusive_until: Option<Instant>,
    /// Connections being opened that several callers will use.
    opening: usize,
    shared: Vec<shared::SharedConnection<S>>,
    /// No caller comes any more.
    is_forgotten: bool,
    /// Idle connections. The last one was used last, and is used first, so that the others can expire.
    idle: Vec<(T, Instant)>,
    waiting: VecDeque<(Ticket, W)>,
}

impl<T, S: Clone, W> Allotment<T, S, W> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, lanes: Vec::new(), arms: Vec::new(), open: 0, idle: 0, waiting: 0, next_ticket: 0 }
    }

    pub(super) fn add_arm(&mut self) -> usize {
        self.arms.push(0);
        self.arms.len() - 1
    }

    pub(super) fn add_lane(&mut self, arm: usize) -> LaneId {
        let lane = Lane {
            arm,
            busy: 0,
            places: 0,
            expected: None,
            exclusive_until: None,
            opening: 0,
            shared: Vec::new(),
            is_forgotten: false,
            idle: Vec::new(),
            waiting: VecDeque::new(),
        };
        match self.lanes.iter().position(Lane::is_over) {
            Some(over) => {
                self.lanes[over] = lane;
                LaneId(over)
            }
            None => {
                self.lanes.push(lane);
                LaneId(self.lanes.len() - 1)
            }
        }
    }

    /// Changes the share of each arm.
    pub(super) fn set_share(&mut self, share: usize, reserve: bool) {
        (self.limits.share, self.limits.reserve) = (share, reserve);
    }

    /// Removes all arms and lanes of a pool that [is quiet](Self::is_quiet).
    pub(super) fn reset(&mut self) {
        // Numbers are not used again, since a task may still have one.
        *self = Self { next_ticket: self.next_ticket, ..Self::new(self.limits) };
    }

    /// Removes the idle connections of a lane to which no caller comes any more. Those in use are not used again.
    pub(super) fn forget(&mut self, id: LaneId) -> Vec<Closing<T, S>> {
        self.lanes[id.0].is_forgotten = true;
        self.clear(id)
    }

    /// Removes a lane that has neither connections nor callers, unless it is still known to be for one caller at a time. Returns
    /// whether it was removed.
    pub(super) fn remove_unused(&mut self, id: LaneId, now: Instant) -> bool {
        let lane = &mut self.lanes[id.0];
        let is_unused = lane.busy == 0 && lane.waiting.is_empty() && lane.idle_longest().is_none();
        lane.is_forgotten = is_unused && lane.exclusive_until.is_none_or(|until| until <= now);
        lane.is_forgotten
    }

    /// The connections of an arm in use and idle, and the callers that wait for one.
    pub(super) fn counts(&self, arm: usize) -> [usize; 3] {
        let lanes = || self.lanes.iter().filter(|lane| lane.arm == arm);
        let idle = lanes().map(|lane| lane.idle.len() + lane.idle_shared().count()).sum();
        let waiting = lanes().map(|lane| lane.waiting.len()).sum();
        [self.arms.get(arm).copied().unwrap_or(0), idle, waiting]
    }

    /// Whether nothing is open and no caller waits, so that all arms and lanes can be removed.
    pub(super) fn is_quiet(&self) -> bool {
        self.open == 0 && self.waiting == 0
    }

    /// A connection for a caller, unless it has to wait.
    pub(super) fn ask(&mut self, LaneId(lane): LaneId) -> Option<Permit<T, S>> {
        if let Some(joined) = self.join(lane) {
            return Some(joined);
        }
        let state = &self.lanes[lane];
        // Callers with a free share wait only while nothing is free, so that no caller is overtaken.
        let is_next = state.waiting.is_empty() || state.opening > 0;
        if is_next && state.needs_another(state.waiting.len() + 1) && self.has_share(lane) {
            self.take(lane)
        } else {
            None
        }
    }

    /// Puts a caller that has to wait at the end of its lane's queue.
    pub(super) fn wait(&mut self, LaneId(lane): LaneId, waiter: W) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting += 1;
        self.lanes[lane].waiting.push_back((ticket, waiter));
        ticket
    }

    /// Removes a caller that no longer waits; `false` where it has been served meanwhile.
    pub(super) fn withdraw(&mut self, LaneId(lane): LaneId, ticket: Ticket) -> bool {
        // A lane whose callers were all taken out can be gone.
        let Some(lane) = self.lanes.get_mut(lane) else { return false };
        let queue = &mut lane.waiting;
        let Ok(place) = queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket) else { return false };
        queue.remove(place);
        self.waiting -= 1;
        true
    }

    /// Takes back a connection that can be used again. Returns the next caller, and a connection that exceeds the limit.
    pub(super) fn give_back(&mut self, id: LaneId, connection: T, now: Instant) -> Freed<T, S, W> {
        self.leave(id);
        if self.lanes[id.0].closes_own() {
            self.open -= 1;
            return (self.serve(), Some(Closing::Own(connection)));
        }
        self.lanes[id.0].idle.push((connection, now));
        self.idle += 1;
        let next = self.serve();
        (next, self.surplus())
    }

    /// Counts a connection that was closed. Returns the next caller.
    pub(super) fn closed(&mut self, id: LaneId) -> Option<Next<T, S, W>> {
        self.leave(id);
        self.open -= 1;
        self.serve()
    }

    /// Returns another idle connection in place of a closed one. If there is none, the caller opens one in its place.
    pub(super) fn replace(&mut self, LaneId(lane): LaneId) -> Option<(T, Instant)> {
        let other = self.lanes[lane].idle.pop()?;
        self.idle -= 1;
        self.open -= 1;
        Some(other)
    }

    /// Removes an idle connection where none may be idle.
    fn surplus(&mut self) -> Option<Closing<T, S>> {
        if self.limits.idle == 0 && self.idle > 0 { self.evict() } else { None }
    }

    /// Removes the connections that have been idle for too long, and those beyond the limit, the longest idle ones first.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Closing<T, S>> {
        let mut expired = Vec::new();
        let is_old = |since: Instant| since + self.limits.idle_timeout <= now;
        for lane in &mut self.lanes {
            let old = lane.idle.partition_point(|(_, since)| is_old(*since));
            expired.extend(lane.idle.drain(..old).map(|(connection, _)| Closing::Own(connection)));
            expired.extend(lane.take_idle_shared(is_old));
        }
        self.idle -= expired.len();
        self.open -= expired.len();
        while self.idle > self.limits.idle && self.idle_longest().is_some_and(|since| since + SURPLUS <= now)
        {
            expired.extend(self.evict());
        }
        expired
    }

    /// Removes the idle connections of a lane.
    pub(super) fn clear(&mut self, LaneId(lane): LaneId) -> Vec<Closing<T, S>> {
        let lane = &mut self.lanes[lane];
        let idle = std::mem::take(&mut lane.idle).into_iter().map(|(connection, _)| Closing::Own(connection));
        let mut cleared: Vec<_> = idle.collect();
        cleared.extend(lane.take_idle_shared(|_| true));
        self.idle -= cleared.len();
        self.open -= cleared.len();
        cleared
    }

    /// Time at which to [remove](Self::expire) idle connections again, if there are any.
    pub(super) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        // By then more may be idle.
        Some((self.idle_longest()? + self.limits.idle_timeout).min(now + SURPLUS))
    }

    fn idle_longest(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::idle_longest).min()
    }

    /// Serves the next caller, if one can be served. Each event makes room for one.
    pub(super) fn serve(&mut self) -> Option<Next<T, S, W>> {
        if self.waiting == 0 {
            return None;
        }
        let lanes = self.lanes.iter().enumerate();
        let can_be_served = |(number, lane): &(usize, &Lane<T, S, W>)| {
            self.has_share(*number) && lane.needs_another(lane.waiting.len())
        };
        let (lane, _) = lanes.filter(can_be_served).min_by_key(|(_, lane)| rank(&self.arms, lane))?;
        self.lanes[lane].waiting.front()?;
        let permit = self.take(lane)?;
        let (_, waiter) = self.lanes[lane].waiting.pop_front()?;
        self.waiting -= 1;
        Some((waiter, LaneId(lane), permit))
    }

    /// A connection for this lane: an idle one, or room for one more.
    fn take(&mut self, lane: usize) -> Option<Permit<T, S>> {
        let permit = if let Some(joined) = self.join_idle(lane) {
            joined
        } else if let Some((connection, since)) = self.lanes[lane].idle.pop() {
            self.idle -= 1;
            Permit::Use(connection, since)
        } else {
            let evicted = if self.open < self.limits.open { None } else { Some(self.evict()?) };
            self.open += 1;
            let state = &mut self.lanes[lane];
            if state.places > 0 {
                state.opening += 1;
                Permit::OpenShared(evicted)
            } else {
                Permit::Open(evicted)
            }
        };
        self.lanes[lane].busy += 1;
        self.arms[self.lanes[lane].arm] += 1;
        Some(permit)
    }

    /// Removes the connection that has been idle longest.
    fn evict(&mut self) -> Option<Closing<T, S>> {
        let lanes = self.lanes.iter_mut().filter(|lane| lane.idle_longest().is_some());
        let oldest = lanes.min_by_key(|lane| lane.idle_longest())?;
        let evicted = oldest.take_idle_longest()?;
        self.idle -= 1;
        self.open -= 1;
        Some(evicted)
    }

    fn leave(&mut self, LaneId(lane): LaneId) {
        self.lanes[lane].busy -= 1;
        self.arms[self.lanes[lane].arm] -= 1;
    }

    /// Whether the arm of this lane may have one more. With a reserve, `n` slow arms leave at least one of `n + 1` parts of all
    /// connections to the others.
    fn has_share(&self, lane: usize) -> bool {
        let (held, busy) = (self.arms[self.lanes[lane].arm], self.open - self.idle);
        held < self.limits.share && (!self.limits.reserve || held < self.limits.open.saturating_sub(busy))
    }
}

/// The order in which lanes are served. Lanes without a waiting caller come last. Among lanes that hold equally many connections,
/// one with an idle connection comes first, so that none is closed for another, and then the caller that has waited longest.
fn rank<T, S, W>(arms: &[usize], lane: &Lane<T, S, W>) -> impl Ord + use<T, S, W> {
    let first = lane.waiting.front().map(|(ticket, _)| *ticket);
    let needs_another = lane.busy > 0 && lane.idle_longest().is_none();
    (first.is_none(), arms[lane.arm], lane.busy, needs_another, first)
}

#[cfg(test)]
mod tests;
