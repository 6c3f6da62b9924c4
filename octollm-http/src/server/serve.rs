//! Listening, accepting, and coming to an end.

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
use tokio::{
    net::{TcpListener, TcpStream, ToSocketAddrs, lookup_host},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinSet, unconstrained},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{connection::Connections, error::ServeError, service::HttpService, vitals::Vitals};

/// A server that listens. Awaiting it serves, as [`run`](Self::run) does.
pub struct BoundServer {
    listener: TcpListener,
    address: SocketAddr,
    service: HttpService,
    vitals: Arc<Vitals>,
}

/// After a failed accept, such as one for lack of file descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);

impl BoundServer {
    pub(crate) async fn bind(
        address: impl ToSocketAddrs,
        open_to_all: bool,
        service: HttpService,
        vitals: Arc<Vitals>,
    ) -> Result<Self, ServeError> {
        let addresses: Vec<SocketAddr> = lookup_host(address).await.map_err(ServeError::Resolve)?.collect();
        if let Some(addr) = addresses.iter().find(|addr| !addr.ip().to_canonical().is_loopback())
            && !open_to_all
        {
            return Err(ServeError::BeyondLoopback { addr: *addr });
        }
        let refused = |source| {
            let named: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
            ServeError::Listen { address: named.join(", "), source }
        };
        let listener = TcpListener::bind(&*addresses).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address, service, vitals })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL, such as `http://127.0.0.1:8103`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves for ever.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run(self) {
        self.run_until(pending()).await;
    }

    /// Serves until SIGTERM or Ctrl-C, then ends as [`run_until`](Self::run_until) does. After SIGTERM it goes on for a
    /// while ([`drain_notice`](super::ServerConfig::drain_notice)) as not ready, so that no balancer sends requests to a
    /// closed door.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run_until_signal(self) {
        let (vitals, notice) = (self.vitals.clone(), self.service.core().config.drain_notice);
        self.run_until(async move {
            if told_to_end().await == Ending::Orderly {
                vitals.drain();
                sleep(notice).await;
            }
        })
        .await;
    }

    /// Serves until `shutdown` is ready. Then nothing more is accepted, what runs may come to its end
    /// ([`drain_grace`](super::ServerConfig::drain_grace)), and what still runs after that is dropped.
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, address, service, vitals } = self;
        let config = &service.core().config;
        let (limit, grace) = (config.max_connections, config.drain_grace);
        let drain = CancellationToken::new();
        let connections = Arc::new(Connections::new(service.core().clone(), vitals.clone()));
        let mut acceptor = Acceptor { listener, places: Arc::new(Semaphore::new(limit)) };
        let mut running = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        tracing::info!(%address, "serving");
        loop {
            let (stream, place) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = running.join_next() => continue,
                accepted = acceptor.next() => accepted,
            };
            running.spawn(serve_one(connections.clone(), stream, place, drain.child_token()));
        }
        vitals.drain();
        // Who has connected by now has sent a request, or is about to.
        while let Some((stream, place)) = unconstrained(acceptor.next()).now_or_never() {
            running.spawn(serve_one(connections.clone(), stream, place, drain.child_token()));
        }
        drop(acceptor);
        drain.cancel();
        tracing::info!(%address, connections = running.len(), "draining");
        let all = async { while running.join_next().await.is_some() {} };
        if timeout(grace, all).await.is_err() {
            tracing::warn!(%address, connections = running.len(), "connections dropped after the grace");
        }
    }
}

impl IntoFuture for BoundServer {
    type Output = ();
    type IntoFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for BoundServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundServer").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn serve_one(
    connections: Arc<Connections>,
    stream: TcpStream,
    place: Option<OwnedSemaphorePermit>,
    drain: CancellationToken,
) {
    connections.serve(stream, drain).await;
    drop(place);
}

struct Acceptor {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Acceptor {
    /// The next connection, whatever happens to those before it.
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    async fn next(&mut self) -> (TcpStream, Option<OwnedSemaphorePermit>) {
        // Never closed, so there is a place for all that comes.
        let place = self.places.clone().acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, place),
                Err(error) if is_the_callers(&error) => tracing::debug!(%error, "connection lost on accept"),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// Whether the next accept can succeed at once.
fn is_the_callers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[derive(PartialEq, Eq)]
enum Ending {
    /// By whatever runs this process.
    Orderly,
    /// By somebody at a keyboard.
    AtOnce,
}

#[cfg(unix)]
async fn told_to_end() -> Ending {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return interrupted().await;
    };
    tokio::select! {
        _ = terminate.recv() => Ending::Orderly,
        ending = interrupted() => ending,
    }
}

#[cfg(not(unix))]
async fn told_to_end() -> Ending {
    interrupted().await
}

async fn interrupted() -> Ending {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::warn!(%error, "no signals can be heard");
        pending::<()>().await;
    }
    Ending::AtOnce
}
