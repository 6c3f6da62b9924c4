//! The keys of one issuer.

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use octollm_core::error::{ErrorKind, Failure, InvalidValue};
use serde_json::{Map, Value, json};

use super::{
    Refused,
    jwks_url::{Source, Validity},
    key::{PublicKey, is_kid},
    signing_key::SigningKey,
};
use crate::io::Connector;

/// Most keys of one issuer.
const MOST: usize = 100;

/// The public keys of one issuer, by the id of each. It is cheap to clone; a clone is of the same keys.
///
/// The id of a key (`kid`) has 1 to 64 of the characters `A-Z a-z 0-9 . _ ~ + / = : -`, and no two dots in a row. So the ids of common
/// providers are ids, and paths to other folders, quotes and blanks are not. A key of a JWK set with another id is left out, with a
/// warning in the log, and a token that names one is refused.
///
/// A change takes effect at once, in verifiers that have the set too: they no longer accept what a removed key signed, whether
/// they have verified it before or not.
///
/// ```
/// # use octollm_http::token::{KeySet, SigningKey, TokenVerifier};
/// # fn main() -> Result<(), octollm_core::error::Error> {
/// let key = SigningKey::generate()?;
/// let keys = KeySet::new("brain").with_key(&key)?;
/// let verifier = TokenVerifier::builder().audience("judge").root(keys).build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct KeySet {
    issuer: Arc<str>,
    speaks_for: Vec<Arc<str>>,
    keys: Arc<RwLock<Vec<Arc<IssuerKey>>>>,
    pub(super) source: Source,
}

/// One key of an issuer.
pub(super) struct IssuerKey {
    kid: Arc<str>,
    pub(super) key: PublicKey,
    removed: AtomicBool,
    validity: Arc<Validity>,
}

impl IssuerKey {
    /// Whether what it has signed is accepted.
    pub(super) fn is_valid(&self) -> bool {
        !self.removed.load(Ordering::Acquire) && self.validity.holds()
    }
}

impl KeySet {
    /// A set without keys, of the issuer with this `iss`.
    pub fn new(issuer: impl Into<Arc<str>>) -> Self {
        Self { issuer: issuer.into(), speaks_for: Vec::new(), keys: Arc::default(), source: Source::new() }
    }

    /// Adds the public key of a signing key. That of an HS256 secret is the secret itself.
    ///
    /// # Errors
    /// Another key of the set has this id, or the set is full (100 keys).
    pub fn with_key(self, key: &SigningKey) -> Result<Self, InvalidValue> {
        self.with(key.kid().into(), key.public.clone())
    }

    /// Adds a public key from a PEM `PUBLIC KEY`: Ed25519, P-256 or RSA of 2048 to 8192 bits. Without an id its id is its
    /// RFC 7638 thumbprint.
    ///
    /// # Errors
    /// It is not such a PEM, another key of the set has this id, or the set is full (100 keys).
    pub fn with_pem(self, kid: Option<&str>, pem: &str) -> Result<Self, InvalidValue> {
        let key = PublicKey::from_pem(pem).map_err(invalid)?;
        let kid = kid.map_or_else(|| key.thumbprint.clone(), Arc::from);
        self.with(kid, key)
    }

    /// Adds the keys of a JWK or of a JWK set, except those that are of other types, or that are not for signatures by their `use`
    /// or `key_ops`.
    ///
    /// # Errors
    /// Those of [`set_jwks`](Self::set_jwks).
    pub fn with_jwks(mut self, jwks: &str) -> Result<Self, InvalidValue> {
        for (kid, key) in read_jwks(jwks)? {
            self = self.with(kid, key)?;
        }
        Ok(self)
    }

