//! What travels in the head of a request, and of its answer.

use std::{str::FromStr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use octollm_core::{
    budget::{Budget, Usage},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    parts::ContextParts,
    trace::TraceContext,
};

/// The names of the headers beyond HTTP's own.
pub mod names {
    use http::HeaderName;

    /// One a request; always echoed.
    pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    /// The same over all hops of one piece of work.
    pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
    /// W3C Trace Context.
    pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
    /// W3C Trace Context, the vendors' part.
    pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
    /// Milliseconds left.
    pub const TIMEOUT: HeaderName = HeaderName::from_static("octollm-timeout");
    /// Tokens and money left.
    pub const BUDGET: HeaderName = HeaderName::from_static("octollm-budget");
    /// 1 for the first try.
    pub const ATTEMPT: HeaderName = HeaderName::from_static("octollm-attempt");
    /// The task that the request belongs to.
    pub const TASK_ID: HeaderName = HeaderName::from_static("octollm-task-id");
    /// In an answer: what was used up.
    pub const USAGE: HeaderName = HeaderName::from_static("octollm-usage");
    /// Names a request that may be repeated. So far its form is checked, and nothing is replayed.
    pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
}

/// Reads what travels. Ids and traces that are malformed are replaced or ignored, limits that are malformed refused:
/// a wrong id costs a log line its thread, a wrong limit could let work run for ever.
///
/// # Errors
/// [`ErrorKind::BadRequest`], with the ids as far as they could be read.
pub(crate) fn read_parts(head: &HeaderMap) -> Result<ContextParts, (Failure, Box<ContextParts>)> {
    let fields = Fields::of(head);
    let mut parts = ContextParts::new();
    if let Some(id) = parsed(fields.request_id) {
        parts.request_id = id;
    }
    parts.correlation_id = parsed(fields.correlation_id).unwrap_or_else(|| parts.request_id.clone());
    parts.task_id = parsed(fields.task_id);
    parts.trace = parsed::<TraceContext>(fields.traceparent)
        .map(|trace| trace.with_tracestate(text(fields.tracestate).unwrap_or_default()));
    match read_limits(&fields, &mut parts) {
        Ok(()) => Ok(parts),
        Err(failure) => Err((failure, Box::new(parts))),
    }
}

/// The values that travel, found in one pass: most requests have few fields, and few of these.
#[derive(Default)]
struct Fields<'h> {
    request_id: Option<&'h HeaderValue>,
    correlation_id: Option<&'h HeaderValue>,
    task_id: Option<&'h HeaderValue>,
    traceparent: Option<&'h HeaderValue>,
    tracestate: Option<&'h HeaderValue>,
    timeout: Limit<'h>,
    budget: Limit<'h>,
    attempt: Limit<'h>,
}

/// The value of a field that may stand once.
#[derive(Default, Clone, Copy)]
enum Limit<'h> {
    #[default]
    None,
    Once(&'h HeaderValue),
    Twice,
}

impl<'h> Fields<'h> {
    fn of(head: &'h HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in head {
            match name.as_str() {
                "x-request-id" => first(&mut fields.request_id, value),
                "x-correlation-id" => first(&mut fields.correlation_id, value),
                "octollm-task-id" => first(&mut fields.task_id, value),
                "traceparent" => first(&mut fields.traceparent, value),
                "tracestate" => first(&mut fields.tracestate, value),
                "octollm-timeout" => fields.timeout.add(value),
                "octollm-budget" => fields.budget.add(value),
                "octollm-attempt" => fields.attempt.add(value),
                _ => {}
            }
        }
        fields
    }
}

fn first<'h>(field: &mut Option<&'h HeaderValue>, value: &'h HeaderValue) {
    field.get_or_insert(value);
}

impl<'h> Limit<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        *self = if matches!(self, Self::None) { Self::Once(value) } else { Self::Twice };
    }

    fn text(self, name: &HeaderName) -> Result<Option<&'h str>, Failure> {
        match self {
            Self::None => Ok(None),
            Self::Once(value) => value.to_str().map(Some).map_err(|_| malformed(name)),
            Self::Twice => Err(malformed(name)),
        }
    }

    fn number(self, name: &HeaderName) -> Result<Option<u64>, Failure> {
        let Some(value) = self.text(name)? else { return Ok(None) };
        let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        value.parse().ok().filter(|_| digits).map(Some).ok_or_else(|| malformed(name))
    }
}

