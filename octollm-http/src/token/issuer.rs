//! The issuer of tokens: a root, or an arm that calls on.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use http::HeaderValue;
use jiff::Timestamp;
use octollm_core::{
    __private::recent,
    card::ArmCard,
    error::{ConfigError, ErrorKind, Failure},
    id::{RequestId, TaskId},
    parts::{Grant, is_scope},
};
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{
    DEVELOPMENT, LINKS, Now,
    cache::Cache,
    claims::{Actor, Confirmation, Format, LinkClaims, SubjectId, Times, TokenClaims},
    issued::{Issued, Token, Wanted},
    jws::{self, Jws, sign},
    key::{PublicKey, sha256},
    link,
    signing_key::SigningKey,
};
use crate::limits::within;

/// Issues tokens. It is cheap to clone; clones share what they have issued.
///
/// A token is used again for the same grant, arm and scopes until half its life is over, so that a call in steady state signs
/// nothing.
#[derive(Clone)]
pub struct TokenIssuer(Arc<Inner>);

struct Inner {
    name: String,
    key: SigningKey,
    is_root: bool,
    /// In seconds.
    life: i64,
    clock: Now,
    issued: Cache<Issued>,
}

impl TokenIssuer {
    /// Returns a builder of a root, which issues tokens with this `iss`. Verifiers need its key.
    pub fn root(issuer: impl Into<String>, key: SigningKey) -> TokenIssuerBuilder {
        TokenIssuerBuilder::new(issuer.into(), key, true)
    }

    /// Returns a builder of an arm that calls others on behalf of its callers: it can issue what the links of a grant cover. Its
    /// callers need its public key, which its card has.
    pub fn arm(id: impl Into<String>, key: SigningKey) -> TokenIssuerBuilder {
        TokenIssuerBuilder::new(id.into(), key, false)
    }

    /// Returns a root for development, named `development`, whose key is in this file, and is created if it is missing.
    ///
    /// # Errors
    /// Those of [`SigningKey::from_file_or_new`].
    pub fn development(key_file: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::root(DEVELOPMENT, SigningKey::from_file_or_new(key_file)?).build()
    }

    /// Issues a token for a subject at an arm, with these scopes. If the card of the arm has a key and lists what it needs, the
    /// token has a link by which the arm may call on with that, as far as it is granted here.
    ///
    /// A root issues what is granted, until the grant ends. Where an arm acts for the subject, by a delegated token, the token of the
    /// root names that arm and has no link. An arm issues what its link covers.
    ///
    /// # Errors
    /// [`InsufficientScope`](ErrorKind::InsufficientScope) if a scope is not covered, as no text is that is
    /// [no scope](octollm_core::parts::is_scope), and [`Unauthenticated`](ErrorKind::Unauthenticated) if there is no link to this arm and its key, or the grant has ended.
    pub fn issue(&self, grant: &Grant, scopes: &[&str], callee: &ArmCard) -> Result<SecretString, Failure> {
        let mut card = ArmCard::new(&*callee.arm_id);
        (card.needs, card.key) = (callee.needs.clone(), callee.key.clone());
        let header = self.header(Some(&Arc::new(grant.clone())), Some(scopes), &Arc::new(card))?;
        let token = header.to_str().ok().and_then(|value| value.strip_prefix(BEARER));
        Ok(token.unwrap_or_default().into())
    }

    /// The public key for the card of an arm. `None` for a root.
    pub(crate) fn public_key(&self) -> Option<Map<String, Value>> {
        if self.0.is_root { None } else { self.0.key.public_jwk() }
    }

    /// Whether this is a root, which may act for itself.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_root
    }

    /// The value of the `Authorization` header for a call with these scopes, or with all that can be passed on. Without a grant a
    /// root acts for itself, with these scopes and what the callee needs.
    ///
    /// A token that was issued for the same is used again. Where the grant and the card are the same in memory too, nothing of them
    /// is compared.
    ///
    /// # Errors
    /// Those of [`issue`](Self::issue).
    pub(crate) fn header(
        &self,
        grant: Option<&Arc<Grant>>,
        scopes: Option<&[&str]>,
        callee: &Arc<ArmCard>,
    ) -> Result<HeaderValue, Failure> {
        let now = (self.0.clock)().as_second();
        let wanted = Wanted { grant, scopes, callee };
        let hash = self.0.issued.hash(|hasher| wanted.write(hasher));
        let known = self.0.issued.get(
            hash,
            |issued| wanted.is_of(issued),
            |issued| {
                // The next look-up compares pointers.
                if let (Some(known), Some(grant)) = (&mut issued.grant, grant) {
                    known.clone_from(grant);
                }
                issued.callee.clone_from(callee);
                issued.token.times.is_in_first_half(now).then(|| issued.token.header.clone())
            },
        );
        if let Some(header) = known {
            return Ok(header);
        }
        let token = match grant {
            Some(grant) => self.0.issue(grant, scopes, callee, now)?,
            None => {
                let needs = callee.needs.iter().map(|scope| &**scope);
                let all = scopes.unwrap_or_default().iter().copied().chain(needs);
                self.0.issue(&Grant::new(&*self.0.name, all), scopes, callee, now)?
            }
        };
        self.0.issued.insert(hash, wanted.with(token.clone()));
        Ok(token.header)
    }
}

