//! Issued tokens, and what each was issued for.

use std::{hash::Hasher, sync::Arc};

use http::HeaderValue;
use octollm_core::{card::ArmCard, id::TaskId, parts::Grant};

use super::{cache::end_of, claims::Times};

/// A token, and what it was issued for.
pub(super) struct Issued {
    pub(super) grant: Option<Arc<Grant>>,
    scopes: Option<Vec<String>>,
    pub(super) callee: Arc<ArmCard>,
    pub(super) token: Token,
}

#[derive(Clone)]
pub(super) struct Token {
    /// `Bearer` and the token.
    pub(super) header: HeaderValue,
    pub(super) times: Times,
}

/// What a token is issued for: everything that it depends on.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'w> {
    /// That of the caller. `None` for a root that acts for itself.
    pub(super) grant: Option<&'w Arc<Grant>>,
    /// `None` for all that can be passed on.
    pub(super) scopes: Option<&'w [&'w str]>,
    pub(super) callee: &'w Arc<ArmCard>,
}

impl Wanted<'_> {
    /// Writes what differs between calls that are made at once, without lengths: all of it is compared.
    pub(super) fn write(&self, hasher: &mut impl Hasher) {
        let mut write = |text: &str| hasher.write(text.as_bytes());
        write(&self.callee.arm_id);
        self.callee.needs.iter().for_each(|scope| write(scope));
        self.callee.key.iter().filter_map(|key| key.get("x")?.as_str()).for_each(&mut write);
        self.scopes.unwrap_or_default().iter().copied().for_each(&mut write);
        let Some(grant) = self.grant else { return };
        write(&grant.subject);
        grant.issuer.as_deref().into_iter().for_each(&mut write);
        grant.task.as_ref().map(TaskId::as_str).into_iter().for_each(&mut write);
        grant.scopes.iter().for_each(|scope| write(scope));
        if let Some(last) = grant.links.as_deref().and_then(<[_]>::last) {
            hasher.write(end_of(last.as_bytes()));
        }
        hasher.write_i64(grant.valid_until.map_or(i64::MAX, |end| end.as_second()));
    }

    /// Whether a token was issued for this.
    pub(super) fn is_of(&self, issued: &Issued) -> bool {
        let Self { grant, scopes, callee } = *self;
        let is_grant = match (grant, &issued.grant) {
            (Some(grant), Some(known)) => Arc::ptr_eq(grant, known) || grant == known,
            (grant, known) => grant.is_none() && known.is_none(),
        };
        let is_callee = || {
            let known = &issued.callee;
            Arc::ptr_eq(callee, known)
                || (&callee.arm_id, &callee.needs, &callee.key) == (&known.arm_id, &known.needs, &known.key)
        };
        let are_scopes = match (scopes, issued.scopes.as_deref()) {
            (Some(scopes), Some(known)) => scopes == known,
            (scopes, known) => scopes.is_none() && known.is_none(),
        };
        are_scopes && is_grant && is_callee()
    }

    pub(super) fn with(self, token: Token) -> Issued {
        Issued {
            grant: self.grant.cloned(),
            scopes: self.scopes.map(|scopes| scopes.iter().map(|scope| (*scope).to_owned()).collect()),
            callee: self.callee.clone(),
            token,
        }
    }
}
