//! The connections of a client, and the exchanges over them.

mod allot;
mod connection;
mod lease;
mod meter;

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header::HOST, uri::Authority};
use http_body_util::Full;
use octollm_core::{deadline::Deadline, error::ErrorKind};
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
    time::Instant,
};

use self::{
    allot::{Allotment, LaneId, Limits, Turn},
    connection::{Connection, Lost},
    lease::Lease,
    meter::WaitLimit,
};
use super::{config::ClientConfig, exchange_error::ExchangeError};
use crate::io::Connector;

/// Connections that are used again, never more of them than the configuration allows. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    config: ClientConfig,
    limits: Limits,
    connector: Arc<dyn Connector>,
    state: Mutex<State>,
}

struct State {
    allotment: Allotment<Box<Connection>, (oneshot::Sender<Lease>, runtime::Id)>,
    lanes: HashMap<Key, LaneId>,
    arms: HashMap<Arc<str>, usize>,
    /// The runtimes that have a task which closes what is idle too long.
    reapers: Vec<runtime::Id>,
}

/// Whose connections they are, where they lead, and which runtime drives their sockets: with another one, nobody would be woken.
#[derive(PartialEq, Eq)]
struct Key {
    arm: Arc<str>,
    origin: Origin,
    runtime: runtime::Id,
}

/// Compared and hashed as it is written, which is much faster than to fold its case; two ways to write one name have
/// connections of their own.
#[derive(Debug, Clone)]
struct Origin(Authority);

/// What an exchange has to observe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Whoever waits stops then: no timer is made that would end later.
    pub(super) deadline: Option<Deadline>,
    /// How long the server may work before it answers.
    pub(super) work: Duration,
}

impl Pool {
    /// For this number of arms. The configuration has been checked.
    pub(super) fn new(config: ClientConfig, connector: Arc<dyn Connector>, arms: usize) -> Self {
        let open = config.max_connections;
        let share = if arms > 1 { (open / 2).max(1) } else { open };
        // Between two, a half is a reserve.
        let reserve = arms > 2;
        let limits =
            Limits { open, idle: config.max_idle, share, reserve, idle_timeout: config.idle_timeout };
        Self(Arc::new(Shared { state: Mutex::new(State::new(limits)), limits, connector, config }))
    }

    /// Sends a request to the origin that its URI names, and reads the answer whole, until the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn exchange(
        &self,
        request: Request<Bytes>,
        arm: &Arc<str>,
        terms: Terms,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let mut is_sending = false;
        // Pinned in place: a future that is handed on by value is copied each time.
        let done = {
            let exchange = pin!(self.exchange_until_done(request, arm, terms, &mut is_sending));
            Deadline::run_until(terms.deadline, exchange).await
        };
        done.unwrap_or_else(|| {
            let error = ExchangeError::of(ErrorKind::DeadlineExceeded);
            Err(if is_sending { error } else { error.before_execution() })
        })
    }

    async fn exchange_until_done(
        &self,
        request: Request<Bytes>,
        arm: &Arc<str>,
        terms: Terms,
        is_sending: &mut bool,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let config = &self.0.config;
        let (origin, mut request) = addressed(request)?;
        // What may be done twice is sent once more if a connection that was used before dies under it.
        let again = request.method().is_idempotent().then(|| request.clone());
        let mut lease = Lease::new(&self.0, arm, &origin, terms.deadline).await?;
        loop {
            let (connection, used_before) = lease.connection(&origin).await?;
            *is_sending = true;
            let mut wait_limit = WaitLimit::new(config.read_idle, config.write_idle, terms);
            let lost = match connection.exchange(request, config.max_answer, &mut wait_limit).await {
                Ok(answer) => {
                    lease.keep();
                    return Ok(answer);
                }
                Err(lost) => lost,
            };
            lease.discard();
            request = match lost {
                Lost::Unsent(unsent) if used_before => {
                    *is_sending = false;
                    *unsent
                }
                Lost::Unsent(_) => return Err(closed_at_once()),
                Lost::Failed(error) => match &again {
                    Some(again) if used_before && error.kind() == ErrorKind::ConnectionLost => again.clone(),
                    _ => return Err(error),
                },
            };
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that what is idle is closed in time.
    fn reap(self: &Arc<Self>) {
        // Outside of a runtime, the next exchange does it.
        let Ok(runtime) = Handle::try_current() else { return };
        let reaper = {
            let mut state = self.state();
            if state.reapers.contains(&runtime.id()) {
                return;
            }
            state.reapers.push(runtime.id());
            Reaper { pool: Arc::downgrade(self), runtime: runtime.id(), is_done: false }
        };
        runtime.spawn(reap_idle(reaper));
    }
}

impl State {
    fn new(limits: Limits) -> Self {
        Self {
            allotment: Allotment::new(limits),
            lanes: HashMap::new(),
            arms: HashMap::new(),
            reapers: Vec::new(),
        }
    }

    fn lane(&mut self, key: Key) -> LaneId {
        let Self { allotment, lanes, arms, .. } = self;
        if let Some(lane) = lanes.get(&key) {
            return *lane;
        }
        let arm = *arms.entry(Arc::clone(&key.arm)).or_insert_with(|| allotment.add_arm());
        *lanes.entry(key).or_insert_with(|| allotment.add_lane(arm))
    }

    /// Gives up what is idle in one runtime.
    fn clear(&mut self, runtime: runtime::Id) -> impl Sized + use<> {
        let lanes = self.lanes.iter().filter(|(key, _)| key.runtime == runtime);
        lanes.flat_map(|(_, lane)| self.allotment.clear(*lane)).collect::<Vec<_>>()
    }

    /// Forgets arms, origins and runtimes that were used once. Nobody holds a lane where nothing is open.
    fn forget_if_quiet(&mut self, limits: Limits) {
        if self.allotment.is_quiet() && !self.lanes.is_empty() {
            (self.allotment, self.lanes, self.arms) =
                (Allotment::new(limits), HashMap::new(), HashMap::new());
        }
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Origin {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.arm.hash(state);
        self.origin.0.as_str().hash(state);
        self.runtime.hash(state);
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

fn closed_at_once() -> ExchangeError {
    ExchangeError::new(ErrorKind::ConnectionLost, "the connection was closed at once").before_execution()
}

/// Give or take a tenth, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1000;
    age.mul_f64(0.9 + random as f64 * 0.0002)
}

/// Removes itself where its runtime ends first, and closes what is idle there.
struct Reaper {
    pool: Weak<Shared>,
    runtime: runtime::Id,
    is_done: bool,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Some(shared) = self.pool.upgrade() {
            let mut state = shared.state();
            state.reapers.retain(|runtime| *runtime != self.runtime);
            let idle = state.clear(self.runtime);
            state.forget_if_quiet(shared.limits);
            drop(state);
            drop(idle);
        }
    }
}

/// Closes what is idle too long, and ends when nothing is idle.
async fn reap_idle(mut reaper: Reaper) {
    loop {
        let next = {
            let Some(shared) = reaper.pool.upgrade() else { return };
            let mut state = shared.state();
            let expired = state.allotment.expire(Instant::now());
            let next = state.allotment.next_expiry();
            if next.is_none() {
                // Under the lock: whoever gives the next one back starts another reaper.
                state.reapers.retain(|runtime| *runtime != reaper.runtime);
                state.forget_if_quiet(shared.limits);
                reaper.is_done = true;
            }
            drop(state);
            drop(expired);
            next
        };
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => return,
        }
    }
}
