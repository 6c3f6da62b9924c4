//! Bodies: of requests, read whole within limits; of answers, one piece of memory.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use octollm_core::{
    deadline::Deadline,
    error::{ErrorKind, Failure},
};

/// The body of an answer.
#[derive(Debug, Default)]
pub struct ResponseBody(Option<Bytes>);

impl ResponseBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self((!bytes.is_empty()).then_some(bytes))
    }

    pub(crate) fn empty() -> Self {
        Self(None)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// How much of a body is read, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    pub(crate) bytes: usize,
    pub(crate) time: Duration,
    /// The caller's own deadline.
    pub(crate) deadline: Option<Deadline>,
}

/// Reads a whole body.
///
/// # Errors
/// Too large, at the byte or by what it says of itself; too late; or broken off.
pub(crate) async fn read<B>(body: B, limits: BodyLimits) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if body.size_hint().lower() > limits.bytes as u64 {
        return Err(too_large(limits.bytes));
    }
    let mut reading = pin!(collect(body, limits.bytes));
    if let Some(done) = soon(reading.as_mut()).await {
        return done;
    }
    let own = Deadline::after(limits.time);
    let (limit, kind) = match limits.deadline {
        Some(deadline) if deadline < own => (deadline, ErrorKind::DeadlineExceeded),
        _ => (own, ErrorKind::RequestTimeout),
    };
    tokio::time::timeout_at(limit.instant(), reading).await.unwrap_or_else(|_| {
        let words = match kind {
            ErrorKind::RequestTimeout => "the body did not arrive in time",
            other => other.summary(),
        };
        Err(Failure::new(kind, words).before_execution())
    })
}

/// The output of a future that needs no more than one turn of the event loop.
///
/// hyper hands over the body of an HTTP/1 request only after it was asked for it once: the first `Pending` says nothing
/// about the caller. A body that has arrived is had in the second turn, without the cost of a timer.
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

async fn collect<B>(body: B, most: usize) -> Result<Bytes, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(broken_off)?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > most - first.len().max(rest.len()) {
            return Err(too_large(most));
        }
        // A body of one piece, as most are, is not copied.
        if first.is_empty() && rest.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&first);
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

fn too_large(most: usize) -> Failure {
    Failure::new(ErrorKind::PayloadTooLarge, format!("the body is larger than {most} bytes"))
}

fn broken_off(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
    tracing::debug!(error = %error.into(), "body broken off");
    Failure::new(ErrorKind::BadRequest, "the body is malformed or was broken off")
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;

    use super::*;

    const LIMITS: BodyLimits = BodyLimits { bytes: 8, time: Duration::from_secs(30), deadline: None };

    fn body(pieces: &[&'static str]) -> impl Body<Data = Bytes, Error = Infallible> + use<> {
        let frames: Vec<_> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        StreamBody::new(stream::iter(frames))
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
}
