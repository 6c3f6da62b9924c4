//! How a server is reached: its URL, TLS, and the pauses between two attempts.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hasher},
    sync::Arc,
    time::Duration,
};

use octollm_core::error::ConfigError;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs},
};

pub(super) use super::url::Address;
use super::{
    error::{LEAST_VERSION, RedisError},
    url::{Login, Url},
};

/// Time for establishing a connection, with its handshakes.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// A connection of any kind.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static> Io for T {}

/// The settings of all connections to a server.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) address: Address,
    uses_tls: bool,
    pub(super) login: Login,
    /// The authorities that are trusted in place of those of the system, as PEM.
    pub(super) roots: Option<Vec<u8>>,
    /// Certificate chain and private key of the client, as PEM.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Time for the answer to a command.
    pub(super) timeout: Duration,
    /// Time between two PINGs on a connection that waits for events.
    pub(super) heartbeat: Duration,
}

impl Settings {
    /// Reads a URL. No error has a part of the text, which may contain a password.
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        let Url { address, uses_tls, login } = Url::parse(url)?;
        let (timeout, heartbeat) = (Duration::from_secs(5), Duration::from_secs(5));
        Ok(Self { address, uses_tls, login, roots: None, identity: None, timeout, heartbeat })
    }

    /// Checks the settings, and makes a connector of them.
    pub(super) async fn connector(self) -> Result<Connector, RedisError> {
        for (name, time) in [("timeout", self.timeout), ("heartbeat", self.heartbeat)] {
            if time.is_zero() {
                return Err(ConfigError::new(name, "is 0").into());
            }
        }
        let tls =
            if self.uses_tls { Some(tls(self.roots.clone(), self.identity.clone()).await?) } else { None };
        Ok(Connector { settings: self, tls })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, uses_tls, timeout, heartbeat, .. } = self;
        let mut settings = f.debug_struct("Settings");
        settings.field("address", address).field("uses_tls", uses_tls);
        settings.field("timeout", timeout).field("heartbeat", heartbeat).finish_non_exhaustive()
    }
}

async fn tls(
    roots: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
) -> Result<TlsConnector, RedisError> {
    let mut trusted = RootCertStore::empty();
    if let Some(pem) = roots {
        let wrong = |reason: &'static str| ConfigError::new("root_certificates", reason);
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|_| wrong("are not certificates as PEM"))?;
            trusted.add(certificate).map_err(|_| wrong("have one that cannot be used"))?;
        }
        if trusted.is_empty() {
            return Err(wrong("are not certificates as PEM").into());
        }
    } else {
        let found =
            spawn_blocking(rustls_native_certs::load_native_certs).await.map_err(RedisError::failed)?;
        trusted.add_parsable_certificates(found.certs);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(RedisError::failed)?;
    let builder = builder.with_root_certificates(trusted);
    let Some((chain, key)) = identity else {
        return Ok(TlsConnector::from(Arc::new(builder.with_no_client_auth())));
    };
    let wrong = || ConfigError::new("client_certificate", "is not a certificate chain and its key as PEM");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| wrong())?;
    let config = builder.with_client_auth_cert(chain.map_err(|_| wrong())?, key).map_err(|_| wrong())?;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The setters that builders share: all of them, or those of TLS.
macro_rules! connection_settings {
    () => {
        /// Sets the time for the answer to a command (default 5 s).
        pub fn timeout(self, timeout: Duration) -> Self {
            self.set(|settings| settings.timeout = timeout)
        }

        $crate::redis::connection::connection_settings! { tls }
    };
    (tls) => {
        /// Sets the certificates of the authorities that are trusted, as PEM (default those of the system).
        pub fn root_certificates(self, pem: impl Into<Vec<u8>>) -> Self {
            self.set(|settings| settings.roots = Some(pem.into()))
        }

        /// Sets the certificate chain of the client and its private key, as PEM (default none).
        pub fn client_certificate(self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
            self.set(|settings| settings.identity = Some((chain.into(), key.into())))
        }

        fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
            if let Ok(settings) = &mut self.settings {
                change(settings);
            }
            self
        }
    };
}
pub(super) use connection_settings;

