//! The layer that ends each attempt after a time.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower::{Layer, Service};

use super::protocol::{Calls, Protocol, Refusal};

/// Ends a call that takes too long, with [`timeout`](crate::error::ErrorKind::Timeout). The call may have executed.
///
/// Below a [`RetryLayer`](super::RetryLayer) it limits each attempt. The deadline of a call limits all of them without it.
///
/// ```
/// use std::time::Duration;
/// use octollm_core::resilience::{RetryLayer, TimeoutLayer};
/// use tower::ServiceBuilder;
///
/// let layers = ServiceBuilder::new()
///     .layer(RetryLayer::default())
///     .layer(TimeoutLayer::new(Duration::from_secs(2)));
/// ```
#[derive(Clone)]
pub struct TimeoutLayer<P = Calls> {
    limit: Duration,
    protocol: P,
}

impl TimeoutLayer {
    /// A layer with a time limit.
    pub fn new(limit: Duration) -> Self {
        Self::of(Calls, limit)
    }
}

impl<P> TimeoutLayer<P> {
    /// The same for requests of another protocol.
    pub fn of(protocol: P, limit: Duration) -> Self {
        Self { limit, protocol }
    }
}

impl<P> fmt::Debug for TimeoutLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutLayer").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<S, P: Clone> Layer<S> for TimeoutLayer<P> {
    type Service = Timed<S, P>;

    fn layer(&self, service: S) -> Self::Service {
        Timed { limit: self.limit, service, protocol: self.protocol.clone() }
    }
}

/// The service of a [`TimeoutLayer`].
#[derive(Debug, Clone)]
pub struct Timed<S, P> {
    limit: Duration,
    service: S,
    protocol: P,
}

impl<S, P> Service<P::Request> for Timed<S, P>
where
    P: Protocol + Clone,
    S: Service<P::Request, Response = P::Response, Error = P::Error>,
{
    type Response = P::Response;
    type Error = P::Error;
    type Future = Timing<S::Future, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: P::Request) -> Self::Future {
        let error = self.protocol.refused(&request, Refusal::TimedOut { after: self.limit });
        let call = Some(self.service.call(request));
        Timing { call, timer: sleep(self.limit), error: Some(error), protocol: self.protocol.clone() }
    }
}

pin_project! {
    /// The future of a [`Timed`].
    #[derive(Debug)]
    pub struct Timing<F, P: Protocol> {
        #[pin]
        call: Option<F>,
        #[pin]
        timer: Sleep,
        // That of a call that takes too long.
        error: Option<P::Error>,
        protocol: P,
    }
}

impl<F, P> Future for Timing<F, P>
where
    P: Protocol,
    F: Future<Output = Result<P::Response, P::Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(call) = this.call.as_mut().as_pin_mut() else { return Poll::Pending };
        if let Poll::Ready(result) = call.poll(cx) {
            this.call.set(None);
            return Poll::Ready(result);
        }
        ready!(this.timer.poll(cx));
        let Some(error) = this.error.take() else { return Poll::Pending };
        let mut result = Err(error);
        this.protocol.add_dropped(&mut result, 0, &mut || this.call.set(None));
        Poll::Ready(result)
    }
}
