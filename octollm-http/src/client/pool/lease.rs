//! A connection on loan from the pool.

use std::{io, sync::Arc, time::Duration};

use http::Uri;
use octollm_core::{deadline::Deadline, error::ErrorKind};
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{Connection, ExchangeError, Key, LaneId, Origin, Shared, Turn, allot::Ticket, jittered};
use crate::io::BoxIo;

/// The right to one connection. When it is dropped, the connection is given back or closed, and the next caller served.
pub(super) struct Lease {
    pool: Arc<Shared>,
    lane: LaneId,
    runtime: runtime::Id,
    connection: Option<Box<Connection>>,
    /// Whether the connection can be given back.
    is_fit: bool,
    /// Since when the connection has been idle; `None` once that has been looked at.
    idle_since: Option<Instant>,
}

/// A server may have closed a connection that was idle for so long without the runtime having looked at its socket.
const RESTED: Duration = Duration::from_micros(30);

impl Lease {
    /// A connection, or room for one, as soon as it is this caller's turn.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] where that takes too long.
    pub(super) async fn new(
        pool: &Arc<Shared>,
        arm: &Arc<str>,
        origin: &Origin,
        deadline: Option<Deadline>,
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
            match state.allotment.ask(lane) {
                Some(turn) => {
                    drop(state);
                    return Ok(Self::granted(pool, (lane, runtime), turn));
                }
                None => {
                    let (sender, served) = oneshot::channel();
                    let ticket = state.allotment.wait(lane, (sender, runtime));
                    Waiting { pool, lane, ticket, served: Some(served) }
                }
            }
        };
        waiting.turn(deadline).await
    }

    fn granted(
        pool: &Arc<Shared>,
        (lane, runtime): (LaneId, runtime::Id),
        turn: Turn<Box<Connection>>,
    ) -> Self {
        let (connection, idle_since) = match turn {
            Turn::Use(connection, since) => (Some(connection), Some(since)),
            Turn::Open(evicted) => {
                drop(evicted);
                (None, None)
            }
        };
        Self { pool: Arc::clone(pool), lane, runtime, is_fit: connection.is_some(), connection, idle_since }
    }

    /// The connection, and whether it was used before. From now on it is closed, unless it is [kept](Self::keep).
    pub(super) async fn connection(
        &mut self,
        origin: &Origin,
    ) -> Result<(&mut Connection, bool), ExchangeError> {
        let used_before = self.find_alive().await;
        if !used_before {
            let socket = connect(&self.pool, origin).await?;
            let retires = Instant::now() + jittered(self.pool.config.max_age);
            self.connection = Some(Box::new(Connection::new(socket, retires).await?));
        }
        match &mut self.connection {
            Some(connection) => Ok((connection, used_before)),
            None => Err(ExchangeError::new(ErrorKind::Internal, "no connection").before_execution()),
        }
    }

    /// Whether there is a connection that was used before and is still good.
    async fn find_alive(&mut self) -> bool {
        self.is_fit = false;
        while let Some(connection) = &mut self.connection {
            let now = Instant::now();
            let idle =
                self.idle_since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            if idle >= RESTED {
                // Lets the runtime look at its sockets, so that a close by the server is known.
                tokio::task::yield_now().await;
            }
            if idle < self.pool.config.idle_timeout && connection.is_alive(now, idle) {
                return true;
            }
            self.discard();
        }
        false
    }

    /// Closes the connection. Another one that is idle takes its place, where there is one.
    pub(super) fn discard(&mut self) {
        self.connection = None;
        let other = self.pool.state().allotment.replace(self.lane);
        if let Some((connection, since)) = other {
            (self.connection, self.idle_since) = (Some(connection), Some(since));
        }
    }

    /// The exchange has ended well: the connection can be used again, as far as it says.
    pub(super) fn keep(mut self) {
        self.is_fit = self.connection.as_ref().is_some_and(|connection| connection.is_reusable());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let connection = self.connection.take().filter(|_| self.is_fit);
        // What is not given back is closed by now, before another is opened in its place.
        let is_idle = connection.is_some();
        let mut state = self.pool.state();
        let (next, surplus) = match connection {
            Some(connection) => state.allotment.give_back(self.lane, connection, Instant::now()),
            None => (state.allotment.closed(self.lane), None),
        };
        let reap = is_idle && next.is_none() && !state.reapers.contains(&self.runtime);
        state.forget_if_quiet(self.pool.limits);
        drop(state);
        drop(surplus);
        match next {
            // Where the waiter has just gone away, this drops the lease, which is given back at once.
            Some(((waiter, runtime), lane, turn)) => {
                drop(waiter.send(Self::granted(&self.pool, (lane, runtime), turn)));
            }
            None if reap => self.pool.reap(),
            None => {}
        }
    }
}

/// A caller whose turn it is not yet.
struct Waiting<'a> {
    pool: &'a Arc<Shared>,
    lane: LaneId,
    ticket: Ticket,
    served: Option<oneshot::Receiver<Lease>>,
}

impl Waiting<'_> {
    async fn turn(mut self, deadline: Option<Deadline>) -> Result<Lease, ExchangeError> {
        let limit = self.pool.config.pool_wait;
        let Some(served) = &mut self.served else { return Err(all_busy()) };
        let served_first = deadline.is_some_and(|deadline| deadline.remaining() <= limit);
        let lease = if served_first {
            served.await.ok()
        } else {
            timeout(limit, served).await.ok().and_then(Result::ok)
        };
        if lease.is_some() {
            self.served = None;
        }
        lease.ok_or_else(all_busy)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(served) = self.served.take() {
            self.pool.state().allotment.withdraw(self.lane, self.ticket);
            // A lease that has come meanwhile is given back, which takes the lock again.
            drop(served);
        }
    }
}

fn all_busy() -> ExchangeError {
    ExchangeError::new(ErrorKind::Timeout, "all connections are busy").before_execution()
}

/// # Errors
/// [`ErrorKind::Unreachable`]: nothing was sent.
async fn connect(pool: &Shared, origin: &Origin) -> Result<BoxIo, ExchangeError> {
    let unusable = |_| ExchangeError::new(ErrorKind::BadRequest, "the origin is no URI").before_execution();
    let to = Uri::builder()
        .scheme("http")
        .authority(origin.0.clone())
        .path_and_query("/")
        .build()
        .map_err(unusable)?;
    let limit = pool.config.connect_timeout;
    match timeout(limit, pool.connector.connect(&to)).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => {
            Err(ExchangeError::new(ErrorKind::Unreachable, format!("no connection: {}", reason(&error)))
                .with_source(error))
        }
        Err(_) => Err(ExchangeError::new(ErrorKind::Unreachable, format!("no connection within {limit:?}"))),
    }
}

/// The kind alone: the system's own text may name addresses.
fn reason(error: &io::Error) -> String {
    use io::ErrorKind::*;
    match error.kind() {
        // Name lookups have no kind of their own.
        kind if error.raw_os_error().is_some() => kind.to_string(),
        kind @ (ConnectionRefused | ConnectionReset | ConnectionAborted | TimedOut | UnexpectedEof
        | BrokenPipe | InvalidData | InvalidInput | PermissionDenied) => kind.to_string(),
        _ => "the host is not known".to_owned(),
    }
}
