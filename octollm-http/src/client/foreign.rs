//! Reading failures: problems, and the error bodies of other frameworks.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use octollm_core::{
    contract::Violation,
    error::{ErrorKind, Failure},
    json::{read_input, read_output},
};
use serde::Deserialize;
use serde_json::Value;

use crate::wire::{MOST_VIOLATIONS, Problem, received};

/// Reads the failure that an answer reports.
pub(super) fn failure(status: StatusCode, head: &HeaderMap, body: &[u8], now: SystemTime) -> Failure {
    let asked = retry_after(head, now);
    let body = if body.len() > MOST_READ { &[] } else { body };
    // A member that is there twice states nothing, so that the status decides.
    let strict: Option<Value> = read_input(body).ok();
    if let Some(problem) = strict.and_then(|json| Problem::deserialize(json).ok()) {
        let mut failure = problem.into_failure();
        failure.retry_after = failure.retry_after.or(asked).filter(|_| failure.retryable);
        return failure;
    }
    let reported = read_output(body).ok().map(|json| read(&json)).unwrap_or_else(|| Reported::text(body));
    let message = reported.message.filter(|message| !message.is_empty()).unwrap_or_else(|| in_words(status));
    let mut failure = Failure::new(kind(status), message);
    failure.violations = received(&reported.violations);
    failure.details =
        reported.code.map(|code| serde_json::json!({ "status": status.as_u16(), "code": code }));
    failure.may_have_executed = may_have_executed(status, asked.is_some());
    match asked {
        // The key of this call is still running: an earlier attempt has begun, and its answer can be read after the wait.
        Some(wait) if status == StatusCode::CONFLICT => {
            failure = failure.retryable_after(wait);
            failure.may_have_executed = true;
        }
        asked => failure.retry_after = asked.filter(|_| failure.retryable),
    }
    failure
}

/// The largest error body that is read, in bytes. As values JSON takes up to a hundred times as much memory. Of a larger one only
/// the status counts.
pub(super) const MOST_READ: usize = 256 << 10;

/// The contents of an error body of another framework.
#[derive(Default)]
struct Reported {
    message: Option<String>,
    code: Option<Value>,
    violations: Vec<Violation>,
}

impl Reported {
    fn message(text: &str) -> Self {
        Self { message: Some(one_line(text)), ..Self::default() }
    }

    /// Plain text, or nothing for an HTML page.
    fn text(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&body[..body.len().min(4096)]);
        if text.trim_start().starts_with('<') { Self::default() } else { Self::message(&text) }
    }
}

fn read(json: &Value) -> Reported {
    match json {
        Value::String(text) => Reported::message(text),
        Value::Object(object) => {
            let member = |name: &str| object.get(name).filter(|value| !value.is_null());
            let found = ["error", "detail", "message", "title"].into_iter().find_map(member);
            let mut reported = found.map(reported_by).unwrap_or_default();
            reported.code = reported.code.or_else(|| member("code").cloned());
            reported
        }
        _ => Reported::default(),
    }
}

/// The contents of a member: a text, an object with a message, or a list of violations.
fn reported_by(value: &Value) -> Reported {
    match value {
        Value::String(text) => Reported::message(text),
        Value::Object(object) => {
            let message = ["message", "detail", "msg", "description", "reason"]
                .into_iter()
                .find_map(|name| object.get(name)?.as_str())
                .map(one_line);
            let member = |name| object.get(name).filter(|value: &&Value| !value.is_null());
            let code = ["code", "type", "status"].into_iter().find_map(member).cloned();
            Reported { message, code, ..Reported::default() }
        }
        Value::Array(items) => {
            let mut violations = Vec::new();
            for item in items.iter().take(MOST_VIOLATIONS) {
                let text =
                    item.as_str().or_else(|| item.get("msg").or_else(|| item.get("message"))?.as_str());
                violations
                    .push(Violation::new(path(item.get("loc")), one_line(text.unwrap_or("is not valid"))));
            }
            let failure = Failure::invalid(violations);
            let message = (!failure.violations.is_empty()).then(|| one_line(&failure.message));
            Reported { message, violations: failure.violations, code: None }
        }
        _ => Reported::default(),
    }
}

