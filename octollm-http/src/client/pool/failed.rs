//! The failure of an exchange.

use std::{error::Error, fmt};

use octollm_core::error::{ErrorKind, Failure};
use serde_json::json;
use tower::BoxError;

/// The part of an exchange in which a time limit has passed or a connection failed: the detail `phase` of the failure.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Connect,
    PoolWait,
    Write,
    ReadHead,
    ReadBody,
}

/// The failure of an exchange that returned no answer, and its cause. An answer that reports a failure is an answer.
#[derive(Debug)]
pub(crate) struct ExchangeError {
    pub(in crate::client) failure: Box<Failure>,
    pub(in crate::client) cause: Option<BoxError>,
}

impl ExchangeError {
    pub(in crate::client) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Failure::new(kind, message).into()
    }

    /// The failure of a TLS handshake, which another attempt does not solve.
    pub(in crate::client) fn not_trusted(problem: &'static str) -> Self {
        let mut failure = Failure::new(ErrorKind::Unreachable, format!("no connection: {problem}"));
        failure.retryable = false;
        Self::from(failure).before_execution()
    }

    /// Adds the phase in which it failed.
    pub(super) fn in_phase(mut self, phase: Phase) -> Self {
        let name = match phase {
            Phase::Connect => "connect",
            Phase::PoolWait => "pool_wait",
            Phase::Write => "write",
            Phase::ReadHead => "read_head",
            Phase::ReadBody => "read_body",
        };
        self.failure.details = Some(json!({ "phase": name }));
        self
    }

    /// Marks the request as not sent, so that any request may be sent again.
    pub(in crate::client) fn before_execution(mut self) -> Self {
        self.failure.may_have_executed = false;
        self
    }

    pub(in crate::client) fn caused_by(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl From<Failure> for ExchangeError {
    fn from(failure: Failure) -> Self {
        Self { failure: Box::new(failure), cause: None }
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
        *error.failure
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
