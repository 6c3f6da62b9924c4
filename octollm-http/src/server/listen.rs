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
use octollm_core::orchestrator::Orchestrator;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinSet, unconstrained},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{arm::HealthState, connection::Connections, service::HttpService};
use crate::io::{Acceptor, Listener};

/// A server that listens: by default on TCP, with or without TLS. Awaiting it is the same as [`run`](Self::run).
pub struct BoundServer<A = Listener> {
    acceptor: A,
    service: HttpService,
    health: Arc<HealthState>,
    orchestrator: Option<Arc<dyn Orchestrator>>,
}

/// The parts of a server that is built.
pub(crate) struct Built {
    pub(crate) service: HttpService,
    pub(crate) health: Arc<HealthState>,
    pub(crate) orchestrator: Option<Arc<dyn Orchestrator>>,
}

/// Time limit on closing an orchestrator. After it the leases of its tasks expire by themselves.
const CLOSE: Duration = Duration::from_secs(5);
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
}

impl<A: Acceptor> BoundServer<A> {
    pub(crate) fn new(acceptor: A, Built { service, health, orchestrator }: Built) -> Self {
        Self { acceptor, service, health, orchestrator }
    }

    /// Serves until the future is dropped.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run(self) {
        self.run_until(pending()).await;
    }

    /// Serves until SIGTERM or Ctrl-C, then shuts down as [`run_until`](Self::run_until) does.
    ///
    /// After SIGTERM the server first accepts requests for [`drain_notice`](super::Server::drain_notice) while `GET /ready` answers
    /// 503, so that load balancers stop sending. A Ctrl-C during the shutdown closes everything at once.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run_until_signal(self) {
        let (health, notice) = (self.health.clone(), self.service.config().drain_notice);
        let ending = CancellationToken::new();
        let begun = ending.clone();
        let serving = self.run_until(async move {
            let signal = first_signal().await;
            begun.cancel();
            if signal == Signal::Terminate {
                health.drain();
                sleep(notice).await;
            }
        });
        tokio::select! {
            () = serving => {}
            () = async { ending.cancelled().await; interrupt().await } => {
                tracing::warn!("interrupted during the shutdown: connections are dropped");
            }
        }
    }

    /// Serves until `shutdown` completes, then shuts down gracefully.
    ///
    /// The server accepts no more connections. Running requests have [`drain_grace`](super::Server::drain_grace) to finish, and
    /// are dropped after that. An [orchestrator](super::Server::orchestrator) starts no more tasks; its running tasks have the same
    /// time. Then it is [closed](Orchestrator::close), within 5 s.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        let Self { acceptor, service, health, orchestrator } = self;
        let (limit, grace) = (service.config().max_connections, service.config().drain_grace);
        let drain = CancellationToken::new();
        let connections = Arc::new(Connections::new(service, health.clone()));
        let mut incoming = Incoming { acceptor, places: Arc::new(Semaphore::new(limit)) };
        let mut running = JoinSet::new();
        let serve = |(opening, place): (A::Opening, Place)| {
            let (connections, drain) = (connections.clone(), drain.child_token());
            async move { connections.serve(opening, place, drain).await }
        };
        let mut shutdown = pin!(shutdown);
        tracing::info!("serving");
        loop {
            tokio::select! {
                biased;
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
        drop(incoming);
        drain.cancel();
        tracing::info!(connections = running.len(), "draining");
        let answered = async { while running.join_next().await.is_some() {} };
        let drained = async {
            if let Some(orchestrator) = &orchestrator {
                orchestrator.drain().await;
            }
        };
        if timeout(grace, async { tokio::join!(answered, drained) }).await.is_err() {
            tracing::warn!(
                connections = running.len(),
                "connections and tasks that still run are dropped: the grace period is over"
            );
        }
        running.abort_all();
        if let Some(orchestrator) = orchestrator
            && timeout(CLOSE, orchestrator.close()).await.is_err()
        {
            tracing::warn!("the orchestrator did not close in time: the leases of its tasks expire");
        }
    }
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

#[cfg(unix)]
async fn first_signal() -> Signal {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => terminate.recv().await.unwrap_or_default(),
            Err(error) => no_signals(&error).await,
        }
    };
    tokio::select! {
        () = terminated => Signal::Terminate,
        () = interrupt() => Signal::Interrupt,
    }
}

#[cfg(not(unix))]
async fn first_signal() -> Signal {
    interrupt().await;
    Signal::Interrupt
}

/// Returns at the next Ctrl-C.
async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        no_signals(&error).await;
    }
}

async fn no_signals(error: &io::Error) {
    tracing::warn!(%error, "signals cannot be received: the server ends only with its process");
    pending().await
}
