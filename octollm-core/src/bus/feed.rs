//! The end of a subscription that a bus holds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::buffer::{Offered, Queue, Taken};
use super::engine::{Counters, Expiry, later};
use super::{BusError, Ended, Gap, Overflow, Signal, Subscription};
use crate::event::Event;

/// Feeds one [`Subscription`]. Buses are built on it, so that each of them overflows the same way.
///
/// Dropping it ends the subscription with [`Ended::Closed`], after what waits was delivered.
#[derive(Debug)]
pub struct Feed {
    line: Arc<Line>,
}

/// What came of an event that was offered to a [`Feed`].
#[derive(Debug)]
#[must_use = "an event that is blocked is lost unless it is waited for"]
pub enum Offer {
    /// It waits for the subscriber, or it is an item of the stream that it was lost.
    Passed,
    /// The subscriber, under [`Overflow::Block`], has no room.
    Blocked(Blocked),
    /// The subscription has ended.
    Ended,
}

/// An event that waits for room. Dropped before the event was passed on, the loss is an item of the subscriber's stream.
#[derive(Debug)]
#[must_use = "dropped, the event is lost to its subscriber"]
pub struct Blocked {
    line: Arc<Line>,
    event: Event,
    expiry: Expiry,
    until: Instant,
    settled: bool,
}

/// Passes an event to each feed that has room, then waits for those that block their publisher, all at once. Returns
/// whether all subscriptions go on.
///
/// # Cancel safety
/// Every feed has had its offer before the first wait. Dropped while it waits, the event is lost to those waited for, as
/// an item of their streams.
pub async fn deliver<'a>(feeds: impl IntoIterator<Item = &'a Feed>, event: &Event, expiry: Expiry) -> bool {
    let mut all_go_on = true;
    let mut blocked = Vec::new();
    for feed in feeds {
        match feed.offer(event, expiry) {
            Offer::Passed => {}
            Offer::Blocked(waiting) => blocked.push(waiting),
            Offer::Ended => all_go_on = false,
        }
    }
    if !blocked.is_empty() {
        all_go_on &=
            join_all(blocked.into_iter().map(Blocked::wait)).await.into_iter().all(|goes_on| goes_on);
    }
    all_go_on
}

/// What the two ends share.
#[derive(Debug)]
pub(super) struct Line {
    state: Mutex<State>,
    /// The places that are free, under [`Overflow::Block`].
    room: Option<Room>,
    /// Notified when nobody receives any more.
    gone: Notify,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    reader: Option<Waker>,
    abandoned: bool,
    /// Since when there is no room and the subscriber has taken nothing.
    full_since: Option<Instant>,
}

/// Hands out places to publishers, first come, first served.
#[derive(Debug)]
struct Room {
    places: Semaphore,
    /// Places that became free and are not in `places` yet: they are put there together, once a publisher needs one.
    freed: AtomicUsize,
    waiting: AtomicUsize,
    /// How long a publisher waits at most.
    limit: Duration,
}

impl Feed {
    /// A subscription and what feeds it. Under [`Overflow::Block`] a publisher waits for at most `block_timeout`. What is
    /// left out is counted in `counters`.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when the overflow has room for no event.
    pub fn new(
        overflow: Overflow,
        block_timeout: Duration,
        counters: Arc<Counters>,
    ) -> Result<(Self, Subscription), BusError> {
        overflow.validate()?;
        let state = State { queue: Queue::new(overflow), reader: None, abandoned: false, full_since: None };
        let room = (overflow == Overflow::Block).then(|| Room::new(block_timeout));
        let line = Arc::new(Line { state: Mutex::new(state), room, gone: Notify::new(), counters });
        Ok((Self { line: Arc::clone(&line) }, Subscription::new(line)))
    }

    /// Passes an event on, if that needs no waiting.
    ///
    /// A subscriber under [`Overflow::Block`] that has had no room and has taken nothing for the block timeout is not
    /// waited for any more until it takes something: what is offered to it meanwhile is lost, as an item of its stream.
    pub fn offer(&self, event: &Event, expiry: Expiry) -> Offer {
        match &self.line.room {
            Some(room) if !room.take_place() => self.line.offer_blocked(room, event, expiry),
            _ => self.line.push(event, expiry),
        }
    }

    /// Passes an event on, and waits for room where the subscriber blocks its publisher. Returns whether the subscription
    /// goes on. A bus that has several subscriptions uses [`deliver`].
    ///
    /// # Cancel safety
    /// Dropped while it waits, the event is lost to the subscriber, as an item of its stream.
    pub async fn send(&self, event: &Event) -> bool {
        deliver([self], event, Expiry::of(event.expires_at())).await
    }

    /// Marks that events may be missing here.
    pub fn gap(&self, gap: Gap) {
        self.line.change(|queue| queue.mark(gap));
    }

    /// Ends the subscription after what waits was delivered. The first reason given holds.
    pub fn end(&self, reason: Ended) {
        self.line.change(|queue| queue.end(reason));
        self.line.release();
    }

