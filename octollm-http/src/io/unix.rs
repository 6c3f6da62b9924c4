//! A network of Unix sockets.

use std::{
    fmt, fs,
    future::{Ready, ready},
    io,
    os::unix::{fs::FileTypeExt, net::UnixStream as BlockingStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use http::{Uri, uri::Authority};
use tokio::net::{UnixListener, UnixStream};

use super::{Acceptor, Connector, Io, Peer};

/// A network of the Unix sockets in a directory, in which the host `judge` is the socket `judge.sock`. Clones share the directory.
///
/// Who may open the files may connect: the permissions of the directory decide.
///
/// ```no_run
/// # use octollm_http::{Arms, Server, io::UnixSockets};
/// # async fn run(server: Server) -> Result<(), Box<dyn std::error::Error>> {
/// let sockets = UnixSockets::new("/run/octollm");
/// let arms = Arms::builder().connector(sockets.clone()).endpoint("judge", "http://judge").build()?;
/// server.listen(sockets.listen("judge")?)?.run_until_signal().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct UnixSockets(Arc<Path>);

/// Accepts the connections to one socket, which is removed with it.
struct UnixAcceptor {
    listener: UnixListener,
    file: PathBuf,
}

impl UnixSockets {
    /// Creates a network of the sockets in this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into().into())
    }

    /// Listens on a host, such as `judge`, until the acceptor is dropped. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a name that is no host or has a port,
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) for one that is in use, and those of the file system.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(&self, host: &str) -> io::Result<impl Acceptor<Io = UnixStream> + fmt::Debug + use<>> {
        let authority = Authority::try_from(host).map_err(|_| no_socket(host))?;
        let file = self.file(&authority)?;
        let listener = match UnixListener::bind(&file) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(&file) => {
                fs::remove_file(&file)?;
                UnixListener::bind(&file)?
            }
            bound => bound?,
        };
        Ok(UnixAcceptor { listener, file })
    }

    /// The socket of a host, whose name cannot lead out of the directory.
    fn file(&self, authority: &Authority) -> io::Result<PathBuf> {
        let host = authority.host();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if host != authority.as_str() || !host.bytes().all(is_name) {
            return Err(no_socket(authority.as_str()));
        }
        Ok(self.0.join(format!("{}.sock", host.to_ascii_lowercase())))
    }
}

#[async_trait]
impl Connector for UnixSockets {
    async fn connect(&self, to: &Uri) -> io::Result<Box<dyn Io>> {
        let authority = to.authority().ok_or_else(|| no_socket(""))?;
        Ok(Box::new(UnixStream::connect(self.file(authority)?).await?))
    }
}

impl Acceptor for UnixAcceptor {
    type Io = UnixStream;
    type Opening = Ready<io::Result<(UnixStream, Peer)>>;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        let (stream, _) = self.listener.accept().await?;
        Ok(ready(Ok((stream, Peer::default()))))
    }

    fn is_local(&self) -> bool {
        true
    }
}

impl Drop for UnixAcceptor {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

impl fmt::Debug for UnixAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnixAcceptor").field(&self.file).finish()
    }
}

/// Whether a socket is left over by a process that has ended.
fn is_abandoned(file: &Path) -> bool {
    // A file that is no socket refuses connections too.
    fs::symlink_metadata(file).is_ok_and(|found| found.file_type().is_socket())
        && BlockingStream::connect(file).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn no_socket(host: &str) -> io::Error {
    let problem = format!("`{host}` is not the name of a socket: write a host without a port");
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}
