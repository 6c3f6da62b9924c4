//! Authentication: who calls, as the server or the server around it establishes.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
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

    /// Returns the caller if the head alone and what is in memory show it, such as credentials that were verified before. The server
    /// then does not call [`authenticate`](Self::authenticate), and allocates nothing. It must not block. The default returns `None`.
    ///
    /// The extensions hold what the layers of the server have set, but no [`Peer`](crate::io::Peer).
    ///
    /// # Errors
    /// Those of [`authenticate`](Self::authenticate).
    fn authenticate_now(&self, head: &Parts) -> Option<Result<Caller, Failure>> {
        let _ = head;
        None
    }
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
        let Some(token) = bearer(head)? else { return Ok(Caller::Anonymous) };
        let token = std::str::from_utf8(token).map_err(|_| no_bearer())?;
        Ok(Caller::Known(self.verify_and_fetch(token).await?))
    }

    fn authenticate_now(&self, head: &Parts) -> Option<Result<Caller, Failure>> {
        match bearer(head) {
            Ok(Some(token)) => self.known(token).map(|verdict| verdict.map(Caller::Known)),
            Ok(None) => Some(Ok(Caller::Anonymous)),
            Err(failure) => Some(Err(failure)),
        }
    }
}

/// The bearer token of a request, if it has an authorization.
#[cfg(feature = "tokens")]
fn bearer(head: &Parts) -> Result<Option<&[u8]>, Failure> {
    let Some(field) = head.headers.get(http::header::AUTHORIZATION) else { return Ok(None) };
    match field.as_bytes().split_at_checked(BEARER.len()) {
        Some((scheme, mut token)) if scheme == BEARER || scheme.eq_ignore_ascii_case(BEARER) => {
            while let Some(rest) = token.strip_prefix(b" ") {
                token = rest;
            }
            Ok(Some(token))
        }
        _ => Err(no_bearer()),
    }
}

#[cfg(feature = "tokens")]
const BEARER: &[u8] = b"Bearer ";

#[cfg(feature = "tokens")]
fn no_bearer() -> Failure {
    let words = "the authorization is no bearer token: send `Authorization: Bearer <token>`";
    Failure::new(ErrorKind::Unauthenticated, words)
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

    /// The caller of a request with this head, if that needs no waiting.
    ///
    /// # Errors
    /// The failure of the authenticator, or its panic.
    pub(crate) fn known(&self, head: &Parts) -> Option<Result<Caller, Failure>> {
        let given = self.from_extensions.then(|| head.extensions.get::<Caller>().cloned()).flatten();
        match (given, &self.authenticator, self.from_extensions) {
            (Some(given), ..) => Some(Ok(given)),
            (None, None, true) => Some(Ok(Caller::Anonymous)),
            (None, None, false) => Some(Ok(Caller::Unchecked)),
            (None, Some(authenticator), _) => {
                match caught(async { authenticator.authenticate_now(head) }).now_or_never()? {
                    Ok(answer) => Some(answer?.map_err(Failure::before_execution)),
                    Err(Panicked) => Some(Err(panicked())),
                }
            }
        }
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
            Some(Err(Panicked)) => Err(panicked()),
            None => {
                Err(Failure::new(kind, "authentication took too long: try again later").before_execution())
            }
        }
    }
}

fn panicked() -> Failure {
    tracing::error!("authenticator panicked");
    Failure::of(ErrorKind::Internal).before_execution()
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