/// Most tokens that are stored to be used again.
const ISSUED: usize = 10_000;
pub(super) const BEARER: &str = "Bearer ";

/// On whose authority a token is issued.
struct Authority {
    sub_id: Option<SubjectId>,
    /// What may be passed on.
    grant: Grant,
    task: Option<TaskId>,
    /// The arm that acts for the subject, where a root issues for a grant that came by links.
    actor: Option<String>,
    /// When it ends, in seconds since 1970.
    end: i64,
    links: Vec<Arc<str>>,
}

impl Inner {
    fn issue(
        &self,
        grant: &Grant,
        scopes: Option<&[&str]>,
        callee: &ArmCard,
        now: i64,
    ) -> Result<Token, Failure> {
        let authority = if self.is_root { self.own(grant) } else { self.delegated(grant)? };
        if authority.end <= now {
            return Err(refused(ErrorKind::Unauthenticated, "the grant of the caller has ended"));
        }
        let scopes = match scopes {
            Some(scopes) => self.checked(scopes, &authority.grant)?,
            None => authority.grant.scopes.iter().filter(|scope| is_scope(scope)).cloned().collect(),
        };
        let times = Times { iat: now, exp: authority.end.min(now + self.life), nbf: None };
        let dlg = self.link(&authority, callee, times)?;
        let claims = TokenClaims {
            iss: self.name.clone(),
            sub: grant.subject.clone(),
            sub_id: authority.sub_id,
            aud: callee.arm_id.clone(),
            times,
            jti: RequestId::new().as_str().to_owned(),
            scope: scopes,
            task: authority.task,
            act: authority.actor.map(|sub| Actor { sub }),
            prf: Some(authority.links).filter(|links| !links.is_empty()),
            dlg: dlg.map(Arc::from),
        };
        let token = self.signed(jws::TOKEN, &claims)?;
        if token.len() > jws::MOST {
            let words = "a token for this call would be longer than 8 KiB: delegate fewer scopes";
            return Err(refused(ErrorKind::Internal, words));
        }
        let header = HeaderValue::try_from(format!("{BEARER}{token}"));
        let mut header = header.map_err(|_| refused(ErrorKind::Internal, "a token is no header value"))?;
        header.set_sensitive(true);
        Ok(Token { header, times })
    }

    /// Checks that scopes are granted.
    fn checked(&self, scopes: &[&str], grant: &Grant) -> Result<Vec<String>, Failure> {
        let missing = match scopes.iter().find(|scope| !grant.has_scope(scope)) {
            None => return Ok(scopes.iter().map(|scope| (*scope).to_owned()).collect()),
            Some(text) if !is_scope(text) => format!("{text:?} is no scope, so it is granted to nobody"),
            Some(scope) => format!("the scope {scope} is not granted to {}", self.name),
        };
        Err(refused(ErrorKind::InsufficientScope, missing))
    }

    /// The authority of a root: what it grants itself.
    fn own(&self, grant: &Grant) -> Authority {
        let first = grant.issuer.clone().filter(|issuer| *issuer != self.name);
        Authority {
            sub_id: first.map(|iss| SubjectId { format: Format::IssSub, iss, sub: grant.subject.clone() }),
            grant: grant.clone(),
            task: grant.task.clone(),
            actor: grant.actor.clone(),
            end: grant.valid_until.map_or(i64::MAX, |end| end.as_second()),
            links: Vec::new(),
        }
    }

