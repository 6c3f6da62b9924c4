//! Authentication: who calls, as the server or the server around it establishes.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::request::Parts;
use octollm_core::{
    __private::{Panicked, caught},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    parts::Caller,
};

use super::request_body::earlier;

/// Establishes the caller of a request.
///
/// The server calls it once for each request, before it reads the body. Requests for `/health`, `/ready`, `/capabilities`,
/// `/arms` and `/openapi.json` need no caller. The scope of a contract is checked later, by the server itself.
///
/// A function of the head implements it, for authentication that does not wait.
///
/// ```
/// use http::{header, request::Parts};
/// use octollm_core::{error::{ErrorKind, Failure}, parts::Caller};
/// use octollm_http::Server;
///
/// let known = |head: &Parts| match head.headers.get(header::AUTHORIZATION) {
///     None => Ok(Caller::Anonymous),
///     Some(token) if token == "Bearer open-sesame" => Ok(Caller::known("ali", ["code:*"])),
///     Some(_) => Err(Failure::new(ErrorKind::Unauthenticated, "the token is not valid")),
/// };
/// let server = Server::new("judge").authenticate(known);
/// ```
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// Returns the caller of a request with this head. The extensions hold the [`Peer`](crate::io::Peer) of a connection that
    /// the server itself accepted.
    ///
    /// # Errors
    /// The failure is the answer to the request, such as [`ErrorKind::Unauthenticated`] for invalid credentials (401). A caller
    /// without credentials is no error: return [`Caller::Anonymous`].
    ///
    /// # Cancel safety
    /// The server drops the future when the caller disconnects, when the deadline of the request passes, and after
    /// [`authenticate_timeout`](super::Server::authenticate_timeout).
    async fn authenticate(&self, head: &Parts) -> Result<Caller, Failure>;
}

#[async_trait]
impl<F> Authenticate for F
where
    F: Fn(&Parts) -> Result<Caller, Failure> + Send + Sync + 'static,
{
    async fn authenticate(&self, head: &Parts) -> Result<Caller, Failure> {
        self(head)
    }
}

/// The caller is the subject of its bearer token, and anonymous without a token.
#[cfg(feature = "tokens")]
#[async_trait]
impl Authenticate for crate::token::TokenVerifier {
    async fn authenticate(&self, head: &Parts) -> Result<Caller, Failure> {
        let Some(field) = head.headers.get(http::header::AUTHORIZATION) else { return Ok(Caller::Anonymous) };
        let words = field.to_str().ok().and_then(|field| field.split_once(' '));
        let bearer = words.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some((_, token)) = bearer else {
            let words = "the authorization is no bearer token: send `Authorization: Bearer <token>`";
            return Err(Failure::new(ErrorKind::Unauthenticated, words));
        };
        Ok(Caller::Known(self.verify_and_fetch(token.trim_start_matches(' ')).await?))
    }
}

/// How a server establishes who calls.
#[derive(Clone, Default)]
pub(crate) struct Identity {
    pub(crate) authenticator: Option<Arc<dyn Authenticate>>,
    /// A caller in the extensions of a request is accepted.
    pub(crate) from_extensions: bool,
    pub(crate) open_to_all: bool,
    pub(crate) limit: Duration,
}

impl Identity {
    /// Whether the program has set who may call.
    pub(crate) fn is_decided(&self) -> bool {
        self.open_to_all || self.from_extensions || self.authenticator.is_some()
    }

    /// The caller of a request with this head, if the authenticator is not needed.
    pub(crate) fn known(&self, head: &Parts) -> Option<Caller> {
        let given = self.from_extensions.then(|| head.extensions.get::<Caller>().cloned()).flatten();
        given.or(match (&self.authenticator, self.from_extensions) {
            (Some(_), _) => None,
            (None, true) => Some(Caller::Anonymous),
            (None, false) => Some(Caller::Unchecked),
        })
    }

    /// Calls the authenticator.
    ///
    /// # Errors
    /// The failure of the authenticator, its panic, or its time limit.
    pub(crate) async fn ask(&self, head: &Parts, deadline: Option<Deadline>) -> Result<Caller, Failure> {
        let Some(authenticator) = &self.authenticator else { return Ok(Caller::Anonymous) };
        let (limit, kind) = earlier(deadline, self.limit, ErrorKind::Unavailable);
        let asked = caught(async { authenticator.authenticate(head).await });
        match limit.run(asked).await {
            Some(Ok(answer)) => answer.map_err(Failure::before_execution),
            Some(Err(Panicked)) => {
                tracing::error!("authenticator panicked");
                Err(Failure::of(ErrorKind::Internal).before_execution())
            }
            None => {
                Err(Failure::new(kind, "authentication took too long: try again later").before_execution())
            }
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("authenticator", &self.authenticator.is_some())
            .field("from_extensions", &self.from_extensions)
            .field("open_to_all", &self.open_to_all)
            .finish_non_exhaustive()
    }
}
