//! A connection's bytes, with limits on what is waited for.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, OwnedSemaphorePermit},
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::config::ServerConfig;

/// The stream below hyper.
///
/// Over HTTP/1 reading ends when a head takes too long, or no request comes for too long; writing fails when the caller
/// takes less than a piece for too long. What counts is which calls have begun and ended, never what the bytes look like. A connection that was
/// upgraded has none of these limits. When hyper closes the connection, what the caller still sends is read for a moment
/// and thrown away, so that it gets to read the answer before it finds the connection closed.
pub(crate) struct Limited<S> {
    stream: S,
    times: Times,
    state: Arc<State>,
    /// Read before hyper was there, to know the protocol.
    early: Bytes,
    /// A limit has passed: this is the end of the bytes, as far as hyper sees.
    closed: bool,
    /// How many calls had begun when the wait began.
    begun: usize,
    /// Whether a part of a head has come, or the first one is due.
    in_head: bool,
    /// What the wait counts from.
    since: Option<Instant>,
    /// When something was written last.
    written: Option<Instant>,
    read_limit: Option<Pin<Box<Sleep>>>,
    /// Set from a write that found no room until all is written, or a piece more of it.
    write_limit: Option<Pin<Box<Sleep>>>,
    /// What was written since.
    taken: usize,
    linger: Option<Pin<Box<Sleep>>>,
    lingered: usize,
    /// Set once the connection is upgraded.
    end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Held for as long as the connection is there, whoever has it.
    _place: Option<OwnedSemaphorePermit>,
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
}

/// What a connection's bytes, its calls and its server know of each other.
#[derive(Debug, Default)]
pub(crate) struct State {
    begun: AtomicUsize,
    ended: AtomicUsize,
    mode: Mode,
    /// The bytes are gone.
    gone: Notify,
    /// Ends a connection that was upgraded.
    pub(crate) end: CancellationToken,
}

#[derive(Debug, Default)]
struct Mode {
    http2: AtomicBool,
    upgraded: AtomicBool,
}

/// A call over HTTP/1, until its answer is sent or given up.
#[derive(Debug)]
pub(crate) struct Running(Arc<State>);

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// So much of an answer is taken within the limit on writes.
const PIECE: usize = 16 * 1024;
/// How long the rest of a refused request is read.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes of it.
const MOST_LINGERED: usize = 4 << 20;

impl Times {
    pub(crate) fn of(config: &ServerConfig) -> Self {
        Self { head: config.head_timeout, idle: config.idle_timeout, write: config.write_timeout }
    }
}

impl State {
    /// A call begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    /// The bytes are the endpoint's own from here on.
    pub(crate) fn upgrade(&self) {
        self.mode.upgraded.store(true, Ordering::Release);
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.mode.upgraded.load(Ordering::Acquire)
    }

    /// Returns when the bytes are gone, whoever had them last.
    pub(crate) async fn gone(&self) {
        self.gone.notified().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Limited<S> {
    /// The first head is due within its limit from `since`.
    pub(crate) fn new(
        stream: S,
        times: Times,
        since: Instant,
        state: Arc<State>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            stream,
            times,
            state,
            early: Bytes::new(),
            closed: false,
            begun: 0,
            in_head: true,
            since: Some(since),
            written: None,
            read_limit: None,
            write_limit: None,
            taken: 0,
            linger: None,
            lingered: 0,
            end: None,
            _place: place,
        }
    }

    /// Reads as far as needed to know the protocol.
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
        self.state.mode.http2.store(http2, Ordering::Relaxed);
        Ok(if http2 { Protocol::Http2 } else { Protocol::Http1 })
    }

