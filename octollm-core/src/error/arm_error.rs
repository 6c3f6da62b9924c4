//! The error of an arm.

use std::{error::Error, fmt, time::Duration};

use super::{CallError, Error as ProgramError, ErrorKind, Failure, FailureSource, call_error::CallFacts};
use crate::{
    contract::{ContractRef, Violation},
    id::StepKey,
};

/// The error that an arm returns.
///
/// Anything that converts into a boxed error converts into one with `?`: every error, `anyhow::Error`, a text. Its text
/// is logged and never sent: the caller reads that the arm failed. The message of a constructor such as
/// [`ArmError::failed`] is sent to the caller.
///
/// A [`CallError`], a [`Failure`] or an `ArmError` (see [`into_boxed`](Self::into_boxed)) retains its kind, wherever it is in
/// the chain of sources: context that was added on the way is for the log.
///
/// Like `anyhow::Error` it does not implement [`Error`], so that every error can convert into it.
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
        Failure::invalid(vec![Violation::new(path, message)]).into()
    }

    /// The arm cannot work at the moment.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// Declares that the same call can succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.failure.retryable = true;
        self
    }

    /// Declares that the same call can succeed after `wait`.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        *self.failure = self.failure.retryable_after(wait);
        self
    }

    /// Adds data for programs; the caller reads it.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.failure.details = Some(details);
        self
    }

    /// Adds the cause, which is logged and never sent.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the step of a plan, before what the caller reads.
    pub(crate) fn at_step(mut self, step: &str) -> Self {
        self.failure.message = format!("step {step}: {}", self.failure.message);
        self.with_details(serde_json::json!({ "step": step }))
    }

    /// Bounds what the caller reads: see [`Failure::MAX_SIZE`].
    pub(crate) fn bounded(mut self) -> Self {
        *self.failure = self.failure.bounded();
        self
    }

    /// Declares that the work was begun.
    pub(crate) fn executed(mut self) -> Self {
        self.failure.may_have_executed = true;
        self
    }

    /// What happened.
    pub fn kind(&self) -> ErrorKind {
        self.failure.kind
    }

    /// The failure as the caller reads it.
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    /// The cause, for the log.
    pub fn source(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        self.source.as_deref()
    }

    /// Which of the arm's own calls failed, where it is the error of one.
    pub(crate) fn step(&self) -> Option<&StepKey> {
        let cause = self.source.as_deref().map(|source| source as &(dyn Error + 'static));
        std::iter::successors(cause, |&error| error.source()).find_map(|error| {
            let of_call = error.downcast_ref::<CallError>().and_then(CallError::step);
            let of_facts = || error.downcast_ref::<CallFacts>().and_then(CallFacts::step);
            let of_arm =
                || error.downcast_ref::<ArmErrorSource>().and_then(|ArmErrorSource(carried)| carried.step());
            of_call.or_else(of_facts).or_else(of_arm)
        })
    }

    /// Drops the cause and returns what the caller reads.
    pub fn into_failure(self) -> Failure {
        *self.failure
    }

    /// The same as a standard error, for code that asks for one. With `?` in an arm it becomes this error again, also
    /// where context was added in between.
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync> {
        Box::new(BoxedArmError(ArmErrorSource(self)))
    }

    fn of(error: Box<dyn Error + Send + Sync>) -> Self {
        let error = match error.downcast::<BoxedArmError>() {
            Ok(boxed) => return boxed.0.0,
            Err(error) => error,
        };
        let error = match error.downcast::<Failure>() {
            Ok(failure) => return Self { failure, source: None },
            Err(error) => error,
        };
        let failure = known(&*error).unwrap_or_else(|| Failure::new(ErrorKind::ArmFailed, "the arm failed"));
        Self { failure: Box::new(failure), source: Some(error) }
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for ArmError {
    fn from(error: E) -> Self {
        Self::of(error.into())
    }
}

impl From<ProgramError> for ArmError {
    fn from(error: ProgramError) -> Self {
        Self::of(error.into_boxed())
    }
}

/// The first error of ours in a chain of sources, as the caller reads it.
fn known(error: &(dyn Error + 'static)) -> Option<Failure> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        if let Some(call) = error.downcast_ref::<CallError>() {
            return Some(failed_call(call.contract(), call.failure()));
        }
        if let Some(facts) = error.downcast_ref::<CallFacts>() {
            return Some(failed_call(facts.contract(), facts.failure()));
        }
        if let Some(ArmErrorSource(carried)) = error.downcast_ref() {
            return Some(carried.failure().clone());
        }
        if let Some(FailureSource(failure)) = error.downcast_ref() {
            return Some(failure.clone());
        }
        error.downcast_ref::<Failure>().cloned()
    })
}

/// A failed call, as the caller of the arm that made it reads it.
///
/// The hop beside a failure has had its chance to retry, so that no hop further up tries again, and none waits.
fn failed_call(contract: &ContractRef, failure: &Failure) -> Failure {
    let kind = match failure.kind {
        kind @ (ErrorKind::DeadlineExceeded
        | ErrorKind::Cancelled
        | ErrorKind::BudgetExhausted
        | ErrorKind::OutcomeUnknown
        | ErrorKind::JournalMismatch) => kind,
        ErrorKind::RateLimited
        | ErrorKind::Unavailable
        | ErrorKind::Overloaded
        | ErrorKind::CircuitOpen
        | ErrorKind::Unreachable => ErrorKind::Unavailable,
        _ => ErrorKind::UpstreamFailed,
    };
    Failure {
        retryable: false,
        may_have_executed: true,
        ..Failure::new(kind, format!("{contract}: {}", failure.message))
    }
}

/// An [`ArmError`] where an [`Error`] is asked for.
///
/// Some wrappers, such as the box that an `anyhow::Error` converts into, hide the type of the error that they hold but
/// not its source. That is why the error itself is its own first source here, under another type.
#[derive(Debug)]
struct BoxedArmError(ArmErrorSource);

#[derive(Debug)]
struct ArmErrorSource(ArmError);

impl fmt::Display for BoxedArmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl Error for BoxedArmError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// The code of what happened.
impl fmt::Display for ArmErrorSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind().fmt(f)
    }
}

