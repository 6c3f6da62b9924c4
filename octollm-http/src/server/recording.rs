//! What is logged and counted of each request: its span, its line in the access log, and its metrics.

use std::{
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, Method, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::Body;
use octollm_core::{
    __private::{Counter, Counters, Durations, Scope, Spent, who},
    contract::ContractRef,
    parts::{Caller, ContextParts},
};
use tokio::time::Instant;
use tracing::field::{Empty, display};

use super::body::HttpBody;
use crate::wire::{names, read_trace};

static REQUESTS: LazyLock<Counters> = LazyLock::new(|| {
    let help =
        "Requests that were answered, by the class of the status; dropped where the caller was gone before.";
    Counters::new("octollm_http_requests_total", help, &["server", "method", "route", "status"])
});
static DURATIONS: LazyLock<Durations> = LazyLock::new(|| {
    let help = "Time from the head of a request to the head of its answer.";
    Durations::new("octollm_http_request_duration_seconds", help, &["server", "method", "route"])
});
static REFUSED: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Requests that a limit of the server refused as overloaded.";
    Counters::new("octollm_http_refused_total", help, &["server", "limit"])
});
static RECEIVED: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Bytes of bodies that were read whole.";
    Counters::new("octollm_http_request_body_bytes_total", help, &["server"])
});

/// A time for a line of the log, to the microsecond.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    u32::try_from(time.as_micros())
        .map_or_else(|_| time.as_secs_f64() * 1e3, |micros| f64::from(micros) / 1e3)
}

/// The values of the label `status`.
const STATUSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "dropped"];
const DROPPED: usize = 5;
/// Requests that are as frequent as they are dull.
const QUIET: [&str; 3] = ["/health", "/ready", "/metrics"];

/// The metrics of one server, besides those of its routes.
pub(crate) struct ServerMeter {
    pub(crate) server: String,
    received: Counter,
}

impl ServerMeter {
    pub(crate) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), received: RECEIVED.with(&[server]) }
    }

    /// Counts a request that a limit has refused.
    pub(crate) fn refused(&self, limit: &str) {
        REFUSED.with(&[&self.server, limit]).count();
    }

    /// Counts a body.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.add(bytes as u64);
    }
}

/// The metrics of one route. They are registered when they first count something.
pub(crate) struct RouteMeter {
    pub(crate) server: String,
    pub(crate) method: String,
    /// The pattern, as it was added.
    pub(crate) route: String,
    /// The contract that it always runs.
    pub(crate) contract: Option<ContractRef>,
    pub(crate) is_quiet: bool,
    durations: OnceLock<Spent>,
    statuses: [OnceLock<Counter>; STATUSES.len()],
}

impl RouteMeter {
    pub(crate) fn new(server: &str, method: &str, route: &str) -> Self {
        Self {
            server: server.to_owned(),
            method: method.to_owned(),
            route: route.to_owned(),
            contract: None,
            is_quiet: QUIET.contains(&route),
            durations: OnceLock::new(),
            statuses: Default::default(),
        }
    }

    /// The metrics of requests without a route.
    pub(crate) fn unmatched(server: &str) -> Self {
        Self::new(server, "other", "unmatched")
    }

    fn count(&self, status: Option<StatusCode>, time: Duration) {
        let Self { server, method, route, .. } = self;
        self.durations.get_or_init(|| DURATIONS.with(&[server, method, route])).count(time);
        let class = status.map_or(DROPPED, |status| usize::from(status.as_u16() / 100).clamp(1, 5) - 1);
        if let (Some(counter), Some(label)) = (self.statuses.get(class), STATUSES.get(class)) {
            counter.get_or_init(|| REQUESTS.with(&[server, method, route, label])).count();
        }
    }
}

/// What becomes known of a request while it is answered.
pub(crate) struct Seen {
    pub(crate) scope: Scope,
    pub(crate) begun: Instant,
    /// The caller, where callers are checked.
    pub(crate) caller: OnceLock<Caller>,
    /// The contract that the body named.
    pub(crate) contract: OnceLock<ContractRef>,
    /// Position of the metrics of its route.
    route: AtomicUsize,
    is_given_up: AtomicBool,
}

