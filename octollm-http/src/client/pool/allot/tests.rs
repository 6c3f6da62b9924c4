use proptest::prelude::*;

use super::*;

const LIMITS: Limits =
    Limits { open: 4, idle: 2, share: 3, reserve: false, idle_timeout: Duration::from_secs(15) };

fn lanes<T, W>(pool: &mut Allotment<T, u32, W>, arms: &[usize]) -> Vec<LaneId> {
    let count = arms.iter().max().unwrap() + 1;
    for _ in 0..count {
        pool.add_arm();
    }
    arms.iter().map(|arm| pool.add_lane(*arm)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_becomes_free_goes_to_the_one_who_waits_longest() {
    let (now, mut pool) = (Instant::now(), Allotment::<u32, u32, &str>::new(LIMITS));
    let lane = lanes(&mut pool, &[0])[0];
    for _ in 0..3 {
        assert_eq!(pool.ask(lane), Some(Permit::Open(None)));
    }
    assert_eq!(pool.ask(lane), None);
    let (first, second) = (pool.wait(lane, "first"), pool.wait(lane, "second"));
    pool.wait(lane, "third");
    assert_eq!(pool.give_back(lane, 1, now), (Some(("first", lane, Permit::Use(1, now))), None));
    assert!(pool.withdraw(lane, second) && !pool.withdraw(lane, first));
    assert_eq!(pool.closed(lane), Some(("third", lane, Permit::Open(None))));
    assert_eq!(pool.open, 3);
}

#[tokio::test(start_paused = true)]
async fn idle_ones_are_used_freshest_first_and_closed_oldest_first() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut pool = Allotment::<u32, u32, ()>::new(LIMITS);
    let lane = lanes(&mut pool, &[0, 1]);
    for place in [0, 0, 1, 1] {
        assert_eq!(pool.ask(lane[place]), Some(Permit::Open(None)));
    }
    assert_eq!(pool.give_back(lane[0], 0, at(0)), (None, None));
    assert_eq!(pool.give_back(lane[1], 1, at(1)), (None, None));
    assert_eq!(pool.give_back(lane[0], 2, at(2)), (None, None));
    assert_eq!(pool.next_expiry(at(2)), Some(at(3)));
    assert_eq!(pool.expire(at(0) + SURPLUS / 2), []);
    assert_eq!(pool.expire(at(0) + SURPLUS), [Closing::Own(0)], "two may be idle for longer");
    assert_eq!(pool.expire(at(15)), []);
    assert_eq!(pool.next_expiry(at(15) + SURPLUS / 2), Some(at(16)));
    assert_eq!(pool.ask(lane[0]), Some(Permit::Use(2, at(2))));
    assert_eq!(pool.ask(lane[0]), Some(Permit::Open(None)));
    assert_eq!(pool.ask(lane[0]), Some(Permit::Open(Some(Closing::Own(1)))), "an idle one makes room");
    assert_eq!(pool.ask(lane[0]), None, "three are a share");
    pool.give_back(lane[0], 3, at(3));
    assert!(pool.expire(at(17)).is_empty());
    assert_eq!(pool.expire(at(18)), [Closing::Own(3)]);
    assert_eq!((pool.open, pool.next_expiry(at(18))), (3, None));
}

#[tokio::test(start_paused = true)]
async fn arms_that_all_have_callers_waiting_come_to_hold_equally_many_and_then_swap_none() {
    let now = Instant::now();
    let limits = Limits { open: 100, idle: 20, share: 50, ..LIMITS };
    let mut pool = Allotment::<u32, u32, usize>::new(limits);
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
        let (arm, _, permit) = next.unwrap();
        match permit {
            Permit::Use(connection, _) => held.push((arm, connection)),
            Permit::Open(closed) => {
                assert!(closed.is_some() && step < 500, "step {step}");
                opened += 1;
                held.push((arm, 0));
            }
            _ => unreachable!("no lane shares"),
        }
    }
    assert_eq!(opened, 33, "so many went to the third arm");
    let count = |arm| held.iter().filter(|(holder, _)| *holder == arm).count();
    assert_eq!([count(0), count(1), count(2)].iter().max(), Some(&34));
}

