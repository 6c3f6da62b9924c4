//! The layer that tries a failed call again.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt};

use super::{
    policy::{Failed, RetryLimits},
    random,
};
use crate::{
    budget::Usage,
    contract::Keys,
    dropped::{Reports, report},
    error::{CallError, Failure},
    id::RequestId,
    meters::Counters,
    transport::{Call, Reply, sent_until},
    update::{Update, UpdateSink},
};

/// Tries failed calls again where that is safe and can help: see the [module](super). Every value of a limit is valid.
///
/// It belongs above the choice of an endpoint: a further attempt names those that failed in [`Call::avoid`], and has the
/// handle that an earlier one reported in [`Call::handle`]. The reply has what all attempts used, and how many were made.
///
/// It makes all attempts that a call asks for: a retry layer below it makes only those that it has by default.
///
/// ```
/// use std::time::Duration;
/// use octollm_core::resilience::RetryLayer;
///
/// let layer = RetryLayer::new().retries(4).max_backoff(Duration::from_secs(2));
/// ```
#[derive(Clone, Default)]
pub struct RetryLayer {
    limits: RetryLimits,
    honoured: Option<Arc<KeysHonoured>>,
}

type KeysHonoured = dyn Fn(&Call) -> Keys + Send + Sync;

impl RetryLayer {
    /// A layer with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many attempts are made after the first one (default 2). A call that
    /// [asks for more](crate::context::CallFuture::retry) gets them.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.limits.retries = retries;
        self
    }

    /// Sets the longest wait before the second attempt (default 50 ms). It doubles with each further one. Zero retries at once.
    #[must_use]
    pub fn backoff(mut self, longest: Duration) -> Self {
        self.limits.backoff = longest;
        self
    }

    /// Sets the same for an arm that has more work than it takes (default 1 s).
    #[must_use]
    pub fn throttled_backoff(mut self, longest: Duration) -> Self {
        self.limits.throttled_backoff = longest;
        self
    }

    /// Sets the longest wait before any attempt, unless the arm asks for a longer one (default 5 s).
    #[must_use]
    pub fn max_backoff(mut self, longest: Duration) -> Self {
        self.limits.max_backoff = longest;
        self
    }

    /// Sets the longest wait that an arm may ask for (default 60 s). If it asks for more, the call fails at once.
    #[must_use]
    pub fn max_retry_after(mut self, longest: Duration) -> Self {
        self.limits.max_retry_after = longest;
        self
    }

    /// Sets how to find out whether the arms of a call honour its key: they run it once, however often it is sent. Without
    /// this none does. A call that may have run is repeated at the endpoint where it was made, where only that has the
    /// [record](Keys::Instance).
    #[must_use]
    pub fn keys_honoured(mut self, honoured: impl Fn(&Call) -> Keys + Send + Sync + 'static) -> Self {
        self.honoured = Some(Arc::new(honoured));
        self
    }

    /// Attempts after the first one.
    fn allowed(&self, call: &Call) -> u32 {
        call.retry.max(self.limits.retries)
    }

    /// Who has the record of the call.
    fn keys(&self, call: &Call) -> Keys {
        match &self.honoured {
            Some(honoured) if call.parts.key.is_some() && !call.is_idempotent() => honoured(call),
            _ => Keys::None,
        }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, service: S) -> Self::Service {
        Retry { rules: Arc::new(self.clone()), service }
    }
}

/// The service of a [`RetryLayer`].
///
/// Each attempt ends at the deadline of its call, whatever the service below does.
#[derive(Debug, Clone)]
pub struct Retry<S> {
    rules: Arc<RetryLayer>,
    service: S,
}

impl<S> Service<Call> for Retry<S>
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
        // The one that is ready makes the first attempt.
        let clone = self.service.clone();
        let mut service = mem::replace(&mut self.service, clone);
        let rules = self.rules.clone();
        if rules.allowed(&call) == 0 {
            return Box::pin(service.call(call));
        }
        Box::pin(async move { Attempts::new(rules, call).make(service).await })
    }
}

static RETRIES: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Attempts of calls after the first one, by the code of the error before.";
    Counters::new("octollm_call_retries_total", help, &["code"])
});

