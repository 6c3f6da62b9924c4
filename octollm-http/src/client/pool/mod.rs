//! The connections of a client, and the exchanges over them.

mod allot;
mod connection;
mod checkout;
mod meter;

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    pin::pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri,
    header::HOST,
    uri::{Authority, Scheme},
};
use http_body_util::Full;
use octollm_core::{
    __private::Gauges,
    deadline::Deadline,
    error::{ErrorKind, Failure},
};
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
    time::Instant,
};
use tower::BoxError;

use self::{
    allot::{Allotment, LaneId, Limits, Permit},
    checkout::PooledConnection,
    connection::{Connection, SendError},
    meter::WaitLimit,
};
use crate::{
    io::{ClientTls, Connector},
    limits::ClientConfig,
};

/// A pool of connections within the limits of the client. It is cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    config: ClientConfig,
    connector: Arc<dyn Connector>,
    tls: ClientTls,
    state: Mutex<State>,
}

struct State {
    limits: Limits,
    allotment: Allotment<Box<Connection>, (oneshot::Sender<PooledConnection>, runtime::Id)>,
    lanes: HashMap<Key, LaneId>,
    arms: HashMap<Arc<str>, usize>,
    /// Runtimes with a task that closes expired connections.
    reapers: Vec<runtime::Id>,
}

/// The arm, the origin and the runtime of a connection. In another runtime its socket would wake no task.
#[derive(PartialEq, Eq)]
struct Key {
    arm: Arc<str>,
    origin: Origin,
    runtime: runtime::Id,
}

/// A scheme, host and port. It is compared and hashed as written, which is much faster than without case; two spellings of a name
/// have separate connections.
#[derive(Debug, Clone)]
struct Origin {
    is_https: bool,
    authority: Authority,
}

/// The limits of one exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExchangeLimits {
    /// The caller stops waiting then, so no timer is made that would end later.
    pub(crate) deadline: Option<Deadline>,
    /// Time that the server may work before it answers.
    pub(crate) work: Duration,
}

/// The failure of an exchange that returned no answer, and its cause. An answer that reports a failure is an answer.
#[derive(Debug)]
pub(crate) struct ExchangeError {
    pub(super) failure: Box<Failure>,
    pub(super) cause: Option<BoxError>,
}

static GAUGES: LazyLock<Gauges<Shared>> = LazyLock::new(|| {
    let connections = ("octollm_client_connections", "Connections to an arm.", &["arm", "state"][..]);
    let waiting = ("octollm_client_waiting", "Requests that wait for a connection to an arm.", &["arm"][..]);
    Gauges::new(&[connections, waiting], |pool, gauges| {
        let counts: Vec<_> = {
            let state = pool.state();
            state
                .arms
                .iter()
                .map(|(arm, number)| (Arc::clone(arm), state.allotment.counts(*number)))
                .collect()
        };
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let [connections, waiting] = gauges else { return };
        for (arm, [in_use, idle, waits]) in counts {
            connections.with_label_values(&[&*arm, "in_use"]).add(count(in_use));
            connections.with_label_values(&[&*arm, "idle"]).add(count(idle));
            waiting.with_label_values(&[&*arm]).add(count(waits));
        }
    })
});

impl Pool {
    /// Creates a pool for this number of arms. The configuration is checked already.
    pub(super) fn new(config: ClientConfig, connector: Arc<dyn Connector>, tls: ClientTls) -> Self {
        let limits = Limits::of(&config);
        let state = Mutex::new(State::new(limits));
        let shared = Arc::new(Shared { state, connector, tls, config });
        GAUGES.add(&shared);
        Self(shared)
    }

    /// Sets the number of arms, which share the connections.
    pub(super) fn set_arms(&self, arms: usize) {
        let state = &mut *self.0.state();
        state.limits = state.limits.shared_by(arms);
        state.allotment.set_limits(state.limits);
    }

