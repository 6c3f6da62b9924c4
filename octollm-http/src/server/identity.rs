//! Who calls: established by the server, or by what it is mounted in.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
use http::request::Parts;
use octollm_core::{
    deadline::Deadline,
    error::{ErrorKind, Failure},
    parts::Caller,
};

/// Establishes who sent a request.
///
/// It is asked once for each request that does work, before the body is read; `/health`, `/ready`, `/capabilities`,
/// `/arms` and `/openapi.json` need no identity. What the caller may do is not its business: the scope of a contract is
/// checked where the contract is known.
///
/// A function of the head will do where nothing has to be waited for.
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
    /// Who sent a request with this head. Its extensions hold the [`Peer`](crate::io::Peer) of a connection that the server
    /// itself accepted.
    ///
    /// # Errors
    /// Usually [`ErrorKind::Unauthenticated`] for credentials that are not valid, which is answered with 401; whatever it
    /// is, it is answered as it is. A caller without credentials is no error but [`Caller::Anonymous`].
    ///
    /// # Cancel safety
    /// The future is dropped when the caller goes away, when its deadline passes, and when it takes longer than
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

/// How a server establishes who calls.
#[derive(Clone, Default)]
pub(crate) struct Identity {
    pub(crate) authenticator: Option<Arc<dyn Authenticate>>,
    /// A caller in the extensions of a request is believed.
    pub(crate) from_extensions: bool,
    pub(crate) open_to_all: bool,
    pub(crate) limit: Duration,
}

impl Identity {
    /// Whether it was decided who may call.
    pub(crate) fn is_decided(&self) -> bool {
        self.open_to_all || self.from_extensions || self.authenticator.is_some()
    }

    /// Who sent a request with this head, where nobody has to be asked.
    pub(crate) fn known(&self, head: &Parts) -> Option<Caller> {
        let given = self.from_extensions.then(|| head.extensions.get::<Caller>().cloned()).flatten();
        given.or(match (&self.authenticator, self.from_extensions) {
            (Some(_), _) => None,
            (None, true) => Some(Caller::Anonymous),
            (None, false) => Some(Caller::Unchecked),
        })
    }

    /// Asks the authenticator who sent a request with this head.
    ///
    /// # Errors
    /// Its own; it panicked, or took too long.
    pub(crate) async fn ask(&self, head: &Parts, deadline: Option<Deadline>) -> Result<Caller, Failure> {
        let Some(authenticator) = &self.authenticator else { return Ok(Caller::Anonymous) };
        let own = Deadline::after(self.limit);
        let (limit, kind) = match deadline {
            Some(deadline) if deadline < own => (deadline, ErrorKind::DeadlineExceeded),
            _ => (own, ErrorKind::Unavailable),
        };
        let asked = AssertUnwindSafe(async { authenticator.authenticate(head).await }).catch_unwind();
        match limit.run(asked).await {
            Some(Ok(answer)) => answer.map_err(Failure::before_execution),
            Some(Err(_)) => {
                tracing::error!("authenticator panicked");
                Err(Failure::of(ErrorKind::Internal).before_execution())
            }
            None => Err(Failure::new(kind, "it was not established in time who calls").before_execution()),
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