/// The attempts of one call, and what they have come to.
struct Attempts {
    rules: Arc<RetryLayer>,
    /// The next attempt.
    call: Call,
    reported: Arc<Reported>,
    /// Attempts after the first one.
    allowed: u32,
    retries: u32,
    /// How often the call was sent, with what happened below this layer.
    sent: u32,
    used: Usage,
    may_have_executed: bool,
}

impl Attempts {
    fn new(rules: Arc<RetryLayer>, mut call: Call) -> Self {
        let reported = Arc::new(Reported { handle: Mutex::default(), to: call.updates.take() });
        call.updates = Some(reported.clone());
        let allowed = rules.allowed(&call);
        // Another retry layer below would multiply them.
        call.retry = 0;
        let (used, may_have_executed) = (Usage::default(), false);
        Self { rules, call, reported, allowed, retries: 0, sent: 0, used, may_have_executed }
    }

    async fn make<S>(mut self, mut service: S) -> Result<Reply, CallError>
    where
        S: Service<Call, Response = Reply, Error = CallError>,
    {
        loop {
            let (call, deadline) = (self.call.clone(), self.call.parts.deadline);
            let attempt = async { service.ready().await?.call(call).await };
            let (contract, used) = (&self.call.contract, self.used);
            match sent_until(deadline, contract, attempt, |usage| report(used.plus(usage))).await {
                Ok(reply) => return Ok(self.answered(reply)),
                Err(mut error) => match self.failed(&mut error) {
                    Some(wait) => {
                        let mut waits = Reports(Some(self.used));
                        sleep(wait).await;
                        waits.0 = None;
                    }
                    None => return Err(error),
                },
            }
        }
    }

    fn answered(&self, mut reply: Reply) -> Reply {
        reply.usage = self.used.plus(reply.usage);
        reply.attempts = reply.attempts.saturating_add(self.sent);
        reply
    }

    /// Prepares the next attempt, and returns how long to wait for it. Where there is none the error becomes that of all
    /// attempts.
    fn failed(&mut self, error: &mut CallError) -> Option<Duration> {
        self.used = self.used.plus(error.usage());
        self.sent = self.sent.saturating_add(error.attempts());
        self.may_have_executed |= error.may_have_executed();
        let call = &mut self.call;
        call.parts.budget = call.parts.budget.after(error.usage());
        let keys = self.rules.keys(call);
        let failed = Failed {
            failure: error.failure(),
            repeatable: call.is_idempotent() || keys != Keys::None,
            retries: self.retries,
            allowed: self.allowed,
            deadline: call.parts.deadline,
            budget: call.parts.budget,
        };
        let Some(wait) = self.rules.limits.wait(&failed, Instant::now(), random()) else {
            error.after_attempts(self.sent, self.used, self.may_have_executed);
            return None;
        };
        self.retries += 1;
        RETRIES.with(&[error.kind().code()]).count();
        tracing::debug!(contract = %call.contract, %error, ?wait, "call is tried again");
        call.parts.attempt = call.parts.attempt.saturating_add(1);
        call.parts.request_id = RequestId::new();
        if let Some(handle) = self.reported.latest() {
            call.handle = Some(handle);
        }
        if let Some(endpoint) = error.endpoint() {
            // The last one to fail is the last in the list, also where it failed before.
            call.avoid.retain(|avoided| **avoided != *endpoint);
            call.avoid.push(endpoint.into());
            if keys == Keys::Instance && error.may_have_executed() {
                call.only.get_or_insert_with(|| endpoint.into());
            }
        }
        call.parts.repeated |= keys != Keys::None && self.may_have_executed;
        Some(wait)
    }
}

/// Remembers the handle that an attempt reports, for the next one.
struct Reported {
    handle: Mutex<Option<String>>,
    to: Option<Arc<dyn UpdateSink>>,
}

impl Reported {
    fn latest(&self) -> Option<String> {
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

    async fn handle(&self, handle: String) -> Result<(), Failure> {
        self.to.handle(handle.clone()).await?;
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(())
    }
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer").field("limits", &self.limits).finish_non_exhaustive()
    }
}
