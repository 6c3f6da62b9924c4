//! Counting the bytes of a socket, and the time limits on silence.

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
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::ExchangeLimits;
use crate::{io::Io, limits::YEAR};

/// The bytes that moved through a socket. One task at a time reads and writes it, so that relaxed ordering suffices.
#[derive(Debug, Default)]
pub(super) struct Meter {
    read: AtomicU64,
    written: AtomicU64,
    blocked: AtomicBool,
    /// No answer is due: any byte ends the connection.
    rests: AtomicBool,
    /// The socket of the system is asked once whether the server has closed it.
    asks_end: AtomicBool,
    /// Count of bytes read at which the head of an answer is too late; 0 for no limit.
    before_head: AtomicU64,
    /// Whether the socket of the system can be asked what waits in it.
    can_peek: bool,
}

impl Meter {
    /// Bytes written to the kernel.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// A number that changes whenever a byte moves in either direction.
    pub(super) fn moved(&self) -> u64 {
        self.written().wrapping_add(self.read.load(Ordering::Relaxed))
    }

    /// Whether the last write found no room.
    pub(super) fn is_write_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Whether a close by the server is seen as soon as it arrives. Otherwise the runtime has to poll its sockets before.
    pub(super) fn can_peek(&self) -> bool {
        self.can_peek
    }

    /// Sets whether no answer is due.
    pub(super) fn rests(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    /// Asks the socket of the system with the next read whether the server has closed it.
    pub(super) fn ask_end(&self) {
        self.asks_end.store(true, Ordering::Relaxed);
    }

    /// Bytes read from the kernel.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Allows this many bytes until the [head](Self::has_head) of an answer is complete.
    pub(super) fn awaits_head(&self, allowed: u64) {
        self.before_head.store(self.read.load(Ordering::Relaxed).wrapping_add(allowed), Ordering::Relaxed);
    }

    pub(super) fn has_head(&self) {
        self.before_head.store(0, Ordering::Relaxed);
    }

    /// Whether more bytes were read than are allowed before a head.
    pub(super) fn is_flooded(&self) -> bool {
        let limit = self.before_head.load(Ordering::Relaxed);
        limit > 0 && self.read.load(Ordering::Relaxed) >= limit
    }

    /// One task at a time moves bytes, so that no read-modify-write is needed.
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
    socket: Box<dyn Io>,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(socket: Box<dyn Io>) -> (Self, Arc<Meter>) {
        let meter = Arc::new(Meter { can_peek: system_socket(&*socket).is_some(), ..Meter::default() });
        (Self { socket, meter: Arc::clone(&meter) }, meter)
    }
}

/// The socket of the system below a connection, where there is one.
fn system_socket(socket: &dyn Io) -> Option<SockRef<'_>> {
    let socket = socket as &dyn Any;
    let system = socket.downcast_ref::<TcpStream>().map(SockRef::from);
    #[cfg(unix)]
    let system = system.or_else(|| socket.downcast_ref::<UnixStream>().map(SockRef::from));
    system
}

/// Whether bytes or their end wait in the socket of the system, which the runtime may not have polled since.
fn holds_something(socket: &dyn Io) -> bool {
    waiting(socket).is_some()
}

/// The bytes that wait in the socket of the system, of the first one; `Some(0)` for their end or an error.
fn waiting(socket: &dyn Io) -> Option<usize> {
    match system_socket(socket)?.peek(&mut [MaybeUninit::uninit()]) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(_) => Some(0),
    }
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
        // Where something was read, the end may follow it.
        if read.is_pending() && self.meter.asks_end.load(Ordering::Relaxed) {
            self.meter.asks_end.store(false, Ordering::Relaxed);
            if waiting(&*self.socket) == Some(0) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
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

/// The time limits on silence while a request is sent and its answer is read.
///
/// A timer is created only if something has to wait and the deadline of the caller is later. Most calls create none.
pub(super) struct WaitLimit {
    /// Limit until the head of the answer is complete.
    work: Duration,
    is_answering: bool,
    read: Duration,
    write: Duration,
    deadline: Option<Deadline>,
    begun: Option<Instant>,
    timer: Option<Timer>,
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    limit: Duration,
    last_move: Instant,
    moved: u64,
}

/// The direction in which the server was silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    /// It does not read the request.
    Write,
    /// It sends no head of an answer.
    Head,
    /// It does not send the rest of the answer.
    Body,
}

impl WaitLimit {
    /// A contract whose time limit exceeds the default may be silent for as long.
    pub(super) fn new(read: Duration, write: Duration, limits: ExchangeLimits) -> Self {
        // With one that nobody lives to see, a time in the future would be out of range.
        let work = limits.work.min(YEAR);
        let work = if work > ContractSpec::DEFAULT_TIMEOUT { read.max(work) } else { read };
        Self {
            work,
            is_answering: false,
            read,
            write,
            deadline: limits.deadline,
            begun: limits.begun,
            timer: None,
        }
    }

    /// Records that the head of the answer is complete.
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

    /// Completes when no byte has moved within the limit. Poll it whenever there is no progress.
    pub(super) fn poll(&mut self, meter: &Meter, cx: &mut Context<'_>) -> Poll<Idle> {
        self.poll_moved(meter.moved(), meter.is_write_blocked(), cx)
    }

    /// Completes when `moved` has not changed within the limit. `blocked` while the server takes nothing of the request.
    pub(super) fn poll_moved(&mut self, moved: u64, blocked: bool, cx: &mut Context<'_>) -> Poll<Idle> {
        let limit = self.limit(blocked);
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => {
                let ends_first =
                    |now: Instant| self.deadline.is_some_and(|deadline| deadline.instant() <= now + limit);
                if self.begun.is_some_and(ends_first) {
                    return Poll::Pending;
                }
                let now = Instant::now();
                if ends_first(now) {
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
        let is_answering = self.is_answering;
        timer.sleep.as_mut().poll(cx).map(|()| match (blocked, is_answering) {
            (true, _) => Idle::Write,
            (false, false) => Idle::Head,
            (false, true) => Idle::Body,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    const READ: Duration = Duration::from_secs(30);
    const WRITE: Duration = Duration::from_secs(10);

    fn wait_limit(deadline: Option<Deadline>, work: Duration) -> WaitLimit {
        WaitLimit::new(READ, WRITE, ExchangeLimits { deadline, work, ..ExchangeLimits::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_after_the_read_limit() {
        let (meter, began) = (Meter::default(), Instant::now());
        let mut wait_limit = wait_limit(None, WRITE);
        assert_eq!(poll_fn(|cx| wait_limit.poll(&meter, cx)).await, Idle::Head);
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
        assert_eq!(poll_fn(|cx| wait_limit.poll(&meter, cx)).await, Idle::Body);
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
