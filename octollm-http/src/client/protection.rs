//! The attempts of requests that are no calls of arms: the circuit breaker of a service, and when they are sent again.

use std::{sync::Arc, time::Duration};

use octollm_core::{
    __private::machines::{Admitted, Circuit, FailedRequest, RetryLimits},
    bus::EventBus,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    resilience::{Outcome, RetryBudget},
};
use tokio::time::Instant;

use super::circuit::{CLIENT, circuit};
use crate::limits::ClientConfig;

/// What protects a service, and the program from it.
pub(super) struct Protection {
    service: Arc<str>,
    /// `None` without a breaker.
    breaker: Option<Circuit>,
    budget: RetryBudget,
    limits: RetryLimits,
}

impl Protection {
    pub(super) fn new(
        config: &ClientConfig,
        (service, url): (&Arc<str>, Arc<str>),
        bus: Option<&Arc<dyn EventBus>>,
    ) -> Self {
        let source = CLIENT.into();
        let breaker = config
            .breaker_limits()
            .map(|limits| circuit(limits, (service.clone(), url), bus.map(|bus| (bus, &source))));
        let (service, limits) = (service.clone(), config.retry_limits());
        Self { service, breaker, budget: config.retry_budget(), limits }
    }

    pub(super) fn limits(&self) -> &RetryLimits {
        &self.limits
    }

    /// Begins a request. `repeatable` is whether it may run twice, and `allowed` how many attempts may follow the first one.
    pub(super) fn begin(&self, repeatable: bool, allowed: u32, deadline: Deadline) -> Attempts<'_> {
        self.budget.deposit();
        Attempts { protection: self, repeatable, allowed, deadline, retries: 0 }
    }

    /// Asks the breaker for one attempt.
    ///
    /// # Errors
    /// The breaker is open.
    pub(super) fn admit(&self) -> Result<Admission<'_>, Failure> {
        let Some(breaker) = &self.breaker else { return Ok(Admission(None)) };
        match breaker.admit(Instant::now) {
            Ok(admitted) => Ok(Admission(Some((breaker, admitted)))),
            Err(wait) => Err(Failure::of(ErrorKind::CircuitOpen).retryable_after(wait).before_execution()),
        }
    }
}

/// The attempts of one request.
pub(super) struct Attempts<'a> {
    protection: &'a Protection,
    repeatable: bool,
    allowed: u32,
    deadline: Deadline,
    retries: u32,
}

impl Attempts<'_> {
    /// Number of the attempt that is made or follows, from 1.
    pub(super) fn number(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    /// How long to wait before the request is sent again after a failure; `None` where it is not.
    pub(super) fn failed(&mut self, failure: &Failure) -> Option<Duration> {
        let Self { protection, repeatable, allowed, deadline, retries } = *self;
        let failed = FailedRequest { failure, repeatable, retries, allowed, deadline: Some(deadline) };
        let wait = failed.wait(&protection.limits, &protection.budget, Instant::now())?;
        self.retries += 1;
        tracing::debug!(service = %protection.service, kind = %failure.kind, ?wait, "request is sent again");
        Some(wait)
    }
}

/// The place of an attempt in the breaker. Dropped, it says nothing of the service.
pub(super) struct Admission<'a>(Option<(&'a Circuit, Admitted)>);

impl Admission<'_> {
    pub(super) fn end(mut self, outcome: Outcome, now: Instant) {
        self.record(outcome, now);
    }

    fn record(&mut self, outcome: Outcome, now: Instant) {
        if let Some((breaker, admitted)) = self.0.take() {
            breaker.record(admitted, outcome, || now);
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.record(Outcome::Ignored, Instant::now());
    }
}
