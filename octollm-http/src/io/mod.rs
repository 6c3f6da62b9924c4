//! Connections: over TCP, in memory, or over anything else that carries bytes in both directions.
//!
//! A client opens connections through a [`Connector`], and a server accepts them from an [`Acceptor`]. Both use TCP by
//! default. [`Pipes`] is a network in memory: a whole system runs over it without a socket, and under tokio's paused clock
//! without waiting. [`UnixSockets`] is a network of the sockets in a directory.
//!
//! With the feature `tls`, a client encrypts the connection to each `https` URL, over any connector, and a server accepts TLS
//! with a `TlsAcceptor`, over any acceptor.
//!
//! ```
//! use octollm_http::io::{Acceptor, Connector, Pipes};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let network = Pipes::new();
//! let mut judge = network.listen("judge")?;
//! let mut caller = network.connect(&"http://judge".parse().unwrap()).await?;
//! let (mut served, _) = judge.accept().await?.await?;
//! caller.write_all(b"hi").await?;
//! drop(caller);
//! let mut text = String::new();
//! served.read_to_string(&mut text).await?;
//! assert_eq!(text, "hi");
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "tls")]
mod certificates;
#[cfg(feature = "tls")]
mod tls;
mod listener;
#[cfg(unix)]
mod unix;

use std::{
    any::Any,
    collections::HashMap,
    fmt::{self, Debug},
    future::{Future, Ready, pending, ready},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{
    Uri,
    uri::{Authority, Scheme},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
};

pub use self::listener::Listener;
pub(crate) use self::listener::TlsFiles;
#[cfg(feature = "tls")]
pub use self::tls::TlsAcceptor;
#[cfg(unix)]
pub use self::unix::UnixSockets;
#[cfg(feature = "tls")]
pub use tokio_rustls::rustls;

/// A connection: implemented for every type that carries bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Any + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Opens connections.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Opens a connection to the host and port of a URI, whose path is ignored. The default port is that of its scheme: 443 for
    /// `https`, else 80. The client itself encrypts the connection to an `https` URI.
    ///
    /// # Errors
    /// The connection cannot be opened. Nothing was sent.
    ///
    /// # Cancel safety
    /// The caller drops the future when the call is cancelled or its time limit passes. A connection that is half open must
    /// then be closed.
    async fn connect(&self, to: &Uri) -> io::Result<Box<dyn Io>>;
}

/// Accepts connections.
pub trait Acceptor: Send + 'static {
    /// Type of the connections.
    type Io: Io;
    /// The rest of opening a connection, such as a TLS handshake. A server polls it concurrently with the next `accept`, within
    /// [`head_timeout`](crate::Server::head_timeout), and drops it after that.
    type Opening: Future<Output = io::Result<(Self::Io, Peer)>> + Send + 'static;

    /// Accepts the next connection.
    ///
    /// # Errors
    /// The connection was lost, or a resource of the system is exhausted, such as file descriptors. The server logs the error
    /// and calls `accept` again: at once after a lost connection, and else after 100 ms.
    ///
    /// # Cancel safety
    /// The server drops the future when it ends and at any other event. A connection that was accepted must be returned by the
    /// next call.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Opening>> + Send;

    /// Whether only this machine can connect. A server on any other acceptor has to establish who calls.
    fn is_local(&self) -> bool {
        false
    }
}

#[cfg(feature = "tls")]
pub(crate) use self::tls::{ClientTls, Secured, handshake_problem, refusal};
#[cfg(not(feature = "tls"))]
pub(crate) use self::without_tls::{ClientTls, Secured, handshake_problem, refusal};

/// The other end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Network address, where the connection has one.
    pub address: Option<SocketAddr>,
    /// Whether the connection is encrypted by TLS.
    pub is_encrypted: bool,
    /// Certificate that the client has presented, as DER, verified by the authority of `TlsAcceptor::client_ca` or
    /// `optional_client_ca`. `None` where it has presented none.
    pub certificate: Option<Bytes>,
}

/// Connects over TCP.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tcp;

#[async_trait]
impl Connector for Tcp {
    async fn connect(&self, to: &Uri) -> io::Result<Box<dyn Io>> {
        let (host, port) = host_and_port(to)?;
        let stream = TcpStream::connect((host, port)).await?;
        // Small requests must not wait for the acknowledgement of the one before. The connection works without this option too.
        let _ = stream.set_nodelay(true);
        Ok(Box::new(stream))
    }
}

/// Connections that may wait to be accepted, as far as the system allows.
const BACKLOG: u32 = 4096;

