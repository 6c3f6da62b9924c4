//! Header fields of requests and answers.

use std::{borrow::Cow, str::FromStr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use octollm_core::{
    budget::{Budget, Usage},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::RequestId,
    parts::ContextParts,
    trace::TraceContext,
    transport::IdempotencyKey,
};
use tokio::time::Instant;

/// Names of the header fields that HTTP itself does not define.
pub mod names {
    use http::HeaderName;

    /// Id of the request, which the answer echoes.
    pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    /// Id shared by all requests of one piece of work.
    pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
    /// W3C Trace Context.
    pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
    /// W3C Trace Context, vendor-specific part.
    pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
    /// Milliseconds until the deadline.
    pub const TIMEOUT: HeaderName = HeaderName::from_static("octollm-timeout");
    /// Budget left, in tokens and dollars.
    pub const BUDGET: HeaderName = HeaderName::from_static("octollm-budget");
    /// Number of the attempt, from 1.
    pub const ATTEMPT: HeaderName = HeaderName::from_static("octollm-attempt");
    /// Id of the task that the request belongs to.
    pub const TASK_ID: HeaderName = HeaderName::from_static("octollm-task-id");
    /// Usage, in an answer.
    pub const USAGE: HeaderName = HeaderName::from_static("octollm-usage");
    /// Key of a call that may be repeated, and runs once.
    pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
    /// Most requests at once under the rate limit of which the least is left, in an answer.
    pub const RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
    /// Requests that are allowed at once from now on.
    pub const RATE_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
    /// Seconds until all of them are allowed again.
    pub const RATE_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
    /// Whether an answer is that of an earlier call with its key.
    pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
    /// Id of the process of an arm that honours keys, in a call that may have been made before.
    pub const INSTANCE: HeaderName = HeaderName::from_static("octollm-instance");
    /// The token over HTTP/2, in place of `Authorization`, where the server has offered to take it here.
    pub const TOKEN: HeaderName = HeaderName::from_static("octollm-authorization");
    /// Signature of a registration by the key on the card of the arm.
    pub const PROOF: HeaderName = HeaderName::from_static("octollm-proof");
}

/// Reads the parts of a request, as [`read_parts_since`] for one that begins now.
pub(crate) fn read_parts(head: &HeaderMap) -> Result<ContextParts, Box<(Failure, ContextParts)>> {
    read_parts_since(head, Instant::now())
}

/// Reads the parts of a request that has begun then. Malformed ids and traces are replaced or ignored. A malformed limit is refused, since without it
/// work could run without end.
///
/// # Errors
/// [`ErrorKind::BadRequest`], with the ids that could be read.
pub(crate) fn read_parts_since(
    head: &HeaderMap,
    begun: Instant,
) -> Result<ContextParts, Box<(Failure, ContextParts)>> {
    let fields = Fields::of(head);
    let request_id: RequestId = parsed(fields.request_id).unwrap_or_default();
    let correlation_id = parsed(fields.correlation_id).unwrap_or_else(|| {
        if fields.correlation_id.is_some() {
            tracing::debug!(name = %names::CORRELATION_ID, id = %request_id, "malformed id replaced");
        }
        request_id.clone()
    });
    let mut parts = ContextParts::of(request_id, correlation_id);
    parts.task_id = parsed(fields.task_id);
    parts.key = fields.key.and_then(read_key);
    parts.repeated = fields.instance.is_some();
    parts.trace = fields.trace();
    if parts.trace.is_none() && !matches!(fields.traceparent, Limit::None) {
        tracing::debug!(name = %names::TRACEPARENT, id = %parts.request_id, "malformed trace ignored");
    }
    match read_limits(&fields, &mut parts, begun) {
        Ok(()) => Ok(parts),
        Err(failure) => Err(Box::new((failure, parts))),
    }
}

/// Reads the trace of the caller.
pub(crate) fn read_trace(head: &HeaderMap) -> Option<TraceContext> {
    Fields::of(head).trace()
}

/// The values of the fields that are read, found in one pass.
#[derive(Default)]
struct Fields<'h> {
    request_id: Option<&'h HeaderValue>,
    correlation_id: Option<&'h HeaderValue>,
    task_id: Option<&'h HeaderValue>,
    key: Option<&'h HeaderValue>,
    instance: Option<&'h HeaderValue>,
    traceparent: Limit<'h>,
    tracestate: List<'h>,
    timeout: Limit<'h>,
    budget: Limit<'h>,
    attempt: Limit<'h>,
}

/// The value of a field that may occur once.
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
                "idempotency-key" => first(&mut fields.key, value),
                "octollm-instance" => first(&mut fields.instance, value),
                "traceparent" => fields.traceparent.add(value),
                "tracestate" => fields.tracestate.add(value),
                "octollm-timeout" => fields.timeout.add(value),
                "octollm-budget" => fields.budget.add(value),
                "octollm-attempt" => fields.attempt.add(value),
                _ => {}
            }
        }
        fields
    }

    fn trace(&self) -> Option<TraceContext> {
        // More than one traceparent is ignored (W3C Trace Context §3.2).
        let trace = parsed::<TraceContext>(self.traceparent.once())?;
        Some(trace.with_tracestate(&self.tracestate.join()))
    }
}