impl Error for ArmErrorSource {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
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
    use anyhow::Context;

    use super::*;

    fn unavailable() -> CallError {
        let failure = Failure {
            retry_after: Some(Duration::from_secs(5)),
            ..Failure::new(ErrorKind::Unavailable, "busy")
        };
        CallError::new("code.validate".parse().unwrap(), failure).with_arm("judge")
    }

    /// As `?` in an arm does it.
    fn converted<E: Into<ArmError>>(error: E) -> ArmError {
        fn arm<E: Into<ArmError>>(error: E) -> Result<(), ArmError> {
            Err(error.into())
        }
        arm(error).unwrap_err()
    }

    #[derive(Debug, thiserror::Error)]
    #[error("swordfish")]
    struct Wrapped(#[source] CallError);

    #[test]
    fn the_text_of_a_foreign_error_stays_inside() {
        for error in [
            converted(std::io::Error::other("swordfish")),
            converted("swordfish"),
            converted(String::from("swordfish")),
            converted(anyhow::anyhow!("swordfish")),
            converted(anyhow::Error::from(std::io::Error::other("swordfish"))),
            converted(Box::<dyn Error + Send + Sync>::from("swordfish")),
        ] {
            assert_eq!(error.failure(), &Failure::new(ErrorKind::ArmFailed, "the arm failed"));
            assert!(error.source().unwrap().to_string().contains("swordfish"));
        }
    }

    #[test]
    fn a_failed_call_keeps_its_kind_wherever_it_is() {
        for error in [
            converted(unavailable()),
            converted(Box::new(unavailable())),
            converted(Box::<dyn Error + Send + Sync>::from(unavailable())),
            converted(anyhow::Error::from(unavailable())),
            converted(anyhow::Error::from(unavailable()).context("swordfish")),
            converted(Err::<(), _>(unavailable()).context("swordfish").context("again").unwrap_err()),
            converted(Wrapped(unavailable())),
            converted(std::io::Error::other(Wrapped(unavailable()))),
            converted(anyhow::Error::from(Wrapped(unavailable()))),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert_eq!(error.to_string(), "code.validate: busy");
            assert!(error.source().is_some());
        }
    }

    #[test]
    fn an_arm_error_comes_back_as_it_was() {
        let original = || ArmError::invalid("code", "is not Rust").with_source("swordfish");
        let boxed = original().into_boxed();
        assert_eq!(boxed.to_string(), "code: is not Rust");
        for error in [
            converted(boxed),
            converted(anyhow::Error::from_boxed(original().into_boxed())),
            converted(anyhow::Error::from_boxed(original().into_boxed()).context("swordfish")),
            converted(std::io::Error::other(original().into_boxed())),
        ] {
            assert_eq!(error.failure(), original().failure());
            assert!(error.source().is_some());
        }
    }

    #[test]
    fn a_failure_keeps_all_of_itself_wherever_it_is() {
        let failure = || Failure::new(ErrorKind::TaskNotFound, "no such task");
        assert_eq!(converted(failure()).failure(), &failure());
        for error in [
            converted(anyhow::Error::from(failure())),
            converted(anyhow::Error::from(failure()).context("swordfish")),
            converted(std::io::Error::other(anyhow::Error::from(failure()))),
            converted(ProgramError::from(failure())),
            converted(ProgramError::from(ArmError::from(failure()))),
            converted(ProgramError::from(anyhow::Error::from(failure()))),
        ] {
            assert_eq!(error.failure(), &failure());
        }
    }

    #[test]
    fn a_spent_budget_keeps_its_kind_wherever_it_is() {
        for error in [
            converted(Failure::of(ErrorKind::BudgetExhausted)),
            converted(anyhow::Error::from(Failure::of(ErrorKind::BudgetExhausted))),
            converted(anyhow::Error::from(Failure::of(ErrorKind::BudgetExhausted)).context("swordfish")),
            converted(ProgramError::from(Failure::of(ErrorKind::BudgetExhausted))),
        ] {
            assert_eq!(error.failure(), &Failure::of(ErrorKind::BudgetExhausted));
        }
    }

    #[test]
    fn a_failed_call_is_not_retried_further_up() {
        let call = unavailable();
        assert!(call.retryable() && call.retry_after().is_some());
        let error = converted(call);
        assert_eq!((error.failure().retryable, error.failure().retry_after), (false, None));
        assert!(error.failure().may_have_executed);
    }
}
