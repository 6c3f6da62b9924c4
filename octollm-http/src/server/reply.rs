//! Answers: what an endpoint returns, and what is sent.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use octollm_core::{
    budget::Usage,
    error::{ErrorKind, Failure},
    id::{RequestId, TaskId},
    parts::ContextParts,
};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::body::HttpBody;
use crate::wire::{Problem, names, write_problem, write_usage};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The answer of an endpoint.
#[derive(Debug)]
pub(crate) struct Answer(Response<HttpBody>);

/// The failure of an endpoint, with more header fields of the problem.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Refused>);

#[derive(Debug)]
struct Refused {
    failure: Failure,
    headers: HeaderMap,
    task: Option<TaskId>,
    place: Option<OwnedSemaphorePermit>,
}

impl Answer {
    /// 200 with a body of JSON.
    pub(crate) fn written(body: Bytes) -> Self {
        let mut response = Response::new(HttpBody::full(body));
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        Self(response)
    }

    /// 200 with a value, which is written as JSON.
    pub(crate) fn json(value: &impl Serialize) -> Result<Self, Failure> {
        match serde_json::to_vec(value) {
            Ok(body) => Ok(Self::written(body.into())),
            Err(error) => {
                tracing::error!(%error, "answer cannot be written as JSON");
                Err(Failure::of(ErrorKind::Internal))
            }
        }
    }

    /// The answer of a service of the user.
    pub(crate) fn foreign(response: Response<HttpBody>) -> Self {
        Self(response)
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        *self.0.status_mut() = status;
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    pub(crate) fn usage(mut self, usage: Usage) -> Self {
        write_usage(usage, self.0.headers_mut());
        self
    }

    /// Holds the place until the body is sent.
    pub(crate) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.0.body_mut().hold(place);
        self
    }
}

impl Refusal {
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    pub(crate) fn usage(mut self, usage: Usage) -> Self {
        write_usage(usage, &mut self.0.headers);
        self
    }

    /// Holds the place until the problem is sent.
    pub(crate) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.0.place = Some(place);
        self
    }

    /// Sets the task that failed.
    pub(crate) fn task(mut self, task: TaskId) -> Self {
        self.0.task = Some(task);
        self
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(Box::new(Refused { failure, headers: HeaderMap::new(), task: None, place: None }))
    }
}

/// The form of a server's errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ErrorForm {
    /// A problem.
    #[default]
    Flat,
    /// A problem whose member `error` repeats its code and message.
    Nested,
}

/// The ids in the head of every answer.
pub(crate) struct Ids {
    request: HeaderValue,
    correlation: HeaderValue,
    task: Option<TaskId>,
}

impl Ids {
    pub(crate) fn of(head: &HeaderMap, parts: &ContextParts) -> Self {
        let request = echo(head, &names::REQUEST_ID, &parts.request_id);
        let correlation = match parts.correlation_id == parts.request_id {
            true => request.clone(),
            false => echo(head, &names::CORRELATION_ID, &parts.correlation_id),
        };
        Self { request, correlation, task: parts.task_id.clone() }
    }

    /// The answer that is sent; `errors` is the form of a refusal.
    pub(crate) fn respond(self, result: Result<Answer, Refusal>, errors: ErrorForm) -> Response<HttpBody> {
        let mut response = match result {
            Ok(Answer(response)) => response,
            Err(refusal) => self.problem(refusal, errors),
        };
        response.headers_mut().insert(names::REQUEST_ID, self.request);
        response.headers_mut().insert(names::CORRELATION_ID, self.correlation);
        response
    }

    fn problem(&self, refusal: Refusal, errors: ErrorForm) -> Response<HttpBody> {
        let Refused { failure, mut headers, task, place } = *refusal.0;
        let request: Option<RequestId> = self.request.to_str().ok().and_then(|id| id.parse().ok());
        let problem = Problem::new(&failure, request, task.or_else(|| self.task.clone()));
        if let Some(seconds) = problem.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = challenge(failure.kind) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        let body = write_problem(&problem, errors == ErrorForm::Nested);
        let mut response = Response::new(HttpBody::full(body));
        *response.status_mut() =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = headers;
        if let Some(place) = place {
            response.body_mut().hold(place);
        }
        response
    }
}

/// The challenge to a caller whose identity is refused (RFC 6750 §3).
fn challenge(kind: ErrorKind) -> Option<HeaderValue> {
    match kind {
        ErrorKind::Unauthenticated => Some(HeaderValue::from_static("Bearer")),
        ErrorKind::InsufficientScope => Some(HeaderValue::from_static("Bearer error=\"insufficient_scope\"")),
        _ => None,
    }
}

/// The value of an id, which shares the memory of the request's field if that was valid.
fn echo(head: &HeaderMap, name: &HeaderName, id: &RequestId) -> HeaderValue {
    match head.get(name) {
        Some(value) if value == id.as_str() => value.clone(),
        other => {
            if other.is_some() {
                tracing::debug!(%name, %id, "malformed id replaced");
            }
            HeaderValue::from_str(id.as_str()).unwrap_or(HeaderValue::from_static("unknown"))
        }
    }
}

/// Removes the body, and leaves the head as it would be with one.
pub(crate) fn head_only(response: Response<HttpBody>) -> Response<HttpBody> {
    let length = http_body::Body::size_hint(response.body()).exact();
    let mut response = response.map(|_| HttpBody::empty());
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}