#[tokio::test(start_paused = true)]
async fn slow_arms_leave_connections_to_each_further_one() {
    let limits = Limits { open: 100, share: 50, reserve: true, ..LIMITS };
    let mut pool = Allotment::<u32, u32, ()>::new(limits);
    let lane = lanes(&mut pool, &[0, 1, 2, 3, 4]);
    let all = lane.iter().map(|lane| std::iter::from_fn(|| pool.ask(*lane)).count());
    assert_eq!(all.collect::<Vec<_>>(), [50, 25, 13, 6, 3]);
}

#[derive(Debug, Clone)]
enum Event {
    Ask(usize),
    GiveBack(usize),
    Close(usize),
    Withdraw(usize),
    Replace(usize),
    Expire,
    Clear(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_usize).prop_map(Event::Ask),
        3 => any::<usize>().prop_map(Event::GiveBack),
        1 => any::<usize>().prop_map(Event::Close),
        1 => any::<usize>().prop_map(Event::Withdraw),
        1 => any::<usize>().prop_map(Event::Replace),
        1 => Just(Event::Expire),
        1 => (0..4_usize).prop_map(Event::Clear),
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
    fn permit(&mut self, lane: usize, permit: Permit<u32, u32>) {
        let connection = match permit {
            Permit::Use(connection, _) => connection,
            Permit::Join(..) | Permit::OpenShared(_) => unreachable!("no lane shares"),
            Permit::Open(_) => {
                self.made += 1;
                self.made
            }
        };
        self.held.push((lane, connection));
    }

    fn next(&mut self, next: Option<(u32, LaneId, Permit<u32, u32>)>) {
        let Some((waiter, LaneId(lane), permit)) = next else { return };
        let place = self.waiting.iter().position(|(_, _, name)| *name == waiter).unwrap();
        self.waiting.remove(place);
        assert!(self.served[lane] < waiter, "in their order");
        self.served[lane] = waiter;
        self.permit(lane, permit);
    }
}

