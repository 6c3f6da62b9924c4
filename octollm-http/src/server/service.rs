//! The server as a tower service: checks the head, finds the route, authenticates, reads the body, answers.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderMap, Method, Request, Response, request::Parts};
use http_body::Body;
use hyper::body::Incoming;
use octollm_core::{
    __private::{Audit, Gauges, Panicked, caught},
    audit::AuditEntry,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::RequestId,
    parts::{Caller, ContextParts},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

#[cfg(feature = "compression")]
use super::compression;
#[cfg(feature = "ws")]
use super::socket::token_of_protocol;
use super::{
    body::HttpBody,
    ending::{Ending, InLayers, Unanswered},
    head::{self, Fields},
    identity::Identity,
    rates::Rates,
    recording::{Recording, RouteMeter, Seen},
    request_body::{self, ArrivingBytes, BodyLimits, Share},
    routes::{
        Answer, Arrival, ErrorForm, Handler, Ids, Inbound, Refusal, Route, RouteService, RouteTable, Takes,
        head_only,
    },
};
use crate::{
    io::Peer,
    limits::ServerConfig,
    wire::{names, read_parts, read_parts_since},
};

/// A server as a tower service, to mount into another server.
///
/// It is always ready and never fails: every failure is an answer. Its limit on running requests holds over all clones. It
/// includes the layers of the [`Server`](super::Server).
#[derive(Clone)]
pub struct HttpService {
    core: Arc<Core>,
    layered: Option<Layered>,
    /// Whether it is within its layers: what is around them records the requests.
    is_inner: bool,
}

type Layered = BoxCloneSyncService<Request<HttpBody>, Response<HttpBody>, Infallible>;
type BoxError = Box<dyn Error + Send + Sync>;

pub(crate) struct Core {
    routes: RouteTable,
    config: ServerConfig,
    identity: Identity,
    errors: ErrorForm,
    rates: Option<Arc<Rates>>,
    audit: Audit,
    /// Only with the feature `compression`.
    is_compressing: bool,
    places: Arc<Semaphore>,
    /// A limit of their own, so that discovery works at any load.
    documents: Arc<Semaphore>,
    /// A limit of their own, since they are open for as long as their tasks run.
    streams: Arc<Semaphore>,
    arriving: ArrivingBytes,
    ending: Ending,
}

static GAUGES: LazyLock<Gauges<Core>> = LazyLock::new(|| {
    let running = ("octollm_http_requests_running", "Requests that run now.", &["server"][..]);
    let arriving = ("octollm_http_arriving_bytes", "Bytes of requests that arrive now.", &["server"][..]);
    let streams = ("octollm_http_live_streams", "Streams of updates that are open now.", &["server"][..]);
    Gauges::new(&[running, arriving, streams], |core, gauges| {
        let [running, arriving, streams] = gauges else { return };
        let (server, places) = ([&*core.routes.server.server], core.places.available_permits());
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        running.with_label_values(&server).add(count(core.config.max_in_flight.saturating_sub(places)));
        arriving.with_label_values(&server).add(count(core.arriving.bytes()));
        let free = core.streams.available_permits();
        streams.with_label_values(&server).add(count(core.config.max_live_streams.saturating_sub(free)));
    })
});

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
            let (core, layered) = (self.core.clone(), layered.clone());
            if self.is_inner {
                return Box::pin(layered.oneshot(request.map(HttpBody::streamed)));
            }
            return Box::pin(async move { Ok(core.layered(layered, request).await) });
        }
        // Set only where the server itself accepted the connection: it cannot come over the network.
        let arrival = request.extensions().get().copied().unwrap_or(Arrival::Mounted);
        let core = self.core.clone();
        if self.is_inner {
            let seen = request.extensions().get::<Arc<Seen>>().cloned();
            let request = Box::new(request);
            return Box::pin(async move {
                Ok(core.answer(request, arrival, (None, seen.as_deref()), Instant::now()).await)
            });
        }
        let request = Box::new(request);
        Box::pin(async move { Ok(core.recorded(request, arrival, None).await) })
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
        (audit, is_compressing): (Audit, bool),
    ) -> Self {
        let places = || Arc::new(Semaphore::new(config.max_in_flight));
        let (places, documents) = (places(), places());
        let streams = Arc::new(Semaphore::new(config.max_live_streams));
        let arriving = ArrivingBytes::new(config.max_arriving);
        let ending = Ending::default();
        let core = Arc::new(Core {
            routes,
            config,
            identity,
            errors,
            rates,
            audit,
            is_compressing,
            places,
            documents,
            streams,
            arriving,
            ending,
        });
        GAUGES.add(&core);
        Self { core, layered: None, is_inner: false }
    }

    pub(crate) fn config(&self) -> &ServerConfig {
        &self.core.config
    }

    /// The id of the server.
    pub(crate) fn server(&self) -> &str {
        &self.core.routes.server.server
    }

    pub(crate) fn ending(&self) -> &Ending {
        &self.core.ending
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
        let service = layer.layer(Self { is_inner: true, ..self });
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
        Self { core, layered: Some(BoxCloneSyncService::new(service)), is_inner: false }
    }

    /// Answers a request of a connection that the server itself accepted.
    ///
    /// No `async` function, which would hold its arguments twice. The request is boxed, since each future below has room for it.
    pub(crate) fn answer(
        &self,
        mut request: Box<Request<Incoming>>,
        arrival: Arrival,
        peer: Peer,
    ) -> impl Future<Output = Response<HttpBody>> + Send {
        let is_needed = self.core.identity.authenticator.is_some();
        let peer = if self.core.rates.is_some() {
            request.extensions_mut().insert(peer);
            None
        } else {
            Some(peer).filter(|_| is_needed)
        };
        let Some(layered) = &self.layered else {
            return Either::Left(self.core.recorded(request, arrival, peer));
        };
        request.extensions_mut().insert(arrival);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        Either::Right(Box::pin(self.core.layered(layered.clone(), *request)))
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
    /// Answers one request, and records it.
    ///
    /// # Cancel safety
    /// Dropping the future drops that of the arm.
    async fn recorded<B>(
        &self,
        request: Box<Request<B>>,
        arrival: Arrival,
        peer: Option<Peer>,
    ) -> Response<HttpBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let seen = Seen::new(request.method(), request.headers());
        let recording = Recording::begin(&self.routes.meters, &seen, request.method());
        // Pinned in place, since a future that is passed by value is copied.
        let mut answer = pin!(self.answer(request, arrival, (peer, Some(&seen)), seen.begun));
        let response = poll_fn(|cx| seen.scope.run(|| answer.as_mut().poll(cx))).await;
        recording.end(&response);
        response
    }

    /// Answers one request through the layers of the user, and records it.
    async fn layered<B>(&self, layered: Layered, request: Request<B>) -> Response<HttpBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut request = request.map(HttpBody::streamed);
        // A server that is mounted in a route of another one is recorded by both.
        let seen = Arc::new(Seen::new(request.method(), request.headers()));
        let recording = Recording::begin(&self.routes.meters, &seen, request.method());
        request.extensions_mut().insert(seen.clone());
        let (ending, meters, head) = (&self.ending, &*self.routes.meters, ids_of(request.headers()));
        // Before the answer, so that it is dropped after it.
        let mut within = InLayers { ending, meters, seen: &seen, head, is_answered: false };
        let mut answer = pin!(layered.oneshot(request));
        let Ok(response) = poll_fn(|cx| seen.scope.run(|| answer.as_mut().poll(cx))).await;
        within.is_answered = true;
        recording.end(&response);
        response
    }

    /// Answers one request. The peer is not among the extensions yet, since few requests need it there.
    ///
    /// # Cancel safety
    /// Dropping the future drops that of the arm.
    async fn answer<B>(
        &self,
        request: Box<Request<B>>,
        arrival: Arrival,
        (peer, seen): (Option<Peer>, Option<&Seen>),
        begun: Instant,
    ) -> Response<HttpBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        let (mut parts, malformed) = match read_parts_since(&head.headers, begun) {
            Ok(parts) => (parts, None),
            Err(malformed) => {
                let (failure, parts) = *malformed;
                (parts, Some(failure))
            }
        };
        let ids = Ids::of(&head.headers, &parts);
        let no_body = head.method == Method::HEAD;
        let found = self.routes.find(&head.method, head.uri.path());
        // Of requests without a route the first one.
        let position = found.as_ref().map_or(0, |route| route.meter);
        let meter = self.routes.meters.get(position);
        if let (Some(seen), Some(meter)) = (seen, meter) {
            seen.matched(position, meter, &parts);
            if let Some(trace) = seen.scope.trace() {
                parts.trace = Some(trace);
            }
        }
        let unanswered = Unanswered::new(&self.ending, meter, seen, &ids);
        let request = self.audit.is_on().then(|| parts.request_id.clone());
        let mut result =
            self.reply(&mut head, body, parts, (malformed, begun), (arrival, peer, seen, found)).await;
        if let Some(request) = request {
            result = Box::pin(self.audited(result, request, meter, seen)).await;
        }
        unanswered.answered();
        let response = ids.respond(result, self.errors);
        if no_body { head_only(response) } else { response }
    }

    /// Records a refusal for lack of authority, and the recorded answer of a key.
    async fn audited(
        &self,
        result: Result<Answer, Refusal>,
        request: RequestId,
        meter: Option<&RouteMeter>,
        seen: Option<&Seen>,
    ) -> Result<Answer, Refusal> {
        let (failure, headers) = match &result {
            Ok(Answer(response)) => (None, response.headers()),
            Err(refusal) => (Some(refusal.failure()), refusal.headers()),
        };
        let lacking = [ErrorKind::Unauthenticated, ErrorKind::InsufficientScope];
        let refused = failure.filter(|failure| lacking.contains(&failure.kind));
        let action = match refused {
            Some(_) => AuditEntry::REFUSED,
            None if headers.contains_key(names::REPLAYED) => AuditEntry::ANSWERED,
            None => return result,
        };
        let entry = || {
            let mut entry = AuditEntry::new(action, self.routes.server.server.clone()).request(request);
            if let Some(meter) = meter {
                entry = match seen.and_then(|seen| seen.contract.get()).or(meter.contract.as_ref()) {
                    Some(contract) => entry.contract(contract),
                    None => entry.target(format!("{} {}", meter.method, meter.route)),
                };
            }
            if let Some(caller) = seen.and_then(|seen| seen.caller.get()) {
                entry = entry.caller(caller);
            }
            let Some(failure) = refused else { return entry };
            match failure.details.as_ref().and_then(|details| details.get("scope")?.as_str()) {
                Some(scope) => entry.scope(scope).reason(failure.kind),
                None => entry.reason(failure.kind),
            }
        };
        self.audit.record(entry).await?;
        result
    }

    async fn reply<B>(
        &self,
        head: &mut Parts,
        body: B,
        mut parts: ContextParts,
        (malformed, begun): (Option<Failure>, Instant),
        (arrival, mut peer, seen, found): (Arrival, Option<Peer>, Option<&Seen>, Result<&Route, Refusal>),
    ) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let Admitted { route, is_coded, prefers_events } =
            self.admit(head, &parts, (malformed, begun), arrival, found)?;
        let takes = route.takes();
        let mut arriving = self.arriving.share();
        #[cfg(feature = "ws")]
        if takes == Takes::Socket {
            token_of_protocol(&mut head.headers)?;
        }
        if takes.needs_identity() {
            parts.caller = match self.identity.known(head) {
                Some(Ok(caller)) => caller,
                known => {
                    let deadline = parts.deadline;
                    Box::pin(self.authenticated(known, head, deadline, (&mut peer, &mut arriving))).await?
                }
            };
            if let Some(seen) = seen {
                seen.identified(&parts.caller);
            }
            of_its_task(&mut parts)?;
        }
        let endpoint = match &route.handler {
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
        let body = if takes == Takes::Json {
            let ServerConfig { max_body: bytes, body_timeout: time, .. } = self.config;
            let limits = BodyLimits { bytes, time, deadline: parts.deadline, arriving, head: &head.headers };
            let read = request_body::read(body, limits).await;
            self.counted(read)?
        } else {
            drop(arriving);
            Bytes::new()
        };
        #[cfg_attr(not(feature = "ws"), expect(unused_mut))]
        let mut place = self.place_for(takes)?;
        #[cfg(feature = "compression")]
        let body = match is_coded {
            true => Box::pin(compression::decompressed(body, self.config.max_decoded)).await?,
            false => body,
        };
        #[cfg(not(feature = "compression"))]
        let _ = is_coded;
        let path = head.uri.path();
        let call = endpoint.call(Inbound {
            parts,
            head,
            id: route.id(path),
            body,
            prefers_events,
            seen,
            #[cfg(feature = "ws")]
            place: if takes == Takes::Socket { place.take() } else { None },
        });
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

    /// Counts a body that was read, or refused since too many arrive.
    fn counted(&self, body: Result<Bytes, Failure>) -> Result<Bytes, Failure> {
        match &body {
            Ok(body) => self.routes.server.received(body.len()),
            Err(failure) if failure.kind == ErrorKind::Overloaded => self.routes.server.refused("arriving"),
            Err(_) => {}
        }
        body
    }

    /// The caller that the authenticator establishes, where it is not `known` already that it is none. Meanwhile the head counts
    /// among what arrives.
    async fn authenticated(
        &self,
        known: Option<Result<Caller, Failure>>,
        head: &mut Parts,
        deadline: Option<Deadline>,
        (peer, arriving): (&mut Option<Peer>, &mut Share<'_>),
    ) -> Result<Caller, Refusal> {
        if known.is_none() {
            let counted = arriving.add_head(&head.headers);
            counted.inspect_err(|_| self.routes.server.refused("arriving"))?;
            if let Some(peer) = peer.take() {
                head.extensions.insert(peer);
            }
        }
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
        let place = self.place_of(&self.places, "in_flight")?;
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

    /// The place that a request needs: among those that run, among those for documents, or none.
    fn place_for(&self, takes: Takes) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        match takes {
            Takes::Probe => Ok(None),
            Takes::Document | Takes::GuardedDocument => self.place_of(&self.documents, "documents").map(Some),
            Takes::Place | Takes::Json => self.place_of(&self.places, "in_flight").map(Some),
            #[cfg(feature = "ws")]
            Takes::Socket => self.place_of(&self.streams, "live_streams").map(Some),
            Takes::Stream => self.place_of(&self.streams, "live_streams").map(Some),
        }
    }

    /// A place among the running requests, or among those for documents.
    fn place_of(&self, places: &Arc<Semaphore>, limit: &str) -> Result<OwnedSemaphorePermit, Failure> {
        places.clone().try_acquire_owned().map_err(|_| {
            self.routes.server.refused(limit);
            request_body::overloaded()
        })
    }

    /// Checks the head.
    fn admit<'a>(
        &self,
        head: &Parts,
        parts: &ContextParts,
        (malformed, begun): (Option<Failure>, Instant),
        arrival: Arrival,
        found: Result<&'a Route, Refusal>,
    ) -> Result<Admitted<'a>, Refusal> {
        let fields = Fields::of(&head.headers);
        fields.check_framing(arrival, head.version, &head.uri)?;
        head::check_head(head, &self.config)?;
        fields.check()?;
        if let Some(failure) = malformed {
            return Err(failure.into());
        }
        let route = found?;
        let mut prefers_events = false;
        if let Handler::Endpoint(endpoint) = &route.handler {
            prefers_events = endpoint.is_streaming() && head::wants_events(&head.headers, endpoint.is_json());
            if !prefers_events && endpoint.is_json() && !fields.accepts_json() {
                return Err(Failure::new(ErrorKind::NotAcceptable, "the answer is application/json").into());
            }
            if !prefers_events && endpoint.is_streaming() && !endpoint.is_json() {
                return Err(Failure::new(ErrorKind::NotAcceptable, "the answer is text/event-stream").into());
            }
        }
        let takes = route.takes();
        let is_coded = takes == Takes::Json && fields.check_content(self.is_compressing)?;
        if takes.needs_identity() && parts.deadline.is_some_and(|deadline| deadline.has_passed_at(begun)) {
            return Err(Failure::of(ErrorKind::DeadlineExceeded).before_execution().into());
        }
        Ok(Admitted { route, is_coded, prefers_events })
    }
}

/// A request whose head was checked.
struct Admitted<'a> {
    route: &'a Route,
    /// Whether the body is in gzip.
    is_coded: bool,
    /// Whether the answer is a stream of server-sent events.
    prefers_events: bool,
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
