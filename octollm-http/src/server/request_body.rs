//! Reading the body of a request whole, within limits.

use std::{
    error::Error,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use octollm_core::{
    deadline::Deadline,
    error::{ErrorKind, Failure},
};

use crate::{limits::WAITING, wire::BodyBuffer};

type BoxError = Box<dyn Error + Send + Sync>;

/// The limits on reading a body.
#[derive(Debug)]
pub(crate) struct BodyLimits<'a> {
    pub(crate) bytes: usize,
    pub(crate) time: Duration,
    /// Deadline of the caller.
    pub(crate) deadline: Option<Deadline>,
    /// The share of the head, which is counted once the body is awaited.
    pub(crate) arriving: Share<'a>,
    pub(crate) head: &'a HeaderMap,
}

/// The bytes of all requests that are still arriving.
#[derive(Debug)]
pub(crate) struct ArrivingBytes {
    bytes: AtomicUsize,
    most: usize,
}

/// The share of one head or one body in [`ArrivingBytes`].
#[derive(Debug)]
pub(crate) struct Share<'a> {
    all: &'a ArrivingBytes,
    bytes: usize,
}

impl ArrivingBytes {
    pub(crate) fn new(most: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), most }
    }

    /// The bytes that arrive now.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn share(&self) -> Share<'_> {
        Share { all: self, bytes: 0 }
    }
}

impl Share<'_> {
    /// Counts a head, unless it is counted already.
    pub(crate) fn add_head(&mut self, head: &HeaderMap) -> Result<(), Failure> {
        if self.bytes > 0 {
            return Ok(());
        }
        let bytes: usize = head.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        self.add(WAITING + 2 * bytes)
    }

    fn add(&mut self, bytes: usize) -> Result<(), Failure> {
        let before = self.all.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) <= self.all.most {
            return Ok(());
        }
        Err(overloaded())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Reads a whole body.
///
/// # Errors
/// The body is too large, in fact or as declared; it arrives too slowly; all arriving bodies together are too large; or the
/// connection was lost.
pub(crate) async fn read<B>(body: B, mut limits: BodyLimits<'_>) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > limits.bytes as u64 {
        return Err(too_large(limits.bytes));
    }
    let mut reading = pin!(collect(body, limits.bytes, limits.arriving.all));
    if let Some(done) = soon(reading.as_mut()).await {
        return done;
    }
    limits.arriving.add_head(limits.head)?;
    let (limit, kind) = earlier(limits.deadline, limits.time, ErrorKind::RequestTimeout);
    limit.run(reading).await.unwrap_or_else(|| {
        let words = match kind {
            ErrorKind::RequestTimeout => "the body did not arrive in time",
            other => other.summary(),
        };
        Err(Failure::new(kind, words).before_execution())
    })
}

/// The earlier of a caller's deadline and a limit from now, with the kind of the failure beyond it.
pub(crate) fn earlier(
    deadline: Option<Deadline>,
    limit: Duration,
    beyond: ErrorKind,
) -> (Deadline, ErrorKind) {
    let own = Deadline::after(limit);
    match deadline {
        Some(deadline) if deadline < own => (deadline, ErrorKind::DeadlineExceeded),
        _ => (own, beyond),
    }
}

/// The output of a future that completes at its second poll.
///
/// hyper yields the body of an HTTP/1 request only after a first poll, which returns `Pending`. A body that has arrived is read at
/// the second poll, without the cost of a timer.
async fn soon<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    let mut asked = false;
    poll_fn(move |cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if asked => Poll::Ready(None),
        Poll::Pending => {
            asked = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

async fn collect<B>(body: B, most: usize, arriving: &ArrivingBytes) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = pin!(body);
    let mut share = arriving.share();
    let mut whole = BodyBuffer::default();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(broken_off)?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > most - whole.len() {
            return Err(too_large(most));
        }
        // A body of one piece, as most are, is not counted: it is there at once.
        if whole.len() == 0 && body.is_end_stream() {
            return Ok(data);
        }
        share.add(data.len())?;
        whole.push(data);
    }
    Ok(whole.into_bytes())
}

