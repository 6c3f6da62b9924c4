//! The connections of a client, and the exchanges over them.

mod allot;
mod meter;
mod upload;
mod health;
mod connection;
mod http2;
mod stream;
mod connect;
mod checkout;
mod streamed;

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    future::poll_fn,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Request, Response, Uri,
    uri::{Authority, Scheme},
};
use octollm_core::{
    __private::Gauges,
    deadline::Deadline,
    error::{ErrorKind, Failure},
};
use serde_json::json;
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
    task::coop::consume_budget,
    time::Instant,
};
use tower::BoxError;

use self::{
    allot::{Allotment, LaneId, Limits, Next, Permit, SharedId},
    checkout::{Answer, Place, Served},
    connection::{Connection, SendError, too_large},
    http2::Http2,
    meter::WaitLimit,
    streamed::Download,
    upload::{Upload, repeated},
};
use crate::{
    io::{ClientTls, Connector},
    limits::ClientConfig,
    wire::BodyBuffer,
};

/// The versions of HTTP that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Protocol {
    /// To an `https` URL that which the server prefers (ALPN). To an `http` URL HTTP/1.1, and HTTP/2 while many calls at once go
    /// to a server of octollm, where one connection for all of them costs less.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only: by ALPN to an `https` URL, and without asking the server to an `http` URL (prior knowledge).
    Http2,
}

/// A pool of connections within the limits of the client. It is cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    config: ClientConfig,
    connector: Arc<dyn Connector>,
    tls: ClientTls,
    protocol: Protocol,
    state: Mutex<State>,
}

/// A caller that waits, and its runtime.
type Waiter = (oneshot::Sender<Served>, runtime::Id);

struct State {
    allotment: Allotment<Box<Connection>, Arc<Http2>, Waiter>,
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
pub(crate) struct Origin {
    is_https: bool,
    authority: Authority,
    /// Address of the socket, where it is not looked up.
    address: Option<SocketAddr>,
}

/// What is known of the server of a request. Requests that pass layers have it among their extensions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServerHints {
    /// Address to connect to, in place of the host and port of the URI. Host and TLS name stay those of the URI.
    pub(crate) address: Option<SocketAddr>,
    /// Whether the server is one of octollm, which speaks HTTP/2 on every port.
    pub(crate) speaks_http2: bool,
}

/// The limits of one exchange.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ExchangeLimits {
    /// The caller stops waiting then, so no timer is made that would end later.
    pub(crate) deadline: Option<Deadline>,
    /// Time that the server may work before it answers.
    pub(crate) work: Duration,
    pub(crate) hints: ServerHints,
}

