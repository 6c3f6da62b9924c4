//! What moves through a socket, and how long to wait while nothing does.

use std::{
    any::Any,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use octollm_core::{contract::ContractSpec, deadline::Deadline};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::Terms;
use crate::io::{BoxIo, Io};

/// What moved through a socket. Read by whoever drives it, so that relaxed counting does.
#[derive(Debug, Default)]
pub(super) struct Meter {
    read: AtomicU64,
    written: AtomicU64,
    blocked: AtomicBool,
    /// Nothing is due from the server: whatever comes ends the connection.
    rests: AtomicBool,
    /// How much may be read before the head of an answer has come; 0 for any amount.
    before_head: AtomicU64,
}

impl Meter {
    /// Bytes that the kernel took for sending.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Changes whenever a byte moves, either way.
    pub(super) fn moved(&self) -> u64 {
        self.written().wrapping_add(self.read.load(Ordering::Relaxed))
    }

    /// Whether the last write found no room.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Says whether the connection rests, so that nothing is due from the server.
    pub(super) fn rests(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    /// Allows this many bytes until the [head](Self::has_head) of an answer has come.
    pub(super) fn awaits_head(&self, allowed: u64) {
        self.before_head.store(self.read.load(Ordering::Relaxed).wrapping_add(allowed), Ordering::Relaxed);
    }

    pub(super) fn has_head(&self) {
        self.before_head.store(0, Ordering::Relaxed);
    }

    /// Whether more was read than any head is long.
    pub(super) fn is_flooded(&self) -> bool {
        let limit = self.before_head.load(Ordering::Relaxed);
        limit > 0 && self.read.load(Ordering::Relaxed) >= limit
    }

    /// Only one task at a time moves bytes: no read-modify-write is needed.
    fn add(counter: &AtomicU64, bytes: usize) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes as u64), Ordering::Relaxed);
    }

    fn count_write(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.blocked.store(result.is_pending(), Ordering::Relaxed);
        let bytes = ready!(result)?;
        Self::add(&self.written, bytes);
        Poll::Ready(Ok(bytes))
    }
}

/// A socket and its meter.
pub(super) struct Metered {
    socket: BoxIo,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(socket: BoxIo) -> (Self, Arc<Meter>) {
        let meter = Arc::<Meter>::default();
        (Self { socket, meter: Arc::clone(&meter) }, meter)
    }
}

/// Whether bytes, or the end of them, wait in the system's socket. The runtime may not have looked at it since they came.
fn holds_something(socket: &dyn Io) -> bool {
    let tcp = (socket as &dyn Any).downcast_ref::<TcpStream>();
    tcp.is_some_and(|tcp| match SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    })
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.is_flooded() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if read.is_pending() && self.meter.rests.load(Ordering::Relaxed) && holds_something(&*self.socket) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        ready!(read)?;
        Meter::add(&self.meter.read, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.meter.count_write(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.meter.count_write(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// The limits on doing nothing while a request is sent and its answer read.
///
/// A timer is made only when something has to wait, and none where the caller's own deadline comes first: most calls
/// make none.
pub(super) struct WaitLimit {
    /// Until the head of the answer has come.
    work: Duration,
    is_answering: bool,
    read: Duration,
    write: Duration,
    deadline: Option<Deadline>,
    timer: Option<Timer>,
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    limit: Duration,
    last_move: Instant,
    moved: u64,
}

/// What the server did not do in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    Read,
    Write,
}

impl WaitLimit {
    /// A contract that may take longer than is usual may be silent for as long.
    pub(super) fn new(read: Duration, write: Duration, terms: Terms) -> Self {
        let work = if terms.work > ContractSpec::DEFAULT_TIMEOUT { read.max(terms.work) } else { read };
        Self { work, is_answering: false, read, write, deadline: terms.deadline, timer: None }
    }

    /// The head of the answer has come.
    pub(super) fn answering(&mut self) {
        self.is_answering = true;
    }

    fn limit(&self, is_write_blocked: bool) -> Duration {
        match (is_write_blocked, self.is_answering) {
            (true, _) => self.write,
            (false, true) => self.read,
            (false, false) => self.work,
        }
    }

    /// To be asked whenever nothing can be done: ready when nothing moved for too long.
    pub(super) fn poll(&mut self, meter: &Meter, cx: &mut Context<'_>) -> Poll<Idle> {
        let blocked = meter.is_write_blocked();
        let limit = self.limit(blocked);
        let moved = meter.moved();
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => {
                let now = Instant::now();
                if self.deadline.is_some_and(|deadline| deadline.instant() <= now + limit) {
                    return Poll::Pending;
                }
                let sleep = Box::pin(tokio::time::sleep_until(now + limit));
                self.timer.insert(Timer { sleep, limit, last_move: now, moved })
            }
        };
        if timer.moved != moved || timer.limit != limit {
            timer.moved = moved;
            timer.limit = limit;
            timer.last_move = Instant::now();
            timer.sleep.as_mut().reset(timer.last_move + limit);
        }
        timer.sleep.as_mut().poll(cx).map(|()| if blocked { Idle::Write } else { Idle::Read })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    const READ: Duration = Duration::from_secs(30);
    const WRITE: Duration = Duration::from_secs(10);

    fn wait_limit(deadline: Option<Deadline>, work: Duration) -> WaitLimit {
        WaitLimit::new(READ, WRITE, Terms { deadline, work })
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_after_the_read_limit() {
        let (meter, began) = (Meter::default(), Instant::now());
        let mut wait_limit = wait_limit(None, WRITE);
        assert_eq!(poll_fn(|cx| wait_limit.poll(&meter, cx)).await, Idle::Read);
        assert_eq!(began.elapsed(), READ);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_may_work_as_long_as_its_contract_says_but_not_pause_in_its_answer() {
        let (meter, began) = (Meter::default(), Instant::now());
        let mut wait_limit = wait_limit(None, READ * 20);
        let until = |wait_limit: &mut WaitLimit| {
            let limit = wait_limit.limit(false);
            assert!(wait_limit.poll(&meter, &mut Context::from_waker(Waker::noop())).is_pending());
            limit
        };
        assert_eq!(until(&mut wait_limit), READ * 20);
        wait_limit.answering();
        assert_eq!(until(&mut wait_limit), READ);
        assert_eq!(poll_fn(|cx| wait_limit.poll(&meter, cx)).await, Idle::Read);
        assert_eq!(began.elapsed(), READ);
    }

    #[tokio::test(start_paused = true)]
    async fn no_timer_is_made_where_the_deadline_comes_first() {
        let meter = Meter::default();
        let mut wait_limit = wait_limit(Some(Deadline::after(READ)), READ);
        assert!(wait_limit.poll(&meter, &mut Context::from_waker(Waker::noop())).is_pending());
        assert!(wait_limit.timer.is_none());
    }
}