    /// Whether the caller has had all the time it gets for what it does now.
    fn poll_limit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.mode.http2.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let begun = self.state.begun.load(Ordering::Relaxed);
        if begun != self.begun {
            (self.begun, self.in_head, self.since) = (begun, false, self.written);
        }
        if begun != self.state.ended.load(Ordering::Relaxed) {
            // The caller waits for us, not we for it. A body has a limit of its own, which is answered with 408. hyper may
            // not ask again when the call ends: the timer makes it.
            let idle = self.times.idle;
            let timer = self.read_limit.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + idle)));
            while timer.as_mut().poll(cx).is_ready() {
                timer.as_mut().reset(Instant::now() + idle);
            }
            return Poll::Pending;
        }
        let limit = if self.in_head { self.times.head } else { self.times.idle };
        let mut deadline = *self.since.get_or_insert_with(Instant::now) + limit;
        let timer = self.read_limit.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // One that rings too early is not set anew: over many requests that is cheaper than one timer each.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if self.write_limit.is_some() {
                // The last answer is still on its way, which has a limit of its own.
                let now = Instant::now();
                (self.since, deadline) = (Some(now), now + limit);
            } else if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Bytes came. Those of a head have begun unless a call runs, which they may be the body of.
    fn came(&mut self) {
        let begun = self.state.begun.load(Ordering::Relaxed);
        let waits = begun == self.state.ended.load(Ordering::Relaxed);
        if waits && (begun != self.begun || !self.in_head) {
            (self.begun, self.in_head, self.since) = (begun, true, None);
        }
    }

    /// Turns a write into an error when its caller takes less than a piece for too long: one that takes a byte at a time may
    /// hold on to no answer.
    fn limited(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = &write {
            self.taken = self.taken.saturating_add(written.as_ref().map_or(PIECE, |written| *written));
            if self.taken >= PIECE {
                self.write_limit = None;
            }
            if !self.state.mode.http2.load(Ordering::Relaxed) {
                let now = Instant::now();
                self.written = Some(now);
                // A timer for a head may ring after the connection has rested for long enough, and hyper may not ask before.
                if let Some(timer) = &mut self.read_limit
                    && timer.deadline() > now + self.times.idle
                {
                    timer.as_mut().reset(now + self.times.idle);
                }
            }
            if !self.in_head {
                self.since = self.written;
            }
            return write;
        }
        let limit = self.times.write;
        if self.write_limit.is_none() {
            self.taken = 0;
        }
        let timer = self.write_limit.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        ready!(at_any_budget(cx, |cx| timer.as_mut().poll(cx)));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the server has ended what the connection was upgraded to.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let end = &self.state.end;
        self.end.get_or_insert_with(|| Box::pin(end.clone().cancelled_owned())).as_mut().poll(cx)
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Frames of HTTP/2 say by themselves what was taken.
        if self.closed || self.state.mode.http2.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        let timer = self.linger.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
        let mut space = [0; 4096];
        while timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && self.lingered < MOST_LINGERED => {}
                _ => break,
            }
            self.lingered += buffer.filled().len();
        }
        Poll::Ready(())
    }
}

/// Polls what ends a piece of work also where the work has spent the cooperative budget of its task: an answer whose body never waits
/// would otherwise hold back what is written of it, and its limit on writes.
fn at_any_budget<T>(cx: &mut Context<'_>, poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    pin!(unconstrained(poll_fn(poll))).poll(cx)
}

impl<S> Drop for Limited<S> {
    fn drop(&mut self) {
        self.state.gone.notify_one();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Limited<S> {
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
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if this.state.is_upgraded() {
            return match read {
                Poll::Pending => this.poll_end(cx).map(|()| Err(io::ErrorKind::ConnectionAborted.into())),
                read => read,
            };
        }
        match read {
            Poll::Ready(Ok(())) => {
                if buffer.filled().len() == before {
                    // The caller has closed its side: there is nothing to linger for.
                    this.closed = true;
                } else {
                    this.came();
                }
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

impl<S: AsyncRead + AsyncWrite + Unpin> Limited<S> {
    fn written(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if !self.state.is_upgraded() {
            return self.limited(cx, write);
        }
        match write {
            Poll::Pending => self.poll_end(cx).map(|()| Err(io::ErrorKind::ConnectionAborted.into())),
            write => write,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = at_any_budget(cx, |cx| Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.written(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = at_any_budget(cx, |cx| Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        self.written(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper has written all it had.
        self.write_limit = None;
        at_any_budget(cx, |cx| Pin::new(&mut self.stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Once lingering has begun, the writing side is shut down already.
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if self.state.is_upgraded() {
            return Poll::Ready(Ok(()));
        }
        self.poll_linger(cx).map(Ok)
    }
}