/// The part of an exchange in which a time limit has passed or a connection failed: the detail `phase` of the failure.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Connect,
    PoolWait,
    Write,
    ReadHead,
    ReadBody,
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
    pub(super) fn new(
        config: ClientConfig,
        connector: Arc<dyn Connector>,
        tls: ClientTls,
        protocol: Protocol,
        arms: usize,
    ) -> Self {
        let open = config.max_connections;
        let (share, reserve) = share(open, arms);
        let limits = Limits {
            open,
            idle: config.max_idle.min(open),
            share,
            reserve,
            idle_timeout: config.idle_timeout,
        };
        let state = Mutex::new(State::new(limits));
        let shared = Arc::new(Shared { state, connector, tls, protocol, config });
        GAUGES.add(&shared);
        Self(shared)
    }

    /// Sets the number of arms that share the connections.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) fn set_arms(&self, arms: usize) {
        let (share, reserve) = share(self.0.config.max_connections, arms);
        let served: Vec<_> = {
            let mut state = self.0.state();
            state.allotment.set_share(share, reserve);
            std::iter::from_fn(|| state.allotment.serve()).collect()
        };
        served.into_iter().for_each(|next| self.0.hand_over(Some(next)));
    }

    /// Closes the idle connections of an endpoint that was removed. Running calls go on, and their connections are closed
    /// after them.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) fn forget(&self, origin: &Origin) {
        let mut state = self.0.state();
        let State { lanes, allotment, .. } = &mut *state;
        let gone: Vec<_> = lanes.extract_if(|key, _| key.origin == *origin).collect();
        let closing: Vec<_> = gone.into_iter().flat_map(|(_, lane)| allotment.forget(lane)).collect();
        let served: Vec<_> = std::iter::from_fn(|| allotment.serve()).collect();
        state.forget_if_quiet();
        drop(state);
        drop(closing);
        served.into_iter().for_each(|next| self.0.hand_over(Some(next)));
    }

    /// Sends a request to the origin of its URI and reads the whole answer, until the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, or resets the stream.
    pub(super) async fn exchange(
        &self,
        request: Request<Bytes>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let mut is_sending = false;
        // Pinned in place, since a future that is passed by value is copied each time.
        let done = {
            let exchange = pin!(self.exchange_whole(request.map(Upload::from), arm, limits, &mut is_sending));
            Deadline::run_until(limits.deadline, exchange).await
        };
        done.unwrap_or_else(|| Err(deadline_exceeded(is_sending)))
    }

    /// Sends a request and returns the head of its answer with a body that is read as it arrives. The body has the connection until it
    /// ends. The deadline and the limits on silence hold for the body too. A body of a request that streams is sent once.
    ///
    /// # Cancel safety
    /// That of [`exchange`](Self::exchange).
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) async fn exchange_streamed(
        &self,
        request: Request<Upload>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
    ) -> Result<Response<Download>, ExchangeError> {
        let mut is_sending = false;
        let done = {
            let exchange = pin!(self.exchange_head(request, arm, limits, &mut is_sending));
            Deadline::run_until(limits.deadline, exchange).await
        };
        done.unwrap_or_else(|| Err(deadline_exceeded(is_sending)))
    }

    async fn exchange_head(
        &self,
        request: Request<Upload>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
        is_sending: &mut bool,
    ) -> Result<Response<Download>, ExchangeError> {
        let (origin, request) = addressed(request, &limits)?;
        let mut attempt = Attempt::begin(&self.0, arm, origin, limits, request).await?;
        loop {
            match attempt.head(is_sending).await {
                Ok((answer, wait_limit)) => {
                    return Ok(
                        answer.map(|body| Download::new(attempt.place, body, wait_limit, limits.deadline))
                    );
                }
                Err(failed) => attempt.again(failed, is_sending).await?,
            }
        }
    }

    async fn exchange_whole(
        &self,
        request: Request<Upload>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
        is_sending: &mut bool,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let (origin, request) = addressed(request, &limits)?;
        let mut attempt = Attempt::begin(&self.0, arm, origin, limits, request).await?;
        loop {
            let failed = match attempt.head(is_sending).await {
                Ok((answer, mut wait_limit)) => {
                    let (head, mut body) = answer.into_parts();
                    let max = self.0.config.max_answer;
                    match whole(&mut attempt.place, &head.headers, &mut body, max, &mut wait_limit).await {
                        Ok(bytes) => {
                            attempt.place.give_back(body);
                            return Ok(Response::from_parts(head, bytes));
                        }
                        Err(error) => SendError::Failed(error),
                    }
                }
                Err(failed) => failed,
            };
            attempt.again(failed, is_sending).await?;
        }
    }
}

/// An exchange, which begins again where that is safe.
struct Attempt<'a> {
    pool: &'a Arc<Shared>,
    arm: &'a Arc<str>,
    origin: Origin,
    limits: ExchangeLimits,
    place: Place,
    /// `None` once it is sent.
    request: Option<Request<Upload>>,
    /// The same request, where it may be sent again.
    spare: Option<Request<Upload>>,
    /// Whether the method allows that the request runs twice.
    is_idempotent: bool,
    used_before: bool,
    refusals: u32,
}

/// Connections on which a request is begun that servers have not processed.
const MOST_REFUSALS: u32 = 3;

impl<'a> Attempt<'a> {
    async fn begin(
        pool: &'a Arc<Shared>,
        arm: &'a Arc<str>,
        origin: Origin,
        limits: ExchangeLimits,
        request: Request<Upload>,
    ) -> Result<Self, ExchangeError> {
        let place = Place::new(pool, arm, &origin, &limits).await?;
        let is_idempotent = request.method().is_idempotent();
        let (request, spare) = (Some(request), None);
        Ok(Self {
            pool,
            arm,
            origin,
            limits,
            place,
            request,
            spare,
            is_idempotent,
            used_before: false,
            refusals: 0,
        })
    }

