//! A connection for one caller, and the permission to open one.

use std::{sync::Arc, time::Duration};

use tokio::{runtime, time::Instant};

use super::{
    Connection, ExchangeError, Failure, LaneId, Origin,
    checkout::Stream,
    connect::{Opened, Versions, open},
    connection::RESTED,
    http2::Http2,
};

type Pool = super::Shared;

/// A connection of the pool for one caller, or the permission to open one.
pub(super) struct PooledConnection {
    pub(super) pool: Arc<Pool>,
    pub(super) lane: LaneId,
    pub(super) runtime: runtime::Id,
    pub(super) connection: Option<Box<Connection>>,
    /// Whether other callers expect to use the connection too.
    pub(super) is_sharing: bool,
    /// Whether the permission has become a place on a shared connection.
    pub(super) is_spent: bool,
    /// Whether the connection can be given back.
    pub(super) is_fit: bool,
    /// Begin of the time without a call; `None` once that is checked.
    pub(super) idle_since: Option<Instant>,
}

impl PooledConnection {
    /// Opens a connection, and returns its first stream if it is shared.
    pub(super) async fn open(&mut self, origin: &Origin) -> Result<Option<Stream>, ExchangeError> {
        let versions = if self.is_sharing { self.pool.versions() } else { Versions::Http1 };
        match open(&self.pool, origin, versions).await {
            Ok(Opened::Http1(connection)) => {
                self.connection = Some(connection);
                self.is_exclusive();
                Ok(None)
            }
            Ok(Opened::Http2(connection)) => Ok(Some(self.share(Arc::new(*connection)))),
            Err(error) => {
                self.fail(&error.failure);
                Err(error)
            }
        }
    }

    /// Shares the connection that was opened with those who wait for it.
    fn share(&mut self, connection: Arc<Http2>) -> Stream {
        let places = self.pool.places(&connection);
        connection.begin();
        let (id, joining) = {
            let mut state = self.pool.state();
            let id = state.allotment.share(self.lane, Arc::clone(&connection), places, Instant::now());
            (self.is_sharing, self.is_spent) = (false, true);
            let lane = self.lane;
            let mut joining: Vec<_> = std::iter::from_fn(|| state.allotment.serve_joining(lane)).collect();
            // For those who have no place on it, others are opened.
            joining.extend(std::iter::from_fn(|| state.allotment.serve()));
            (id, joining)
        };
        connection.spawn(&self.pool, self.lane, id);
        let stream = Stream::new(Arc::clone(&self.pool), (self.lane, self.runtime), id, connection);
        joining.into_iter().for_each(|next| self.pool.hand_over(Some(next)));
        stream
    }

    /// Serves those who waited for a connection that turned out to be for one caller.
    fn is_exclusive(&mut self) {
        if !std::mem::take(&mut self.is_sharing) {
            return;
        }
        let served: Vec<_> = {
            let mut state = self.pool.state();
            state.allotment.not_shared(self.lane);
            state.allotment.set_exclusive(self.lane, Instant::now() + HTTP1_KNOWN);
            std::iter::from_fn(|| state.allotment.serve()).collect()
        };
        served.into_iter().for_each(|next| self.pool.hand_over(Some(next)));
    }

    /// Fails those who waited for a connection that could not be opened.
    fn fail(&mut self, failure: &Failure) {
        if !std::mem::take(&mut self.is_sharing) {
            return;
        }
        let waiters = {
            let mut state = self.pool.state();
            state.allotment.not_shared(self.lane);
            state.allotment.take_unserved(self.lane)
        };
        for (waiter, _) in waiters {
            drop(waiter.send(Err(Box::new(failure.clone()))));
        }
    }

    /// Whether there is a connection that was used before and is still open. It is in use then, and closed on drop.
    pub(super) async fn find_alive(&mut self) -> bool {
        while let Some(connection) = &mut self.connection {
            let now = Instant::now();
            let idle =
                self.idle_since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            if idle >= RESTED && connection.sees_close_late() {
                tokio::task::yield_now().await;
            }
            self.is_fit = false;
            if idle < self.pool.config.idle_timeout && connection.is_alive(now, idle) {
                return true;
            }
            self.replace();
        }
        false
    }

    /// Closes the connection, and replaces it by an idle one if there is one, which is not in use yet.
    pub(super) fn replace(&mut self) {
        self.connection = None;
        let other = self.pool.state().allotment.replace(self.lane);
        if let Some((connection, since)) = other {
            (self.connection, self.idle_since, self.is_fit) = (Some(connection), Some(since), true);
        }
    }
}

/// Time for which a server is known to speak HTTP/1.1 only.
const HTTP1_KNOWN: Duration = Duration::from_secs(300);

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if self.is_spent {
            return;
        }
        let connection = self.connection.take().filter(|_| self.is_fit);
        // A connection that is not given back is closed before another one is opened in its place.
        let is_idle = connection.is_some();
        let mut state = self.pool.state();
        if self.is_sharing {
            state.allotment.not_shared(self.lane);
        }
        let (next, surplus) = match connection {
            Some(connection) => state.allotment.give_back(self.lane, connection, Instant::now()),
            None => (state.allotment.closed(self.lane), None),
        };
        let reap = is_idle && next.is_none() && !state.reapers.contains(&self.runtime);
        state.forget_if_quiet();
        drop(state);
        drop(surplus);
        match next {
            None if reap => self.pool.reap(),
            next => self.pool.hand_over(next),
        }
    }
}
