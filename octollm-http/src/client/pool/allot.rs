//! The allotment of connections to callers, as a state machine without I/O and clock.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::limits::ClientConfig;

/// The limits of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The most connections: busy, idle, and being opened.
    pub(super) open: usize,
    /// The most idle connections.
    pub(super) idle: usize,
    /// The most connections of one arm.
    pub(super) share: usize,
    /// Whether an arm gets another connection only while it holds fewer than are free.
    pub(super) reserve: bool,
    /// Time after which an idle connection expires.
    pub(super) idle_timeout: Duration,
}

impl Limits {
    /// The limits of a client of one arm.
    pub(super) fn of(config: &ClientConfig) -> Self {
        let (open, idle_timeout) = (config.max_connections, config.idle_timeout);
        Self { open, idle: config.max_idle.min(open), share: open, reserve: false, idle_timeout }
    }

    /// The same for this number of arms.
    pub(super) fn shared_by(self, arms: usize) -> Self {
        let share = if arms > 1 { (self.open / 2).max(1) } else { self.open };
        // With two arms a half is the reserve.
        Self { share, reserve: arms > 2, ..self }
    }
}

/// One arm at one origin in one runtime, whose connections are interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneId(usize);

/// Position of a caller in the queue of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The permission of a caller to use or open a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permit<T> {
    /// Use this connection, which has been idle since then.
    Use(T, Instant),
    /// Open a connection, after closing this one to make room.
    Open(Option<T>),
}

/// A caller that is served, with its lane and its permit.
pub(super) type Next<T, W> = (W, LaneId, Permit<T>);

/// Counts the connections `T` of a pool and allots them to callers. A waiting caller leaves a `W`.
///
/// A connection that becomes free goes to a waiting caller before it counts as idle: to the arm that holds fewest,
/// within one arm to the lane that holds fewest, within a lane to the one who waits longest. No caller waits while it
/// could be served.
#[derive(Debug)]
pub(super) struct Allotment<T, W> {
    limits: Limits,
    lanes: Vec<Lane<T, W>>,
    /// Connections that each arm holds.
    arms: Vec<usize>,
    open: usize,
    idle: usize,
    waiting: usize,
    next_ticket: u64,
}

#[derive(Debug)]
struct Lane<T, W> {
    arm: usize,
    busy: usize,
    /// Idle connections. The last one was used last, and is used first, so that the others can expire.
    idle: Vec<(T, Instant)>,
    waiting: VecDeque<(Ticket, W)>,
}