    /// Sends the request and reads the head of its answer.
    async fn head(&mut self, is_sending: &mut bool) -> Result<(Response<Answer>, WaitLimit), SendError> {
        self.used_before = self.place.ready(&self.origin).await.map_err(SendError::Failed)?;
        let request = self.request.take().ok_or_else(|| {
            SendError::Failed(ExchangeError::new(ErrorKind::Internal, "the request was sent already"))
        })?;
        if self.is_idempotent || matches!(self.place, Place::Stream(_)) {
            self.spare = repeated(&request);
        }
        *is_sending = true;
        let config = &self.pool.config;
        let mut wait_limit = WaitLimit::new(config.read_idle, config.write_idle, self.limits);
        let head = self.place.head(request, &self.origin, &mut wait_limit).await?;
        wait_limit.answering();
        Ok((head, wait_limit))
    }

    /// Prepares another attempt after one that failed.
    ///
    /// # Errors
    /// The request may not be sent again.
    async fn again(&mut self, failed: SendError, is_sending: &mut bool) -> Result<(), ExchangeError> {
        let is_reused = self.place.discard();
        let spare = self.spare.take();
        self.request = Some(match failed {
            SendError::Unsent(unsent) if self.used_before || !is_reused => {
                self.count_refusal(closed_at_once())?;
                *is_sending = false;
                *unsent
            }
            SendError::Unsent(_) => return Err(closed_at_once()),
            SendError::Refused(error) => {
                self.count_refusal(error)?;
                *is_sending = false;
                spare.ok_or_else(closed_at_once)?
            }
            SendError::Failed(error) => match spare {
                Some(spare)
                    if self.is_idempotent
                        && self.used_before
                        && error.failure.kind == ErrorKind::ConnectionLost =>
                {
                    spare
                }
                _ => return Err(error),
            },
        });
        if !is_reused {
            self.place.retire();
            self.place = Place::new(self.pool, self.arm, &self.origin, &self.limits).await?;
        }
        Ok(())
    }

    /// # Errors
    /// That of the last one, if there were too many on connections that were new.
    fn count_refusal(&mut self, error: ExchangeError) -> Result<(), ExchangeError> {
        let is_fresh = matches!(self.place, Place::Stream(_));
        self.refusals += u32::from(is_fresh);
        if self.refusals >= MOST_REFUSALS { Err(error) } else { Ok(()) }
    }
}

/// Reads a body to its end.
async fn whole(
    place: &mut Place,
    head: &http::HeaderMap,
    body: &mut Answer,
    max: usize,
    wait_limit: &mut WaitLimit,
) -> Result<Bytes, ExchangeError> {
    if body.least(head) > max as u64 {
        return Err(too_large(max));
    }
    let mut whole = BodyBuffer::default();
    while !body.is_end_stream() {
        let frame = poll_fn(|cx| place.poll_frame(body, wait_limit, cx)).await;
        let Some(frame) = frame else { break };
        // Many small pieces must not hold back the deadline.
        consume_budget().await;
        if let Ok(data) = frame?.into_data() {
            if whole.len() + data.len() > max {
                return Err(too_large(max));
            }
            whole.push(data);
        }
    }
    Ok(whole.into_bytes())
}

