//! A server that listens: accepting connections, and shutting down.

use std::{
    fmt,
    future::{Future, IntoFuture, pending},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use octollm_core::{bus::EventBus, card::ArmCard, error::ConfigError, orchestrator::Orchestrator};
#[cfg(unix)]
use tokio::signal::unix::{self, SignalKind};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinSet, unconstrained},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    announcing::{Announcer, Announcing, left},
    arm::HealthState,
    connection::Connections,
    ending::Reason,
    service::HttpService,
};
use crate::io::{Acceptor, Listener};

/// A server that listens: by default on TCP, with or without TLS. Awaiting it is the same as [`run`](Self::run).
pub struct BoundServer<A = Listener> {
    acceptor: A,
    service: HttpService,
    health: Arc<HealthState>,
    orchestrator: Option<Arc<dyn Orchestrator>>,
    bus: Option<Arc<dyn EventBus>>,
    announcer: Option<Announcer>,
    /// For the log.
    url: Option<String>,
}

/// The parts of a server that is built.
pub(crate) struct Built {
    pub(crate) service: HttpService,
    pub(crate) health: Arc<HealthState>,
    pub(crate) orchestrator: Option<Arc<dyn Orchestrator>>,
    pub(crate) bus: Option<Arc<dyn EventBus>>,
    /// Where its card is registered, and for how long.
    pub(crate) announcing: (Announcing, ArmCard, Duration),
}

/// Time limit on closing an orchestrator. After it the leases of its tasks expire by themselves.
const CLOSE: Duration = Duration::from_secs(5);
/// Time limit on dropping what is given up.
const DROP: Duration = Duration::from_secs(1);
/// Pause after a failed accept, such as one without a free file descriptor.
const BACK_OFF: Duration = Duration::from_millis(100);

impl BoundServer {
    /// The address that the server listens on; `0.0.0.0:0` if the system does not return it.
    pub fn local_addr(&self) -> SocketAddr {
        self.acceptor.local_addr().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)))
    }

    /// The address as a URL, such as `http://127.0.0.1:8103`.
    pub fn url(&self) -> String {
        let scheme = if self.acceptor.is_encrypted() { "https" } else { "http" };
        format!("{scheme}://{}", self.local_addr())
    }

    /// Logs the address as well, and registers it where the server has no other URL.
    pub(crate) fn with_url(acceptor: Listener, built: Built) -> Result<Self, ConfigError> {
        let scheme = if acceptor.is_encrypted() { "https" } else { "http" };
        let address = acceptor.local_addr().ok().filter(|address| !address.ip().is_unspecified());
        let server = Self::new(acceptor, built, address.map(|address| format!("{scheme}://{address}")))?;
        Ok(Self { url: Some(server.url()), ..server })
    }
}

impl<A: Acceptor> BoundServer<A> {
    /// `url` is where others can reach it, if that is known.
    pub(crate) fn new(acceptor: A, built: Built, url: Option<String>) -> Result<Self, ConfigError> {
        let Built { service, health, orchestrator, bus, announcing: (announcing, card, lifetime) } = built;
        let announcer = announcing.of(card, lifetime, url)?;
        Ok(Self { acceptor, service, health, orchestrator, bus, announcer, url: None })
    }

    /// Serves until the future is dropped. Signals are not handled: see [`run_until_signal`](Self::run_until_signal).
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run(self) {
        self.run_until(pending()).await;
    }

