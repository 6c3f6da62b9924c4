//! The routes of a server: which endpoint answers a request, what it receives, and what it returns.

use std::{collections::HashMap, error::Error, future::Future, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts,
};
use octollm_core::{
    budget::Usage,
    contract::ContractRef,
    deadline::Deadline,
    error::{ConfigError, ErrorKind, Failure},
    id::{RequestId, TaskId},
    parts::ContextParts,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tower::util::BoxCloneSyncService;

use super::{
    body::HttpBody,
    recording::{RouteMeter, Seen, ServerMeter},
};
use crate::wire::{Problem, names, write_problem, write_usage};

/// A request that has passed the checks common to all endpoints.
pub(crate) struct Inbound<'r> {
    /// Ids, limits and caller of the request.
    pub(crate) parts: ContextParts,
    pub(crate) head: &'r Parts,
    /// The text in place of `{id}` in the path; empty for a path without one.
    pub(crate) id: &'r str,
    /// The whole body; empty if the endpoint takes none.
    pub(crate) body: Bytes,
    /// Whether the caller prefers server-sent events to JSON.
    pub(crate) prefers_events: bool,
    /// What is reported of the request.
    pub(crate) seen: Option<&'r Seen>,
    /// The place of a connection that outlives its answer.
    #[cfg(feature = "ws")]
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

/// The needs of an endpoint, which are met before it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// None: it answers everybody, at any load.
    Probe,
    /// A place among the requests for documents, which can be large.
    Document,
    /// A caller, and a place among the requests for documents.
    GuardedDocument,
    /// A caller, and a place among the running requests.
    Place,
    /// A caller, a body of JSON, and a place.
    Json,
    /// A caller, and a place among the streams of updates.
    Stream,
    /// The same, which the endpoint holds.
    #[cfg(feature = "ws")]
    Socket,
}

impl Takes {
    pub(crate) fn needs_identity(self) -> bool {
        !matches!(self, Self::Probe | Self::Document)
    }
}

/// Answers the requests of one route.
#[async_trait]
pub(crate) trait Endpoint: Send + Sync + 'static {
    fn takes(&self) -> Takes;

    /// Whether it answers JSON, which its callers have to accept.
    fn is_json(&self) -> bool {
        true
    }

    /// Whether it answers server-sent events, to callers that accept them.
    fn is_streaming(&self) -> bool {
        false
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal>;
}

/// The way by which a request arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Through the server around this one, which checks the framing.
    Mounted,
    Http1,
    Http2,
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The answer of an endpoint.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Response<HttpBody>);

/// The failure of an endpoint, with more header fields of the problem.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Refused>);

#[derive(Debug)]
struct Refused {
    failure: Failure,
    headers: HeaderMap,
    task: Option<TaskId>,
    place: Option<OwnedSemaphorePermit>,
}

impl Answer {
    /// 200 with a body of JSON.
    pub(crate) fn written(body: Bytes) -> Self {
        let mut response = Response::new(HttpBody::full(body));
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        Self(response)
    }

    /// Makes it a page for browsers, which loads and runs what the policy allows.
    pub(crate) fn page(self, policy: HeaderValue) -> Self {
        const FIELDS: [(HeaderName, &str); 4] = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        let page = self.header(header::CONTENT_SECURITY_POLICY, policy);
        FIELDS
            .into_iter()
            .fold(page, |page, (name, value)| page.header(name, HeaderValue::from_static(value)))
    }

    /// 200 with a value, which is written as JSON.
    pub(crate) fn json(value: &impl Serialize) -> Result<Self, Failure> {
        match serde_json::to_vec(value) {
            Ok(body) => Ok(Self::written(body.into())),
            Err(error) => {
                tracing::error!(%error, "answer cannot be written as JSON");
                Err(Failure::of(ErrorKind::Internal))
            }
        }
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        *self.0.status_mut() = status;
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    pub(crate) fn usage(mut self, usage: Usage) -> Self {
        write_usage(usage, self.0.headers_mut());
        self
    }

    /// Adds an `ETag` of the body. Where the request has the same, the answer is 304 without a body.
    pub(crate) fn tagged(self, tag: HeaderValue, head: &HeaderMap) -> Self {
        // Weak tags are compared without their mark.
        let own = tag.to_str().unwrap_or_default().trim_start_matches("W/");
        let is_same =
            |tags: &str| tags.split(',').map(str::trim).any(|known| known == "*" || known.ends_with(own));
        let mut fields = head.get_all(header::IF_NONE_MATCH).iter().filter_map(|field| field.to_str().ok());
        let answer = match fields.any(is_same) {
            false => self,
            true => {
                let mut response = Response::new(HttpBody::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                Self(response)
            }
        };
        answer.header(header::ETAG, tag)
    }

    /// Sets the age of an answer that was cached.
    pub(crate) fn age(self, age: Option<Duration>) -> Self {
        match age {
            Some(age) => self.header(header::AGE, age.as_secs().into()),
            None => self,
        }
    }

    /// Marks the answer of an earlier call with the same key.
    pub(crate) fn replayed(self, is_replayed: bool) -> Self {
        if is_replayed { self.header(names::REPLAYED, TRUE) } else { self }
    }

    /// Holds the place until the body is sent.
    pub(crate) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.0.body_mut().hold(place);
        self
    }
}

/// The `ETag` of a body, which is weak: it is the same for each coding of the body.
pub(crate) fn tag_of(body: &[u8]) -> Result<HeaderValue, Failure> {
    let digest = Sha256::digest(body);
    let hash = digest.iter().take(16).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    HeaderValue::try_from(format!("W/\"{hash}\"")).map_err(|_| Failure::of(ErrorKind::Internal))
}

impl Refusal {
    /// A caller whose identity is not accepted. What it showed, if anything, is not valid (RFC 6750 §3.1).
    pub(crate) fn of_credentials(failure: Failure, head: &HeaderMap) -> Self {
        let is_invalid =
            failure.kind == ErrorKind::Unauthenticated && head.contains_key(header::AUTHORIZATION);
        let refusal = Self::from(failure);
        if !is_invalid {
            return refusal;
        }
        refusal.header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""))
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    pub(crate) fn usage(mut self, usage: Usage) -> Self {
        write_usage(usage, &mut self.0.headers);
        self
    }