/// The values of a field that may occur several times, which is the same as one with commas.
#[derive(Default)]
enum List<'h> {
    #[default]
    None,
    One(&'h str),
    Many(Vec<&'h str>),
}

impl<'h> List<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        // Values that are empty or no text are ignored.
        let Some(value) = value.to_str().ok().filter(|value| !value.trim().is_empty()) else { return };
        match self {
            Self::None => *self = Self::One(value),
            Self::One(first) => *self = Self::Many(vec![first, value]),
            Self::Many(values) => values.push(value),
        }
    }

    fn join(&self) -> Cow<'h, str> {
        match self {
            Self::None => Cow::Borrowed(""),
            Self::One(value) => Cow::Borrowed(value),
            Self::Many(values) => Cow::Owned(values.join(",")),
        }
    }
}

fn first<'h>(field: &mut Option<&'h HeaderValue>, value: &'h HeaderValue) {
    field.get_or_insert(value);
}

impl<'h> Limit<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        *self = if matches!(self, Self::None) { Self::Once(value) } else { Self::Twice };
    }

    fn once(self) -> Option<&'h HeaderValue> {
        if let Self::Once(value) = self { Some(value) } else { None }
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

fn read_limits(fields: &Fields<'_>, parts: &mut ContextParts, begun: Instant) -> Result<(), Failure> {
    if let Some(milliseconds) = fields.timeout.number(&names::TIMEOUT)? {
        parts.deadline = Some(Deadline::since(begun, Duration::from_millis(milliseconds)));
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

/// The time reserved for the answer's way back, so that a server that ends at its limit still reports the usage before its caller
/// stops waiting.
fn way_back(left: Duration) -> Duration {
    (left / 16).clamp(Duration::from_millis(5), Duration::from_millis(250)).min(left / 2)
}

/// Writes the trace of a request, in place of one that it has already.
pub(crate) fn write_trace(trace: &TraceContext, head: &mut HeaderMap) {
    put(head, names::TRACEPARENT, trace.traceparent());
    match trace.tracestate() {
        Some(state) => put(head, names::TRACESTATE, state),
        None => drop(head.remove(names::TRACESTATE)),
    }
}

/// Writes the parts of a request. The deadline is written as the time left at `now`, less the way back of the answer.
pub(crate) fn write_parts(parts: &ContextParts, head: &mut HeaderMap, now: Instant) {
    put(head, names::REQUEST_ID, parts.request_id.as_str());
    put(head, names::CORRELATION_ID, parts.correlation_id.as_str());
    if let Some(task) = &parts.task_id {
        put(head, names::TASK_ID, task.as_str());
    }
    if let Some(trace) = &parts.trace {
        write_trace(trace, head);
    }
    if let Some(deadline) = parts.deadline {
        let left = deadline.instant().saturating_duration_since(now);
        let sent = left.saturating_sub(way_back(left));
        head.insert(names::TIMEOUT, decimal(u64::try_from(sent.as_millis()).unwrap_or(u64::MAX)));
    }
    if !parts.budget.is_unlimited() {
        put(head, names::BUDGET, &parts.budget.to_string());
    }
    if let Some(key) = &parts.key {
        write_key(key, head);
    }
    // Without the field it is the first one.
    if parts.attempt != 1 {
        head.insert(names::ATTEMPT, decimal(parts.attempt.into()));
    }
}

/// A number as a header value, with one allocation, where `HeaderValue::from` needs several.
pub(crate) fn decimal(mut number: u64) -> HeaderValue {
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

/// The usage of most calls, which is written and read without parsing.
pub(super) const NOTHING_USED: &str = "tokens=0;cost_usd=0";

/// Writes the usage, also if it is zero: a missing field is a usage that is not reported.
pub(crate) fn write_usage(usage: Usage, head: &mut HeaderMap) {
    if usage.is_zero() {
        head.insert(names::USAGE, HeaderValue::from_static(NOTHING_USED));
    } else {
        put(head, names::USAGE, &usage.to_string());
    }
}

/// Reads the usage, and whether all of it could be read; `None` if it is not reported. Several fields are added up, and count as
/// one that could not be read.
pub(crate) fn read_usage(head: &HeaderMap) -> Option<(Usage, bool)> {
    let mut values = head.get_all(&names::USAGE).iter();
    let first = usage_of(values.next()?);
    Some(values.map(usage_of).fold(first, |(sum, _), (usage, _)| (sum.plus(usage), false)))
}

fn usage_of(value: &HeaderValue) -> (Usage, bool) {
    if value == NOTHING_USED {
        return (Usage::ZERO, true);
    }
    let text = text(Some(value)).unwrap_or_default();
    match text.parse() {
        Ok(usage) => (usage, true),
        Err(_) => {
            let parts = text.split([';', ',']).filter_map(|part| part.parse::<Usage>().ok());
            (parts.fold(Usage::ZERO, Usage::plus), false)
        }
    }
}

/// Reads a quoted string or a bare text. A server refuses a malformed one before it is used.
fn read_key(value: &HeaderValue) -> Option<IdempotencyKey> {
    let text = value.to_str().ok()?;
    let Some(quoted) = text.strip_prefix('"') else { return IdempotencyKey::new(text) };
    let quoted = quoted.strip_suffix('"')?;
    if !quoted.contains('\\') {
        return IdempotencyKey::new(quoted);
    }
    let mut key = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        key.push(if character == '\\' { characters.next()? } else { character });
    }
    IdempotencyKey::new(key)
}

/// Writes the key of a call as a quoted string.
fn write_key(key: &IdempotencyKey, head: &mut HeaderMap) {
    let mut quoted = String::with_capacity(key.as_str().len() + 2);
    quoted.push('"');
    for character in key.as_str().chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    put(head, names::IDEMPOTENCY_KEY, &quoted);
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
        parts.key = IdempotencyKey::new("k");
        parts.trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
        let mut head = HeaderMap::new();
        write_parts(&parts, &mut head, Instant::now());
        // A sixteenth is for the way back.
        assert_eq!(head[&names::TIMEOUT], "1406");
        parts.deadline = Some(Deadline::after(Duration::from_millis(1406)));
        assert_eq!(format!("{parts:?}"), format!("{:?}", read_parts(&head).unwrap()));
    }

    #[test]
    fn an_answer_has_time_for_its_way_back() {
        for (left, way) in [(0, 0), (4, 2), (40, 5), (1_600, 100), (60_000, 250)] {
            assert_eq!(way_back(Duration::from_millis(left)), Duration::from_millis(way), "{left}");
        }
    }

    #[test]
    fn several_fields_of_a_list_are_one() {
        let parent = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        for (fields, joined) in [
            (
                vec![("tracestate", "a=1"), ("tracestate", "b=2"), ("tracestate", ""), ("tracestate", "c=3")],
                Some("a=1,b=2,c=3"),
            ),
            (vec![("tracestate", "a=1,b=2")], Some("a=1,b=2")),
            (vec![("tracestate", "")], None),
        ] {
            let parts = read_parts(&head(&[fields, vec![parent]].concat())).unwrap();
            assert_eq!(parts.trace.unwrap().tracestate(), joined);
        }
        let two = head(&[parent, parent, ("tracestate", "a=1")]);
        assert!(read_parts(&two).unwrap().trace.is_none(), "two parents are none");
    }

    #[test]
    fn a_usage_is_read_as_far_as_it_can_be() {
        for (text, usage, is_readable) in [
            ("tokens=12;input=10;output=2", Usage::metered(10, 2), true),
            ("tokens=10.0", Usage::tokens(10), true),
            ("cost_usd=much;tokens=4", Usage::tokens(4), false),
            ("tokens=-1", Usage::ZERO, false),
            ("tokens=7;cost_usd=NaN", Usage::tokens(7), false),
            ("12", Usage::ZERO, false),
        ] {
            let read = read_usage(&head(&[("octollm-usage", text)]));
            assert_eq!(read, Some((usage, is_readable)), "{text}");
        }
        // A proxy may have joined two fields to one.
        for fields in [
            &[("octollm-usage", "tokens=3"), ("octollm-usage", "tokens=4;cost_usd=x")][..],
            &[("octollm-usage", "tokens=0;cost_usd=0"), ("octollm-usage", "tokens=7")],
            &[("octollm-usage", "tokens=3, tokens=4")],
        ] {
            assert_eq!(read_usage(&head(fields)), Some((Usage::tokens(7), false)), "{fields:?}");
        }
        assert_eq!(read_usage(&HeaderMap::new()), None);
        let mut written = HeaderMap::new();
        write_usage(Usage::ZERO, &mut written);
        assert_eq!(read_usage(&written), Some((Usage::ZERO, true)));
        assert_eq!(written[&names::USAGE], Usage::ZERO.to_string());
    }

    #[test]
    fn a_key_is_a_quoted_string() {
        let mut head = HeaderMap::new();
        write_key(&IdempotencyKey::new(r#"a "b" \c"#).unwrap(), &mut head);
        assert_eq!(head[&names::IDEMPOTENCY_KEY], r#""a \"b\" \\c""#);
        assert_eq!(read_parts(&head).unwrap().key, IdempotencyKey::new(r#"a "b" \c"#));
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
            let (failure, _) = *read_parts(&head(&[(name, value)])).unwrap_err();
            assert_eq!(failure.kind, ErrorKind::BadRequest, "{name}: {value}");
        }
    }
}
