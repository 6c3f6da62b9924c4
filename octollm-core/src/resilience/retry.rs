//! The layer that tries a failed call again.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt};

use super::policy::{Failed, RetryConfig};
use crate::{
    budget::Usage,
    deadline::Deadline,
    error::{CallError, ConfigError, ErrorKind, Failure},
    id::RequestId,
    transport::{Call, Reply},
    update::{Handle, Update, UpdateSink},
};

/// Tries failed calls again where that is safe and can help: see the [module](super).
///
/// It belongs above the choice of an endpoint: a further attempt names those that failed in [`Call::avoid`], and has the
/// handle that an earlier one reported in [`Call::handle`]. The answer has what all attempts used, and how many were made.
///
/// It makes all attempts that a call asks for: a retry layer below it makes only those that it has by default.
#[derive(Debug, Clone, Default)]
pub struct RetryLayer {
    rules: Arc<Rules>,
}

impl RetryLayer {
    /// With limits of its own.
    ///
    /// # Errors
    /// A [`ConfigError`] for limits that make no sense.
    pub fn new(config: RetryConfig) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self { rules: Arc::new(Rules { config, ..Rules::default() }) })
    }

    /// One attempt, unless the call asks for more.
    pub fn when_asked() -> Self {
        let config = RetryConfig { attempts: 1, ..RetryConfig::default() };
        Self { rules: Arc::new(Rules { config, ..Rules::default() }) }
    }

    /// Sets how to find out whether the arms of a call honour its key: they run it once, however often it is sent. Without
    /// this none does.
    #[must_use]
    pub fn keys_honoured(self, honoured: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Self {
        let rules = Rules { config: self.rules.config.clone(), honoured: Box::new(honoured) };
        Self { rules: Arc::new(rules) }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, service: S) -> Self::Service {
        Retry { rules: self.rules.clone(), service }
    }
}

/// The service of a [`RetryLayer`].
///
/// Each attempt ends at the deadline of its call, whatever the service below does.
#[derive(Debug, Clone)]
pub struct Retry<S> {
    rules: Arc<Rules>,
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

struct Rules {
    config: RetryConfig,
    honoured: Box<dyn Fn(&Call) -> bool + Send + Sync>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { config: RetryConfig::default(), honoured: Box::new(|_| false) }
    }
}

impl Rules {
    /// Attempts after the first one.
    fn allowed(&self, call: &Call) -> u32 {
        call.retry.max(self.config.attempts.saturating_sub(1))
    }

    fn is_repeatable(&self, call: &Call) -> bool {
        call.is_idempotent() || call.key.is_some() && (self.honoured)(call)
    }
}

/// The attempts of one call, and what they have come to.
struct Attempts {
    rules: Arc<Rules>,
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
    fn new(rules: Arc<Rules>, mut call: Call) -> Self {
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
            let answer = Deadline::run_until(deadline, attempt).await.unwrap_or_else(|| {
                Err(CallError::new(self.call.contract.clone(), Failure::of(ErrorKind::DeadlineExceeded)))
            });
            match answer {
                Ok(reply) => return Ok(self.answered(reply)),
                Err(mut error) => match self.failed(&mut error) {
                    Some(wait) => sleep(wait).await,
                    None => return Err(error),
                },
            }
        }
    }

    fn answered(&self, mut reply: Reply) -> Reply {
        reply.usage = self.used.plus(reply.usage);
        reply.served_by.attempts = reply.served_by.attempts.saturating_add(self.sent);
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
        let failed = Failed {
            failure: error.failure(),
            repeatable: self.rules.is_repeatable(call),
            retries: self.retries,
            allowed: self.allowed,
            deadline: call.parts.deadline,
            budget: call.parts.budget,
        };
        let Some(wait) = self.rules.config.wait(&failed, Instant::now(), random()) else {
            error.after_attempts(self.sent, self.used, self.may_have_executed);
            return None;
        };
        self.retries += 1;
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
        }
        Some(wait)
    }
}

/// Remembers the handle that an attempt reports, for the next one.
struct Reported {
    handle: Mutex<Option<Handle>>,
    to: Option<Arc<dyn UpdateSink>>,
}

impl Reported {
    fn latest(&self) -> Option<Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl UpdateSink for Reported {
    fn update(&self, update: Update) {
        if let Some(to) = &self.to {
            to.update(update);
        }
    }

    async fn chunk(&self, chunk: Value) {
        if let Some(to) = &self.to {
            to.chunk(chunk).await;
        }
    }

    async fn handle(&self, handle: Handle) -> Result<(), Failure> {
        if let Some(to) = &self.to {
            to.handle(handle.clone()).await?;
        }
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(())
    }
}

/// At least 0 and below 1.
fn random() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rules").field(&self.config).finish()
    }
}
