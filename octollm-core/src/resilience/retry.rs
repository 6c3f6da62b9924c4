//! The layer that tries a failed call again.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use tokio::time::{Instant, Sleep, sleep};
use tower::{
    Layer,
    retry::{Policy, Retry},
    util::MapRequest,
};

use super::policy::{Failed, InvalidRetryConfig, RetryConfig};
use crate::{
    budget::Usage,
    error::CallError,
    id::RequestId,
    transport::{Call, Reply},
};

/// Tries failed calls again where that is safe and can help: see the [module](super).
///
/// It belongs above the choice of an endpoint: a further attempt names those that failed in [`Call::avoid`]. It makes all
/// attempts that a call asks for: a retry layer below it makes only those that it has by default.
#[derive(Debug, Clone, Default)]
pub struct RetryLayer {
    policy: RetryPolicy,
}

impl RetryLayer {
    /// With limits of its own.
    ///
    /// # Errors
    /// [`InvalidRetryConfig`] for limits that make no sense.
    pub fn new(config: RetryConfig) -> Result<Self, InvalidRetryConfig> {
        config.check()?;
        let rules = Arc::new(Rules { config, ..Rules::default() });
        Ok(Self { policy: RetryPolicy { rules, ..RetryPolicy::default() } })
    }

    /// One attempt, unless the call asks for more.
    pub fn when_asked() -> Self {
        let config = RetryConfig { attempts: 1, ..RetryConfig::default() };
        let rules = Arc::new(Rules { config, ..Rules::default() });
        Self { policy: RetryPolicy { rules, ..RetryPolicy::default() } }
    }

    /// Sets how to find out whether the arms of a call honour its key: they run it once, however often it is sent. Without
    /// this none does.
    #[must_use]
    pub fn keys_honoured(self, honoured: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Self {
        let rules = Rules { config: self.policy.rules.config.clone(), honoured: Box::new(honoured) };
        Self { policy: RetryPolicy { rules: Arc::new(rules), ..self.policy } }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<RetryPolicy, MapRequest<S, fn(Call) -> Call>>;

    fn layer(&self, service: S) -> Self::Service {
        Retry::new(self.policy.clone(), MapRequest::new(service, once))
    }
}

/// An attempt, without those that this layer may make: another retry layer below would multiply them.
fn once(mut call: Call) -> Call {
    call.retry = 0;
    call
}

/// The policy of a [`RetryLayer`], with what the attempts of one call have come to.
#[derive(Debug, Clone, Default)]
pub struct RetryPolicy {
    rules: Arc<Rules>,
    retries: u32,
    /// Those of layers below included.
    attempts: u32,
    used: Usage,
    may_have_executed: bool,
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

impl RetryPolicy {
    /// Attempts after the first one.
    fn allowed(&self, call: &Call) -> u32 {
        call.retry.max(self.rules.config.attempts.saturating_sub(1))
    }

    fn is_repeatable(&self, call: &Call) -> bool {
        call.is_idempotent() || call.key.is_some() && (self.rules.honoured)(call)
    }
}

impl Policy<Call, Reply, CallError> for RetryPolicy {
    type Future = Sleep;

    /// Makes the next attempt of `call`, which was not sent yet.
    fn retry(&mut self, call: &mut Call, answer: &mut Result<Reply, CallError>) -> Option<Sleep> {
        let error = match answer {
            Ok(reply) => {
                reply.usage = self.used.plus(reply.usage);
                reply.trip.attempts = reply.trip.attempts.saturating_add(self.attempts);
                return None;
            }
            Err(error) => error,
        };
        self.used = self.used.plus(error.usage());
        self.attempts = self.attempts.saturating_add(error.attempts());
        self.may_have_executed |= error.may_have_executed();
        call.parts.budget = call.parts.budget.after(error.usage());
        let failed = Failed {
            failure: error.failure(),
            repeatable: self.is_repeatable(call),
            retries: self.retries,
            allowed: self.allowed(call),
            deadline: call.parts.deadline,
            budget: call.parts.budget,
        };
        let Some(wait) = self.rules.config.wait(&failed, Instant::now(), random()) else {
            error.after_attempts(self.attempts, self.used, self.may_have_executed);
            return None;
        };
        self.retries += 1;
        tracing::debug!(contract = %call.contract, %error, ?wait, "call is tried again");
        call.parts.attempt = call.parts.attempt.saturating_add(1);
        call.parts.request_id = RequestId::new();
        if let Some(endpoint) = error.endpoint() {
            // The last one to fail is the last in the list, also where it failed before.
            call.avoid.retain(|avoided| **avoided != *endpoint);
            call.avoid.push(endpoint.into());
        }
        Some(sleep(wait))
    }

    /// The last attempt has a copy too, for it is by `retry` that its answer gets the sums.
    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        (self.allowed(call) > 0).then(|| call.clone())
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
