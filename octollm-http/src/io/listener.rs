//! The acceptor of a server that is bound: TCP, with TLS where it has a certificate.

use std::{future::Future, io, net::SocketAddr, path::PathBuf, pin::Pin};

use octollm_core::error::ConfigError;
use tokio::net::{TcpListener, TcpStream};

#[cfg(feature = "tls")]
use super::tls::TlsAcceptor;
use super::{Acceptor, Peer};

/// Accepts the connections of a server that is [bound](crate::Server::bind): over TCP, with TLS where its
/// [environment](crate::Server::env) has a certificate.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    #[cfg(feature = "tls")]
    Tls(TlsAcceptor),
}

/// The files of a server with TLS.
#[derive(Debug)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

impl Listener {
    /// # Errors
    /// The files cannot be used. Without the feature `tls` there are none.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, clippy::unnecessary_wraps))]
    pub(crate) fn new(tcp: TcpListener, files: Option<TlsFiles>) -> Result<Self, ConfigError> {
        #[cfg(feature = "tls")]
        if let Some(TlsFiles { certificate, key, client_ca }) = files {
            let acceptor = TlsAcceptor::new(tcp, certificate, key)?;
            return Ok(Self(Kind::Tls(match client_ca {
                Some(authorities) => acceptor.client_ca(authorities)?,
                None => acceptor,
            })));
        }
        Ok(Self(Kind::Tcp(tcp)))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        !matches!(self.0, Kind::Tcp(_))
    }

    fn tcp(&self) -> &TcpListener {
        match &self.0 {
            Kind::Tcp(tcp) => tcp,
            #[cfg(feature = "tls")]
            Kind::Tls(tls) => tls.inner(),
        }
    }
}

#[cfg(feature = "tls")]
type Stream = tokio_util::either::Either<TcpStream, Box<<TlsAcceptor as Acceptor>::Io>>;
#[cfg(not(feature = "tls"))]
type Stream = TcpStream;

impl Acceptor for Listener {
    type Io = Stream;
    type Opening = Pin<Box<dyn Future<Output = io::Result<(Stream, Peer)>> + Send>>;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        match &mut self.0 {
            #[cfg(not(feature = "tls"))]
            Kind::Tcp(tcp) => Ok(Box::pin(Acceptor::accept(tcp).await?)),
            #[cfg(feature = "tls")]
            Kind::Tcp(tcp) => {
                let opening = Acceptor::accept(tcp).await?;
                Ok(Box::pin(async move { opening.await.map(|(stream, peer)| (Stream::Left(stream), peer)) }))
            }
            #[cfg(feature = "tls")]
            Kind::Tls(tls) => {
                let opening = tls.accept().await?;
                Ok(Box::pin(async move {
                    opening.await.map(|(stream, peer)| (Stream::Right(Box::new(stream)), peer))
                }))
            }
        }
    }

    fn is_local(&self) -> bool {
        self.tcp().is_local()
    }
}
