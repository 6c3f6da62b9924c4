//! Tokens written by hand, with any head, any claims and any key.

use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use octollm_core::{
    card::ArmCard,
    error::{ErrorKind, Failure},
    parts::Grant,
};
use octollm_http::{
    Authenticate,
    token::{KeySet, SigningKey, TokenVerifier},
};
use serde_json::{Map, Value, json};

/// A clock that follows tokio's, so that it stands still where a test has paused that.
#[derive(Clone, Copy)]
pub(crate) struct Clock(tokio::time::Instant, Timestamp);

impl Clock {
    pub(crate) fn runtime() -> Self {
        Self(tokio::time::Instant::now(), Timestamp::now())
    }

    pub(crate) fn now(self) -> Timestamp {
        self.1.checked_add(self.0.elapsed()).unwrap()
    }

    pub(crate) fn read(self) -> impl Fn() -> Timestamp + Send + Sync + 'static {
        move || self.now()
    }
}

/// An Ed25519 key, which signs anything.
pub(crate) struct Key {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl Key {
    pub(crate) fn new() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let pkcs8 = pair.to_pkcs8v1().unwrap().as_ref().to_vec();
        Self { pair, pkcs8 }
    }

    /// The same key, as the crate reads it.
    pub(crate) fn signing(&self) -> SigningKey {
        let body = BASE64_STANDARD.encode(&self.pkcs8);
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        SigningKey::from_pem(&pem.into()).unwrap()
    }

    pub(crate) fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub(crate) fn jwk(&self) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(self.public()) })
    }

    pub(crate) fn sign(&self, head: &Value, claims: &Value) -> String {
        self.sign_text(&head.to_string(), &claims.to_string())
    }

    pub(crate) fn sign_text(&self, head: &str, claims: &str) -> String {
        let message = format!("{}.{}", b64(head), b64(claims));
        let signature = b64(self.pair.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// The claims of a token or a link.
pub(crate) fn claims_of(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

/// The links by which the receiver of a token may call on.
pub(crate) fn links_of(grant: &Grant) -> &[Arc<str>] {
    grant.links.as_deref().expect("the caller is known by a token")
}

/// The system `brain` as a root, and the arm `judge`, whose verifier trusts it.
pub(crate) struct Judge {
    pub(crate) root: Key,
    pub(crate) keys: KeySet,
    pub(crate) verifier: TokenVerifier,
    pub(crate) clock: Clock,
}

impl Judge {
    pub(crate) fn new() -> Self {
        let (root, clock) = (Key::new(), Clock::runtime());
        let keys = KeySet::new("brain").with_key(&root.signing().with_kid("k1").unwrap()).unwrap();
        let verifier = TokenVerifier::builder()
            .audience("judge")
            .root(keys.clone())
            .clock(clock.read())
            .build()
            .unwrap();
        Self { root, keys, verifier, clock }
    }

    pub(crate) fn now(&self) -> i64 {
        self.clock.now().as_second()
    }

    /// The claims of a valid token for `judge`.
    pub(crate) fn claims(&self) -> Value {
        json!({
            "iss": "brain", "sub": "ali", "aud": "judge", "iat": self.now(), "exp": self.now() + 300,
            "jti": "t1", "scope": "code:validate",
        })
    }

    /// The result of verifying a token with these claims.
    pub(crate) fn verify(&self, claims: &Value) -> Result<(), String> {
        self.verify_text(&self.root.sign(&head(), claims))
    }

    /// The message of the failure, which is 401 in any case. What is in memory is used, and is right.
    pub(crate) fn verify_text(&self, token: &str) -> Result<(), String> {
        let in_memory = known(&self.verifier, token);
        let verified = self.verifier.verify(token).map(drop).map_err(|failure| unauthenticated(&failure));
        if let Some(in_memory) = in_memory {
            assert_eq!(in_memory, verified);
        }
        let is_in_memory = known(&self.verifier, token).is_some_and(|known| known.is_ok());
        assert_eq!(is_in_memory, verified.is_ok(), "a verdict is remembered exactly if it is good");
        verified
    }
}

/// The verdict on a token that a server has without waiting, if it has one.
pub(crate) fn known(verifier: &TokenVerifier, token: &str) -> Option<Result<(), String>> {
    let request = http::Request::builder().header("authorization", format!("Bearer {token}"));
    let head = request.body(()).ok()?.into_parts().0;
    let known = verifier.authenticate_now(&head)?;
    Some(known.map(drop).map_err(|failure| unauthenticated(&failure)))
}

pub(crate) fn unauthenticated(failure: &Failure) -> String {
    assert_eq!(failure.kind, ErrorKind::Unauthenticated);
    assert!(!failure.may_have_executed);
    failure.message.clone()
}

/// The head of a valid token of `brain`.
pub(crate) fn head() -> Value {
    json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": "k1" })
}

/// An object with some members changed; null removes one.
pub(crate) fn with(object: &Value, changes: Value) -> Value {
    let mut object: Map<String, Value> = object.as_object().unwrap().clone();
    for (member, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => object.remove(member),
            value => object.insert(member.clone(), value.clone()),
        };
    }
    Value::Object(object)
}

/// The card of an arm that needs these scopes.
pub(crate) fn card(id: &str, key: &SigningKey, needs: &[&str]) -> ArmCard {
    let mut card = ArmCard::new(id);
    card.key = key.public_jwk();
    card.needs = needs.iter().map(|scope| (*scope).to_owned()).collect();
    card
}

/// The token is refused for breaking this rule.
#[track_caller]
pub(crate) fn refused(result: Result<(), String>, rule: &str, of: &dyn std::fmt::Debug) {
    match result {
        Ok(()) => panic!("accepted: {of:?}"),
        Err(message) => assert!(message.contains(rule), "{message} is not about {rule}: {of:?}"),
    }
}
