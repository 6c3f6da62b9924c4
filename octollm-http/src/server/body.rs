//! The body of a request or an answer: whole or streamed.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tokio::sync::OwnedSemaphorePermit;

use super::{limited::RunningCall, streams::Stream};

type BoxError = Box<dyn Error + Send + Sync>;

/// The body of a request or an answer.
///
/// The body of a request fails if the connection is lost or its bytes are not HTTP. The request counts as running until the body of
/// its answer is sent or dropped.
pub struct HttpBody {
    content: Content,
    /// Released with the body, or with the last of its memory if that is large.
    place: Option<OwnedSemaphorePermit>,
    sender: Sender,
}

enum Content {
    Nothing,
    Whole(Bytes),
    /// A large body, in slices of memory whose drop reports that it is sent.
    Large {
        rest: Bytes,
        sent: Arc<Sent>,
    },
    Streamed(Streamed),
}

/// A streamed body.
struct Streamed {
    body: UnsyncBoxBody<Bytes, BoxError>,
    /// On a stream of HTTP/2, the rest of a piece that is sent in parts.
    rest: Bytes,
    /// Whether the last such piece is sent.
    sent: Option<Arc<Sent>>,
    /// The body has ended.
    ended: bool,
}

/// The connection that sends a body, which reports its progress there.
enum Sender {
    Unknown,
    Http1 { _running: RunningCall },
    Http2(Arc<Stream>),
}

/// Bytes beyond which a body is large: its memory itself holds its place. On a stream of HTTP/2 it is sent in pieces of this
/// size, since h2 buffers each piece whole, whatever the window of the caller.
const LARGE: usize = 16 * 1024;
/// On a stream of HTTP/2, bytes beyond which a body waits until it is sent.
const SMALL: usize = 1024;

impl HttpBody {
    pub(crate) fn empty() -> Self {
        Self { content: Content::Nothing, place: None, sender: Sender::Unknown }
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        let content = if bytes.is_empty() { Content::Nothing } else { Content::Whole(bytes) };
        Self { content, ..Self::empty() }
    }

    pub(crate) fn streamed<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::empty();
        }
        let body = body.map_err(Into::into).boxed_unsync();
        let streamed = Streamed { body, rest: Bytes::new(), sent: None, ended: false };
        Self { content: Content::Streamed(streamed), ..Self::empty() }
    }

    /// The bytes of a body that is whole.
    pub(crate) fn whole(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Holds the place of its request.
    pub(crate) fn hold(&mut self, place: OwnedSemaphorePermit) {
        match &mut self.content {
            Content::Nothing => {}
            Content::Whole(bytes) if bytes.len() > LARGE => {
                let (rest, sent) = until_sent(std::mem::take(bytes), Some(place));
                self.content = Content::Large { rest, sent };
            }
            _ => self.place = Some(place),
        }
    }

    /// Marks the body as sent over HTTP/1.
    pub(crate) fn sent_by_http1(&mut self, running: RunningCall) {
        if !matches!(self.content, Content::Nothing) {
            self.sender = Sender::Http1 { _running: running };
        }
    }

    /// Marks the body as sent on a stream of HTTP/2.
    pub(crate) fn sent_by_http2(&mut self, stream: Arc<Stream>) {
        if let Content::Whole(bytes) = &mut self.content
            && bytes.len() > SMALL
        {
            let (rest, sent) = until_sent(std::mem::take(bytes), self.place.take());
            self.content = Content::Large { rest, sent };
        }
        self.sender = Sender::Http2(stream);
    }
}

impl Body for HttpBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let in_pieces = matches!(this.sender, Sender::Http2(_));
        let polled = this.content.poll(in_pieces, cx);
        if let Sender::Http2(stream) = &this.sender {
            match &polled {
                Poll::Ready(_) => stream.writes(),
                // The caller has yet to read what was written last.
                Poll::Pending if this.content.is_all_written() => {}
                Poll::Pending => stream.rests(),
            }
        }
        if let Poll::Ready(None | Some(Err(_))) = polled {
            (this.content, this.place) = (Content::Nothing, None);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Nothing => true,
            Content::Whole(_) => false,
            Content::Large { rest, .. } => rest.is_empty() && !matches!(self.sender, Sender::Http2(_)),
            Content::Streamed(Streamed { body, sent, .. }) => sent.is_none() && body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Nothing => SizeHint::with_exact(0),
            Content::Whole(rest) | Content::Large { rest, .. } => SizeHint::with_exact(rest.len() as u64),
            Content::Streamed(Streamed { body, sent: None, .. }) => body.size_hint(),
            Content::Streamed(_) => SizeHint::default(),
        }
    }
}

impl fmt::Debug for HttpBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBody")
            .field("size", &self.size_hint())
            .field("holds_a_place", &self.place.is_some())
            .finish_non_exhaustive()
    }
}

impl Default for HttpBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl Content {
    /// Whether only the caller is waited for.
    fn is_all_written(&self) -> bool {
        matches!(self, Self::Large { .. } | Self::Streamed(Streamed { ended: true, .. }))
    }

    fn poll(
        &mut self,
        in_pieces: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Nothing => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Nothing;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            // Over HTTP/1 or mounted, whoever has the bytes may need the end of the body before letting go of them.
            Self::Large { rest, .. } if rest.is_empty() && !in_pieces => Poll::Ready(None),
            Self::Large { rest, sent } if rest.is_empty() => sent.poll(cx).map(|()| None),
            Self::Large { rest, .. } if in_pieces && rest.len() > LARGE => {
                Poll::Ready(Some(Ok(Frame::data(rest.split_to(LARGE)))))
            }
            // No reference to the last piece is left here, so that its memory is released once it is sent.
            Self::Large { rest, .. } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(rest))))),
            Self::Streamed(streamed) => streamed.poll(in_pieces, cx),
        }
    }
}

impl Streamed {
    fn poll(
        &mut self,
        in_pieces: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // The body is released only once all of it is sent.
        self.ended |= self.rest.is_empty() && self.sent.is_some() && self.body.is_end_stream();
        if self.rest.is_empty() && !self.ended {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if in_pieces && data.len() > SMALL => {
                        let (rest, sent) = until_sent(data, None);
                        (self.rest, self.sent) = (rest, Some(sent));
                    }
                    Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.ended = true,
            }
        }
        if !self.rest.is_empty() {
            let piece = match self.rest.len() {
                // No reference is left here, so that the memory is released once it is sent.
                ..=LARGE => std::mem::take(&mut self.rest),
                _ => self.rest.split_to(LARGE),
            };
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match &self.sent {
            Some(sent) => sent.poll(cx).map(|()| None),
            None => Poll::Ready(None),
        }
    }
}

/// The same bytes, with the flag that is set once they are sent.
fn until_sent(bytes: Bytes, place: Option<OwnedSemaphorePermit>) -> (Bytes, Arc<Sent>) {
    let sent = Arc::new(Sent::default());
    let memory = Memory { bytes, sent: sent.clone(), _place: place };
    (Bytes::from_owner(memory), sent)
}

/// The memory of a large body. It is dropped when the last piece is written to the connection or discarded.
struct Memory {
    bytes: Bytes,
    sent: Arc<Sent>,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.sent.done.store(true, Ordering::Release);
        self.sent.waker.wake();
    }
}

/// Whether the memory of a body is released.
#[derive(Default)]
struct Sent {
    done: AtomicBool,
    waker: AtomicWaker,
}

impl Sent {
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.done.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}
