//! The log of a brain or a server, if it has one.

use std::{fmt, sync::Arc, time::Duration};

use super::{AuditEntry, AuditLog};
use crate::{
    deadline::Deadline,
    error::{ErrorKind, Failure},
    panics::{Panicked, caught},
};

/// The time limit of a log.
const LIMIT: Duration = Duration::from_secs(10);

/// The log of a brain or a server, if it has one.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<dyn AuditLog>>);

impl Audit {
    /// A log.
    pub fn new(log: impl AuditLog) -> Self {
        Self(Some(Arc::new(log)))
    }

    /// Whether there is a log.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Appends an entry, which is made only if there is a log.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`]: nothing is to be done then.
    pub async fn record(&self, entry: impl FnOnce() -> AuditEntry) -> Result<(), Failure> {
        let Some(log) = &self.0 else { return Ok(()) };
        let error = match caught(Deadline::after(LIMIT).run(log.record(entry()))).await {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(failure))) => failure.to_string(),
            Ok(None) => format!("no answer came within {LIMIT:?}"),
            Err(Panicked) => "it panicked".to_owned(),
        };
        tracing::warn!(error, "audit log not available");
        let message = "the audit log is not available: try again later";
        Err(Failure::new(ErrorKind::Unavailable, message).before_execution())
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audit").field(&self.is_on()).finish()
    }
}
