//! Checking a connection out of the pool, and giving it back.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use hyper::body::{Body, Incoming};
use octollm_core::{deadline::Deadline, error::ErrorKind};
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    Connection, ExchangeError, ExchangeLimits, Failure, Key, LaneId, Origin, Permit, Phase, SharedId,
    allot::Ticket,
    connection::SendError,
    http2::Http2,
    meter::WaitLimit,
    pooled::PooledConnection,
    stream::{self, Receiving},
    upload::Upload,
};

type Pool = super::Shared;

/// A connection of the pool, or a stream of one. When it is dropped, it is given back or closed, and the next caller is served.
pub(super) enum Place {
    Own(PooledConnection),
    Stream(Stream),
    /// It was [left](Self::leave).
    Left,
}

/// The body of an answer.
pub(super) enum Answer {
    Http1(Incoming),
    Http2(Box<Receiving>),
}

/// A place, or the failure of the connection on which it was to be.
pub(super) type Served = Result<Place, Box<Failure>>;

impl Place {
    /// Waits until the caller is served.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] after the time limit on waiting.
    pub(super) async fn new(
        pool: &Arc<Pool>,
        arm: &Arc<str>,
        origin: &Origin,
        limits: &ExchangeLimits,
    ) -> Result<Self, ExchangeError> {
        let Ok(runtime) = Handle::try_current() else {
            let error = ExchangeError::new(ErrorKind::Internal, "no tokio runtime is running here");
            return Err(error.before_execution());
        };
        let runtime = runtime.id();
        let key = Key { arm: Arc::clone(arm), origin: origin.clone(), runtime };
        let waiting = {
            let mut state = pool.state();
            let lane = state.lane(key);
            state.choose_version(lane, origin, limits.hints.speaks_http2, &pool.config, pool.protocol);
            match state.allotment.ask(lane) {
                Some(permit) => {
                    drop(state);
                    return Ok(Self::granted(pool, (lane, runtime), permit));
                }
                None => {
                    let (sender, served) = oneshot::channel();
                    let ticket = state.allotment.wait(lane, (sender, runtime));
                    Waiting { pool, lane, ticket, served: Some(served) }
                }
            }
        };
        waiting.permit(limits.deadline).await
    }

    pub(super) fn granted(
        pool: &Arc<Pool>,
        at: (LaneId, runtime::Id),
        permit: Permit<Box<Connection>, Arc<Http2>>,
    ) -> Self {
        let own = |connection: Option<Box<Connection>>, idle_since, is_sharing| {
            let pool = Arc::clone(pool);
            let (lane, runtime) = at;
            let is_fit = connection.is_some();
            let is_spent = false;
            Self::Own(PooledConnection {
                pool,
                lane,
                runtime,
                connection,
                is_sharing,
                is_spent,
                is_fit,
                idle_since,
            })
        };
        match permit {
            Permit::Use(connection, since) => own(Some(connection), Some(since), false),
            Permit::Join(id, connection) => {
                if connection.begin() {
                    connection.meter.ask_end();
                }
                Self::Stream(Stream::new(Arc::clone(pool), at, id, connection))
            }
            Permit::Open(evicted) => {
                drop(evicted);
                own(None, None, false)
            }
            Permit::OpenShared(evicted) => {
                drop(evicted);
                own(None, None, true)
            }
        }
    }

    /// Opens the connection if needed. Returns whether it was used before. It is closed on drop unless it is
    /// [given back](Self::give_back).
    pub(super) async fn ready(&mut self, origin: &Origin) -> Result<bool, ExchangeError> {
        let pooled = match self {
            Self::Own(pooled) => pooled,
            Self::Stream(stream) => return Ok(stream.connection.is_proven()),
            Self::Left => return Ok(false),
        };
        if pooled.find_alive().await {
            return Ok(true);
        }
        // Boxed, since small futures are moved at less cost.
        if let Some(stream) = Box::pin(pooled.open(origin)).await? {
            *self = Self::Stream(stream);
        }
        Ok(false)
    }

    /// Sends a request and reads the head of its answer.
    pub(super) async fn head(
        &mut self,
        request: Box<Request<Upload>>,
        origin: &Origin,
        has_issued_token: bool,
        wait_limit: &mut WaitLimit,
    ) -> Result<Response<Answer>, SendError> {
        match self {
            Self::Own(PooledConnection { connection: Some(connection), .. }) => {
                Ok(connection.head(request, origin, wait_limit).await?.map(Answer::Http1))
            }
            Self::Own(_) | Self::Left => Err(SendError::Unsent(request)),
            Self::Stream(stream) => {
                stream.is_open = true;
                stream.heard = stream.connection.meter.read();
                let head =
                    stream::head(&stream.connection, request, origin, has_issued_token, wait_limit).await?;
                Ok(head.map(|body| Answer::Http2(Box::new(body))))
            }
        }
    }

