//! The error of a failed call.

use std::{error::Error, fmt, time::Duration};

use super::{ErrorKind, Failure};
use crate::{budget::Usage, contract::ContractRef, id::StepKey};

/// The error of a failed call: the failure, and where it happened.
#[derive(Debug)]
pub struct CallError(Box<CallFacts>);

/// What is known of a failed call.
///
/// It is the first source of the [`CallError`], so that it is found in a chain of sources also where a wrapper hides the
/// type of the error that it holds.
#[derive(Debug)]
pub(super) struct CallFacts {
    contract: ContractRef,
    failure: Failure,
    arm: Option<String>,
    endpoint: Option<String>,
    instance: Option<String>,
    step: Option<StepKey>,
    attempts: u32,
    usage: Usage,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl CallError {
    /// A call of `contract` that failed before an arm was chosen, or as an arm reported.
    pub fn new(contract: ContractRef, failure: Failure) -> Self {
        Self(Box::new(CallFacts {
            contract,
            failure,
            arm: None,
            endpoint: None,
            instance: None,
            step: None,
            attempts: 1,
            usage: Usage::default(),
            source: None,
        }))
    }

    /// Sets the arm that was called.
    #[must_use]
    pub fn with_arm(mut self, arm: impl Into<String>) -> Self {
        self.0.arm = Some(arm.into());
        self
    }

    /// Sets the endpoint that was called.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.0.endpoint = Some(endpoint.into());
        self
    }

    /// Sets the process of the arm that was called: [`ArmCard::instance`](crate::card::ArmCard::instance).
    #[must_use]
    pub fn with_instance(mut self, instance: impl Into<String>) -> Self {
        self.0.instance = Some(instance.into());
        self
    }

    /// Sets the step: which call of its task it was.
    #[must_use]
    pub fn with_step(mut self, step: StepKey) -> Self {
        self.0.step = Some(step);
        self
    }

    /// Sets how many attempts were made (default 1).
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    /// Sets what the arm used before it failed.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.0.usage = usage;
        self
    }

    pub(crate) fn map_failure(mut self, change: impl FnOnce(&mut Failure)) -> Self {
        change(&mut self.0.failure);
        self
    }

    /// Makes it the error of several attempts, of which it was the last: how many were made, what all of them used, and
    /// whether any of them may have executed.
    pub(crate) fn after_attempts(&mut self, attempts: u32, usage: Usage, may_have_executed: bool) {
        self.0.attempts = attempts;
        self.0.usage = usage;
        self.0.failure.may_have_executed |= may_have_executed;
    }

    /// Sets the cause on this side.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The contract that was called.
    pub fn contract(&self) -> &ContractRef {
        &self.0.contract
    }

    /// The arm that was called, once one was chosen.
    pub fn arm(&self) -> Option<&str> {
        self.0.arm.as_deref()
    }

    /// The endpoint that was called.
    pub fn endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }

    /// The process of the arm that was called, by the card that was valid then. `None` where it is not known.
    pub fn instance(&self) -> Option<&str> {
        self.0.instance.as_deref()
    }

    /// The step: which call of its task it was. `None` where it was made without a context.
    pub fn step(&self) -> Option<&StepKey> {
        self.0.step.as_ref()
    }

    /// The number of tries. One attempt of a client tries another endpoint where no connection could be made to the first one. Each
    /// of them counts, so that this can exceed the attempts that were allowed. An endpoint that a circuit breaker passes over does not.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// What the arm used before it failed, as far as it reported that.
    pub fn usage(&self) -> Usage {
        self.0.usage
    }

    /// The kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.failure.kind
    }

    /// The failure.
    pub fn failure(&self) -> &Failure {
        &self.0.failure
    }

    /// Whether the same call can succeed later.
    pub fn retryable(&self) -> bool {
        self.0.failure.retryable
    }

    /// How long to wait before another attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.failure.retry_after
    }

    /// Whether the arm may have done the work, wholly or in part.
    pub fn may_have_executed(&self) -> bool {
        self.0.failure.may_have_executed
    }
}

/// `code.validate at judge: the deadline has passed`
impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The failure may begin with the contract.
        let contract = self.0.contract.to_string();
        if self.0.failure.message.strip_prefix(&contract).is_some_and(|rest| rest.starts_with(' ')) {
            return write!(f, "{}", self.0.failure);
        }
        f.write_str(&contract)?;
        if let Some(arm) = &self.0.arm {
            write!(f, " at {arm}")?;
        }
        write!(f, ": {}", self.0.failure)
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

impl CallFacts {
    pub(super) fn contract(&self) -> &ContractRef {
        &self.contract
    }

    pub(super) fn failure(&self) -> &Failure {
        &self.failure
    }

    pub(super) fn step(&self) -> Option<&StepKey> {
        self.step.as_ref()
    }
}

/// The code of what happened.
impl fmt::Display for CallFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.kind.fmt(f)
    }
}

impl Error for CallFacts {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
