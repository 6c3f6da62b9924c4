//! The layer that limits how many calls run at once.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tower::{Layer, Service, ServiceExt, util::Oneshot};

use super::protocol::{Calls, Protocol, Refusal};

/// Limits how many calls run at once, so that one slow target cannot take all the room of its callers.
///
/// Calls beyond that are refused with [`overloaded`](crate::error::ErrorKind::Overloaded) at once, or wait for a place. They
/// have not executed. The service is always ready: a full one refuses in `call`, and a call with a place waits there until the service
/// below is ready. A place comes back when the future of a call ends or is dropped. The clones of a service share the places. Every value of a limit is valid.
///
/// ```
/// use std::time::Duration;
/// use octollm_core::resilience::BulkheadLayer;
///
/// let layer = BulkheadLayer::new(20).wait(Duration::from_millis(100));
/// ```
#[derive(Clone)]
pub struct BulkheadLayer<P = Calls> {
    running: usize,
    waiting: Option<usize>,
    wait: Duration,
    protocol: P,
}

impl BulkheadLayer {
    /// A layer below which so many calls run at once. With 0, none does.
    pub fn new(running: usize) -> Self {
        Self::of(Calls, running)
    }
}

impl<P> BulkheadLayer<P> {
    /// The same for requests of another protocol.
    pub fn of(protocol: P, running: usize) -> Self {
        Self { running, waiting: None, wait: Duration::ZERO, protocol }
    }

    /// Sets how long a call waits for a place (default: not at all).
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sets how many calls may wait at once (default: as many as may run). Further ones are refused at once.
    #[must_use]
    pub fn max_waiting(mut self, waiting: usize) -> Self {
        self.waiting = Some(waiting);
        self
    }
}

impl<P> fmt::Debug for BulkheadLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkheadLayer")
            .field("running", &self.running)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

impl<S, P: Clone> Layer<S> for BulkheadLayer<P> {
    type Service = Bulkhead<S, P>;

    fn layer(&self, service: S) -> Self::Service {
        let waiting = if self.wait.is_zero() { 0 } else { self.waiting.unwrap_or(self.running) };
        let semaphore = |places: usize| Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Bulkhead {
            places: semaphore(self.running.saturating_add(waiting)),
            running: semaphore(self.running),
            wait: self.wait,
            service,
            protocol: self.protocol.clone(),
        }
    }
}

/// The service of a [`BulkheadLayer`].
#[derive(Debug, Clone)]
pub struct Bulkhead<S, P> {
    /// Of the calls that run or wait.
    places: Arc<Semaphore>,
    running: Arc<Semaphore>,
    wait: Duration,
    service: S,
    protocol: P,
}

impl<S, P> Service<P::Request> for Bulkhead<S, P>
where
    P: Protocol + Clone,
    S: Service<P::Request, Response = P::Response, Error = P::Error> + Clone,
{
    type Response = P::Response;
    type Error = P::Error;
    type Future = Placed<S, P>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        // A call polls what is below once it has a place: one that is refused then has reserved nothing there.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: P::Request) -> Self::Future {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let error = self.protocol.refused(&request, Refusal::Overloaded);
            return Placed { place: None, state: State::Refused { error: Some(error) } };
        };
        let state = match self.running.clone().try_acquire_owned() {
            Ok(permit) => State::Running { call: self.service.clone().oneshot(request), permit },
            Err(_) => {
                let waiting =
                    Waiting { service: self.service.clone(), request, protocol: self.protocol.clone() };
                let acquire: Acquire = Box::pin(self.running.clone().acquire_owned());
                State::Waiting { acquire, timer: sleep(self.wait), waiting: Some(waiting) }
            }
        };
        Placed { place: Some(place), state }
    }
}

type Acquire = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// A call that waits for a place.
struct Waiting<S, P: Protocol> {
    service: S,
    request: P::Request,
    protocol: P,
}

pin_project! {
    /// The future of a [`Bulkhead`].
    pub struct Placed<S, P>
    where
        P: Protocol,
        S: Service<P::Request>,
    {
        // Fields are dropped in this order: the call has ended when its place comes back.
        #[pin]
        state: State<S, P>,
        place: Option<OwnedSemaphorePermit>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, P>
    where
        P: Protocol,
        S: Service<P::Request>,
    {
        Waiting { acquire: Acquire, #[pin] timer: Sleep, waiting: Option<Waiting<S, P>> },
        // In this order too.
        Running { #[pin] call: Oneshot<S, P::Request>, permit: OwnedSemaphorePermit },
        Refused { error: Option<P::Error> },
        Ended,
    }
}

impl<S, P> Future for Placed<S, P>
where
    P: Protocol,
    S: Service<P::Request, Response = P::Response, Error = P::Error>,
{
    type Output = Result<P::Response, P::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Running { call, .. } => {
                    let result = ready!(call.poll(cx));
                    this.state.set(State::Ended);
                    *this.place = None;
                    return Poll::Ready(result);
                }
                StateProjection::Refused { error } => {
                    return error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
                }
                StateProjection::Ended => return Poll::Pending,
                StateProjection::Waiting { acquire, timer, waiting } => {
                    let permit = match acquire.as_mut().poll(cx) {
                        Poll::Ready(permit) => permit.ok(),
                        Poll::Pending => {
                            ready!(timer.poll(cx));
                            None
                        }
                    };
                    let Some(Waiting { service, request, protocol }) = waiting.take() else {
                        return Poll::Pending;
                    };
                    match permit {
                        Some(permit) => State::Running { call: service.oneshot(request), permit },
                        None => {
                            State::Refused { error: Some(protocol.refused(&request, Refusal::Overloaded)) }
                        }
                    }
                }
            };
            if matches!(next, State::Refused { .. }) {
                *this.place = None;
            }
            this.state.set(next);
        }
    }
}

impl<S, P> fmt::Debug for Placed<S, P>
where
    P: Protocol,
    S: Service<P::Request>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placed").field("has_place", &self.place.is_some()).finish_non_exhaustive()
    }
}
