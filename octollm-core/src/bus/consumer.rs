//! The consumers of a group, and the deliveries that they settle.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::engine::{BatchedLease, ConsumerEngine, Request, batches};
use super::{BusError, Gap};
use crate::event::Event;

/// Receives the events of a group. At most [`max_in_flight`](super::ConsumeOptions::max_in_flight) deliveries are unsettled at
/// a time.
///
/// Dropping the consumer leaves the group. Its deliveries can still be settled; otherwise their events go to another
/// consumer when the leases expire.
#[must_use = "a consumer that is dropped leaves its group"]
pub struct Consumer {
    source: Box<dyn Source>,
    ended: Option<BusError>,
}

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
    pub(super) event: Event,
    pub(super) attempt: u32,
    pub(super) lease_time: Duration,
    pub(super) lease: Arc<dyn Lease>,
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
        /// Reason for the reader of the dead letters, if the event becomes one:
        /// [`DeadLetter::history`](super::DeadLetter::history).
        reason: Option<String>,
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

impl Consumer {
    /// Creates the consumer of an engine, which settles each delivery in a call of its own. For the author of a bus.
    pub fn new(engine: impl ConsumerEngine, lease: Duration) -> Self {
        Self { source: Box::new(EngineSource::new(engine, lease)), ended: None }
    }

    /// Creates the consumer of an engine, which settles at most `max_batch` deliveries in one call. For the author of a
    /// bus.
    ///
    /// Deliveries that are settled during a call are settled together by the next one. A single delivery does not wait
    /// for others.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when `max_batch` is 0, [`BusError::Unavailable`] outside a tokio runtime.
    pub fn batched(engine: impl ConsumerEngine, lease: Duration, max_batch: usize) -> Result<Self, BusError> {
        let source = EngineSource::batched(engine, lease, max_batch)?;
        Ok(Self { source: Box::new(source), ended: None })
    }

    /// Waits for the next delivery. An `Err` is a point at which events may be missing. Returns `None` once the
    /// consumer has ended.
    ///
    /// # Cancel safety
    /// If the future is dropped, no delivery is lost.
    pub async fn next(&mut self) -> Option<Result<Delivery, Gap>> {
        if self.ended.is_some() {
            return None;
        }
        match self.source.next().await {
            Ok(next) => Some(next),
            Err(reason) => {
                self.ended = Some(reason);
                None
            }
        }
    }

    /// Returns the name of the consumer, unique in its bus, by which [dead letters](super::FailedAttempt::consumer) have it.
    pub fn name(&self) -> String {
        self.source.name()
    }

    /// Returns why the consumer has ended, once [`next`](Self::next) has returned `None` or it was closed.
    pub fn ended(&self) -> Option<&BusError> {
        self.ended.as_ref()
    }

    /// Ends the consumer, and waits until its deliveries are settled or their leases have expired. Events that were not
    /// delivered go to other consumers. Closing twice is `Ok`.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the consumer has ended. The method can be called again to wait.
    pub async fn close(&mut self) -> Result<(), BusError> {
        self.ended.get_or_insert(BusError::Closed);
        self.source.close().await
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Nack {
    /// Retries after the backoff of the consumer.
    pub fn retry() -> Self {
        Self::Retry { after: None, reason: None }
    }

    /// Retries after a delay.
    pub fn retry_after(delay: Duration) -> Self {
        Self::Retry { after: Some(delay), reason: None }
    }

    /// Sets the reason of a retry or of a dead letter. It has no effect on the others.
    #[must_use]
    pub fn with_reason(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Retry { reason, .. } => *reason = Some(text.into()),
            Self::DeadLetter { reason } => *reason = text.into(),
            Self::Release | Self::Drop => {}
        }
        self
    }

    /// Returns the reason of a retry or of a dead letter.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Retry { reason, .. } => reason.as_deref(),
            Self::DeadLetter { reason } => Some(reason),
            Self::Release | Self::Drop => None,
        }
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
trait Source: Send + Sync {
    async fn next(&self) -> Result<Result<Delivery, Gap>, BusError>;
    async fn close(&self) -> Result<(), BusError>;
    fn name(&self) -> String;
}

/// Makes deliveries of what an engine returns.
struct EngineSource<E: ConsumerEngine> {
    engine: Arc<E>,
    lease_time: Duration,
    batches: Option<mpsc::UnboundedSender<Request<E::Receipt>>>,
}

impl<E: ConsumerEngine> EngineSource<E> {
    fn new(engine: E, lease_time: Duration) -> Self {
        Self { engine: Arc::new(engine), lease_time, batches: None }
    }

    fn batched(engine: E, lease_time: Duration, max_batch: usize) -> Result<Self, BusError> {
        let engine = Arc::new(engine);
        let batches = batches(&engine, max_batch)?;
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
            Some(batches) => Arc::new(BatchedLease::new(batches.clone(), receipt)),
        };
        Ok(Ok(Delivery { event, attempt, lease_time: self.lease_time, lease }))
    }

    async fn close(&self) -> Result<(), BusError> {
        self.engine.close().await
    }

    fn name(&self) -> String {
        self.engine.name()
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
