//! What the requests of a client are authorized with: tokens, and header fields for one arm.
#![cfg_attr(not(feature = "tokens"), allow(unused_variables, clippy::unused_self))]

use std::{collections::HashMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use octollm_core::{
    card::ArmCard,
    error::{ConfigError, ErrorKind, Failure},
    parts::Caller,
};
use serde_json::{Map, Value};

use super::base_url::{BaseUrl, Fields};

#[cfg(feature = "tokens")]
use crate::token::TokenIssuer;

/// What the requests of a client are authorized with.
#[derive(Clone, Default)]
pub(super) struct Authority {
    #[cfg(feature = "tokens")]
    pub(super) issuer: Option<TokenIssuer>,
    /// Tokens and header fields of an arm may be sent to other machines in cleartext.
    pub(super) cleartext: bool,
}

impl Authority {
    /// Checks that no token and no header field of an arm is sent in cleartext to another machine.
    ///
    /// # Errors
    /// The setting is the name of the endpoint.
    pub(super) fn check(&self, name: &str, url: &BaseUrl) -> Result<(), ConfigError> {
        #[cfg(feature = "tokens")]
        let sends_tokens = self.issuer.is_some();
        #[cfg(not(feature = "tokens"))]
        let sends_tokens = false;
        let is_exposed = (sends_tokens || url.has_fields()) && !url.is_confidential();
        if is_exposed && !self.cleartext {
            let problem = "is on another machine, to which tokens or header fields would be sent in cleartext: use https, \
                           or, if the network encrypts connections, set `cleartext()`, in the environment \
                           OCTOLLM_CLIENT_CLEARTEXT=true";
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

    /// Adds a token for these scopes to a request, or for all that the caller can pass on. The card names the audience. Returns
    /// whether the request has a token then.
    ///
    /// # Errors
    /// The caller is known by its token, and this program cannot issue one that is covered by it.
    pub(super) fn add(
        &self,
        head: &mut HeaderMap,
        caller: &Caller,
        scopes: Option<&[&str]>,
        callee: &Arc<ArmCard>,
    ) -> Result<bool, Failure> {
        #[cfg(feature = "tokens")]
        if let Some(issuer) = &self.issuer {
            let grant = match (caller, scopes) {
                (Caller::Known(grant), _) => Some(grant),
                // Where callers are not checked, everything is allowed.
                (Caller::Unchecked, Some(_)) if issuer.is_root() => None,
                _ => return Ok(false),
            };
            let header = issuer.header(grant, scopes, callee)?;
            head.insert(header::AUTHORIZATION, header);
            return Ok(true);
        }
        if caller.grant().is_some_and(|grant| grant.links.is_some()) {
            let words = "this arm has no key to call on with: set `tokens(..)` where its arms are built";
            return Err(Failure::new(ErrorKind::Unauthenticated, words).before_execution());
        }
        Ok(false)
    }
}

/// Fields that the client sets, or that would change how a request is read.
pub(super) const OWN: [HeaderName; 8] = [
    header::HOST,
    header::ACCEPT,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The header fields of each arm, from arm, name and value of each.
///
/// # Errors
/// The setting is the header.
pub(super) fn fields(headers: &[(String, String, String)]) -> Result<HashMap<String, Fields>, ConfigError> {
    let mut all: HashMap<String, Fields> = HashMap::new();
    for (arm, name, value) in headers {
        let refused = |problem: &'static str| ConfigError::new(format!("header {name} of {arm}"), problem);
        let field: HeaderName = name.parse().map_err(|_| refused("is not the name of a header field"))?;
        let mut value = HeaderValue::try_from(value).map_err(|_| refused("has a malformed value"))?;
        value.set_sensitive(true);
        if OWN.contains(&field) {
            return Err(refused("is set by the client itself"));
        }
        let fields = all.entry(arm.clone()).or_default();
        if fields.iter().any(|(known, _)| *known == field) {
            return Err(refused("is set twice"));
        }
        fields.push((field, value));
    }
    Ok(all)
}
