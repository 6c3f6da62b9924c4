//! Keys: the public ones that verify, and the private ones that sign.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    digest,
    encoding::{AsDer, Pkcs8V1Der},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD as BASE64},
};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, crypto::aws_lc::DEFAULT_PROVIDER, jwk::EllipticCurve,
};
use octollm_core::{
    error::{ConfigError, InvalidValue},
    id::RequestId,
};
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Least length of a secret for HS256, in bytes.
const SECRET: usize = 32;
/// Sizes of an RSA modulus, in bytes: 2048 to 8192 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;
/// What precedes the key in the DER of a public Ed25519 key, and in that of a point on P-256.
const ED25519_SPKI: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const P256_SPKI: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04";
/// Length of what precedes the PKCS#1 key in the PKCS#8 that aws-lc writes for an RSA key of 2048 bits or more.
const RSA_PKCS8: usize = 26;

/// A key that verifies signatures of one algorithm: a public key, or a secret for HS256.
#[derive(Clone)]
pub(super) struct PublicKey {
    pub(super) algorithm: Algorithm,
    decoding: DecodingKey,
    /// The JWK with its required members only; none for a secret.
    jwk: Map<String, Value>,
    /// The thumbprint of RFC 7638; random for a secret.
    pub(super) thumbprint: Arc<str>,
}

/// The members of a JWK that are read.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
}

/// Members of a JWK that only a private or symmetric key has.
const PRIVATE: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "k"];

