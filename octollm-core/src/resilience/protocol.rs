//! What the layers know about the requests that pass them.

use std::time::Duration;

use super::Outcome;
use crate::{
    budget::Usage,
    deadline::Deadline,
    dropped::drop_call,
    error::{CallError, ErrorKind, Failure},
    explain::{CallEvent, CallRecord},
    id::RequestId,
    transport::{Call, Reply},
    update::UpdateSink,
};

/// What the layers of this module have to know about the requests of a service. [`Calls`] is the protocol of octollm's own.
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use octollm_core::resilience::{BreakerLayer, Outcome, Protocol, Refusal, Repeat, RetryLayer};
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
///
/// /// Queries of a database.
/// #[derive(Clone)]
/// struct Queries;
///
/// #[derive(Debug)]
/// enum QueryError {
///     Syntax,
///     Lost,
///     Refused(Refusal),
/// }
///
/// impl Protocol for Queries {
///     type Request = String;
///     type Response = u64;
///     type Error = QueryError;
///
///     fn outcome(&self, result: Result<&u64, &QueryError>) -> Outcome {
///         match result {
///             // The database has answered.
///             Ok(_) | Err(QueryError::Syntax) => Outcome::Success,
///             Err(QueryError::Lost) => Outcome::Failure,
///             Err(QueryError::Refused(_)) => Outcome::Ignored,
///         }
///     }
///
///     fn refused(&self, _: &String, refusal: Refusal) -> QueryError {
///         QueryError::Refused(refusal)
///     }
///
///     fn copy(&self, query: &String) -> Option<String> {
///         query.starts_with("select").then(|| query.clone())
///     }
/// }
///
/// impl Repeat for Queries {
///     fn retry(&self, error: &QueryError) -> Option<Duration> {
///         matches!(error, QueryError::Lost).then_some(Duration::ZERO)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let lost = std::sync::atomic::AtomicBool::new(false);
/// let lost = std::sync::Arc::new(lost);
/// let database = service_fn(move |query: String| {
///     let was_lost = lost.swap(true, std::sync::atomic::Ordering::Relaxed);
///     std::future::ready(if was_lost { Ok(query.len() as u64) } else { Err(QueryError::Lost) })
/// });
/// let mut service = ServiceBuilder::new()
///     .layer(RetryLayer::of(Queries).retries(3))
///     .layer(BreakerLayer::of(Queries))
///     .service(database);
/// assert_eq!(service.ready().await.unwrap().call("select 1".to_owned()).await.unwrap(), 8);
/// # }
/// ```
pub trait Protocol {
    /// What a service of the protocol takes.
    type Request;
    /// What it returns.
    type Response;
    /// What it returns where it fails.
    type Error;

    /// What a result says of the target.
    fn outcome(&self, result: Result<&Self::Response, &Self::Error>) -> Outcome;

    /// The error of a request that a layer refuses or gives up.
    fn refused(&self, request: &Self::Request, refusal: Refusal) -> Self::Error;

    /// A request that may be sent beside the first, or after it; `None` where the request may be sent once only.
    fn copy(&self, request: &Self::Request) -> Option<Self::Request>;

    /// Prepares a request for [`elsewhere`](Self::elsewhere): its copy will know where it was sent.
    #[doc(hidden)]
    fn watch(&self, request: &mut Self::Request) {
        let _ = request;
    }

    /// Prepares the copy of a request that is running, to be sent to another endpoint.
    #[doc(hidden)]
    fn elsewhere(&self, request: &mut Self::Request) {
        let _ = request;
    }

    /// Drops a request that is running beside the one with this result, and adds what it has used, and so many attempts.
    #[doc(hidden)]
    fn add_dropped(
        &self,
        result: &mut Result<Self::Response, Self::Error>,
        attempts: u32,
        drop: &mut dyn FnMut(),
    ) {
        let _ = (result, attempts);
        drop();
    }

