//! The attempts of one request: the rate limit, the breaker, the exchange with its redirects, and the wait for the next one.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use octollm_core::{
    __private::machines::outcome_of_failure,
    Context,
    contract::ContractRef,
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    parts::ContextParts,
    resilience::Outcome,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    Inner, rate,
    redact::Secrets,
    redirect::{self, MOST_REDIRECTS, Sent},
    stream::Cancelled,
};
use crate::{
    client::{
        exchange::{Received, Target, is_coded, read, whole},
        foreign,
        metrics::{CallMeter, SendSpan},
        pool::{ExchangeError, ExchangeLimits, Upload},
    },
    wire,
};

/// Where a request goes, as its errors name it.
pub(super) struct Place {
    pub(super) client: Arc<Inner>,
    /// The name of the client and the method: `memory.get`.
    pub(super) contract: ContractRef,
    /// Those of the client and of the request, if this has some of its own.
    pub(super) secrets: Option<Secrets>,
    pub(super) attempts: u32,
}

impl Place {
    fn secrets(&self) -> &Secrets {
        self.secrets.as_ref().unwrap_or(&self.client.secrets)
    }

    pub(super) fn error(&self, error: ExchangeError) -> CallError {
        let ExchangeError { mut failure, cause } = error;
        self.secrets().remove_from(&mut failure);
        let error = CallError::new(self.contract.clone(), *failure)
            .with_endpoint(self.client.base.as_str())
            .with_attempts(self.attempts);
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }
}

/// A request that can be sent.
pub(super) struct Prepared {
    pub(super) place: Place,
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// Fields of the request itself.
    pub(super) fields: HeaderMap,
    pub(super) body: Option<Bytes>,
    /// The body, if it streams.
    pub(super) upload: Option<Upload>,
    /// Whether the request may run twice.
    pub(super) repeatable: bool,
    /// Whether it may have run before, by an earlier attempt or program.
    pub(super) repeated: bool,
    /// Attempts after the first one.
    pub(super) retries: u32,
    /// Whether the answer streams.
    pub(super) streams: bool,
    /// Until the answer has begun, and arrived if it does not stream.
    pub(super) deadline: Deadline,
    /// Until a stream has ended.
    pub(super) until: Option<Deadline>,
    /// The caller, whose deadline and cancellation hold.
    pub(super) within: Option<Context>,
    /// The caller, whose trace and correlation id are sent.
    pub(super) propagate: Option<Context>,
}

/// A failed attempt.
struct Failed {
    error: ExchangeError,
    /// The service has answered.
    answered: bool,
    /// The service of the client works: its answer is what this client does not follow or read, or the failure is that of another
    /// origin.
    works: bool,
}

impl From<ExchangeError> for Failed {
    fn from(error: ExchangeError) -> Self {
        Self { error, answered: false, works: false }
    }
}

/// What is known of a request if it is dropped.
#[derive(Default)]
struct Progress {
    attempts: u32,
    executed: bool,
    is_sending: bool,
}

impl Prepared {
    /// Sends the request until it is answered with a success, or a failure that another attempt does not help or may not follow.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, or resets the stream.
    pub(super) async fn run(mut self) -> (Result<Response<Received>, CallError>, Place) {
        let mut progress = Progress::default();
        let deadline = self.deadline;
        let cancelled = self.within.as_ref().map(cancelled);
        let ended = {
            let attempts = self.attempts(&mut progress);
            tokio::select! {
                biased;
                () = either(cancelled) => Err(Some(ErrorKind::Cancelled)),
                answer = deadline.run(attempts) => answer.ok_or(None),
            }
        };
        let answer = ended.unwrap_or_else(|ended| {
            let mut failure = Failure::of(ended.unwrap_or(ErrorKind::DeadlineExceeded));
            failure.may_have_executed = progress.is_sending;
            Err(failure.into())
        });
        let mut place = self.place;
        place.attempts = progress.attempts;
        let answer = answer.map_err(|mut error| {
            error.failure.may_have_executed |= progress.executed;
            place.error(error)
        });
        (answer, place)
    }

