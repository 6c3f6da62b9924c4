//! The server as a tower service: checks the head, finds the route, authenticates, reads the body, answers.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, request::Parts};
use http_body::Body;
use hyper::body::Incoming;
use octollm_core::{
    __private::{Panicked, caught},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    parts::{Caller, ContextParts},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

#[cfg(feature = "compression")]
use super::compression;
use super::{
    body::HttpBody,
    head::{self, Fields},
    identity::Identity,
    rates::Rates,
    request_body::{self, ArrivingBytes, BodyLimits},
    routes::{
        Answer, Arrival, ErrorForm, Handler, Ids, Inbound, Refusal, RouteService, RouteTable, Takes,
        head_only,
    },
};
use crate::{
    io::Peer,
    limits::ServerConfig,
    wire::{names, read_parts},
};

/// A server as a tower service, to mount into another server.
///
/// It is always ready and never fails: every failure is an answer. Its limit on running requests holds over all clones. It
/// includes the layers of the [`Server`](super::Server).
#[derive(Clone)]
pub struct HttpService {
    core: Arc<Core>,
    layered: Option<Layered>,
}

type Layered = BoxCloneSyncService<Request<HttpBody>, Response<HttpBody>, Infallible>;
type BoxError = Box<dyn Error + Send + Sync>;

pub(crate) struct Core {
    routes: RouteTable,
    config: ServerConfig,
    identity: Identity,
    errors: ErrorForm,
    rates: Option<Arc<Rates>>,
    /// Only with the feature `compression`.
    is_compressing: bool,
    places: Arc<Semaphore>,
    /// A limit of their own, so that discovery works at any load.
    documents: Arc<Semaphore>,
    arriving: ArrivingBytes,
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<HttpBody>, Infallible>> + Send>>;

impl<B> Service<Request<B>> for HttpService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<HttpBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        if let Some(layered) = &self.layered {
            return Box::pin(layered.clone().oneshot(request.map(HttpBody::streamed)));
        }
        // Set only where the server itself accepted the connection: it cannot come over the network.
        let arrival = request.extensions().get().copied().unwrap_or(Arrival::Mounted);
        let core = self.core.clone();
        Box::pin(async move { Ok(core.answer(request, arrival, None).await) })
    }
}

impl fmt::Debug for HttpService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpService")
            .field("config", &self.core.config)
            .field("identity", &self.core.identity)
            .field("layered", &self.layered.is_some())
            .finish_non_exhaustive()
    }
}

impl HttpService {
    pub(crate) fn new(
        routes: RouteTable,
        config: ServerConfig,
        identity: Identity,
        errors: ErrorForm,
        rates: Option<Arc<Rates>>,
        is_compressing: bool,
    ) -> Self {
        let places = || Arc::new(Semaphore::new(config.max_in_flight));
        let (places, documents) = (places(), places());
        let arriving = ArrivingBytes::new(config.max_arriving);
        let core =
            Core { routes, config, identity, errors, rates, is_compressing, places, documents, arriving };
        Self { core: Arc::new(core), layered: None }
    }

    pub(crate) fn config(&self) -> &ServerConfig {
        &self.core.config
    }

    /// The same service with a layer around it.
    pub(crate) fn layer<L, B>(self, layer: L) -> Self
    where
        L: Layer<Self>,
        L::Service: Service<Request<HttpBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<HttpBody>>>::Future: Send + 'static,
        <L::Service as Service<Request<HttpBody>>>::Error: Into<BoxError>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let core = self.core.clone();
        let errors = core.errors;
        let service = layer.layer(self);
        let service = tower::service_fn(move |request: Request<HttpBody>| {
            let (service, ids) = (service.clone(), ids_of(request.headers()));
            async move {
                Ok(match caught(service.oneshot(request)).await {
                    Ok(Ok(response)) => response.map(HttpBody::streamed),
                    Ok(Err(error)) => failed(&ids, error.into(), errors),
                    Err(Panicked) => failed(&ids, "it panicked".into(), errors),
                })
            }
        });
        Self { core, layered: Some(BoxCloneSyncService::new(service)) }
    }

    /// Answers a request of a connection that the server itself accepted.
    pub(crate) async fn answer(
        &self,
        mut request: Request<Incoming>,
        arrival: Arrival,
        peer: Peer,
    ) -> Response<HttpBody> {
        let is_needed = self.core.identity.authenticator.is_some();
        let peer = if self.core.rates.is_some() {
            request.extensions_mut().insert(peer);
            None
        } else {
            Some(peer).filter(|_| is_needed)
        };
        let Some(layered) = &self.layered else { return self.core.answer(request, arrival, peer).await };
        request.extensions_mut().insert(arrival);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let Ok(response) = Box::pin(layered.clone().oneshot(request.map(HttpBody::streamed))).await;
        response
    }
}

