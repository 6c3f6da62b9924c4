//! The loop that handles the events of a consumer.

use std::collections::HashMap;
use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::consumer::Lease;
use super::{BusError, Consumer, Delivery, Gap, Nack};
use crate::event::Event;
use crate::panics::{Panicked, caught};

/// Handles the events of a [`Consumer`] that [`run`](Consumer::run)s.
#[async_trait]
pub trait EventHandler: Send + Sync + 'static {
    /// Handles an event. `Ok` acknowledges it; a panic is [`Nack::retry`] with the reason `the handler panicked`.
    ///
    /// The lease is extended while the method runs, in a separate task: also while it blocks its thread, if the runtime
    /// has another one. If all threads are blocked until the lease expires, and this consumer receives the event again,
    /// the running handler continues under the new lease. If the event goes to another consumer, the future is dropped.
    ///
    /// # Errors
    /// What happens to an event that was not handled.
    ///
    /// # Cancel safety
    /// The future is dropped when the lease is lost or [`Consumer::run`] is dropped, and the event is delivered again.
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack>;

    /// Handles a point at which events may be missing. The next event is received after that.
    ///
    /// # Cancel safety
    /// The future is dropped when [`Consumer::run`] is dropped.
    async fn gap(&self, gap: Gap);
}

#[async_trait]
impl<H: EventHandler + ?Sized> EventHandler for Arc<H> {
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack> {
        (**self).handle(event, attempt).await
    }

    async fn gap(&self, gap: Gap) {
        (**self).gap(gap).await;
    }
}

impl Consumer {
    /// Handles the events until the consumer ends, at most [`max_in_flight`](super::ConsumeOptions::max_in_flight) at a time,
    /// and settles them by the result of `handler`. Returns why the consumer has ended, once the running handlers have
    /// finished.
    ///
    /// # Cancel safety
    /// If the future is dropped, the running handlers are dropped too, and their events are delivered again when the
    /// leases expire. Use [`run_until`](Self::run_until) to let them finish.
    pub async fn run(self, handler: impl EventHandler) -> BusError {
        // `pending` never completes, so an `Ok` does not occur.
        self.run_until(handler, pending()).await.err().unwrap_or(BusError::Closed)
    }

    /// Handles the events as [`run`](Self::run) does, until `shutdown` completes. After that it [`close`](Self::close)s
    /// the consumer and returns once the running handlers have finished.
    ///
    /// # Errors
    /// The reason why the consumer ended before `shutdown` completed, and [`BusError::Unavailable`] when it could not
    /// be closed.
    ///
    /// # Cancel safety
    /// If the future is dropped, the running handlers are dropped too, and their events are delivered again when the
    /// leases expire.
    pub async fn run_until(
        self,
        handler: impl EventHandler,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), BusError> {
        self.run_with(None, handler, shutdown).await
    }

    /// Handles the events as [`run_until`](Self::run_until) does, each of them with a permit that consumers share. Without a free
    /// permit no event is taken, so that other workers receive it.
    pub(crate) async fn run_with(
        mut self,
        permits: Option<Arc<Semaphore>>,
        handler: impl EventHandler,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), BusError> {
        let handler = Arc::new(handler);
        let mut shutdown = pin!(shutdown);
        let (mut running, mut in_progress) = (JoinSet::new(), HashMap::<String, Arc<InProgress>>::new());
        let mut tasks = HashMap::new();
        let result = loop {
            let next = tokio::select! {
                biased;
                () = &mut shutdown => break self.close().await,
                next = self.next_with(permits.as_deref()) => next,
            };
            while let Some(finished) = running.try_join_next_with_id() {
                // Also of a task that panicked: an event that is delivered again is handled again.
                let task = finished.map_or_else(|error| error.id(), |(task, ())| task);
                if let Some((id, event)) = tasks.remove(&task)
                    && in_progress.get(&id).is_some_and(|current| Arc::ptr_eq(current, &event))
                {
                    in_progress.remove(&id);
                }
            }
            match next {
                // If every thread was blocked until the lease expired, the event is delivered again.
                Some(Ok(delivery))
                    if in_progress.get(delivery.event().id()).is_some_and(|event| event.renew(&delivery)) => {
                }
                // Bounded: a consumer returns no more deliveries than can be unsettled.
                Some(Ok(delivery)) => {
                    let Ok(permit) = permits.clone().map(Semaphore::try_acquire_owned).transpose() else {
                        // Another consumer was faster. What cannot be released is delivered again when its lease expires.
                        let _ = delivery.release().await;
                        continue;
                    };
                    let (id, event) =
                        (delivery.event().id().to_owned(), Arc::new(InProgress::new(&delivery)));
                    in_progress.insert(id.clone(), Arc::clone(&event));
                    // Spawned before the handler, which may block the thread.
                    let extender = LeaseExtender::spawn(Arc::clone(&event), delivery.lease_time());
                    let work = handle(delivery, Arc::clone(&event), Arc::clone(&handler), extender, permit);
                    tasks.insert(running.spawn(work).id(), (id, event));
                }
                Some(Err(gap)) => handler.gap(gap).await,
                None => break Err(self.ended().cloned().unwrap_or(BusError::Closed)),
            }
        };
        while running.join_next().await.is_some() {}
        result
    }

