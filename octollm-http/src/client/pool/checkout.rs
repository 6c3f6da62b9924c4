//! Checking a connection out of the pool, and giving it back.

use std::{io, sync::Arc, time::Duration};

use http::{Uri, uri::Scheme};
use octollm_core::{deadline::Deadline, error::ErrorKind};
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    Connection, ExchangeError, Key, LaneId, Origin, Permit, Shared,
    allot::Ticket,
    connection::RESTED,
    jittered,
    meter::{Meter, Metered},
};
use crate::io::{Secured, handshake_problem};

/// A connection of the pool, or the permission to open one. When it is dropped, the connection is given back or closed, and the
/// next caller is served.
pub(super) struct PooledConnection {
    pool: Arc<Shared>,
    lane: LaneId,
    runtime: runtime::Id,
    connection: Option<Box<Connection>>,
    /// Whether the connection can be given back.
    is_fit: bool,
    /// Begin of the time without a call; `None` once that is checked.
    idle_since: Option<Instant>,
}

impl PooledConnection {
    /// Waits until the caller is served.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] after the time limit on waiting.
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
        waiting.permit(deadline).await
    }

    fn granted(
        pool: &Arc<Shared>,
        (lane, runtime): (LaneId, runtime::Id),
        permit: Permit<Box<Connection>>,
    ) -> Self {
        let (connection, idle_since) = match permit {
            Permit::Use(connection, since) => (Some(connection), Some(since)),
            Permit::Open(evicted) => {
                drop(evicted);
                (None, None)
            }
        };
        Self { pool: Arc::clone(pool), lane, runtime, is_fit: connection.is_some(), connection, idle_since }
    }

    /// Returns the connection, opened if needed, and whether it was used before. It is closed on drop unless it is
    /// [given back](Self::give_back).
    pub(super) async fn connection(
        &mut self,
        origin: &Origin,
    ) -> Result<(&mut Connection, bool), ExchangeError> {
        let used_before = self.find_alive().await;
        if !used_before {
            let (io, meter) = connect(&self.pool, origin).await?;
            let retires = Instant::now() + jittered(self.pool.config.max_age);
            self.connection = Some(Box::new(Connection::new(io, meter, retires).await?));
        }
        match &mut self.connection {
            Some(connection) => Ok((connection, used_before)),
            None => Err(ExchangeError::new(ErrorKind::Internal, "no connection").before_execution()),
        }
    }

    /// Whether there is a connection that was used before and is still open.
    async fn find_alive(&mut self) -> bool {
        self.is_fit = false;
        while let Some(connection) = &mut self.connection {
            let now = Instant::now();
            let idle =
                self.idle_since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            if idle >= RESTED && connection.sees_close_late() {
                tokio::task::yield_now().await;
            }
            if idle < self.pool.config.idle_timeout && connection.is_alive(now, idle) {
                return true;
            }
            self.discard();
        }
        false
    }

    /// Closes the connection, and replaces it by an idle one if there is one.
    pub(super) fn discard(&mut self) {
        self.connection = None;
        let other = self.pool.state().allotment.replace(self.lane);
        if let Some((connection, since)) = other {
            (self.connection, self.idle_since) = (Some(connection), Some(since));
        }
    }

    /// Gives the connection back after an exchange, if it can be used again.
    pub(super) fn give_back(mut self) {
        self.is_fit = self.connection.as_ref().is_some_and(|connection| connection.is_reusable());
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let connection = self.connection.take().filter(|_| self.is_fit);
        // A connection that is not given back is closed before another one is opened in its place.
        let is_idle = connection.is_some();
        let mut state = self.pool.state();
        let (next, surplus) = match connection {
            Some(connection) => state.allotment.give_back(self.lane, connection, Instant::now()),
            None => (state.allotment.closed(self.lane), None),
        };
        let reap = is_idle && next.is_none() && !state.reapers.contains(&self.runtime);
        state.forget_if_quiet();
        drop(state);
        drop(surplus);
        match next {
            // If the waiting caller has just gone away, this drops the connection, which is given back at once.
            Some(((waiter, runtime), lane, permit)) => {
                drop(waiter.send(Self::granted(&self.pool, (lane, runtime), permit)));
            }
            None if reap => self.pool.reap(),
            None => {}
        }
    }
}

/// A caller that is not served yet.
struct Waiting<'a> {
    pool: &'a Arc<Shared>,
    lane: LaneId,
    ticket: Ticket,
    served: Option<oneshot::Receiver<PooledConnection>>,
}

impl Waiting<'_> {
    async fn permit(mut self, deadline: Option<Deadline>) -> Result<PooledConnection, ExchangeError> {
        let limit = self.pool.config.pool_wait;
        let Some(served) = &mut self.served else { return Err(all_busy()) };
        let served_first = deadline.is_some_and(|deadline| deadline.remaining() <= limit);
        let pooled = if served_first {
            served.await.ok()
        } else {
            timeout(limit, served).await.ok().and_then(Result::ok)
        };
        if pooled.is_some() {
            self.served = None;
        }
        pooled.ok_or_else(all_busy)
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
    ExchangeError::new(ErrorKind::Timeout, "all connections are busy").before_execution()
}

/// # Errors
/// [`ErrorKind::Unreachable`]: nothing was sent.
async fn connect(pool: &Shared, origin: &Origin) -> Result<(Secured<Metered>, Arc<Meter>), ExchangeError> {
    let unusable = |_| ExchangeError::new(ErrorKind::BadRequest, "the origin is no URI").before_execution();
    let to = Uri::builder()
        .scheme(if origin.is_https { Scheme::HTTPS } else { Scheme::HTTP })
        .authority(origin.authority.clone())
        .path_and_query("/")
        .build()
        .map_err(unusable)?;
    let limit = pool.config.connect_timeout;
    let opening = async {
        // Below TLS, so that the meter counts what reaches the socket.
        let (io, meter) = Metered::new(pool.connector.connect(&to).await?);
        Ok((pool.tls.secure(&to, io).await?, meter))
    };
    match timeout(limit, opening).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => {
            if let Some(problem) = handshake_problem(&error) {
                return Err(ExchangeError::not_trusted(problem).caused_by(error));
            }
            Err(ExchangeError::new(ErrorKind::Unreachable, format!("no connection: {}", reason(&error)))
                .caused_by(error))
        }
        Err(_) => Err(ExchangeError::new(ErrorKind::Unreachable, format!("no connection within {limit:?}"))),
    }
}

/// The kind of the error alone, since the text of the system may name addresses.
fn reason(error: &io::Error) -> String {
    use io::ErrorKind::*;
    match error.kind() {
        // Name lookups have no kind.
        kind if error.raw_os_error().is_some() => kind.to_string(),
        kind @ (ConnectionRefused | ConnectionReset | ConnectionAborted | TimedOut | UnexpectedEof
        | BrokenPipe | InvalidData | InvalidInput | PermissionDenied) => kind.to_string(),
        _ => "the host is not known".to_owned(),
    }
}
