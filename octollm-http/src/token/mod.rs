//! Capability tokens: who may call what.
//!
//! A *root* issues tokens: a brain, or a program with [`TokenIssuer::root`]. A token names a subject, one arm, scopes, and a time of
//! minutes. Servers verify it with a [`TokenVerifier`], which knows only the keys of the roots.
//!
//! An arm that calls others signs its own tokens with its own key. The token that it was called with has a *delegation link*
//! for that, which names the arm's public key, and scopes that are at most those of its issuer. The arm passes on the links from
//! the root to itself, and adds one for the arm that it calls. No link is a token, and no token is passed on.
//!
//! ```
//! use octollm_core::{card::ArmCard, parts::Grant};
//! use octollm_http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier};
//!
//! # fn main() -> Result<(), octollm_core::error::Error> {
//! let key = SigningKey::generate()?;
//! let issuer = TokenIssuer::root("brain", key.clone()).build()?;
//! let token = issuer.issue(&Grant::new("ali", ["code:*"]), &["code:validate"], &ArmCard::new("judge"))?;
//!
//! let roots = KeySet::new("brain").with_key(&key)?;
//! let verifier = TokenVerifier::builder().audience("judge").root(roots).build()?;
//! let grant = verifier.verify(token.expose_secret())?;
//! assert_eq!((&*grant.subject, grant.has_scope("code:validate")), ("ali", true));
//! # Ok(())
//! # }
//! ```
//!
//! In development a file is enough, which is created with a new key: one line for a server, and one for those that call it. So a system
//! has tokens from its first day, and no server needs to be open to all.
//!
//! ```no_run
//! # use octollm_core::error::ConfigError;
//! # use octollm_http::{Arms, Server, token::{TokenIssuer, TokenVerifier}};
//! # fn main() -> Result<(), ConfigError> {
//! let judge = Server::new("judge").tokens(TokenVerifier::development("dev-key.pem")?);
//! let arms = Arms::builder().tokens(TokenIssuer::development("dev-key.pem")?);
//! # Ok(()) }
//! ```
mod cache;
mod key;
mod signing_key;
mod jws;
mod claims;
mod key_set;
mod jwks_url;
mod link;
pub(crate) mod proof;
mod verifier;
mod issued;
mod issuer;
mod jobs;

use std::sync::Arc;

use jiff::Timestamp;
use octollm_core::error::{ErrorKind, Failure};
#[doc(no_inline)]
pub use secrecy::{ExposeSecret, SecretString};

pub use self::{
    issuer::{TokenIssuer, TokenIssuerBuilder},
    key_set::KeySet,
    signing_key::SigningKey,
    verifier::{TokenVerifier, TokenVerifierBuilder},
};

/// Most links from a root to the arm that may act last.
const LINKS: usize = 4;

/// Name of the root in development.
const DEVELOPMENT: &str = "development";

/// What a link covers, once it is verified: its scopes, and the task that it is limited to. `None` where the text is no link.
pub(crate) fn covered_by(link: &str) -> Option<(Vec<String>, Option<octollm_core::id::TaskId>)> {
    let claims = link::read(&jws::Jws::read(link).ok()?).ok()?;
    Some((claims.scope, claims.task))
}

/// A clock.
type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Why a token or a link is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refused {
    /// The rule that it breaks.
    Invalid(&'static str),
    /// This issuer has no key of this id.
    UnknownKey(Arc<str>),
    /// The keys of this issuer were not fetched for too long.
    OldKeys(Arc<str>),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let reason = match refused {
            Refused::Invalid(reason) => reason,
            Refused::UnknownKey(_) => "its issuer has no key of this id",
            Refused::OldKeys(_) => "the keys of its issuer cannot be fetched",
        };
        let message = format!("the token is not valid: {reason}");
        Failure::new(ErrorKind::Unauthenticated, message).before_execution()
    }
}
