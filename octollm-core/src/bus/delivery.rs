//! An event that has to be settled, and the worker that settles events by the outcome of a handler.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::engine::Settlement;
use super::{Arrival, BusError, Consumer, Ended, Gap};
use crate::event::Event;

/// One delivery of an event to one consumer, which holds a lease on it.
///
/// It is settled once, by [`ack`](Self::ack), [`nack`](Self::nack) or [`release`](Self::release), all of which take it.
/// Dropped unsettled, its lease expires and the event comes again, at attempt + 1.
///
/// ```compile_fail,E0382
/// # use octollm_core::bus::{BusError, Delivery};
/// async fn settle_twice(delivery: Delivery) -> Result<(), BusError> {
///     delivery.ack().await?;
///     delivery.ack().await
/// }
/// ```
#[must_use = "a delivery that is dropped comes again when its lease expires"]
pub struct Delivery {
    event: Event,
    attempt: u32,
    lease_time: Duration,
    lease: Arc<dyn Lease>,
}

/// Why a delivery was not handled, and what becomes of its event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nack {
    /// It comes again, unless that was its last attempt; then it is a dead letter.
    Retry {
        /// Not earlier than after this delay; `None` is the consumer's [`Backoff`](super::Backoff). A delay is
        /// [`Unsupported`](BusError::Unsupported) by a bus that denies
        /// [`Capability::DelayedNack`](super::engine::Capability::DelayedNack); its retries come at once.
        after: Option<Duration>,
    },
    /// It never comes again.
    Drop,
    /// It is a dead letter at once, whatever its attempt.
    DeadLetter {
        /// Why, for the people who read the dead letters.
        reason: String,
    },
}

/// Handles what a [`Consumer`] receives, when it is [`run`](Consumer::run).
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Handles one event. `Ok` acknowledges it, and a panic is [`Nack::retry`].
    ///
    /// While it runs, a task of its own extends the lease, also when the handler blocks its thread, as long as the runtime
    /// has another thread. Where all threads are blocked and the lease expires, a consumer that receives the event again does
    /// not handle it twice at once. If the event has gone to another consumer all the same, the future is dropped.
    ///
    /// # Errors
    /// What becomes of an event that was not handled.
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack>;

    /// Called where events are missing that will not come.
    async fn gap(&self, gap: Gap);
}

/// One lease on its way back to the bus.
#[async_trait]
pub(super) trait Lease: Send + Sync {
    async fn settle(&self, settlement: Settlement) -> Result<(), BusError>;
    async fn extend(&self, time: Duration) -> Result<(), BusError>;
}

impl Nack {
    /// To come again after the consumer's backoff.
    pub fn retry() -> Self {
        Self::Retry { after: None }
    }

    /// To come again after a delay.
    pub fn retry_after(delay: Duration) -> Self {
        Self::Retry { after: Some(delay) }
    }

    /// To be a dead letter.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter { reason: reason.into() }
    }
}

impl Delivery {
    pub(super) fn new(event: Event, attempt: u32, lease_time: Duration, lease: Arc<dyn Lease>) -> Self {
        Self { event, attempt, lease_time, lease }
    }

    /// What is delivered.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Number of this delivery among those of the event to this group, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Duration of the lease when the delivery came.
    pub fn lease_time(&self) -> Duration {
        self.lease_time
    }

    /// Acknowledges it: the event was handled and never comes again. That also holds after the lease has expired, as long
    /// as the event has not gone to another consumer.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when another consumer has the event or has had it since, [`BusError::Unavailable`]. In both
    /// cases it may come again.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it may or may not be settled.
    pub async fn ack(self) -> Result<(), BusError> {
        self.lease.settle(Settlement::Ack).await
    }

    /// Acknowledges each, all at once, and returns a result for each at its index. A bus that settles in batches takes them
    /// together.
    ///
    /// # Errors
    /// Of each delivery, as [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// Dropped before it is done, each may or may not be settled.
    pub async fn ack_all(deliveries: impl IntoIterator<Item = Self>) -> Vec<Result<(), BusError>> {
        join_all(deliveries.into_iter().map(Self::ack)).await
    }

    /// Refuses it, and says what becomes of the event.
    ///
    /// # Errors
    /// As [`ack`](Self::ack), and [`BusError::Unsupported`] for a delay on a bus without delayed nacks; then the event comes
    /// again when the lease expires.
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn nack(self, nack: Nack) -> Result<(), BusError> {
        self.lease.settle(Settlement::Nack(nack)).await
    }

