//! The two ends of a subscription: the subscriber's, and the feed of the bus.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_core::Stream;
use futures_util::future::join_all;
use tokio::sync::{Notify, Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout_at};

use super::buffer::{Buffer, Taken};
use super::{BusError, Gap, Overflow, Signal};
use crate::deadline::later;
use crate::error::ConfigError;
use crate::event::{Event, Expiry};

/// A stream of [`Signal`]s in order. Dropping it ends the subscription.
#[derive(Debug)]
#[must_use = "a subscription that is dropped receives nothing"]
pub struct Subscription {
    shared: Arc<Shared>,
}

/// Feeds one [`Subscription`], and applies its [`Overflow`].
///
/// Dropping it ends the subscription with [`BusError::Closed`], after the waiting events.
#[derive(Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

impl Subscription {
    /// Waits for the next signal. Returns `None` once the subscription has ended and all waiting signals are received.
    ///
    /// # Cancel safety
    /// If the future is dropped, no signal is lost.
    pub async fn next(&mut self) -> Option<Signal> {
        poll_fn(|cx| self.poll_signal(cx)).await
    }

    /// Returns the number of events that had expired before they were received.
    pub fn expired(&self) -> u64 {
        self.shared.lock().expired
    }

    /// Returns why the subscription has ended, or `None` if it has not. Signals may still wait.
    pub fn ended(&self) -> Option<BusError> {
        self.shared.lock().buffer.ended().cloned()
    }

    fn poll_signal(&mut self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        // Without this, a subscriber that always finds an event would never yield to other tasks.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let signal = ready!(self.shared.poll_take(cx));
        budget.made_progress();
        Poll::Ready(signal)
    }
}

impl Stream for Subscription {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        self.poll_signal(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

/// Sends an event to each feed that has room, and then waits for those that block their publisher, concurrently.
/// Returns `false` if a subscription has ended.
///
/// # Cancel safety
/// All feeds with room receive the event before the first wait. If the future is dropped, the subscribers that were
/// waited for receive [`Signal::Lagged`].
pub async fn deliver<'a>(feeds: impl IntoIterator<Item = &'a Feed>, event: &Event) -> bool {
    deliver_until(feeds, event, Expiry::of(event)).await
}

pub(super) async fn deliver_until<'a>(
    feeds: impl IntoIterator<Item = &'a Feed>,
    event: &Event,
    expiry: Expiry,
) -> bool {
    let mut all_open = true;
    let mut blocked = Vec::new();
    for feed in feeds {
        match feed.offer(event, expiry) {
            Offer::Passed => {}
            Offer::Blocked(waiting) => blocked.push(waiting),
            Offer::Ended => all_open = false,
        }
    }
    if !blocked.is_empty() {
        all_open &= join_all(blocked.into_iter().map(Blocked::wait)).await.into_iter().all(|open| open);
    }
    all_open
}

impl Feed {
    /// Creates a subscription and its feed. Under [`Overflow::Block`] a publisher waits for at most `block_timeout`.
    ///
    /// # Errors
    /// [`ConfigError`] when the capacity of `overflow` is 0.
    pub fn new(overflow: Overflow, block_timeout: Duration) -> Result<(Self, Subscription), ConfigError> {
        if overflow.capacity() == 0 {
            return Err(ConfigError::new("overflow", "has room for no event"));
        }
        let state = State { buffer: Buffer::new(overflow), expired: 0, reader: None, full_since: None };
        let slots = (overflow == Overflow::Block).then(|| Slots::new(block_timeout));
        let shared = Arc::new(Shared { state: Mutex::new(state), slots, ended: Notify::new() });
        Ok((Self { shared: Arc::clone(&shared) }, Subscription { shared }))
    }

    /// Sends an event. Under [`Overflow::Block`] it waits for room. Returns `false` if the subscription has ended. A
    /// bus that has several subscriptions uses [`deliver`].
    ///
    /// # Cancel safety
    /// If the future is dropped while it waits, the subscriber receives [`Signal::Lagged`].
    pub async fn send(&self, event: &Event) -> bool {
        deliver([self], event).await
    }

    /// Marks that events may be missing at this point.
    pub fn gap(&self, gap: Gap) {
        self.shared.change(|buffer| buffer.mark(gap.truncated()));
    }

    /// Marks that exactly this number of events is missing at this point.
    pub fn lagged(&self, events: u64) {
        self.shared.change(|buffer| buffer.lose_all(events));
    }

    /// Ends the subscription after the waiting events. Only the first call has an effect.
    pub fn end(&self, reason: BusError) {
        self.shared.change(|buffer| buffer.end(reason));
        self.shared.release();
    }

    /// Returns whether the subscription has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().buffer.ended().is_some()
    }

    /// Waits until the subscription has ended.
    ///
    /// # Cancel safety
    /// The call only waits.
    pub async fn closed(&self) {
        loop {
            let ended = self.shared.ended.notified();
            if self.is_closed() {
                return;
            }
            ended.await;
        }
    }

    fn offer(&self, event: &Event, expiry: Expiry) -> Offer {
        match &self.shared.slots {
            Some(slots) if !slots.try_take() => self.shared.offer_blocked(slots, event, expiry),
            _ => self.shared.push(event, expiry),
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end(BusError::Closed);
    }
}

#[derive(Debug)]
enum Offer {
    /// The event or its loss is in the buffer.
    Passed,
    /// The publisher has to wait for room.
    Blocked(Blocked),
    Ended,
}

