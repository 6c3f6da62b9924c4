//! The proof of an arm that registers: a signature over its request by the key on its card.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use octollm_core::id::RequestId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Refused,
    jws::{self, Jws},
    key::{PublicKey, sha256},
    signing_key::SigningKey,
};

/// Media type of a proof.
const PROOF: &str = "registration+jwt";
/// The request that is signed. Its path is that of the route, without the prefix below which a server is mounted.
const METHOD: &str = "POST";
const PATH: &str = "/arms/register";
/// Most bytes of the id of a proof.
const LONGEST_ID: usize = 64;

/// Seconds by which the clocks of an arm and of an orchestrator may differ, with the time that a request takes.
pub(crate) const PROOF_AGE: i64 = 60;

#[derive(Serialize, Deserialize)]
struct ProofClaims {
    /// The arm.
    iss: String,
    /// The orchestrator.
    aud: String,
    /// In seconds since 1970.
    iat: i64,
    jti: String,
    htm: String,
    htp: String,
    /// SHA-256 of the body, in base64url.
    bsh: String,
}

/// A proof that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    /// Thumbprint of the key.
    pub(crate) key: std::sync::Arc<str>,
    pub(crate) id: String,
    /// In seconds since 1970.
    pub(crate) issued_at: i64,
}

/// Signs a registration with this body. `None` where the system has no random numbers.
pub(crate) fn sign(key: &SigningKey, arm: &str, audience: &str, body: &[u8], now: i64) -> Option<String> {
    let claims = ProofClaims {
        iss: arm.to_owned(),
        aud: audience.to_owned(),
        iat: now,
        jti: RequestId::new().as_str().to_owned(),
        htm: METHOD.to_owned(),
        htp: PATH.to_owned(),
        bsh: BASE64.encode(sha256(body)),
    };
    jws::sign(PROOF, key, None, &claims)
}

/// Verifies that a request with this body was signed by the key on the card of the arm.
///
/// # Errors
/// The rule that the proof breaks.
pub(crate) fn verify(
    proof: &str,
    jwk: &Map<String, Value>,
    (arm, audiences): (&str, &[String]),
    body: &[u8],
    now: i64,
) -> Result<Proof, &'static str> {
    let key = PublicKey::from_jwk(jwk)?;
    if !key.can_delegate() {
        return Err("the key on the card is neither Ed25519 nor P-256");
    }
    let reason = |refused| match refused {
        Refused::Invalid(reason) => reason,
        Refused::UnknownKey(_) | Refused::OldKeys(_) => "its key is not known",
    };
    let jws = Jws::read(proof).map_err(reason)?;
    if jws.media_type != PROOF {
        return Err("its type is not registration+jwt");
    }
    jws.verify(&key).map_err(reason)?;
    let claims = ProofClaims::deserialize(Value::Object(jws.claims))
        .map_err(|_| "a claim is missing or has another type")?;
    if claims.iss != arm {
        return Err("its issuer is not the arm on the card");
    }
    if !audiences.contains(&claims.aud) {
        return Err("its audience is another orchestrator");
    }
    if claims.htm != METHOD || claims.htp != PATH {
        return Err("it is for another request");
    }
    if claims.bsh != BASE64.encode(sha256(body)) {
        return Err("it is for another body");
    }
    if claims.iat.checked_sub(now).is_none_or(|ahead| ahead.abs() > PROOF_AGE) {
        return Err("it was not signed within the last minute: compare the clocks");
    }
    if claims.jti.is_empty() || claims.jti.len() > LONGEST_ID {
        return Err("its id does not have 1 to 64 bytes");
    }
    Ok(Proof { key: key.thumbprint, id: claims.jti, issued_at: claims.iat })
}

