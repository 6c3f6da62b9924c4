//! Delegation links: who may act on behalf of a subject, with which key and which scopes.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use octollm_core::parts::Grant;

use super::{
    LINKS, Refused,
    cache::Cache,
    claims::{self, LinkClaims, SubjectId, Times},
    jws::{self, Jws},
    key::{PublicKey, sha256},
    key_set::{IssuerKey, KeySet},
};

/// The rules that hold for tokens and links.
pub(super) struct Rules {
    pub(super) roots: Vec<KeySet>,
    /// In seconds.
    pub(super) leeway: i64,
    pub(super) max_life: i64,
}

impl Rules {
    pub(super) fn root(&self, issuer: &str) -> Option<&KeySet> {
        self.roots.iter().find(|root| root.issuer() == issuer)
    }
}

/// A link that was verified, with all before it.
pub(super) struct Link {
    /// What is delegated: issuer, subject, scopes and task.
    pub(super) grant: Grant,
    pub(super) sub_id: Option<SubjectId>,
    /// The `iss` of the link.
    pub(super) delegator: String,
    /// The arm that may act.
    pub(super) delegate: String,
    /// Its key.
    pub(super) key: PublicKey,
    pub(super) times: Times,
    /// The key of the first link.
    pub(super) root: Arc<IssuerKey>,
    text: Box<str>,
    /// Its SHA-256, which the link after it names.
    hash: [u8; 32],
    /// The link before it.
    previous: Option<[u8; 32]>,
    /// How many links there are from the root to this one.
    depth: usize,
}

/// Verifies links from the root down, and remembers those that are valid.
pub(super) struct Links(Cache<Arc<Link>>);

impl Links {
    pub(super) fn new(capacity: usize) -> Self {
        Self(Cache::new(capacity))
    }

    /// Verifies a list of links, and returns the last. The first is of a root.
    ///
    /// # Errors
    /// The list is empty or too long, or a link is not valid after those before it.
    pub(super) fn verify(&self, list: &[Arc<str>], rules: &Rules, now: i64) -> Result<Arc<Link>, Refused> {
        const LENGTH: Refused = Refused::Invalid("it has no links, or more than 4");
        if list.len() > LINKS {
            return Err(LENGTH);
        }
        let mut last = None;
        for text in list {
            last = Some(self.next(text, last.as_ref(), rules, now)?);
        }
        last.ok_or(LENGTH)
    }

    /// Verifies one link after another; the first has none before it.
    pub(super) fn next(
        &self,
        text: &str,
        previous: Option<&Arc<Link>>,
        rules: &Rules,
        now: i64,
    ) -> Result<Arc<Link>, Refused> {
        let (hash, before) = (self.0.hash_signed(text.as_bytes()), previous.map(|link| link.hash));
        let is_it = |link: &Arc<Link>| *link.text == *text && link.previous == before;
        let known = self.0.get(hash, is_it, |link| {
            let is_valid = link.root.is_valid() && link.times.check_now(now, rules.leeway).is_ok();
            is_valid.then(|| link.clone())
        });
        if let Some(link) = known {
            return Ok(link);
        }
        let link = Arc::new(Link::verify(text, previous.map(|link| &**link), rules, now)?);
        self.0.insert(hash, link.clone());
        Ok(link)
    }
}

impl Link {
    fn verify(text: &str, previous: Option<&Self>, rules: &Rules, now: i64) -> Result<Self, Refused> {
        let jws = Jws::read(text)?;
        let claims = read(&jws)?;
        claims.times.check(now, rules.leeway, rules.max_life)?;
        let (grant, root) = match previous {
            None => first(&jws, &claims, rules)?,
            Some(previous) => (previous.next(&claims)?, previous.root.clone()),
        };
        jws.verify(previous.map_or(&root.key, |previous| &previous.key))?;
        let depth = previous.map_or(1, |previous| previous.depth + 1);
        if depth > LINKS {
            return Err(Refused::Invalid("it has more than 4 links"));
        }
        let LinkClaims { iss: delegator, may_act, cnf, times, sub_id, .. } = claims;
        let key = PublicKey::from_jwk(&cnf.jwk).map_err(Refused::Invalid)?;
        if !key.can_delegate() {
            return Err(Refused::Invalid("the key in a link is neither Ed25519 nor P-256"));
        }
        // The name of a root is that of no arm.
        if rules.root(&may_act.sub).is_some() {
            return Err(Refused::Invalid("a link delegates to a root"));
        }
        let (hash, previous) = (sha256(text.as_bytes()), previous.map(|link| link.hash));
        let (text, delegate) = (text.into(), may_act.sub);
        Ok(Self { grant, sub_id, delegator, delegate, key, times, root, text, hash, previous, depth })
    }