    /// Sends a request to the origin of its URI and reads the whole answer, until the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn exchange(
        &self,
        request: Request<Bytes>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let mut is_sending = false;
        // Pinned in place, since a future that is passed by value is copied each time.
        let done = {
            let exchange = pin!(self.exchange_until_done(request, arm, limits, &mut is_sending));
            Deadline::run_until(limits.deadline, exchange).await
        };
        done.unwrap_or_else(|| {
            let failure = Failure::of(ErrorKind::DeadlineExceeded);
            Err(if is_sending { failure } else { failure.before_execution() }.into())
        })
    }

    async fn exchange_until_done(
        &self,
        request: Request<Bytes>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
        is_sending: &mut bool,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let config = &self.0.config;
        let (origin, mut request) = addressed(request)?;
        // An idempotent method is sent again if a connection that was used before is lost.
        let again = request.method().is_idempotent().then(|| request.clone());
        let mut pooled = PooledConnection::new(&self.0, arm, &origin, limits.deadline).await?;
        loop {
            let (connection, used_before) = pooled.connection(&origin).await?;
            *is_sending = true;
            let mut wait_limit = WaitLimit::new(config.read_idle, config.write_idle, limits);
            let failed = match connection.exchange(request, config.max_answer, &mut wait_limit).await {
                Ok(answer) => {
                    pooled.give_back();
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            pooled.discard();
            request = match failed {
                SendError::Unsent(unsent) if used_before => {
                    *is_sending = false;
                    *unsent
                }
                SendError::Unsent(_) => return Err(closed_at_once()),
                SendError::Failed(error) => match &again {
                    Some(again) if used_before && error.failure.kind == ErrorKind::ConnectionLost => {
                        again.clone()
                    }
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

    /// Spawns a task that closes expired connections, unless there is one.
    fn reap(self: &Arc<Self>) {
        // Outside a runtime the next exchange does this.
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
            limits,
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

    /// Removes the idle connections of a runtime.
    fn clear(&mut self, runtime: runtime::Id) -> impl Sized + use<> {
        let lanes = self.lanes.iter().filter(|(key, _)| key.runtime == runtime);
        lanes.flat_map(|(_, lane)| self.allotment.clear(*lane)).collect::<Vec<_>>()
    }

    /// Removes arms, origins and runtimes if nothing is open, so that no lane is in use.
    fn forget_if_quiet(&mut self) {
        if self.allotment.is_quiet() && !self.lanes.is_empty() {
            (self.allotment, self.lanes, self.arms) =
                (Allotment::new(self.limits), HashMap::new(), HashMap::new());
        }
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.is_https == other.is_https && self.authority.as_str() == other.authority.as_str()
    }
}

impl Eq for Origin {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.arm.hash(state);
        self.origin.authority.as_str().hash(state);
        self.runtime.hash(state);
    }
}

/// Splits the origin off the URI, and adds `Host` if it is missing.
fn addressed(mut request: Request<Bytes>) -> Result<(Origin, Request<Full<Bytes>>), ExchangeError> {
    let unusable = || {
        ExchangeError::new(ErrorKind::BadRequest, "the request names no host to send it to")
            .before_execution()
    };
    let parts = std::mem::take(request.uri_mut()).into_parts();
    let is_https = parts.scheme.as_ref() == Some(&Scheme::HTTPS);
    let authority = parts.authority.ok_or_else(unusable)?;
    *request.uri_mut() = parts.path_and_query.map(Uri::from).unwrap_or_default();
    if !request.headers().contains_key(HOST) {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| unusable())?;
        request.headers_mut().insert(HOST, host);
    }
    Ok((Origin { is_https, authority }, request.map(Full::new)))
}

fn closed_at_once() -> ExchangeError {
    ExchangeError::new(ErrorKind::ConnectionLost, "the connection was closed at once").before_execution()
}

/// Adds or subtracts up to a tenth, so that connections opened together do not end together.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1000;
    age.mul_f64(0.9 + random as f64 * 0.0002)
}

/// The task that closes expired connections. If its runtime ends first, the connections of that runtime are closed.
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
            state.forget_if_quiet();
            drop(state);
            drop(idle);
        }
    }
}

/// Closes expired connections, and ends when none is idle.
async fn reap_idle(mut reaper: Reaper) {
    loop {
        let next = {
            let Some(shared) = reaper.pool.upgrade() else { return };
            let mut state = shared.state();
            let expired = state.allotment.expire(Instant::now());
            let next = state.allotment.next_expiry();
            if next.is_none() {
                // Under the lock: the next connection that is given back starts another reaper.
                state.reapers.retain(|runtime| *runtime != reaper.runtime);
                state.forget_if_quiet();
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

impl ExchangeError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Failure::new(kind, message).into()
    }

    /// The failure of a TLS handshake, which another attempt does not solve.
    pub(super) fn not_trusted(problem: &'static str) -> Self {
        let mut failure = Failure::new(ErrorKind::Unreachable, format!("no connection: {problem}"));
        failure.retryable = false;
        Self::from(failure).before_execution()
    }

    /// Marks the request as not sent, so that any request may be sent again.
    pub(super) fn before_execution(mut self) -> Self {
        self.failure.may_have_executed = false;
        self
    }

    pub(super) fn caused_by(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl From<Failure> for ExchangeError {
    fn from(failure: Failure) -> Self {
        Self { failure: Box::new(failure), cause: None }
    }
}

/// Restores what passed through the layers of a user. A [`Failure`] is taken as it is, and any other error becomes the cause.
impl From<BoxError> for ExchangeError {
    fn from(error: BoxError) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(ours) => return *ours,
            Err(error) => error,
        };
        match error.downcast::<Failure>() {
            Ok(failure) => (*failure).into(),
            Err(foreign) => Self::new(ErrorKind::Internal, "a layer of the client failed").caused_by(foreign),
        }
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        *error.failure
    }
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl Error for ExchangeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}