    /// Whether nobody receives any more.
    pub fn is_closed(&self) -> bool {
        let state = self.line.lock();
        state.abandoned || state.queue.ended().is_some()
    }

    /// Waits until nobody receives any more.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn closed(&self) {
        loop {
            let gone = self.line.gone.notified();
            if self.is_closed() {
                return;
            }
            gone.await;
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end(Ended::Closed);
    }
}

impl Blocked {
    /// Waits for room, at most for the block timeout, and passes the event on. Returns whether the subscription goes on.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the event is lost, as an item of the subscriber's stream.
    pub async fn wait(mut self) -> bool {
        let Some(room) = &self.line.room else { return true };
        match timeout_at(self.until, room.places.acquire()).await {
            Ok(Ok(place)) => {
                place.forget();
                self.settled = true;
                !matches!(self.line.push(&self.event, self.expiry), Offer::Ended)
            }
            // Only the end of the subscription closes the places.
            Ok(Err(_closed)) => false,
            // The loss is noted where `self` is dropped.
            Err(_elapsed) => true,
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(room) = &self.line.room {
            room.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if !self.settled {
            self.line.lose();
        }
    }
}

impl Room {
    fn new(limit: Duration) -> Self {
        let places = Semaphore::new(Overflow::BLOCK_CAPACITY);
        Self { places, freed: AtomicUsize::new(0), waiting: AtomicUsize::new(0), limit }
    }

    /// Takes a place. When the subscription has ended it says so too: there is nothing to wait for.
    fn take_place(&self) -> bool {
        match self.places.try_acquire() {
            Ok(place) => place.forget(),
            Err(tokio::sync::TryAcquireError::NoPermits) => return false,
            Err(tokio::sync::TryAcquireError::Closed) => {}
        }
        true
    }

    fn free(&self, places: usize) {
        self.freed.fetch_add(places, Ordering::SeqCst);
        // Who begins to wait counts itself before it looks at `freed`, so one of the two sees the other.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.hand_over();
        }
    }

    fn hand_over(&self) {
        match self.freed.swap(0, Ordering::SeqCst) {
            0 => {}
            freed => self.places.add_permits(freed),
        }
    }
}

impl Line {
    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        let mut expired = 0;
        let mut state = self.lock();
        let taken = state.queue.take(Instant::now, &mut expired);
        if expired > 0 || matches!(taken, Taken::Signal(_)) {
            state.full_since = None;
        }
        if let Taken::Nothing = taken {
            match &mut state.reader {
                Some(waker) => waker.clone_from(cx.waker()),
                reader => *reader = Some(cx.waker().clone()),
            }
        }
        drop(state);
        if expired > 0 {
            self.counters.add_expired(expired as u64);
        }
        if let Some(room) = &self.room {
            match expired + usize::from(matches!(taken, Taken::Signal(Signal::Event(_)))) {
                0 => {}
                freed => room.free(freed),
            }
        }
        match taken {
            Taken::Signal(signal) => Poll::Ready(Some(signal)),
            Taken::Nothing => Poll::Pending,
            Taken::Ended => Poll::Ready(None),
        }
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.lock().queue.ended().cloned()
    }

    /// The subscriber is gone.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        state.queue.end(Ended::Closed);
        state.queue.clear();
        drop(state);
        self.release();
    }

    fn push(&self, event: &Event, expiry: Expiry) -> Offer {
        let mut state = self.lock();
        let offered = state.queue.offer(event, expiry);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        match offered {
            Offered::Queued => Offer::Passed,
            Offered::Dropped => {
                self.counters.add_lagged(1);
                Offer::Passed
            }
            Offered::Ended => {
                self.release();
                Offer::Ended
            }
        }
    }

    /// The offer of an event for which there was no place at first sight.
    fn offer_blocked(self: &Arc<Self>, room: &Room, event: &Event, expiry: Expiry) -> Offer {
        room.waiting.fetch_add(1, Ordering::SeqCst);
        let now = Instant::now();
        let until = later(now, room.limit);
        let mut blocked =
            Blocked { line: Arc::clone(self), event: event.clone(), expiry, until, settled: false };
        room.hand_over();
        if room.take_place() {
            blocked.settled = true;
            return self.push(event, expiry);
        }
        let mut state = self.lock();
        let full_since = *state.full_since.get_or_insert(now);
        drop(state);
        // Given up here, it is dropped, which notes the loss.
        if now.saturating_duration_since(full_since) >= room.limit {
            Offer::Passed
        } else {
            Offer::Blocked(blocked)
        }
    }

    fn lose(&self) {
        let mut state = self.lock();
        if state.queue.ended().is_some() {
            return;
        }
        state.queue.lose();
        let reader = state.reader.take();
        drop(state);
        self.counters.add_lagged(1);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let mut state = self.lock();
        change(&mut state.queue);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Lets go of whoever waits for the subscriber.
    fn release(&self) {
        if let Some(room) = &self.room {
            room.places.close();
        }
        self.gone.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half way, so what a poisoned one guards is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