    /// What a link after this one delegates.
    fn next(&self, claims: &LinkClaims) -> Result<Grant, Refused> {
        if claims.prv.as_deref() != Some(&*BASE64.encode(self.hash)) {
            return Err(Refused::Invalid("a link does not name the link before it"));
        }
        let LinkClaims { iss, sub, sub_id, task, scope, times, .. } = claims;
        self.check(Derived { iss, sub, sub_id, task: task.as_ref(), scope, exp: times.exp })?;
        let mut grant = Grant::new(sub, scope);
        grant.issuer = self.grant.issuer.clone();
        grant.task = claims.task.clone();
        Ok(grant)
    }

    /// Checks what the delegate signs: nothing of it may be wider than this link.
    pub(super) fn check(&self, derived: Derived<'_>) -> Result<(), Refused> {
        let Derived { iss, sub, sub_id, task, scope, exp } = derived;
        let broken = if *iss != *self.delegate {
            "its issuer is not the arm that may act"
        } else if *sub != *self.grant.subject || *sub_id != self.sub_id {
            "its subject is not that of its link"
        } else if self.grant.task.is_some() && task != self.grant.task.as_ref() {
            "its task is not that of its link"
        } else if !scope.iter().all(|scope| self.grant.has_scope(scope)) {
            "its scopes are wider than those of its link"
        } else if exp > self.times.exp {
            "it is valid for longer than its link"
        } else {
            return Ok(());
        };
        Err(Refused::Invalid(broken))
    }
}

/// What a delegate signs, as far as its link limits it.
pub(super) struct Derived<'c> {
    pub(super) iss: &'c str,
    pub(super) sub: &'c str,
    pub(super) sub_id: &'c Option<SubjectId>,
    pub(super) task: Option<&'c octollm_core::id::TaskId>,
    pub(super) scope: &'c [String],
    pub(super) exp: i64,
}

/// Reads the claims of a link, whose signature and limits are not checked.
pub(super) fn read(jws: &Jws<'_>) -> Result<LinkClaims, Refused> {
    if jws.media_type != jws::LINK {
        return Err(Refused::Invalid("a link has another type"));
    }
    if jws.claims.contains_key("aud") {
        return Err(Refused::Invalid("a link has an audience"));
    }
    claims::read(jws.claims.clone())
}

/// What the first link delegates, and the key of the root that may have signed it.
fn first(jws: &Jws<'_>, claims: &LinkClaims, rules: &Rules) -> Result<(Grant, Arc<IssuerKey>), Refused> {
    if claims.prv.is_some() {
        return Err(Refused::Invalid("the first link names one before it"));
    }
    let root = rules.root(&claims.iss).ok_or(Refused::Invalid("its issuer is not a root"))?;
    let key = root.find(jws.kid.as_deref(), &jws.algorithm)?;
    let issuer = first_issuer(root, &claims.sub, claims.sub_id.as_ref())?;
    let mut grant = Grant::new(&*claims.sub, &claims.scope);
    grant.issuer = Some(issuer.as_ref().to_owned());
    grant.task = claims.task.clone();
    Ok((grant, key))
}

/// The issuer of the subject of what a root signed.
pub(super) fn first_issuer(
    root: &KeySet,
    sub: &str,
    sub_id: Option<&SubjectId>,
) -> Result<Arc<str>, Refused> {
    if sub_id.is_some_and(|id| id.sub != sub) {
        return Err(Refused::Invalid("its two subjects differ"));
    }
    root.first_issuer(sub_id.map(|id| &*id.iss))
}