    pub(crate) fn failure(&self) -> &Failure {
        &self.0.failure
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// Marks the failure of an earlier call with the same key.
    pub(crate) fn replayed(self, is_replayed: bool) -> Self {
        if is_replayed { self.header(names::REPLAYED, TRUE) } else { self }
    }

    /// Holds the place until the problem is sent.
    pub(crate) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.0.place = Some(place);
        self
    }

    /// Sets the task that failed.
    pub(crate) fn task(mut self, task: TaskId) -> Self {
        self.0.task = Some(task);
        self
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(Box::new(Refused { failure, headers: HeaderMap::new(), task: None, place: None }))
    }
}

/// The form of a server's errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ErrorForm {
    /// A problem.
    #[default]
    Flat,
    /// A problem whose member `error` repeats its code and message.
    Nested,
}

/// The ids in the head of every answer.
pub(crate) struct Ids {
    request: HeaderValue,
    correlation: HeaderValue,
    task: Option<TaskId>,
}

impl Ids {
    pub(crate) fn of(head: &HeaderMap, parts: &ContextParts) -> Self {
        let request = echo(head, &names::REQUEST_ID, &parts.request_id);
        let correlation = match parts.correlation_id == parts.request_id {
            true => request.clone(),
            false => echo(head, &names::CORRELATION_ID, &parts.correlation_id),
        };
        Self { request, correlation, task: parts.task_id.clone() }
    }

    /// The ids of the request and of the piece of work.
    pub(crate) fn texts(&self) -> (&str, &str) {
        (self.request.to_str().unwrap_or_default(), self.correlation.to_str().unwrap_or_default())
    }

    pub(crate) fn task_id(&self) -> Option<&TaskId> {
        self.task.as_ref()
    }

    /// The answer that is sent; `errors` is the form of a refusal.
    pub(crate) fn respond(self, result: Result<Answer, Refusal>, errors: ErrorForm) -> Response<HttpBody> {
        let mut response = match result {
            Ok(Answer(response)) => response,
            Err(refusal) => self.problem(refusal, errors),
        };
        response.headers_mut().insert(names::REQUEST_ID, self.request);
        response.headers_mut().insert(names::CORRELATION_ID, self.correlation);
        response
    }

    fn problem(&self, refusal: Refusal, errors: ErrorForm) -> Response<HttpBody> {
        let Refused { failure, mut headers, task, place } = *refusal.0;
        let request: Option<RequestId> = self.request.to_str().ok().and_then(|id| id.parse().ok());
        let problem = Problem::new(&failure, request, task.or_else(|| self.task.clone()));
        if let Some(seconds) = problem.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = challenge(&failure) {
            headers.entry(header::WWW_AUTHENTICATE).or_insert(challenge);
        }
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        let body = write_problem(&problem, errors == ErrorForm::Nested);
        let mut response = Response::new(HttpBody::full(body));
        *response.status_mut() =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = headers;
        if let Some(place) = place {
            response.body_mut().hold(place);
        }
        response
    }
}

/// The challenge to a caller whose identity is refused (RFC 6750 §3).
fn challenge(failure: &Failure) -> Option<HeaderValue> {
    const INSUFFICIENT: &str = "Bearer error=\"insufficient_scope\"";
    match failure.kind {
        ErrorKind::Unauthenticated => Some(HeaderValue::from_static("Bearer")),
        ErrorKind::InsufficientScope => {
            let scope = failure.details.as_ref().and_then(|details| details.get("scope")?.as_str());
            let scope = scope.filter(|scope| !scope.contains(['"', '\\']));
            let named = scope.and_then(|scope| format!("{INSUFFICIENT}, scope=\"{scope}\"").parse().ok());
            Some(named.unwrap_or(HeaderValue::from_static(INSUFFICIENT)))
        }
        _ => None,
    }
}

