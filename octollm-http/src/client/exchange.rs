//! One HTTP request: its limits, its purpose, and how it fails.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use octollm_core::{
    contract::ContractRef,
    deadline::Deadline,
    error::{ConfigError, ErrorKind, Failure},
};
use tower::BoxError;

use crate::limits::limits_struct;

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
    pub(super) failure: Box<Failure>,
    pub(super) cause: Option<BoxError>,
}

const SHORTEST: Duration = Duration::from_nanos(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Hands the limits of a client to another macro.
macro_rules! client_limits {
    ($then:ident $($arguments:tt)*) => {
        $then! { $($arguments)* {
            /// Sets the time limit on opening a connection, with the name lookup and the TLS handshake. Default 5 s, at most a day.
            connect_timeout: Duration = Duration::from_secs(5), SHORTEST => DAY;
            /// Sets the time that a server may send nothing while an answer is due. Until the answer begins, a contract whose
            /// own time limit exceeds 30 s may take that long. Default 30 s, at most a day.
            read_idle: Duration = Duration::from_secs(30), SHORTEST => DAY;
            /// Sets the time that a server may read nothing while a request is sent. Default 10 s, at most a day.
            write_idle: Duration = Duration::from_secs(10), SHORTEST => DAY;
            /// Sets the time that a request waits for a connection when all are busy. Default 5 s, at most a day.
            pool_wait: Duration = Duration::from_secs(5), SHORTEST => DAY;
            /// Sets the most connections open at a time, to all arms together. Default 100, at most 100,000.
            ///
            /// With several arms no arm has calls on more than half of them, and with more than two none has calls on more
            /// than are free. A connection that becomes free goes to a waiting call before it counts as idle.
            max_connections: usize = 100, 1 => 100_000;
            /// Sets the most idle connections that stay open. Default 20, at most
            /// [`max_connections`](Self::max_connections).
            max_idle: usize = 20, 0 => usize::MAX;
            /// Sets the time after which an idle connection is closed. It should be less than the servers' own, so that the
            /// client closes first. A connection whose server announces less (`Keep-Alive: timeout=5`) is not used after
            /// that. Default 15 s, at most a day.
            idle_timeout: Duration = Duration::from_secs(15), SHORTEST => DAY;
            /// Sets the age after which a connection is not used again, with a random tenth added or taken away. Default
            /// 5 minutes, at most a day.
            max_age: Duration = Duration::from_secs(300), SHORTEST => DAY;
            /// Sets the largest answer, in bytes. Default 8 MiB. A card has a limit of 1 MiB of its own. The body of a
            /// failure beyond 256 KiB is ignored: only its status counts.
            max_answer: usize = 8 << 20, 1 => usize::MAX;
            /// Sets the time limit on asking an arm for its card. Default 5 s, at most a day.
            capabilities_timeout: Duration = Duration::from_secs(5), SHORTEST => DAY;
        } }
    };
}
pub(super) use client_limits;

client_limits!(limits_struct ClientConfig);

impl ClientConfig {
    /// # Errors
    /// Names the first limit that is out of range.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.check()?;
        if self.max_idle > self.max_connections {
            return Err(ConfigError::new("max_idle", "is above max_connections: set it to at most that"));
        }
        Ok(())
    }
}

impl ExchangeError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Failure::new(kind, message).into()
    }

    /// The failure of a TLS handshake, which another attempt does not solve.
    pub(super) fn not_trusted(problem: &'static str) -> Self {
        let mut failure = Failure::new(ErrorKind::Unreachable, format!("no connection: {problem}"));
        failure.retryable = false;
        Self::from(failure).before_execution()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_out_of_range_are_refused() {
        let good = ClientConfig::default();
        good.validate().unwrap();
        for bad in [
            ClientConfig { connect_timeout: Duration::ZERO, ..good.clone() },
            ClientConfig { read_idle: Duration::MAX, ..good.clone() },
            ClientConfig { max_connections: 0, max_idle: 0, ..good.clone() },
            ClientConfig { max_idle: 101, ..good.clone() },
            ClientConfig { max_answer: 0, ..good.clone() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