/// The answer in place of the error or the panic of a layer.
fn failed(ids: &HeaderMap, error: BoxError, errors: ErrorForm) -> Response<HttpBody> {
    let parts = read_parts(ids).unwrap_or_else(|refused| refused.1);
    tracing::error!(request = %parts.request_id, %error, "layer failed");
    Ids::of(ids, &parts).respond(Err(Failure::of(ErrorKind::Internal).into()), errors)
}

/// The header fields that every answer echoes.
fn ids_of(head: &HeaderMap) -> HeaderMap {
    let field = |name| head.get(&name).cloned().map(|value| (name, value));
    [names::REQUEST_ID, names::CORRELATION_ID].into_iter().filter_map(field).collect()
}

impl Core {
    /// Answers one request. The peer is not among the extensions yet, since few requests need it there.
    ///
    /// # Cancel safety
    /// Dropping the future drops that of the arm.
    async fn answer<B>(&self, request: Request<B>, arrival: Arrival, peer: Option<Peer>) -> Response<HttpBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        let (parts, malformed) = match read_parts(&head.headers) {
            Ok(parts) => (parts, None),
            Err(malformed) => {
                let (failure, parts) = *malformed;
                (parts, Some(failure))
            }
        };
        let ids = Ids::of(&head.headers, &parts);
        let no_body = head.method == Method::HEAD;
        let result = self.reply(&mut head, body, parts, malformed, (arrival, peer)).await;
        let response = ids.respond(result, self.errors);
        if no_body { head_only(response) } else { response }
    }

    async fn reply<B>(
        &self,
        head: &mut Parts,
        body: B,
        mut parts: ContextParts,
        malformed: Option<Failure>,
        (arrival, mut peer): (Arrival, Option<Peer>),
    ) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (handler, mut id, is_coded) = self.admit(head, &parts, malformed, arrival)?;
        let copied: String;
        let takes = match handler {
            Handler::Endpoint(endpoint) => endpoint.takes(),
            Handler::Service(_) => Takes::Place,
        };
        let mut arriving = self.arriving.share();
        if takes.needs_identity() {
            parts.caller = match self.identity.known(head) {
                Some(Ok(caller)) => caller,
                known => {
                    if known.is_none() {
                        arriving.add_head(&head.headers)?;
                        if let Some(peer) = peer.take() {
                            copied = id.to_owned();
                            id = &copied;
                            head.extensions.insert(peer);
                        }
                    }
                    Box::pin(self.authenticated(known, head, parts.deadline)).await?
                }
            };
            of_its_task(&mut parts)?;
        }
        let endpoint = match handler {
            Handler::Endpoint(endpoint) => endpoint,
            // Boxed, since the future of every request is as large as its largest part.
            Handler::Service(service) => {
                drop(arriving);
                if let Some(peer) = peer {
                    head.extensions.insert(peer);
                }
                return Box::pin(self.hand_over(service.clone(), taken(head), body, parts)).await;
            }
        };
        let body = match takes {
            Takes::Json => {
                let ServerConfig { max_body: bytes, body_timeout: time, .. } = self.config;
                let (deadline, head) = (parts.deadline, &head.headers);
                let limits = BodyLimits { bytes, time, deadline, arriving, head };
                request_body::read(body, limits).await?
            }
            Takes::Place | Takes::Document | Takes::Probe => {
                drop(arriving);
                Bytes::new()
            }
        };
        let place = match takes {
            Takes::Probe => None,
            Takes::Document => Some(place_of(&self.documents)?),
            Takes::Place | Takes::Json => Some(place_of(&self.places)?),
        };
        #[cfg(feature = "compression")]
        let body = match is_coded {
            true => Box::pin(compression::decompressed(body, self.config.max_decoded)).await?,
            false => body,
        };
        #[cfg(not(feature = "compression"))]
        let _ = is_coded;
        let path = head.uri.path();
        let call = endpoint.call(Inbound { parts, head, id, body });
        let result = contained(call, path).await?;
        #[cfg(feature = "compression")]
        let result = match result {
            Ok(answer) if self.is_compressing => Ok(compression::compressed(answer, &head.headers)),
            result => result,
        };
        let Some(place) = place else { return result };
        match result {
            Ok(reply) => Ok(reply.holding(place)),
            // Violations and details can make a problem as large as any answer.
            Err(refusal) => Err(refusal.holding(place)),
        }
    }

    /// The caller that the authenticator establishes, where it is not `known` already that it is none.
    async fn authenticated(
        &self,
        known: Option<Result<Caller, Failure>>,
        head: &Parts,
        deadline: Option<Deadline>,
    ) -> Result<Caller, Refusal> {
        if let Some(rates) = &self.rates {
            rates.may_authenticate(head).await?;
        }
        let caller = match known {
            Some(known) => known,
            None => self.identity.ask(head, deadline).await,
        };
        match caller {
            Ok(caller) => Ok(caller),
            Err(failure) => {
                if let Some(rates) =
                    self.rates.as_ref().filter(|_| failure.kind == ErrorKind::Unauthenticated)
                {
                    rates.authentication_failed(head).await;
                }
                Err(Refusal::of_credentials(failure, &head.headers))
            }
        }
    }

    /// Passes a request to a service of the user.
    async fn hand_over<B>(
        &self,
        service: RouteService,
        mut head: Parts,
        body: B,
        parts: ContextParts,
    ) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let place = place_of(&self.places)?;
        let path = head.uri.path().to_owned();
        head.extensions.insert(parts.caller.clone());
        head.extensions.insert(parts);
        let request = Request::from_parts(head, HttpBody::streamed(body));
        match contained(service.oneshot(request), &path).await? {
            Ok(response) => Ok(Answer(response).holding(place)),
            Err(error) => {
                tracing::error!(path, %error, "route failed");
                Err(Failure::of(ErrorKind::Internal).into())
            }
        }
    }

    /// Checks the head. Returns the handler of the route, the text in place of `{id}`, and whether the body is in gzip.
    fn admit<'a, 'h>(
        &'a self,
        head: &'h Parts,
        parts: &ContextParts,
        malformed: Option<Failure>,
        arrival: Arrival,
    ) -> Result<(&'a Handler, &'h str, bool), Refusal> {
        let fields = Fields::of(&head.headers);
        fields.check_framing(arrival, head.version)?;
        head::check_head(head, &self.config)?;
        fields.check()?;
        if let Some(failure) = malformed {
            return Err(failure.into());
        }
        let (handler, id) = self.routes.find(&head.method, head.uri.path())?;
        let takes = match handler {
            Handler::Endpoint(endpoint) => {
                if !fields.accepts_json() {
                    let words = "the answer is application/json";
                    return Err(Failure::new(ErrorKind::NotAcceptable, words).into());
                }
                endpoint.takes()
            }
            Handler::Service(_) => Takes::Place,
        };
        let is_coded = takes == Takes::Json && fields.check_content(self.is_compressing)?;
        if takes.needs_identity() && parts.deadline.is_some_and(|deadline| deadline.has_passed()) {
            return Err(Failure::of(ErrorKind::DeadlineExceeded).before_execution().into());
        }
        Ok((handler, id, is_coded))
    }
}

/// Limits a request to the task of its token.
fn of_its_task(parts: &mut ContextParts) -> Result<(), Failure> {
    match &parts.task_id {
        Some(task) => parts.caller.may_work_for(task),
        None => {
            parts.task_id = parts.caller.grant().and_then(|grant| grant.task.clone());
            Ok(())
        }
    }
}

/// A place among the running requests, or among those for documents.
fn place_of(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Failure> {
    places.clone().try_acquire_owned().map_err(|_| request_body::overloaded())
}

/// Takes the head, and leaves an empty one.
fn taken(head: &mut Parts) -> Parts {
    std::mem::replace(head, Request::new(()).into_parts().0)
}

/// Catches the panics of orchestrators, reflexes and routes of the user. Those of arms are caught before.
async fn contained<F: Future>(work: F, path: &str) -> Result<F::Output, Failure> {
    caught(work).await.map_err(|Panicked| {
        tracing::error!(path, "endpoint panicked");
        Failure::of(ErrorKind::Internal)
    })
}
