//! The connections of a client, and the exchanges over them.

mod failed;
mod allot;
mod meter;
mod upload;
mod health;
mod connection;
mod http2;
mod stream;
mod connect;
mod state;
mod pooled;
mod checkout;
mod attempt;
mod streamed;
#[cfg(feature = "ws")]
mod upgrade;

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Scheme};
use octollm_core::{
    __private::Gauges,
    deadline::Deadline,
    error::{ErrorKind, Failure},
};
use tokio::{runtime::Handle, time::Instant};

use self::{
    allot::{LaneId, Limits, Next, Permit, SharedId},
    attempt::{Attempt, whole},
    checkout::Place,
    connection::{Connection, SendError},
    failed::Phase,
    http2::Http2,
    state::{Key, Reaper, State, Waiter, reap_idle},
};
use crate::{
    io::{ClientTls, Connector},
    limits::ClientConfig,
};

pub(super) use self::connection::too_large;
pub(crate) use self::{failed::ExchangeError, state::Origin, streamed::Download, upload::Upload};

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

/// The future of an exchange.
pub(super) type Exchanging<'a> =
    Pin<Box<dyn Future<Output = Result<Response<Bytes>, ExchangeError>> + Send + 'a>>;

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

/// What is known of the server of a request. Requests that pass layers have it among their extensions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServerHints {
    /// Address to connect to, in place of the host and port of the URI. Host and TLS name stay those of the URI.
    pub(crate) address: Option<SocketAddr>,
    /// Whether the server is one of octollm, which speaks HTTP/2 on every port.
    pub(crate) speaks_http2: bool,
    /// Whether the authorization of the request is a token that this client has issued.
    pub(crate) has_issued_token: bool,
}

/// The limits of one exchange.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ExchangeLimits {
    /// The caller stops waiting then, so no timer is made that would end later.
    pub(crate) deadline: Option<Deadline>,
    /// Time that the server may work before it answers.
    pub(crate) work: Duration,
    pub(crate) hints: ServerHints,
    /// A time before the exchange, if one is known: where it decides, the clock is not read.
    pub(crate) begun: Option<Instant>,
}

/// The limits on the silence of a connection.
#[cfg(feature = "ws")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct PingLimits {
    /// Time without a byte after which a ping is sent, and within which it is answered.
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// Time limit on a write.
    pub(crate) write: Duration,
    /// Time for which an idle connection stays open.
    pub(crate) idle: Duration,
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

    /// The largest answer, in bytes.
    pub(crate) fn max_answer(&self) -> usize {
        self.0.config.max_answer
    }

    /// The limits on the silence of a connection that is no longer one of HTTP.
    #[cfg(feature = "ws")]
    pub(crate) fn ping_limits(&self) -> PingLimits {
        let ClientConfig { ping_interval, ping_timeout, write_idle, idle_timeout, .. } = self.0.config;
        PingLimits { interval: ping_interval, timeout: ping_timeout, write: write_idle, idle: idle_timeout }
    }

    /// Sets the number of arms that share the connections.
    pub(crate) fn set_arms(&self, arms: usize) {
        let (share, reserve) = share(self.0.config.max_connections, arms);
        let served: Vec<_> = {
            let mut state = self.0.state();
            state.allotment.set_share(share, reserve);
            std::iter::from_fn(|| state.allotment.serve()).collect()
        };
        served.into_iter().for_each(|next| self.0.hand_over(Some(next)));
    }

    /// Closes the idle connections of an arm to an endpoint that was removed. Running calls go on, and their connections are
    /// closed after them.
    pub(crate) fn forget(&self, arm: &str, origin: &Origin) {
        let mut state = self.0.state();
        let State { lanes, allotment, .. } = &mut *state;
        let gone: Vec<_> = lanes.extract_if(|key, _| *key.arm == *arm && key.origin == *origin).collect();
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
    pub(super) fn exchange<'a>(
        &'a self,
        request: Request<Bytes>,
        arm: &'a Arc<str>,
        limits: ExchangeLimits,
    ) -> Exchanging<'a> {
        // The future of an `async fn` has room for each of its arguments, and for those of each function that it calls.
        let request = Box::new(request.map(Upload::from));
        // Boxed apart from the call: an allocator is slower at futures of more than 1 KiB.
        Box::pin(async move {
            let mut is_sending = false;
            // Pinned in place, since a future that is passed by value is copied each time.
            let done = {
                let exchange = pin!(self.exchange_whole(request, arm, limits, &mut is_sending));
                Deadline::run_until(limits.deadline, exchange).await
            };
            done.unwrap_or_else(|| Err(deadline_exceeded(is_sending)))
        })
    }

    /// Sends a request and returns the head of its answer with a body that is read as it arrives. The body has the connection until it
    /// ends. The deadline and the limits on silence hold for the body too. A body of a request that streams is sent once.
    ///
    /// # Cancel safety
    /// That of [`exchange`](Self::exchange).
    pub(crate) async fn exchange_streamed(
        &self,
        request: Request<Upload>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
    ) -> Result<Response<Download>, ExchangeError> {
        let mut is_sending = false;
        let done = {
            let exchange = pin!(self.exchange_head(Box::new(request), arm, limits, &mut is_sending));
            Deadline::run_until(limits.deadline, exchange).await
        };
        done.unwrap_or_else(|| Err(deadline_exceeded(is_sending)))
    }

    async fn exchange_head(
        &self,
        request: Box<Request<Upload>>,
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
        request: Box<Request<Upload>>,
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
        self.config.max_streams.min(connection.allowed())
    }

    /// Gives a caller that waited what it is served with, and serves all others for whom there is room. An event can make room for
    /// several, such as the end of a connection that they were to share before it was open.
    fn hand_over(self: &Arc<Self>, next: Option<Next<Box<Connection>, Arc<Http2>, Waiter>>) {
        let mut next = next;
        while let Some(((waiter, runtime), lane, permit)) = next {
            let (is_shared, is_returned) =
                (matches!(permit, Permit::Join(..)), matches!(permit, Permit::Use(..)));
            // If the waiting caller has just gone away, this drops the connection, which is given back at once.
            drop(waiter.send(Ok(Place::granted(self, (lane, runtime), permit))));
            // One that was given back is room for one.
            if is_returned {
                return;
            }
            let mut state = self.state();
            // Others may wait for a place on it.
            let joining = if is_shared { state.allotment.serve_joining(lane) } else { None };
            next = joining.or_else(|| state.allotment.serve());
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

    /// Changes how many callers may use an HTTP/2 connection. One that allows no streams any more takes no further callers, since
    /// it may never allow any.
    fn resize(self: &Arc<Self>, lane: LaneId, id: SharedId, allowed: usize) {
        if allowed == 0 {
            return self.retire(lane, id);
        }
        let places = self.config.max_streams.min(allowed);
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

/// Splits the origin off the URI.
fn addressed(
    mut request: Box<Request<Upload>>,
    limits: &ExchangeLimits,
) -> Result<(Origin, Box<Request<Upload>>), ExchangeError> {
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

/// Adds or subtracts up to a tenth, so that connections opened together do not end together.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1000;
    age.mul_f64(0.9 + random as f64 * 0.0002)
}

#[cfg(test)]
mod tests;
