//! Answers of server-sent events (`text/event-stream`), and the streams of updates among them.

use std::{
    future::Future,
    pin::Pin,
    task::{Context as Poll_, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::select};
use http::{HeaderName, HeaderValue, header, request::Parts};
use http_body::{Body, Frame};
use jiff::{SignedDuration, Timestamp};
use octollm_core::{
    Context,
    error::{ErrorKind, Failure},
    orchestrator::TaskUpdates,
};
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{BoxError, body::HttpBody, routes::Answer};

/// What the streams of updates of a server have in common.
#[derive(Clone)]
pub(crate) struct LiveStreams {
    /// Time without an event after which there is a comment.
    pub(crate) ping: Duration,
    /// Cancelled when they are to end.
    pub(crate) end: CancellationToken,
}

/// The time for which verifiers of tokens accept one that has expired.
const LEEWAY: SignedDuration = SignedDuration::from_secs(30);

impl LiveStreams {
    /// The updates of a task, until the last one, the end of the server, or that of the caller's authority.
    pub(crate) fn updates(&self, updates: TaskUpdates, cx: &Context) -> Answer {
        let events = updates.filter_map(async |update| ServerEvent::numbered(update.seq(), &update));
        self.answer(events, cx)
    }

    /// Events until the end of the server, or that of the caller's authority.
    pub(crate) fn answer(
        &self,
        events: impl Stream<Item = ServerEvent> + Send + 'static,
        cx: &Context,
    ) -> Answer {
        let (end, until) = (self.end.clone(), authority_ends(cx));
        let end = async move {
            let until = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            select(Box::pin(end.cancelled()), Box::pin(until)).await;
        };
        answer(EventBody::new(events.boxed(), self.ping).until(Box::pin(end)))
    }
}

/// When the deadline of a caller passes, or its token is no longer accepted.
pub(crate) fn authority_ends(cx: &Context) -> Option<Instant> {
    let now = Instant::now();
    let granted = cx.caller().grant().and_then(|grant| grant.valid_until);
    let granted = granted.and_then(|end| {
        let left = end.duration_since(Timestamp::now()).saturating_add(LEEWAY);
        now.checked_add(Duration::try_from(left).unwrap_or_default())
    });
    let deadline = cx.deadline().map(|deadline| deadline.instant());
    [granted, deadline].into_iter().flatten().min()
}

/// The `Last-Event-ID` of a caller that connects again.
pub(crate) fn last_event_id(head: &Parts) -> Option<&HeaderValue> {
    const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
    head.headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty())
}

/// The position after which a stream resumes: `Last-Event-ID`, which a browser sends with a URL that stays the same, or else the query.
///
/// # Errors
/// It is malformed.
pub(crate) fn cursor(
    head: &Parts,
    of_query: impl FnOnce(&str) -> Result<Option<u64>, Failure>,
) -> Result<Option<u64>, Failure> {
    let after = of_query(head.uri.query().unwrap_or_default())?;
    match last_event_id(head) {
        None => Ok(after),
        Some(id) => {
            let id = id.to_str().ok().and_then(|id| id.parse().ok());
            let malformed = || Failure::new(ErrorKind::BadRequest, "malformed header last-event-id");
            id.map(Some).ok_or_else(malformed)
        }
    }
}

/// One event, as text.
pub(crate) struct ServerEvent(Vec<u8>);

impl ServerEvent {
    /// An event whose id is a number. `None`, after a line in the log, for data that cannot be written as JSON.
    pub(crate) fn numbered(id: u64, data: &impl Serialize) -> Option<Self> {
        Self::written(format!("id: {id}\n"), data)
    }

    /// An event with any id, which is left out where it is empty or has no place in a line.
    pub(crate) fn named(id: &str, data: &impl Serialize) -> Option<Self> {
        let fits = !id.is_empty() && !id.contains(char::is_control);
        Self::written(if fits { format!("id: {id}\n") } else { String::new() }, data)
    }

    fn written(id: String, data: &impl Serialize) -> Option<Self> {
        let mut text = id.into_bytes();
        match serde_json::to_string(data) {
            Ok(data) => {
                add_data(&mut text, &data);
                Some(Self(text))
            }
            Err(error) => {
                tracing::error!(%error, "event cannot be written");
                None
            }
        }
    }
}

/// Raw JSON may have line feeds between its tokens, each of which begins a further line of data.
fn add_data(text: &mut Vec<u8>, data: &str) {
    for line in data.as_bytes().split(|byte| matches!(byte, b'\n' | b'\r')) {
        text.extend_from_slice(b"data: ");
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.push(b'\n');
}

/// 200 with a stream of events, which nothing on the way stores or holds back.
pub(crate) fn answer(events: EventBody) -> Answer {
    let mut answer = Answer(http::Response::new(HttpBody::streamed(events)));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        answer = answer.header(name, HeaderValue::from_static(value));
    }
    answer
}

type BoxEvents = Pin<Box<dyn Stream<Item = ServerEvent> + Send>>;

/// The body of an answer of events. It takes an event when the connection has room for one: a reader that is slow has the pace of the
/// stream.
pub(crate) struct EventBody {
    events: BoxEvents,
    ping: Duration,
    idle: Pin<Box<Sleep>>,
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    is_ended: bool,
}

/// Bytes beyond which no further event is joined to those that are sent at once.
const JOINED: usize = 16 * 1024;
/// A comment.
const PING: Bytes = Bytes::from_static(b": ping\n\n");

impl EventBody {
    pub(crate) fn new(events: BoxEvents, ping: Duration) -> Self {
        Self { events, ping, idle: Box::pin(sleep(ping)), end: None, is_ended: false }
    }

    /// Ends it when the future does.
    fn until(mut self, end: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        self.end = Some(end);
        self
    }

    /// The events that are there now.
    fn ready(&mut self, cx: &mut Poll_<'_>) -> Vec<u8> {
        let mut text = Vec::new();
        while !self.is_ended && text.len() < JOINED {
            match self.events.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.is_ended = true,
                Poll::Ready(Some(ServerEvent(event))) if text.is_empty() => text = event,
                Poll::Ready(Some(ServerEvent(event))) => text.extend_from_slice(&event),
            }
        }
        text
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(end) = &mut this.end
            && end.as_mut().poll(cx).is_ready()
        {
            (this.end, this.is_ended) = (None, true);
        }
        let text = this.ready(cx);
        if !text.is_empty() {
            this.idle.as_mut().reset(Instant::now() + this.ping);
            return Poll::Ready(Some(Ok(Frame::data(text.into()))));
        }
        if this.is_ended {
            return Poll::Ready(None);
        }
        if this.idle.as_mut().poll(cx).is_ready() {
            this.idle.as_mut().reset(Instant::now() + this.ping);
            return Poll::Ready(Some(Ok(Frame::data(PING))));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_data_is_one_of_the_event() {
        for (data, expected) in [
            ("{}", "data: {}\n\n"),
            ("{\n}", "data: {\ndata: }\n\n"),
            ("{\r\n}", "data: {\ndata: \ndata: }\n\n"),
        ] {
            let mut text = Vec::new();
            add_data(&mut text, data);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}
