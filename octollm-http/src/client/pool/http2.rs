//! One HTTP/2 connection, which many calls use at once, and the task that drives it.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Connection, ResponseFuture, SendRequest},
};
use http::Request;
use octollm_core::error::ErrorKind;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{
    ExchangeError, Phase, Shared,
    allot::{LaneId, SharedId},
    connection::MAX_HEAD,
    health::{Health, Limits, Signs, Verdict},
    meter::{Meter, Metered},
};
use crate::{
    io::{Secured, refusal},
    wire::{FieldTable, TokenField},
};

/// An HTTP/2 connection. The socket is closed when the last reference is dropped; the task that drives it has none.
pub(super) struct Http2 {
    sender: SendRequest<Bytes>,
    /// `None` once the connection has ended.
    driver: Mutex<Option<Driver>>,
    pub(super) meter: Arc<Meter>,
    /// Streams in use.
    users: AtomicUsize,
    /// Streams that were reset here.
    resets: AtomicUsize,
    /// Streams that the server allows at once.
    allowed: AtomicUsize,
    /// Fields of the requests.
    fields: FieldTable,
    pub(super) token: TokenField,
    /// Whether a request was answered.
    is_proven: AtomicBool,
    /// The reason for which this side closed the connection.
    closed_for: OnceLock<Verdict>,
    refused: Arc<OnceLock<&'static str>>,
    task: OnceLock<AbortHandle>,
}

/// A stream that has begun.
pub(super) struct Begun {
    pub(super) answer: ResponseFuture,
    pub(super) body: h2::SendStream<Bytes>,
    /// Whether the token is not in an `Authorization`.
    pub(super) moves_token: bool,
}

struct Driver {
    connection: Connection<Watched, Bytes>,
    pings: Option<PingPong>,
    health: Health,
    timer: Pin<Box<Sleep>>,
}

/// Streams that are reset here before a connection is not used any more: its peer may count them as an attack.
const MOST_RESETS: usize = 1024;

/// An event on a connection, beside its streams.
enum Event {
    Retired,
    Resized(usize),
    Ended,
}

impl Http2 {
    /// Exchanges the SETTINGS of both sides, so that a server that does not speak HTTP/2 is sent no request.
    pub(super) async fn open(
        io: Secured<Metered>,
        meter: Arc<Meter>,
        pool: &Shared,
        retires: Instant,
        refused: Arc<OnceLock<&'static str>>,
    ) -> Result<Self, h2::Error> {
        let config = &pool.config;
        let io = Watched { io, refused: Arc::clone(&refused) };
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .enable_push(false)
            // Until the server allows more.
            .initial_max_send_streams(0)
            .handshake(io)
            .await?;
        poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(h2::Error::from(h2::Reason::NO_ERROR))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let now = Instant::now();
        let limits = Limits {
            ping_interval: config.ping_interval,
            ping_timeout: config.ping_timeout,
            write_idle: config.write_idle,
            retires,
        };
        let allowed = AtomicUsize::new(connection.max_concurrent_send_streams());
        let driver = Driver {
            pings: connection.ping_pong(),
            connection,
            health: Health::new(limits, now),
            timer: Box::pin(sleep_until(retires)),
        };
        Ok(Self {
            sender,
            driver: Mutex::new(Some(driver)),
            meter,
            users: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            allowed,
            fields: FieldTable::default(),
            token: TokenField::default(),
            is_proven: AtomicBool::new(false),
            closed_for: OnceLock::new(),
            refused,
            task: OnceLock::new(),
        })
    }

    /// Spawns the task that drives the connection, which is this one of the pool.
    pub(super) fn spawn(self: &Arc<Self>, pool: &Arc<Shared>, lane: LaneId, id: SharedId) {
        let guard = Guard { pool: Arc::downgrade(pool), lane, id };
        let driving = drive(Arc::downgrade(self), guard, self.allowed());
        // Outside a runtime no connection was opened.
        if let Ok(runtime) = Handle::try_current() {
            let _ = self.task.set(runtime.spawn(driving).abort_handle());
        }
    }

    /// Streams that the server allows at once.
    pub(super) fn allowed(&self) -> usize {
        self.allowed.load(Ordering::Relaxed)
    }

    /// Begins a use of the connection. Returns whether it was idle.
    pub(super) fn begin(&self) -> bool {
        self.users.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Ends a use of the connection. Returns whether it must not be used any more, since too many streams were reset here.
    pub(super) fn end(&self, is_reset: bool) -> bool {
        self.users.fetch_sub(1, Ordering::Relaxed);
        let resets = self.resets.fetch_add(usize::from(is_reset), Ordering::Relaxed);
        resets + usize::from(is_reset) >= MOST_RESETS
    }

    pub(super) fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }

    pub(super) fn proves(&self) {
        if !self.is_proven() {
            self.is_proven.store(true, Ordering::Relaxed);
        }
    }

