//! The parts for the author of a bus. Users of a bus do not need them.
//!
//! | to | use |
//! |---|---|
//! | feed subscriptions, which overflow the same way on every bus | [`Feed`], [`deliver`] |
//! | deliver to a consumer, and settle its deliveries | [`ConsumerEngine`], [`Consumer::new`](super::Consumer::new), [`Consumer::batched`](super::Consumer::batched) |

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::consumer::Lease;
pub use super::subscription::{Feed, deliver};
use super::{BusError, Gap, Nack};
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

    /// Returns the name of the consumer, unique in its bus. Empty where it has none.
    fn name(&self) -> String {
        String::new()
    }

    /// Leaves the group, because the consumer was dropped. Its deliveries can still be settled.
    fn leave(&self);
}

/// Starts to collect the settlements of deliveries. Ends when the consumer and its deliveries are dropped.
pub(super) fn batches<E: ConsumerEngine>(
    engine: &Arc<E>,
    max_batch: usize,
) -> Result<mpsc::UnboundedSender<Request<E::Receipt>>, BusError> {
    if max_batch == 0 {
        return Err(ConfigError::new("max_batch", "is 0").into());
    }
    let runtime = Handle::try_current().map_err(BusError::unavailable)?;
    let (batches, requests) = mpsc::unbounded_channel();
    runtime.spawn(send_batches(Arc::clone(engine), requests, max_batch));
    Ok(batches)
}

pub(super) struct BatchedLease<R> {
    /// Bounded by the deliveries: each waits for at most one request of each kind.
    batches: mpsc::UnboundedSender<Request<R>>,
    receipt: R,
}

pub(super) enum Request<R> {
    Settle(R, Result<(), Nack>, Reply),
    Extend(R, Duration, Reply),
}

pub(super) type Reply = oneshot::Sender<Result<(), BusError>>;

impl<R> BatchedLease<R> {
    pub(super) fn new(batches: mpsc::UnboundedSender<Request<R>>, receipt: R) -> Self {
        Self { batches, receipt }
    }

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
