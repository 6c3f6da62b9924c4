//! The layer that tries a failed call again.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep};
use tower::{
    Layer, Service, ServiceExt,
    retry::{Policy, Retry},
};

use super::{
    RetryBudget,
    attempts::{Attempts, RetryPolicy},
    policy::RetryLimits,
    protocol::{Calls, Repeat},
    random, take_ready,
};
use crate::{
    contract::Keys,
    dropped::report,
    error::{CallError, Failure},
    transport::{Call, Reply, sent_until},
    update::{Update, UpdateSink},
};

/// Tries failed calls again where that is safe and can help: see the [module](super). Every value of a limit is valid.
///
/// It belongs above the choice of an endpoint: a further attempt names those that failed in [`Call::avoid`], and has the
/// handle that an earlier one reported in [`Call::handle`]. The reply has what all attempts used, and how many were made.
///
/// What is below it makes one attempt at a time.
///
/// ```
/// use std::time::Duration;
/// use octollm_core::resilience::{BreakerLayer, RetryLayer};
/// use octollm_core::transport::Transport;
/// use tower::ServiceBuilder;
///
/// # let arms: std::sync::Arc<dyn Transport> = std::sync::Arc::new(());
/// let service = ServiceBuilder::new()
///     .layer(RetryLayer::new().retries(4).max_backoff(Duration::from_secs(2)))
///     .layer(BreakerLayer::default())
///     .service(arms);
/// ```
#[derive(Clone)]
pub struct RetryLayer<P = Calls> {
    policy: RetryPolicy,
    budget: Option<RetryBudget>,
    protocol: P,
}

impl RetryLayer {
    /// A layer with the default limits.
    pub fn new() -> Self {
        Self::of(Calls)
    }

    /// Sets how to find out whether the arms of a call honour its key: they run it once, however often it is sent. Without
    /// this none does. A call that may have run is repeated at the endpoint where it was made, where only that has the
    /// [record](Keys::Instance).
    #[must_use]
    pub fn keys_honoured(mut self, honoured: impl Fn(&Call) -> Keys + Send + Sync + 'static) -> Self {
        self.policy.honoured = Some(Arc::new(honoured));
        self
    }

    /// Sets the bytes of the largest input that is stored for further attempts (default 64 KiB). A larger call gets one attempt,
    /// unless it [sets how many](crate::context::CallFuture::retry).
    #[must_use]
    pub fn max_stored(mut self, bytes: usize) -> Self {
        self.policy.limits.max_stored = bytes;
        self
    }
}

impl<P> RetryLayer<P> {
    /// A layer with the default limits, for requests of another protocol.
    pub fn of(protocol: P) -> Self {
        Self { policy: RetryPolicy::default(), budget: Some(RetryBudget::default()), protocol }
    }

    /// Sets how many attempts are made after the first one (default 2), unless a call
    /// [sets its own](crate::context::CallFuture::retry).
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.policy.limits.retries = retries;
        self
    }

    /// Sets the longest wait before the second attempt (default 50 ms). It doubles with each further one. Zero retries at once.
    #[must_use]
    pub fn backoff(mut self, longest: Duration) -> Self {
        self.policy.limits.backoff = longest;
        self
    }

    /// Sets the same for an arm that has more work than it takes (default 1 s).
    #[must_use]
    pub fn throttled_backoff(mut self, longest: Duration) -> Self {
        self.policy.limits.throttled_backoff = longest;
        self
    }

    /// Sets the longest wait before any attempt, unless the arm asks for a longer one (default 5 s).
    #[must_use]
    pub fn max_backoff(mut self, longest: Duration) -> Self {
        self.policy.limits.max_backoff = longest;
        self
    }

    /// Sets the longest wait that an arm may ask for (default 60 s). If it asks for more, the call fails at once.
    #[must_use]
    pub fn max_retry_after(mut self, longest: Duration) -> Self {
        self.policy.limits.max_retry_after = longest;
        self
    }

    /// Sets the budget of the further attempts (default: one of this layer's own, with 20 % and 10/s). If it is spent, the call
    /// fails with the error of its last attempt.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    fn feed_budget(&self) {
        self.budget.iter().for_each(RetryBudget::feed_by_retry);
    }

    /// Removes the budget. Then a target that fails gets all attempts of all calls.
    #[must_use]
    pub fn without_budget(mut self) -> Self {
        self.budget = None;
        self
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<P> fmt::Debug for RetryLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("limits", &self.policy.limits)
            .field("budget", &self.budget)
            .finish()
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = CallRetry<S>;

    fn layer(&self, service: S) -> Self::Service {
        self.feed_budget();
        CallRetry { rules: Arc::new(self.clone()), service }
    }
}

impl<S, P: Repeat + Clone> Layer<S> for RetryLayer<P> {
    type Service = Retry<RequestPolicy<P>, S>;

