//! The layer with a circuit breaker.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::Either;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, util::Oneshot};

use super::{
    Admitted, BreakerLimits, BreakerState, Outcome,
    circuit::{Circuit, OnTransition},
};
use crate::resilience::{
    protocol::{Calls, Protocol, Refusal},
    take_ready,
};

/// Rejects calls while their target fails, so that it can recover and its callers need not wait.
///
/// It opens after five failures in a row, or where less than 80 % of at least 20 calls in ten seconds succeed. After one second,
/// at most a quarter less by chance, one call is the probe: if it succeeds the breaker closes, if it fails the breaker opens for
/// twice as long, up to four seconds. [`Calls`] lists what is a failure.
///
/// An open breaker is ready, also where the service below is not, and rejects in `call`. A call that it rejects reserves nothing below.
///
/// Each service that the layer makes has a breaker of its own, which the clones of the service share. Every value of a limit is
/// valid.
///
/// ```
/// use octollm_core::resilience::{BreakerLayer, BreakerState};
///
/// let layer = BreakerLayer::new().failures(3).on_transition(|state| {
///     if let BreakerState::Open { retry_after } = state {
///         eprintln!("the judge gets no calls for {retry_after:?}");
///     }
/// });
/// ```
#[derive(Clone)]
pub struct BreakerLayer<P = Calls> {
    limits: BreakerLimits,
    name: Option<(Arc<str>, Arc<str>)>,
    on_transition: Option<Arc<OnTransition>>,
    protocol: P,
}

impl BreakerLayer {
    /// A layer with the default limits.
    pub fn new() -> Self {
        Self::of(Calls)
    }
}

impl<P> BreakerLayer<P> {
    /// A layer with the default limits, for requests of another protocol.
    pub fn of(protocol: P) -> Self {
        Self { limits: BreakerLimits::default(), name: None, on_transition: None, protocol }
    }

    /// Sets how many failures in a row open the breaker (default 5; 0 counts as 1).
    #[must_use]
    pub fn failures(mut self, failures: u32) -> Self {
        self.limits.failures = failures;
        self
    }

    /// Sets the percentage of the calls in the window that must succeed (default 80). Where fewer do, the breaker opens at the
    /// next failure. With 0 it does not.
    #[must_use]
    pub fn min_success(mut self, percent: u32) -> Self {
        self.limits.min_success = percent;
        self
    }

    /// Sets the length of the window (default 10 s). It slides in tenths.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.limits.window = window;
        self
    }

    /// Sets how many calls the window must have for [`min_success`](Self::min_success) to count (default 20).
    #[must_use]
    pub fn min_calls(mut self, calls: u32) -> Self {
        self.limits.min_calls = calls;
        self
    }

    /// Sets how long the breaker is open the first time (default 1 s). It doubles each time that the probe fails.
    #[must_use]
    pub fn open(mut self, time: Duration) -> Self {
        self.limits.open = time;
        self
    }

    /// Sets the longest time that the breaker is open (default 4 s).
    #[must_use]
    pub fn max_open(mut self, time: Duration) -> Self {
        self.limits.max_open = time;
        self
    }

    /// Sets when another call takes the place of a probe that has not ended (default 2 s). If the first one succeeds later, the
    /// breaker closes all the same.
    #[must_use]
    pub fn probe(mut self, time: Duration) -> Self {
        self.limits.probe = time;
        self
    }

    /// Sets the labels of the breaker in metrics. Without them it is in none. Services of the layer share the labels.
    #[must_use]
    pub fn named(mut self, arm: impl Into<Arc<str>>, endpoint: impl Into<Arc<str>>) -> Self {
        self.name = Some((arm.into(), endpoint.into()));
        self
    }

    /// Sets a function that is called with each new state, on the thread of the call that has changed it. It must not block.
    #[must_use]
    pub fn on_transition(mut self, hook: impl Fn(BreakerState) + Send + Sync + 'static) -> Self {
        self.on_transition = Some(Arc::new(hook));
        self
    }
}