    /// Serves until SIGTERM or Ctrl-C, then shuts down as [`run_until`](Self::run_until) does.
    ///
    /// After SIGTERM the server first accepts requests for [`drain_notice`](super::Server::drain_notice) while `GET /ready` answers
    /// 503, so that load balancers stop sending. A second signal closes everything at once: what still runs is given up, and the
    /// orchestrator is not closed, so that its tasks stay leased.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run_until_signal(self) {
        let notice = self.service.config().drain_notice;
        let (mut first, mut second) = (Signals::listen(), Signals::listen());
        let shutdown = async move { (first.next().await == Signal::Terminate).then_some(notice) };
        let at_once = async move {
            second.next().await;
            second.next().await;
        };
        self.serve(shutdown, at_once).await;
    }

    /// Serves until `shutdown` completes, then shuts down gracefully.
    ///
    /// The server first leaves the orchestrators at which it is [registered](super::Server::register), within 2 s, and serves meanwhile.
    /// Then it accepts no more connections. Running requests have [`drain_grace`](super::Server::drain_grace) to finish. What
    /// runs after that is given up: it is dropped, logged, counted in `octollm_http_given_up_total`, and published on the
    /// [bus](super::Server::bus). An [orchestrator](super::Server::orchestrator) starts no more tasks; its running tasks have the same
    /// time. Then it is [closed](Orchestrator::close), within 5 s.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        let shutdown = async {
            shutdown.await;
            None
        };
        self.serve(shutdown, pending()).await;
    }

    /// Serves until one of the two completes. After `shutdown`, running requests may finish until `at_once` completes. `shutdown`
    /// returns for how long the server still accepts requests although it is not ready.
    async fn serve(
        self,
        shutdown: impl Future<Output = Option<Duration>>,
        at_once: impl Future<Output = ()>,
    ) {
        let Self { acceptor, service, health, orchestrator, bus, mut announcer, url } = self;
        let (limit, grace) = (service.config().max_connections, service.config().drain_grace);
        let (drain, (open, closed)) = (CancellationToken::new(), mpsc::channel(1));
        let connections = Arc::new(Connections::new(service.clone(), health.clone(), open));
        let mut incoming = Incoming { acceptor, places: Arc::new(Semaphore::new(limit)) };
        let mut running = JoinSet::new();
        let serve = |(opening, place): (A::Opening, Place)| {
            let (connections, drain) = (connections.clone(), drain.child_token());
            async move { connections.serve(opening, place, drain).await }
        };
        let _announcing = announcer.as_mut().map(Announcer::start);
        let shutdown = left(shutdown, announcer.as_mut(), &health, service.server());
        let (mut shutdown, mut at_once) = (pin!(shutdown), pin!(at_once));
        let mut is_ended = false;
        tracing::info!(server = service.server(), url, "serving");
        loop {
            tokio::select! {
                biased;
                () = &mut at_once => {
                    is_ended = true;
                    break;
                }
                () = &mut shutdown => break,
                // Before what has ended: new connections do not wait for it.
                accepted = incoming.next() => {
                    running.spawn(serve(accepted));
                }
                Some(_) = running.join_next() => {}
            }
            while running.try_join_next().is_some() {}
        }
        health.drain();
        // A caller that has connected by now has sent a request, or is about to.
        while let Some(accepted) = unconstrained(incoming.next()).now_or_never() {
            running.spawn(serve(accepted));
        }
        drop((incoming, connections));
        drain.cancel();
        health.end_streams();
        tracing::info!(server = service.server(), connections = running.len(), "draining");
        let given_up = match is_ended {
            true => Some(Reason::Signal),
            false => drained(&mut running, orchestrator.as_deref(), grace, at_once.as_mut()).await.err(),
        };
        if let Some(reason) = given_up {
            give_up(reason, &service, running, closed, bus.as_deref()).await;
        }
        let Some(orchestrator) = orchestrator.filter(|_| given_up != Some(Reason::Signal)) else { return };
        tokio::select! {
            biased;
            () = at_once => tracing::warn!("the orchestrator was not closed: the leases of its tasks expire"),
            closed = timeout(CLOSE, orchestrator.close()) => {
                if closed.is_err() {
                    tracing::warn!("the orchestrator did not close in time: the leases of its tasks expire");
                }
            }
        }
    }
}

/// Waits until connections and tasks have ended.
///
/// # Errors
/// Why what still runs is given up.
async fn drained(
    running: &mut JoinSet<()>,
    orchestrator: Option<&dyn Orchestrator>,
    grace: Duration,
    at_once: impl Future<Output = ()>,
) -> Result<(), Reason> {
    let answered = async { while running.join_next().await.is_some() {} };
    let tasks = async {
        if let Some(orchestrator) = orchestrator {
            orchestrator.drain().await;
        }
    };
    tokio::select! {
        biased;
        ((), ()) = async { tokio::join!(answered, tasks) } => Ok(()),
        () = at_once => Err(Reason::Signal),
        () = sleep(grace) => Err(Reason::Grace),
    }
}

/// Drops what still runs, and reports it.
async fn give_up(
    reason: Reason,
    service: &HttpService,
    mut running: JoinSet<()>,
    mut closed: mpsc::Receiver<()>,
    bus: Option<&dyn EventBus>,
) {
    let (ending, connections) = (service.ending(), running.len());
    ending.give_up(reason);
    let dropped = async {
        running.shutdown().await;
        // Streams of HTTP/2 end after their connection.
        while closed.recv().await.is_some() {}
    };
    // An arm that blocks its thread cannot be dropped before it awaits.
    let is_all = timeout(DROP, dropped).await.is_ok();
    let requests = ending.publish(bus).await;
    tracing::warn!(%reason, connections, requests, is_all, "what still ran was given up");
}

