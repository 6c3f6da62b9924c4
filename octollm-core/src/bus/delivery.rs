//! An event that wants an answer, and working it off.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{Arrival, BusError, Consumer, Gap};
use crate::event::Event;

/// One delivery of an event to one consumer, which holds a lease on it.
///
/// It is settled once, by [`ack`](Self::ack), [`nack`](Self::nack) or [`release`](Self::release), all of which take it.
/// Dropped unsettled, its lease runs out and the event comes again, at attempt + 1.
///
/// ```compile_fail,E0382
/// # use octollm_core::bus::{BusError, Delivery};
/// async fn settle_twice(delivery: Delivery) -> Result<(), BusError> {
///     delivery.ack().await?;
///     delivery.ack().await
/// }
/// ```
#[must_use = "a delivery that is dropped comes again when its lease runs out"]
pub struct Delivery {
    event: Arc<Event>,
    attempt: u32,
    lease_time: Duration,
    lease: Box<dyn Lease>,
}

/// Why a delivery was not worked off, and what is to become of its event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nack {
    /// It comes again, unless that was its last attempt; then it is a dead letter.
    Retry {
        /// Not earlier than after this rest; `None` is the consumer's [`Backoff`](super::Backoff).
        after: Option<Duration>,
    },
    /// It never comes again.
    Drop,
    /// It is a dead letter at once, whatever its attempt.
    DeadLetter {
        /// Why, for whoever reads the dead letters.
        reason: String,
    },
}

/// What a consumer says to a delivery, as a bus hears it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// It was worked off.
    Ack,
    /// It was not.
    Nack(Nack),
    /// It was not begun: it comes again at once, and this attempt does not count.
    Release,
}

/// A consumer's hold on one delivery. Buses implement it; users settle through [`Delivery`].
#[async_trait]
pub trait Lease: Send + Sync {
    /// Ends the hold.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when it had run out, [`BusError::Unavailable`].
    async fn settle(&self, settlement: Settlement) -> Result<(), BusError>;

    /// Makes the hold last for `time` from now on.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    async fn extend(&self, time: Duration) -> Result<(), BusError>;
}

impl Nack {
    /// To come again after the consumer's backoff.
    pub fn retry() -> Self {
        Self::Retry { after: None }
    }

    /// To come again after a rest.
    pub fn retry_after(rest: Duration) -> Self {
        Self::Retry { after: Some(rest) }
    }

    /// To be a dead letter.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter { reason: reason.into() }
    }
}

impl Delivery {
    /// A delivery of `event` for the `attempt`th time, counted from 1, held for `lease_time`.
    pub fn new(event: Arc<Event>, attempt: u32, lease_time: Duration, lease: Box<dyn Lease>) -> Self {
        Self { event, attempt, lease_time, lease }
    }

    /// What is delivered.
    pub fn event(&self) -> &Arc<Event> {
        &self.event
    }

    /// The how manieth delivery of the event to this group it is, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How long the lease was when the delivery came.
    pub fn lease_time(&self) -> Duration {
        self.lease_time
    }

    /// Says that it was worked off: it never comes again.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when somebody else may have it by now, [`BusError::Unavailable`]. Either way it may come
    /// again.
    ///
    /// # Cancel safety
    /// Dropped before it is done, it may or may not be settled.
    pub async fn ack(self) -> Result<(), BusError> {
        self.lease.settle(Settlement::Ack).await
    }

    /// Says that it was not worked off, and what is to become of it.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn nack(self, nack: Nack) -> Result<(), BusError> {
        self.lease.settle(Settlement::Nack(nack)).await
    }

    /// Gives it back unbegun, for another consumer to have at once. This attempt does not count.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// As [`ack`](Self::ack).
    pub async fn release(self) -> Result<(), BusError> {
        self.lease.settle(Settlement::Release).await
    }

    /// Makes the lease last for `time` from now on, for work that takes longer.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when somebody else may have it by now, [`BusError::Unavailable`].
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

/// Works off what a [`Consumer`] takes, when it is [`run`](Consumer::run).
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Works one event off. `Ok` acknowledges it, and a panic is [`Nack::retry`].
    ///
    /// The lease is extended while it runs. Should it be lost all the same, the future is dropped: somebody else has the
    /// event by then.
    ///
    /// # Errors
    /// What is to become of an event that was not worked off.
    async fn handle(&self, event: Arc<Event>, attempt: u32) -> Result<(), Nack>;

    /// Hears that events are missing that will not come.
    async fn gap(&self, gap: Gap);
}

impl Consumer {
    /// Gives each delivery to `handler` and settles it by the outcome, as many at once as the consumer may hold. Returns
    /// when the consumer or its bus was closed and all that was begun is settled.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the handlers that run are dropped too, and their events come again when their leases
    /// run out. Close the consumer to end it gently.
    pub async fn run(mut self, handler: impl Handler) {
        let handler = Arc::new(handler);
        let mut running = JoinSet::new();
        while let Some(arrival) = self.next().await {
            match arrival {
                // A consumer hands out no more than may be unsettled, so no more than that run.
                Arrival::Delivery(delivery) => {
                    running.spawn(work_off(delivery, Arc::clone(&handler)));
                }
                Arrival::Gap(gap) => handler.gap(gap).await,
            }
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }
}

async fn work_off(delivery: Delivery, handler: Arc<impl Handler>) {
    let work = handler.handle(Arc::clone(delivery.event()), delivery.attempt());
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(work).catch_unwind() => outcome,
        () = keep(&delivery) => return,
    };
    let event_id = delivery.event().id().to_owned();
    let settled = match outcome {
        Ok(Ok(())) => delivery.ack().await,
        Ok(Err(nack)) => delivery.nack(nack).await,
        Err(_panic) => delivery.nack(Nack::retry()).await,
    };
    if let Err(error) = settled {
        // The event comes again; whoever works events off must be ready for that.
        tracing::warn!(event_id, %error, "an event could not be settled");
    }
}

/// Extends the lease at each third of it, and returns when it is lost.
async fn keep(delivery: &Delivery) {
    let third = (delivery.lease_time() / 3).max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now() + third, third);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Other failures may pass before the lease has run out.
        if let Err(BusError::LeaseLost { .. }) = delivery.extend(delivery.lease_time()).await {
            return;
        }
    }
}
