//! What the requests of a client are authorized with: tokens, and header fields for one arm.
#![cfg_attr(not(feature = "tokens"), allow(unused_variables, clippy::unused_self))]

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use octollm_core::{
    card::ArmCard,
    error::{ConfigError, ErrorKind, Failure},
    parts::Caller,
};
use serde_json::{Map, Value};

use super::offers::Endpoint;

#[cfg(feature = "tokens")]
use crate::token::TokenIssuer;

/// What the requests of a client are authorized with.
#[derive(Clone, Default)]
pub(super) struct Authority {
    #[cfg(feature = "tokens")]
    pub(super) issuer: Option<TokenIssuer>,
    /// Tokens may be sent to other machines in cleartext.
    #[cfg(feature = "tokens")]
    pub(super) cleartext: bool,
}

impl Authority {
    /// Checks that no token is sent in cleartext to another machine.
    ///
    /// # Errors
    /// The setting is the name of the endpoint.
    pub(super) fn check(&self, name: &str, endpoints: &[Endpoint]) -> Result<(), ConfigError> {
        #[cfg(feature = "tokens")]
        if self.issuer.is_some() && !self.cleartext && !endpoints.iter().all(Endpoint::is_confidential) {
            let problem = "is on another machine, to which tokens would be sent in cleartext: use https, or set \
                           `cleartext()` if the network encrypts connections";
            return Err(ConfigError::new(name.to_owned(), problem));
        }
        Ok(())
    }

    /// The public key of what an arm signs.
    pub(super) fn public_key(&self) -> Option<Map<String, Value>> {
        #[cfg(feature = "tokens")]
        if let Some(issuer) = &self.issuer {
            return issuer.public_key();
        }
        None
    }

    /// Adds a token for these scopes to a request, or for all that the caller can pass on. The card names the audience.
    ///
    /// # Errors
    /// The caller is known by its token, and this program cannot issue one that is covered by it.
    pub(super) fn add(
        &self,
        head: &mut HeaderMap,
        caller: &Caller,
        scopes: Option<&[&str]>,
        callee: &Arc<ArmCard>,
    ) -> Result<(), Failure> {
        #[cfg(feature = "tokens")]
        if let Some(issuer) = &self.issuer {
            let grant = match (caller, scopes) {
                (Caller::Known(grant), _) => Some(grant),
                // Where callers are not checked, everything is allowed.
                (Caller::Unchecked, Some(_)) if issuer.is_root() => None,
                _ => return Ok(()),
            };
            let header = issuer.header(grant, scopes, callee)?;
            head.insert(header::AUTHORIZATION, header);
            return Ok(());
        }
        if caller.grant().is_some_and(|grant| grant.links.is_some()) {
            let words = "this arm has no key to call on with: set `tokens(..)` where its arms are built";
            return Err(Failure::new(ErrorKind::Unauthenticated, words).before_execution());
        }
        Ok(())
    }
}
