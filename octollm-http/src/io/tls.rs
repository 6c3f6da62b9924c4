//! TLS by rustls: the client's side, and an acceptor.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use http::Uri;
use octollm_core::error::ConfigError;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OnceCell,
    task::spawn_blocking,
};
use tokio_rustls::{
    TlsConnector, client,
    rustls::{
        self, AlertDescription, CertificateError, ClientConfig, RootCertStore,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::ServerName,
    },
    server,
};
use tokio_util::either::Either;

use super::{
    Acceptor, Peer,
    certificates::{Certificates, ClientCa, Files},
    host_and_port, is_https,
};

/// Accepts TLS connections over another acceptor, TCP by default.
///
/// The certificate chain and its key are PEM files. They are read again when they change, at most once a second and with the next
/// connection, so that a renewed certificate needs no restart. Files that cannot be used are logged, and the last good ones stay in
/// force. TLS 1.2 and 1.3 are spoken. By ALPN the client chooses HTTP/2 or HTTP/1.1.
///
/// ```no_run
/// # use octollm_http::{Server, io::TlsAcceptor};
/// # use tokio::net::TcpListener;
/// # async fn run(server: Server) -> Result<(), Box<dyn std::error::Error>> {
/// let tcp = TcpListener::bind("0.0.0.0:8443").await?;
/// let tls = TlsAcceptor::new(tcp, "/etc/judge/tls.crt", "/etc/judge/tls.key")?;
/// server.listen(tls)?.run_until_signal().await;
/// # Ok(()) }
/// ```
pub struct TlsAcceptor<A = tokio::net::TcpListener> {
    inner: A,
    files: Files,
    certificates: Arc<Certificates>,
}

impl<A: Acceptor> TlsAcceptor<A> {
    /// Creates an acceptor with a certificate chain, its own certificate first, and the private key of that certificate. The files
    /// are read at once.
    ///
    /// # Errors
    /// A file cannot be read, or holds no certificate or key, or the key is that of another certificate. The setting of the
    /// error is the path.
    pub fn new(
        acceptor: A,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, ConfigError> {
        Self::with_files(acceptor, Files::new(certificate.into(), key.into()))
    }

    /// Requires a certificate of each client, which one of the authorities in this PEM file has signed. An
    /// [`Authenticate`](crate::Authenticate) finds it in [`Peer::certificate`]. The file is read at once, and again when it changes.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn client_ca(self, file: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        self.with_client_ca(ClientCa { file: file.into(), is_optional: false })
    }

    /// Verifies the certificate of each client that presents one, as [`client_ca`](Self::client_ca) does, and accepts clients
    /// without a certificate as well. [`Peer::certificate`] is `None` for those. A certificate by another authority is refused.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn optional_client_ca(self, file: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        self.with_client_ca(ClientCa { file: file.into(), is_optional: true })
    }

    fn with_client_ca(self, clients: ClientCa) -> Result<Self, ConfigError> {
        Self::with_files(self.inner, Files { clients: Some(clients), ..self.files })
    }

    pub(super) fn inner(&self) -> &A {
        &self.inner
    }

    fn with_files(inner: A, files: Files) -> Result<Self, ConfigError> {
        let certificates = Arc::new(Certificates::load(files.clone())?);
        Ok(Self { inner, files, certificates })
    }
}

/// Plaintext that the server writes before it waits for the client to read, so that its limit on writes counts what is read.
const UNSENT: usize = 16 * 1024;

impl<A: Acceptor> Acceptor for TlsAcceptor<A> {
    type Io = server::TlsStream<A::Io>;
    type Opening = Pin<Box<dyn Future<Output = io::Result<(Self::Io, Peer)>> + Send>>;

    async fn accept(&mut self) -> io::Result<Self::Opening> {
        let opening = self.inner.accept().await?;
        let certificates = Arc::clone(&self.certificates);
        Ok(Box::pin(async move {
            let (io, peer) = opening.await?;
            let acceptor = tokio_rustls::TlsAcceptor::from(certificates.current().await);
            let stream = acceptor.accept_with(io, |tls| tls.set_buffer_limit(Some(UNSENT))).await?;
            let chain = stream.get_ref().1.peer_certificates();
            let certificate = chain.and_then(|chain| chain.first()).map(|der| Bytes::copy_from_slice(der));
            Ok((stream, Peer { is_encrypted: true, certificate, ..peer }))
        }))
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }
}