impl SigningKey {
    /// Whether the key can be that on the card of an arm.
    pub(crate) fn is_for_cards(&self) -> bool {
        self.public.can_delegate()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn key() -> (SigningKey, Map<String, Value>) {
        let key = SigningKey::generate().unwrap();
        let jwk = key.public_jwk().unwrap();
        (key, jwk)
    }

    fn verified(proof: &str, jwk: &Map<String, Value>, now: i64) -> Result<Proof, &'static str> {
        verify(proof, jwk, ("judge", &["brain".to_owned()]), b"{}", now)
    }

    #[test]
    fn a_proof_is_for_one_key_arm_audience_body_and_minute() {
        let (key, jwk) = key();
        let proof = sign(&key, "judge", "brain", b"{}", NOW).unwrap();
        let read = verified(&proof, &jwk, NOW).unwrap();
        assert_eq!((&*read.key, read.issued_at), (key.kid(), NOW));
        for now in [NOW - PROOF_AGE, NOW + PROOF_AGE] {
            assert!(verified(&proof, &jwk, now).is_ok());
        }
        for now in [NOW - PROOF_AGE - 1, NOW + PROOF_AGE + 1, i64::MIN, i64::MAX] {
            assert!(verified(&proof, &jwk, now).unwrap_err().contains("minute"), "{now}");
        }
        let (_, other) = self::key();
        assert!(verified(&proof, &other, NOW).unwrap_err().contains("signature"));
        let expected = |arm, audience: &str, body: &[u8]| {
            verify(&proof, &jwk, (arm, &[audience.to_owned()]), body, NOW).unwrap_err()
        };
        assert!(expected("jury", "brain", b"{}").contains("issuer"));
        assert!(expected("judge", "other", b"{}").contains("audience"));
        assert!(expected("judge", "brain", b"{} ").contains("body"));
    }

    #[test]
    fn what_is_signed_for_something_else_is_no_proof() {
        let (key, jwk) = key();
        let claims = |change: Value| {
            let mut claims = json!({
                "iss": "judge", "aud": "brain", "iat": NOW, "jti": "j", "htm": "POST", "htp": "/arms/register",
                "bsh": BASE64.encode(sha256(b"{}")),
            });
            for (name, value) in change.as_object().unwrap() {
                claims[name] = value.clone();
            }
            claims
        };
        let of = |media_type: &str, claims: &Value| {
            verified(&jws::sign(media_type, &key, None, claims).unwrap(), &jwk, NOW)
        };
        assert!(of(PROOF, &claims(json!({}))).is_ok());
        for media_type in [jws::TOKEN, jws::LINK, "jwt"] {
            assert!(of(media_type, &claims(json!({}))).unwrap_err().contains("type"), "{media_type}");
        }
        for change in [
            json!({ "htm": "DELETE" }),
            json!({ "htp": "/tasks" }),
            json!({ "jti": "" }),
            json!({ "jti": "j".repeat(65) }),
            json!({ "jti": 1 }),
            json!({ "iat": "now" }),
            json!({ "iat": i64::MAX }),
            json!({ "iat": i64::MIN }),
            json!({ "iat": 1e300 }),
            json!({ "aud": ["brain"] }),
            json!({ "bsh": null }),
        ] {
            assert!(of(PROOF, &claims(change.clone())).is_err(), "{change}");
        }
        let whole = sign(&key, "judge", "brain", b"{}", NOW).unwrap();
        for broken in ["", "a.b.c", &whole[..whole.len() - 4], &whole.replace('.', "")] {
            assert!(verified(broken, &jwk, NOW).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_secret_and_an_rsa_key_are_not_on_cards() {
        let secret = SigningKey::from_secret(&"s".repeat(32).into()).unwrap();
        assert!(!secret.is_for_cards());
        let proof = sign(&secret, "judge", "brain", b"{}", NOW).unwrap();
        let jwk = json!({ "kty": "oct", "k": BASE64.encode("s".repeat(32)) });
        assert!(verified(&proof, jwk.as_object().unwrap(), NOW).is_err());
    }
}
