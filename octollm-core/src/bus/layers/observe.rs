//! The layer with spans and metrics.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use tracing::field::{Empty, display};
use tracing::info_span;

use super::{HandlerService, Nack, Received, boxed};
use crate::meters::{Counters, Durations};
use crate::spans::{Scope, Within};
use crate::trace::TraceContext;

/// Runs the handler within a span, and counts its runs: `octollm_events_handled_total` and `octollm_event_handle_duration_seconds`.
///
/// The span of the first attempt is a child of the publisher's. Those of later attempts have traces of their own, and the id of the
/// publisher's trace in the field `published_in`.
#[derive(Debug, Clone)]
pub struct ObserveLayer(Arc<str>);

static HANDLED: LazyLock<Counters> = LazyLock::new(|| {
    let help =
        "Runs of event handlers that have ended: ok, retry, release, drop, dead_letter, or interrupted.";
    Counters::new("octollm_events_handled_total", help, &["handler", "outcome"])
});
static DURATIONS: LazyLock<Durations> = LazyLock::new(|| {
    let help = "Durations of the runs of event handlers.";
    Durations::new("octollm_event_handle_duration_seconds", help, &["handler"])
});

impl ObserveLayer {
    /// Creates a layer for the handler of this name, which is a label of the metrics.
    pub fn new(handler: impl Into<Arc<str>>) -> Self {
        Self(handler.into())
    }

    fn span(&self, received: &Received) -> Scope {
        let Received { event, attempt } = received;
        let trace = || event.traceparent().and_then(|trace| trace.parse::<TraceContext>().ok());
        let published_in = if *attempt == 1 { None } else { trace() };
        let span = info_span!(
            target: "octollm::span",
            "event",
            handler = &*self.0,
            event_type = event.event_type(),
            event = event.id(),
            correlation = event.correlation_id(),
            attempt,
            published_in = published_in.as_ref().map(TraceContext::trace_id),
            outcome = Empty,
        );
        Scope::joined(span, || if *attempt == 1 { trace() } else { None })
    }
}

/// A run of a handler, which is counted when it ends.
struct Observed {
    handler: Arc<str>,
    scope: Scope,
    begun: Instant,
    outcome: &'static str,
}

impl Drop for Observed {
    fn drop(&mut self) {
        if let Some(span) = self.scope.span() {
            span.record("outcome", display(self.outcome));
        }
        HANDLED.with(&[&self.handler, self.outcome]).count();
        DURATIONS.with(&[&self.handler]).count(self.begun.elapsed());
    }
}

impl<S> Layer<S> for ObserveLayer
where
    S: Service<Received, Response = (), Error = Nack> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Service = HandlerService;

    fn layer(&self, service: S) -> HandlerService {
        let layer = self.clone();
        boxed(move |received| {
            let (handler, scope) = (layer.0.clone(), layer.span(&received));
            let service = service.clone();
            let observed = Observed { handler, scope, begun: Instant::now(), outcome: "interrupted" };
            async move {
                // Moved as a whole: a field that is assigned alone would be a copy.
                let mut observed = observed;
                let work: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(service.oneshot(received));
                let result = Within::new(work, &observed.scope).await;
                observed.outcome = match &result {
                    Ok(()) => "ok",
                    Err(Nack::Retry { .. }) => "retry",
                    Err(Nack::Release) => "release",
                    Err(Nack::Drop) => "drop",
                    Err(Nack::DeadLetter { .. }) => "dead_letter",
                };
                result
            }
        })
    }
}