/// Listens on the first of the addresses that is free. For port 0 the system chooses one.
pub(crate) fn listen(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut last = None;
    for address in addresses {
        match listen_at(*address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the name has no address")))
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted server can listen on its address again at once. On Windows the option means something else.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Connections over TCP, without TLS.
impl Acceptor for TcpListener {
    type Io = TcpStream;
    type Opening = Ready<io::Result<(TcpStream, Peer)>>;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        let (stream, address) = TcpListener::accept(self).await?;
        // Answers are small and written whole.
        let _ = stream.set_nodelay(true);
        Ok(ready(Ok((stream, Peer { address: Some(address), ..Peer::default() }))))
    }

    fn is_local(&self) -> bool {
        self.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
    }
}

/// A network in memory, for tests. Clones share it.
#[derive(Clone, Default)]
pub struct Pipes(Arc<Mutex<Hosts>>);

type Hosts = HashMap<(String, u16), mpsc::Sender<DuplexStream>>;

/// Accepts the connections to one host of a network in memory.
struct PipeAcceptor {
    incoming: mpsc::Receiver<DuplexStream>,
    /// The network is gone.
    closed: bool,
}

/// Bytes that a connection buffers in each direction.
const PIPE: usize = 64 * 1024;
/// Connections that may wait to be accepted.
const WAITING: usize = 1024;

impl Pipes {
    /// Creates a network without hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens on a host, such as `judge` or `judge:8103` (default port 80), until the acceptor is dropped.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a name that is no host, [`AddrInUse`](io::ErrorKind::AddrInUse) for
    /// one that is in use.
    pub fn listen(&self, host: &str) -> io::Result<impl Acceptor<Io = DuplexStream> + Debug + use<>> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let (sender, incoming) = mpsc::channel(WAITING);
        let authority = Authority::try_from(host).map_err(invalid)?;
        let key = key_of((authority.host(), authority.port_u16().unwrap_or(HTTP)));
        let mut hosts = self.hosts();
        if hosts.get(&key).is_some_and(|open| !open.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        hosts.insert(key, sender);
        Ok(PipeAcceptor { incoming, closed: false })
    }

    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Connector for Pipes {
    async fn connect(&self, to: &Uri) -> io::Result<Box<dyn Io>> {
        let key = key_of(host_and_port(to)?);
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let host = self.hosts().get(&key).cloned().ok_or_else(refused)?;
        let (near, far) = duplex(PIPE);
        host.send(far).await.map_err(|_| refused())?;
        Ok(Box::new(near))
    }
}

impl Acceptor for PipeAcceptor {
    type Io = DuplexStream;
    type Opening = Ready<io::Result<(DuplexStream, Peer)>>;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        if !self.closed {
            match self.incoming.recv().await {
                Some(stream) => return Ok(ready(Ok((stream, Peer::default())))),
                None => self.closed = true,
            }
        }
        // The network is gone: the server still serves the connections it has.
        pending().await
    }

    fn is_local(&self) -> bool {
        true
    }
}

impl Debug for Pipes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.hosts().keys()).finish()
    }
}

impl Debug for PipeAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipeAcceptor").field("waiting", &self.incoming.len()).finish_non_exhaustive()
    }
}

/// A client built without TLS. It has no `https` URLs.
#[cfg(not(feature = "tls"))]
mod without_tls {
    use std::{error::Error, io};

    use http::Uri;

    #[derive(Debug, Clone, Default)]
    pub(crate) struct ClientTls;

    /// A connection as its scheme demands.
    pub(crate) type Secured<I> = I;

    impl ClientTls {
        pub(crate) async fn secure<I>(&self, to: &Uri, io: I, _: &[&[u8]]) -> io::Result<(Secured<I>, bool)> {
            if super::is_https(to) { Err(io::ErrorKind::Unsupported.into()) } else { Ok((io, false)) }
        }
    }

    pub(crate) fn handshake_problem(_: &io::Error) -> Option<&'static str> {
        None
    }

    pub(crate) fn refusal(_: &(dyn Error + 'static)) -> Option<&'static str> {
        None
    }
}

fn key_of((host, port): (&str, u16)) -> (String, u16) {
    (host.trim_matches(['[', ']']).to_ascii_lowercase(), port)
}

/// Default ports of `http` and `https`.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

pub(crate) fn is_https(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}

/// Whether a host, with or without brackets, is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let is_loopback = |ip: std::net::IpAddr| ip.to_canonical().is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_loopback)
}

/// The host, which is not in brackets, and the port.
///
/// # Errors
/// The URI has no host.
fn host_and_port(uri: &Uri) -> io::Result<(&str, u16)> {
    let no_host = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{uri}` has no host"));
    let host = uri.host().ok_or_else(no_host)?.trim_matches(['[', ']']);
    Ok((host, uri.port_u16().unwrap_or(if is_https(uri) { HTTPS } else { HTTP })))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_network_in_memory_connects_by_host_and_port() {
        let network = Pipes::new();
        let mut judge = network.listen("Judge").unwrap();
        let other = network.listen("judge:8103").unwrap();
        assert_eq!(network.listen("judge:80").unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(network.listen("no host").is_err());

        let mut near = network.connect(&Uri::from_static("http://JUDGE:80/x")).await.unwrap();
        let (mut far, _) = judge.accept().await.unwrap().await.unwrap();
        near.write_all(b"ask").await.unwrap();
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");

        drop(other);
        let mut secure = network.listen("judge:443").unwrap();
        network.connect(&Uri::from_static("https://judge")).await.unwrap();
        drop(secure.accept().await.unwrap());

        for gone in ["http://judge:8103", "http://nobody", "/judge"] {
            assert!(network.connect(&gone.parse().unwrap()).await.is_err(), "{gone}");
        }
        assert!(network.listen("judge:8103").is_ok(), "a host that is gone can be opened again");
    }

    #[tokio::test]
    async fn tcp_listens_on_the_first_address_that_is_free() {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let holder = listen(&[free]).unwrap();
        let taken = holder.local_addr().unwrap();
        assert!(listen(&[taken]).is_err() && listen(&[]).is_err());
        let mut acceptor = listen(&[taken, free]).unwrap();
        assert!(acceptor.is_local());
        let url = format!("http://{}", acceptor.local_addr().unwrap()).parse().unwrap();
        let (near, far) = tokio::join!(Tcp.connect(&url), Acceptor::accept(&mut acceptor));
        assert!(near.is_ok() && far.unwrap().await.unwrap().1.address.is_some());
    }
}
