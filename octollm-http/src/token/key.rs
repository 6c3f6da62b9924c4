//! Public keys: reading, writing and verifying.

use std::{fmt, sync::Arc};

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, DecodingKey, crypto::aws_lc::DEFAULT_PROVIDER};
use octollm_core::id::RequestId;
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Sizes of an RSA modulus, in bytes: 2048 to 8192 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;
/// What precedes the key in the DER of a public Ed25519 key, and in that of a point on P-256.
const ED25519_SPKI: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const P256_SPKI: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04";

/// A key that verifies signatures of one algorithm: a public key, or a secret for HS256.
#[derive(Clone)]
pub(super) struct PublicKey {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
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
    key_ops: Option<Vec<String>>,
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
        Self::for_operation("verify", jwk)
    }

    /// The public part of a private key.
    pub(super) fn public_part(jwk: &Map<String, Value>) -> Result<Self, &'static str> {
        Self::for_operation("sign", jwk)
    }

    fn for_operation(operation: &str, jwk: &Map<String, Value>) -> Result<Self, &'static str> {
        let jwk = Jwk::deserialize(jwk).map_err(|_| "a member is missing or has another type")?;
        let is_other =
            jwk.key_ops.is_some_and(|operations| !operations.iter().any(|named| named == operation));
        if is_other || jwk.usage.is_some_and(|usage| usage != "sig") {
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

    pub(super) fn ed25519(x: &[u8]) -> Result<Self, &'static str> {
        if x.len() != 32 {
            return Err("it is not 32 bytes long");
        }
        let jwk = json!({ "crv": "Ed25519", "kty": "OKP", "x": BASE64.encode(x) });
        Ok(Self::new(Algorithm::EdDSA, DecodingKey::from_ed_der(x), jwk))
    }

    pub(super) fn p256(x: &[u8], y: &[u8]) -> Result<Self, &'static str> {
        if x.len() != 32 || y.len() != 32 {
            return Err("its coordinates are not 32 bytes long");
        }
        let jwk = json!({ "crv": "P-256", "kty": "EC", "x": BASE64.encode(x), "y": BASE64.encode(y) });
        let point = [&[4], x, y].concat();
        Ok(Self::new(Algorithm::ES256, DecodingKey::from_ec_der(&point), jwk))
    }

    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Result<Self, &'static str> {
        let (n, e) = (without_zeros(n), without_zeros(e));
        if !MODULUS.contains(&n.len()) || n[0] < 0x80 && n.len() == *MODULUS.start() || e.len() > 4 {
            return Err("its size is not 2048 to 8192 bits");
        }
        let jwk = json!({ "e": BASE64.encode(e), "kty": "RSA", "n": BASE64.encode(n) });
        Ok(Self::new(Algorithm::RS256, DecodingKey::from_rsa_raw_components(n, e), jwk))
    }

    pub(super) fn secret(secret: &[u8]) -> Self {
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

pub(super) fn decoded(text: Option<String>) -> Result<Vec<u8>, &'static str> {
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

/// Whether a text can be the id of a key, as [`KeySet`](super::KeySet) documents.
pub(super) fn is_kid(kid: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~+/=:-".contains(&byte);
    (1..=64).contains(&kid.len()) && kid.bytes().all(allowed) && !kid.contains("..")
}
