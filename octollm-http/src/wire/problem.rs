//! `application/problem+json` (RFC 9457), with extension members.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use octollm_core::{
    contract::Violation,
    error::{ArmError, CallError, ErrorKind, Failure},
    id::{RequestId, TaskId},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// The body of an error answer.
///
/// The body of another server may lack some members. It is not retryable then, and its code decides whether the work may have
/// run.
///
/// ```
/// use bytes::Bytes;
/// use http::Response;
/// use octollm_core::error::CallError;
/// use octollm_http::wire::Problem;
///
/// // The answer of your own server when a call has failed. With axum, a handler that returns `Result<_, Response>` uses
/// // `arms.call(..).await.map_err(Problem::from)?`.
/// fn answer(error: CallError) -> Response<Bytes> {
///     Problem::from(error).into()
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Received")]
#[schemars(!from, description = "The body of an error answer.")]
#[non_exhaustive]
pub struct Problem {
    /// Always `about:blank`: the code tells the kind.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "about:blank"))]
    pub type_uri: String,
    /// The words of the status.
    pub title: String,
    /// The HTTP status.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// One line for people.
    pub detail: String,
    /// What happened, from a fixed list.
    pub code: ErrorKind,
    /// The same as `detail`, for clients that look for it.
    pub message: String,
    /// Broken rules under `violations`, and whatever else a program can use.
    pub details: Map<String, Value>,
    /// Whether the same request can succeed later.
    pub retryable: bool,
    /// Seconds to wait before that; none where it cannot.
    pub retry_after: Option<u64>,
    /// Whether the work may have been done.
    pub may_have_executed: bool,
    /// Names the request.
    pub request_id: Option<RequestId>,
    /// Names the task, where there is one.
    pub task_id: Option<TaskId>,
}

/// A problem as received, possibly from another server. All members but the first two may be missing. A member of another type,
/// such as null, counts as missing.
#[derive(Deserialize)]
struct Received {
    status: u16,
    code: ErrorKind,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Received {
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        self.others.remove(name).and_then(|member| serde_json::from_value(member).ok())
    }
}

impl From<Received> for Problem {
    fn from(mut received: Received) -> Self {
        let code = received.code;
        Self {
            type_uri: received.take("type").unwrap_or_default(),
            title: received.take("title").unwrap_or_default(),
            status: received.status,
            detail: received.take("detail").unwrap_or_default(),
            code,
            message: received.take("message").unwrap_or_default(),
            details: received.take("details").unwrap_or_default(),
            retryable: received.take("retryable").unwrap_or_default(),
            retry_after: received
                .take::<f64>("retry_after")
                .filter(|wait| *wait >= 0.0)
                .map(|wait| wait.ceil() as u64),
            may_have_executed: received.take("may_have_executed").unwrap_or_else(|| code.usually_executed()),
            request_id: received.take("request_id"),
            task_id: received.take("task_id"),
        }
    }
}

/// The problem for a server whose own call has failed. It is not retryable, since the server could retry the call itself.
impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Self::new(ArmError::from(error).failure(), None, None)
    }
}