    /// Sets the URL of a JWK set, in place of all keys that were added: `https` with the feature `tls`, or `http` on loopback. Those
    /// are removed at once, so that nothing is accepted before the first fetch has succeeded.
    ///
    /// It is fetched with the first token, by [`verify_and_fetch`](super::TokenVerifier::verify_and_fetch) and by servers, and again
    /// every 5 min. A token that names an unknown key waits for it to be fetched, at most every 30 s, and all such tokens for one
    /// request; so publish a key 5 min before you sign with it. If that fails, the keys that were fetched last remain valid for
    /// an hour. A fetch ends after 3 s and 256 KiB, and follows no redirect.
    ///
    /// ```
    /// # use octollm_http::token::{KeySet, TokenVerifier};
    /// # fn main() -> Result<(), octollm_core::error::Error> {
    /// let brain = KeySet::new("brain").url("http://localhost:8000/.well-known/jwks.json")?;
    /// let verifier = TokenVerifier::builder().audience("judge").root(brain).build()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// It is not such a URL.
    pub fn url(mut self, url: &str) -> Result<Self, InvalidValue> {
        self.source.set_url(url)?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        for gone in keys.drain(..) {
            gone.removed.store(true, Ordering::Release);
        }
        drop(keys);
        Ok(self)
    }

    /// Sets the connector that opens the connections to the URL, in place of TCP.
    #[must_use]
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.source.connector = Arc::new(connector);
        self
    }

    /// Sets the configuration of TLS for the URL: trusted roots, a certificate of the client. By default the roots of the system
    /// are trusted.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, config: impl Into<Arc<crate::io::rustls::ClientConfig>>) -> Self {
        self.source.tls = crate::io::ClientTls::new(config.into());
        self
    }

    /// Fetches the keys from the URL, for a program that needs them at its start. It does nothing if they were fetched, or if that
    /// was tried, in the last 30 s, or if there is no URL.
    ///
    /// # Errors
    /// [`Unreachable`](ErrorKind::Unreachable) if the keys could not be fetched the last time. Those that are known remain.
    ///
    /// # Cancel safety
    /// Dropping the future stops nothing: the keys are fetched for all who wait.
    pub async fn fetch(&self) -> Result<(), Failure> {
        self.source.fetch(self).await;
        match self.source.problem() {
            None => Ok(()),
            Some(problem) => {
                let message = format!("the keys of {} were not fetched: {problem}", self.issuer);
                Err(Failure::new(ErrorKind::Unreachable, message).before_execution())
            }
        }
    }

    /// Lets the issuer issue tokens for subjects of another issuer, which it names in `sub_id`, such as a brain for those who
    /// submitted its tasks.
    #[must_use]
    pub fn speaks_for(mut self, issuer: impl Into<Arc<str>>) -> Self {
        self.speaks_for.push(issuer.into());
        self
    }

    /// The `iss` of the issuer.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Replaces all keys by those of a JWK or of a JWK set, except those that are of other types, or not for signatures. Tokens
    /// that a key signed which is in both sets remain valid.
    ///
    /// # Errors
    /// It is not a JWK set, two of its keys have one id, it has more than 100 keys, or it holds a private key. The set is then
    /// not changed.
    pub fn set_jwks(&self, jwks: &str) -> Result<(), InvalidValue> {
        let read = read_jwks(jwks)?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *keys);
        *keys = read.into_iter().map(|(kid, key)| self.reused_or_new(&old, kid, key)).collect();
        for gone in old.iter().filter(|old| !keys.iter().any(|key| Arc::ptr_eq(key, old))) {
            gone.removed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Removes a key. Whether there was one.
    pub fn remove(&self, kid: &str) -> bool {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let gone = keys.iter().position(|key| *key.kid == *kid).map(|position| keys.remove(position));
        if let Some(gone) = &gone {
            gone.removed.store(true, Ordering::Release);
        }
        gone.is_some()
    }

    /// The set as a JWK set, without secrets.
    pub fn to_jwks(&self) -> Value {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<_> = keys
            .iter()
            .filter_map(|key| {
                let mut jwk = key.key.jwk()?.clone();
                jwk.insert("alg".into(), key.key.name().into());
                jwk.insert("use".into(), "sig".into());
                jwk.insert("kid".into(), (*key.kid).into());
                Some(jwk)
            })
            .collect();
        json!({ "keys": keys })
    }

    fn with(self, kid: Arc<str>, key: PublicKey) -> Result<Self, InvalidValue> {
        if !is_kid(&kid) {
            return Err(invalid(
                "the id of a key is not 1 to 64 letters, digits and `._~+/=:-`, without `..`",
            ));
        }
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.iter().any(|known| known.kid == kid) {
            return Err(invalid("two keys have one id"));
        }
        if keys.len() == MOST {
            return Err(invalid("it has more than 100 keys"));
        }
        keys.push(self.new_key(kid, key));
        drop(keys);
        Ok(self)
    }

    /// The key that a head names. Without an id it is the only key.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: &str) -> Result<Arc<IssuerKey>, Refused> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = || Refused::UnknownKey(self.issuer.clone());
        let found = match (kid, &**keys) {
            (Some(kid), keys) => keys.iter().find(|key| *key.kid == *kid).ok_or_else(unknown)?,
            (None, [only]) => only,
            (None, []) if self.source.has_url() => return Err(unknown()),
            (None, _) => return Err(Refused::Invalid("it names no key of its issuer")),
        };
        if found.key.name() != algorithm {
            return Err(Refused::Invalid("its algorithm is not that of its key"));
        }
        match found.is_valid() {
            true => Ok(found.clone()),
            false => Err(Refused::OldKeys(self.issuer.clone())),
        }
    }

    /// The key as it was in the set before, if it was, so that what it verified remains valid.
    fn reused_or_new(&self, old: &[Arc<IssuerKey>], kid: Arc<str>, key: PublicKey) -> Arc<IssuerKey> {
        let same = old.iter().find(|old| old.kid == kid && old.key == key).cloned();
        same.unwrap_or_else(|| self.new_key(kid, key))
    }

    fn new_key(&self, kid: Arc<str>, key: PublicKey) -> Arc<IssuerKey> {
        let validity = self.source.validity.clone();
        Arc::new(IssuerKey { kid, key, removed: AtomicBool::new(false), validity })
    }

    /// The issuer of the subject of a token of this root: the root itself, or the one that it names and may speak for.
    pub(super) fn first_issuer(&self, named: Option<&str>) -> Result<Arc<str>, Refused> {
        match named {
            None => Ok(self.issuer.clone()),
            Some(named) => {
                let first = self.speaks_for.iter().find(|first| ***first == *named).cloned();
                first.ok_or(Refused::Invalid("its issuer does not speak for the issuer of its subject"))
            }
        }
    }
}

