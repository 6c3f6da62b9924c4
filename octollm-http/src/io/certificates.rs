//! The certificate of a server, and its reload when the files change.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use octollm_core::error::ConfigError;
use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::tls::provider;

/// The files of a server's certificate.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) clients: Option<ClientCa>,
}

/// The authorities that sign the certificates of clients.
#[derive(Debug, Clone)]
pub(super) struct ClientCa {
    pub(super) file: PathBuf,
    /// Whether a client without a certificate is accepted.
    pub(super) is_optional: bool,
}

/// The configuration from files, reloaded when they change.
pub(super) struct Certificates {
    files: Files,
    current: RwLock<Arc<ServerConfig>>,
    check: Mutex<Check>,
}

/// The last look at the files.
struct Check {
    at: Instant,
    /// Digest of what they held, whether it could be used or not; `None` if they could not be read.
    digest: Option<u64>,
}

/// What the files hold.
#[derive(Hash)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// The shortest time between two looks at the files.
const BETWEEN_CHECKS: Duration = Duration::from_secs(1);

impl Certificates {
    /// # Errors
    /// A file cannot be used.
    pub(super) fn load(files: Files) -> Result<Self, ConfigError> {
        let contents = files.read()?;
        let current = RwLock::new(files.config(&contents)?);
        let check = Check { at: Instant::now(), digest: Some(contents.digest()) };
        Ok(Self { files, current, check: Mutex::new(check) })
    }

    /// The configuration for the next handshake. The files are checked before, unless that was done within the last second.
    pub(super) async fn current(&self) -> Arc<ServerConfig> {
        // A handshake does not wait for another one that looks at the files.
        if let Ok(mut check) = self.check.try_lock()
            && check.at.elapsed() >= BETWEEN_CHECKS
        {
            check.at = Instant::now();
            self.reload(&mut check.digest).await;
        }
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn reload(&self, digest: &mut Option<u64>) {
        let (files, known) = (self.files.clone(), *digest);
        let load = move || match files.read() {
            Ok(contents) => {
                let digest = Some(contents.digest());
                (digest, (digest != known).then(|| files.config(&contents)))
            }
            Err(error) => (None, known.is_some().then_some(Err(error))),
        };
        // Fails only while the runtime shuts down.
        let Ok((found, changed)) = spawn_blocking(load).await else { return };
        *digest = found;
        match changed {
            Some(Ok(config)) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!(certificate = %self.files.certificate.display(), "certificate reloaded");
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the changed certificate cannot be used: the last one stays in force");
            }
            None => {}
        }
    }
}

impl Files {
    pub(super) fn new(certificate: PathBuf, key: PathBuf) -> Self {
        Self { certificate, key, clients: None }
    }

    fn read(&self) -> Result<Contents, ConfigError> {
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_ca: self.clients.as_ref().map(|clients| read(&clients.file)).transpose()?,
        })
    }

    fn config(&self, contents: &Contents) -> Result<Arc<ServerConfig>, ConfigError> {
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|source| unusable(&self.key, "holds no private key in PEM").with_source(source))?;
        let unsuitable = |source| unusable(&self.certificate, "cannot be used").with_source(source);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unsuitable)?;
        let builder = match (&self.clients, &contents.client_ca) {
            (Some(clients), Some(pem)) => builder.with_client_cert_verifier(clients.verifier(pem)?),
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|source| {
            unusable(&self.certificate, "cannot be used with its key").with_source(source)
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ClientCa {
    fn verifier(&self, pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, ConfigError> {
        let Self { file, is_optional } = self;
        let no_authority = "holds a certificate that is no authority";
        let mut roots = RootCertStore::empty();
        for authority in certificates(file, pem)? {
            roots.add(authority).map_err(|source| unusable(file, no_authority).with_source(source))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = if *is_optional { verifier.allow_unauthenticated() } else { verifier };
        verifier.build().map_err(|source| unusable(file, no_authority).with_source(source))
    }
}

impl Contents {
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

fn read(file: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(file).map_err(|source| unusable(file, "cannot be read").with_source(source))
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| unusable(file, "is not PEM").with_source(source))?;
    if chain.is_empty() { Err(unusable(file, "holds no certificate in PEM")) } else { Ok(chain) }
}

fn unusable(file: &Path, problem: &'static str) -> ConfigError {
    ConfigError::new(file.display().to_string(), problem)
}
