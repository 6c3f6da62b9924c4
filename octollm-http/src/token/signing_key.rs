//! Private keys: reading, generating and signing.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto::aws_lc::DEFAULT_PROVIDER, jwk::EllipticCurve};
use octollm_core::{
    error::{ConfigError, InvalidValue},
    id::RequestId,
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

use super::key::{PublicKey, decoded, is_kid};

/// Least length of a secret for HS256, in bytes.
const SECRET: usize = 32;
/// Length of what precedes the PKCS#1 key in the PKCS#8 that aws-lc writes for an RSA key of 2048 bits or more.
const RSA_PKCS8: usize = 26;

/// A private key that signs tokens: Ed25519, P-256 or RSA, or a secret that one process signs and verifies with.
///
/// It is cheap to clone. No output shows it but [`to_pem`](Self::to_pem).
#[derive(Clone)]
pub struct SigningKey {
    private: Arc<EncodingKey>,
    pub(super) public: PublicKey,
    kid: Arc<str>,
}

impl SigningKey {
    /// Generates an Ed25519 key.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> Result<Self, ConfigError> {
        let pkcs8 = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1());
        let unavailable = || ConfigError::new("generate", "failed, because the system has no random numbers");
        Self::ed25519(pkcs8.map_err(|_| unavailable())?.as_ref()).map_err(|_| unavailable())
    }

    /// Reads the key from a PEM file, and generates an Ed25519 key into it if there is none. On Unix only its owner can then read
    /// and write it. Of several processes that start at once all have the same key.
    ///
    /// Files are read and written by blocking calls.
    ///
    /// # Errors
    /// The file cannot be read or created, or holds no key that [`from_pem`](Self::from_pem) reads. The setting of the error is
    /// the path.
    pub fn from_file_or_new(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let failed = |problem| move |source| setting(path, problem).with_source(source);
        let pem = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pem = Self::generate()?.to_pem().unwrap_or_default();
                create(path, pem.expose_secret()).map_err(failed("cannot be created"))?;
                fs::read_to_string(path)
            }
            read => read,
        };
        let pem = SecretString::from(pem.map_err(failed("cannot be read"))?);
        warn_if_public(path);
        Self::from_pem(&pem).map_err(|source| setting(path, "holds no private key").with_source(source))
    }

    /// Reads a PEM with one private key: `PRIVATE KEY` (PKCS#8), `EC PRIVATE KEY` or `RSA PRIVATE KEY`.
    ///
    /// # Errors
    /// It is not such a PEM, or its key is neither Ed25519 nor P-256 nor RSA of 2048 to 8192 bits.
    pub fn from_pem(pem: &SecretString) -> Result<Self, InvalidValue> {
        let der = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes());
        let key = match der.map_err(|_| invalid("it is not a PEM with a private key"))? {
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                Self::ed25519(der).or_else(|_| Self::p256(der)).or_else(|_| Self::rsa_pkcs8(der))
            }
            PrivateKeyDer::Sec1(der) => Self::p256(der.secret_sec1_der()),
            PrivateKeyDer::Pkcs1(der) => Self::rsa(der.secret_pkcs1_der()),
            _ => Err("it is of a kind that is not supported"),
        };
        key.map_err(invalid)
    }

    /// Reads a private JWK: Ed25519, P-256, or a secret (`oct`) of 32 bytes or more.
    ///
    /// # Errors
    /// It is not such a JWK, or its public part is of another key.
    pub fn from_jwk(jwk: &SecretString) -> Result<Self, InvalidValue> {
        let jwk: Map<String, Value> = serde_json::from_str(jwk.expose_secret())
            .map_err(|_| invalid("it is not a JWK, which is an object in JSON"))?;
        let text = |member: &str| jwk.get(member).and_then(Value::as_str).map(str::to_owned);
        let key = if jwk.get("kty").is_some_and(|kty| kty == "oct") {
            Self::secret(&decoded(text("k")).map_err(invalid)?).map_err(invalid)?
        } else {
            let public = PublicKey::public_part(&jwk).map_err(invalid)?;
            let private = decoded(text("d")).map_err(invalid)?;
            Self::of_parts(&public, &private).map_err(invalid)?
        };
        match text("kid") {
            Some(kid) => key.with_kid(kid),
            None => Ok(key),
        }
    }

    /// Creates a key for HS256 from a secret, for a process that is the only one to issue and to verify.
    ///
    /// # Errors
    /// The secret is shorter than 32 bytes.
    pub fn from_secret(secret: &SecretString) -> Result<Self, InvalidValue> {
        Self::secret(secret.expose_secret().as_bytes()).map_err(invalid)
    }

    /// Sets the id of the key, by which verifiers find it (default: its RFC 7638 thumbprint).
    ///
    /// # Errors
    /// It is not 1 to 64 letters, digits and `.`, `_`, `~`, `+`, `/`, `=`, `:`, `-`, or it holds `..`.
    pub fn with_kid(mut self, kid: impl Into<String>) -> Result<Self, InvalidValue> {
        let kid = kid.into();
        if !is_kid(&kid) {
            return Err(InvalidValue::new("key id")
                .because("it is not 1 to 64 letters, digits and `._~+/=:-`, without `..`"));
        }
        self.kid = kid.into();
        Ok(self)
    }

    /// The id of the key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public key as a JWK, such as for the `key` of a card. `None` for a secret.
    pub fn public_jwk(&self) -> Option<Map<String, Value>> {
        let mut jwk = self.public.jwk()?.clone();
        jwk.insert("alg".into(), self.public.name().into());
        jwk.insert("use".into(), "sig".into());
        jwk.insert("kid".into(), self.kid().into());
        Some(jwk)
    }

    /// The private key as a PEM: PKCS#8, or PKCS#1 for RSA. `None` for a secret.
    pub fn to_pem(&self) -> Option<SecretString> {
        let label = match self.public.algorithm {
            Algorithm::HS256 => return None,
            Algorithm::RS256 => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let body = BASE64_STANDARD.encode(self.private.as_bytes());
        let mut pem = format!("-----BEGIN {label}-----\n");
        for start in (0..body.len()).step_by(64) {
            pem.push_str(&body[start..body.len().min(start + 64)]);
            pem.push('\n');
        }
        pem.push_str(&format!("-----END {label}-----\n"));
        Some(pem.into())
    }

    /// Signs a message. `None` if the system has no random numbers.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let signer = (DEFAULT_PROVIDER.signer_factory)(&self.public.algorithm, &self.private).ok()?;
        signer.try_sign(message).ok()
    }

    fn new(private: EncodingKey, public: PublicKey) -> Self {
        let kid = public.thumbprint.clone();
        Self { private: Arc::new(private), public, kid }
    }

    fn ed25519(pkcs8: &[u8]) -> Result<Self, &'static str> {
        let utils = &DEFAULT_PROVIDER.key_utils;
        let x = (utils.ed_pub_components_from_private_key)(pkcs8, &EllipticCurve::Ed25519);
        let public = PublicKey::ed25519(&x.map_err(|_| "it is not an Ed25519 key")?)?;
        Ok(Self::new(EncodingKey::from_ed_der(pkcs8), public))
    }

    fn p256(der: &[u8]) -> Result<Self, &'static str> {
        const OTHER: &str = "it is not a P-256 key";
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
        let pkcs8 = pair.map_err(|_| OTHER)?.to_pkcs8v1().map_err(|_| OTHER)?;
        let utils = &DEFAULT_PROVIDER.key_utils;
        let point = (utils.ec_pub_components_from_private_key)(pkcs8.as_ref(), Algorithm::ES256);
        let (_, x, y) = point.map_err(|_| OTHER)?;
        Ok(Self::new(EncodingKey::from_ec_der(pkcs8.as_ref()), PublicKey::p256(&x, &y)?))
    }

    fn rsa_pkcs8(der: &[u8]) -> Result<Self, &'static str> {
        const OTHER: &str = "it is neither Ed25519 nor P-256 nor RSA";
        let pair = RsaKeyPair::from_pkcs8(der).map_err(|_| OTHER)?;
        let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| OTHER)?;
        Self::rsa(pkcs8.as_ref().get(RSA_PKCS8..).ok_or(OTHER)?)
    }

    fn rsa(pkcs1: &[u8]) -> Result<Self, &'static str> {
        let components = (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_private_key)(pkcs1);
        let (n, e) = components.map_err(|_| "it is not an RSA key of 2048 to 8192 bits")?;
        Ok(Self::new(EncodingKey::from_rsa_der(pkcs1), PublicKey::rsa(&n, &e)?))
    }

    fn secret(secret: &[u8]) -> Result<Self, &'static str> {
        if secret.len() < SECRET {
            return Err("the secret is shorter than 32 bytes");
        }
        Ok(Self::new(EncodingKey::from_secret(secret), PublicKey::secret(secret)))
    }

    fn of_parts(public: &PublicKey, private: &[u8]) -> Result<Self, &'static str> {
        const OTHER: &str = "its parts are not of one key";
        let point = public.decoding.try_get_as_bytes().unwrap_or_default();
        let pkcs8 = match public.algorithm {
            Algorithm::EdDSA => {
                Ed25519KeyPair::from_seed_and_public_key(private, point).map(|pair| pair.to_pkcs8v1().ok())
            }
            Algorithm::ES256 => EcdsaKeyPair::from_private_key_and_public_key(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                private,
                point,
            )
            .map(|pair| pair.to_pkcs8v1().ok()),
            _ => return Err("a private RSA key is read from a PEM only"),
        };
        let pkcs8 = pkcs8.ok().flatten().ok_or(OTHER)?;
        match public.algorithm {
            Algorithm::EdDSA => Self::ed25519(pkcs8.as_ref()),
            _ => Self::p256(pkcs8.as_ref()),
        }
    }
}

fn setting(path: &Path, problem: &'static str) -> ConfigError {
    ConfigError::new(path.display().to_string(), problem)
}

/// Creates a file that only its owner can read, with its content at once. A file that was created meanwhile remains.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", RequestId::new()));
    let draft = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&draft).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    // Unlike a rename, a link replaces no file.
    let linked = written.and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    // It may not be there.
    let _ = fs::remove_file(&draft);
    linked
}

fn warn_if_public(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o077 != 0 {
            let path = path.display();
            tracing::warn!(%path, "others can read or write a private key: set the mode of its file to 0600");
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

fn invalid(reason: &'static str) -> InvalidValue {
    InvalidValue::new("signing key").because(reason)
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}