    /// Adds what a request has used that failed beside the one with this result.
    #[doc(hidden)]
    fn add_failed(&self, result: &mut Result<Self::Response, Self::Error>, failed: Self::Error) {
        let _ = (result, failed);
    }
}

/// A [`Protocol`] whose requests a [`RetryLayer`](super::RetryLayer) may send again.
pub trait Repeat: Protocol {
    /// How long to wait at least before the request is sent again; `None` where that cannot help.
    fn retry(&self, error: &Self::Error) -> Option<Duration>;

    /// When the request ends: there is no wait beyond that.
    fn deadline(&self, request: &Self::Request) -> Option<Deadline> {
        let _ = request;
        None
    }
}

/// Why a layer refuses a request, or gives it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The circuit breaker is open. Nothing was sent.
    CircuitOpen {
        /// When another request has a chance.
        retry_after: Duration,
    },
    /// Too many requests are running. Nothing was sent.
    Overloaded,
    /// The request had not ended after this time. It may have executed.
    TimedOut {
        /// The time limit.
        after: Duration,
    },
}

/// The protocol of [`Call`]s.
///
/// A 4xx is the answer of a working endpoint. After `rate_limited` and where the contract is not there, the endpoint has
/// [declined](Outcome::Declined) the call, as where an arm passes on the failure of an arm that it called.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calls;

impl Protocol for Calls {
    type Request = Call;
    type Response = Reply;
    type Error = CallError;

    fn outcome(&self, result: Result<&Reply, &CallError>) -> Outcome {
        let failed = |error: &CallError| match error.attempts() {
            // This side has refused it: for a missing token, or by a breaker below.
            0 => Outcome::Ignored,
            _ => outcome_of_failure(error.failure(), error.endpoint().is_some()),
        };
        result.map_or_else(failed, |_| Outcome::Success)
    }

    fn refused(&self, call: &Call, refusal: Refusal) -> CallError {
        let failure = match refusal {
            Refusal::CircuitOpen { retry_after } => {
                Failure::of(ErrorKind::CircuitOpen).retryable_after(retry_after)
            }
            Refusal::Overloaded => Failure::new(ErrorKind::Overloaded, "too many calls are running"),
            Refusal::TimedOut { after } => {
                Failure::new(ErrorKind::Timeout, format!("no answer within {after:?}"))
            }
        };
        CallError::new(call.contract.clone(), failure)
    }

    fn copy(&self, call: &Call) -> Option<Call> {
        // Two calls would mix their chunks.
        (call.is_idempotent() && !call.updates.is_read()).then(|| call.clone())
    }

    fn watch(&self, call: &mut Call) {
        call.explain.get_or_insert_with(CallRecord::new);
    }

    fn elsewhere(&self, call: &mut Call) {
        call.parts.attempt = call.parts.attempt.saturating_add(1);
        call.parts.request_id = RequestId::new();
        if let Some(record) = &call.explain {
            record.add(CallEvent::Hedged);
            for endpoint in record.endpoints() {
                call.avoid.retain(|avoided| *avoided != endpoint);
                call.avoid.push(endpoint);
            }
        }
    }

    fn add_dropped(&self, result: &mut Result<Reply, CallError>, attempts: u32, drop: &mut dyn FnMut()) {
        let usage = drop_call(drop);
        add(result, attempts, usage, true);
    }

    fn add_failed(&self, result: &mut Result<Reply, CallError>, failed: CallError) {
        add(result, failed.attempts(), failed.usage(), failed.may_have_executed());
    }
}

/// Adds what another attempt has come to.
fn add(result: &mut Result<Reply, CallError>, attempts: u32, usage: Usage, may_have_executed: bool) {
    match result {
        Ok(reply) => {
            reply.usage = reply.usage.plus(usage);
            reply.attempts = reply.attempts.saturating_add(attempts);
        }
        Err(error) => {
            let attempts = error.attempts().saturating_add(attempts);
            error.after_attempts(attempts, error.usage().plus(usage), may_have_executed);
        }
    }
}

