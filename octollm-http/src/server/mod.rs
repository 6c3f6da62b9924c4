//! Servers for arms, orchestrators and reflexes.
//!
//! ```
//! use octollm_core::{Arm, Context, contract::TaskContract, error::ArmError};
//! use octollm_http::Server;
//! use octollm_macros::TaskContract;
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
//! #[task(name = "text.shout", output = String, idempotent)]
//! struct Shout {
//!     text: String,
//! }
//!
//! struct Loud;
//!
//! #[async_trait::async_trait]
//! impl Arm<Shout> for Loud {
//!     async fn execute(&self, input: Shout, _: &Context) -> Result<String, ArmError> {
//!         Ok(input.text.to_uppercase())
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), octollm_core::error::Error> {
//! let server = Server::new("shouter").arm(Loud).bind("127.0.0.1:0").await?;
//! println!("POST {}/shout", server.url());
//! server.run_until(async { /* until it is to end */ }).await;
//! # Ok(())
//! # }
//! ```
//!
//! For each request the server checks the head, finds the route, authenticates the caller and reads the body. Every failure is
//! answered with a [`Problem`](crate::wire::Problem). [`HttpService`] is this service alone, to mount into another server.
//! [`BoundServer`] serves it over an [`Acceptor`], with limits on each connection.
// A module uses only what stands before it here.
mod limited;
mod streams;
mod request_body;
mod body;
mod recording;
mod routes;
#[cfg(feature = "compression")]
mod compression;
mod head;
mod identity;
mod rates;
mod cache;
mod guard;
mod ending;
mod service;
mod events;
mod streamed;
mod arm;
mod tasks;
mod bus_events;
#[cfg(feature = "ws")]
mod socket;
mod registry;
mod openapi;
mod docs;
#[cfg(feature = "dashboard")]
mod dashboard;
mod limiting;
mod connection;
mod dead_letters;
mod announcing;
mod listen;
mod env;
mod about;
mod build;

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use octollm_core::{
    __private::Audit,
    Arm,
    audit::AuditLog,
    bus::{DurableBus, EventBus},
    contract::TaskContract,
    dispatcher::Dispatcher,
    error::ConfigError,
    idempotency::IdempotencyStore,
    orchestrator::Orchestrator,
    reflex::Reflex,
    transport::Transport,
};
use tokio::net::{ToSocketAddrs, lookup_host};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

pub(crate) use self::env::PREFIX;
use self::{
    about::Metrics,
    announcing::Announcing,
    arm::Check,
    env::{Exposure, LISTEN},
    identity::Identity,
    limiting::Limiting,
    routes::{ErrorForm, RouteService},
};
pub use self::{body::HttpBody, identity::Authenticate, listen::BoundServer, service::HttpService};
use crate::{
    io::{self, Acceptor, Listener, TlsFiles},
    limits::{ServerConfig, limits_setters, server_limits},
    registry::Registry,
};

/// Builds a server for arms, an orchestrator and a reflex, each alone or together.
///
/// It serves on TCP with [`serve`](Self::serve) and [`bind`](Self::bind), on another transport with [`listen`](Self::listen),
/// and inside another server with [`into_service`](Self::into_service). Settings are checked there.
///
/// | set | routes |
/// |---|---|
/// | always | `GET /health`, `/ready`, `/metrics`, `/capabilities`, `/openapi.json`, `/docs` |
/// | [`arm`](Self::arm) | a route for each contract, and `POST /execute`, which picks the contract by its body |
/// | [`orchestrator`](Self::orchestrator) | `POST` and `GET /tasks`, `GET` and `DELETE /tasks/{id}`, `GET /tasks/{id}/events`, `POST /tasks/{id}/rerun`, `GET /tasks/{id}/journal`, `GET /arms`; `GET /dashboard` with the feature `dashboard`; `GET /ws` and `/ws/tasks/{id}` with the feature `ws` |
/// | [`registry`](Self::registry) | `POST /arms/register`, `DELETE /arms/{id}` |
/// | [`dead_letters`](Self::dead_letters) | `GET /dead-letters`, `POST /dead-letters/{id}/replay` |
/// | [`reflex`](Self::reflex) | `POST /preprocess`; with an orchestrator, `POST /tasks` is screened |
/// | [`route`](Self::route) | a route of your own |
#[must_use = "a server does nothing until it is bound, listens or is mounted"]
pub struct Server {
    dispatcher: Dispatcher,
    transport: Arc<dyn Transport>,
    orchestrator: Option<Arc<dyn Orchestrator>>,
    reflex: Option<Arc<dyn Reflex>>,
    routes: Vec<(Method, String, RouteService)>,
    layers: Vec<Box<dyn FnOnce(HttpService) -> HttpService + Send>>,
    config: ServerConfig,
    checks: Vec<Check>,
    identity: Identity,
    limiting: Limiting,
    bus: Option<Arc<dyn EventBus>>,
    dead_letters: Option<Arc<dyn DurableBus>>,
    audit: Audit,
    errors: ErrorForm,
    is_compressing: bool,
    metrics: Metrics,
    exposure: Exposure,
    has_docs: bool,
    #[cfg(feature = "dashboard")]
    has_dashboard: bool,
    registry: Option<Registry>,
    #[cfg(feature = "ws")]
    origins: Vec<String>,
    announcing: Announcing,
    /// Only with the feature `tokens`.
    verifies_tokens: bool,
    #[cfg(feature = "tokens")]
    jwks: Option<crate::token::KeySet>,
    #[cfg(feature = "tokens")]
    tokens: Option<crate::token::TokenVerifierBuilder>,
    /// The authenticator, where it is one of tokens.
    #[cfg(feature = "tokens")]
    verifier: Option<crate::token::TokenVerifier>,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl Server {
    /// Creates a server of this id, such as `judge`, which has no routes but its probes. An id has at most 128 lower-case letters,
    /// digits and dashes, and begins with a letter.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            dispatcher: Dispatcher::new(id),
            transport: Arc::new(()),
            orchestrator: None,
            reflex: None,
            routes: Vec::new(),
            layers: Vec::new(),
            config: ServerConfig::default(),
            checks: Vec::new(),
            identity: Identity::default(),
            limiting: Limiting::default(),
            bus: None,
            dead_letters: None,
            audit: Audit::default(),
            errors: ErrorForm::default(),
            is_compressing: false,
            metrics: Metrics::default(),
            exposure: Exposure::default(),
            has_docs: true,
            #[cfg(feature = "dashboard")]
            has_dashboard: true,
            registry: None,
            #[cfg(feature = "ws")]
            origins: Vec::new(),
            announcing: Announcing::default(),
            verifies_tokens: false,
            #[cfg(feature = "tokens")]
            jwks: None,
            #[cfg(feature = "tokens")]
            tokens: None,
            #[cfg(feature = "tokens")]
            verifier: None,
        }
    }

    /// Adds an arm for a contract, in place of one that was added for it before.
    ///
    /// The contract is inferred if the arm implements one; `arm::<C>(..)` names it if the arm implements several.
    pub fn arm<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.dispatcher.serve::<C>(arm);
        self
    }

    /// Sets the orchestrator that runs tasks: a [`Brain`](octollm_core::brain::Brain), or a client of one elsewhere.
    ///
    /// The card at `GET /capabilities` then lists the arms that it knows. The server drains and closes it at its end (see
    /// [`run_until`](BoundServer::run_until)). A mounted server leaves that to the server around it.
    pub fn orchestrator(mut self, orchestrator: impl Orchestrator) -> Self {
        self.orchestrator = Some(Arc::new(orchestrator));
        self
    }

    /// Sets the reflex that screens tasks.
    ///
    /// `POST /preprocess` answers the reaction of the reflex to a text. `POST /tasks` submits the tasks that pass. A task that
    /// the reflex answers is returned completed, with 200 in place of 202, and is not stored.
    ///
    /// The caller needs the scope of the task before it is screened, and that of [`TaskRequest`](octollm_core::task::TaskRequest) for
    /// `POST /preprocess`. The screening has a [time limit](Self::reflex_timeout) and a
    /// [number of texts](Self::max_screened_texts).
    ///
    /// Only tasks are screened. Inputs of the contracts that the server serves by [`arm`](Self::arm) reach the arm unchanged.
    pub fn reflex(mut self, reflex: impl Reflex) -> Self {
        self.reflex = Some(Arc::new(reflex));
        self
    }

    /// Sets the arms that the arms and the reflex of this server can call. By default there are none. If they are called with
    /// tokens, the card has the public key for them.
    pub fn arms(mut self, arms: impl Transport) -> Self {
        self.dispatcher.card_mut().key = arms.public_key();
        self.transport = Arc::new(arms);
        self
    }

    /// Sets the store of the records of calls with an `Idempotency-Key`, by which each of them runs once. By default each server has
    /// a [`MemoryIdempotencyStore`](octollm_core::idempotency::MemoryIdempotencyStore). With `()` keys are ignored.
    ///
    /// Contracts that are idempotent ignore keys.
    pub fn idempotency(mut self, store: impl IdempotencyStore) -> Self {
        self.dispatcher.idempotency(store);
        self
    }

    /// Sets the bus of the server.
    ///
    /// **Cached answers.** Contracts with a [cache time](octollm_core::contract::ContractSpec::cache) have their answers repeated
    /// until that has passed, or until an [`Event::cache_invalidated`](octollm_core::event::Event::cache_invalidated) is published on
    /// this bus. An answer is repeated to the same caller with the same scopes, its own and those that it has delegated to this server,
    /// for the same task, if the bytes of the input are the same. It has an `Age`, and a usage of 0. Failures are not cached. Equal calls at one time all run. While the server has no
    /// subscription, or after events were lost, all answers are dropped. Without a bus they expire only.
    ///
    /// **Readers over HTTP.** With an [orchestrator](Self::orchestrator), `GET /events?pattern=events:task:*` streams the events of the
    /// bus as server-sent events, to callers with the scope of the pattern (see [`Context::bus`](octollm_core::Context::bus)). A caller
    /// without `tasks:admin` has events of tasks only where it finds the task.
    ///
    /// **The end.** Requests that are given up at the [end of the server](BoundServer::run_until) are published as `request.dropped`,
    /// within 1 s.
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.bus = Some(Arc::new(bus));
        self
    }

    /// Sets the audit log. The server writes to it which requests it refuses for lack of authority (401 and 403), and to whom it
    /// returns the recorded answer of a call with an idempotency key. While the log is not available, the answer to these requests
    /// is 503, unless the log is a [best effort](octollm_core::audit::best_effort).
    ///
    /// A brain has a log of its own: see [`BrainBuilder::audit`](octollm_core::brain::BrainBuilder::audit). What a brain refuses is
    /// written by both, with the same request id.
    pub fn audit(mut self, log: impl AuditLog) -> Self {
        self.audit = Audit::new(log);
        self
    }

    /// Adds a route of your own. Its path can have `{parameters}`, which the service reads from the URI.
    ///
    /// The head, the limits and the identity are checked first, as for every request. The extensions of the request hold the
    /// [`Caller`](octollm_core::parts::Caller) and the [`ContextParts`](octollm_core::parts::ContextParts). The body is streamed.
    /// The request counts as running until its answer is sent. An error of the service is logged and answered with 500.
    ///
    /// The service can answer 101 and take the connection over with `hyper::upgrade::on`. That connection has no limits but the
    /// service's own, and is closed at the end of the server.
    pub fn route<S, B>(mut self, method: Method, path: impl Into<String>, service: S) -> Self
    where
        S: Service<Request<HttpBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError> + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = service
            .map_response(|response: Response<B>| response.map(HttpBody::streamed))
            .map_err(Into::into);
        self.routes.push((method, path.into(), BoxCloneSyncService::new(service)));
        self
    }

    /// Adds a tower layer around the whole service, which every request passes before any check. The layer added last is the
    /// outermost.
    pub fn layer<L, B>(mut self, layer: L) -> Self
    where
        L: Layer<HttpService> + Send + 'static,
        L::Service: Service<Request<HttpBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<HttpBody>>>::Future: Send + 'static,
        <L::Service as Service<Request<HttpBody>>>::Error: Into<BoxError>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.layers.push(Box::new(move |service| service.layer(layer)));
        self
    }

    /// Sets the authenticator, which establishes who calls. Without this, [`tokens`](Self::tokens) and
    /// [`identity_from_extensions`](Self::identity_from_extensions) a caller is
    /// [`Unchecked`](octollm_core::parts::Caller::Unchecked).
    pub fn authenticate(mut self, authenticator: impl Authenticate) -> Self {
        #[cfg(feature = "tokens")]
        {
            self.tokens = None;
            let authenticator: &dyn std::any::Any = &authenticator;
            self.verifier = authenticator.downcast_ref::<crate::token::TokenVerifier>().cloned();
            self.verifies_tokens = self.verifier.is_some();
        }
        self.identity.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Sets the verifier of tokens as the authenticator. If it has no audience of its own, its audience is the id of this server. The
    /// server builds it when it is bound, listens or is mounted.
    ///
    /// ```
    /// # use octollm_http::{Server, token::{KeySet, SigningKey, TokenVerifier}};
    /// # fn main() -> Result<(), octollm_core::error::Error> {
    /// # let key = SigningKey::generate()?;
    /// let roots = KeySet::new("brain").with_key(&key)?;
    /// let judge = Server::new("judge").tokens(TokenVerifier::builder().root(roots));
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "tokens")]
    pub fn tokens(mut self, verifier: crate::token::TokenVerifierBuilder) -> Self {
        (self.identity.authenticator, self.verifier) = (None, None);
        self.verifies_tokens = true;
        self.tokens = Some(verifier);
        self
    }

    /// Accepts a [`Caller`](octollm_core::parts::Caller) in the extensions of a request, where a layer or the server around this
    /// one has set it. It cannot come over the network. A request without one is authenticated, or is anonymous if there is no
    /// authenticator.
    pub fn identity_from_extensions(mut self) -> Self {
        self.identity.from_extensions = true;
        self
    }

    /// Accepts every caller. A server that listens beyond loopback or is mounted needs this,
    /// [`authenticate`](Self::authenticate) or [`identity_from_extensions`](Self::identity_from_extensions).
    pub fn open_to_all(mut self) -> Self {
        self.identity.open_to_all = true;
        self
    }

    /// Adds a member `error` with `code` and `message` to the body of every error, for clients that read `error.message`. Answers
    /// of your own [routes](Self::route) and [layers](Self::layer) are not changed.
    pub fn nested_errors(mut self) -> Self {
        self.errors = ErrorForm::Nested;
        self
    }

    /// Compresses answers of 1 KiB or more with gzip, for callers that accept that, and accepts request bodies in gzip, of at most
    /// [`max_decoded`](Self::max_decoded) bytes. By default neither is done.
    ///
    /// Problems, and answers of your own [routes](Self::route), are not compressed. Do not compress answers that contain both a
    /// secret and a text of somebody else: their length reveals what they have in common.
    #[cfg(feature = "compression")]
    pub fn compression(mut self) -> Self {
        self.is_compressing = true;
        self
    }

    /// Listens on TCP and serves until SIGTERM or Ctrl-C, as [`run_until_signal`](BoundServer::run_until_signal) does.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn serve(self, address: impl ToSocketAddrs) -> Result<(), ConfigError> {
        self.bind(address).await?.run_until_signal().await;
        Ok(())
    }

    /// Listens on TCP, without serving yet. For port 0 the system chooses one. Where [`env`](Self::env) has read another address or the
    /// files of a certificate, it listens there, or with TLS.
    ///
    /// # Errors
    /// A setting is invalid, or the address cannot be listened on. The setting is `authenticate` if the address is beyond loopback
    /// and nothing establishes who calls.
    ///
    /// # Cancel safety
    /// Dropping the future drops the server, and the listener with it.
    pub async fn bind(mut self, address: impl ToSocketAddrs) -> Result<BoundServer, ConfigError> {
        let addresses: Vec<_> = match &self.exposure.address {
            Some(named) => lookup_host(named).await.map_err(|source| not_found(LISTEN, source))?.collect(),
            None => lookup_host(address).await.map_err(|source| not_found("address", source))?.collect(),
        };
        let beyond = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback());
        if let Some(address) = beyond {
            self.guarded(|| address.to_string())?;
        }
        let (tls, is_of_environment) = (self.exposure.tls.take(), self.exposure.address.is_some());
        let built = self.build()?;
        let listener = io::listen(&addresses).map_err(|source| {
            let named: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let error = ConfigError::new(named.join(", "), "cannot be listened on").with_source(source);
            if is_of_environment { error.for_setting(LISTEN) } else { error }
        })?;
        let names = tls.as_ref().map(TlsFiles::named);
        let listener = Listener::new(listener, tls).map_err(|error| env::of_file(names, error))?;
        BoundServer::with_url(listener, built)
    }

    /// Accepts connections from an acceptor, without serving yet.
    ///
    /// # Errors
    /// A setting is invalid. The setting is `authenticate` if the acceptor is not [local](Acceptor::is_local) and nothing
    /// establishes who calls.
    pub fn listen<A: Acceptor>(self, acceptor: A) -> Result<BoundServer<A>, ConfigError> {
        self.exposure.unused()?;
        if !acceptor.is_local() {
            self.guarded(|| "on an acceptor".into())?;
        }
        BoundServer::new(acceptor, self.build()?, None)
    }

    /// Returns the server as a tower service, to mount into another server.
    ///
    /// Limits on requests hold; limits on connections are those of the other server. Call [`close`](Orchestrator::close) of an
    /// [orchestrator](Self::orchestrator) at its end.
    ///
    /// # Errors
    /// A setting is invalid. The setting is `authenticate` if nothing establishes who calls.
    pub fn into_service(self) -> Result<HttpService, ConfigError> {
        self.exposure.unused()?;
        self.guarded(|| "a mounted service".into())?;
        if !self.announcing.targets.is_empty() {
            let problem = "is set, but a service that is mounted does not know when it serves: register the server around it";
            return Err(ConfigError::new("register", problem));
        }
        self.build().map(|built| built.service)
    }

    fn config_mut(&mut self) -> &mut ServerConfig {
        &mut self.config
    }
}

server_limits!(limits_setters Server);

fn not_found(setting: &'static str, source: std::io::Error) -> ConfigError {
    ConfigError::new(setting, "was not found").with_source(source)
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("dispatcher", &self.dispatcher)
            .field("orchestrator", &self.orchestrator.is_some())
            .field("reflex", &self.reflex.is_some())
            .field("config", &self.config)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}