impl<A: fmt::Debug> fmt::Debug for TlsAcceptor<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAcceptor")
            .field("inner", &self.inner)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// The provider of cryptography. It is named, since a program can have several, and rustls then chooses none by itself.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// TLS of a client: with the configuration of its user, or else with the roots of the system.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientTls(Option<Arc<ClientConfig>>);

/// A connection as its scheme demands.
pub(crate) type Secured<I> = Either<I, Box<client::TlsStream<I>>>;

impl ClientTls {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Self {
        Self(Some(config))
    }

    /// Encrypts the connection to an `https` URI. Offers these protocols, and returns whether the server has chosen HTTP/2.
    ///
    /// # Errors
    /// The handshake failed: see [`handshake_problem`].
    pub(crate) async fn secure<I>(&self, to: &Uri, io: I, offered: &[&[u8]]) -> io::Result<(Secured<I>, bool)>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        if !is_https(to) {
            return Ok((Either::Left(io), false));
        }
        // Boxed, since connections that are open already must not pay for its size.
        Box::pin(async {
            let (host, _) = host_and_port(to)?;
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
            let name = ServerName::try_from(host.to_owned()).map_err(invalid)?;
            let config = match &self.0 {
                Some(config) => Arc::clone(config),
                None => system_config().await?,
            };
            let connector = TlsConnector::from(config);
            let offered = offered.iter().map(|protocol| protocol.to_vec()).collect();
            let stream = connector.with_alpn(offered).connect(name, io).await?;
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok((Either::Right(Box::new(stream)), is_http2))
        })
        .await
    }
}

/// The configuration with the roots of the system, which are read once.
async fn system_config() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceCell<Arc<ClientConfig>> = OnceCell::const_new();
    let load = || async { spawn_blocking(load_system_config).await.map_err(io::Error::other)? };
    CONFIG.get_or_try_init(load).await.cloned()
}

fn load_system_config() -> io::Result<Arc<ClientConfig>> {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "root certificates of the system could not be read");
    }
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, NO_ROOTS));
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?.with_root_certificates(roots);
    Ok(Arc::new(builder.with_no_client_auth()))
}

const NO_ROOTS: &str = "the system has no root certificates: install them, or set `tls(..)`";

/// The problem of a failed handshake that another attempt does not solve.
pub(crate) fn handshake_problem(error: &io::Error) -> Option<&'static str> {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, PeerIncompatible};
    let inner = error.get_ref()?;
    Some(match inner.downcast_ref() {
        Some(InvalidCertificate(problem)) => certificate_problem(problem),
        Some(InvalidMessage(_)) => "the server does not speak TLS",
        Some(PeerIncompatible(_)) => "the server and this client share no version or cipher of TLS",
        Some(AlertReceived(alert)) if is_about_certificate(*alert) => REFUSED,
        Some(AlertReceived(AlertDescription::UnrecognisedName)) => {
            "the server has no certificate for this name"
        }
        Some(AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::NoApplicationProtocol,
        )) => "the server and this client share no version, cipher or protocol",
        Some(_) => return None,
        None if error.kind() == io::ErrorKind::NotFound && inner.to_string() == NO_ROOTS => NO_ROOTS,
        None => return None,
    })
}

fn certificate_problem(problem: &CertificateError) -> &'static str {
    use CertificateError::*;
    match problem {
        Expired | ExpiredContext { .. } => "the certificate of the server has expired",
        NotValidYet | NotValidYetContext { .. } => "the certificate of the server is not valid yet",
        UnknownIssuer | BadSignature => {
            "no authority that is trusted here has signed the certificate of the server"
        }
        NotValidForName | NotValidForNameContext { .. } => {
            "the certificate of the server is for another name"
        }
        Revoked => "the certificate of the server is revoked",
        _ => "the certificate of the server is not valid",
    }
}

const REFUSED: &str = "the server refuses the certificate of this client";

/// The refusal of a server that has checked the certificate of this client after the handshake, as TLS 1.3 allows. No request was
/// read before it.
pub(crate) fn refusal(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(rustls::Error::AlertReceived(alert)) = inner.and_then(|inner| inner.downcast_ref()) {
            return is_about_certificate(*alert).then_some(REFUSED);
        }
        next = error.source();
    }
    None
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::*;
    matches!(
        alert,
        NoCertificate
            | BadCertificate
            | UnsupportedCertificate
            | CertificateRevoked
            | CertificateExpired
            | CertificateUnknown
            | CertificateRequired
            | UnknownCA
            | AccessDenied
    )
}