/// Checks the prefix of keys, which is their hash tag.
pub(super) fn check_prefix(prefix: &str) -> Result<(), ConfigError> {
    match prefix.is_empty() || prefix.contains(['{', '}']) {
        true => Err(ConfigError::new("prefix", "is a text without braces, and not empty")),
        false => Ok(()),
    }
}

/// Opens connections.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) settings: Settings,
    tls: Option<TlsConnector>,
}

impl Connector {
    /// The same, for commands that wait for so long at the server.
    pub(super) fn waiting(&self, time: Duration) -> Self {
        let mut connector = self.clone();
        connector.settings.timeout += time;
        connector
    }

    /// Opens a connection. The caller limits the time, with that of what is done first on the connection: see [`in_time`].
    pub(super) async fn stream(&self, address: &Address) -> Result<Box<dyn Io>, RedisError> {
        let (host, port) = match address {
            Address::Tcp { host, port } => (host, *port),
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await;
                return Ok(Box::new(stream.map_err(RedisError::unreachable)?));
            }
            #[cfg(not(unix))]
            Address::Unix(_) => return Err(ConfigError::new("url", "names a Unix socket").into()),
        };
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(RedisError::unreachable)?;
        stream.set_nodelay(true).map_err(RedisError::unreachable)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(host.clone()).map_err(|error| RedisError::Tls(Arc::new(error)))?;
        let stream = tls.connect(name, stream).await.map_err(|error| RedisError::Tls(Arc::new(error)))?;
        Ok(Box::new(stream))
    }
}

/// Establishes a connection within [`CONNECT_TIMEOUT`].
pub(super) async fn in_time<T>(
    opening: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    timeout(CONNECT_TIMEOUT, opening).await.unwrap_or(Err(RedisError::TimedOut(CONNECT_TIMEOUT)))
}

/// Checks what a server says of itself in its answer to HELLO.
pub(super) fn check_server(version: &str, role: &str, mode: &str) -> Result<(), RedisError> {
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
    let parts = |version: &str| {
        let mut parts = version.split('.');
        (number(parts.next()), number(parts.next()))
    };
    if parts(version) < parts(LEAST_VERSION) {
        return Err(RedisError::OldServer { found: version.to_owned(), least: LEAST_VERSION });
    }
    // The nodes of a cluster forward what is published to one another.
    if role != "master" && mode != "cluster" {
        return Err(RedisError::answered("READONLY the server is a replica"));
    }
    Ok(())
}

/// The pause after so many failures that followed one another: from 100 ms, doubled up to 30 s, of which a random half is left out.
pub(super) fn pause(failures: u32) -> Duration {
    let longest = MIN_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MAX_PAUSE);
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    longest.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_its_limit() {
        for (failures, longest) in
            [(1, 100), (2, 200), (5, 1_600), (9, 25_600), (10, 30_000), (u32::MAX, 30_000)]
        {
            let longest = Duration::from_millis(longest);
            for _ in 0..100 {
                let pause = pause(failures);
                assert!(longest / 2 <= pause && pause <= longest, "{failures}: {pause:?}");
            }
        }
    }

    #[test]
    fn old_servers_and_replicas_are_refused() {
        for version in ["6.2.0", "7.0.15", "8.2", "10.0.1"] {
            check_server(version, "master", "standalone").unwrap();
        }
        for version in ["6.0.9", "5.0.14", "garbage"] {
            assert!(matches!(
                check_server(version, "master", "standalone"),
                Err(RedisError::OldServer { .. })
            ));
        }
        assert!(matches!(check_server("7.0.15", "replica", "standalone"), Err(RedisError::ReadOnly(_))));
        check_server("7.0.15", "replica", "cluster").unwrap();
    }
}