impl PublicKey {
    /// Reads a public Ed25519, P-256 or RSA key.
    ///
    /// # Errors
    /// The problem of the key.
    pub(super) fn from_jwk(jwk: &Map<String, Value>) -> Result<Self, &'static str> {
        if is_private(jwk) {
            return Err("it has a private part");
        }
        Self::public_part(jwk)
    }

    fn public_part(jwk: &Map<String, Value>) -> Result<Self, &'static str> {
        let jwk = Jwk::deserialize(jwk).map_err(|_| "a member is missing or has another type")?;
        if jwk.usage.is_some_and(|usage| usage != "sig") {
            return Err("it is not for signatures");
        }
        let curve = jwk.crv.as_deref();
        let key = match (&*jwk.kty, curve) {
            ("OKP", Some("Ed25519")) => Self::ed25519(&decoded(jwk.x)?),
            ("EC", Some("P-256")) => Self::p256(&decoded(jwk.x)?, &decoded(jwk.y)?),
            ("RSA", _) => Self::rsa(&decoded(jwk.n)?, &decoded(jwk.e)?),
            _ => Err("it is of a type that is not supported"),
        }?;
        match jwk.alg {
            Some(named) if named != key.name() => Err("its `alg` is not supported for its type"),
            _ => Ok(key),
        }
    }

    fn ed25519(x: &[u8]) -> Result<Self, &'static str> {
        if x.len() != 32 {
            return Err("it is not 32 bytes long");
        }
        let jwk = json!({ "crv": "Ed25519", "kty": "OKP", "x": BASE64.encode(x) });
        Ok(Self::new(Algorithm::EdDSA, DecodingKey::from_ed_der(x), jwk))
    }

    fn p256(x: &[u8], y: &[u8]) -> Result<Self, &'static str> {
        if x.len() != 32 || y.len() != 32 {
            return Err("its coordinates are not 32 bytes long");
        }
        let jwk = json!({ "crv": "P-256", "kty": "EC", "x": BASE64.encode(x), "y": BASE64.encode(y) });
        let point = [&[4], x, y].concat();
        Ok(Self::new(Algorithm::ES256, DecodingKey::from_ec_der(&point), jwk))
    }

    fn rsa(n: &[u8], e: &[u8]) -> Result<Self, &'static str> {
        let (n, e) = (without_zeros(n), without_zeros(e));
        if !MODULUS.contains(&n.len()) || n[0] < 0x80 && n.len() == *MODULUS.start() || e.len() > 4 {
            return Err("its size is not 2048 to 8192 bits");
        }
        let jwk = json!({ "e": BASE64.encode(e), "kty": "RSA", "n": BASE64.encode(n) });
        Ok(Self::new(Algorithm::RS256, DecodingKey::from_rsa_raw_components(n, e), jwk))
    }

    fn secret(secret: &[u8]) -> Self {
        let thumbprint = RequestId::new().as_str().into();
        let decoding = DecodingKey::from_secret(secret);
        Self { algorithm: Algorithm::HS256, decoding, jwk: Map::new(), thumbprint }
    }

    fn new(algorithm: Algorithm, decoding: DecodingKey, jwk: Value) -> Self {
        // The members are in the order of RFC 7638, and no value needs escaping.
        let text = ["crv", "e", "kty", "n", "x", "y"].iter().filter_map(|member| {
            jwk.get(member).and_then(Value::as_str).map(|value| format!("\"{member}\":\"{value}\""))
        });
        let text = format!("{{{}}}", text.collect::<Vec<_>>().join(","));
        let thumbprint = BASE64.encode(sha256(text.as_bytes())).into();
        let jwk = if let Value::Object(jwk) = jwk { jwk } else { Map::new() };
        Self { algorithm, decoding, jwk, thumbprint }
    }

    /// Reads a PEM `PUBLIC KEY`.
    ///
    /// # Errors
    /// The problem of the key.
    pub(super) fn from_pem(pem: &str) -> Result<Self, &'static str> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| "it is not a PEM with a section `PUBLIC KEY`")?;
        let der: &[u8] = &der;
        if let Some(x) = der.strip_prefix(ED25519_SPKI) {
            return Self::ed25519(x);
        }
        if let Some((x, y)) = der.strip_prefix(P256_SPKI).and_then(|point| point.split_at_checked(32)) {
            return Self::p256(x, y);
        }
        match (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(der) {
            Ok((n, e)) => Self::rsa(&n, &e),
            Err(_) => Err("it is neither Ed25519 nor P-256 nor RSA"),
        }
    }

    /// The name of the algorithm in the head of a token.
    pub(super) fn name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::ES256 => "ES256",
            Algorithm::RS256 => "RS256",
            Algorithm::HS256 => "HS256",
            _ => "EdDSA",
        }
    }

    /// Whether the key may be that of a delegate.
    pub(super) fn can_delegate(&self) -> bool {
        matches!(self.algorithm, Algorithm::EdDSA | Algorithm::ES256)
    }

    /// The key as a JWK. `None` for a secret.
    pub(super) fn jwk(&self) -> Option<&Map<String, Value>> {
        Some(&self.jwk).filter(|jwk| !jwk.is_empty())
    }

    /// Whether this is the signature of a message by this key.
    pub(super) fn verifies(&self, message: &[u8], signature: &Vec<u8>) -> bool {
        // The provider is named, since the default of a process panics where features of two providers are on.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&self.algorithm, &self.decoding);
        verifier.is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

/// Whether a JWK has a private part.
pub(super) fn is_private(jwk: &Map<String, Value>) -> bool {
    PRIVATE.iter().any(|member| jwk.contains_key(*member))
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn decoded(text: Option<String>) -> Result<Vec<u8>, &'static str> {
    let text = text.ok_or("a member is missing")?;
    BASE64.decode(text).map_err(|_| "a member is not base64url without padding")
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.thumbprint == other.thumbprint
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.thumbprint)
    }
}

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
    /// It is not 1 to 64 letters, digits and `.`, `_`, `~`, `+`, `/`, `=`, `-`, or it holds `..`.
    pub fn with_kid(mut self, kid: impl Into<String>) -> Result<Self, InvalidValue> {
        let kid = kid.into();
        if !is_kid(&kid) {
            return Err(InvalidValue::new("key id").because("it is not 1 to 64 letters and digits"));
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

fn invalid(reason: &'static str) -> InvalidValue {
    InvalidValue::new("signing key").because(reason)
}

/// Whether a text can be the id of a key.
pub(super) fn is_kid(kid: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(&byte);
    (1..=64).contains(&kid.len()) && kid.bytes().all(allowed) && !kid.contains("..")
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}
