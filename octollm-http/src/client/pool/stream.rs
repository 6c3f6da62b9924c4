//! One exchange over a stream of an HTTP/2 connection.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{
    HeaderMap, HeaderName, Request, Response, StatusCode, Uri,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, Scheme},
};
use http_body::{Body, Frame};
use octollm_core::error::ErrorKind;
use tower::BoxError;

use super::{
    ExchangeError, Origin,
    connection::{SendError, timed_out},
    http2::{Begun, Http2},
    meter::WaitLimit,
    upload::Upload,
};
use crate::wire::decimal;

/// The rest of the body of a request.
pub(super) struct Sending {
    stream: SendStream<Bytes>,
    body: Upload,
    chunk: Bytes,
    /// Bytes for which the server has made room.
    sent: u64,
}

/// The body of an answer.
pub(super) struct Receiving {
    body: RecvStream,
    /// The request may be longer than its answer.
    sending: Option<Sending>,
    received: u64,
}

/// Bodies up to this size are handed over whole.
const SMALL: usize = 16 << 10;

/// Sends a request and reads the head of its answer.
pub(super) async fn head(
    connection: &Http2,
    request: Box<Request<Upload>>,
    origin: &Origin,
    has_issued_token: bool,
    wait_limit: &mut WaitLimit,
) -> Result<Response<Receiving>, SendError> {
    if matches!(request.body(), Upload::Streamed(_)) && !connection.is_open() {
        return Err(SendError::Unsent(request));
    }
    let (head, mut body) = request.into_parts();
    let mut request = Request::from_parts(head, ());
    address(&mut request, origin).map_err(SendError::Failed)?;
    let length = body.size_hint().exact();
    if let Some(length) = length.filter(|length| *length > 0) {
        request.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| decimal(length));
    }
    let whole = match &mut body {
        Upload::Whole(whole) if length.is_some_and(|length| length <= SMALL as u64) => {
            let mut context = Context::from_waker(std::task::Waker::noop());
            match Pin::new(whole).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => Some(frame.into_data().unwrap_or_default()),
                _ => Some(Bytes::new()),
            }
        }
        _ => None,
    };
    let is_end = whole.as_ref().is_some_and(Bytes::is_empty);
    let written = connection.meter.written();
    let may_repeat = whole.is_some();
    let begun = connection.begin_stream(request, is_end, has_issued_token && may_repeat).map_err(refused)?;
    let Begun { answer: mut response, body: mut stream, moves_token } = begun;
    let mut sending = match whole {
        Some(whole) => {
            if !is_end {
                // If the stream has ended meanwhile, the answer states why.
                let _ = stream.send_data(whole, true);
            }
            None
        }
        None => Some(Sending { stream, body, chunk: Bytes::new(), sent: 0 }),
    };
    let answer = poll_fn(|cx| {
        if let Some(upload) = &mut sending
            && let Poll::Ready(sent) = upload.poll(cx)
        {
            sending = None;
            if let Err(error) = sent {
                return Poll::Ready(Err(SendError::Failed(cannot_produce(error))));
            }
        }
        if let Poll::Ready(answer) = Pin::new(&mut response).poll(cx) {
            return Poll::Ready(answer.map_err(|error| lost(connection, error, written)));
        }
        let (sent, is_blocked) = sending.as_ref().map_or((0, false), Sending::progress);
        wait_limit.poll_moved(sent, is_blocked, cx).map(|idle| Err(SendError::Failed(timed_out(idle))))
    })
    .await?;
    connection.proves();
    if moves_token && answer.status() == StatusCode::UNAUTHORIZED {
        connection.token.refuse();
        return Err(SendError::TokenMoved);
    }
    connection.token.read_offer(answer.headers());
    Ok(answer.map(|body| Receiving { body, sending, received: 0 }))
}

impl Sending {
    /// Sends what the server makes room for, to the end of the body.
    ///
    /// # Errors
    /// The body cannot be produced.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            while !self.chunk.is_empty() {
                self.stream.reserve_capacity(self.chunk.len());
                let mut room = self.stream.capacity();
                while room == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(more)) => room = more,
                        // The answer states why.
                        Some(Err(_)) | None => return Poll::Ready(Ok(())),
                    }
                }
                let part = self.chunk.split_to(room.min(self.chunk.len()));
                self.sent += part.len() as u64;
                let is_end = self.chunk.is_empty() && self.body.is_end_stream();
                if self.stream.send_data(part, is_end).is_err() || is_end {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(error));
                }
                None => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Bytes sent, and whether the server makes no room.
    fn progress(&self) -> (u64, bool) {
        (self.sent, !self.chunk.is_empty())
    }
}

