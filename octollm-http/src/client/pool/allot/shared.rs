//! Connections that several callers use at once.

use super::{Allotment, Closing, Freed, Instant, Lane, LaneId, Next, Permit, SharedId};

/// A connection and its callers. It is idle while there is none.
#[derive(Debug)]
pub(super) struct SharedConnection<S> {
    id: SharedId,
    connection: S,
    /// Callers that use it.
    users: usize,
    /// Callers that may use it at once; 0 once it takes no more.
    places: usize,
    /// Begin of the time without a caller.
    since: Instant,
}

/// What follows when a caller leaves a shared connection.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::client::pool) struct Left<T, S, W> {
    /// The next caller.
    pub(in crate::client::pool) next: Option<Next<T, S, W>>,
    /// A connection to close.
    pub(in crate::client::pool) closing: Option<Closing<T, S>>,
    /// Whether the connection is idle now.
    pub(in crate::client::pool) is_idle: bool,
}

impl<T, S: Clone, W> Allotment<T, S, W> {
    /// Sets how many callers a connection of a lane may serve at once; 0 where it serves one at a time.
    pub(in crate::client::pool) fn set_places(&mut self, LaneId(lane): LaneId, places: usize) {
        self.lanes[lane].places = places;
    }

    /// Sets that connections of this lane serve one caller at a time until then.
    pub(in crate::client::pool) fn set_exclusive(&mut self, LaneId(lane): LaneId, until: Instant) {
        (self.lanes[lane].places, self.lanes[lane].exclusive_until) = (0, Some(until));
    }

    /// Time until which connections of this lane serve one caller at a time.
    pub(in crate::client::pool) fn exclusive_until(&self, LaneId(lane): LaneId) -> Option<Instant> {
        self.lanes[lane].exclusive_until
    }

    /// The callers that use a connection of this lane, or wait for one.
    pub(in crate::client::pool) fn callers(&self, LaneId(lane): LaneId) -> usize {
        let lane = &self.lanes[lane];
        let users = |shared: &SharedConnection<S>| shared.users.saturating_sub(1);
        lane.busy + lane.waiting.len() + lane.shared.iter().map(users).sum::<usize>()
    }

    /// Whether a connection of this lane takes several callers.
    pub(in crate::client::pool) fn has_shared(&self, LaneId(lane): LaneId) -> bool {
        self.lanes[lane].shared.iter().any(|shared| shared.places > 0)
    }

    /// Shares a connection that was opened by a [`Permit::OpenShared`] with its caller, who has the first place. Call
    /// [`serve_joining`](Self::serve_joining) and [`serve`](Self::serve) after that.
    pub(in crate::client::pool) fn share(
        &mut self,
        LaneId(lane): LaneId,
        connection: S,
        places: usize,
        now: Instant,
    ) -> SharedId {
        self.next_ticket += 1;
        let id = SharedId(self.next_ticket);
        let lane = &mut self.lanes[lane];
        lane.opening -= 1;
        lane.expected = Some(places);
        let places = if lane.is_forgotten { 0 } else { places };
        lane.shared.push(SharedConnection { id, connection, users: 1, places, since: now });
        id
    }

    /// Serves the next caller of a lane that waits for a place on a connection.
    pub(in crate::client::pool) fn serve_joining(&mut self, id: LaneId) -> Option<Next<T, S, W>> {
        let lane = self.lanes.get(id.0)?;
        let has_place = |shared: &SharedConnection<S>| shared.users > 0 && shared.users < shared.places;
        if lane.waiting.is_empty() || !lane.shared.iter().any(has_place) {
            return None;
        }
        let permit = self.join_one(id.0, has_place)?;
        let (_, waiter) = self.lanes[id.0].waiting.pop_front()?;
        self.waiting -= 1;
        Some((waiter, id, permit))
    }

    /// Records that a permit [to open a shared connection](Permit::OpenShared) gave none that is shared. The permit is
    /// still held.
    pub(in crate::client::pool) fn not_shared(&mut self, LaneId(lane): LaneId) {
        self.lanes[lane].opening -= 1;
    }

    /// Takes out the callers that wait for a connection that was to be shared and could not be opened.
    pub(in crate::client::pool) fn take_unserved(&mut self, LaneId(lane): LaneId) -> Vec<W> {
        let lane = &mut self.lanes[lane];
        let count = if lane.opening > 0 { 0 } else { lane.places.min(lane.waiting.len()) };
        self.waiting -= count;
        lane.waiting.drain(..count).map(|(_, waiter)| waiter).collect()
    }

