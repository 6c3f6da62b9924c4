//! Tower layers around the handlers of events.
//!
//! [`layered`] puts layers around an [`EventHandler`]. To them, a handler is a service of [`Received`] events, whose error is a [`Nack`]. With
//! [`Handling`], the layers of [`resilience`](crate::resilience) fit too.
//!
//! | layer | does |
//! |---|---|
//! | [`ObserveLayer`] | a span below that of the publisher, and metrics |
//! | [`RecoverLayer`] | a panic is a nack, which the layers around it see |
//! | [`InboxLayer`] | an event that was handled before is acknowledged |
//! | [`ThrottleLayer`] | at most so many events in a time |
//! | [`RetryLayer::of(Handling)`](crate::resilience::RetryLayer::of) | retries at once, before the event goes back to the bus |
//! | [`TimeoutLayer::of(Handling, ..)`](crate::resilience::TimeoutLayer::of) | a time limit on each run |
//! | [`BreakerLayer::of(Handling)`](crate::resilience::BreakerLayer::of) | events go back while the handler fails |
//! | [`BulkheadLayer::of(Handling, ..)`](crate::resilience::BulkheadLayer::of) | a limit on what runs at a time, that several consumers share |
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use octollm_core::{
//!     bus::{EventHandler, Gap, Nack, layers::{Handling, InboxLayer, ObserveLayer, layered}},
//!     event::Event,
//!     idempotency::MemoryIdempotencyStore,
//!     resilience::TimeoutLayer,
//! };
//! use tower::ServiceBuilder;
//!
//! struct Bill;
//!
//! #[async_trait::async_trait]
//! impl EventHandler for Bill {
//!     async fn handle(&self, event: Event, _attempt: u32) -> Result<(), Nack> {
//!         println!("{}", event.id());
//!         Ok(())
//!     }
//!
//!     async fn gap(&self, _: Gap) {}
//! }
//!
//! // The first layer is the outermost.
//! let layers = ServiceBuilder::new()
//!     .layer(ObserveLayer::new("billing"))
//!     .layer(InboxLayer::new("billing", Arc::new(MemoryIdempotencyStore::new())))
//!     .layer(TimeoutLayer::of(Handling, Duration::from_secs(10)));
//! let handler = layered(Bill, layers); // for `Consumer::run`
//! # let _ = handler;
//! ```

mod inbox;
mod observe;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};

pub use self::inbox::InboxLayer;
pub use self::observe::ObserveLayer;
use super::{EventHandler, Gap, Nack};
use crate::event::Event;
use crate::panics::{Panicked, caught};
use crate::resilience::{Outcome, Protocol, Refusal, Repeat};

/// An event with the number of its delivery, as the services of this module receive it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Received {
    /// The event.
    pub event: Event,
    /// The number of the delivery, from 1.
    pub attempt: u32,
}

/// A service of [`Received`] events.
pub type HandlerService = BoxCloneSyncService<Received, (), Nack>;

/// Puts layers around a handler. Gaps reach the handler without them.
pub fn layered<L>(handler: impl EventHandler, layers: L) -> impl EventHandler
where
    L: Layer<HandlerService>,
    L::Service: Service<Received, Response = (), Error = Nack> + Clone + Send + Sync + 'static,
    <L::Service as Service<Received>>::Future: Send,
{
    let handler = Arc::new(handler);
    let inner = handler.clone();
    let service = boxed(move |Received { event, attempt }| {
        let handler = inner.clone();
        async move { handler.handle(event, attempt).await }
    });
    Layered { handler, service: layers.layer(service) }
}

fn boxed<F>(handle: impl Fn(Received) -> F + Clone + Send + Sync + 'static) -> HandlerService
where
    F: Future<Output = Result<(), Nack>> + Send + 'static,
{
    BoxCloneSyncService::new(service_fn(handle))
}

struct Layered<H, S> {
    handler: Arc<H>,
    service: S,
}

#[async_trait]
impl<H, S> EventHandler for Layered<H, S>
where
    H: EventHandler,
    S: Service<Received, Response = (), Error = Nack> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack> {
        self.service.clone().oneshot(Received { event, attempt }).await
    }

    async fn gap(&self, gap: Gap) {
        self.handler.gap(gap).await;
    }
}

/// The protocol of [`Received`] events, for the layers of [`resilience`](crate::resilience). [`Nack::Retry`] is a failure that is worth
/// another try; the others are the handler's decision. An event that an open breaker refuses has a delay, for which the bus needs
/// [`Capability::DelayedNack`](super::Capability::DelayedNack).
#[derive(Debug, Clone, Copy, Default)]
pub struct Handling;

impl Protocol for Handling {
    type Request = Received;
    type Response = ();
    type Error = Nack;

    fn outcome(&self, result: Result<&(), &Nack>) -> Outcome {
        match result {
            Err(Nack::Retry { .. }) => Outcome::Failure,
            Err(Nack::Release) => Outcome::Ignored,
            Ok(()) | Err(_) => Outcome::Success,
        }
    }

    fn refused(&self, _: &Received, refusal: Refusal) -> Nack {
        match refusal {
            Refusal::CircuitOpen { retry_after } => {
                Nack::retry_after(retry_after).with_reason("the circuit breaker of the handler is open")
            }
            Refusal::Overloaded => Nack::retry().with_reason("too many events are being handled"),
            Refusal::TimedOut { after } => {
                Nack::retry().with_reason(format!("the handler took longer than {after:?}"))
            }
        }
    }

    fn copy(&self, received: &Received) -> Option<Received> {
        Some(received.clone())
    }
}

impl Repeat for Handling {
    fn retry(&self, nack: &Nack) -> Option<Duration> {
        match nack {
            Nack::Retry { after, .. } => Some(after.unwrap_or_default()),
            _ => None,
        }
    }
}

/// Makes a panic of the handler a [`Nack::retry`], for the layers around it. [`Consumer::run`](super::Consumer::run) does the same around
/// all layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecoverLayer;

impl<S> Layer<S> for RecoverLayer
where
    S: Service<Received, Response = (), Error = Nack> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Service = HandlerService;

    fn layer(&self, service: S) -> HandlerService {
        boxed(move |received| {
            let service = service.clone();
            async move {
                // A panic may also precede the future of the service.
                let work = async { service.oneshot(received).await };
                let panicked = |Panicked| Err(Nack::retry().with_reason("the handler panicked"));
                caught(work).await.unwrap_or_else(panicked)
            }
        })
    }
}

/// Spreads the runs of a handler evenly, over all consumers that have the same layer. An event waits with its lease extended.
#[derive(Debug, Clone)]
pub struct ThrottleLayer {
    pause: Duration,
    next: Arc<Mutex<Option<Instant>>>,
}

impl ThrottleLayer {
    /// Creates a layer that starts at most so many runs in a time, each a fraction of it after the one before. 0 events count as 1.
    pub fn new(events: u32, per: Duration) -> Self {
        Self { pause: per / events.max(1), next: Arc::default() }
    }

    /// Takes the next start.
    fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = next.map_or(now, |next| next.max(now));
        *next = Some(start + self.pause);
        start
    }
}

impl<S> Layer<S> for ThrottleLayer
where
    S: Service<Received, Response = (), Error = Nack> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Service = HandlerService;

    fn layer(&self, service: S) -> HandlerService {
        let throttle = self.clone();
        boxed(move |received| {
            let (start, service) = (throttle.take(Instant::now()), service.clone());
            async move {
                sleep_until(start).await;
                service.oneshot(received).await
            }
        })
    }
}
