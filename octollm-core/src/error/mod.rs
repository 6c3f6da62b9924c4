//! Failures: what kind, whether a retry can help, and whether the work may have run.
//!
//! A [`Failure`] is what both sides read about a failure, on the wire and off it. An [`ArmError`] is one that an arm
//! returns, a [`CallError`] one that a caller gets; both add what only their side knows.

mod arm_error;
mod call_error;
mod kind;
mod program;

use std::{fmt, num::NonZeroU32, sync::OnceLock, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{arm_error::ArmError, call_error::CallError, kind::ErrorKind, program::Error};
pub use crate::invalid::{ConfigError, InvalidValue};
use crate::{
    contract::Violation,
    size::{self, cut},
};

/// A failure, as both sides of a call read it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// Its kind.
    pub kind: ErrorKind,
    /// One line for people. It crosses the network: it has no secrets and no text of foreign errors.
    pub message: String,
    /// The rules that the input breaks, where that is the failure.
    pub violations: Vec<Violation>,
    /// Further data, for programs.
    pub details: Option<serde_json::Value>,
    /// Whether the same call can succeed later.
    pub retryable: bool,
    /// How long to wait before that; `None` where it is not retryable.
    pub retry_after: Option<Duration>,
    /// Whether the work may have been done, wholly or in part.
    pub may_have_executed: bool,
    /// See [`restart_after`](Self::restart_after). Four bytes, since every result of a call has room for a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restart_after_ms: Option<NonZeroU32>,
    #[serde(skip)]
    pub(crate) as_source: SourceCell,
}

impl Failure {
    /// Bytes of the largest failure that an arm returns: 256 KiB of message, violations and details together. In place of the details
    /// of a larger one is `{"omitted_bytes": n}`; message and violations are cut.
    pub const MAX_SIZE: usize = 256 << 10;

    /// A failure with what is usual for its kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            violations: Vec::new(),
            details: None,
            retryable: kind.usually_retryable(),
            retry_after: None,
            may_have_executed: kind.usually_executed(),
            restart_after_ms: None,
            as_source: SourceCell::default(),
        }
    }

    /// A failure with the default message of its kind.
    pub fn of(kind: ErrorKind) -> Self {
        Self::new(kind, kind.summary())
    }

    /// Declares that the same call can succeed after `wait`.
    #[must_use]
    pub fn retryable_after(mut self, wait: Duration) -> Self {
        self.retryable = true;
        self.retry_after = Some(wait);
        self
    }

    /// Declares that the work was not begun.
    #[must_use]
    pub fn before_execution(mut self) -> Self {
        self.may_have_executed = false;
        self
    }

    /// Makes it the failure of a call whose caller has received so many chunks, if any: another attempt would deliver them again.
    pub(crate) fn after_chunks(&mut self, chunks: u64) {
        if chunks == 0 {
            return;
        }
        if self.retryable {
            let wait = self.retry_after.unwrap_or_default().as_millis().try_into().unwrap_or(u32::MAX);
            self.restart_after_ms = NonZeroU32::new(wait.max(1));
        }
        (self.retryable, self.retry_after, self.may_have_executed) = (false, None, true);
        self.add_detail("chunks", chunks.into());
    }

    /// Whether the work can succeed later, by this call or by one that begins it anew.
    pub(crate) fn can_restart(&self) -> bool {
        self.retryable || self.restart_after_ms.is_some()
    }

    /// How long to wait before the work may be begun anew, where the call is not retryable only because its caller has received chunks.
    pub(crate) fn restart_after(&self) -> Option<Duration> {
        self.restart_after_ms.map(|wait| Duration::from_millis(wait.get().into()))
    }

    /// Adds a member to the details. Details that are no object become its member `details`.
    pub fn add_detail(&mut self, name: &str, value: serde_json::Value) {
        let mut details = match self.details.take() {
            Some(serde_json::Value::Object(details)) => details,
            Some(other) => serde_json::Map::from_iter([("details".to_owned(), other)]),
            None => serde_json::Map::new(),
        };
        details.insert(name.to_owned(), value);
        self.details = Some(serde_json::Value::Object(details));
    }

    /// An input that breaks its contract.
    pub fn invalid(violations: Vec<Violation>) -> Self {
        let message = violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("; ");
        Self { violations, ..Self::new(ErrorKind::ValidationFailed, message) }
    }

    /// Bytes of what can be large: the message, the violations and the details, as text.
    pub(crate) fn size(&self) -> usize {
        self.size_with(size::text)
    }

    /// The same, in memory.
    pub(crate) fn memory(&self) -> usize {
        self.size_with(size::memory)
    }

    fn size_with(&self, details: fn(&serde_json::Value) -> usize) -> usize {
        let violation = |violation: &Violation| violation.path.len() + violation.message.len();
        let violations: usize = self.violations.iter().map(violation).sum();
        self.message.len() + violations + self.details.as_ref().map_or(0, details)
    }

    /// The failure without the details, and with what fits of the violations and the message, where it is larger than
    /// [`MAX_SIZE`](Self::MAX_SIZE).
    pub(crate) fn bounded(mut self) -> Self {
        const PART: usize = 16 << 10;
        let size = self.size();
        if size <= Self::MAX_SIZE {
            return self;
        }
        tracing::warn!(kind = %self.kind, size, "failure cut: it is larger than {} bytes", Self::MAX_SIZE);
        let mut bytes = 0;
        self.violations.retain_mut(|violation| {
            cut(&mut violation.path, PART);
            cut(&mut violation.message, PART);
            bytes += violation.path.len() + violation.message.len();
            bytes <= Self::MAX_SIZE / 2
        });
        cut(&mut self.message, PART);
        self.details = Some(serde_json::json!({ "omitted_bytes": size }));
        self
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("violations", &self.violations)
            .field("details", &self.details)
            .field("retryable", &self.retryable)
            .field("retry_after", &self.retry_after)
            .field("may_have_executed", &self.may_have_executed)
            .finish()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.as_source.0.get_or_init(|| Box::new(FailureSource(self.clone()))))
    }
}

/// A failure as its own first source, made on demand. So it is found in a chain of sources even where a wrapper hides the
/// type of the error that it holds.
#[derive(Debug, Default)]
pub(crate) struct SourceCell(OnceLock<Box<FailureSource>>);

#[derive(Debug)]
struct FailureSource(Failure);

impl Clone for SourceCell {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for SourceCell {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The code of what happened.
impl fmt::Display for FailureSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind.fmt(f)
    }
}

impl std::error::Error for FailureSource {}
