//! One request of a [`RestClient`].

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use octollm_core::{
    Context,
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    id::{IdempotencyKey, RequestId},
    json::read_output,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use tower::BoxError;

use super::{
    EXPOSED, METHODS, RestClient,
    attempts::{Place, Prepared, cancelled},
    events::Events,
    field, is_own,
    path::Target,
    redact::Secrets,
    stream::BodyStream,
};
use crate::{
    client::{
        exchange::{CODED, Received, is_coded, read_answer},
        pool::Upload,
        sse::{EVENTS, ServerEvent, is_events},
    },
    wire,
};

/// A request of a [`RestClient`], which [`send`](Self::send), [`events`](Self::events) or [`stream`](Self::stream) sends.
///
/// What cannot be sent, such as a malformed header field, fails when the request is sent, with `bad_request`.
#[must_use = "a request is not sent until `send`, `events` or `stream`"]
pub struct RestRequest {
    client: RestClient,
    /// Which of the [`METHODS`].
    method: usize,
    target: Target,
    fields: HeaderMap,
    /// Those of the client as well, once the request has some of its own.
    secrets: Option<Secrets>,
    body: Option<Bytes>,
    upload: Option<Upload>,
    repeatable: bool,
    /// Whether it may have been sent before with its key.
    repeated: bool,
    retries: Option<u32>,
    limit: Option<Duration>,
    within: Option<Context>,
    propagate: Option<Context>,
    /// The first thing that is wrong with it.
    problem: Option<String>,
}

impl RestRequest {
    pub(super) fn new(client: &RestClient, method: usize, path: &str) -> Self {
        Self {
            client: client.clone(),
            repeatable: METHODS[method].is_idempotent(),
            method,
            target: Target::new(path),
            fields: HeaderMap::new(),
            secrets: None,
            body: None,
            upload: None,
            repeated: false,
            retries: None,
            limit: None,
            within: None,
            propagate: None,
            problem: None,
        }
    }

    /// Adds a segment to the path: any text that is not escaped yet, such as a name from elsewhere. All its characters are escaped once, a
    /// slash and a `%` too, so that the service reads this text. An empty segment, `.` and `..` are refused, also with
    /// parameters (`..;`), and what would be one of these after its escapes were read several times (`..%2f`).
    pub fn segment(mut self, segment: impl AsRef<str>) -> Self {
        self.target.segment(segment.as_ref());
        self
    }

    /// Adds names and values to the query, escaped.
    pub fn query<'a, K, V>(mut self, pairs: impl IntoIterator<Item = &'a (K, V)>) -> Self
    where
        K: AsRef<str> + 'a,
        V: fmt::Display + 'a,
    {
        for (name, value) in pairs {
            self.target.query(name.as_ref(), &value.to_string());
        }
        self
    }

    /// Sets the body, as JSON, in place of any that was set before.
    pub fn json(mut self, body: &(impl Serialize + ?Sized)) -> Self {
        match serde_json::to_vec(body) {
            Ok(json) => (self.body, self.upload) = (Some(json.into()), None),
            Err(error) => self.refuse(format!("the body is not JSON: {error}")),
        }
        self
    }

    /// Sets a body that is sent as it is produced, in place of any that was set before, with the content type `application/octet-stream`
    /// unless a [header](Self::header) sets another. It is sent once. An error of the stream ends the request.
    pub fn body<E: Into<BoxError>>(
        mut self,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Self {
        let frames = body.map(|piece| piece.map(Frame::data).map_err(Into::into));
        let upload = Upload::Streamed(http_body_util::BodyExt::boxed_unsync(StreamBody::new(frames)));
        (self.body, self.upload) = (None, Some(upload));
        self
    }

    /// Sends a header field. Its value is treated as a secret, as one of [the client](super::RestClientBuilder::header) is, unless it is
    /// `accept` or `content-type`.
    pub fn header(mut self, name: impl AsRef<str>, value: impl Into<SecretString>) -> Self {
        let (name, secret) = (name.as_ref(), value.into());
        match field(name, secret.expose_secret()) {
            Ok((name, value)) => {
                let is_plain = name == header::ACCEPT || name == header::CONTENT_TYPE;
                if !is_plain && is_own(&name) {
                    self.refuse(format!("the header `{name}` is one that the client sets"));
                }
                if !is_plain && !self.client.0.may_send_secrets {
                    self.refuse(format!("the URL of the client {EXPOSED}"));
                }
                if !is_plain {
                    self.secrets.get_or_insert_with(|| self.client.0.secrets.clone()).add(&secret);
                }
                self.fields.insert(name, value);
            }
            Err(problem) => {
                let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
                self.refuse(format!("the header `{name}` {problem}"));
            }
        }
        self
    }

    /// Sends this text as `Idempotency-Key`, with all attempts: the service runs the request once, so that it is sent again where an answer
    /// is lost. At most 255 printable ASCII characters, which are sent as they are.
    ///
    /// An attempt after one that may have run has the field `octollm-instance: ?` as well. An arm of octollm that was restarted meanwhile, and
    /// has no record of the key any more, answers it as `outcome_unknown`, and does not run it again. Other services ignore the field.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.repeatable = true;
        match IdempotencyKey::new(key.into()) {
            Some(key) => self.set_key(key.as_str()),
            None => self.refuse("the key is not 1 to 255 printable ASCII characters".into()),
        }
        self
    }

    /// Declares that an earlier program may have sent the request with its [`key`](Self::key): an arm of octollm answers it from its record,
    /// and does not run it where it has none. The request fails with `bad_request` if it has no key.
    pub fn repeated(mut self) -> Self {
        self.repeated = true;
        self
    }

    /// Declares that the request may run twice, or that the service honours `Idempotency-Key`, so that it is sent again where an answer is
    /// lost. A new key is sent with all its attempts, unless [`key`](Self::key) sets one.
    pub fn idempotent(mut self) -> Self {
        self.repeatable = true;
        if !self.fields.contains_key(wire::names::IDEMPOTENCY_KEY) {
            self.set_key(RequestId::new().as_str());
        }
        self
    }

    /// Sets how many further attempts are made at most, in place of [those of the client](super::RestClientBuilder::retries). They are made
    /// for a body of any size that does not stream.
    pub fn retry(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }

    /// Sets the time for all attempts together, in place of [that of the client](super::RestClientBuilder::within), and for a stream its end
    /// as well.
    pub fn within(mut self, time: Duration) -> Self {
        self.limit = Some(time);
        self
    }

    /// Ends the request, and the stream of its answer, with the deadline or the cancellation of a context. Nothing of the context is sent.
    pub fn within_context(mut self, cx: &Context) -> Self {
        self.within = Some(cx.clone());
        self
    }

    /// Sends the trace and the correlation id of a context: `traceparent`, `tracestate` and `x-correlation-id`. Its caller, tokens, budget
    /// and deadline are never sent.
    pub fn propagate(mut self, cx: &Context) -> Self {
        self.propagate = Some(cx.clone());
        self
    }

    /// Sends the request and reads the whole answer as JSON. An answer without a body is `()`.
    ///
    /// # Errors
    /// [`CallError`] with the kind that the service reports, or that of a failed connection, limit or deadline. The details of an answer have
    /// its `status`. `bad_response` for JSON of another shape, with its line and column.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, or resets the stream.
    pub async fn send<T: DeserializeOwned>(self) -> Result<T, CallError> {
        let (answer, place) = self.prepared(false)?.run().await;
        let whole = answer?.map(|body| match body {
            Received::Whole(whole) => whole,
            // Only answers to requests that stream do so.
            Received::Streaming(_) => Bytes::new(),
        });
        let status = whole.status();
        let output = read_answer(whole, |nothing| read_output::<T>(nothing).map(drop)).0;
        let read = output.and_then(|json| {
            read_output(&json).map_err(|error| {
                let words = format!("answered {} with JSON of another shape: {error}", status.as_u16());
                Failure::new(ErrorKind::BadResponse, words)
            })
        });
        read.map_err(|failure| place.error(failure.into()))
    }

    /// Sends the request and returns the events of its answer (`text/event-stream`) as they arrive. A line and the data of an event may
    /// have 1 MiB, its name and its id 1 KiB. The stream ends with the answer, or with one error; the request is not sent again then.
    ///
    /// Between two pieces [`read_idle`](super::RestClientBuilder::read_idle) may pass. The stream as a whole has no limit but those of
    /// [`within`](Self::within) and [`within_context`](Self::within_context).
    ///
    /// # Errors
    /// Those of [`send`](Self::send), and `bad_response` for an answer of another media type or in a content coding.
    ///
    /// # Cancel safety
    /// That of [`send`](Self::send). Dropping the stream has the same effect.
    pub async fn events(
        mut self,
    ) -> Result<impl Stream<Item = Result<ServerEvent, CallError>> + Send + Unpin + use<>, CallError> {
        self.fields.entry(header::ACCEPT).or_insert(HeaderValue::from_static(EVENTS));
        let (head, mut body) = self.streamed().await?;
        if !is_events(&head.headers) {
            return Err(body.fail(format!("answered {} without events", head.status.as_u16())));
        }
        Ok(Events::new(body))
    }

    /// Sends the request and returns the bytes of its answer as they arrive, of any number. Limits are those of [`events`](Self::events).
    ///
    /// # Errors
    /// Those of [`send`](Self::send). An answer in a content coding, such as gzip, is a `bad_response`: the client asks for none.
    ///
    /// # Cancel safety
    /// That of [`events`](Self::events).
    pub async fn stream(
        self,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + Send + Unpin + use<>, CallError> {
        Ok(self.streamed().await?.1)
    }

    async fn streamed(self) -> Result<(http::response::Parts, BodyStream), CallError> {
        let within = self.within.as_ref().map(cancelled);
        let (answer, place) = self.prepared(true)?.run().await;
        let answer: Response<Received> = answer?;
        let (head, body) = answer.into_parts();
        let mut body = BodyStream::new(body, place, within);
        if is_coded(&head.headers) {
            return Err(body.fail(CODED.into()));
        }
        Ok((head, body))
    }

    fn set_key(&mut self, key: &str) {
        if let Ok(key) = HeaderValue::from_str(key) {
            self.fields.insert(wire::names::IDEMPOTENCY_KEY, key);
        }
    }

    fn refuse(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    /// # Errors
    /// It cannot be sent.
    fn prepared(mut self, streams: bool) -> Result<Prepared, CallError> {
        let client = self.client.0.clone();
        let contract = client.contracts[self.method].clone();
        let place = Place { client: client.clone(), contract, secrets: self.secrets, attempts: 0 };
        let failed = |failure: Failure| Err(place.error(failure.before_execution().into()));
        let uri = self.target.uri(&client.base);
        let problem = self.problem.take().or_else(|| {
            let words = "the path could be read as one that is not below the URL of the client";
            uri.is_none().then(|| words.into())
        });
        let lacks_key = self.repeated && !self.fields.contains_key(wire::names::IDEMPOTENCY_KEY);
        let problem =
            problem.or_else(|| lacks_key.then(|| "a repeated request has no idempotency key".into()));
        if let Some(problem) = problem {
            return failed(Failure::new(ErrorKind::BadRequest, problem));
        }
        let caller = self.within.as_ref().and_then(Context::deadline);
        let deadline = Deadline::after(self.limit.unwrap_or(client.within));
        let deadline = caller.map_or(deadline, |caller| caller.min(deadline));
        if deadline.has_passed() {
            return failed(Failure::of(ErrorKind::DeadlineExceeded));
        }
        let until = if self.limit.is_some() { Some(deadline) } else { caller };
        let retries = match (&self.body, &self.upload) {
            (_, Some(_)) => 0,
            (Some(body), None) if body.len() > client.protection.limits().max_stored => {
                self.retries.unwrap_or(0)
            }
            _ => self.retries.unwrap_or(client.protection.limits().retries),
        };
        if self.upload.is_some() {
            const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
            self.fields.entry(header::CONTENT_TYPE).or_insert(BYTES);
        }
        Ok(Prepared {
            method: METHODS[self.method].clone(),
            uri: uri.unwrap_or_default(),
            fields: self.fields,
            body: self.body,
            upload: self.upload,
            repeatable: self.repeatable,
            repeated: self.repeated,
            retries,
            streams,
            deadline,
            until,
            within: self.within,
            propagate: self.propagate,
            place,
        })
    }
}

/// The fields may be secret, and so may the path.
impl fmt::Debug for RestRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestRequest")
            .field("client", &self.client)
            .field("method", &METHODS[self.method])
            .finish_non_exhaustive()
    }
}
