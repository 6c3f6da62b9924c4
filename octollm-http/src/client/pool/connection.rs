//! One connection, driven by the call that uses it.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::HOST};
use http_body::{Body, Frame};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use octollm_core::error::ErrorKind;
use tokio::{task::unconstrained, time::Instant};

use super::{
    ExchangeError, Origin, Phase,
    meter::{Idle, Meter, Metered, WaitLimit},
    stream,
    upload::Upload,
};
use crate::io::{Secured, refusal};

type Driver = http1::Connection<TokioIo<Secured<Metered>>, Upload>;

/// An HTTP/1.1 connection without a task of its own: the call that uses it drives it. So the socket is closed with a call that is
/// dropped, and an answer wakes no other task.
pub(super) struct Connection {
    sender: http1::SendRequest<Upload>,
    /// `None` once the connection has ended.
    driver: Option<Driver>,
    meter: Arc<Meter>,
    /// Time after which the connection is not used again.
    retires: Instant,
    /// Idle time after which the connection is not used again, as the server announces it.
    longest_rest: Option<Duration>,
    /// Whether a request was sent after another one, so that the server leaves connections open.
    is_proven: bool,
}

/// The failure of an exchange.
pub(super) enum SendError {
    /// Nothing was written: the request is returned.
    Unsent(Box<Request<Upload>>),
    /// The server has not processed the request, so that any request may be sent again.
    Refused(ExchangeError),
    /// The token was not in an `Authorization`, and was not accepted. From now on it is, over this connection.
    TokenMoved,
    /// Any other failure.
    Failed(ExchangeError),
}

impl Connection {
    pub(super) async fn new(
        io: Secured<Metered>,
        meter: Arc<Meter>,
        retires: Instant,
    ) -> Result<Self, ExchangeError> {
        let (sender, driver) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(io)).await.map_err(
                |error| {
                    let failed = ExchangeError::new(ErrorKind::Unreachable, "no connection");
                    failed.in_phase(Phase::Connect).caused_by(error)
                },
            )?;
        Ok(Self { sender, driver: Some(driver), meter, retires, longest_rest: None, is_proven: false })
    }

    /// Whether the connection is still open after this idle time, as far as is known here.
    pub(super) fn is_alive(&mut self, now: Instant, rest: Duration) -> bool {
        let is_rested = self.longest_rest.is_some_and(|longest| rest >= longest);
        // A close within so short a time would often be on its way still. No idle limit of a server is as short.
        let asks_system = rest >= RESTED || !self.is_proven;
        self.is_proven = true;
        // No task waits for it yet, and the task that used it last must not be woken.
        self.meter.rests(asks_system);
        let is_alive = !is_rested
            && now < self.retires
            && self.drive(&mut Context::from_waker(Waker::noop())).is_pending();
        self.meter.rests(false);
        is_alive
    }

    /// Whether the runtime must poll its sockets before a close by the server is seen.
    pub(super) fn sees_close_late(&self) -> bool {
        !self.meter.can_peek()
    }

    /// Whether another request can be sent: the last answer has ended, and so has its request.
    pub(super) fn is_reusable(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        drive(&mut self.driver, cx)
    }

    /// Sends a request and reads the head of its answer.
    pub(super) async fn head(
        &mut self,
        mut request: Box<Request<Upload>>,
        origin: &Origin,
        wait_limit: &mut WaitLimit,
    ) -> Result<Response<Incoming>, SendError> {
        add_host(&mut request, origin).map_err(SendError::Failed)?;
        let before = self.meter.written();
        self.meter.awaits_head(MAX_INTERIM);
        // This function drives the connection, which produces the answer: no waker is needed, and the budget of the task must
        // not delay an answer. A body that is produced elsewhere wakes the task by the connection.
        let mut answer = pin!(unconstrained(self.sender.try_send_request(*request)));
        let response = poll_fn(|cx| {
            let _ = drive(&mut self.driver, cx);
            if let Poll::Ready(answer) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Poll::Ready(answer.map_err(|error| lost_head(error, &self.meter, before)));
            }
            wait_limit.poll(&self.meter, cx).map(|idle| Err(SendError::Failed(timed_out(idle))))
        })
        .await?;
        self.meter.has_head();
        self.longest_rest = longest_rest(response.headers()).or(self.longest_rest);
        Ok(response)
    }

    /// The next frame of an answer.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        wait_limit: &mut WaitLimit,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let cut_off = |error: hyper::Error| match refusal(&error) {
            Some(problem) => ExchangeError::not_trusted(problem).caused_by(error),
            None => ExchangeError::new(ErrorKind::ConnectionLost, "the answer was cut off").caused_by(error),
        };
        for is_driven in [false, true] {
            if is_driven {
                let _ = drive(&mut self.driver, cx);
            }
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                return Poll::Ready(frame.map(|frame| frame.map_err(cut_off)));
            }
        }
        wait_limit.poll(&self.meter, cx).map(|idle| Some(Err(timed_out(idle))))
    }

    /// Processes the end of an answer, if that has not happened yet.
    pub(super) fn finish(&mut self) {
        if !self.is_reusable() {
            let _ = self.drive(&mut Context::from_waker(Waker::noop()));
        }
    }
}

fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(running) = driver else { return Poll::Ready(()) };
    let over = Pin::new(running).poll(cx);
    if over.is_ready() {
        // A request that was not sent is returned when the driver is dropped.
        *driver = None;
    }
    over.map(drop)
}

pub(super) fn add_host(request: &mut Request<Upload>, origin: &Origin) -> Result<(), ExchangeError> {
    if !request.headers().contains_key(HOST) {
        let host = HeaderValue::from_str(origin.authority.as_str()).map_err(|_| {
            ExchangeError::new(ErrorKind::BadRequest, "the request has no usable host").before_execution()
        })?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

/// Idle time after which a server may have closed the connection while the runtime has not yet polled its socket.
pub(super) const RESTED: Duration = Duration::from_micros(30);

/// The largest head of an answer, and the most bytes of one read.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// The most bytes before the head of an answer is complete, since some servers send interim answers (1xx) without end.
const MAX_INTERIM: u64 = 4 * MAX_HEAD as u64;

/// The idle time of `Keep-Alive: timeout=` in an answer, less a margin for the next request: if a server closes a connection while
/// a request arrives, its caller cannot know whether it ran.
fn longest_rest(head: &HeaderMap) -> Option<Duration> {
    let fields = head.get(&KEEP_ALIVE)?.to_str().ok()?.split(',');
    let timeout = fields.filter_map(|field| field.split_once('=')).find_map(|(name, value)| {
        name.trim()
            .eq_ignore_ascii_case("timeout")
            .then(|| value.trim().parse().ok().map(Duration::from_secs))?
    })?;
    Some(timeout - (timeout / 2).min(Duration::from_secs(1)))
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

pub(super) fn timed_out(idle: Idle) -> ExchangeError {
    let (message, phase) = match idle {
        Idle::Write => ("the server does not read the request", Phase::Write),
        Idle::Head => ("the server owes an answer and is silent", Phase::ReadHead),
        Idle::Body => ("the server owes an answer and is silent", Phase::ReadBody),
    };
    ExchangeError::new(ErrorKind::Timeout, message).in_phase(phase)
}

pub(in crate::client) fn too_large(max: usize) -> ExchangeError {
    ExchangeError::new(ErrorKind::BadResponse, format!("the answer is larger than {max} bytes"))
}

fn lost_head(mut error: TrySendError<Request<Upload>>, meter: &Meter, written_before: u64) -> SendError {
    if let Some(request) = error.take_message() {
        return SendError::Unsent(Box::new(request));
    }
    let error = error.into_error();
    if error.is_user() {
        return SendError::Failed(stream::cannot_produce(error.into()));
    }
    let failure = if let Some(problem) = refusal(&error) {
        ExchangeError::not_trusted(problem)
    } else if meter.is_flooded() {
        ExchangeError::new(ErrorKind::BadResponse, "the server sends interim answers without end")
    } else if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        ExchangeError::new(ErrorKind::BadResponse, "the answer is not HTTP")
    } else if meter.written() != written_before {
        ExchangeError::new(ErrorKind::ConnectionLost, "the connection was lost before an answer came")
    } else {
        ExchangeError::new(ErrorKind::ConnectionLost, "the connection was lost before the request was sent")
            .before_execution()
    };
    SendError::Failed(failure.caused_by(error))
}