    /// Waits for a free permit, and then for the next delivery.
    async fn next_with(&mut self, permits: Option<&Semaphore>) -> Option<Result<Delivery, Gap>> {
        if let Some(permits) = permits {
            // It is closed by nobody.
            drop(permits.acquire().await);
        }
        self.next().await
    }
}

async fn handle(
    delivery: Delivery,
    event: Arc<InProgress>,
    handler: Arc<impl EventHandler>,
    mut extender: LeaseExtender,
    _permit: Option<OwnedSemaphorePermit>,
) {
    let event_id = delivery.event().id().to_owned();
    // Within a future of its own: a handler may also panic before it returns its future.
    let work = async { handler.handle(delivery.event().clone(), delivery.attempt()).await };
    let outcome = tokio::select! {
        biased;
        outcome = caught(work) => outcome,
        () = extender.lost() => {
            // Another consumer has it, unless it was delivered to this one in the meantime.
            let _ = event.settle(Err(Nack::Release)).await;
            return;
        }
    };
    drop(extender);
    let outcome = outcome.unwrap_or_else(|Panicked| Err(Nack::retry().with_reason("the handler panicked")));
    if let Err(error) = event.settle(outcome).await {
        // The event is delivered again.
        tracing::warn!(event_id, %error, "event not settled");
    }
}

/// An event that is being handled, with its latest lease.
struct InProgress(Mutex<LatestLease>);

struct LatestLease {
    attempt: u32,
    lease: Arc<dyn Lease>,
    /// Whether the event was settled. If it is delivered again after that, it is handled again.
    settled: bool,
}

impl InProgress {
    fn new(delivery: &Delivery) -> Self {
        Self(Mutex::new(LatestLease {
            attempt: delivery.attempt(),
            lease: Arc::clone(&delivery.lease),
            settled: false,
        }))
    }

    fn latest(&self) -> MutexGuard<'_, LatestLease> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> (u32, Arc<dyn Lease>) {
        let latest = self.latest();
        (latest.attempt, Arc::clone(&latest.lease))
    }

    /// Takes the lease of a later delivery of the same event while it is being handled. Returns whether it did.
    fn renew(&self, delivery: &Delivery) -> bool {
        let mut latest = self.latest();
        let renews = !latest.settled && delivery.attempt() > latest.attempt;
        if renews {
            (latest.attempt, latest.lease) = (delivery.attempt(), Arc::clone(&delivery.lease));
        }
        renews
    }

    /// Settles the event by its latest lease.
    async fn settle(&self, mut outcome: Result<(), Nack>) -> Result<(), BusError> {
        loop {
            let (attempt, lease) = self.lease();
            let result = lease.settle(outcome.clone()).await;
            let mut latest = self.latest();
            if latest.attempt == attempt {
                latest.settled = true;
                return result;
            }
            // It was delivered again before it was settled, or because it was to be retried.
            if result.is_ok() && outcome.is_err() {
                outcome = Err(Nack::Release);
            }
        }
    }
}

/// A task that extends a lease until this is dropped.
struct LeaseExtender(JoinHandle<()>);

impl LeaseExtender {
    fn spawn(event: Arc<InProgress>, lease_time: Duration) -> Self {
        Self(tokio::spawn(extend_until_lost(event, lease_time)))
    }

    /// Waits until the lease is lost.
    async fn lost(&mut self) {
        // If the bus panics, the state of the lease is not known.
        if (&mut self.0).await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Drop for LeaseExtender {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Extends the latest lease at each third of its duration. Returns once it is lost twice in a row: after the first time
/// the event may be delivered to this consumer again.
async fn extend_until_lost(event: Arc<InProgress>, lease_time: Duration) {
    let third = (lease_time / 3).max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now() + third, third);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lost = None;
    loop {
        ticks.tick().await;
        let (attempt, lease) = event.lease();
        match lease.extend(lease_time).await {
            Err(BusError::LeaseLost { .. }) if lost == Some(attempt) => return,
            Err(BusError::LeaseLost { .. }) => lost = Some(attempt),
            Err(BusError::Unsupported { .. }) => pending().await,
            // Other errors may pass before the lease expires.
            Ok(()) | Err(_) => {}
        }
    }
}
