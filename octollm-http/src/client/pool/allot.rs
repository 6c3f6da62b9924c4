//! Who gets a connection: decided here, without I/O and without a clock.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The limits of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections in all: busy, idle, and on their way.
    pub(super) open: usize,
    /// How many of them may be idle.
    pub(super) idle: usize,
    /// How many one arm may hold.
    pub(super) share: usize,
    /// How long one may be idle.
    pub(super) idle_timeout: Duration,
}

/// One arm at one origin, as seen from one runtime: its connections are interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneId(usize);

/// The place of a caller in its lane's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// What a caller may do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<T> {
    /// Use this connection, which has been idle since then.
    Use(T, Instant),
    /// Open a connection, once this one is closed that had to make room for it.
    Open(Option<T>),
}

/// Counts and distributes the connections `T` of a pool among its callers; those who wait left a `W`.
///
/// A connection that becomes free goes to a waiting caller before it counts as idle: to the arm that holds fewest,
/// within one arm to the lane that holds fewest, within a lane to the one who waits longest. No caller waits while it
/// could be served.
#[derive(Debug)]
pub(super) struct Allotment<T, W> {
    limits: Limits,
    lanes: Vec<Lane<T, W>>,
    /// How many connections each arm holds.
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
    /// The one that was used last is the last one, and is used first, so that the others can expire.
    idle: Vec<(T, Instant)>,
    waiting: VecDeque<(Ticket, W)>,
}

impl<T, W> Allotment<T, W> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, lanes: Vec::new(), arms: Vec::new(), open: 0, idle: 0, waiting: 0, next_ticket: 0 }
    }

    pub(super) fn add_arm(&mut self) -> usize {
        self.arms.push(0);
        self.arms.len() - 1
    }

    pub(super) fn add_lane(&mut self, arm: usize) -> LaneId {
        self.lanes.push(Lane { arm, busy: 0, idle: Vec::new(), waiting: VecDeque::new() });
        LaneId(self.lanes.len() - 1)
    }

    /// Whether nothing is open and nobody waits, so that all arms and lanes can be forgotten.
    pub(super) fn is_quiet(&self) -> bool {
        self.open == 0 && self.waiting == 0
    }

    /// A connection for a caller, unless it has to wait.
    pub(super) fn ask(&mut self, LaneId(lane): LaneId) -> Option<Turn<T>> {
        // Callers with a free share wait only while nothing is free: nobody is overtaken.
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

    /// Takes back a connection that can be used again. Returns who is next, and a connection for which there is no
    /// room any more.
    pub(super) fn give_back(
        &mut self,
        id: LaneId,
        connection: T,
        now: Instant,
    ) -> (Option<(W, LaneId, Turn<T>)>, Option<T>) {
        self.leave(id);
        self.lanes[id.0].idle.push((connection, now));
        self.idle += 1;
        let next = self.serve();
        let surplus = if self.idle > self.limits.idle { self.evict() } else { None };
        (next, surplus)
    }

    /// Counts a connection that was closed. Returns who is next.
    pub(super) fn closed(&mut self, id: LaneId) -> Option<(W, LaneId, Turn<T>)> {
        self.leave(id);
        self.open -= 1;
        self.serve()
    }

    /// Another idle connection in place of one that turned out to be dead and is closed. Where there is none, the caller opens one
    /// in its place.
    pub(super) fn replace(&mut self, LaneId(lane): LaneId) -> Option<(T, Instant)> {
        let other = self.lanes[lane].idle.pop()?;
        self.idle -= 1;
        self.open -= 1;
        Some(other)
    }

    /// Gives up all connections that have been idle too long.
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

    /// When the next idle connection expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.lanes.iter().filter_map(|lane| lane.idle.first()).map(|(_, since)| *since).min()?;
        Some(oldest + self.limits.idle_timeout)
    }

    /// Serves the caller that is next, if anybody can be served. Each event makes room for one.
    fn serve(&mut self) -> Option<(W, LaneId, Turn<T>)> {
        if self.waiting == 0 {
            return None;
        }
        let lanes = self.lanes.iter().enumerate();
        let (lane, _) =
            lanes.filter(|(lane, _)| self.has_share(*lane)).min_by_key(|(_, lane)| rank(&self.arms, lane))?;
        self.lanes[lane].waiting.front()?;
        let turn = self.take(lane)?;
        let (_, waiter) = self.lanes[lane].waiting.pop_front()?;
        self.waiting -= 1;
        Some((waiter, LaneId(lane), turn))
    }

    /// A connection for this lane: an idle one, or room for one more.
    fn take(&mut self, lane: usize) -> Option<Turn<T>> {
        let turn = if let Some((connection, since)) = self.lanes[lane].idle.pop() {
            self.idle -= 1;
            Turn::Use(connection, since)
        } else {
            let evicted = if self.open < self.limits.open { None } else { Some(self.evict()?) };
            self.open += 1;
            Turn::Open(evicted)
        };
        self.lanes[lane].busy += 1;
        self.arms[self.lanes[lane].arm] += 1;
        Some(turn)
    }

    /// Gives up the connection that has been idle longest.
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

    fn has_share(&self, lane: usize) -> bool {
        self.arms[self.lanes[lane].arm] < self.limits.share
    }
}

