//! The kinds of failures.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::InvalidValue;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $code:literal, $status:literal;)*) => {
        /// The kind of a failure. The codes are part of the wire: see `docs/wire.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $($(#[$doc])* #[serde(rename = $code)] $kind,)*
        }

        impl ErrorKind {
            /// Every kind there is.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The fixed name on the wire, such as `validation_failed`.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$kind => $code),* }
            }

            /// The HTTP status that carries it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$kind => $status),* }
            }
        }

        impl FromStr for ErrorKind {
            type Err = InvalidValue;

            fn from_str(code: &str) -> Result<Self, Self::Err> {
                match code { $($code => Ok(Self::$kind),)* _ => Err(InvalidValue::new("error code")) }
            }
        }
    };
}

kinds! {
    /// Not JSON, not a valid head, a malformed header.
    BadRequest = "bad_request", 400;
    /// No valid token.
    Unauthenticated = "unauthenticated", 401;
    /// A valid token without the scope.
    InsufficientScope = "insufficient_scope", 403;
    /// A reflex refused the input, or the origin of a page may not open a WebSocket.
    Refused = "refused", 403;
    /// No such route.
    NotFound = "not_found", 404;
    /// No such task, or another's.
    TaskNotFound = "task_not_found", 404;
    /// The contract, or this version of it, is not offered.
    ContractNotOffered = "contract_not_offered", 404;
    /// The route exists, but not for this method.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The response is JSON, which the caller does not accept.
    NotAcceptable = "not_acceptable", 406;
    /// The body did not arrive in time.
    RequestTimeout = "request_timeout", 408;
    /// Another change came first, or the same key is still running.
    Conflict = "conflict", 409;
    /// An earlier attempt may have run, and it is unknown whether it did. It is not made again.
    OutcomeUnknown = "outcome_unknown", 409;
    /// The work was cancelled.
    Cancelled = "cancelled", 409;
    /// A body beyond the limit.
    PayloadTooLarge = "payload_too_large", 413;
    /// A URI beyond the limit.
    UriTooLong = "uri_too_long", 414;
    /// Not JSON by its media type, or in a coding that is not understood.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// An `Expect` other than `100-continue`.
    ExpectationFailed = "expectation_failed", 417;
    /// The route is a WebSocket, which the request does not ask for, or not in a version that is spoken.
    UpgradeRequired = "upgrade_required", 426;
    /// Well-formed, but breaks the contract.
    ValidationFailed = "validation_failed", 422;
    /// This caller sends too many requests.
    RateLimited = "rate_limited", 429;
    /// The budget that came with the work is used up.
    BudgetExhausted = "budget_exhausted", 429;
    /// A head beyond the limit.
    HeadersTooLarge = "headers_too_large", 431;
    /// The arm failed.
    ArmFailed = "arm_failed", 500;
    /// The arm panicked.
    ArmPanicked = "arm_panicked", 500;
    /// A task's journal is not of the program that now runs it.
    JournalMismatch = "journal_mismatch", 500;
    /// A store or another part of this service failed.
    Internal = "internal", 500;
    /// A method that no route has.
    NotImplemented = "not_implemented", 501;
    /// A service that this one called failed.
    UpstreamFailed = "upstream_failed", 502;
    /// The response could not be read.
    BadResponse = "bad_response", 502;
    /// The connection was lost before the response was complete.
    ConnectionLost = "connection_lost", 502;
    /// The service accepts no work at the moment.
    Unavailable = "unavailable", 503;
    /// The service has more work than it accepts at once.
    Overloaded = "overloaded", 503;
    /// The circuit breaker of the service is open on this side: nothing was sent.
    CircuitOpen = "circuit_open", 503;
    /// No connection could be established.
    Unreachable = "unreachable", 503;
    /// The deadline passed.
    DeadlineExceeded = "deadline_exceeded", 504;
    /// A time limit below the deadline passed: connect, read, write, or the wait for a connection.
    Timeout = "timeout", 504;
}

impl ErrorKind {
    /// The default message.
    pub const fn summary(self) -> &'static str {
        match self {
            Self::Cancelled => "the work was cancelled",
            Self::BudgetExhausted => "the budget is used up",
            Self::DeadlineExceeded => "the deadline has passed",
            Self::ArmFailed | Self::ArmPanicked => "the arm failed",
            Self::OutcomeUnknown => "an earlier attempt may have run",
            Self::CircuitOpen => "the service has failed, and gets no calls at the moment",
            Self::TaskNotFound => "there is no such task",
            Self::Overloaded => "this service has more work than it takes at once",
            other => other.code(),
        }
    }

    /// Whether the same call can usually succeed later.
    pub const fn usually_retryable(self) -> bool {
        matches!(
            self,
            Self::RequestTimeout
                | Self::RateLimited
                | Self::UpstreamFailed
                | Self::ConnectionLost
                | Self::Unavailable
                | Self::Overloaded
                | Self::CircuitOpen
                | Self::Unreachable
                | Self::Timeout
        )
    }

    /// Whether the work may usually have run when this is returned.
    pub const fn usually_executed(self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::OutcomeUnknown
                | Self::BudgetExhausted
                | Self::ArmFailed
                | Self::ArmPanicked
                | Self::JournalMismatch
                | Self::Internal
                | Self::UpstreamFailed
                | Self::BadResponse
                | Self::ConnectionLost
                | Self::DeadlineExceeded
                | Self::Timeout
        )
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_names_one_kind() {
        for kind in ErrorKind::ALL {
            assert_eq!(kind.code().parse(), Ok(*kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.code());
        }
    }
}