fn too_large(most: usize) -> Failure {
    Failure::new(ErrorKind::PayloadTooLarge, format!("the body is larger than {most} bytes"))
}

fn broken_off(error: impl Into<BoxError>) -> Failure {
    tracing::debug!(error = %error.into(), "the body ended early");
    Failure::new(ErrorKind::BadRequest, "the body is malformed or incomplete")
}

/// The failure of a server that is at one of its limits.
pub(crate) fn overloaded() -> Failure {
    let mut failure = Failure::of(ErrorKind::Overloaded);
    failure.retry_after = Some(Duration::from_secs(1));
    failure
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{Stream, StreamExt, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    static ARRIVING: ArrivingBytes = ArrivingBytes { bytes: AtomicUsize::new(0), most: WAITING + 20 };

    fn limits<'a>(arriving: &'a ArrivingBytes, head: &'a HeaderMap) -> BodyLimits<'a> {
        let (time, arriving) = (Duration::from_secs(30), arriving.share());
        BodyLimits { bytes: 8, time, deadline: None, arriving, head }
    }

    async fn read_usual(body: impl Body<Data = Bytes, Error = Infallible>) -> Result<Bytes, Failure> {
        read(body, limits(&ARRIVING, &HeaderMap::new())).await
    }

    fn frames(pieces: &[&'static str]) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + use<> {
        let frames: Vec<_> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        stream::iter(frames)
    }

    fn body(pieces: &[&'static str]) -> impl Body<Data = Bytes, Error = Infallible> + use<> {
        StreamBody::new(frames(pieces))
    }

    #[tokio::test]
    async fn pieces_become_one_up_to_the_limit() {
        assert_eq!(read_usual(body(&[])).await.unwrap(), "");
        assert_eq!(read_usual(body(&["12345678"])).await.unwrap(), "12345678");
        assert_eq!(read_usual(body(&["123", "", "45678"])).await.unwrap(), "12345678");
        for pieces in [&["123456789"][..], &["12345678", "9"], &["123", "456", "789"]] {
            assert_eq!(read_usual(body(pieces)).await.unwrap_err().kind, ErrorKind::PayloadTooLarge);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_ends_at_the_earlier_limit() {
        let trickle = || {
            StreamBody::new(stream::repeat(()).then(|()| async {
                tokio::time::sleep(Duration::from_secs(6)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"1")))
            }))
        };
        let begun = Deadline::after(Duration::ZERO).instant();
        let failure = read_usual(trickle()).await.unwrap_err();
        assert_eq!((failure.kind, begun.elapsed().as_secs()), (ErrorKind::RequestTimeout, 30));
        let (head, deadline) = (HeaderMap::new(), Some(Deadline::after(Duration::from_secs(7))));
        let hurried = BodyLimits { deadline, ..limits(&ARRIVING, &head) };
        let failure = read(trickle(), hurried).await.unwrap_err();
        assert_eq!((failure.kind, begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 37));
        assert!(!failure.may_have_executed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_all_bodies_hold_is_bounded() {
        let (arriving, head) = (ArrivingBytes::new(WAITING + 5), HeaderMap::new());
        let unended = frames(&["123"]).chain(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let mut waiting = Box::pin(read(StreamBody::new(unended), limits(&arriving, &head)));
        let waits = tokio::time::timeout(Duration::from_secs(1), waiting.as_mut()).await;
        assert!(waits.is_err());
        let failure = read(body(&["123", "4"]), limits(&arriving, &head)).await.unwrap_err();
        assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::Overloaded, false));
        drop(waiting);
        assert_eq!(arriving.bytes.load(Ordering::Relaxed), 0);
    }
}