    /// The next frame of an answer.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Answer,
        wait_limit: &mut WaitLimit,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match (self, body) {
            (Self::Own(PooledConnection { connection: Some(connection), .. }), Answer::Http1(body)) => {
                connection.poll_frame(body, wait_limit, cx)
            }
            (Self::Stream(stream), Answer::Http2(body)) => {
                body.poll_frame(&stream.connection, wait_limit, cx)
            }
            _ => Poll::Ready(None),
        }
    }

    /// Gives the connection back after an exchange, if it can be used again.
    pub(super) fn give_back(mut self, body: Answer) {
        match (&mut self, &body) {
            (Self::Own(pooled), Answer::Http1(_)) => {
                if let Some(connection) = &mut pooled.connection {
                    connection.finish();
                    pooled.is_fit = connection.is_reusable();
                }
            }
            (Self::Stream(stream), Answer::Http2(body)) => stream.is_open = !body.is_over(),
            _ => {}
        }
        // The stream ends before its place is free.
        drop(body);
    }

    /// Closes an HTTP/1.1 connection after a failed exchange, and replaces it by an idle one if there is one.
    pub(super) fn replace(&mut self) {
        if let Self::Own(pooled) = self {
            pooled.replace();
        }
    }

    /// Closes an HTTP/1.1 connection after a failed exchange. A new one is opened in its place.
    pub(super) fn reopen(&mut self) {
        if let Self::Own(pooled) = self {
            pooled.connection = None;
        }
    }

    /// Leaves a stream whose connection gets no further callers.
    pub(super) fn leave(&mut self) {
        self.retire();
        *self = Self::Left;
    }

    /// Whether nothing at all has come over the connection of this stream since it began.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::Stream(stream) if stream.connection.meter.read() == stream.heard)
    }

    /// Lets no further caller use the connection of this stream.
    pub(super) fn retire(&self) {
        if let Self::Stream(stream) = self {
            stream.pool.retire(stream.lane, stream.id);
        }
    }
}

impl Answer {
    /// The least bytes that are still to come.
    pub(super) fn least(&self, head: &http::HeaderMap) -> u64 {
        match self {
            Self::Http1(body) => body.size_hint().lower(),
            Self::Http2(body) => body.size_hint(head),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_over(),
        }
    }
}

/// A place among the streams of an HTTP/2 connection.
pub(super) struct Stream {
    pool: Arc<Pool>,
    lane: LaneId,
    runtime: runtime::Id,
    id: SharedId,
    pub(super) connection: Arc<Http2>,
    /// Whether the stream is reset if it is dropped now.
    is_open: bool,
    /// Bytes that the connection had read when the stream began.
    heard: u64,
}

impl Stream {
    pub(super) fn new(
        pool: Arc<Pool>,
        at: (LaneId, runtime::Id),
        id: SharedId,
        connection: Arc<Http2>,
    ) -> Self {
        Self { pool, lane: at.0, runtime: at.1, id, connection, is_open: false, heard: 0 }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.connection.end(self.is_open) {
            self.pool.retire(self.lane, self.id);
        }
        let mut state = self.pool.state();
        let left = state.allotment.leave_shared(self.lane, self.id, Instant::now());
        let reap = left.is_idle && left.next.is_none() && !state.reapers.contains(&self.runtime);
        state.forget_if_quiet();
        drop(state);
        drop(left.closing);
        match left.next {
            None if reap => self.pool.reap(),
            next => self.pool.hand_over(next),
        }
    }
}

/// A caller that is not served yet.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    lane: LaneId,
    ticket: Ticket,
    served: Option<oneshot::Receiver<Served>>,
}

impl Waiting<'_> {
    async fn permit(mut self, deadline: Option<Deadline>) -> Result<Place, ExchangeError> {
        let limit = self.pool.config.pool_wait;
        let Some(served) = &mut self.served else { return Err(all_busy()) };
        let served_first = deadline.is_some_and(|deadline| deadline.remaining() <= limit);
        let served = if served_first {
            served.await.ok()
        } else {
            timeout(limit, served).await.ok().and_then(Result::ok)
        };
        if served.is_some() {
            self.served = None;
        }
        served.ok_or_else(all_busy)?.map_err(|failure| ExchangeError::from(*failure))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(served) = self.served.take() {
            self.pool.state().allotment.withdraw(self.lane, self.ticket);
            // A connection that has arrived meanwhile is given back, which takes the lock again.
            drop(served);
        }
    }
}

fn all_busy() -> ExchangeError {
    ExchangeError::new(ErrorKind::Timeout, "all connections are busy")
        .in_phase(Phase::PoolWait)
        .before_execution()
}
