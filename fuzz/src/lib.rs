//! A root, arms and a verifier with fixed keys and a clock that stands still, so that an input always has the same result.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jiff::Timestamp;
use octollm_http::token::{KeySet, TokenVerifier};
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