impl Default for BreakerLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<P> fmt::Debug for BreakerLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerLayer").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<S, P: Clone> Layer<S> for BreakerLayer<P> {
    type Service = Guarded<S, P>;

    fn layer(&self, service: S) -> Self::Service {
        let circuit = Circuit::new(self.limits, self.name.clone(), self.on_transition.clone());
        Guarded { circuit, service, is_polled: false, protocol: self.protocol.clone() }
    }
}

/// The service of a [`BreakerLayer`].
#[derive(Debug)]
pub struct Guarded<S, P> {
    circuit: Circuit,
    service: S,
    /// Whether the service below was polled ready.
    is_polled: bool,
    protocol: P,
}

impl<S: Clone, P: Clone> Clone for Guarded<S, P> {
    fn clone(&self) -> Self {
        let (circuit, service) = (self.circuit.clone(), self.service.clone());
        Self { circuit, service, is_polled: false, protocol: self.protocol.clone() }
    }
}

impl<S, P> Service<P::Request> for Guarded<S, P>
where
    P: Protocol + Clone,
    S: Service<P::Request, Response = P::Response, Error = P::Error> + Clone,
{
    type Response = P::Response;
    type Error = P::Error;
    type Future = Guarding<Either<S::Future, Late<S, P::Request>>, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        if self.circuit.retry_after(Instant::now).is_none() {
            ready!(self.service.poll_ready(cx))?;
            self.is_polled = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: P::Request) -> Self::Future {
        let is_polled = mem::take(&mut self.is_polled);
        match self.circuit.admit(Instant::now) {
            Ok(admitted) => {
                let ticket =
                    Ticket { circuit: self.circuit.clone(), admitted, is_probing: admitted.is_probe() };
                let call = match is_polled {
                    true => Either::Left(self.service.call(request)),
                    false => Either::Right(Box::pin(self.service.clone().oneshot(request))),
                };
                Guarding { state: State::Admitted { call, ticket, protocol: self.protocol.clone() } }
            }
            Err(retry_after) => {
                if is_polled {
                    // What it has reserved is for a call.
                    drop(take_ready(&mut self.service));
                }
                let error = self.protocol.refused(&request, Refusal::CircuitOpen { retry_after });
                Guarding { state: State::Rejected { error: Some(error) } }
            }
        }
    }
}

/// A call that waits until the service below is ready: the breaker was open when it was polled, and has admitted the call.
type Late<S, R> = Pin<Box<Oneshot<S, R>>>;

/// The ticket of a call that is running. If it is dropped, the call was cancelled.
struct Ticket {
    circuit: Circuit,
    admitted: Admitted,
    is_probing: bool,
}

impl Drop for Ticket {
    #[inline]
    fn drop(&mut self) {
        if self.is_probing {
            self.circuit.record(self.admitted, Outcome::Ignored, Instant::now);
        }
    }
}

pin_project! {
    /// The future of a [`Guarded`].
    pub struct Guarding<F, P: Protocol> {
        #[pin]
        state: State<F, P>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, P: Protocol> {
        Admitted { #[pin] call: F, ticket: Ticket, protocol: P },
        Rejected { error: Option<P::Error> },
    }
}

impl<F, P> Future for Guarding<F, P>
where
    P: Protocol,
    F: Future<Output = Result<P::Response, P::Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Admitted { call, ticket, protocol } => {
                let result = ready!(call.poll(cx));
                let outcome = protocol.outcome(result.as_ref());
                ticket.is_probing = false;
                ticket.circuit.record(ticket.admitted, outcome, Instant::now);
                Poll::Ready(result)
            }
            StateProjection::Rejected { error } => {
                error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
            }
        }
    }
}

impl<F, P: Protocol> fmt::Debug for Guarding<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_admitted = matches!(self.state, State::Admitted { .. });
        f.debug_struct("Guarding").field("is_admitted", &is_admitted).finish_non_exhaustive()
    }
}