/// An event that waits for room. If it is dropped before, the loss is recorded.
#[derive(Debug)]
struct Blocked {
    shared: Arc<Shared>,
    event: Event,
    expiry: Expiry,
    until: Instant,
    settled: bool,
}

impl Blocked {
    /// Waits until there is room or the block timeout has passed. Returns `false` if the subscription has ended.
    async fn wait(mut self) -> bool {
        let Some(slots) = &self.shared.slots else { return true };
        match timeout_at(self.until, slots.free.acquire()).await {
            Ok(Ok(slot)) => {
                slot.forget();
                self.settled = true;
                !matches!(self.shared.push(&self.event, self.expiry), Offer::Ended)
            }
            // The semaphore is closed only when the subscription ends.
            Ok(Err(_closed)) => false,
            // Dropping `self` records the loss.
            Err(_elapsed) => true,
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(slots) = &self.shared.slots {
            slots.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if !self.settled {
            self.shared.change(Buffer::lose);
        }
    }
}

/// The free room of a subscription under [`Overflow::Block`], which publishers receive in order.
#[derive(Debug)]
struct Slots {
    free: Semaphore,
    /// Slots that became free and are not in `free` yet. They are added at once when a publisher needs one.
    returned: AtomicUsize,
    /// Number of publishers that wait.
    waiting: AtomicUsize,
    timeout: Duration,
}

impl Slots {
    fn new(timeout: Duration) -> Self {
        let free = Semaphore::new(Overflow::BLOCK_CAPACITY);
        Self { free, returned: AtomicUsize::new(0), waiting: AtomicUsize::new(0), timeout }
    }

    /// Takes a slot. Returns `true` also when the subscription has ended, where nobody waits.
    fn try_take(&self) -> bool {
        match self.free.try_acquire() {
            Ok(slot) => slot.forget(),
            Err(TryAcquireError::NoPermits) => return false,
            Err(TryAcquireError::Closed) => {}
        }
        true
    }

    fn give_back(&self, slots: usize) {
        self.returned.fetch_add(slots, Ordering::SeqCst);
        // A publisher increments `waiting` before it reads `returned`, so one of the two sees the other.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.hand_over();
        }
    }

    fn hand_over(&self) {
        match self.returned.swap(0, Ordering::SeqCst) {
            0 => {}
            slots => self.free.add_permits(slots),
        }
    }
}

/// The state shared by a [`Feed`] and its [`Subscription`].
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Present under [`Overflow::Block`].
    slots: Option<Slots>,
    /// Notified when the subscription ends.
    ended: Notify,
}

#[derive(Debug)]
struct State {
    buffer: Buffer,
    reader: Option<Waker>,
    /// Number of events that had expired before they were received.
    expired: u64,
    /// The time since which there has been no room and the subscriber has received nothing.
    full_since: Option<Instant>,
}

impl Shared {
    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        let mut expired = 0;
        let mut state = self.lock();
        let taken = state.buffer.take(Instant::now, &mut expired);
        if expired > 0 || matches!(taken, Taken::Signal(_)) {
            state.full_since = None;
        }
        if let Taken::Nothing = taken {
            match &mut state.reader {
                Some(waker) => waker.clone_from(cx.waker()),
                reader => *reader = Some(cx.waker().clone()),
            }
        }
        state.expired += expired as u64;
        drop(state);
        if let Some(slots) = &self.slots {
            match expired + usize::from(matches!(taken, Taken::Signal(Signal::Event(_)))) {
                0 => {}
                free => slots.give_back(free),
            }
        }
        match taken {
            Taken::Signal(signal) => Poll::Ready(Some(signal)),
            Taken::Nothing => Poll::Pending,
            Taken::Ended => Poll::Ready(None),
        }
    }

    /// Ends the subscription because the subscriber dropped it.
    fn abandon(&self) {
        let mut state = self.lock();
        state.buffer.end(BusError::Closed);
        state.buffer.clear();
        drop(state);
        self.release();
    }

    fn push(&self, event: &Event, expiry: Expiry) -> Offer {
        if self.change(|buffer| buffer.offer(event, expiry)) {
            Offer::Passed
        } else {
            self.release();
            Offer::Ended
        }
    }

    /// Offers an event for which no slot was free.
    fn offer_blocked(self: &Arc<Self>, slots: &Slots, event: &Event, expiry: Expiry) -> Offer {
        slots.waiting.fetch_add(1, Ordering::SeqCst);
        let now = Instant::now();
        let until = later(now, slots.timeout);
        let mut blocked =
            Blocked { shared: Arc::clone(self), event: event.clone(), expiry, until, settled: false };
        slots.hand_over();
        if slots.try_take() {
            blocked.settled = true;
            return self.push(event, expiry);
        }
        let mut state = self.lock();
        let full_since = *state.full_since.get_or_insert(now);
        drop(state);
        // A subscriber that has received nothing for the timeout is not waited for: dropping `blocked` records the loss.
        if now.saturating_duration_since(full_since) >= slots.timeout {
            Offer::Passed
        } else {
            Offer::Blocked(blocked)
        }
    }

    /// Changes what waits, and wakes the subscriber.
    fn change<T>(&self, change: impl FnOnce(&mut Buffer) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.buffer);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        result
    }

    /// Releases the publishers that wait.
    fn release(&self) {
        if let Some(slots) = &self.slots {
            slots.free.close();
        }
        self.ended.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, so the state is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