impl<A: Acceptor> IntoFuture for BoundServer<A> {
    type Output = ();
    type IntoFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<A: fmt::Debug> fmt::Debug for BoundServer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundServer").field("acceptor", &self.acceptor).finish_non_exhaustive()
    }
}

/// A place among the connections that may be open.
type Place = Option<OwnedSemaphorePermit>;

/// Incoming connections, up to the limit.
struct Incoming<A> {
    acceptor: A,
    places: Arc<Semaphore>,
}

impl<A: Acceptor> Incoming<A> {
    /// Accepts the next connection. A failed accept is logged and repeated.
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    async fn next(&mut self) -> (A::Opening, Place) {
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        loop {
            match self.acceptor.accept().await {
                Ok(opening) => return (opening, place),
                Err(error) if is_the_callers(&error) => tracing::debug!(%error, "connection lost on accept"),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// Whether the connection failed, so that the next accept can succeed at once.
fn is_the_callers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[derive(PartialEq, Eq)]
enum Signal {
    /// SIGTERM, from the supervisor of the process.
    Terminate,
    /// Ctrl-C, from a terminal.
    Interrupt,
}

/// The signals that end a server, from the moment on when it listens for them.
#[cfg(unix)]
struct Signals {
    terminate: io::Result<unix::Signal>,
    interrupt: io::Result<unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> Self {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Self { terminate: unix::signal(terminate), interrupt: unix::signal(interrupt) }
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            () = received(&mut self.terminate) => Signal::Terminate,
            () = received(&mut self.interrupt) => Signal::Interrupt,
        }
    }
}

#[cfg(unix)]
async fn received(signal: &mut io::Result<unix::Signal>) {
    match signal {
        Ok(signal) => signal.recv().await.unwrap_or_default(),
        Err(error) => no_signals(error).await,
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) -> Signal {
        if let Err(error) = tokio::signal::ctrl_c().await {
            no_signals(&error).await;
        }
        Signal::Interrupt
    }
}

async fn no_signals(error: &io::Error) {
    tracing::warn!(%error, "signals cannot be received: the server ends only with its process");
    pending().await
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use async_trait::async_trait;
    use octollm_core::{
        Context,
        card::ArmCard,
        error::{ErrorKind, Failure},
        id::TaskId,
        orchestrator::{TaskPage, TaskUpdates},
        task::{Submission, Task, TaskQuery},
    };
    use tokio::time::Instant;

    use super::*;
    use crate::{Server, io::Pipes};

    /// Does not close, as if its store did not answer.
    struct Hangs;

    #[async_trait]
    impl Orchestrator for Hangs {
        async fn submit(&self, _: Submission, _: &Context) -> Result<Task, Failure> {
            Err(Failure::of(ErrorKind::Unavailable))
        }

        async fn get(&self, _: &TaskId, _: &Context) -> Result<Task, Failure> {
            Err(Failure::of(ErrorKind::Unavailable))
        }

        async fn list(&self, _: TaskQuery, _: &Context) -> Result<TaskPage, Failure> {
            Err(Failure::of(ErrorKind::Unavailable))
        }

        async fn cancel(&self, _: &TaskId, _: &Context) -> Result<Task, Failure> {
            Err(Failure::of(ErrorKind::Unavailable))
        }

        async fn watch(&self, _: &TaskId, _: Option<u64>, _: &Context) -> Result<TaskUpdates, Failure> {
            Err(Failure::of(ErrorKind::Unavailable))
        }

        async fn cards(&self) -> Result<Vec<ArmCard>, Failure> {
            Err(Failure::of(ErrorKind::Unavailable))
        }

        async fn close(&self) {
            pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_the_closing_of_the_orchestrator_too() {
        for (second, expected) in [(Duration::from_secs(1), Duration::from_secs(1)), (CLOSE * 2, CLOSE)] {
            let server =
                Server::new("brain").orchestrator(Hangs).listen(Pipes::new().listen("brain").unwrap());
            let begun = Instant::now();
            server.unwrap().serve(ready(None), sleep(second)).await;
            assert_eq!(begun.elapsed(), expected);
        }
    }
}
