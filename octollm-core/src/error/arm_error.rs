//! What an arm returns when it fails.

use std::{error::Error, fmt, time::Duration};

use super::{CallError, ErrorKind, Failure};
use crate::{budget::BudgetExhausted, contract::Violations};

/// Why an arm failed.
///
/// Any error converts into one with `?`. Its text then stays on this side: the caller is told that the arm failed,
/// the log is told why. What a constructor such as [`ArmError::failed`] is given, the caller reads.
///
/// Like `anyhow::Error` it is not an [`Error`] itself, which is what lets every error convert into it.
pub struct ArmError {
    failure: Box<Failure>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ArmError {
    /// A failure of any kind, with a message that the caller reads.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Failure::new(kind, message).into()
    }

    /// The arm failed, for a reason that the caller may read.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ArmFailed, message)
    }

    /// The input breaks a rule that only the arm knows.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        Failure::invalid(Violations::one(path, message)).into()
    }

    /// The arm cannot work at the moment.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// Says that the same call can succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.failure.retryable = true;
        self
    }

    /// Says that the same call can succeed after so long.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.failure.retry_after = Some(wait);
        self.retryable()
    }

    /// Adds data for programs; the caller reads it.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.failure.details = Some(details);
        self
    }

    /// Adds the cause; the log is told, the caller is not.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says which step of a plan it was, before what the caller reads.
    pub(crate) fn at_step(mut self, step: &str) -> Self {
        self.failure.message = format!("step {step}: {}", self.failure.message);
        self.with_details(serde_json::json!({ "step": step }))
    }

    /// Says that the work was begun.
    pub(crate) fn executed(mut self) -> Self {
        self.failure.may_have_executed = true;
        self
    }

    /// What happened.
    pub fn kind(&self) -> ErrorKind {
        self.failure.kind
    }

    /// All that the caller is told.
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    /// The cause, for the log.
    pub fn source(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        self.source.as_deref()
    }

    /// Gives up the cause and keeps what the caller is told.
    pub fn into_failure(self) -> Failure {
        *self.failure
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for ArmError {
    fn from(error: E) -> Self {
        let error: Box<dyn Error + Send + Sync> = Box::new(error);
        let error = match error.downcast::<CallError>() {
            Ok(call) => return from_call(*call),
            Err(error) => error,
        };
        let error = match error.downcast::<Failure>() {
            Ok(failure) => return Self { failure, source: None },
            Err(error) => error,
        };
        if error.is::<BudgetExhausted>() {
            return Self::new(ErrorKind::BudgetExhausted, BudgetExhausted.to_string());
        }
        Self::failed("the arm failed").with_source(error)
    }
}

/// A failed call, as the caller of the arm that made it is told of it.
///
/// The hop beside a failure has had its chance to retry, so that no hop further up tries again.
fn from_call(error: CallError) -> ArmError {
    let failure = error.failure();
    let kind = match failure.kind {
        kind @ (ErrorKind::DeadlineExceeded
        | ErrorKind::Cancelled
        | ErrorKind::BudgetExhausted
        | ErrorKind::JournalMismatch) => kind,
        ErrorKind::RateLimited | ErrorKind::Unavailable | ErrorKind::Overloaded | ErrorKind::Unreachable => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::UpstreamFailed,
    };
    let told = Failure {
        retryable: false,
        retry_after: failure.retry_after,
        may_have_executed: true,
        ..Failure::new(kind, format!("{}: {}", error.contract(), failure.message))
    };
    ArmError { failure: Box::new(told), source: Some(Box::new(error)) }
}

/// An [`ArmError`] where an [`Error`] is asked for.
#[derive(Debug)]
struct Standard(ArmError);

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Standard {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<ArmError> for Box<dyn Error + Send + Sync> {
    fn from(error: ArmError) -> Self {
        Box::new(Standard(error))
    }
}

impl From<ArmError> for Box<dyn Error> {
    fn from(error: ArmError) -> Self {
        Box::new(Standard(error))
    }
}

impl fmt::Display for ArmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.failure.message)
    }
}

impl fmt::Debug for ArmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArmError").field("failure", &self.failure).field("source", &self.source).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_foreign_error_stays_inside() {
        let error: ArmError = std::io::Error::other("password is swordfish").into();
        assert_eq!(error.failure().message, "the arm failed");
        assert!(error.source().unwrap().to_string().contains("swordfish"));
    }

    #[test]
    fn a_failed_call_is_not_retried_further_up() {
        let contract = "code.validate".parse().unwrap();
        let call = CallError::new(contract, Failure::new(ErrorKind::Overloaded, "too much"));
        assert!(call.retryable());
        let error = ArmError::from(call);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(!error.failure().retryable);
        assert_eq!(error.to_string(), "code.validate: too much");
    }
}
