//! An event that has to be settled.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::engine::ConsumerEngine;
use super::{BusError, Gap};
use crate::error::ConfigError;
use crate::event::Event;

/// One delivery of an event to one consumer, which holds a lease on the event.
///
/// It is settled once, by [`ack`](Self::ack), [`nack`](Self::nack) or [`release`](Self::release). If it is dropped, the
/// event is delivered again when the lease expires, as the next attempt.
///
/// ```compile_fail,E0382
/// # use octollm_core::bus::{BusError, Delivery};
/// async fn settle_twice(delivery: Delivery) -> Result<(), BusError> {
///     delivery.ack().await?;
///     delivery.ack().await
/// }
/// ```
#[must_use = "the event of a dropped delivery is delivered again when the lease expires"]
pub struct Delivery {
    event: Event,
    attempt: u32,
    lease_time: Duration,
    lease: Arc<dyn Lease>,
}

/// What happens to an event that was not handled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nack {
    /// The event is delivered again. After the last attempt it becomes a dead letter.
    Retry {
        /// Delay before the next delivery. `None` is the backoff of the [`ConsumeOptions`](super::ConsumeOptions).
        ///
        /// A bus without [`Capability::DelayedNack`](super::Capability::DelayedNack) returns
        /// [`BusError::Unsupported`] for a delay, and retries at once without one.
        after: Option<Duration>,
    },
    /// The event is delivered again at once, and this attempt does not count. For an event that was not begun.
    Release,
    /// The event is not delivered again.
    Drop,
    /// The event becomes a dead letter.
    DeadLetter {
        /// Reason for the reader of the dead letters.
        reason: String,
    },
}

impl Nack {
    /// Retries after the backoff of the consumer.
    pub fn retry() -> Self {
        Self::Retry { after: None }
    }

    /// Retries after a delay.
    pub fn retry_after(delay: Duration) -> Self {
        Self::Retry { after: Some(delay) }
    }

    /// Makes the event a dead letter.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter { reason: reason.into() }
    }
}

impl Delivery {
    /// Returns the event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Returns the number of this delivery among those of the event to the group, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the duration of the lease.
    pub fn lease_time(&self) -> Duration {
        self.lease_time
    }

    /// Acknowledges the event, which is not delivered again. After the lease has expired, this is possible until the
    /// event goes to another consumer.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when another consumer has or had the event, and [`BusError::Unavailable`]. The event may
    /// be delivered again.
    ///
    /// # Cancel safety
    /// If the future is dropped, the delivery may or may not be settled.
    pub async fn ack(self) -> Result<(), BusError> {
        self.lease.settle(Ok(())).await
    }

    /// Acknowledges several events concurrently. Returns a result for each delivery, by index. A bus that settles in
    /// batches receives them together.
    ///
    /// # Errors
    /// For each delivery as [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// If the future is dropped, each delivery may or may not be settled.
    pub async fn ack_all(deliveries: impl IntoIterator<Item = Self>) -> Vec<Result<(), BusError>> {
        join_all(deliveries.into_iter().map(Self::ack)).await
    }

    /// Refuses the event.
    ///
    /// # Errors
    /// As [`ack`](Self::ack), and [`BusError::Unsupported`] for a delay on a bus without delayed nacks. After that the
    /// event is delivered again when the lease expires.
    ///
    /// # Cancel safety
    /// If the future is dropped, the delivery may or may not be settled.
    pub async fn nack(self, nack: Nack) -> Result<(), BusError> {
        self.lease.settle(Err(nack)).await
    }

    /// Returns the event to the group without counting this attempt. For an event that was not begun.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    ///
    /// # Cancel safety
    /// If the future is dropped, the delivery may or may not be settled.
    pub async fn release(self) -> Result<(), BusError> {
        self.nack(Nack::Release).await
    }

    /// Extends the lease to `time` from now on. A lease that has expired is renewed if no other consumer has received
    /// the event and this consumer has room for another delivery.
    ///
    /// # Errors
    /// [`BusError::LeaseLost`] when the lease cannot be renewed, [`BusError::Unsupported`] on a bus without lease
    /// extension, and [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the lease may or may not be extended.
    pub async fn extend(&self, time: Duration) -> Result<(), BusError> {
        self.lease.extend(time).await
    }