proptest! {
    #[test]
    fn limits_hold_and_nobody_waits_in_vain(
        events in proptest::collection::vec(event(), 0..200),
        (open, idle, share, reserve) in (1..6_usize, 0..6_usize, 1..6_usize, any::<bool>()),
    ) {
        let mut now = std::time::Instant::now().into();
        let limits = Limits { open, idle: idle.min(open), share: share.min(open), reserve, ..LIMITS };
        let mut pool = Allotment::<u32, u32, u32>::new(limits);
        let arms = [0, 0, 1, 2];
        let lane = lanes(&mut pool, &arms);
        let mut model = Model::default();
        for (name, event) in (1..).zip(events) {
            now += SURPLUS;
            let has_expired = limits.idle == 0 || matches!(event, Event::Expire);
            match event {
                Event::Ask(place) => match pool.ask(lane[place]) {
                    Some(permit) => model.permit(place, permit),
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
                Event::Clear(place) => drop(pool.clear(lane[place])),
                _ => {}
            }
            prop_assert_eq!(pool.open, model.held.len() + pool.idle);
            prop_assert!(pool.open <= limits.open);
            prop_assert!(pool.idle <= limits.idle || !has_expired);
            prop_assert_eq!(pool.waiting, model.waiting.len());
            let holds = |arm| model.held.iter().filter(|(place, _)| arms[*place] == arm).count();
            for arm in 0..3 {
                prop_assert!(holds(arm) <= limits.share);
                let waits = model.waiting.iter().any(|(place, ..)| arms[*place] == arm);
                let room = pool.open < limits.open || pool.idle > 0;
                let free = open - model.held.len();
                let may = holds(arm) < limits.share && (!reserve || holds(arm) < free);
                prop_assert!(!(waits && room && may), "{:?}", pool);
            }
        }
    }
}

/// A pool with lanes that share connections, and what its callers hold, counted beside it.
struct Sharing {
    pool: Allotment<u32, u32, u32>,
    lanes: Vec<LaneId>,
    places: usize,
    /// Callers that hold a place, by lane, connection and its number.
    joined: Vec<(usize, SharedId, u32)>,
    /// Callers that open a connection.
    opening: Vec<usize>,
    waiting: Vec<(usize, Ticket, u32)>,
    /// Callers that were failed while they waited, and withdraw at some time after that, with the lane of that time.
    failed: Vec<(LaneId, Ticket)>,
    /// Connections that take no more callers.
    retired: Vec<u32>,
    made: u32,
}

impl Sharing {
    fn take(&mut self, lane: usize, permit: Permit<u32, u32>) {
        match permit {
            Permit::Join(id, connection) => {
                assert!(!self.retired.contains(&connection), "a retired connection was used");
                self.joined.push((lane, id, connection));
            }
            Permit::OpenShared(_) => self.opening.push(lane),
            other => panic!("{other:?} in a lane that shares"),
        }
    }

    fn next(&mut self, next: Option<Next<u32, u32, u32>>) {
        let Some((waiter, lane, permit)) = next else { return };
        let lane = self.lanes.iter().position(|known| *known == lane).unwrap();
        let place = self.waiting.iter().position(|(at, _, _)| *at == lane).unwrap();
        assert_eq!(self.waiting.remove(place).2, waiter, "in their order");
        let is_shared = matches!(permit, Permit::Join(..));
        self.take(lane, permit);
        if is_shared {
            let next = self.pool.serve_joining(self.lanes[lane]);
            self.next(next);
        }
    }

    fn step(&mut self, (kind, n): (u8, usize), name: u32, now: Instant) {
        match kind {
            0..=3 => {
                let lane = n % self.lanes.len();
                match self.pool.ask(self.lanes[lane]) {
                    Some(permit) => self.take(lane, permit),
                    None => self.waiting.push((lane, self.pool.wait(self.lanes[lane], name), name)),
                }
            }
            4..=5 if !self.opening.is_empty() => {
                let lane = self.opening.remove(n % self.opening.len());
                self.made += 1;
                let id = self.pool.share(self.lanes[lane], self.made, self.places, now);
                self.joined.push((lane, id, self.made));
                while let Some(next) = self.pool.serve_joining(self.lanes[lane]) {
                    self.next(Some(next));
                }
                while let Some(next) = self.pool.serve() {
                    self.next(Some(next));
                }
            }
            6 if !self.opening.is_empty() => {
                let lane = self.opening.remove(n % self.opening.len());
                self.pool.not_shared(self.lanes[lane]);
                let next = self.pool.closed(self.lanes[lane]);
                self.next(next);
            }
            7..=9 if !self.joined.is_empty() => {
                let (lane, id, _) = self.joined.remove(n % self.joined.len());
                let left = self.pool.leave_shared(self.lanes[lane], id, now);
                self.next(left.next);
            }
            10 if !self.joined.is_empty() => {
                let (lane, id, connection) = self.joined[n % self.joined.len()];
                self.retired.push(connection);
                let (next, closing) = self.pool.retire(self.lanes[lane], id);
                assert_eq!(closing, None, "it is in use");
                self.next(next);
            }
            11 if !self.waiting.is_empty() => {
                let (lane, ticket, _) = self.waiting.remove(n % self.waiting.len());
                assert!(self.pool.withdraw(self.lanes[lane], ticket));
            }
            12 => drop(self.pool.expire(now)),
            13 if !self.opening.is_empty() => self.fail(n),
            14 if self.pool.is_quiet() => {
                self.pool.reset();
                self.withdraw_failed(n);
                self.lanes = lanes(&mut self.pool, &ARMS);
                self.lanes.iter().for_each(|lane| self.pool.set_places(*lane, self.places));
            }
            15 => self.withdraw_failed(n),
            16 => {
                let lane = n % self.lanes.len();
                if self.pool.remove_unused(self.lanes[lane], now) {
                    self.lanes[lane] = self.pool.add_lane(ARMS[lane]);
                    self.pool.set_places(self.lanes[lane], self.places);
                }
            }
            _ => {}
        }
    }

    /// Fails those who wait for a connection that cannot be opened.
    fn fail(&mut self, n: usize) {
        let lane = self.opening.remove(n % self.opening.len());
        self.pool.not_shared(self.lanes[lane]);
        let taken = self.pool.take_unserved(self.lanes[lane]);
        self.waiting.retain(|(at, ticket, name)| {
            let is_taken = taken.contains(name);
            if is_taken {
                assert_eq!(*at, lane);
                self.failed.push((self.lanes[lane], *ticket));
            }
            !is_taken
        });
        let next = self.pool.closed(self.lanes[lane]);
        self.next(next);
    }

    /// Withdraws about half of those who were failed, who are in no queue any more.
    fn withdraw_failed(&mut self, n: usize) {
        for (lane, ticket) in self.failed.split_off(self.failed.len() * (n % 3) / 2 % (self.failed.len() + 1))
        {
            assert!(!self.pool.withdraw(lane, ticket));
        }
    }
}

const ARMS: [usize; 3] = [0, 0, 1];

proptest! {
    #[test]
    fn shared_connections_have_no_more_callers_than_places_and_nobody_waits_in_vain(
        events in proptest::collection::vec((0..17_u8, any::<usize>()), 0..300),
        (open, idle, places) in (1..5_usize, 0..5_usize, 1..4_usize),
    ) {
        let mut now = Instant::now();
        let limits = Limits { open, idle: idle.min(open), share: open, reserve: false, ..LIMITS };
        let mut pool = Allotment::new(limits);
        let lanes = lanes(&mut pool, &ARMS);
        lanes.iter().for_each(|lane| pool.set_places(*lane, places));
        let mut model = Sharing {
            pool, lanes, places, joined: vec![], opening: vec![], waiting: vec![], failed: vec![], retired: vec![], made: 0,
        };
        for (name, event) in (1..).zip(events) {
            now += SURPLUS;
            let has_expired = limits.idle == 0 || event.0 == 12;
            model.step(event, name, now);
            let mut in_use: Vec<_> = model.joined.iter().map(|(_, _, connection)| *connection).collect();
            in_use.sort_unstable();
            let mut users = Vec::new();
            for connection in in_use {
                match users.last_mut() {
                    Some((known, count)) if *known == connection => *count += 1,
                    _ => users.push((connection, 1)),
                }
            }
            prop_assert!(users.iter().all(|(_, count)| *count <= places));
            prop_assert_eq!(model.pool.open, users.len() + model.opening.len() + model.pool.idle);
            prop_assert!(model.pool.open <= open);
            prop_assert!(model.pool.idle <= limits.idle || !has_expired);
            prop_assert_eq!(model.pool.waiting, model.waiting.len());
            for (lane, id) in model.lanes.iter().enumerate() {
                let waits = model.waiting.iter().filter(|(at, ..)| *at == lane).count();
                let at_lane = |connection: &u32| model.joined.iter().any(|(at, _, known)| at == &lane && known == connection);
                let has_place = users.iter().any(|(connection, count)| {
                    *count < places && at_lane(connection) && !model.retired.contains(connection)
                });
                prop_assert!(waits == 0 || !has_place, "{:?}", model.pool);
                let opening = model.opening.iter().filter(|at| **at == lane).count();
                let covered = opening * places - opening;
                let room = model.pool.open < open || model.pool.idle > 0;
                // The first one shows how many share it.
                let is_first = opening > 0 && !users.iter().any(|(connection, _)| at_lane(connection));
                prop_assert!(waits <= covered || is_first || !room, "{waits} {:?}", model.pool);
                let callers = waits + opening + model.joined.iter().filter(|(at, ..)| *at == lane).count();
                prop_assert_eq!(model.pool.callers(*id), callers);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_forgotten_ends_with_its_callers_and_its_place_is_used_again() {
    let now = Instant::now();
    let mut pool = Allotment::<u32, u32, ()>::new(LIMITS);
    let lane = lanes(&mut pool, &[0, 0]);
    assert_eq!(pool.ask(lane[0]), Some(Permit::Open(None)));
    assert_eq!(pool.ask(lane[0]), Some(Permit::Open(None)));
    pool.give_back(lane[0], 1, now);
    assert_eq!(pool.forget(lane[0]), [Closing::Own(1)]);
    assert_ne!(pool.add_lane(0), lane[0], "a caller still has a connection");
    assert_eq!(pool.give_back(lane[0], 2, now), (None, Some(Closing::Own(2))));
    assert_eq!((pool.open, pool.idle), (0, 0));
    assert_eq!(pool.add_lane(0), lane[0]);
}

#[tokio::test(start_paused = true)]
async fn the_share_of_each_arm_follows_the_number_of_arms() {
    let mut pool = Allotment::<u32, u32, ()>::new(LIMITS);
    let lane = lanes(&mut pool, &[0])[0];
    assert_eq!(std::iter::from_fn(|| pool.ask(lane)).count(), 3);
    pool.wait(lane, ());
    pool.set_share(4, false);
    assert_eq!(pool.serve(), Some(((), lane, Permit::Open(None))));
    pool.set_share(2, false);
    assert_eq!(pool.give_back(lane, 1, Instant::now()), (None, None));
    assert_eq!(pool.ask(lane), None);
}
