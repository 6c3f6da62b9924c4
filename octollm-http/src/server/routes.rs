//! The routes of a server: which endpoint answers a request.

use std::{collections::HashMap, error::Error, future::Future};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header, request::Parts};
use octollm_core::{
    deadline::Deadline,
    error::{ConfigError, ErrorKind, Failure},
    parts::ContextParts,
};
use tower::util::BoxCloneSyncService;

use super::{
    body::HttpBody,
    head::{Accepts, Arrival},
    reply::{Answer, Refusal},
};

/// A request that has passed the checks common to all endpoints.
pub(crate) struct Inbound<'r> {
    /// Ids, limits and caller of the request.
    pub(crate) parts: ContextParts,
    pub(crate) head: &'r Parts,
    /// The text in place of `{id}` in the path; empty for a path without one.
    pub(crate) id: &'r str,
    pub(crate) arrival: Arrival,
    /// The whole body; empty if the endpoint takes none.
    pub(crate) body: Bytes,
}

/// The needs of an endpoint, which are met before it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// None: it answers everybody, at any load.
    Probe,
    /// A place among the requests for documents, which can be large.
    Document,
    /// A caller, and a place among the running requests.
    Place,
    /// A caller, a body of JSON, and a place.
    Json,
}

impl Takes {
    pub(crate) fn needs_identity(self) -> bool {
        matches!(self, Self::Place | Self::Json)
    }
}

/// Answers the requests of one route.
#[async_trait]
pub(crate) trait Endpoint: Send + Sync + 'static {
    fn takes(&self) -> Takes;

    /// Whether the caller accepts the media type of the answer.
    fn satisfies(&self, accepts: Accepts) -> bool {
        accepts.json()
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal>;
}

/// A service of the user, which streams bodies and can take the connection over.
pub(crate) type RouteService =
    BoxCloneSyncService<Request<HttpBody>, Response<HttpBody>, Box<dyn Error + Send + Sync>>;

/// The handler of a route.
pub(crate) enum Handler {
    Endpoint(Box<dyn Endpoint>),
    Service(RouteService),
}

impl<E: Endpoint> From<E> for Handler {
    fn from(endpoint: E) -> Self {
        Self::Endpoint(Box::new(endpoint))
    }
}

/// The routes of a server: exact paths, and patterns with parameters.
#[derive(Default)]
pub(crate) struct RouteTable {
    exact: HashMap<String, Methods>,
    patterns: matchit::Router<Methods>,
}

#[derive(Default)]
struct Methods(Vec<(Method, Handler)>);

const NOT_A_PATH: &str =
    "is not the path of a route: begin it with `/`, and leave out `{`, `}`, `%`, `?` and `#`";
const TAKEN: &str =
    "is a route already: give one of the contracts another path, as in `#[task(path = \"/other\")]`";
const IS_RESERVED: &str =
    "is reserved: routes below /mcp, /a2a, /hooks and /.well-known belong to other protocols";

/// Paths below these belong to other protocols.
const RESERVED: [&str; 4] = ["/mcp", "/a2a", "/hooks", "/.well-known"];

impl RouteTable {
    /// Adds a route of a contract, whose path has no parameters.
    pub(crate) fn contract(&mut self, path: &str, endpoint: impl Endpoint) -> Result<(), ConfigError> {
        check_path(path, "")?;
        self.add(Method::POST, path, endpoint)
    }

    /// Adds a route of the user, whose path can have `{parameters}`.
    pub(crate) fn service(
        &mut self,
        method: Method,
        path: &str,
        service: RouteService,
    ) -> Result<(), ConfigError> {
        check_path(path, "{}")?;
        self.add(method, path, Handler::Service(service))
    }

    /// Adds a route.
    pub(crate) fn add(
        &mut self,
        method: Method,
        path: &str,
        handler: impl Into<Handler>,
    ) -> Result<(), ConfigError> {
        let methods = if path.contains('{') {
            if self.patterns.at(path).is_err() {
                let invalid = |_| ConfigError::new(path.to_owned(), NOT_A_PATH);
                self.patterns.insert(path, Methods::default()).map_err(invalid)?;
            }
            self.patterns.at_mut(path).ok().map(|found| found.value)
        } else {
            Some(self.exact.entry(path.to_owned()).or_default())
        };
        match methods {
            Some(methods) if methods.get(&method).is_none() => {
                methods.0.push((method, handler.into()));
                Ok(())
            }
            _ => Err(ConfigError::new(format!("{method} {path}"), TAKEN)),
        }
    }

    /// The handler of a request, and the text in place of `{id}`.
    ///
    /// # Errors
    /// There is no such route, or it has another method.
    pub(crate) fn find<'p>(&self, method: &Method, path: &'p str) -> Result<(&Handler, &'p str), Refusal> {
        let (methods, id) = match self.exact.get(path) {
            Some(methods) => (methods, ""),
            None => match self.patterns.at(path) {
                Ok(found) => (found.value, found.params.get("id").unwrap_or_default()),
                Err(_) => return Err(Failure::new(ErrorKind::NotFound, "there is no such route").into()),
            },
        };
        // HEAD is answered as GET without the body, unless it has a route of its own.
        let without_body = || if method == Method::HEAD { methods.get(&Method::GET) } else { None };
        let handler = methods.get(method).or_else(without_body);
        handler.map(|handler| (handler, id)).ok_or_else(|| methods.refusal())
    }
}

impl Methods {
    fn get(&self, method: &Method) -> Option<&Handler> {
        self.0.iter().find(|(known, _)| known == method).map(|(_, handler)| handler)
    }

    fn refusal(&self) -> Refusal {
        let mut allowed = Vec::new();
        for (method, _) in &self.0 {
            allowed.push(method.as_str());
            if method == Method::GET && self.get(&Method::HEAD).is_none() {
                allowed.push("HEAD");
            }
        }
        let allowed = allowed.join(", ");
        let refusal = Failure::new(ErrorKind::MethodNotAllowed, format!("this route takes {allowed}"));
        let value = HeaderValue::try_from(allowed).unwrap_or(HeaderValue::from_static(""));
        Refusal::from(refusal).header(header::ALLOW, value)
    }
}

/// Ends work at the deadline of its caller.
pub(crate) async fn within<T>(
    deadline: Option<Deadline>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    Deadline::run_until(deadline, work).await.unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded)))
}

/// Checks a path of the user; `also` lists more characters that are allowed.
fn check_path(path: &str, also: &str) -> Result<(), ConfigError> {
    let odd = |c: char| {
        let unusual = c.is_control() || c.is_whitespace() || !c.is_ascii() || "{}%?#\\".contains(c);
        unusual && !also.contains(c)
    };
    let upwards = path.split('/').any(|segment| matches!(segment, "." | ".."));
    if !path.starts_with('/') || path.contains(odd) || upwards {
        return Err(ConfigError::new(path.to_owned(), NOT_A_PATH));
    }
    let below =
        |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if RESERVED.into_iter().any(below) {
        return Err(ConfigError::new(path.to_owned(), IS_RESERVED));
    }
    Ok(())
}