/// What a failure says of the endpoint that a request was sent to, or would have been.
pub fn outcome_of_failure(failure: &Failure, has_endpoint: bool) -> Outcome {
    let (sent, passed_on) = (failure.may_have_executed, !failure.can_restart());
    match failure.kind {
        // The caller has ended it, or this side has not sent it.
        ErrorKind::Cancelled | ErrorKind::CircuitOpen => Outcome::Ignored,
        // Without the time to send it, or a free connection.
        ErrorKind::DeadlineExceeded | ErrorKind::Timeout if !sent => Outcome::Ignored,
        // No endpoint has refused it: this side has.
        ErrorKind::Overloaded if !has_endpoint => Outcome::Ignored,
        // The answer of a working endpoint about another one.
        ErrorKind::UpstreamFailed | ErrorKind::Unavailable if sent && passed_on => Outcome::Declined,
        ErrorKind::RateLimited
        | ErrorKind::ContractNotOffered
        | ErrorKind::NotFound
        | ErrorKind::NotImplemented => Outcome::Declined,
        // It is about the task.
        ErrorKind::JournalMismatch => Outcome::Success,
        kind if kind.status() < 500 => Outcome::Success,
        _ => Outcome::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(failure: Failure) -> Outcome {
        let error = CallError::new("a.b".parse().unwrap(), failure).with_endpoint("http://judge");
        Calls.outcome(Err(&error))
    }

    #[test]
    fn each_kind_counts_for_or_against_the_endpoint_or_not_at_all() {
        use ErrorKind::*;
        for &kind in ErrorKind::ALL {
            let expected = match kind {
                Cancelled | CircuitOpen => Outcome::Ignored,
                ArmFailed | ArmPanicked | Internal | UpstreamFailed | BadResponse | ConnectionLost
                | Unavailable | Overloaded | Unreachable | DeadlineExceeded | Timeout => Outcome::Failure,
                RateLimited | ContractNotOffered | NotFound | NotImplemented => Outcome::Declined,
                JournalMismatch => Outcome::Success,
                _ => {
                    assert!((400..500).contains(&kind.status()), "{kind}");
                    Outcome::Success
                }
            };
            assert_eq!(outcome(Failure::of(kind)), expected, "{kind}");
        }
    }

    #[test]
    fn what_was_not_sent_says_nothing_and_what_was_passed_on_is_an_answer() {
        for kind in [ErrorKind::DeadlineExceeded, ErrorKind::Timeout] {
            assert_eq!(outcome(Failure::of(kind).before_execution()), Outcome::Ignored, "{kind}");
        }
        for kind in [ErrorKind::Unreachable, ErrorKind::Unavailable, ErrorKind::ConnectionLost] {
            assert_eq!(outcome(Failure::of(kind).before_execution()), Outcome::Failure, "{kind}");
        }
        for kind in [
            ErrorKind::Unreachable,
            ErrorKind::Unavailable,
            ErrorKind::ConnectionLost,
            ErrorKind::CircuitOpen,
        ] {
            let below = CallError::new("c.d".parse().unwrap(), Failure::of(kind));
            let passed_on = crate::error::ArmError::from(below).into_failure();
            assert_eq!(outcome(passed_on), Outcome::Declined, "{kind}");
        }
        let shed = CallError::new("a.b".parse().unwrap(), Failure::of(ErrorKind::Overloaded));
        assert_eq!(Calls.outcome(Err(&shed)), Outcome::Ignored);
        for &kind in ErrorKind::ALL {
            let refused = CallError::new("a.b".parse().unwrap(), Failure::of(kind));
            let refused = refused.with_endpoint("http://judge").with_attempts(0);
            assert_eq!(Calls.outcome(Err(&refused)), Outcome::Ignored, "{kind}");
        }
    }
}
