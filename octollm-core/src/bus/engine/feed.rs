//! The end of a subscription that a bus holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Counters;
use super::queue::{Expiry, Offered, Queue, Taken};
use crate::bus::{BusError, Ended, Gap, Overflow, Signal, Subscription};
use crate::event::Event;

/// Feeds one [`Subscription`]. Buses are built on it, and so overflow the same way everywhere.
///
/// Dropping it ends the subscription with [`Ended::Closed`], after what waits was delivered.
#[derive(Debug)]
pub struct Feed {
    line: Arc<Line>,
}

/// What the two ends share.
#[derive(Debug)]
pub(in crate::bus) struct Line {
    state: Mutex<State>,
    /// Told once for each event taken out, and at the end.
    room: Notify,
    /// Told when there is nobody to feed any more.
    gone: Notify,
    blocks: bool,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    reader: Option<Waker>,
    abandoned: bool,
}

impl Feed {
    /// A subscription and what feeds it. What is withheld is counted in `counters`.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when the overflow has room for no event.
    pub fn new(overflow: Overflow, counters: Arc<Counters>) -> Result<(Self, Subscription), BusError> {
        overflow.validate()?;
        let line = Arc::new(Line {
            state: Mutex::new(State { queue: Queue::new(overflow), reader: None, abandoned: false }),
            room: Notify::new(),
            gone: Notify::new(),
            blocks: overflow == Overflow::Block,
            counters,
        });
        Ok((Self { line: Arc::clone(&line) }, Subscription::new(line)))
    }

    /// Passes an event on. Waits for room under [`Overflow::Block`] alone. `false` when nobody hears it any more.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the event was not passed on.
    pub async fn send(&self, event: &Arc<Event>) -> bool {
        self.send_until(event, Expiry::of(event.expires_at())).await
    }

    /// Says that something may be missing here.
    pub fn gap(&self, gap: Gap) {
        self.line.change(|queue| queue.mark(gap));
    }

    /// Ends the subscription after what waits was delivered. Once ended it stays as it ended.
    pub fn end(&self, reason: Ended) {
        self.line.change(|queue| queue.end(reason));
        self.line.tell_end();
    }

    /// Whether there is nobody to feed any more.
    pub fn is_closed(&self) -> bool {
        let state = self.line.lock();
        state.abandoned || state.queue.ended().is_some()
    }

    /// Waits until there is nobody to feed any more.
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

    pub(in crate::bus) async fn send_until(&self, event: &Arc<Event>, expiry: Expiry) -> bool {
        loop {
            // Made before the look at the queue, or the room made in between would be missed.
            let room = self.line.blocks.then(|| self.line.room.notified());
            match self.line.offer(event, expiry) {
                Offered::Queued | Offered::Dropped => return true,
                Offered::Ended => return false,
                Offered::Full => {}
            }
            if let Some(room) = room {
                room.await;
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end(Ended::Closed);
    }
}

impl Line {
    pub(in crate::bus) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        let mut expired = 0;
        let mut state = self.lock();
        let taken = state.queue.take(Instant::now, &mut expired);
        if let (Taken::Nothing, reader) = (&taken, &mut state.reader) {
            match reader {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *reader = Some(cx.waker().clone()),
            }
        }
        drop(state);
        if expired > 0 {
            self.counters.add_expired(expired);
        }
        if self.blocks {
            let freed = expired + u64::from(matches!(taken, Taken::Signal(Signal::Event(_))));
            (0..freed).for_each(|_| self.room.notify_one());
        }
        match taken {
            Taken::Signal(signal) => Poll::Ready(Some(signal)),
            Taken::Nothing => Poll::Pending,
            Taken::Ended => Poll::Ready(None),
        }
    }

    pub(in crate::bus) fn ended(&self) -> Option<Ended> {
        self.lock().queue.ended().cloned()
    }

    /// The listener is gone.
    pub(in crate::bus) fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        state.queue.end(Ended::Closed);
        state.queue.clear();
        drop(state);
        self.tell_end();
    }

    fn offer(&self, event: &Arc<Event>, expiry: Expiry) -> Offered {
        let mut state = self.lock();
        let offered = state.queue.offer(event, expiry);
        let reader = if offered == Offered::Full { None } else { state.reader.take() };
        drop(state);
        match offered {
            Offered::Dropped => self.counters.add_lagged(1),
            Offered::Ended => self.tell_end(),
            Offered::Queued | Offered::Full => {}
        }
        if let Some(reader) = reader {
            reader.wake();
        }
        offered
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

    fn tell_end(&self) {
        self.room.notify_waiters();
        self.gone.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half way, so what a poisoned one guards is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::bus::GapReason;

    fn pair(overflow: Overflow) -> (Feed, Subscription) {
        Feed::new(overflow, Arc::default()).unwrap()
    }

    fn event() -> Arc<Event> {
        Arc::new(Event::new("a.b", "s", 0).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_heard_where_it_was_told() {
        let (feed, mut subscription) = pair(Overflow::DropOldest(4));
        assert!(feed.send(&event()).await);
        feed.gap(Gap::new(GapReason::ConnectionLost));
        assert!(feed.send(&event()).await);
        assert!(matches!(subscription.next().await, Some(Signal::Event(_))));
        assert!(matches!(
            subscription.next().await,
            Some(Signal::Gap(Gap { reason: GapReason::ConnectionLost, .. }))
        ));
        assert!(matches!(subscription.next().await, Some(Signal::Event(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_ends_it_after_what_waits_and_stays_its_reason() {
        let (feed, mut subscription) = pair(Overflow::DropOldest(4));
        feed.send(&event()).await;
        feed.end(Ended::Failed(Arc::new(BusError::Closed)));
        assert!(!feed.send(&event()).await);
        drop(feed);
        assert!(matches!(subscription.next().await, Some(Signal::Event(_))));
        assert!(subscription.next().await.is_none());
        assert!(matches!(subscription.ended(), Some(Ended::Failed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_feeds_hears_that_the_listener_went() {
        let (feed, subscription) = pair(Overflow::DropOldest(4));
        assert!(feed.closed().now_or_never().is_none());
        let (_, ()) = tokio::join!(feed.closed(), async { drop(subscription) });
        assert!(feed.is_closed());
        assert!(!feed.send(&event()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_publisher_that_waits_goes_on_when_the_subscription_ends() {
        let (feed, subscription) = pair(Overflow::Block);
        let event = event();
        for _ in 0..Overflow::BLOCK_CAPACITY {
            assert!(feed.send(&event).now_or_never().is_some());
        }
        let (sent, ()) = tokio::join!(feed.send(&event), async { drop(subscription) });
        assert!(!sent);
    }
}