    /// Begins a stream with the head of a request, whose token may be sent in [another field](TokenField).
    ///
    /// # Errors
    /// Nothing was sent.
    pub(super) fn begin_stream(
        &self,
        mut head: Request<()>,
        is_end: bool,
        has_issued_token: bool,
    ) -> Result<Begun, h2::Error> {
        let moves_token = has_issued_token && self.token.write(head.headers_mut(), &self.fields);
        self.fields.spare(head.headers_mut());
        let (answer, body) = self.sender.clone().send_request(head, is_end)?;
        Ok(Begun { answer, body, moves_token })
    }

    /// Whether a new stream can begin, as far as is known here.
    pub(super) fn is_open(&self) -> bool {
        let mut sender = self.sender.clone();
        matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// The failure of the streams, where this side has closed the connection or the server refuses its certificate.
    pub(super) fn closed_here(&self) -> Option<ExchangeError> {
        if let Some(problem) = self.refused.get() {
            return Some(ExchangeError::not_trusted(problem));
        }
        match self.closed_for.get()? {
            Verdict::Stuck => Some(
                ExchangeError::new(ErrorKind::Timeout, "the server does not read the request")
                    .in_phase(Phase::Write),
            ),
            _ => Some(ExchangeError::new(ErrorKind::ConnectionLost, "the server does not answer PINGs")),
        }
    }

    /// Drives the connection until something concerns the pool.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut slot = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(driver) = slot.as_mut() else { return Poll::Ready(Event::Ended) };
        if Pin::new(&mut driver.connection).poll(cx).is_ready() {
            *slot = None;
            return Poll::Ready(Event::Ended);
        }
        let allowed = driver.connection.max_concurrent_send_streams();
        if allowed != self.allowed() {
            self.allowed.store(allowed, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            return Poll::Ready(Event::Resized(allowed));
        }
        loop {
            let signs = Signs {
                read: self.meter.read(),
                written: self.meter.written(),
                is_blocked: self.meter.is_write_blocked(),
                has_streams: self.users.load(Ordering::Relaxed) > 0,
            };
            match driver.health.check(Instant::now(), signs) {
                Verdict::Wait(until) => {
                    // A timer that ends too early checks again, which is cheaper than to set it at each event.
                    if until < driver.timer.deadline() || driver.timer.is_elapsed() {
                        driver.timer.as_mut().reset(until);
                    }
                    if driver.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Verdict::Ping => driver.ping(),
                Verdict::Retire => return Poll::Ready(Event::Retired),
                verdict @ (Verdict::Silent | Verdict::Stuck) => {
                    let _ = self.closed_for.set(verdict);
                    *slot = None;
                    return Poll::Ready(Event::Ended);
                }
            }
        }
    }
}

impl Driver {
    /// Sends a PING, unless the answer to the last one is still due.
    fn ping(&mut self) {
        if let Some(pings) = &mut self.pings {
            // The answer to the last one is taken out first.
            let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
            let _ = pings.send_ping(Ping::opaque());
        }
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Takes the connection out of its pool when its task ends, also with its runtime.
struct Guard {
    pool: Weak<Shared>,
    lane: LaneId,
    id: SharedId,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.retire(self.lane, self.id);
        }
    }
}

/// Drives a connection to its end.
async fn drive(connection: Weak<Http2>, guard: Guard, mut allowed: usize) {
    let next = || {
        poll_fn(|cx| match connection.upgrade() {
            Some(connection) => connection.poll(cx),
            None => Poll::Ready(Event::Ended),
        })
    };
    loop {
        let event = next().await;
        let Some(pool) = guard.pool.upgrade() else { return };
        match event {
            Event::Retired => pool.retire(guard.lane, guard.id),
            Event::Resized(now) if now != allowed => {
                allowed = now;
                pool.resize(guard.lane, guard.id, allowed);
            }
            Event::Resized(_) => {}
            Event::Ended => return,
        }
    }
}

/// A socket whose errors are looked at, since the streams have their texts only.
struct Watched {
    io: Secured<Metered>,
    /// Why the server refuses the certificate of this client.
    refused: Arc<OnceLock<&'static str>>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &read
            && let Some(problem) = refusal(error)
        {
            let _ = self.refused.set(problem);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Opens HTTP/2 within a time limit.
///
/// # Errors
/// The server does not speak HTTP/2, or not within the limit. Nothing was sent.
pub(super) async fn open_within(
    limit: Duration,
    io: Secured<Metered>,
    meter: Arc<Meter>,
    pool: &Shared,
    retires: Instant,
) -> Result<Http2, ExchangeError> {
    let unspoken =
        |message: &'static str| ExchangeError::new(ErrorKind::Unreachable, message).in_phase(Phase::Connect);
    let refused = Arc::new(OnceLock::new());
    match timeout(limit, Http2::open(io, meter, pool, retires, Arc::clone(&refused))).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => {
            let refused = refused.get().map(|problem| ExchangeError::not_trusted(problem));
            let failed =
                refused.unwrap_or_else(|| unspoken("no connection: the server does not speak HTTP/2"));
            Err(failed.caused_by(error))
        }
        Err(_) => Err(unspoken("no connection: the server does not answer over HTTP/2")),
    }
}