/// The value of an id, which shares the memory of the request's field if that was valid.
fn echo(head: &HeaderMap, name: &HeaderName, id: &RequestId) -> HeaderValue {
    match head.get(name) {
        Some(value) if value == id.as_str() => value.clone(),
        other => {
            if other.is_some() {
                tracing::debug!(%name, %id, "malformed id replaced");
            }
            HeaderValue::from_str(id.as_str()).unwrap_or(HeaderValue::from_static("unknown"))
        }
    }
}

/// Removes the body, and leaves the head as it would be with one.
pub(crate) fn head_only(response: Response<HttpBody>) -> Response<HttpBody> {
    let length = http_body::Body::size_hint(response.body()).exact();
    let mut response = response.map(|_| HttpBody::empty());
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
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

/// A route, and its handler.
pub(crate) struct Route {
    pub(crate) handler: Handler,
    /// Position of its metrics.
    pub(crate) meter: usize,
    /// Position of `{id}` in its path, if that is the first parameter.
    id_at: Option<usize>,
}

impl Route {
    /// The text in place of `{id}` in a path that matches the route.
    pub(crate) fn id<'p>(&self, path: &'p str) -> &'p str {
        let rest = self.id_at.and_then(|at| path.get(at..)).unwrap_or_default();
        rest.split('/').next().unwrap_or_default()
    }

    pub(crate) fn takes(&self) -> Takes {
        match &self.handler {
            Handler::Endpoint(endpoint) => endpoint.takes(),
            Handler::Service(_) => Takes::Place,
        }
    }
}

/// The routes of a server: exact paths, and patterns with parameters.
pub(crate) struct RouteTable {
    exact: HashMap<String, Methods>,
    patterns: matchit::Router<Methods>,
    /// Those of each route, after those of requests without a route.
    pub(crate) meters: Vec<RouteMeter>,
    pub(crate) server: ServerMeter,
}

#[derive(Default)]
struct Methods(Vec<(Method, Route)>);

const NOT_A_PATH: &str =
    "is not the path of a route: begin it with `/`, and leave out `{`, `}`, `%`, `?` and `#`";
const TAKEN: &str =
    "is a route already: give one of the contracts another path, as in `#[task(path = \"/other\")]`";
const IS_RESERVED: &str =
    "is reserved: routes below /mcp, /a2a, /hooks and /.well-known belong to other protocols";

/// Paths below these belong to other protocols.
const RESERVED: [&str; 4] = ["/mcp", "/a2a", "/hooks", "/.well-known"];

impl RouteTable {
    /// A table without routes, for a server of this id.
    pub(crate) fn new(server: &str) -> Self {
        let meters = vec![RouteMeter::unmatched(server)];
        let (exact, patterns) = (HashMap::new(), matchit::Router::default());
        Self { exact, patterns, meters, server: ServerMeter::new(server) }
    }

    /// Adds a route of a contract, whose path has no parameters.
    pub(crate) fn contract(
        &mut self,
        contract: &ContractRef,
        path: &str,
        endpoint: impl Endpoint,
    ) -> Result<(), ConfigError> {
        check_path(path, "")?;
        self.add(Method::POST, path, endpoint)?;
        if let Some(meter) = self.meters.last_mut() {
            meter.contract = Some(contract.clone());
        }
        Ok(())
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
                let id_at = path.find('{').filter(|at| path[*at..].starts_with("{id}"));
                let meter = RouteMeter::new(&self.server.server, method.as_str(), path);
                methods.0.push((method, Route { handler: handler.into(), meter: self.meters.len(), id_at }));
                self.meters.push(meter);
                Ok(())
            }
            _ => Err(ConfigError::new(format!("{method} {path}"), TAKEN)),
        }
    }

    /// The route of a request.
    ///
    /// # Errors
    /// There is no such route, or it has another method.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Result<&Route, Refusal> {
        let methods = match self.exact.get(path) {
            Some(methods) => methods,
            None => match self.patterns.at(path) {
                Ok(found) => found.value,
                Err(_) => return Err(Failure::new(ErrorKind::NotFound, "there is no such route").into()),
            },
        };
        // HEAD is answered as GET without the body, unless it has a route of its own.
        let without_body = || if method == Method::HEAD { methods.get(&Method::GET) } else { None };
        methods.get(method).or_else(without_body).ok_or_else(|| methods.refusal())
    }
}

impl Methods {
    fn get(&self, method: &Method) -> Option<&Route> {
        self.0.iter().find(|(known, _)| known == method).map(|(_, route)| route)
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