impl Receiving {
    /// Whether the exchange has ended in both directions.
    pub(super) fn is_over(&self) -> bool {
        self.sending.is_none() && self.body.is_end_stream()
    }

    pub(super) fn poll_frame(
        &mut self,
        connection: &Http2,
        wait_limit: &mut WaitLimit,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        if let Some(upload) = &mut self.sending
            && let Poll::Ready(sent) = upload.poll(cx)
        {
            self.sending = None;
            if let Err(error) = sent {
                return Poll::Ready(Some(Err(cannot_produce(error))));
            }
        }
        if let Poll::Ready(data) = self.body.poll_data(cx) {
            let Some(data) = data else { return Poll::Ready(None) };
            return Poll::Ready(Some(match data {
                Ok(data) => {
                    self.received += 1;
                    // It is read: the server may send as much again.
                    let _ = self.body.flow_control().release_capacity(data.len());
                    Ok(Frame::data(data))
                }
                Err(error) => Err(cut_off(connection, error)),
            }));
        }
        let moved = self.received + self.sending.as_ref().map_or(0, |sending| sending.progress().0);
        wait_limit.poll_moved(moved, false, cx).map(|idle| Some(Err(timed_out(idle))))
    }

    pub(super) fn size_hint(&self, head: &HeaderMap) -> u64 {
        let length = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        length.filter(|_| !self.body.is_end_stream()).unwrap_or(0)
    }
}

/// Fields that HTTP/2 does not allow.
const FORBIDDEN: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Writes the origin into the URI. A `Host` of the request is its authority.
fn address(request: &mut Request<()>, origin: &Origin) -> Result<(), ExchangeError> {
    let unusable =
        || ExchangeError::new(ErrorKind::BadRequest, "the request has no usable host").before_execution();
    let headers = request.headers_mut();
    let authority = match headers.remove(HOST) {
        Some(host) => Authority::try_from(host.as_bytes()).map_err(|_| unusable())?,
        None => origin.authority.clone(),
    };
    // Few requests have one.
    if headers.keys().any(|name| *name == TE || FORBIDDEN.contains(name)) {
        for field in FORBIDDEN {
            headers.remove(field);
        }
        if headers.get(TE).is_some_and(|te| te != "trailers") {
            headers.remove(TE);
        }
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(if origin.is_https { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(authority);
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| unusable())?;
    *request.version_mut() = http::Version::HTTP_2;
    Ok(())
}

/// The failure of a stream that did not begin.
fn refused(error: h2::Error) -> SendError {
    SendError::Refused(
        ExchangeError::new(ErrorKind::ConnectionLost, "the connection takes no more requests")
            .before_execution()
            .caused_by(error),
    )
}

/// The failure of a stream without an answer.
fn lost(connection: &Http2, error: h2::Error, written: u64) -> SendError {
    // A GOAWAY is reported for streams above its last id only, which the server has not processed.
    let is_unprocessed = error.is_remote()
        && (error.is_go_away() || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)));
    let is_unwritten = !error.is_remote() && connection.meter.written() == written;
    if is_unprocessed || is_unwritten {
        return refused(error);
    }
    SendError::Failed(ended(connection, error, "the connection was lost before an answer came"))
}

fn cut_off(connection: &Http2, error: h2::Error) -> ExchangeError {
    ended(connection, error, "the answer was cut off")
}

fn ended(connection: &Http2, error: h2::Error, message: &'static str) -> ExchangeError {
    if let Some(closed) = connection.closed_here() {
        return closed.caused_by(error);
    }
    let failure = if error.is_library() {
        ExchangeError::new(ErrorKind::BadResponse, "the answer is not HTTP/2")
    } else if error.is_reset() && error.is_remote() {
        ExchangeError::new(ErrorKind::ConnectionLost, "the server reset the stream")
    } else {
        ExchangeError::new(ErrorKind::ConnectionLost, message)
    };
    failure.caused_by(error)
}

pub(super) fn cannot_produce(error: BoxError) -> ExchangeError {
    ExchangeError::new(ErrorKind::Internal, "the body of the request cannot be produced").caused_by(error)
}
