//! The bytes of a connection, with time limits on reading and writing.

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

use crate::limits::ServerConfig;

/// The stream below hyper, with time limits.
///
/// Over HTTP/1 reading ends when a head is too slow or no request arrives in time. Writing fails when the caller reads less than
/// a piece in time. The limits follow the begin and end of calls, never the bytes themselves. An upgraded connection has no
/// limits. After hyper has closed the connection, the bytes that the caller still sends are read and discarded for a moment, so
/// that the caller can read the answer before it sees the connection closed.
pub(crate) struct Limited<S> {
    stream: S,
    times: Times,
    state: Arc<State>,
    /// Bytes that were read before hyper, to detect the protocol.
    early: Bytes,
    /// A limit was exceeded: hyper sees the end of the stream.
    closed: bool,
    /// Calls that had begun when the wait began.
    begun: usize,
    /// Whether a part of a head has arrived, or the first head is due.
    in_head: bool,
    /// Begin of the wait.
    since: Option<Instant>,
    /// Time of the last write.
    written: Option<Instant>,
    read_limit: Option<Pin<Box<Sleep>>>,
    /// Set by a write that found no room, until everything or one more piece is written.
    write_limit: Option<Pin<Box<Sleep>>>,
    /// Bytes written since then.
    taken: usize,
    linger: Option<Pin<Box<Sleep>>>,
    lingered: usize,
    /// Set once the connection is upgraded.
    end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Held while the connection exists, whoever owns it.
    _place: Option<OwnedSemaphorePermit>,
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) head: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
}

/// State that the bytes of a connection, its calls and its server share.
#[derive(Debug, Default)]
pub(crate) struct State {
    begun: AtomicUsize,
    ended: AtomicUsize,
    mode: Mode,
    /// Whether the caller has yet to read what was written.
    writing: AtomicBool,
    /// Notified when the stream is dropped.
    gone: Notify,
    /// Ends a connection that was upgraded.
    pub(crate) end: CancellationToken,
}

#[derive(Debug, Default)]
struct Mode {
    http2: AtomicBool,
    upgraded: AtomicBool,
}

/// A call over HTTP/1, until its answer is sent or dropped.
#[derive(Debug)]
pub(crate) struct RunningCall(Arc<State>);

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of an answer that the caller has to read within the limit on writes.
const PIECE: usize = 16 * 1024;
/// Time for which the rest of a refused request is read.
const LINGER: Duration = Duration::from_secs(1);
/// The most bytes of it.
const MOST_LINGERED: usize = 4 << 20;

impl Times {
    pub(crate) fn of(config: &ServerConfig) -> Self {
        Self { head: config.head_timeout, idle: config.idle_timeout, write: config.write_timeout }
    }
}

impl State {
    /// Begins a call.
    pub(crate) fn begin(self: &Arc<Self>) -> RunningCall {
        self.begun.fetch_add(1, Ordering::Relaxed);
        RunningCall(self.clone())
    }

    /// Hands the bytes over to the endpoint.
    pub(crate) fn upgrade(&self) {
        self.mode.upgraded.store(true, Ordering::Release);
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.mode.upgraded.load(Ordering::Acquire)
    }

    /// Whether the caller has yet to read what was written.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    /// Waits until the stream is dropped, whoever owns it.
    pub(crate) async fn gone(&self) {
        self.gone.notified().await;
    }
}

impl Drop for RunningCall {
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

    /// Reads until the protocol is known.
    ///
    /// # Errors
    /// The connection failed, or sent nothing in time.
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

    /// Completes when the caller has exceeded the limit that holds now.
    fn poll_limit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.mode.http2.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let begun = self.state.begun.load(Ordering::Relaxed);
        if begun != self.begun {
            (self.begun, self.in_head, self.since) = (begun, false, self.written);
        }
        if begun != self.state.ended.load(Ordering::Relaxed) {
            // The caller waits for the server. A body has a limit of its own, which is answered with 408. hyper may not poll
            // again when the call ends, so that the timer has to wake it.
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
        // A timer that fires too early is not reset: over many requests that is cheaper than one timer each.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if self.write_limit.is_some() {
                // The last answer is still being written, which has a limit of its own.
                let now = Instant::now();
                (self.since, deadline) = (Some(now), now + limit);
            } else if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Records that bytes have arrived. Without a running call, whose body they may be, they begin a head.
    fn came(&mut self) {
        let begun = self.state.begun.load(Ordering::Relaxed);
        let waits = begun == self.state.ended.load(Ordering::Relaxed);
        if waits && (begun != self.begun || !self.in_head) {
            (self.begun, self.in_head, self.since) = (begun, true, None);
        }
    }

    /// Makes a write fail when its caller reads less than a piece in time, so that no caller can hold an answer by reading byte by
    /// byte.
    fn limited(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = &write {
            self.taken = self.taken.saturating_add(written.as_ref().map_or(PIECE, |written| *written));
            if self.taken >= PIECE {
                self.end_write_limit();
            }
            if !self.state.mode.http2.load(Ordering::Relaxed) {
                let now = Instant::now();
                self.written = Some(now);
                // A timer for a head may fire later than the limit on idle connections, and hyper may not poll before.
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
            self.state.writing.store(true, Ordering::Relaxed);
        }
        let timer = self.write_limit.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        ready!(at_any_budget(cx, |cx| timer.as_mut().poll(cx)));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn end_write_limit(&mut self) {
        if self.write_limit.take().is_some() {
            self.state.writing.store(false, Ordering::Relaxed);
        }
    }

    /// Completes when the server ends the upgraded connection.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let end = &self.state.end;
        self.end.get_or_insert_with(|| Box::pin(end.clone().cancelled_owned())).as_mut().poll(cx)
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Over HTTP/2 frames report what was read.
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

/// Polls outside the cooperative budget of the task. A body that is always ready would otherwise spend the budget, and delay both
/// the write and its time limit.
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
                    // The caller has closed its side: nothing is left to read.
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
        let flush = at_any_budget(cx, |cx| Pin::new(&mut self.stream).poll_flush(cx));
        if flush.is_pending() {
            // TLS has encrypted bytes that its caller does not read.
            return self.written(cx, Poll::Pending).map_ok(drop);
        }
        // hyper has written everything.
        self.end_write_limit();
        flush
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Once lingering has begun, the writing side is shut down already.
        if self.linger.is_none() {
            match Pin::new(&mut self.stream).poll_shutdown(cx) {
                Poll::Ready(shut) => shut?,
                Poll::Pending => return self.written(cx, Poll::Pending).map_ok(drop),
            }
        }
        if self.state.is_upgraded() {
            return Poll::Ready(Ok(()));
        }
        self.poll_linger(cx).map(Ok)
    }
}
