//! From what an endpoint returns to the answer on the wire.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use octollm_core::{
    budget::Usage,
    error::{ErrorKind, Failure},
    id::{RequestId, TaskId},
    parts::ContextParts,
};
use serde::Serialize;

use super::{body::ResponseBody, media};
use crate::wire::{Problem, names, write_usage};

/// What an endpoint answers.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    body: Bytes,
    headers: HeaderMap,
}

/// Why an endpoint does not answer, and what the head of the problem says beside.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Refused>);

#[derive(Debug)]
struct Refused {
    failure: Failure,
    headers: HeaderMap,
    task: Option<TaskId>,
}

impl Reply {
    /// 200 with JSON that is written already.
    pub(crate) fn written(body: Bytes) -> Self {
        Self { status: StatusCode::OK, body, headers: HeaderMap::new() }
    }

    /// 200 with a value as JSON.
    pub(crate) fn json(value: &impl Serialize) -> Result<Self, Refusal> {
        match serde_json::to_vec(value) {
            Ok(body) => Ok(Self::written(body.into())),
            Err(error) => {
                tracing::error!(%error, "answer cannot be written as JSON");
                Err(Failure::of(ErrorKind::Internal).into())
            }
        }
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(crate) fn usage(mut self, usage: Usage) -> Self {
        write_usage(usage, &mut self.headers);
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

    /// The task that failed.
    pub(crate) fn task(mut self, task: TaskId) -> Self {
        self.0.task = Some(task);
        self
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(Box::new(Refused { failure, headers: HeaderMap::new(), task: None }))
    }
}

/// The ids that every answer carries, errors too.
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

    /// The answer on the wire.
    pub(crate) fn respond(self, result: Result<Reply, Refusal>) -> Response<ResponseBody> {
        let (media, reply) = match result {
            Ok(reply) => (media::JSON, reply),
            Err(refusal) => (media::PROBLEM, self.problem(refusal)),
        };
        let Reply { status, body, mut headers } = reply;
        headers.insert(header::CONTENT_TYPE, media);
        headers.insert(names::REQUEST_ID, self.request);
        headers.insert(names::CORRELATION_ID, self.correlation);
        let mut response = Response::new(ResponseBody::full(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    fn problem(&self, refusal: Refusal) -> Reply {
        let Refused { failure, mut headers, task } = *refusal.0;
        let request: Option<RequestId> = self.request.to_str().ok().and_then(|id| id.parse().ok());
        let problem = Problem::new(&failure, request, task.or_else(|| self.task.clone()));
        if let Some(seconds) = problem.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        Reply { status, body: body.into(), headers }
    }
}

/// The value as it came, where it was taken as it came: that costs no memory.
fn echo(head: &HeaderMap, name: &HeaderName, id: &RequestId) -> HeaderValue {
    match head.get(name) {
        Some(value) if value == id.as_str() => value.clone(),
        told => {
            if told.is_some() {
                tracing::debug!(%name, %id, "malformed id replaced");
            }
            HeaderValue::from_str(id.as_str()).unwrap_or(HeaderValue::from_static("unknown"))
        }
    }
}

/// Takes the body away, and leaves the head as it would be with it.
pub(crate) fn head_only(response: Response<ResponseBody>) -> Response<ResponseBody> {
    let length = http_body::Body::size_hint(response.body()).lower();
    let mut response = response.map(|_| ResponseBody::empty());
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}
