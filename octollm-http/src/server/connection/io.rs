//! A connection's bytes, with time limits and an eye on what passes.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    bare,
    calls::Calls,
    watch::{Phase, Watch},
};
use crate::server::config::ServerConfig;

/// The stream below hyper.
///
/// Reading ends when a head takes too long, or nothing is asked for too long; writing fails when it stands still for too
/// long. Answers that hyper gives by itself, which have no body, get one. After a refusal the rest of the request is read
/// for a moment and thrown away, so that the caller gets to read the answer before it finds the connection closed.
pub(crate) struct Watched<S> {
    stream: S,
    times: Arc<Times>,
    watch: Watch,
    calls: Arc<Calls>,
    /// Read before hyper was there, to tell the protocol.
    early: Bytes,
    /// Written in place of what hyper wrote.
    late: Bytes,
    closed: bool,
    /// When the phase began that the limit counts from; unset until there is something to wait for.
    since: Option<Instant>,
    read_limit: Option<Pin<Box<Sleep>>>,
    write_limit: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
}

/// The limits of a connection.
pub(crate) struct Times {
    head: Duration,
    idle: Duration,
    write: Duration,
    max_target: usize,
}

impl Times {
    pub(crate) fn of(config: &ServerConfig) -> Self {
        Self {
            head: config.head_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
            max_target: config.max_uri,
        }
    }
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What stands on a request line beside the target.
const METHOD_AND_VERSION: usize = 24;
/// How long the rest of a refused request is read.
const LINGER: Duration = Duration::from_secs(1);

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    pub(crate) fn new(stream: S, times: Arc<Times>, calls: Arc<Calls>) -> Self {
        Self {
            stream,
            watch: Watch::new(times.max_target + METHOD_AND_VERSION),
            times,
            calls,
            early: Bytes::new(),
            late: Bytes::new(),
            closed: false,
            since: None,
            read_limit: None,
            write_limit: None,
            linger: None,
        }
    }

    /// Reads as far as needed to tell the protocol.
    ///
    /// # Errors
    /// The connection's own, or none of it came in time.
    pub(crate) async fn protocol(&mut self) -> io::Result<Protocol> {
        let mut bytes = Vec::new();
        let mut space = [0; 2048];
        while bytes.len() < PREFACE.len() && PREFACE.starts_with(&bytes) {
            let mut buffer = ReadBuf::new(&mut space);
            poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut buffer)).await?;
            if buffer.filled().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(buffer.filled());
        }
        let http2 = bytes.starts_with(PREFACE);
        self.early = bytes.into();
        if http2 {
            self.watch.give_up();
            return Ok(Protocol::Http2);
        }
        Ok(Protocol::Http1)
    }

    /// Whether the caller has had all the time it gets for what it does now.
    fn poll_limit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let phase = self.watch.phase();
        let limit = match phase {
            Phase::New | Phase::Head => self.times.head,
            Phase::Idle => self.times.idle,
            // A body has a limit of its own, which is answered with 408.
            Phase::Body | Phase::Unknown => return Poll::Pending,
        };
        let mut deadline = *self.since.get_or_insert_with(Instant::now) + limit;
        let timer = self.read_limit.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // One that rings too early is not set anew: over many requests that is cheaper than one timer each.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if phase == Phase::Idle && self.calls.running() > 0 {
                // The caller waits for us, not we for it.
                let now = Instant::now();
                self.since = Some(now);
                deadline = now + limit;
            }
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let before = self.watch.phase();
        self.watch.take(bytes);
        // The first head has one limit together with the wait for its first byte.
        let same = self.watch.phase() == before && before == Phase::Head;
        if !same && before != Phase::New {
            self.since = None;
        }
        if let Some(number) = self.watch.two_lengths() {
            self.calls.refuse(number);
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.late.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.late))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.late.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Turns a write that stands still for too long into an error.
    fn limited(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if write.is_ready() {
            (self.write_limit, self.since) = (None, None);
            return write;
        }
        let limit = self.times.write;
        let timer = self.write_limit.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether `bytes` was an answer of hyper's own, and is now replaced.
    fn replaced(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<bool> {
        let Some(answer) = bare::completed(bytes, self.watch.long_target()) else { return Ok(false) };
        self.late = answer;
        match self.poll_late(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(true),
        }
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !matches!(self.watch.phase(), Phase::Head | Phase::Body) || self.closed {
            return Poll::Ready(());
        }
        let timer = self.linger.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
        let mut space = [0; 4096];
        while timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.early.is_empty() {
            let taken = this.early.len().min(buffer.remaining());
            buffer.put_slice(&this.early.split_to(taken));
            return Poll::Ready(Ok(()));
        }
        if this.closed {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                this.take(&buffer.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(this.poll_limit(cx));
                this.closed = true;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_late(cx))?;
        if self.replaced(cx, bytes)? {
            return Poll::Ready(Ok(bytes.len()));
        }
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.limited(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_late(cx))?;
        if let [only] = slices
            && self.replaced(cx, only)?
        {
            return Poll::Ready(Ok(only.len()));
        }
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.limited(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_late(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_late(cx))?;
        // Once lingering has begun, the writing side is shut down already.
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        self.poll_linger(cx).map(Ok)
    }
}