impl<T, W> Allotment<T, W> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, lanes: Vec::new(), arms: Vec::new(), open: 0, idle: 0, waiting: 0, next_ticket: 0 }
    }

    /// Changes the limits for the connections that are asked for from now on.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(super) fn add_arm(&mut self) -> usize {
        self.arms.push(0);
        self.arms.len() - 1
    }

    pub(super) fn add_lane(&mut self, arm: usize) -> LaneId {
        self.lanes.push(Lane { arm, busy: 0, idle: Vec::new(), waiting: VecDeque::new() });
        LaneId(self.lanes.len() - 1)
    }

    /// The connections of an arm in use and idle, and the callers that wait for one.
    pub(super) fn counts(&self, arm: usize) -> [usize; 3] {
        let lanes = || self.lanes.iter().filter(|lane| lane.arm == arm);
        let idle = lanes().map(|lane| lane.idle.len()).sum();
        let waiting = lanes().map(|lane| lane.waiting.len()).sum();
        [self.arms.get(arm).copied().unwrap_or(0), idle, waiting]
    }

    /// Whether nothing is open and no caller waits, so that all arms and lanes can be removed.
    pub(super) fn is_quiet(&self) -> bool {
        self.open == 0 && self.waiting == 0
    }

    /// A connection for a caller, unless it has to wait.
    pub(super) fn ask(&mut self, LaneId(lane): LaneId) -> Option<Permit<T>> {
        // Callers with a free share wait only while nothing is free, so that no caller is overtaken.
        if self.lanes[lane].waiting.is_empty() && self.has_share(lane) { self.take(lane) } else { None }
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
        let queue = &mut self.lanes[lane].waiting;
        let Ok(place) = queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket) else { return false };
        queue.remove(place);
        self.waiting -= 1;
        true
    }

    /// Takes back a connection that can be used again. Returns the next caller, and a connection that exceeds the limit.
    pub(super) fn give_back(
        &mut self,
        id: LaneId,
        connection: T,
        now: Instant,
    ) -> (Option<Next<T, W>>, Option<T>) {
        self.leave(id);
        self.lanes[id.0].idle.push((connection, now));
        self.idle += 1;
        let next = self.serve();
        let surplus = if self.idle > self.limits.idle { self.evict() } else { None };
        (next, surplus)
    }

    /// Counts a connection that was closed. Returns the next caller.
    pub(super) fn closed(&mut self, id: LaneId) -> Option<Next<T, W>> {
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

    /// Removes the connections that have been idle for too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        for lane in &mut self.lanes {
            let old = lane.idle.partition_point(|(_, since)| *since + self.limits.idle_timeout <= now);
            expired.extend(lane.idle.drain(..old).map(|(connection, _)| connection));
        }
        self.idle -= expired.len();
        self.open -= expired.len();
        expired
    }

    /// Removes the idle connections of a lane.
    pub(super) fn clear(&mut self, LaneId(lane): LaneId) -> impl Iterator<Item = T> + use<T, W> {
        let idle = std::mem::take(&mut self.lanes[lane].idle);
        self.idle -= idle.len();
        self.open -= idle.len();
        idle.into_iter().map(|(connection, _)| connection)
    }

    /// Time at which the next idle connection expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.lanes.iter().filter_map(|lane| lane.idle.first()).map(|(_, since)| *since).min()?;
        Some(oldest + self.limits.idle_timeout)
    }

    /// Serves the next caller, if one can be served. Each event makes room for one.
    fn serve(&mut self) -> Option<Next<T, W>> {
        if self.waiting == 0 {
            return None;
        }
        let lanes = self.lanes.iter().enumerate();
        let (lane, _) =
            lanes.filter(|(lane, _)| self.has_share(*lane)).min_by_key(|(_, lane)| rank(&self.arms, lane))?;
        self.lanes[lane].waiting.front()?;
        let permit = self.take(lane)?;
        let (_, waiter) = self.lanes[lane].waiting.pop_front()?;
        self.waiting -= 1;
        Some((waiter, LaneId(lane), permit))
    }

    /// A connection for this lane: an idle one, or room for one more.
    fn take(&mut self, lane: usize) -> Option<Permit<T>> {
        let permit = if let Some((connection, since)) = self.lanes[lane].idle.pop() {
            self.idle -= 1;
            Permit::Use(connection, since)
        } else {
            let evicted = if self.open < self.limits.open { None } else { Some(self.evict()?) };
            self.open += 1;
            Permit::Open(evicted)
        };
        self.lanes[lane].busy += 1;
        self.arms[self.lanes[lane].arm] += 1;
        Some(permit)
    }

    /// Removes the connection that has been idle longest.
    fn evict(&mut self) -> Option<T> {
        let since = |lane: &Lane<T, W>| lane.idle.first().map(|(_, since)| *since);
        let lanes = self.lanes.iter_mut().filter(|lane| !lane.idle.is_empty());
        let oldest = lanes.min_by_key(|lane| since(lane))?;
        self.idle -= 1;
        self.open -= 1;
        Some(oldest.idle.remove(0).0)
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
fn rank<T, W>(arms: &[usize], lane: &Lane<T, W>) -> impl Ord + use<T, W> {
    let first = lane.waiting.front().map(|(ticket, _)| *ticket);
    let needs_another = lane.busy > 0 && lane.idle.is_empty();
    (first.is_none(), arms[lane.arm], lane.busy, needs_another, first)
}

#[cfg(test)]
mod tests;