fn read_jwks(text: &str) -> Result<Vec<(Arc<str>, PublicKey)>, InvalidValue> {
    let mut set: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| invalid("it is not an object in JSON"))?;
    let members = match set.remove("keys") {
        Some(Value::Array(keys)) => keys,
        None if set.contains_key("kty") => vec![Value::Object(set)],
        _ => return Err(invalid("it is neither a JWK nor a JWK set")),
    };
    if members.len() > MOST {
        return Err(invalid("it has more than 100 keys"));
    }
    let (mut keys, mut kids) = (Vec::new(), HashSet::new());
    for jwk in members {
        let Value::Object(jwk) = jwk else { return Err(invalid("a key is not an object")) };
        if super::key::is_private(&jwk) {
            return Err(invalid("it holds a private key"));
        }
        let Ok(key) = PublicKey::from_jwk(&jwk) else { continue };
        let kid: Arc<str> = match jwk.get("kid") {
            None => key.thumbprint.clone(),
            Some(Value::String(kid)) if is_kid(kid) => kid.as_str().into(),
            Some(kid) => {
                tracing::warn!(%kid, "a key is left out: its id is not one of 1 to 64 letters, digits and `._~+/=:-`");
                continue;
            }
        };
        if !kids.insert(kid.clone()) {
            return Err(invalid("two keys have one id"));
        }
        keys.push((kid, key));
    }
    Ok(keys)
}

fn invalid(reason: &'static str) -> InvalidValue {
    InvalidValue::new("key set").because(reason)
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let kids: Vec<_> = keys.iter().map(|key| &key.kid).collect();
        f.debug_struct("KeySet").field("issuer", &self.issuer).field("keys", &kids).finish_non_exhaustive()
    }
}