    async fn attempts(&mut self, progress: &mut Progress) -> Result<Response<Received>, ExchangeError> {
        let client = self.place.client.clone();
        let mut attempts = client.protection.begin(self.repeatable, self.retries, self.deadline);
        let mut last = None;
        loop {
            let made = progress.attempts;
            let Failed { error, answered, .. } = match self.attempt(progress).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            progress.executed |= error.failure.may_have_executed;
            self.repeated |= error.failure.may_have_executed;
            let mut failure = Failure::clone(&error.failure);
            // Nobody has said that the service does nothing before it answers 503.
            failure.may_have_executed |= answered && failure.kind != ErrorKind::RateLimited;
            // What the service has answered before says more than that a further attempt was not sent.
            let error = if progress.attempts == made { last.unwrap_or(error) } else { error };
            let Some(wait) = attempts.failed(&failure) else { return Err(error) };
            last = Some(error);
            sleep(wait).await;
        }
    }

    /// One attempt, once the rate limit and the breaker admit it.
    async fn attempt(&mut self, progress: &mut Progress) -> Result<Response<Received>, Failed> {
        let client = self.place.client.clone();
        gate(&client, self.deadline).await?;
        let admission = client.protection.admit().map_err(ExchangeError::from)?;
        progress.attempts += 1;
        progress.is_sending = true;
        let meter = CallMeter::of(&client.name, &self.place.contract);
        let metered = meter.begin(Instant::now());
        let answer = self.exchange().await;
        progress.is_sending = false;
        let now = Instant::now();
        let outcome = match &answer {
            Ok(_) => Outcome::Success,
            Err(failed) if failed.works => Outcome::Success,
            Err(failed) => match outcome_of_failure(&failed.error.failure, true) {
                // It is none of an answer: this side has refused the request.
                Outcome::Success | Outcome::Declined if !failed.answered => Outcome::Ignored,
                outcome => outcome,
            },
        };
        admission.end(outcome, now);
        metered.end_as(answer.as_ref().map(drop).map_err(|failed| failed.error.failure.kind), now);
        answer
    }

    /// Sends the request, and again wherever it is redirected to.
    async fn exchange(&mut self) -> Result<Response<Received>, Failed> {
        let client = self.place.client.clone();
        let (mut uri, mut is_own) = (self.uri.clone(), true);
        // A body that streams is gone with the first request.
        let has_body = self.body.is_some() || self.upload.is_some();
        for redirects in 0.. {
            let response = self.send(&client, &uri, is_own).await;
            let response = response.map_err(|error| Failed { works: !is_own, ..error.into() })?;
            let (status, head) = (response.status(), response.headers());
            let asked = rate::stated(status, head, SystemTime::now());
            if let (Some(wait), true) = (asked, is_own) {
                let mut rate = client.rate.lock().unwrap_or_else(PoisonError::into_inner);
                rate.hold(wait.min(client.protection.limits().max_retry_after), Instant::now());
            }
            let sent = Sent {
                method: &self.method,
                uri: &uri,
                base: &client.base_uri,
                has_body,
                repeatable: self.body.is_some(),
                elsewhere: client.follow_elsewhere,
            };
            let reason = match redirect::next(status, head, &sent) {
                Ok(None) => {
                    let judged = judged(response, asked, self.place.secrets()).await;
                    return judged.map_err(|failed| Failed { works: failed.works || !is_own, ..failed });
                }
                Ok(Some((to, own))) if redirects < MOST_REDIRECTS => {
                    is_own &= own;
                    uri = to;
                    continue;
                }
                Ok(Some(_)) => "again, after as many redirects as are followed",
                Err(reason) => reason,
            };
            let message = format!("redirected ({}) {reason}", status.as_u16());
            return Err(answered(Failure::new(ErrorKind::BadResponse, message), status));
        }
        Err(ExchangeError::new(ErrorKind::Internal, "redirected without end").into())
    }

    async fn send(
        &mut self,
        client: &Inner,
        uri: &Uri,
        is_own: bool,
    ) -> Result<Response<Received>, ExchangeError> {
        let own_parts;
        let parts = match self.propagate.as_ref().or(self.within.as_ref()) {
            Some(cx) => cx.parts(),
            None => {
                own_parts = ContextParts::new();
                &own_parts
            }
        };
        let place = (&*client.name, client.base.as_str());
        let span = SendSpan::of(&self.method, place, Some(&self.place.contract), parts);
        let request = self.request(client, uri, is_own, &span)?;
        let work = self.deadline.remaining();
        let deadline = if self.streams { self.until } else { Some(self.deadline) };
        let limits = ExchangeLimits { deadline, work, ..ExchangeLimits::default() };
        let target = || Target {
            arm: Arc::clone(&client.name),
            endpoint: client.base.shared(),
            contract: None,
            idempotent: self.repeatable,
            deadline,
            work,
        };
        // What layers add, such as a signature, is for the origin of the client alone.
        let exchanger = if is_own { &client.exchanger } else { &client.exchanger_elsewhere };
        let answer = if self.streams || self.upload.is_some() {
            let upload = self.upload.take();
            let answer = exchanger.send_streamed(request, upload, &client.name, limits, target).await;
            match answer {
                Ok(answer) if !self.streams => whole(answer, client.max_answer).await,
                answer => answer,
            }
        } else {
            let answer = exchanger.send(request, &client.name, limits, target).await;
            answer.map(|response| response.map(Received::Whole))
        };
        span.end(&answer);
        answer
    }