/// The most connections of one arm, and whether an arm gets another one only while it holds fewer than are free.
fn share(open: usize, arms: usize) -> (usize, bool) {
    // With two arms a half is the reserve.
    (if arms > 1 { (open / 2).max(1) } else { open }, arms > 2)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that may use an HTTP/2 connection at once.
    fn places(&self, connection: &Http2) -> usize {
        // With none allowed, the first one waits.
        self.config.max_streams.min(connection.allowed()).max(1)
    }

    /// Gives a caller that waited what it is served with.
    fn hand_over(self: &Arc<Self>, next: Option<Next<Box<Connection>, Arc<Http2>, Waiter>>) {
        let mut next = next;
        while let Some(((waiter, runtime), lane, permit)) = next {
            let is_shared = matches!(permit, Permit::Join(..));
            // If the waiting caller has just gone away, this drops the connection, which is given back at once.
            drop(waiter.send(Ok(Place::granted(self, (lane, runtime), permit))));
            // Others may wait for a place on it.
            next = is_shared.then(|| self.state().allotment.serve_joining(lane)).flatten();
        }
    }

    /// Lets no further caller use an HTTP/2 connection. It is closed after its streams.
    fn retire(self: &Arc<Self>, lane: LaneId, id: SharedId) {
        let mut state = self.state();
        let (next, closing) = state.allotment.retire(lane, id);
        state.forget_if_quiet();
        drop(state);
        drop(closing);
        self.hand_over(next);
    }

    /// Changes how many callers may use an HTTP/2 connection.
    fn resize(self: &Arc<Self>, lane: LaneId, id: SharedId, allowed: usize) {
        let places = self.config.max_streams.min(allowed).max(1);
        let joining: Vec<_> = {
            let mut state = self.state();
            state.allotment.resize(lane, id, places);
            std::iter::from_fn(|| state.allotment.serve_joining(lane)).collect()
        };
        joining.into_iter().for_each(|next| self.hand_over(Some(next)));
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

    /// Decides whether the next connection of a lane is shared, which means HTTP/2.
    fn choose_version(
        &mut self,
        lane: LaneId,
        origin: &Origin,
        speaks_http2: bool,
        config: &ClientConfig,
        protocol: Protocol,
    ) {
        let least = if self.allotment.has_shared(lane) { MANY / 2 } else { MANY };
        let is_shared = match protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Auto => {
                (origin.is_https || (speaks_http2 && self.allotment.callers(lane) >= least))
                    && self.allotment.exclusive_until(lane).is_none_or(|until| Instant::now() >= until)
            }
        };
        self.allotment.set_places(lane, if is_shared { config.max_streams } else { 0 });
    }

    /// Removes the idle connections of a runtime.
    fn clear(&mut self, runtime: runtime::Id) -> impl Sized + use<> {
        let lanes = self.lanes.iter().filter(|(key, _)| key.runtime == runtime);
        lanes.flat_map(|(_, lane)| self.allotment.clear(*lane)).collect::<Vec<_>>()
    }

    /// Removes arms, origins and runtimes if nothing is open, so that no lane is in use.
    fn forget_if_quiet(&mut self) {
        if self.allotment.is_quiet() && !self.lanes.is_empty() {
            self.allotment.reset();
            (self.lanes, self.arms) = (HashMap::new(), HashMap::new());
        }
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        self.is_https == other.is_https
            && self.authority.as_str() == other.authority.as_str()
            && self.address == other.address
    }
}

impl Eq for Origin {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.arm.hash(state);
        self.origin.authority.as_str().hash(state);
        if let Some(address) = self.origin.address {
            address.hash(state);
        }
        self.runtime.hash(state);
    }
}

/// Calls to one server at once from which on HTTP/2 costs less than HTTP/1.1. Half as many keep it.
const MANY: usize = 32;

impl Origin {
    /// The origin of a URI; `None` if it names no host.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) fn of(uri: &Uri, address: Option<SocketAddr>) -> Option<Self> {
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        Some(Self { is_https, authority: uri.authority()?.clone(), address })
    }
}

/// Splits the origin off the URI.
fn addressed(
    mut request: Request<Upload>,
    limits: &ExchangeLimits,
) -> Result<(Origin, Request<Upload>), ExchangeError> {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    let is_https = parts.scheme.as_ref() == Some(&Scheme::HTTPS);
    let authority = parts.authority.ok_or_else(|| {
        ExchangeError::new(ErrorKind::BadRequest, "the request names no host to send it to")
            .before_execution()
    })?;
    *request.uri_mut() = parts.path_and_query.map(Uri::from).unwrap_or_default();
    Ok((Origin { is_https, authority, address: limits.hints.address }, request))
}

fn deadline_exceeded(is_sending: bool) -> ExchangeError {
    let failure = Failure::of(ErrorKind::DeadlineExceeded);
    if is_sending { failure } else { failure.before_execution() }.into()
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

    /// Adds the phase in which it failed.
    fn in_phase(mut self, phase: Phase) -> Self {
        let name = match phase {
            Phase::Connect => "connect",
            Phase::PoolWait => "pool_wait",
            Phase::Write => "write",
            Phase::ReadHead => "read_head",
            Phase::ReadBody => "read_body",
        };
        self.failure.details = Some(json!({ "phase": name }));
        self
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

#[cfg(test)]
mod tests;
