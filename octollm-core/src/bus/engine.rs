//! The parts for the author of a bus. Users of a bus do not need them.
//!
//! | to | use |
//! |---|---|
//! | feed subscriptions, which overflow the same way on every bus | [`Feed`], [`deliver`] |
//! | deliver to a consumer, and settle its deliveries | [`ConsumerEngine`], [`Consumer::new`](super::Consumer::new), [`Consumer::batched`](super::Consumer::batched) |

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::consumer::{Lease, Source};
pub use super::subscription::{Feed, deliver};
use super::{BusError, Delivery, Gap, Nack};
use crate::error::ConfigError;
use crate::event::Event;

/// One member of a group, which a [`Consumer`](super::Consumer) drives.
#[async_trait]
pub trait ConsumerEngine: Send + Sync + 'static {
    /// Identifies one delivery, such as the id of a stream entry together with a token of this delivery.
    type Receipt: Clone + Send + Sync + 'static;

    /// Waits for the next event. Returns it with its attempt, counted from 1, and the receipt of this delivery. The
    /// inner error is a [`Gap`] at this point.
    ///
    /// No two calls run at the same time.
    ///
    /// # Errors
    /// The reason why the consumer has ended. The method is not called again.
    ///
    /// # Cancel safety
    /// Must be cancel safe: if the future is dropped, no event is lost and none is delivered.
    async fn next(&self) -> Result<Result<(Event, u32, Self::Receipt), Gap>, BusError>;

    /// Settles deliveries: `Ok` acknowledges. Returns a result for each item, in order.
    ///
    /// A delivery can be settled after its lease has expired, until its event goes to another consumer.
    ///
    /// # Errors
    /// For each item [`BusError::LeaseLost`] when another consumer has or had the event, or the event is a dead letter that
    /// the bus cannot take back; [`BusError::Unsupported`] and [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, each delivery may or may not be settled.
    async fn settle(&self, batch: Vec<(Self::Receipt, Result<(), Nack>)>) -> Vec<Result<(), BusError>>;

    /// Extends leases to this duration from now on. Returns a result for each item, in order.
    ///
    /// # Errors
    /// For each item as [`settle`](Self::settle).
    ///
    /// # Cancel safety
    /// If the future is dropped, each lease may or may not be extended.
    async fn extend(&self, batch: Vec<(Self::Receipt, Duration)>) -> Vec<Result<(), BusError>>;

    /// Waits until all deliveries are settled or their leases have expired. [`next`](Self::next) is not called again;
    /// events that were fetched and not returned by it go to other consumers, without counting as an attempt.
    ///
    /// # Errors
    /// [`BusError::Unavailable`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the method can be called again.
    async fn close(&self) -> Result<(), BusError>;

    /// Leaves the group, because the consumer was dropped. Its deliveries can still be settled.
    fn leave(&self);
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

/// The `expires_at` of an event on the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    Never,
    At(Instant),
    /// It had expired when it was published.
    Past,
}

impl Expiry {
    /// Reads the clocks only if the event expires.
    pub(super) fn of(event: &Event) -> Self {
        event.expires_at().map_or(Self::Never, |at| Self::from_wall(at, Timestamp::now(), Instant::now()))
    }

    /// Converts a time of the wall clock, which shows `wall` when the monotonic clock shows `now`.
    fn from_wall(expires_at: Timestamp, wall: Timestamp, now: Instant) -> Self {
        // The difference of two timestamps does not overflow. A negative one is not a `Duration`.
        match Duration::try_from(expires_at.duration_since(wall)) {
            Ok(Duration::ZERO) | Err(_) => Self::Past,
            Ok(left) => now.checked_add(left).map_or(Self::Never, Self::At),
        }
    }

    /// Calls `now` only if the result depends on it.
    pub(super) fn is_over(self, now: impl FnOnce() -> Instant) -> bool {
        match self {
            Self::Never => false,
            Self::At(at) => now() >= at,
            Self::Past => true,
        }
    }
}

/// Returns `now + by`, or a time 30 years from now if the clock cannot represent it.
pub(super) fn later(now: Instant, by: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    now.checked_add(by).unwrap_or(now + FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_time_becomes_a_monotonic_one() {
        let (wall, now) = (Timestamp::UNIX_EPOCH, Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(Expiry::from_wall(wall + second, wall, now), Expiry::At(now + second));
        assert_eq!(Expiry::from_wall(wall, wall, now), Expiry::Past);
        assert_eq!(Expiry::from_wall(wall - second, wall, now), Expiry::Past);
        assert_ne!(Expiry::from_wall(Timestamp::MAX, Timestamp::MIN, now), Expiry::Past);
    }

    #[test]
    fn an_event_expires_at_its_time() {
        let now = Instant::now();
        assert!(Expiry::At(now).is_over(|| now));
        assert!(!Expiry::At(now + Duration::from_millis(1)).is_over(|| now));
        assert!(Expiry::Past.is_over(|| now));
        assert!(!Expiry::Never.is_over(|| now));
    }
}
