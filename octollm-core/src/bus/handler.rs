//! Working events off.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{Arrival, BusError, Consumer, Delivery, Gap, Nack};
use crate::event::Event;

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