    /// Takes back the place of a caller.
    pub(in crate::client::pool) fn leave_shared(
        &mut self,
        id: LaneId,
        shared: SharedId,
        now: Instant,
    ) -> Left<T, S, W> {
        let mut left = Left { next: None, closing: None, is_idle: false };
        let Some(lane) = self.lanes.get_mut(id.0) else { return left };
        let Some(place) = lane.shared.iter().position(|known| known.id == shared) else { return left };
        let connection = &mut lane.shared[place];
        connection.users -= 1;
        if connection.users < connection.places
            && let Some((_, waiter)) = lane.waiting.pop_front()
        {
            connection.users += 1;
            let permit = Permit::Join(shared, connection.connection.clone());
            self.waiting -= 1;
            left.next = Some((waiter, id, permit));
            return left;
        }
        if connection.users > 0 {
            return left;
        }
        if connection.places == 0 || lane.is_forgotten {
            left.closing = Some(Closing::Shared(lane.shared.remove(place).connection));
            self.open -= 1;
            self.leave(id);
            left.next = self.serve();
            return left;
        }
        connection.since = now;
        self.idle += 1;
        self.leave(id);
        left.is_idle = true;
        left.next = self.serve();
        left.closing = self.surplus();
        left
    }

    /// Lets no further caller use a connection. Returns it if it is idle, and the next caller.
    pub(in crate::client::pool) fn retire(&mut self, id: LaneId, shared: SharedId) -> Freed<T, S, W> {
        let Some(lane) = self.lanes.get_mut(id.0) else { return (None, None) };
        let Some(place) = lane.shared.iter().position(|known| known.id == shared) else {
            return (None, None);
        };
        lane.shared[place].places = 0;
        if lane.shared[place].users > 0 {
            return (None, None);
        }
        let closing = Closing::Shared(lane.shared.remove(place).connection);
        self.idle -= 1;
        self.open -= 1;
        (self.serve(), Some(closing))
    }

    /// Changes how many callers may use a connection at once. Call [`serve_joining`](Self::serve_joining) after that.
    pub(in crate::client::pool) fn resize(&mut self, LaneId(lane): LaneId, shared: SharedId, places: usize) {
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let known = lane.shared.iter_mut().find(|known| known.id == shared && known.places > 0);
        if let Some(known) = known {
            known.places = places;
            lane.expected = Some(places);
        }
    }

    /// A place on a connection in use.
    pub(super) fn join(&mut self, lane: usize) -> Option<Permit<T, S>> {
        let state = &self.lanes[lane];
        if state.places == 0 || !state.waiting.is_empty() {
            return None;
        }
        self.join_one(lane, |shared| shared.users > 0 && shared.users < shared.places)
    }

    /// A place on an idle connection. The caller counts it as busy.
    pub(super) fn join_idle(&mut self, lane: usize) -> Option<Permit<T, S>> {
        if self.lanes[lane].places == 0 {
            return None;
        }
        let joined = self.join_one(lane, |shared| shared.users == 0 && shared.places > 0)?;
        self.idle -= 1;
        Some(joined)
    }

    fn join_one(&mut self, lane: usize, fits: impl Fn(&SharedConnection<S>) -> bool) -> Option<Permit<T, S>> {
        let found = self.lanes[lane].shared.iter_mut().find(|shared| fits(shared))?;
        found.users += 1;
        Some(Permit::Join(found.id, found.connection.clone()))
    }
}

impl<T, S, W> Lane<T, S, W> {
    /// Whether one of so many waiting callers can be served by an idle connection, or needs another one: those being opened will
    /// have no place for all. The first one shows whether it can be shared at all, and by how many.
    pub(super) fn needs_another(&self, callers: usize) -> bool {
        let is_first = self.opening > 0 && self.shared.is_empty();
        let has_idle =
            self.places > 0 && self.shared.iter().any(|shared| shared.users == 0 && shared.places > 0);
        let places = self.expected.map_or(self.places, |expected| self.places.min(expected)).max(1);
        has_idle || (!is_first && callers + self.opening > self.opening * places)
    }

    /// Whether a new lane can take this place.
    pub(super) fn is_over(&self) -> bool {
        self.is_forgotten && self.busy == 0 && self.waiting.is_empty() && self.idle_longest().is_none()
    }

    /// Whether a connection for one caller is not used again: its lane is forgotten, or shares its connections now.
    pub(super) fn closes_own(&self) -> bool {
        self.is_forgotten || (self.places > 0 && self.shared.iter().any(|shared| shared.places > 0))
    }

    pub(super) fn idle_shared(&self) -> impl Iterator<Item = Instant> {
        self.shared.iter().filter(|shared| shared.users == 0).map(|shared| shared.since)
    }

    /// Begin of the longest idle time.
    pub(super) fn idle_longest(&self) -> Option<Instant> {
        self.idle.first().map(|(_, since)| *since).into_iter().chain(self.idle_shared()).min()
    }

    pub(super) fn take_idle_longest(&mut self) -> Option<Closing<T, S>> {
        let longest = self.idle_longest()?;
        if self.idle.first().is_some_and(|(_, since)| *since == longest) {
            return Some(Closing::Own(self.idle.remove(0).0));
        }
        let is_longest = |shared: &SharedConnection<S>| shared.users == 0 && shared.since == longest;
        let place = self.shared.iter().position(is_longest)?;
        Some(Closing::Shared(self.shared.remove(place).connection))
    }

    pub(super) fn take_idle_shared(&mut self, fits: impl Fn(Instant) -> bool) -> Vec<Closing<T, S>> {
        let idle = self.shared.extract_if(.., |shared| shared.users == 0 && fits(shared.since));
        idle.map(|shared| Closing::Shared(shared.connection)).collect()
    }
}