/// Who is next: lanes in which nobody waits come last. Among lanes that hold equally many, one with an idle connection comes
/// first, so that none is closed for another; but where neither holds any, the one who waits longest.
fn rank<T, W>(arms: &[usize], lane: &Lane<T, W>) -> impl Ord + use<T, W> {
    let first = lane.waiting.front().map(|(ticket, _)| *ticket);
    let needs_another = lane.busy > 0 && lane.idle.is_empty();
    (first.is_none(), arms[lane.arm], lane.busy, needs_another, first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { open: 4, idle: 2, share: 3, idle_timeout: Duration::from_secs(15) };

    fn lanes<T, W>(pool: &mut Allotment<T, W>, arms: &[usize]) -> Vec<LaneId> {
        let count = arms.iter().max().unwrap() + 1;
        for _ in 0..count {
            pool.add_arm();
        }
        arms.iter().map(|arm| pool.add_lane(*arm)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_free_goes_to_the_one_who_waits_longest() {
        let (now, mut pool) = (Instant::now(), Allotment::<u32, &str>::new(LIMITS));
        let lane = lanes(&mut pool, &[0])[0];
        for _ in 0..3 {
            assert_eq!(pool.ask(lane), Some(Turn::Open(None)));
        }
        assert_eq!(pool.ask(lane), None);
        let (first, second) = (pool.wait(lane, "first"), pool.wait(lane, "second"));
        pool.wait(lane, "third");
        assert_eq!(pool.give_back(lane, 1, now), (Some(("first", lane, Turn::Use(1, now))), None));
        assert!(pool.withdraw(lane, second) && !pool.withdraw(lane, first));
        assert_eq!(pool.closed(lane), Some(("third", lane, Turn::Open(None))));
        assert_eq!(pool.open, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_ones_are_used_freshest_first_and_closed_oldest_first() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut pool = Allotment::<u32, ()>::new(LIMITS);
        let lane = lanes(&mut pool, &[0, 1]);
        for place in [0, 0, 1, 1] {
            assert_eq!(pool.ask(lane[place]), Some(Turn::Open(None)));
        }
        assert_eq!(pool.give_back(lane[0], 0, at(0)), (None, None));
        assert_eq!(pool.give_back(lane[1], 1, at(1)), (None, None));
        assert_eq!(pool.give_back(lane[0], 2, at(2)), (None, Some(0)), "two may be idle");
        assert_eq!(pool.next_expiry(), Some(at(16)));
        assert_eq!(pool.ask(lane[0]), Some(Turn::Use(2, at(2))));
        assert_eq!(pool.ask(lane[0]), Some(Turn::Open(None)));
        assert_eq!(pool.ask(lane[0]), Some(Turn::Open(Some(1))), "an idle one makes room");
        assert_eq!(pool.ask(lane[0]), None, "three are a share");
        pool.give_back(lane[0], 3, at(3));
        assert!(pool.expire(at(17)).is_empty());
        assert_eq!(pool.expire(at(18)), [3]);
        assert_eq!((pool.open, pool.next_expiry()), (3, None));
    }

    #[tokio::test(start_paused = true)]
    async fn arms_that_all_have_callers_waiting_come_to_hold_equally_many_and_then_swap_none() {
        let now = Instant::now();
        let limits = Limits { open: 100, idle: 20, share: 50, ..LIMITS };
        let mut pool = Allotment::<u32, usize>::new(limits);
        let lane = lanes(&mut pool, &[0, 1, 2]);
        let mut held = Vec::new();
        for n in 0..3000 {
            match pool.ask(lane[n / 1000]) {
                Some(_) => held.push((n / 1000, n as u32)),
                None => drop(pool.wait(lane[n / 1000], n / 1000)),
            }
        }
        let mut opened = 0;
        for step in 0..2000 {
            let (arm, connection) = held.remove(step * 7919 % held.len());
            let (next, surplus) = pool.give_back(lane[arm], connection, now);
            assert_eq!(surplus, None);
            let (arm, _, turn) = next.unwrap();
            match turn {
                Turn::Use(connection, _) => held.push((arm, connection)),
                Turn::Open(closed) => {
                    assert!(closed.is_some() && step < 500, "step {step}");
                    opened += 1;
                    held.push((arm, 0));
                }
            }
        }
        assert_eq!(opened, 33, "so many went to the third arm");
        let count = |arm| held.iter().filter(|(holder, _)| *holder == arm).count();
        assert_eq!([count(0), count(1), count(2)].iter().max(), Some(&34));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Ask(usize),
        GiveBack(usize),
        Close(usize),
        Withdraw(usize),
        Replace(usize),
        Expire,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..4_usize).prop_map(Event::Ask),
            3 => any::<usize>().prop_map(Event::GiveBack),
            1 => any::<usize>().prop_map(Event::Close),
            1 => any::<usize>().prop_map(Event::Withdraw),
            1 => any::<usize>().prop_map(Event::Replace),
            1 => Just(Event::Expire),
        ]
    }

    /// What callers hold and wait for, counted beside the pool.
    #[derive(Default)]
    struct Model {
        held: Vec<(usize, u32)>,
        waiting: Vec<(usize, Ticket, u32)>,
        made: u32,
        served: [u32; 4],
    }

    impl Model {
        fn turn(&mut self, lane: usize, turn: Turn<u32>) {
            let connection = match turn {
                Turn::Use(connection, _) => connection,
                Turn::Open(_) => {
                    self.made += 1;
                    self.made
                }
            };
            self.held.push((lane, connection));
        }

        fn next(&mut self, next: Option<(u32, LaneId, Turn<u32>)>) {
            let Some((waiter, LaneId(lane), turn)) = next else { return };
            let place = self.waiting.iter().position(|(_, _, name)| *name == waiter).unwrap();
            self.waiting.remove(place);
            assert!(self.served[lane] < waiter, "in their order");
            self.served[lane] = waiter;
            self.turn(lane, turn);
        }
    }

    proptest! {
        #[test]
        fn limits_hold_and_nobody_waits_in_vain(
            events in proptest::collection::vec(event(), 0..200),
            (open, idle, share) in (1..6_usize, 0..6_usize, 1..6_usize),
        ) {
            let mut now = std::time::Instant::now().into();
            let limits = Limits { open, idle: idle.min(open), share: share.min(open), ..LIMITS };
            let mut pool = Allotment::<u32, u32>::new(limits);
            let arms = [0, 0, 1, 2];
            let lane = lanes(&mut pool, &arms);
            let mut model = Model::default();
            for (name, event) in (1..).zip(events) {
                now += Duration::from_secs(1);
                match event {
                    Event::Ask(place) => match pool.ask(lane[place]) {
                        Some(turn) => model.turn(place, turn),
                        None => model.waiting.push((place, pool.wait(lane[place], name), name)),
                    },
                    Event::GiveBack(n) if !model.held.is_empty() => {
                        let (place, connection) = model.held.remove(n % model.held.len());
                        let (next, _) = pool.give_back(lane[place], connection, now);
                        model.next(next);
                    }
                    Event::Close(n) if !model.held.is_empty() => {
                        let (place, _) = model.held.remove(n % model.held.len());
                        model.next(pool.closed(lane[place]));
                    }
                    Event::Withdraw(n) if !model.waiting.is_empty() => {
                        let (place, ticket, _) = model.waiting.remove(n % model.waiting.len());
                        prop_assert!(pool.withdraw(lane[place], ticket));
                        prop_assert!(!pool.withdraw(lane[place], ticket));
                    }
                    Event::Replace(n) if !model.held.is_empty() => {
                        let holder = n % model.held.len();
                        if let Some((other, _)) = pool.replace(lane[model.held[holder].0]) {
                            model.held[holder].1 = other;
                        }
                    }
                    Event::Expire => drop(pool.expire(now)),
                    _ => {}
                }
                prop_assert_eq!(pool.open, model.held.len() + pool.idle);
                prop_assert!(pool.open <= limits.open && pool.idle <= limits.idle);
                prop_assert_eq!(pool.waiting, model.waiting.len());
                let holds = |arm| model.held.iter().filter(|(place, _)| arms[*place] == arm).count();
                for arm in 0..3 {
                    prop_assert!(holds(arm) <= limits.share);
                    let waits = model.waiting.iter().any(|(place, ..)| arms[*place] == arm);
                    let room = pool.open < limits.open || pool.idle > 0;
                    prop_assert!(!(waits && room && holds(arm) < limits.share), "{:?}", pool);
                }
            }
        }
    }
}