impl Seen {
    pub(crate) fn new(method: &Method, head: &HeaderMap) -> Self {
        let span = tracing::info_span!(
            target: "octollm::span",
            "request",
            method = method_name(method),
            route = Empty,
            request = Empty,
            correlation = Empty,
            caller = Empty,
            status = Empty,
            duration_ms = Empty,
        );
        // Before the span is entered: a span that has begun keeps its parent.
        let scope = Scope::joined(span, || read_trace(head));
        Self {
            scope,
            begun: Instant::now(),
            caller: OnceLock::new(),
            contract: OnceLock::new(),
            route: AtomicUsize::new(0),
            is_given_up: AtomicBool::new(false),
        }
    }

    /// The metrics of its route, or of requests without one for as long as its head is not read.
    pub(crate) fn meter<'m>(&self, meters: &'m [RouteMeter]) -> Option<&'m RouteMeter> {
        meters.get(self.route.load(Ordering::Relaxed))
    }

    /// Marks the request as given up. Returns whether it was not before.
    pub(crate) fn give_up(&self) -> bool {
        !self.is_given_up.swap(true, Ordering::Relaxed)
    }

    /// The head is read.
    pub(crate) fn matched(&self, position: usize, meter: &RouteMeter, parts: &ContextParts) {
        self.route.store(position, Ordering::Relaxed);
        if let Some(span) = self.scope.span() {
            span.record("route", &*meter.route);
            span.record("request", display(&parts.request_id));
            span.record("correlation", display(&parts.correlation_id));
        }
    }

    /// The caller is authenticated.
    pub(crate) fn identified(&self, caller: &Caller) {
        if *caller == Caller::Unchecked {
            return;
        }
        let caller = self.caller.get_or_init(|| caller.clone());
        if let (Some(span), Some(who)) = (self.scope.span(), who(caller)) {
            span.record("caller", display(who));
        }
    }
}

/// Logs and counts a request once it is answered or dropped.
pub(crate) struct Recording<'a> {
    meters: &'a [RouteMeter],
    seen: &'a Seen,
    method: &'static str,
    ended: bool,
}

impl<'a> Recording<'a> {
    pub(crate) fn begin(meters: &'a [RouteMeter], seen: &'a Seen, method: &Method) -> Self {
        Self { meters, seen, method: method_name(method), ended: false }
    }

    pub(crate) fn end(mut self, response: &Response<HttpBody>) {
        self.ended = true;
        self.write(Some(response));
    }

    fn write(&self, response: Option<&Response<HttpBody>>) {
        let Some(meter) = self.seen.meter(self.meters) else { return };
        let time = self.seen.begun.elapsed();
        let status = response.map(Response::status);
        meter.count(status, time);
        let duration_ms = milliseconds(time);
        if let Some(span) = self.seen.scope.span() {
            if let Some(status) = status {
                span.record("status", status.as_u16());
            }
            span.record("duration_ms", duration_ms);
        }
        // At levels of their own, which have to be constants.
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "octollm::access",
                    method = self.method,
                    route = &*meter.route,
                    status = status.map(|status| status.as_u16()),
                    duration_ms,
                    bytes = response.and_then(length),
                    request = response.and_then(|response| id(response, &names::REQUEST_ID)),
                    correlation = response.and_then(|response| id(response, &names::CORRELATION_ID)),
                    caller = self.seen.caller.get().and_then(who).map(display),
                    server = &*meter.server,
                    "{}",
                    if response.is_some() { "answered" } else { "dropped without an answer" }
                )
            };
        }
        match (response, meter.is_quiet) {
            // Only the span has the ids.
            (None, _) => self.seen.scope.run(|| log!(info)),
            (Some(_), true) => log!(debug),
            (Some(_), false) => log!(info),
        }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.write(None);
        }
    }
}

/// Bytes of the body, where they are known before it is sent.
fn length(response: &Response<HttpBody>) -> Option<u64> {
    let declared = || response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    response.body().size_hint().exact().filter(|bytes| *bytes > 0).or_else(declared)
}

fn id<'r>(response: &'r Response<HttpBody>, name: &HeaderName) -> Option<&'r str> {
    let head: &HeaderMap = response.headers();
    head.get(name)?.to_str().ok()
}

/// The name of a method that HTTP knows. Callers can send any word.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "other",
    }
}
