//! What the targets share: a root, arms and a verifier with fixed keys and a clock that stands still, so that an input always has the
//! same result; contracts; header fields.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use octollm_http::token::{KeySet, TokenVerifier};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The time of the verifier, in seconds.
pub const NOW: i64 = 1_800_000_000;

/// The key of a root (0) or of an arm.
pub fn key(n: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[n + 1; 32]).expect("a seed of 32 bytes")
}

pub fn jwk(key: &Ed25519KeyPair) -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(key.public_key().as_ref()), "kid": "k" })
}

pub fn sign(key: &Ed25519KeyPair, head: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", BASE64.encode(head), BASE64.encode(claims));
    let signature = BASE64.encode(key.sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// The verifier of the arm `judge`, which trusts `brain`. Few tokens are remembered, so that most are verified whole.
pub fn verifier() -> TokenVerifier {
    let brain = KeySet::new("brain").with_jwks(&jwk(&key(0)).to_string()).expect("a public key");
    let now = || Timestamp::from_second(NOW).expect("a time");
    let builder = TokenVerifier::builder().audience("judge").root(brain).cache_capacity(2).clock(now);
    builder.build().expect("an audience and a root")
}

/// A contract that may run once.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "fuzz.free", output = Value)]
pub struct Free {}

/// A contract that may run twice.
#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "fuzz.safe", output = Value, idempotent)]
pub struct Safe {}

/// The header fields of lines such as `name: value`. Other lines are left out.
pub fn headers<'l>(lines: impl Iterator<Item = &'l [u8]>) -> HeaderMap {
    let field = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
    };
    lines.take(40).filter_map(field).collect()
}