fn read_limits(fields: &Fields<'_>, parts: &mut ContextParts) -> Result<(), Failure> {
    if let Some(milliseconds) = fields.timeout.number(&names::TIMEOUT)? {
        parts.deadline = Some(Deadline::after(Duration::from_millis(milliseconds)));
    }
    if let Some(value) = fields.budget.text(&names::BUDGET)? {
        parts.budget = Budget::from_str(value).map_err(|_| malformed(&names::BUDGET))?;
    }
    if let Some(attempt) = fields.attempt.number(&names::ATTEMPT)? {
        parts.attempt =
            u32::try_from(attempt).ok().filter(|n| *n > 0).ok_or_else(|| malformed(&names::ATTEMPT))?;
    }
    Ok(())
}

fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value?.to_str().ok()
}

fn parsed<T: FromStr>(value: Option<&HeaderValue>) -> Option<T> {
    text(value)?.parse().ok()
}

fn malformed(name: &HeaderName) -> Failure {
    Failure::new(ErrorKind::BadRequest, format!("malformed header {name}"))
}

/// Writes what travels: the deadline as the time that is left now.
pub(crate) fn write_parts(parts: &ContextParts, head: &mut HeaderMap) {
    put(head, names::REQUEST_ID, parts.request_id.as_str());
    put(head, names::CORRELATION_ID, parts.correlation_id.as_str());
    if let Some(task) = &parts.task_id {
        put(head, names::TASK_ID, task.as_str());
    }
    if let Some(trace) = &parts.trace {
        put(head, names::TRACEPARENT, trace.traceparent());
        if let Some(state) = trace.tracestate() {
            put(head, names::TRACESTATE, state);
        }
    }
    if let Some(deadline) = parts.deadline {
        let left = u64::try_from(deadline.remaining().as_millis()).unwrap_or(u64::MAX);
        head.insert(names::TIMEOUT, decimal(left));
    }
    if !parts.budget.is_unlimited() {
        put(head, names::BUDGET, &parts.budget.to_string());
    }
    head.insert(names::ATTEMPT, decimal(parts.attempt.into()));
}

/// Without the growing and shrinking of buffers that `HeaderValue::from` does.
fn decimal(mut number: u64) -> HeaderValue {
    if number == 1 {
        return HeaderValue::from_static("1");
    }
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&digits[first..]).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// Writes what was used up, unless it is nothing.
pub(crate) fn write_usage(usage: Usage, head: &mut HeaderMap) {
    if !usage.is_zero() {
        put(head, names::USAGE, &usage.to_string());
    }
}

/// Reads what was used up. A foreign arm that does not tell has used up nothing, as far as is known.
pub(crate) fn read_usage(head: &HeaderMap) -> Usage {
    parsed(head.get(&names::USAGE)).unwrap_or_default()
}

fn put(head: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        head.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_is_read_again() {
        let mut parts = ContextParts::new();
        parts.deadline = Some(Deadline::after(Duration::from_millis(1500)));
        parts.budget = "tokens=7;cost_usd=0.25".parse().unwrap();
        parts.task_id = Some(octollm_core::id::TaskId::new());
        parts.trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
        let mut head = HeaderMap::new();
        write_parts(&parts, &mut head);
        assert_eq!(format!("{parts:?}"), format!("{:?}", read_parts(&head).unwrap()));
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 1, 9, 10, 30_000, u64::MAX] {
            assert_eq!(decimal(number), number.to_string());
        }
    }

    #[test]
    fn ids_are_replaced_and_limits_refused() {
        let parts = read_parts(&head(&[("x-request-id", "not an id"), ("traceparent", "00-x")])).unwrap();
        assert_ne!(parts.request_id.as_str(), "not an id");
        assert!(parts.trace.is_none());
        for (name, value) in [
            ("octollm-timeout", "-1"),
            ("octollm-timeout", "+1"),
            ("octollm-timeout", ""),
            ("octollm-timeout", "99999999999999999999999"),
            ("octollm-budget", "tokens=-1"),
            ("octollm-attempt", "0"),
        ] {
            let (failure, _) = read_parts(&head(&[(name, value)])).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::BadRequest, "{name}: {value}");
        }
    }
}