    pub(super) fn lease(&self) -> Arc<dyn Lease> {
        Arc::clone(&self.lease)
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

/// The lease of one delivery.
#[async_trait]
pub(super) trait Lease: Send + Sync {
    async fn settle(&self, outcome: Result<(), Nack>) -> Result<(), BusError>;
    async fn extend(&self, time: Duration) -> Result<(), BusError>;
}

/// A [`ConsumerEngine`] of any type.
#[async_trait]
pub(super) trait Source: Send + Sync {
    async fn next(&self) -> Result<Result<Delivery, Gap>, BusError>;
    async fn close(&self) -> Result<(), BusError>;
}

/// Makes deliveries of what an engine returns.
pub(super) struct EngineSource<E: ConsumerEngine> {
    engine: Arc<E>,
    lease_time: Duration,
    batches: Option<mpsc::UnboundedSender<Request<E::Receipt>>>,
}

impl<E: ConsumerEngine> EngineSource<E> {
    pub(super) fn new(engine: E, lease_time: Duration) -> Self {
        Self { engine: Arc::new(engine), lease_time, batches: None }
    }

    pub(super) fn batched(engine: E, lease_time: Duration, max_batch: usize) -> Result<Self, BusError> {
        if max_batch == 0 {
            return Err(ConfigError::new("max_batch", "is 0").into());
        }
        let runtime = Handle::try_current().map_err(BusError::unavailable)?;
        let (batches, requests) = mpsc::unbounded_channel();
        let engine = Arc::new(engine);
        runtime.spawn(send_batches(Arc::clone(&engine), requests, max_batch));
        Ok(Self { engine, lease_time, batches: Some(batches) })
    }
}

#[async_trait]
impl<E: ConsumerEngine> Source for EngineSource<E> {
    async fn next(&self) -> Result<Result<Delivery, Gap>, BusError> {
        let (event, attempt, receipt) = match self.engine.next().await? {
            Ok(next) => next,
            Err(gap) => return Ok(Err(gap.truncated())),
        };
        let lease: Arc<dyn Lease> = match &self.batches {
            None => Arc::new(DirectLease { engine: Arc::clone(&self.engine), receipt }),
            Some(batches) => Arc::new(BatchedLease { batches: batches.clone(), receipt }),
        };
        Ok(Ok(Delivery { event, attempt, lease_time: self.lease_time, lease }))
    }

    async fn close(&self) -> Result<(), BusError> {
        self.engine.close().await
    }
}

impl<E: ConsumerEngine> Drop for EngineSource<E> {
    fn drop(&mut self) {
        self.engine.leave();
    }
}

struct DirectLease<E: ConsumerEngine> {
    engine: Arc<E>,
    receipt: E::Receipt,
}

#[async_trait]
impl<E: ConsumerEngine> Lease for DirectLease<E> {
    async fn settle(&self, outcome: Result<(), Nack>) -> Result<(), BusError> {
        only(self.engine.settle(vec![(self.receipt.clone(), outcome)]).await)
    }

    async fn extend(&self, time: Duration) -> Result<(), BusError> {
        only(self.engine.extend(vec![(self.receipt.clone(), time)]).await)
    }
}

/// The result for the only item of a batch.
fn only(results: Vec<Result<(), BusError>>) -> Result<(), BusError> {
    results.into_iter().next().unwrap_or(Err(BusError::Unavailable { source: None }))
}

struct BatchedLease<R> {
    /// Bounded by the deliveries: each waits for at most one request of each kind.
    batches: mpsc::UnboundedSender<Request<R>>,
    receipt: R,
}

enum Request<R> {
    Settle(R, Result<(), Nack>, Reply),
    Extend(R, Duration, Reply),
}

type Reply = oneshot::Sender<Result<(), BusError>>;

impl<R> BatchedLease<R> {
    async fn request(&self, request: impl FnOnce(Reply) -> Request<R>) -> Result<(), BusError> {
        let (reply, result) = oneshot::channel();
        if self.batches.send(request(reply)).is_err() {
            return Err(BusError::Unavailable { source: None });
        }
        result.await.unwrap_or(Err(BusError::Unavailable { source: None }))
    }
}

#[async_trait]
impl<R: Clone + Send + Sync + 'static> Lease for BatchedLease<R> {
    async fn settle(&self, outcome: Result<(), Nack>) -> Result<(), BusError> {
        self.request(|reply| Request::Settle(self.receipt.clone(), outcome, reply)).await
    }

    async fn extend(&self, time: Duration) -> Result<(), BusError> {
        self.request(|reply| Request::Extend(self.receipt.clone(), time, reply)).await
    }
}

/// Ends when the consumer and its deliveries are dropped.
async fn send_batches<E: ConsumerEngine>(
    engine: Arc<E>,
    mut requests: mpsc::UnboundedReceiver<Request<E::Receipt>>,
    max_batch: usize,
) {
    let mut batch = Vec::new();
    while requests.recv_many(&mut batch, max_batch).await > 0 {
        let (mut outcomes, mut settled) = (Vec::new(), Vec::new());
        let (mut extensions, mut extended) = (Vec::new(), Vec::new());
        for request in batch.drain(..) {
            match request {
                Request::Settle(receipt, outcome, reply) => {
                    outcomes.push((receipt, outcome));
                    settled.push(reply);
                }
                Request::Extend(receipt, time, reply) => {
                    extensions.push((receipt, time));
                    extended.push(reply);
                }
            }
        }
        // An extension was requested before the settlement of the same delivery, which consumes the delivery.
        if !extensions.is_empty() {
            reply_to(extended, engine.extend(extensions).await);
        }
        if !outcomes.is_empty() {
            reply_to(settled, engine.settle(outcomes).await);
        }
    }
}

fn reply_to(replies: Vec<Reply>, results: Vec<Result<(), BusError>>) {
    for (reply, result) in replies.into_iter().zip(results) {
        // The caller may have given up.
        let _ = reply.send(result);
    }
}
