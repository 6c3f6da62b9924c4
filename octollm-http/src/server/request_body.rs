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
use http_body::Body;
use http_body_util::BodyExt;
use octollm_core::{
    deadline::Deadline,
    error::{ErrorKind, Failure},
};

use crate::wire::BodyBuffer;

type BoxError = Box<dyn Error + Send + Sync>;

/// The limits on reading a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits<'a> {
    pub(crate) bytes: usize,
    pub(crate) time: Duration,
    /// Deadline of the caller.
    pub(crate) deadline: Option<Deadline>,
    /// The bytes of all bodies that are still arriving.
    pub(crate) arriving: &'a ArrivingBytes,
}

/// The bytes of all bodies that are still arriving.
#[derive(Debug)]
pub(crate) struct ArrivingBytes {
    bytes: AtomicUsize,
    most: usize,
}

/// The share of one body in [`ArrivingBytes`].
struct Share<'a> {
    arriving: &'a ArrivingBytes,
    bytes: usize,
}

impl ArrivingBytes {
    pub(crate) fn new(most: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), most }
    }

    fn share(&self) -> Share<'_> {
        Share { arriving: self, bytes: 0 }
    }
}

impl Share<'_> {
    fn add(&mut self, bytes: usize) -> Result<(), Failure> {
        let before = self.arriving.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) <= self.arriving.most {
            return Ok(());
        }
        Err(overloaded())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.arriving.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Reads a whole body.
///
/// # Errors
/// The body is too large, in fact or as declared; it arrives too slowly; all arriving bodies together are too large; or the
/// connection was lost.
pub(crate) async fn read<B>(body: B, limits: BodyLimits<'_>) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > limits.bytes as u64 {
        return Err(too_large(limits.bytes));
    }
    let mut reading = pin!(collect(body, limits.bytes, limits.arriving));
    if let Some(done) = soon(reading.as_mut()).await {
        return done;
    }
    let own = Deadline::after(limits.time);
    let (limit, kind) = match limits.deadline {
        Some(deadline) if deadline < own => (deadline, ErrorKind::DeadlineExceeded),
        _ => (own, ErrorKind::RequestTimeout),
    };
    limit.run(reading).await.unwrap_or_else(|| {
        let words = match kind {
            ErrorKind::RequestTimeout => "the body did not arrive in time",
            other => other.summary(),
        };
        Err(Failure::new(kind, words).before_execution())
    })
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

    static ARRIVING: ArrivingBytes = ArrivingBytes { bytes: AtomicUsize::new(0), most: 20 };
    const LIMITS: BodyLimits<'static> =
        BodyLimits { bytes: 8, time: Duration::from_secs(30), deadline: None, arriving: &ARRIVING };

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
        assert_eq!(read(body(&[]), LIMITS).await.unwrap(), "");
        assert_eq!(read(body(&["12345678"]), LIMITS).await.unwrap(), "12345678");
        assert_eq!(read(body(&["123", "", "45678"]), LIMITS).await.unwrap(), "12345678");
        for pieces in [&["123456789"][..], &["12345678", "9"], &["123", "456", "789"]] {
            assert_eq!(read(body(pieces), LIMITS).await.unwrap_err().kind, ErrorKind::PayloadTooLarge);
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
        let failure = read(trickle(), LIMITS).await.unwrap_err();
        assert_eq!((failure.kind, begun.elapsed().as_secs()), (ErrorKind::RequestTimeout, 30));
        let hurried = BodyLimits { deadline: Some(Deadline::after(Duration::from_secs(7))), ..LIMITS };
        let failure = read(trickle(), hurried).await.unwrap_err();
        assert_eq!((failure.kind, begun.elapsed().as_secs()), (ErrorKind::DeadlineExceeded, 37));
        assert!(!failure.may_have_executed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_all_bodies_hold_is_bounded() {
        let arriving = ArrivingBytes::new(5);
        let limits = BodyLimits { arriving: &arriving, ..LIMITS };
        let unended = frames(&["123"]).chain(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let mut waiting = Box::pin(read(StreamBody::new(unended), limits));
        let waits = tokio::time::timeout(Duration::from_secs(1), waiting.as_mut()).await;
        assert!(waits.is_err());
        let failure = read(body(&["123", "4"]), limits).await.unwrap_err();
        assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::Overloaded, false));
        drop(waiting);
        assert_eq!(arriving.bytes.load(Ordering::Relaxed), 0);
    }
}