/// An answer with this problem, and with `Retry-After` if the problem has it.
impl<B: From<Bytes>> From<Problem> for Response<B> {
    fn from(problem: Problem) -> Self {
        let mut response = Self::new(write_problem(&problem, false).into());
        *response.status_mut() =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let head = response.headers_mut();
        head.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = problem.retry_after {
            head.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl Problem {
    /// Creates the problem of a failure.
    pub fn new(failure: &Failure, request_id: Option<RequestId>, task_id: Option<TaskId>) -> Self {
        let status = failure.kind.status();
        let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut details = match &failure.details {
            Some(Value::Object(details)) => details.clone(),
            Some(other) => Map::from_iter([("data".to_owned(), other.clone())]),
            None => Map::new(),
        };
        let message = shortened(&failure.message, MAX_MESSAGE);
        let violations = first(&failure.violations);
        if !violations.is_empty()
            && let Ok(violations) = serde_json::to_value(&violations)
        {
            details.insert("violations".into(), violations);
        }
        Self {
            type_uri: "about:blank".into(),
            // RFC 9110 renamed two statuses; the `http` crate has the older names.
            title: match status {
                413 => "Content Too Large",
                422 => "Unprocessable Content",
                _ => title.unwrap_or("Error"),
            }
            .into(),
            status,
            detail: message.clone(),
            code: failure.kind,
            message,
            details,
            retryable: failure.retryable,
            retry_after: failure.retry_after.filter(|_| failure.retryable).map(whole_seconds),
            may_have_executed: failure.may_have_executed,
            request_id,
            task_id,
        }
    }

    /// Returns the failure that the problem reports. Long texts are truncated.
    pub fn into_failure(mut self) -> Failure {
        let violations = self.details.remove("violations");
        let words =
            [&self.detail, &self.message, &self.title].into_iter().find(|words| !words.trim().is_empty());
        let words = words.map_or(self.code.summary(), String::as_str);
        // The text of another program, which may be printed as one line on a terminal.
        let words = words.replace(char::is_control, " ");
        let mut failure = Failure::new(self.code, shortened(&words, MAX_MESSAGE));
        failure.violations = violations
            .and_then(|violations| serde_json::from_value::<Vec<Violation>>(violations).ok())
            .map(|violations| first(&violations))
            .unwrap_or_default();
        failure.details = (!self.details.is_empty()).then_some(Value::Object(self.details));
        failure.retryable = self.retryable;
        failure.retry_after = self.retry_after.filter(|_| self.retryable).map(Duration::from_secs);
        failure.may_have_executed = self.may_have_executed;
        failure
    }
}

/// A problem as JSON; `nested` adds the member that clients of other stacks read.
pub(crate) fn write_problem(problem: &Problem, nested: bool) -> Bytes {
    let written = match nested {
        false => serde_json::to_vec(problem),
        true => {
            let error = NestedError { code: problem.code, message: &problem.message };
            serde_json::to_vec(&Nested { problem, error })
        }
    };
    written.unwrap_or_default().into()
}

#[derive(Serialize)]
struct Nested<'p> {
    #[serde(flatten)]
    problem: &'p Problem,
    error: NestedError<'p>,
}

/// A problem as clients of other stacks read it.
#[derive(Serialize, JsonSchema)]
pub(crate) struct NestedError<'p> {
    code: ErrorKind,
    message: &'p str,
}

/// Limits on what is repeated of a request: without them a body of many wrong fields would be answered with a much larger one. What a
/// server sends is stored with the caller's task, and has the same limits.
pub(crate) const MOST_VIOLATIONS: usize = 100;
const MAX_MESSAGE: usize = 1024;

fn first(violations: &[Violation]) -> Vec<Violation> {
    let first = violations.iter().take(MOST_VIOLATIONS);
    first
        .map(|broken| {
            Violation::new(shortened(&broken.path, MAX_MESSAGE), shortened(&broken.message, MAX_MESSAGE))
        })
        .collect()
}

/// Truncates a text to this many bytes, and adds an ellipsis.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// Rounds up, since a shorter wait would be refused again.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_truncated() {
        let mut violations = Vec::new();
        for n in 0..100_000 {
            violations.push(Violation::new(format!("{n}{}", "é".repeat(n % 1000)), "unknown field"));
        }
        let problem = Problem::new(&Failure::invalid(violations), None, None);
        assert_eq!(problem.details["violations"].as_array().unwrap().len(), MOST_VIOLATIONS);
        assert!(problem.message.ends_with('…') && problem.detail == problem.message);
        let long = Failure::invalid(vec![Violation::new("k".repeat(1 << 20), "unknown field")]);
        assert!(serde_json::to_vec(&Problem::new(&long, None, None)).unwrap().len() < 5 * MAX_MESSAGE);
        assert_eq!(shortened("aé", 2), "a…");
        assert_eq!(shortened("aé", 3), "aé");
    }

    #[test]
    fn a_failure_survives_the_wire() {
        let failure = Failure::invalid(vec![Violation::new("code", "length is lower than 1")]);
        let mut failure = failure.retryable_after(Duration::from_secs(3));
        failure.details = Some(serde_json::json!({ "offered": ["a.b"] }));
        let bytes = serde_json::to_vec(&Problem::new(&failure, Some(RequestId::new()), None)).unwrap();
        let read: Problem = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read.into_failure(), failure);
    }

    #[test]
    fn nobody_waits_for_what_cannot_be_retried() {
        let mut failure = Failure::of(ErrorKind::Unavailable).retryable_after(Duration::from_secs(3));
        assert_eq!(Problem::new(&failure, None, None).retry_after, Some(3));
        let running = Failure::of(ErrorKind::Conflict).retryable_after(Duration::from_millis(1500));
        let answer: Response<Bytes> = Problem::new(&running, None, None).into();
        assert_eq!((answer.status().as_u16(), &answer.headers()[RETRY_AFTER]), (409, &HeaderValue::from(2)));
        failure.retryable = false;
        let problem = Problem::new(&failure, None, None);
        assert_eq!((problem.retryable, problem.retry_after), (false, None));
    }

    #[test]
    fn a_body_without_our_members_has_safe_ones() {
        let read = |body: &str| serde_json::from_str::<Problem>(body).unwrap().into_failure();
        let failed = read(r#"{"status":500,"code":"arm_failed"}"#);
        assert!(failed.may_have_executed && !failed.retryable);
        assert_eq!(failed.message, "the arm failed");
        let busy = read(r#"{"status":503,"code":"overloaded","title":"Busy","detail":" "}"#);
        assert_eq!(busy.message, "Busy");
        assert!(!busy.may_have_executed && !busy.retryable);
        let stated = read(r#"{"status":500,"code":"arm_failed","may_have_executed":false,"retryable":true}"#);
        assert!(!stated.may_have_executed && stated.retryable);
        let odd = read(
            r#"{"status":500,"code":"arm_failed","title":null,"details":null,"detail":"it broke","message":7,"request_id":"","task_id":"1",
                "retryable":true,"retry_after":1.5,"may_have_executed":null}"#,
        );
        assert!(odd.may_have_executed && odd.retryable && odd.details.is_none());
        assert_eq!(odd.retry_after, Some(Duration::from_secs(2)));
        assert_eq!(odd.message, "it broke");
    }
}
