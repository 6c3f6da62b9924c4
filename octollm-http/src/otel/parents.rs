//! Which span is the parent of which, over the borders of processes and tasks.

use octollm_core::{
    __private::{Traces, connect_traces},
    trace::TraceContext,
};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// From now on the spans of this process belong to the traces of their callers.
pub(super) fn connect() {
    connect_traces(Traces { join, context });
}

fn join(span: &Span, trace: &TraceContext) {
    let Some(caller) = span_context(trace) else { return };
    let belongs = |context: Context| {
        let span = context.span();
        span.span_context().is_valid() && span.span_context().trace_id() == caller.trace_id()
    };
    if belongs(Context::current()) || belongs(Span::current().context()) {
        return;
    }
    // It fails where no layer exports the span.
    let _ = span.set_parent(Context::new().with_remote_span_context(caller));
}

fn context(span: &Span) -> Option<TraceContext> {
    let context = span.context();
    let span = context.span();
    let own = span.span_context();
    if !own.is_valid() {
        return None;
    }
    let (trace, id, flags) = (own.trace_id(), own.span_id(), own.trace_flags().to_u8());
    let parent: TraceContext = format!("00-{trace}-{id}-{flags:02x}").parse().ok()?;
    Some(parent.with_tracestate(&own.trace_state().header()))
}

fn span_context(trace: &TraceContext) -> Option<SpanContext> {
    let mut parts = trace.traceparent().split('-').skip(1);
    let (id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let state = trace.tracestate().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    Some(SpanContext::new(
        TraceId::from_hex(id).ok()?,
        SpanId::from_hex(parent).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        state,
    ))
}
