//! Why an exchange returned no answer.

use std::{borrow::Cow, error::Error, fmt, time::Duration};

use octollm_core::error::{ErrorKind, Failure};

type BoxError = Box<dyn Error + Send + Sync>;

/// Why an exchange returned no answer: none came, or none that could be read. An answer that reports a failure is still
/// an answer.
#[derive(Debug)]
pub struct ExchangeError {
    kind: ErrorKind,
    message: Cow<'static, str>,
    retryable: bool,
    may_have_executed: bool,
    retry_after: Option<Duration>,
    source: Option<BoxError>,
}

impl ExchangeError {
    /// With what is usual for its kind.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            retryable: kind.usually_retryable(),
            may_have_executed: kind.usually_executed(),
            retry_after: None,
            source: None,
        }
    }

    /// With the summary of its kind as its message.
    pub fn of(kind: ErrorKind) -> Self {
        Self::new(kind, kind.summary())
    }

    /// Says that the work was not begun.
    #[must_use]
    pub fn before_execution(mut self) -> Self {
        self.may_have_executed = false;
        self
    }

    /// Says that trying again cannot help.
    #[must_use]
    pub fn final_(mut self) -> Self {
        self.retryable = false;
        self
    }

    /// Says how long to wait before trying again.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What happened.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same request can succeed later.
    pub fn retryable(&self) -> bool {
        self.retryable
    }

    /// Whether the server may have done the work, wholly or in part. If not, any request may be sent again.
    pub fn may_have_executed(&self) -> bool {
        self.may_have_executed
    }

    /// How long to wait before that.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(super) fn into_parts(self) -> (Failure, Option<BoxError>) {
        let mut failure = Failure::new(self.kind, self.message);
        failure.retryable = self.retryable;
        failure.may_have_executed = self.may_have_executed;
        failure.retry_after = self.retry_after;
        (failure, self.source)
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        error.into_parts().0
    }
}

/// For layers that box their errors: one of ours is unwrapped, any other becomes its source.
impl From<BoxError> for ExchangeError {
    fn from(error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => *ours,
            Err(foreign) => {
                Self::new(ErrorKind::Internal, "a layer of the client failed").with_source(foreign)
            }
        }
    }
}

impl From<std::convert::Infallible> for ExchangeError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ExchangeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
