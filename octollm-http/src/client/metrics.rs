//! What is counted of the calls of a client, and the spans of its requests.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use octollm_core::{
    __private::{Counter, Counters, Durations, Scope, Spent, outcome},
    contract::ContractRef,
    error::{CallError, ErrorKind},
    parts::ContextParts,
    trace::TraceContext,
    transport::Reply,
};
use tokio::time::Instant;
use tracing::field::Empty;

use super::pool::ExchangeError;
use crate::wire;

static REQUESTS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Requests of calls to arms, by their outcome: ok, or the code of the error.";
    Counters::new("octollm_client_requests_total", help, &["arm", "contract", "code"])
});
static DURATIONS: LazyLock<Durations> = LazyLock::new(|| {
    let help = "Durations of the requests of calls to arms.";
    Durations::new("octollm_client_request_duration_seconds", help, &["arm", "contract"])
});
/// The metrics of the contracts of arms. Cards come over the network, so that their number is limited.
static METERS: LazyLock<Mutex<Meters>> = LazyLock::new(Mutex::default);
type Meters = HashMap<(Arc<str>, ContractRef), Arc<CallMeter>>;
const MOST_CONTRACTS: usize = 1_000;
/// The label of contracts beyond that, and of those that no arm offers.
const OTHER: &str = "other";

/// The metrics of the requests for one contract of one arm.
pub(super) struct CallMeter {
    arm: Arc<str>,
    contract: String,
    ok: Counter,
    durations: Spent,
}

impl CallMeter {
    /// The metrics of a contract that is on the card of an arm.
    pub(super) fn of(arm: &Arc<str>, contract: &ContractRef) -> Arc<Self> {
        let mut meters = METERS.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (arm.clone(), contract.clone());
        if let Some(known) = meters.get(&key) {
            return known.clone();
        }
        if meters.len() >= MOST_CONTRACTS {
            return Arc::new(Self::new(arm, OTHER.into()));
        }
        let meter = Arc::new(Self::new(arm, contract.to_string()));
        meters.insert(key, meter.clone());
        meter
    }

    fn new(arm: &Arc<str>, contract: String) -> Self {
        let ok = REQUESTS.with(&[arm, &contract, "ok"]);
        let durations = DURATIONS.with(&[arm, &contract]);
        Self { arm: arm.clone(), contract, ok, durations }
    }

    /// Begins a request. It counts as cancelled if it is dropped.
    pub(super) fn begin(&self, now: Instant) -> Metered<'_> {
        Metered { meter: self, begun: now, ended: false }
    }

    fn count(&self, duration: Duration, result: Result<(), ErrorKind>) {
        self.durations.count(duration);
        match result {
            Ok(()) => self.ok.count(),
            Err(_) => REQUESTS.with(&[&self.arm, &self.contract, outcome(result)]).count(),
        }
    }
}

/// The span of one request, which is the parent of what the server does. It is never entered, so that no line of a log is longer
/// by it, and made only where traces are exported.
pub(super) struct SendSpan(Scope);

impl SendSpan {
    /// Begins the span, and writes it into the request. A request for a contract has its name.
    pub(super) fn begin(
        request: &mut Request<Bytes>,
        place: (&str, &str),
        contract: Option<&ContractRef>,
        parts: &ContextParts,
    ) -> Self {
        let span = Self::of(request.method(), place, contract, parts);
        if let Some(trace) = span.trace() {
            wire::write_trace(&trace, request.headers_mut());
        }
        span
    }

    /// Begins the span of a request that does not name it.
    pub(super) fn of(
        method: &Method,
        (arm, endpoint): (&str, &str),
        contract: Option<&ContractRef>,
        parts: &ContextParts,
    ) -> Self {
        let span = || {
            tracing::info_span!(
                target: "octollm::span",
                "send",
                method = method.as_str(),
                contract = contract.map(tracing::field::display),
                arm,
                endpoint,
                attempt = parts.attempt,
                request = %parts.request_id,
                correlation = %parts.correlation_id,
                status = Empty,
                code = Empty,
            )
        };
        Self(Scope::traced(span, || parts.trace.as_ref()))
    }

    /// The trace with this span as the caller.
    pub(super) fn trace(&self) -> Option<TraceContext> {
        self.0.trace()
    }

    pub(super) fn end<B>(self, answer: &Result<Response<B>, ExchangeError>) {
        match (self.0.span(), answer) {
            (Some(span), Ok(response)) => {
                span.record("status", response.status().as_u16());
            }
            (_, Err(error)) => self.0.failed(error.failure.kind),
            (None, Ok(_)) => {}
        }
    }
}

/// Counts a call that fails before an arm is chosen. Its contract is any text.
pub(super) fn unplaced(error: &CallError) {
    REQUESTS.with(&["", OTHER, error.kind().code()]).count();
}

/// A request that is under way.
pub(super) struct Metered<'a> {
    meter: &'a CallMeter,
    begun: Instant,
    ended: bool,
}

impl Metered<'_> {
    /// Ends the request, and returns how long it took.
    pub(super) fn end(self, answer: &Result<Reply, CallError>, now: Instant) -> Duration {
        self.end_as(answer.as_ref().map(drop).map_err(CallError::kind), now)
    }

    /// Ends the request with this outcome, and returns how long it took.
    pub(super) fn end_as(mut self, outcome: Result<(), ErrorKind>, now: Instant) -> Duration {
        self.ended = true;
        let duration = now.saturating_duration_since(self.begun);
        self.meter.count(duration, outcome);
        duration
    }
}

impl Drop for Metered<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.meter.count(self.begun.elapsed(), Err(ErrorKind::Cancelled));
        }
    }
}

impl fmt::Debug for CallMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.contract, self.arm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contracts_of_cards_have_a_bounded_number_of_labels() {
        let arm: Arc<str> = "prolific".into();
        for number in 0..2 * MOST_CONTRACTS {
            let contract = ContractRef::new(format!("made.up{number}"), 1).unwrap();
            let failure = octollm_core::error::Failure::of(ErrorKind::Unreachable);
            let (error, now) = (CallError::new(contract.clone(), failure), Instant::now());
            CallMeter::of(&arm, &contract).begin(now).end(&Err(error), now);
        }
        let page = octollm_core::metrics::page();
        let lines =
            page.lines().filter(|line| line.starts_with("octollm_client_requests_total{arm=\"prolific\""));
        assert!(lines.clone().count() <= 2 * (MOST_CONTRACTS + 1));
        assert!(lines.clone().any(|line| line.contains("contract=\"made.up0\"")));
        assert!(lines.clone().any(|line| line.contains("contract=\"other\"")));
    }
}
