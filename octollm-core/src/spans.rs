//! The spans around arms, calls and tasks, whose fields every line that is logged inside them has.
//!
//! Ids are fields, never names. Where nobody listens, a span is made without reading them.

use std::{
    borrow::Borrow,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tracing::{
    Span,
    field::{Empty, display},
    info_span,
};

use crate::{
    contract::ContractRef,
    error::ErrorKind,
    parts::{Caller, ContextParts},
    trace::TraceContext,
    transport::Call,
};

/// Connects spans with the traces of other processes. An exporter of traces provides it.
#[derive(Debug, Clone, Copy)]
pub struct Traces {
    /// Places a span that was not entered yet below the caller of a trace, unless the current span belongs to that trace.
    pub join: fn(&Span, &TraceContext),
    /// The trace with this span as the caller, if the span belongs to one.
    pub context: fn(&Span) -> Option<TraceContext>,
}

static TRACES: OnceLock<Traces> = OnceLock::new();

/// Sets what connects spans with traces. Of several calls the first one counts.
pub fn connect_traces(traces: Traces) {
    let _ = TRACES.set(traces);
}

/// The trace with the current span as the caller, if that belongs to one.
pub(crate) fn current_trace() -> Option<TraceContext> {
    let traces = TRACES.get()?;
    (traces.context)(&Span::current())
}

/// A span, or nothing where nobody listens. It is as large as a pointer, since it is a part of the future of every call.
#[derive(Debug, Clone)]
pub struct Scope(Option<Arc<Span>>);

impl From<Span> for Scope {
    fn from(span: Span) -> Self {
        Self(if span.is_disabled() { None } else { Some(Arc::new(span)) })
    }
}

impl Scope {
    /// The span of work that belongs to a trace.
    pub fn joined<T: Borrow<TraceContext>>(span: Span, trace: impl FnOnce() -> Option<T>) -> Self {
        let scope = Self::from(span);
        if let (Some(span), Some(traces)) = (scope.span(), TRACES.get())
            && let Some(trace) = trace()
        {
            (traces.join)(span, trace.borrow());
        }
        scope
    }

    /// The span of work that is of interest in a trace alone. It is not made where traces are not exported.
    pub fn traced<T: Borrow<TraceContext>>(
        span: impl FnOnce() -> Span,
        trace: impl FnOnce() -> Option<T>,
    ) -> Self {
        match TRACES.get() {
            Some(_) => Self::joined(span(), trace),
            None => Self(None),
        }
    }

    /// The trace with this span as the caller, if it is to be exported or at least passed on.
    pub fn trace(&self) -> Option<TraceContext> {
        let span = self.span()?;
        (TRACES.get()?.context)(span)
    }

    /// Runs work within the span.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(span) => span.in_scope(work),
            None => work(),
        }
    }

    /// The span, if somebody listens.
    pub fn span(&self) -> Option<&Span> {
        self.0.as_deref()
    }

    /// Records why the work of the span failed.
    pub fn failed(&self, kind: ErrorKind) {
        if let Some(span) = &self.0 {
            span.record("code", display(kind));
        }
    }
}

/// A boxed future that runs, and is dropped, within a span.
pub(crate) struct Within<F: ?Sized> {
    /// `None` once it is dropped.
    work: Option<Pin<Box<F>>>,
    scope: Scope,
}

impl<F: Future + ?Sized> Within<F> {
    pub(crate) fn new(work: Pin<Box<F>>, scope: &Scope) -> Self {
        Self { work: Some(work), scope: scope.clone() }
    }
}

impl<F: Future + ?Sized> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { work, scope } = &mut *self;
        match work {
            Some(work) => scope.run(|| work.as_mut().poll(cx)),
            None => Poll::Pending,
        }
    }
}

impl<F: ?Sized> Drop for Within<F> {
    fn drop(&mut self) {
        let Self { work, scope } = self;
        scope.run(|| *work = None);
    }
}

/// The span of an arm that runs a contract.
pub(crate) fn of_arm(contract: &ContractRef, parts: &ContextParts) -> Scope {
    let span = info_span!(
        target: "octollm::span",
        "arm",
        %contract,
        request = %parts.request_id,
        correlation = %parts.correlation_id,
        task = parts.task_id.as_ref().map(display),
        caller = who(&parts.caller).map(display),
        code = Empty,
    );
    Scope::joined(span, || parts.trace.as_ref())
}

/// The span of a call, over all its attempts.
pub(crate) fn of_call(call: &Call) -> Scope {
    let parts = &call.parts;
    let span = info_span!(
        target: "octollm::span",
        "call",
        contract = %call.contract,
        step = %call.step,
        request = %parts.request_id,
        correlation = %parts.correlation_id,
        task = parts.task_id.as_ref().map(display),
        code = Empty,
    );
    Scope::joined(span, || parts.trace.as_ref())
}

/// A caller that is checked, for a log.
pub fn who(caller: &Caller) -> Option<impl fmt::Display + '_> {
    match caller {
        Caller::Unchecked => None,
        Caller::Anonymous | Caller::Known(_) => Some(Who(caller)),
    }
}

struct Who<'a>(&'a Caller);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(grant) = self.0.grant() else { return f.write_str("anonymous") };
        // An issuer chooses the text: it must not begin a line of its own.
        write!(f, "{}", grant.subject.escape_debug())?;
        match &grant.actor {
            Some(actor) => write!(f, " by {}", actor.escape_debug()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::parts::Grant;

    #[test]
    fn a_caller_is_one_line_of_a_log() {
        let known = |subject: &str, actor: Option<&str>| {
            let mut grant = Grant::new(subject, ["a:b"]);
            grant.actor = actor.map(str::to_owned);
            Caller::Known(Arc::new(grant))
        };
        let shown = |caller: &Caller| who(caller).map(|who| who.to_string());
        assert_eq!(shown(&Caller::Unchecked), None);
        assert_eq!(shown(&Caller::Anonymous).unwrap(), "anonymous");
        assert_eq!(shown(&known("ali", Some("coder"))).unwrap(), "ali by coder");
        assert_eq!(shown(&known("a\n\u{1b}[31mINFO", None)).unwrap(), "a\\n\\u{1b}[31mINFO");
    }
}
