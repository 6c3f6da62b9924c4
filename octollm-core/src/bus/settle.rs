//! How deliveries reach the bus again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::delivery::Lease;
use super::{BusError, Delivery, Nack};
use crate::event::Event;

/// What becomes of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// It was handled.
    Ack,
    /// It was not.
    Nack(Nack),
    /// It was not begun: it comes again at once, and this attempt does not count.
    Release,
}

/// What a bus does with the deliveries of its consumers. Each call has a batch and returns one result for each item, in
/// their order.
///
/// A lease that has expired is [`BusError::LeaseLost`] only if the event has gone to another consumer since, or has become
/// a dead letter that cannot be taken back: until then its holder is the only one who has handled it.
#[async_trait]
pub trait Settle: Send + Sync + 'static {
    /// What names one lease to this bus.
    type Lease: Clone + Send + Sync + 'static;

    /// Ends leases: [`BusError::LeaseLost`], [`BusError::Unavailable`], [`BusError::Unsupported`] for what the bus denies.
    async fn settle(&self, batch: Vec<(Self::Lease, Settlement)>) -> Vec<Result<(), BusError>>;

    /// Makes each lease last for this long from now on: errors as [`settle`](Self::settle).
    async fn extend(&self, batch: Vec<(Self::Lease, Duration)>) -> Vec<Result<(), BusError>>;
}

/// Makes deliveries, and takes their settlements to the bus. Clones are the same one.
pub struct Settler<S: Settle>(Way<S>);

enum Way<S: Settle> {
    Direct(Arc<S>),
    Batched(mpsc::UnboundedSender<Request<S::Lease>>),
}

/// Each delivery has at most one of each kind under way, so no more wait than twice what is in flight.
enum Request<L> {
    Settle(L, Settlement, Answer),
    Extend(L, Duration, Answer),
}

type Answer = oneshot::Sender<Result<(), BusError>>;

impl<S: Settle> Settler<S> {
    /// Takes each settlement to the bus in a call of its own.
    pub fn direct(bus: S) -> Self {
        Self(Way::Direct(Arc::new(bus)))
    }

    /// Takes settlements to the bus together: what is settled during one call goes with the next one, up to `at_most`. A
    /// settlement that finds no call under way does not wait for others. It ends with its last delivery.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when `at_most` is 0, [`BusError::Unavailable`] outside a tokio runtime.
    pub fn batched(bus: S, at_most: usize) -> Result<Self, BusError> {
        if at_most == 0 {
            return Err(BusError::InvalidSetting { setting: "batch", problem: "has room for no settlement" });
        }
        let runtime =
            Handle::try_current().map_err(|error| BusError::Unavailable { source: Some(Box::new(error)) })?;
        let (requests, queue) = mpsc::unbounded_channel();
        runtime.spawn(carry(bus, queue, at_most));
        Ok(Self(Way::Batched(requests)))
    }

    /// A delivery of `event` for the `attempt`th time, counted from 1. Its lease expires after `lease_time` unless it is
    /// extended.
    pub fn delivery(&self, event: Event, attempt: u32, lease_time: Duration, lease: S::Lease) -> Delivery {
        Delivery::new(event, attempt, lease_time, Arc::new(Held { settler: self.clone(), lease }))
    }
}

impl<S: Settle> Clone for Settler<S> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Way::Direct(bus) => Way::Direct(Arc::clone(bus)),
            Way::Batched(requests) => Way::Batched(requests.clone()),
        })
    }
}

impl<S: Settle> std::fmt::Debug for Settler<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settler").finish_non_exhaustive()
    }
}

/// A lease and the way back.
struct Held<S: Settle> {
    settler: Settler<S>,
    lease: S::Lease,
}

#[async_trait]
impl<S: Settle> Lease for Held<S> {
    async fn settle(&self, settlement: Settlement) -> Result<(), BusError> {
        let lease = self.lease.clone();
        match &self.settler.0 {
            Way::Direct(bus) => only(bus.settle(vec![(lease, settlement)]).await),
            Way::Batched(requests) => {
                ask(requests, |answer| Request::Settle(lease, settlement, answer)).await
            }
        }
    }

    async fn extend(&self, time: Duration) -> Result<(), BusError> {
        let lease = self.lease.clone();
        match &self.settler.0 {
            Way::Direct(bus) => only(bus.extend(vec![(lease, time)]).await),
            Way::Batched(requests) => ask(requests, |answer| Request::Extend(lease, time, answer)).await,
        }
    }
}

async fn ask<L>(
    requests: &mpsc::UnboundedSender<Request<L>>,
    request: impl FnOnce(Answer) -> Request<L>,
) -> Result<(), BusError> {
    let (answer, answered) = oneshot::channel();
    if requests.send(request(answer)).is_err() {
        return Err(BusError::Unavailable { source: None });
    }
    answered.await.unwrap_or(Err(BusError::Unavailable { source: None }))
}

/// The result for the only item of a batch.
fn only(results: Vec<Result<(), BusError>>) -> Result<(), BusError> {
    results.into_iter().next().unwrap_or(Err(BusError::Unavailable { source: None }))
}

/// Takes batches to the bus until nobody can settle anything any more.
async fn carry<S: Settle>(bus: S, mut queue: mpsc::UnboundedReceiver<Request<S::Lease>>, at_most: usize) {
    let mut requests = Vec::new();
    while queue.recv_many(&mut requests, at_most).await > 0 {
        let (mut settlements, mut settled) = (Vec::new(), Vec::new());
        let (mut extensions, mut extended) = (Vec::new(), Vec::new());
        for request in requests.drain(..) {
            match request {
                Request::Settle(lease, settlement, answer) => {
                    settlements.push((lease, settlement));
                    settled.push(answer);
                }
                Request::Extend(lease, time, answer) => {
                    extensions.push((lease, time));
                    extended.push(answer);
                }
            }
        }
        // Of one delivery an extension is always older than the settlement, which takes the delivery.
        if !extensions.is_empty() {
            hand_out(extended, bus.extend(extensions).await);
        }
        if !settlements.is_empty() {
            hand_out(settled, bus.settle(settlements).await);
        }
    }
}

fn hand_out(answers: Vec<Answer>, results: Vec<Result<(), BusError>>) {
    for (answer, result) in answers.into_iter().zip(results) {
        // Whoever settled may be gone.
        let _ = answer.send(result);
    }
}