/// The path of a field as FastAPI reports it: `["body", "items", 2, "name"]` is `items[2].name`.
fn path(loc: Option<&Value>) -> String {
    let Some(steps) = loc.and_then(Value::as_array) else {
        return loc.and_then(Value::as_str).unwrap_or_default().to_owned();
    };
    let steps = if steps.first().and_then(Value::as_str) == Some("body") { &steps[1..] } else { &steps[..] };
    let mut path = String::new();
    for step in steps.iter().take(32) {
        match step {
            Value::String(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            other => path.push_str(&format!("[{other}]")),
        }
    }
    path
}

/// The first line that is not empty, of at most 300 characters, without control characters.
fn one_line(text: &str) -> String {
    let is_shown = |c: char| !c.is_control() && !c.is_whitespace();
    let line = text.lines().find(|line| line.contains(is_shown)).unwrap_or_default();
    let shown = line.chars().filter(|c| !c.is_control()).skip_while(|c| c.is_whitespace());
    shown.take(300).collect::<String>().trim_end().to_owned()
}

fn in_words(status: StatusCode) -> String {
    if status.is_redirection() {
        return format!("answered {}: redirects are not followed", status.as_u16());
    }
    match status.canonical_reason() {
        Some(reason) => format!("answered {} {reason}", status.as_u16()),
        None => format!("answered {}", status.as_u16()),
    }
}

fn kind(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 | 407 => ErrorKind::Unauthenticated,
        402 | 403 | 451 => ErrorKind::InsufficientScope,
        404 | 410 => ErrorKind::NotFound,
        405 => ErrorKind::MethodNotAllowed,
        406 => ErrorKind::NotAcceptable,
        408 => ErrorKind::RequestTimeout,
        409 | 412 => ErrorKind::Conflict,
        413 => ErrorKind::PayloadTooLarge,
        414 => ErrorKind::UriTooLong,
        415 => ErrorKind::UnsupportedMediaType,
        417 => ErrorKind::ExpectationFailed,
        426 => ErrorKind::UpgradeRequired,
        422 => ErrorKind::ValidationFailed,
        425 | 429 => ErrorKind::RateLimited,
        431 => ErrorKind::HeadersTooLarge,
        400..=499 => ErrorKind::BadRequest,
        501 => ErrorKind::NotImplemented,
        502 => ErrorKind::UpstreamFailed,
        503 => ErrorKind::Unavailable,
        // A gateway has not waited longer for what is after it.
        504 => ErrorKind::Timeout,
        500..=599 => ErrorKind::ArmFailed,
        _ => ErrorKind::BadResponse,
    }
}

/// Whether the work may have run: not after a 4xx, or a 503 that asks to wait, which are sent before it. Any other 503 may be of a proxy
/// that has lost the server while it worked.
fn may_have_executed(status: StatusCode, asks_to_wait: bool) -> bool {
    !(status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE && asks_to_wait)
}

/// The clock of the service where it states that, and else that of this machine.
pub(super) fn clock(head: &HeaderMap, now: SystemTime) -> SystemTime {
    let stated = head.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    stated.unwrap_or(now)
}

