//! The spans around arms, calls and tasks, whose fields every line that is logged inside them has.
//!
//! Ids are fields, never names. Where nobody listens, a span is made without reading them.

use std::fmt;

use tracing::{Span, field::display, info_span};

use crate::{
    contract::ContractRef,
    error::ErrorKind,
    parts::{Caller, ContextParts},
    transport::Call,
};

/// The span of an arm that runs a contract.
pub(crate) fn of_arm(contract: &ContractRef, parts: &ContextParts) -> Span {
    info_span!(
        target: "octollm::span",
        "arm",
        %contract,
        request = %parts.request_id,
        correlation = %parts.correlation_id,
        task = parts.task_id.as_ref().map(display),
        caller = who(&parts.caller).map(display),
        code = tracing::field::Empty,
    )
}

/// The span of a call, over all its attempts.
pub(crate) fn of_call(call: &Call) -> Span {
    let parts = &call.parts;
    info_span!(
        target: "octollm::span",
        "call",
        contract = %call.contract,
        step = %call.step,
        request = %parts.request_id,
        correlation = %parts.correlation_id,
        task = parts.task_id.as_ref().map(display),
        code = tracing::field::Empty,
    )
}

/// Records why the work of a span failed.
pub(crate) fn failed(span: &Span, kind: ErrorKind) {
    if !span.is_disabled() {
        span.record("code", display(kind));
    }
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
