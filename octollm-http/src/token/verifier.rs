//! The verifier of tokens.

use std::{collections::HashSet, fmt, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use octollm_core::{
    __private::recent,
    error::{ConfigError, Failure},
    parts::{Grant, is_scope},
};

use super::{
    DEVELOPMENT, Now, Refused,
    cache::Cache,
    claims::{self, ForeignClaims, Times, TokenClaims},
    jws::{self, Jws},
    key_set::{IssuerKey, KeySet},
    link::{Derived, Link, Links, Rules, first_issuer},
    signing_key::SigningKey,
};
use crate::limits::within;

/// Verifies tokens. It is cheap to clone; clones share what they have verified.
///
/// It knows the keys of roots only, and needs no network unless these are fetched from a [URL](KeySet::url). The verdict on a token
/// that was verified is found by the text of the token from then on, until it expires or the key of its root is removed.
#[derive(Clone)]
pub struct TokenVerifier(Arc<Inner>);

struct Inner {
    audiences: Vec<String>,
    rules: Rules,
    providers: Vec<Provider>,
    clock: Now,
    /// With their texts.
    verified: Cache<(Box<str>, Verified)>,
    links: Links,
}

/// An identity provider whose tokens are accepted.
struct Provider {
    keys: KeySet,
    audience: String,
    ceiling: Vec<String>,
    /// In seconds.
    max_life: i64,
}

/// A token that was verified.
struct Verified {
    grant: Arc<Grant>,
    audience: Arc<str>,
    times: Times,
    key: Arc<IssuerKey>,
}

impl TokenVerifier {
    /// Returns a builder, which needs an audience and a root.
    pub fn builder() -> TokenVerifierBuilder {
        TokenVerifierBuilder {
            audiences: Vec::new(),
            roots: Vec::new(),
            providers: Vec::new(),
            leeway: Duration::from_secs(30),
            max_life: Duration::from_secs(5 * 60),
            cache_capacity: 10_000,
            clock: Arc::new(recent),
        }
    }

    /// Returns a builder for development, of a verifier that trusts a root named `development`. Its key is in this file, which is
    /// created if it is missing. [`TokenIssuer::development`](super::TokenIssuer::development) of the same file issues its tokens.
    ///
    /// # Errors
    /// Those of [`SigningKey::from_file_or_new`].
    pub fn development(key_file: impl AsRef<Path>) -> Result<TokenVerifierBuilder, ConfigError> {
        let key = SigningKey::from_file_or_new(&key_file)?;
        let keys = KeySet::new(DEVELOPMENT).with_key(&key).map_err(|source| {
            let file = key_file.as_ref().display().to_string();
            ConfigError::new(file, "holds a key that cannot be used").with_source(source)
        })?;
        Ok(Self::builder().root(keys))
    }

    /// Verifies a token, and returns what it grants: its subject, its scopes, its task, its end, and the links by which this
    /// process may call on.
    ///
    /// It does not wait. Keys from a [URL](KeySet::url) are fetched by [`verify_and_fetch`](Self::verify_and_fetch).
    ///
    /// # Errors
    /// [`Unauthenticated`](octollm_core::error::ErrorKind::Unauthenticated), with the rule that the token breaks.
    pub fn verify(&self, token: &str) -> Result<Arc<Grant>, Failure> {
        Ok(self.check(token)?)
    }

    /// Verifies a token as [`verify`](Self::verify) does, and fetches keys from the [URL](KeySet::url) of their issuer where they
    /// are due or the token names one that is not known. A server does this for each request.
    ///
    /// # Errors
    /// Those of [`verify`](Self::verify).
    ///
    /// # Cancel safety
    /// Dropping the future stops nothing: keys that are being fetched are fetched for all.
    pub async fn verify_and_fetch(&self, token: &str) -> Result<Arc<Grant>, Failure> {
        for keys in self.0.key_sets() {
            keys.source.keep_fresh(keys).await;
        }
        let unknown = match self.check(token) {
            Err(Refused::UnknownKey(issuer) | Refused::OldKeys(issuer)) => issuer,
            checked => return Ok(checked?),
        };
        if let Some(keys) = self.0.key_sets().find(|keys| keys.issuer() == &*unknown) {
            keys.source.fetch(keys).await;
        }
        self.verify(token)
    }

    /// The audiences of its tokens, and their issuers.
    pub(crate) fn names(&self) -> (Vec<String>, Vec<String>) {
        let Inner { audiences, providers, .. } = &*self.0;
        let audiences = audiences.iter().chain(providers.iter().map(|provider| &provider.audience));
        (audiences.cloned().collect(), self.0.key_sets().map(|keys| keys.issuer().to_owned()).collect())
    }

    /// The verdict on a token that was verified before. `None` where [`verify_and_fetch`](Self::verify_and_fetch) is needed.
    pub(crate) fn known(&self, token: &[u8]) -> Option<Result<Arc<Grant>, Failure>> {
        for keys in self.0.key_sets() {
            if keys.source.is_idle() {
                return None;
            }
            keys.source.begin(keys, false);
        }
        let known = self.0.known(token, (self.0.clock)().as_second())?;
        Some(known.map_err(Failure::from))
    }

    fn check(&self, token: &str) -> Result<Arc<Grant>, Refused> {
        let now = (self.0.clock)().as_second();
        if token.len() > jws::MOST {
            return Err(Refused::Invalid("it is longer than 8 KiB"));
        }
        if let Some(known) = self.0.known(token.as_bytes(), now) {
            return known;
        }
        let found = self.0.verify(token, now)?;
        let grant = found.grant.clone();
        let verified = &self.0.verified;
        verified.insert(verified.hash_signed(token.as_bytes()), (token.into(), found));
        Ok(grant)
    }
}

const ANOTHER: Refused = Refused::Invalid("it is for another audience");

impl Inner {
    fn key_sets(&self) -> impl Iterator<Item = &KeySet> {
        self.rules.roots.iter().chain(self.providers.iter().map(|provider| &provider.keys))
    }

    /// The verdict on a token that was verified before, whose text is compared whole. Its times, its key and its audience are
    /// checked again.
    fn known(&self, token: &[u8], now: i64) -> Option<Result<Arc<Grant>, Refused>> {
        let is_it = |(text, _): &(Box<str>, Verified)| text.as_bytes() == token;
        self.verified.get(self.verified.hash_signed(token), is_it, |(_, known)| {
            let is_valid = known.key.is_valid() && known.times.check_now(now, self.rules.leeway).is_ok();
            is_valid.then(|| if self.is_for_this(known) { Ok(known.grant.clone()) } else { Err(ANOTHER) })
        })
    }

    fn is_for_this(&self, known: &Verified) -> bool {
        self.audiences.iter().any(|audience| **audience == *known.audience)
            || self.providers.iter().any(|provider| *provider.audience == *known.audience)
    }

    fn verify(&self, token: &str, now: i64) -> Result<Verified, Refused> {
        let jws = Jws::read(token)?;
        let issuer = jws.claims.get("iss").and_then(serde_json::Value::as_str);
        let issuer = issuer.ok_or(Refused::Invalid("it has no issuer"))?;
        if let Some(provider) = self.providers.iter().find(|provider| provider.keys.issuer() == issuer) {
            return self.foreign(&jws, provider, now);
        }
        if jws.media_type != jws::TOKEN {
            return Err(Refused::Invalid("its type is not at+jwt"));
        }
        let claims: TokenClaims = claims::read(jws.claims.clone())?;
        if !self.audiences.contains(&claims.aud) {
            return Err(ANOTHER);
        }
        claims.times.check(now, self.rules.leeway, self.rules.max_life)?;
        match &claims.prf {
            None => self.of_root(&jws, &claims, now),
            Some(list) => {
                let last = self.links.verify(list, &self.rules, now)?;
                self.of_delegate(&jws, &claims, &last, now)
            }
        }
    }

    /// A token that a root signed.
    fn of_root(&self, jws: &Jws<'_>, claims: &TokenClaims, now: i64) -> Result<Verified, Refused> {
        let root = self.rules.root(&claims.iss).ok_or(Refused::Invalid("its issuer is not trusted"))?;
        let key = root.find(jws.kid.as_deref(), &jws.algorithm)?;
        let issuer = first_issuer(root, &claims.sub, claims.sub_id.as_ref())?;
        jws.verify(&key.key)?;
        let onward = self.onward(claims, None, now)?;
        if let Some(link) = &onward {
            let same = Arc::ptr_eq(&link.root, &key)
                && link.delegator == claims.iss
                && link.grant.subject == claims.sub
                && link.sub_id == claims.sub_id;
            if !same {
                return Err(Refused::Invalid("its link is of another signer or subject"));
            }
        }
        Ok(verified(claims, &issuer, key, &[]))
    }

    /// A token that the delegate of a link signed.
    fn of_delegate(
        &self,
        jws: &Jws<'_>,
        claims: &TokenClaims,
        last: &Arc<Link>,
        now: i64,
    ) -> Result<Verified, Refused> {
        let TokenClaims { iss, sub, sub_id, task, scope, times, .. } = claims;
        last.check(Derived { iss, sub, sub_id, task: task.as_ref(), scope, exp: times.exp })?;
        jws.verify(&last.key)?;
        self.onward(claims, Some(last), now)?;
        let issuer = last.grant.issuer.as_deref().unwrap_or_default();
        Ok(verified(claims, issuer, last.root.clone(), claims.prf.as_deref().unwrap_or_default()))
    }

    /// Verifies the link onward, if there is one.
    fn onward(
        &self,
        claims: &TokenClaims,
        last: Option<&Arc<Link>>,
        now: i64,
    ) -> Result<Option<Arc<Link>>, Refused> {
        let Some(text) = &claims.dlg else { return Ok(None) };
        let link = self.links.next(text, last, &self.rules, now)?;
        if link.delegate != claims.aud {
            return Err(Refused::Invalid("its link is for another arm"));
        }
        if claims.task.is_some() && link.grant.task != claims.task {
            return Err(Refused::Invalid("its link is for another task"));
        }
        Ok(Some(link))
    }

    /// A token of an identity provider, which delegates nothing.
    fn foreign(&self, jws: &Jws<'_>, provider: &Provider, now: i64) -> Result<Verified, Refused> {
        const ID_TOKEN: [&str; 4] = ["nonce", "at_hash", "c_hash", "s_hash"];
        let is_id_token = ID_TOKEN.iter().any(|claim| jws.claims.contains_key(*claim))
            || jws.claims.get("typ").is_some_and(|kind| kind == "ID");
        if !matches!(&*jws.media_type, jws::TOKEN | "jwt") || is_id_token {
            return Err(Refused::Invalid("it is not an access token"));
        }
        let claims: ForeignClaims = claims::read(jws.claims.clone())?;
        if !claims.aud.contains(&provider.audience) {
            return Err(ANOTHER);
        }
        claims.times.check(now, self.rules.leeway, provider.max_life)?;
        let key = provider.keys.find(jws.kid.as_deref(), &jws.algorithm)?;
        jws.verify(&key.key)?;
        let ForeignClaims { sub, mut scope, scp, times, .. } = claims;
        scope.extend(scp);
        let mut grant = Grant::new(&*sub, &scope);
        grant.scopes = grant.scopes_within(&provider.ceiling);
        grant.issuer = Some(provider.keys.issuer().to_owned());
        grant.valid_until = Timestamp::from_second(times.exp).ok();
        grant.links = Some(Arc::default());
        Ok(Verified { grant: Arc::new(grant), audience: (*provider.audience).into(), times, key })
    }
}

fn verified(claims: &TokenClaims, issuer: &str, key: Arc<IssuerKey>, links: &[Arc<str>]) -> Verified {
    let mut grant = Grant::new(&*claims.sub, &claims.scope);
    grant.issuer = Some(issuer.to_owned());
    grant.valid_until = Timestamp::from_second(claims.times.exp).ok();
    grant.task = claims.task.clone();
    grant.actor = match claims.prf {
        Some(_) => Some(claims.iss.clone()),
        None => claims.act.as_ref().map(|actor| actor.sub.clone()),
    };
    let onward = claims.dlg.iter().flat_map(|onward| links.iter().chain([onward]));
    grant.links = Some(onward.cloned().collect());
    Verified { grant: Arc::new(grant), audience: (*claims.aud).into(), times: claims.times, key }
}

/// Life of the tokens of identity providers, in seconds: a day.
const PROVIDER_LIFE: i64 = 24 * 3600;

/// Builds a [`TokenVerifier`]: see [`TokenVerifier::builder`].
#[must_use = "a builder does nothing until it builds"]
pub struct TokenVerifierBuilder {
    audiences: Vec<String>,
    roots: Vec<KeySet>,
    providers: Vec<Provider>,
    leeway: Duration,
    max_life: Duration,
    cache_capacity: usize,
    clock: Now,
}

impl TokenVerifierBuilder {
    /// Adds an audience whose tokens are accepted: the id of the arm or the brain that verifies. At least one is needed, except for
    /// [`Server::tokens`](crate::Server::tokens), which adds the id of the server.
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Adds an audience if there is none.
    pub(crate) fn audience_or(self, audience: &str) -> Self {
        if self.audiences.is_empty() { self.audience(audience) } else { self }
    }

    /// Adds a root: an issuer whose tokens are accepted, and whose links delegate. At least one issuer is needed.
    pub fn root(mut self, keys: KeySet) -> Self {
        self.roots.push(keys);
        self
    }

    /// Adds an identity provider, whose access tokens for `audience` are accepted. They grant at most these scopes, delegate
    /// nothing, and may live for up to a day. Scopes are read from `scope` and `scp`.
    pub fn identity_provider(
        mut self,
        keys: KeySet,
        audience: impl Into<String>,
        scopes: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let ceiling = scopes.into_iter().map(Into::into).collect();
        self.providers.push(Provider { keys, audience: audience.into(), ceiling, max_life: PROVIDER_LIFE });
        self
    }

    /// Sets how far the clock of an issuer may differ. Default 30 s, at most 5 min.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Sets the longest life of tokens and links. Default 5 min, 1 s to a day.
    pub fn max_life(mut self, life: Duration) -> Self {
        self.max_life = life;
        self
    }

    /// Sets how many verified tokens, and as many links, are remembered. Default 10 000, 2 to 10 million. Each takes up to 8 KiB,
    /// the limit of its text, and as much again for the links that it holds; usual ones take 1 to 2 KiB.
    pub fn cache_capacity(mut self, capacity: usize) -> Self {
        self.cache_capacity = capacity;
        self
    }

    /// Sets the clock. The default is the system's, or tokio's where a test has paused that.
    pub fn clock(mut self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(now);
        self
    }

    /// Builds the verifier.
    ///
    /// # Errors
    /// There is no audience or no issuer, one of them is empty, an issuer occurs twice, a scope is
    /// [none](octollm_core::parts::is_scope), or a limit is out of range.
    pub fn build(self) -> Result<TokenVerifier, ConfigError> {
        let Self { audiences, roots, providers, leeway, max_life, cache_capacity, clock } = self;
        within("leeway", Duration::ZERO, leeway, Duration::from_secs(300))?;
        within("max_life", Duration::from_secs(1), max_life, Duration::from_secs(24 * 3600))?;
        within("cache_capacity", 2, cache_capacity, 10_000_000)?;
        // A verifier for identity providers alone needs no audience of its own.
        let no_audience = audiences.is_empty() && (providers.is_empty() || !roots.is_empty());
        let mut names = audiences.iter().chain(providers.iter().map(|provider| &provider.audience));
        if no_audience || names.any(String::is_empty) {
            return Err(ConfigError::new("audience", "is not set or empty: set it to the id of this arm"));
        }
        let mut issuers = HashSet::new();
        for keys in roots.iter().chain(providers.iter().map(|provider| &provider.keys)) {
            if keys.issuer().is_empty() || !issuers.insert(keys.issuer()) {
                return Err(ConfigError::new("root", "has an issuer that is empty or is set twice"));
            }
        }
        if providers.iter().any(|provider| provider.ceiling.iter().any(|scope| !is_scope(scope))) {
            return Err(ConfigError::new(
                "identity_provider",
                "has a scope that is not of the form `entity:verb`",
            ));
        }
        if issuers.is_empty() {
            return Err(ConfigError::new("root", "is not set: set the keys of the issuer of tokens"));
        }
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let rules = Rules { roots, leeway: seconds(leeway), max_life: seconds(max_life) };
        let (verified, links) = (Cache::new(cache_capacity), Links::new(cache_capacity));
        Ok(TokenVerifier(Arc::new(Inner { audiences, rules, providers, clock, verified, links })))
    }
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifier")
            .field("audiences", &self.0.audiences)
            .field("roots", &self.0.rules.roots)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenVerifierBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifierBuilder")
            .field("audiences", &self.audiences)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}