    /// The authority of an arm: the last link of the grant, which was verified when it arrived.
    fn delegated(&self, grant: &Grant) -> Result<Authority, Failure> {
        let none = || {
            let words = "the caller has not delegated to this arm: its card needs `key` and `needs`";
            refused(ErrorKind::Unauthenticated, words)
        };
        let Some(links) = grant.links.as_deref() else {
            let words = "the caller is not known by a token, so only a root can call on for it: \
                         set `tokens(TokenIssuer::root(..))`";
            return Err(refused(ErrorKind::Unauthenticated, words));
        };
        let last = links.last().ok_or_else(none)?;
        let jws = Jws::read(last)?;
        let claims = link::read(&jws)?;
        let key = PublicKey::from_jwk(&claims.cnf.jwk).map_err(|_| none())?;
        if claims.may_act.sub != self.name || key != self.key.public || claims.sub != grant.subject {
            return Err(none());
        }
        let task = claims.task.or_else(|| grant.task.clone());
        if grant.task.is_some() && task != grant.task {
            return Err(refused(ErrorKind::InsufficientScope, "the caller has delegated for another task"));
        }
        Ok(Authority {
            sub_id: claims.sub_id,
            grant: Grant::new(claims.sub, claims.scope),
            task,
            actor: None,
            end: claims.times.exp,
            links: links.to_vec(),
        })
    }

    /// The link by which the callee may call on. `None` if it needs nothing that can be delegated.
    fn link(&self, authority: &Authority, callee: &ArmCard, times: Times) -> Result<Option<String>, Failure> {
        let Some(jwk) = &callee.key else { return Ok(None) };
        let scope = authority.grant.scopes_within(&callee.needs);
        // Links of a root for what came by links would be counted anew.
        if scope.is_empty() || authority.links.len() >= LINKS || authority.actor.is_some() {
            return Ok(None);
        }
        let key = PublicKey::from_jwk(jwk).ok().filter(PublicKey::can_delegate);
        let key = key.ok_or_else(|| {
            let message =
                format!("the key on the card of {} is not a public Ed25519 or P-256 key", callee.arm_id);
            refused(ErrorKind::BadResponse, message)
        })?;
        let claims = LinkClaims {
            iss: self.name.clone(),
            sub: authority.grant.subject.clone(),
            sub_id: authority.sub_id.clone(),
            may_act: Actor { sub: callee.arm_id.clone() },
            cnf: Confirmation { jwk: key.jwk().cloned().unwrap_or_default() },
            times,
            scope,
            task: authority.task.clone(),
            prv: authority.links.last().map(|last| BASE64.encode(sha256(last.as_bytes()))),
        };
        self.signed(jws::LINK, &claims).map(Some)
    }

    fn signed(&self, media_type: &str, claims: &impl serde::Serialize) -> Result<String, Failure> {
        let kid = self.is_root.then(|| self.key.kid());
        sign(media_type, &self.key, kid, claims)
            .ok_or_else(|| refused(ErrorKind::Internal, "a token could not be signed"))
    }
}

fn refused(kind: ErrorKind, message: impl Into<String>) -> Failure {
    Failure::new(kind, message).before_execution()
}

/// Builds a [`TokenIssuer`]: see [`TokenIssuer::root`] and [`TokenIssuer::arm`].
#[must_use = "a builder does nothing until it builds"]
pub struct TokenIssuerBuilder {
    name: String,
    key: SigningKey,
    is_root: bool,
    life: Duration,
    clock: Now,
}

impl TokenIssuerBuilder {
    fn new(name: String, key: SigningKey, is_root: bool) -> Self {
        let (life, clock): (_, Now) = (Duration::from_secs(5 * 60), Arc::new(recent));
        Self { name, key, is_root, life, clock }
    }

    /// Sets the life of tokens and links, which ends earlier where a grant or a link ends. Default 5 min, 1 s to a day. Verifiers
    /// have a limit of their own.
    pub fn life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// Sets the clock. The default is the system's, or tokio's where a test has paused that.
    pub fn clock(mut self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(now);
        self
    }

    /// Builds the issuer.
    ///
    /// # Errors
    /// The name is empty, the key of an arm is neither Ed25519 nor P-256, or a limit is out of range.
    pub fn build(self) -> Result<TokenIssuer, ConfigError> {
        let Self { name, key, is_root, life, clock } = self;
        within("life", Duration::from_secs(1), life, Duration::from_secs(24 * 3600))?;
        if name.is_empty() {
            return Err(ConfigError::new(if is_root { "root" } else { "arm" }, "has an empty name"));
        }
        if !is_root && !key.public.can_delegate() {
            return Err(ConfigError::new("arm", "needs an Ed25519 or P-256 key"));
        }
        let life = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let issued = Cache::new(ISSUED);
        Ok(TokenIssuer(Arc::new(Inner { name, key, is_root, life, clock, issued })))
    }
}

impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIssuer")
            .field("name", &self.0.name)
            .field("key", &self.0.key)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenIssuerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIssuerBuilder")
            .field("name", &self.name)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
