//! One HTTP request: what it observes, what its layers can know of it, and how it fails.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use octollm_core::{
    contract::ContractRef,
    deadline::Deadline,
    error::{ErrorKind, Failure},
};
use tower::BoxError;

/// The limits of one exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExchangeLimits {
    /// The caller stops waiting then, so no timer is made that would end later.
    pub(super) deadline: Option<Deadline>,
    /// Time that the server may work before it answers.
    pub(super) work: Duration,
}

/// The purpose of an HTTP request, among its extensions in a
/// [`request_layer`](super::ArmsBuilder::request_layer).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Target {
    /// Id of the arm, or `orchestrator`.
    pub arm: Arc<str>,
    /// URL of the arm or orchestrator.
    pub endpoint: Arc<str>,
    /// Contract that is called; `None` for a request that is no call, such as one for a card.
    pub contract: Option<ContractRef>,
    /// Whether the request may run twice, by the caller's own contract.
    pub idempotent: bool,
    /// Deadline of the caller.
    pub deadline: Option<Deadline>,
    /// Time that the server may work before it answers.
    pub work: Duration,
}

/// The failure of an exchange that returned no answer, and its cause. An answer that reports a failure is an answer.
#[derive(Debug)]
pub(super) struct ExchangeError {
    pub(super) failure: Failure,
    pub(super) cause: Option<BoxError>,
}

impl ExchangeError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Failure::new(kind, message).into()
    }

    /// Marks the request as not sent, so that any request may be sent again.
    pub(super) fn before_execution(mut self) -> Self {
        self.failure.may_have_executed = false;
        self
    }

    pub(super) fn caused_by(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl From<Failure> for ExchangeError {
    fn from(failure: Failure) -> Self {
        Self { failure, cause: None }
    }
}

/// Restores what passed through the layers of a user. A [`Failure`] is taken as it is, and any other error becomes the cause.
impl From<BoxError> for ExchangeError {
    fn from(error: BoxError) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(ours) => return *ours,
            Err(error) => error,
        };
        match error.downcast::<Failure>() {
            Ok(failure) => (*failure).into(),
            Err(foreign) => Self::new(ErrorKind::Internal, "a layer of the client failed").caused_by(foreign),
        }
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        error.failure
    }
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl Error for ExchangeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}