    /// The request to the origin of the client, or one without credentials to another.
    fn request(
        &self,
        client: &Inner,
        uri: &Uri,
        is_own: bool,
        span: &SendSpan,
    ) -> Result<Request<Bytes>, ExchangeError> {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = HeaderValue::from_str(authority).map_err(|_| {
            ExchangeError::new(ErrorKind::BadRequest, "the host is malformed").before_execution()
        })?;
        let mut head = HeaderMap::new();
        head.insert(header::ACCEPT, HeaderValue::from_static(if self.streams { "*/*" } else { JSON }));
        if is_own {
            if self.body.is_some() {
                head.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
            }
            for (name, value) in client.base.fields() {
                head.insert(name.clone(), value.clone());
            }
            head.extend(self.fields.clone());
            if self.repeated && self.fields.contains_key(wire::names::IDEMPOTENCY_KEY) {
                // Which process has got it is not known.
                head.insert(wire::names::INSTANCE, HeaderValue::from_static("?"));
            }
            if let Some(cx) = &self.propagate {
                if let Ok(id) = HeaderValue::from_str(cx.correlation_id().as_str()) {
                    head.insert(wire::names::CORRELATION_ID, id);
                }
                if let Some(trace) = span.trace().as_ref().or(cx.trace()) {
                    wire::write_trace(trace, &mut head);
                }
            }
        }
        head.insert(header::HOST, host);
        let mut request = Request::new(self.body.clone().filter(|_| is_own).unwrap_or_default());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = head;
        Ok(request)
    }
}

const JSON: &str = "application/json";

/// The cancellation of a context.
pub(super) fn cancelled(cx: &Context) -> Cancelled {
    let cx = cx.clone();
    Box::pin(async move { cx.cancelled().await })
}

async fn either(cancelled: Option<Cancelled>) {
    match cancelled {
        Some(cancelled) => cancelled.await,
        None => std::future::pending().await,
    }
}

/// The failure that an answer is.
fn answered(mut failure: Failure, status: StatusCode) -> Failed {
    failure.add_detail("status", Value::from(status.as_u16()));
    Failed { error: failure.into(), answered: true, works: status.as_u16() < 500 }
}

/// The answer, if it is a success. A failure has the wait that was `asked` for.
async fn judged(
    response: Response<Received>,
    asked: Option<Duration>,
    secrets: &Secrets,
) -> Result<Response<Received>, Failed> {
    if response.status().is_success() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let body = match body {
        Received::Whole(whole) => whole,
        // Of an answer that breaks off the status counts.
        Received::Streaming(download) => read(*download, foreign::MOST_READ).await.0,
    };
    let body = if is_coded(&head.headers) { Bytes::new() } else { secrets.remove_from_body(body) };
    let mut failure = foreign::failure(head.status, &head.headers, &body, SystemTime::now());
    failure.retry_after = failure.retry_after.or(asked).filter(|_| failure.retryable);
    let status = head.status.as_u16();
    if !failure.message.starts_with("answered ") {
        failure.message = format!("answered {status}: {}", failure.message);
    }
    Err(answered(failure, head.status))
}

/// Waits until the rate limit of the service allows a request.
///
/// # Errors
/// The wait would exceed the deadline. Nothing was sent.
async fn gate(client: &Inner, deadline: Deadline) -> Result<(), ExchangeError> {
    loop {
        let now = Instant::now();
        let wait = client.rate.lock().unwrap_or_else(PoisonError::into_inner).wait(now);
        let Some(wait) = wait else { return Ok(()) };
        if now + wait >= deadline.instant() {
            let words = format!("the service allows the next request in {:.1} s", wait.as_secs_f64());
            let failure = Failure::new(ErrorKind::RateLimited, words).retryable_after(wait);
            return Err(ExchangeError::from(failure).before_execution());
        }
        sleep(wait).await;
    }
}