    fn layer(&self, service: S) -> Self::Service {
        self.feed_budget();
        let rules = Arc::new((self.policy.limits, self.budget.clone()));
        Retry::new(RequestPolicy { rules, protocol: self.protocol.clone(), retries: 0 }, service)
    }
}

/// The retries of a request that is no [`Call`].
#[derive(Debug, Clone)]
pub struct RequestPolicy<P> {
    rules: Arc<(RetryLimits, Option<RetryBudget>)>,
    protocol: P,
    /// Attempts after the first one.
    retries: u32,
}

impl<P: Repeat> Policy<P::Request, P::Response, P::Error> for RequestPolicy<P> {
    type Future = Sleep;

    fn retry(
        &mut self,
        request: &mut P::Request,
        result: &mut Result<P::Response, P::Error>,
    ) -> Option<Sleep> {
        let (limits, budget) = &*self.rules;
        let asked = self.protocol.retry(result.as_ref().err()?)?;
        if self.retries >= limits.retries || asked > limits.max_retry_after {
            return None;
        }
        let (wait, now) = (limits.wait_for(false, self.retries, random()).max(asked), Instant::now());
        let deadline = self.protocol.deadline(request);
        let in_time =
            deadline.is_none_or(|deadline| wait < deadline.instant().saturating_duration_since(now));
        if !in_time || !budget.as_ref().is_none_or(|budget| budget.withdraw(now)) {
            return None;
        }
        self.retries += 1;
        Some(sleep(wait))
    }

    fn clone_request(&mut self, request: &P::Request) -> Option<P::Request> {
        if let (0, Some(budget)) = (self.retries, &self.rules.1) {
            budget.deposit();
        }
        self.protocol.copy(request)
    }
}

/// The service of a [`RetryLayer`] for calls.
///
/// Each attempt ends at the deadline of its call, whatever the service below does.
#[derive(Debug, Clone)]
pub struct CallRetry<S> {
    rules: Arc<RetryLayer>,
    service: S,
}

impl<S> Service<Call> for CallRetry<S>
where
    S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let mut service = take_ready(&mut self.service);
        let attempts = Attempts::new(&self.rules.policy, &call);
        // A further attempt of a retry above is none to count.
        if let Some(budget) = self.rules.budget.as_ref().filter(|_| call.parts.attempt <= 1) {
            budget.deposit();
        }
        if attempts.allowed() == 0 {
            return Box::pin(async move { attempt(&mut service, call).await });
        }
        Box::pin(retried(self.rules.clone(), service, call, attempts))
    }
}

/// Sends a call until it is answered, or a further attempt does not help or may not follow.
async fn retried<S>(
    rules: Arc<RetryLayer>,
    mut service: S,
    mut call: Call,
    mut attempts: Attempts,
) -> Result<Reply, CallError>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    // What is below would multiply them.
    call.retry = Some(0);
    let reported = Reported::watch(&mut call);
    loop {
        let mut error = match attempt(&mut service, call.clone()).await {
            Ok(mut reply) => {
                attempts.answered(&mut reply);
                return Ok(reply);
            }
            Err(error) => error,
        };
        let RetryLayer { policy, budget, .. } = &*rules;
        let now = Instant::now();
        let Some(wait) = attempts.failed(policy, budget.as_ref(), &mut call, &mut error, now) else {
            return Err(error);
        };
        if let Some(handle) = reported.latest() {
            call.handle = Some(handle);
        }
        sleep(wait).await;
    }
}

/// Waits until the service is ready, and sends a call, until the deadline of the call.
async fn attempt<S>(service: &mut S, call: Call) -> Result<Reply, CallError>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    let (deadline, contract, delivered) =
        (call.parts.deadline, call.contract.clone(), call.delivered.clone());
    let answer = async { service.ready().await?.call(call).await };
    sent_until(deadline, &contract, answer, report).await.map_err(|error| delivered.failed(error))
}

/// Remembers the handle that an attempt reports, for the next one.
pub struct Reported {
    handle: Mutex<Option<String>>,
    to: Option<Arc<dyn UpdateSink>>,
}

impl Reported {
    /// Receives the updates of a call, and passes them on.
    pub fn watch(call: &mut Call) -> Arc<Self> {
        let reported = Arc::new(Self { handle: Mutex::default(), to: call.updates.take() });
        call.updates = Some(reported.clone());
        reported
    }

    /// The last handle.
    pub fn latest(&self) -> Option<String> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl UpdateSink for Reported {
    fn update(&self, update: Update) {
        self.to.update(update);
    }

    async fn chunk(&self, chunk: Value) {
        self.to.chunk(chunk).await;
    }

    fn is_read(&self) -> bool {
        self.to.is_read()
    }

    async fn handle(&self, handle: String) -> Result<(), Failure> {
        self.to.handle(handle.clone()).await?;
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(())
    }
}

impl fmt::Debug for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reported").field("handle", &self.latest()).finish_non_exhaustive()
    }
}