    /// Gives it back unbegun, for any consumer of the group to have at once. This attempt does not count.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn release(self) -> Result<(), BusError> {
        self.lease.settle(Settlement::Release).await
    }

    /// Makes the lease last for `time` from now on, for work that takes longer. A lease that has expired is renewed, as
    /// long as the event has not gone to another consumer and this one may hold another delivery.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when the lease cannot be renewed, [`BusError::Unsupported`] by a bus without lease extension,
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, it may or may not be extended.
    pub async fn extend(&self, time: Duration) -> Result<(), BusError> {
        self.lease.extend(time).await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("event", &self.event)
            .field("attempt", &self.attempt)
            .field("lease_time", &self.lease_time)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// Gives each delivery to `handler` and settles it by the outcome, as many at once as the consumer may hold. Returns
    /// why the consumer ended, once all that was begun is settled.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the handlers that run are dropped too, and their events come again when their leases
    /// expire. Close the consumer to let them finish.
    pub async fn run(mut self, handler: impl Handler) -> Ended {
        let handler = Arc::new(handler);
        let (mut running, mut held) = (JoinSet::new(), HashMap::<String, Arc<Held>>::new());
        while let Some(arrival) = self.next().await {
            match arrival {
                // Where every thread was blocked for longer than the lease, what is being handled comes again.
                Arrival::Delivery(delivery)
                    if held.get(delivery.event.id()).is_some_and(|held| held.adopt(&delivery)) => {}
                // A consumer hands out no more than may be unsettled, so no more than that run.
                Arrival::Delivery(delivery) => {
                    let own = Arc::new(Held::new(&delivery));
                    held.insert(delivery.event.id().to_owned(), Arc::clone(&own));
                    // Spawned first: a handler that blocks its thread would hold back what is spawned after it.
                    let keeper = Keeper::spawn(Arc::clone(&own), delivery.lease_time);
                    running.spawn(work_off(delivery, own, Arc::clone(&handler), keeper));
                }
                Arrival::Gap(gap) => handler.gap(gap).await,
            }
            while let Some(ended) = running.try_join_next() {
                if let Ok((id, own)) = ended
                    && held.get(&id).is_some_and(|held| Arc::ptr_eq(held, &own))
                {
                    held.remove(&id);
                }
            }
        }
        while running.join_next().await.is_some() {}
        self.ended().cloned().unwrap_or(Ended::Closed)
    }
}

async fn work_off(
    delivery: Delivery,
    held: Arc<Held>,
    handler: Arc<impl Handler>,
    mut keeper: Keeper,
) -> (String, Arc<Held>) {
    let (event_id, attempt) = (delivery.event.id().to_owned(), delivery.attempt);
    let work = handler.handle(delivery.event, attempt);
    let outcome = tokio::select! {
        biased;
        outcome = AssertUnwindSafe(work).catch_unwind() => outcome,
        () = keeper.lost() => {
            // Unless it has just come again, it is no longer this consumer's.
            let _ = held.settle(Settlement::Release).await;
            return (event_id, held);
        }
    };
    drop(keeper);
    let settlement = match outcome {
        Ok(Ok(())) => Settlement::Ack,
        Ok(Err(nack)) => Settlement::Nack(nack),
        Err(_panic) => Settlement::Nack(Nack::retry()),
    };
    if let Err(error) = held.settle(settlement).await {
        // The event comes again, which every handler has to be ready for.
        tracing::warn!(event_id, %error, "event not settled");
    }
    (event_id, held)
}

/// The latest lease on an event that is being handled.
struct Held(Mutex<Latest>);

struct Latest {
    attempt: u32,
    lease: Arc<dyn Lease>,
    /// The event is settled, or lost: when it comes again, it is handled again.
    ended: bool,
}

impl Held {
    fn new(delivery: &Delivery) -> Self {
        let (attempt, lease) = (delivery.attempt, Arc::clone(&delivery.lease));
        Self(Mutex::new(Latest { attempt, lease, ended: false }))
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> (u32, Arc<dyn Lease>) {
        let latest = self.latest();
        (latest.attempt, Arc::clone(&latest.lease))
    }

    /// Takes the lease of a later delivery of the same event, while that is being handled. Returns whether it did.
    fn adopt(&self, delivery: &Delivery) -> bool {
        let mut latest = self.latest();
        let adopts = !latest.ended && delivery.attempt > latest.attempt;
        if adopts {
            (latest.attempt, latest.lease) = (delivery.attempt, Arc::clone(&delivery.lease));
        }
        adopts
    }

    /// Settles the event by its latest lease.
    async fn settle(&self, mut settlement: Settlement) -> Result<(), BusError> {
        loop {
            let (attempt, lease) = self.lease();
            let settled = lease.settle(settlement.clone()).await;
            let mut latest = self.latest();
            if latest.attempt == attempt {
                latest.ended = true;
                return settled;
            }
            // It came again before it was settled, or, where it is to come again, because it was.
            if settled.is_ok() && settlement != Settlement::Ack {
                settlement = Settlement::Release;
            }
        }
    }
}

/// Extends a lease from a task of its own, until it is dropped.
struct Keeper(JoinHandle<()>);

impl Keeper {
    fn spawn(held: Arc<Held>, lease_time: Duration) -> Self {
        Self(tokio::spawn(extend_until_lost(held, lease_time)))
    }

    /// Waits until the lease is lost.
    async fn lost(&mut self) {
        // A bus that panics says nothing of the lease.
        if (&mut self.0).await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Extends the latest lease at each third of it, and returns once it is lost: when it is so twice in a row, since the event
/// may have come again to this consumer.
async fn extend_until_lost(held: Arc<Held>, lease_time: Duration) {
    let third = (lease_time / 3).max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now() + third, third);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lost = None;
    loop {
        ticks.tick().await;
        let (attempt, lease) = held.lease();
        match lease.extend(lease_time).await {
            Err(BusError::LeaseLost { .. }) if lost == Some(attempt) => return,
            Err(BusError::LeaseLost { .. }) => lost = Some(attempt),
            // Where no lease is extended, there is nothing to learn of its loss.
            Err(BusError::Unsupported { .. }) => pending().await,
            // Another failure may pass before the lease has expired.
            Ok(()) | Err(_) => {}
        }
    }
}