/// Reads `Retry-After`: seconds, or a date by the [clock] of the service. A date in the past is no wait. Anything else is ignored.
pub(super) fn retry_after(head: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = head.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(clock(head, now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reported(status: u16, body: impl AsRef<[u8]>) -> Failure {
        let now = SystemTime::UNIX_EPOCH;
        failure(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_ref(), now)
    }

    #[test]
    fn text_under_a_reserved_name_is_not_parsed() {
        let hidden = format!("{}0{}", "[".repeat(100), "]".repeat(100));
        let details = json!({ "$serde_json::private::RawValue": hidden }).to_string();
        let failure = reported(500, format!(r#"{{"status":500,"code":"arm_failed","details":{details}}}"#));
        assert_eq!((failure.kind, failure.details), (ErrorKind::ArmFailed, None));
    }

    #[test]
    fn reads_what_other_stacks_send() {
        let page = "<!DOCTYPE html><html>…</html>";
        let long = "x".repeat(1000);
        let cases: &[(u16, &str, ErrorKind, &str)] = &[
            (400, r#"{"error":"no code"}"#, ErrorKind::BadRequest, "no code"),
            (500, r#"{"error":{"code":"E7","message":"it broke"}}"#, ErrorKind::ArmFailed, "it broke"),
            (404, r#"{"detail":"Not Found"}"#, ErrorKind::NotFound, "Not Found"),
            (429, r#"{"message":"slow down"}"#, ErrorKind::RateLimited, "slow down"),
            (403, r#"{"title":"No","type":"x:y"}"#, ErrorKind::InsufficientScope, "No"),
            (400, r#"{"error":null,"message":"so it is"}"#, ErrorKind::BadRequest, "so it is"),
            (502, "\n  upstream down \nstack trace\n", ErrorKind::UpstreamFailed, "upstream down"),
            (503, page, ErrorKind::Unavailable, "answered 503 Service Unavailable"),
            (500, "", ErrorKind::ArmFailed, "answered 500 Internal Server Error"),
            (500, "\0 \u{b}\0\n \0 down\0 ", ErrorKind::ArmFailed, "down"),
            (500, "\0 \0\n", ErrorKind::ArmFailed, "answered 500 Internal Server Error"),
            (500, "[1]", ErrorKind::ArmFailed, "answered 500 Internal Server Error"),
            (500, "\"words\"", ErrorKind::ArmFailed, "words"),
            (599, "{}", ErrorKind::ArmFailed, "answered 599"),
            (418, "{", ErrorKind::BadRequest, "{"),
            (302, "", ErrorKind::BadResponse, "answered 302: redirects are not followed"),
            (500, &long, ErrorKind::ArmFailed, &long[..300]),
        ];
        for (status, body, kind, message) in cases {
            let failure = reported(*status, body);
            assert_eq!((failure.kind, &*failure.message), (*kind, *message), "{status} {body}");
        }
        assert_eq!(reported(500, [0xff, 0xfe]).message, "\u{fffd}\u{fffd}");
        let coded = reported(500, r#"{"error":{"code":"E7","message":"it broke"}}"#);
        assert_eq!(coded.details, Some(json!({ "status": 500, "code": "E7" })));
        let typed = reported(429, r#"{"error":{"message":"no","type":"insufficient_quota","code":null}}"#);
        assert_eq!(typed.details, Some(json!({ "status": 429, "code": "insufficient_quota" })));
    }

    #[test]
    fn reads_the_broken_rules_of_fastapi() {
        let body = json!({ "detail": [
            { "loc": ["body", "items", 2, "name"], "msg": "field required", "type": "value_error.missing" },
            { "loc": ["body"], "msg": "bad" },
            "worse",
        ] });
        let failure = reported(422, body.to_string());
        assert_eq!(failure.kind, ErrorKind::ValidationFailed);
        let read: Vec<_> = failure.violations.iter().map(|v| (&*v.path, &*v.message)).collect();
        assert_eq!(read, [("items[2].name", "field required"), ("", "bad"), ("", "worse")]);
        assert!(failure.message.starts_with("items[2].name: field required"));
    }

    #[test]
    fn the_path_of_a_broken_rule_is_a_short_line() {
        for loc in [json!("\n".repeat(5000)), json!(["body", "x".repeat(5000), "a\nb"])] {
            let failure = reported(422, json!({ "detail": [{ "loc": loc, "msg": "bad" }] }).to_string());
            let path = &failure.violations[0].path;
            assert!(path.len() < 1030 && !path.contains(char::is_control), "{path}");
        }
    }

    #[test]
    fn says_whether_the_work_may_have_run() {
        let head = HeaderMap::from_iter([(RETRY_AFTER, "3".parse().unwrap())]);
        for status in 300..600 {
            let expected = !(400..500).contains(&status);
            assert_eq!(reported(status, "").may_have_executed, expected, "{status}");
            let asks = failure(StatusCode::from_u16(status).unwrap(), &head, b"", SystemTime::UNIX_EPOCH);
            // A 409 that asks to wait is about a call that runs.
            let expected = expected && status != 503 || status == 409;
            assert_eq!(asks.may_have_executed, expected, "{status} with a wait");
        }
        // Without a problem that states more, a 503 may be of a proxy.
        for body in ["{}", r#"{"error":"upstream"}"#, "no healthy upstream", "<html>"] {
            assert!(reported(503, body).may_have_executed, "{body}");
        }
        for (body, expected) in [
            (r#"{"status":503,"code":"overloaded"}"#, false),
            (r#"{"status":503,"code":"unavailable","may_have_executed":true}"#, true),
        ] {
            assert_eq!(reported(503, body).may_have_executed, expected, "{body}");
        }
    }

    #[test]
    fn our_own_form_is_taken_at_its_word() {
        let mut ours = Failure::new(ErrorKind::ArmFailed, "it failed").before_execution();
        ours.details = Some(json!({ "offered": [] }));
        let body = serde_json::to_vec(&Problem::new(&ours, None, None)).unwrap();
        assert_eq!(reported(500, &body), ours);
    }

    #[test]
    fn the_message_of_a_problem_is_one_line() {
        let body = r#"{"status":500,"code":"arm_failed","message":"a\r\nb\u001b[31mred"}"#;
        assert_eq!(reported(500, body).message, "a  b [31mred");
    }

    #[test]
    fn a_problem_that_contradicts_itself_states_nothing() {
        let body =
            r#"{"status":500,"code":"unavailable","may_have_executed":true,"may_have_executed":false}"#;
        let failure = reported(500, body);
        assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::ArmFailed, true));
    }

    #[test]
    fn a_wait_is_read_where_the_call_can_succeed_after_it() {
        let head = HeaderMap::from_iter([(RETRY_AFTER, "3".parse().unwrap())]);
        let waits = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let read = failure(status, &head, body.as_bytes(), SystemTime::UNIX_EPOCH);
            (read.retryable, read.retry_after)
        };
        let (three, two) = (Duration::from_secs(3), Duration::from_secs(2));
        for (status, body, read) in [
            (503, "", (true, Some(three))),
            (429, r#"{"error":"slow down"}"#, (true, Some(three))),
            (400, "", (false, None)),
            (409, "", (true, Some(three))),
            (500, r#"{"status":500,"code":"arm_failed","retryable":true}"#, (true, Some(three))),
            (
                500,
                r#"{"status":500,"code":"arm_failed","retryable":true,"retry_after":2}"#,
                (true, Some(two)),
            ),
            (503, r#"{"status":503,"code":"unavailable","retryable":false,"retry_after":2}"#, (false, None)),
        ] {
            assert_eq!(waits(status, body), read, "{status} {body}");
        }
    }

    #[test]
    fn reads_seconds_and_dates_and_ignores_the_rest() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, wait) in [
            ("2", Some(2)),
            ("0", Some(0)),
            ("86400", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("abc", None),
            ("-1", None),
            ("1.5", None),
            ("+1", None),
            ("", None),
            ("99999999999999999999999", Some(u64::MAX)),
        ] {
            let head = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&head, now), wait.map(Duration::from_secs), "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_date_is_compared_with_the_clock_of_the_service() {
        let date = |text: &str| text.parse().unwrap();
        let mut head = HeaderMap::from_iter([
            (RETRY_AFTER, date("Sun, 06 Nov 1994 08:49:47 GMT")),
            (DATE, date("Sun, 06 Nov 1994 08:49:37 GMT")),
        ]);
        let ten = Some(Duration::from_secs(10));
        for now in ["Sun, 06 Nov 1994 08:39:37 GMT", "Sun, 06 Nov 1994 09:49:37 GMT"] {
            assert_eq!(retry_after(&head, httpdate::parse_http_date(now).unwrap()), ten, "{now}");
        }
        head.insert(DATE, date("now"));
        let ours = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(retry_after(&head, ours), ten);
    }
}
