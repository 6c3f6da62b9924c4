//! The connections of a client, and the calls over them.

mod connect;
mod connection;
mod idle;
mod meter;
mod patience;

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header::HOST};
use http_body_util::Full;
use octollm_core::{deadline::Deadline, error::ErrorKind};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use self::{
    connection::{Connection, Lost},
    idle::{IdleSet, Origin},
    patience::Patience,
};
use super::{config::ClientConfig, exchange_error::ExchangeError};

/// Connections that are kept and used again, never more than the configuration allows. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    config: ClientConfig,
    /// One for each call that may hold a connection.
    permits: Semaphore,
    /// How many connections there are, busy and idle.
    open: Arc<AtomicUsize>,
    idle: Mutex<Idle>,
}

struct Idle {
    set: IdleSet<Box<Connection>>,
    /// Whether a task is there that closes what rests too long.
    reaped: bool,
}

/// Counts a connection as open for as long as it lives.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that rested for so long may have been closed by the server without our having looked.
const RESTED: Duration = Duration::from_millis(10);

impl Pool {
    /// The configuration has been checked.
    pub(super) fn new(config: ClientConfig) -> Self {
        let set = IdleSet::new(config.max_idle, config.idle_timeout);
        Self(Arc::new(Shared {
            permits: Semaphore::new(config.max_connections),
            open: Arc::default(),
            idle: Mutex::new(Idle { set, reaped: false }),
            config,
        }))
    }

    /// Sends a request to the origin that its URI names, and reads the answer whole.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn exchange(
        &self,
        request: Request<Bytes>,
        deadline: Option<Deadline>,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let (origin, request) = addressed(request)?;
        // Held until behind the connection, so that one more never finds all connections taken.
        let _permit = self.permit().await?;
        // What may be done twice is sent once more if a connection that was used before dies under it.
        let again = request.method().is_idempotent().then(|| request.clone());
        let config = &self.0.config;
        let mut patience = Patience::new(config.read_idle, config.write_idle, deadline);
        let mut request = request;
        while let Some(mut connection) = self.rested(&origin).await {
            match connection.exchange(request, config.max_answer, &mut patience).await {
                Ok(answer) => return Ok(self.done(origin, connection, answer)),
                Err(Lost::Unsent(unsent)) => request = *unsent,
                Err(Lost::Failed(error)) => match (&again, error.kind()) {
                    (Some(again), ErrorKind::ConnectionLost) => request = again.clone(),
                    _ => return Err(error),
                },
            }
        }
        let mut connection = self.fresh(&origin).await?;
        match connection.exchange(request, config.max_answer, &mut patience).await {
            Ok(answer) => Ok(self.done(origin, connection, answer)),
            Err(Lost::Unsent(_)) => {
                Err(ExchangeError::new(ErrorKind::ConnectionLost, "the connection was closed at once")
                    .before_execution())
            }
            Err(Lost::Failed(error)) => Err(error),
        }
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, ExchangeError> {
        if let Ok(permit) = self.0.permits.try_acquire() {
            return Ok(permit);
        }
        match tokio::time::timeout(self.0.config.pool_wait, self.0.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(ExchangeError::new(ErrorKind::Timeout, "all connections are busy").before_execution()),
        }
    }

    /// A connection that was used before and is still good.
    async fn rested(&self, origin: &Origin) -> Option<Box<Connection>> {
        loop {
            let now = Instant::now();
            let (mut connection, rest) = self.idle().set.take(origin, now)?;
            if rest >= self.0.config.idle_timeout {
                continue;
            }
            if rest >= RESTED {
                // Lets the runtime look at its sockets, so that a close by the server is known.
                tokio::task::yield_now().await;
            }
            if connection.is_alive(now) {
                return Some(connection);
            }
        }
    }

    async fn fresh(&self, origin: &Origin) -> Result<Box<Connection>, ExchangeError> {
        let slot = self.slot();
        let socket = connect::connect(&origin.0, self.0.config.connect_timeout).await?;
        let retires = Instant::now() + jittered(self.0.config.max_age);
        Connection::new(socket, retires, slot).await.map(Box::new)
    }

    /// Room for one more connection: an idle one goes where there would be too many.
    fn slot(&self) -> Slot {
        let slot = Slot(Arc::clone(&self.0.open));
        if slot.0.fetch_add(1, Ordering::Relaxed) >= self.0.config.max_connections {
            // Busy ones have permits, and we have one without a connection: so one is idle.
            let evicted = self.idle().set.evict();
            drop(evicted);
        }
        slot
    }

    fn done(&self, origin: Origin, connection: Box<Connection>, answer: Response<Bytes>) -> Response<Bytes> {
        if connection.is_reusable() {
            let mut idle = self.idle();
            let surplus = idle.set.put(origin, connection, Instant::now());
            let reap = !std::mem::replace(&mut idle.reaped, true);
            drop(idle);
            drop(surplus);
            if reap {
                tokio::spawn(reap_idle(Reaper { pool: Arc::downgrade(&self.0), retired: false }));
            }
        }
        answer
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.0.idle()
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Splits the origin off, and names it in the head where the head does not.
fn addressed(mut request: Request<Bytes>) -> Result<(Origin, Request<Full<Bytes>>), ExchangeError> {
    let unusable = || {
        ExchangeError::new(ErrorKind::BadRequest, "the request names no host to send it to")
            .before_execution()
    };
    let parts = std::mem::take(request.uri_mut()).into_parts();
    let origin = parts.authority.ok_or_else(unusable)?;
    *request.uri_mut() = parts.path_and_query.map(Uri::from).unwrap_or_default();
    if !request.headers().contains_key(HOST) {
        let host = HeaderValue::from_str(origin.as_str()).map_err(|_| unusable())?;
        request.headers_mut().insert(HOST, host);
    }
    Ok((Origin(origin), request.map(Full::new)))
}

/// Give or take a tenth, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1000;
    age.mul_f64(0.9 + random as f64 * 0.0002)
}

/// Says that nobody reaps any more, however the task ends.
struct Reaper {
    pool: Weak<Shared>,
    retired: bool,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if !self.retired
            && let Some(shared) = self.pool.upgrade()
        {
            shared.idle().reaped = false;
        }
    }
}

/// Closes what rests too long, and ends when nothing rests.
async fn reap_idle(mut reaper: Reaper) {
    loop {
        let next = {
            let Some(shared) = reaper.pool.upgrade() else { return };
            let mut idle = shared.idle();
            let expired = idle.set.expire(Instant::now());
            let next = idle.set.next_expiry();
            if next.is_none() {
                // Told under the lock: whoever puts the next one there starts another reaper.
                idle.reaped = false;
                reaper.retired = true;
            }
            drop(idle);
            drop(expired);
            next
        };
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => return,
        }
    }
}
