//! Putting a server together.

use std::{error::Error, fmt, future::Future, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use octollm_core::{
    Arm, contract::TaskContract, dispatcher::Dispatcher, error::ConfigError, orchestrator::Orchestrator,
    reflex::Reflex, transport::Transport,
};
use tokio::net::{ToSocketAddrs, lookup_host};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

use super::{
    assembly::Parts,
    body::{RequestBody, ResponseBody},
    config::ServerConfig,
    identity::{Authenticate, Identity},
    listen::{BoundServer, Built},
    probes::{Check, HealthState},
    reply::ErrorForm,
    routes::RouteService,
    service::HttpService,
};
use crate::io::{Acceptor, TcpAcceptor};

/// Serves arms, an orchestrator and a reflex over HTTP: each by itself, or together.
///
/// | added | served |
/// |---|---|
/// | always | `GET /health`, `/ready`, `/capabilities`, `/openapi.json` |
/// | [`arm`](Self::arm) | a route for each contract, and `POST /execute`, which picks the contract by its body |
/// | [`orchestrator`](Self::orchestrator) | `POST` and `GET /tasks`, `GET` and `DELETE /tasks/{id}`, `POST /tasks/{id}/rerun`, `GET /tasks/{id}/journal`, `GET /arms` |
/// | [`reflex`](Self::reflex) | `POST /preprocess`; with an orchestrator, `POST /tasks` is screened |
/// | [`route`](Self::route) | whatever its service answers |
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
    errors: ErrorForm,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl Server {
    /// A server of this id, such as `judge`, which serves nothing but its probes yet.
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
            errors: ErrorForm::default(),
        }
    }

    /// Adds a contract and the arm that serves it. The contract is inferred where the arm has one; `arm::<C>(..)` names it
    /// where it has several. A contract that is served already is replaced.
    #[must_use]
    pub fn arm<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.dispatcher.serve::<C>(arm);
        self
    }

    /// Takes tasks for an orchestrator: a [`Brain`](octollm_core::brain::Brain), or a client of one elsewhere. The card at
    /// `GET /capabilities` then lists the arms that it knows. It is drained and closed when the server ends (see
    /// [`run_until`](BoundServer::run_until)); where the server is mounted, that is up to the service around it.
    #[must_use]
    pub fn orchestrator(mut self, orchestrator: impl Orchestrator) -> Self {
        self.orchestrator = Some(Arc::new(orchestrator));
        self
    }

    /// Screens tasks. `POST /preprocess` answers what the reflex makes of a text, and `POST /tasks` hands on what passes. A
    /// task that the reflex answers by itself comes back completed, with 200 in place of 202, and is not stored.
    ///
    /// Only tasks are screened: the inputs of contracts that the same server serves by [`arm`](Self::arm) go to the arm as
    /// they are, by their own routes and by `POST /execute`.
    #[must_use]
    pub fn reflex(mut self, reflex: impl Reflex) -> Self {
        self.reflex = Some(Arc::new(reflex));
        self
    }

    /// Sets the arms that arms and reflexes of this server may call.
    #[must_use]
    pub fn arms(mut self, arms: impl Transport) -> Self {
        self.transport = Arc::new(arms);
        self
    }

    /// Adds a route of your own. Its path may have `{parameters}`; the service reads them from the URI.
    ///
    /// The checks of every request come first: head, limits, identity. The service finds the
    /// [`Caller`](octollm_core::parts::Caller) and the [`ContextParts`](octollm_core::parts::ContextParts) in the extensions
    /// of the request, gets the body as it comes, and has a place among the requests that run until its answer is sent. It
    /// may answer 101 and take the connection over with `hyper::upgrade::on`: that connection then has no limits but the
    /// service's own, and ends with the server. An error is answered with 500 and logged.
    #[must_use]
    pub fn route<S, B>(mut self, method: Method, path: impl Into<String>, service: S) -> Self
    where
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError> + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = service
            .map_response(|response: Response<B>| response.map(ResponseBody::streamed))
            .map_err(Into::into);
        self.routes.push((method, path.into(), BoxCloneSyncService::new(service)));
        self
    }

    /// Adds a tower layer around the whole service: every request passes it before any check. Of several, the one that was
    /// added last is the outermost.
    #[must_use]
    pub fn layer<L, B>(mut self, layer: L) -> Self
    where
        L: Layer<HttpService> + Send + 'static,
        L::Service: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<RequestBody>>>::Future: Send + 'static,
        <L::Service as Service<Request<RequestBody>>>::Error: Into<BoxError>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.layers.push(Box::new(move |service| service.layer(layer)));
        self
    }

    /// Establishes who calls. Without this and [`identity_from_extensions`](Self::identity_from_extensions) callers are
    /// [`Unchecked`](octollm_core::parts::Caller::Unchecked).
    #[must_use]
    pub fn authenticate(mut self, authenticator: impl Authenticate) -> Self {
        self.identity.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Believes a [`Caller`](octollm_core::parts::Caller) in the extensions of a request, which a layer or the service around
    /// this one has put there; it cannot come over the network. A request without one is authenticated if there is an
    /// authenticator, and is anonymous otherwise.
    #[must_use]
    pub fn identity_from_extensions(mut self) -> Self {
        self.identity.from_extensions = true;
        self
    }

    /// Lets everybody call everything that needs no identity established: a server that listens beyond loopback or is
    /// mounted needs this, or one of the two above.
    #[must_use]
    pub fn open_to_all(mut self) -> Self {
        self.identity.open_to_all = true;
        self
    }

    /// Sets what the server is for, in a sentence or two.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.dispatcher.card_mut().description = description.into();
        self
    }

    /// Sets the version of the program that serves.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.dispatcher.card_mut().version = version.into();
        self
    }

    /// Sets the cost tier of its arms, from 1 (cheap) to 5 (default 3).
    #[must_use]
    pub fn cost_tier(mut self, tier: u8) -> Self {
        self.dispatcher.card_mut().cost_tier = tier.clamp(1, 5);
        self
    }

    /// Sets where others reach it, such as `http://judge-arm:8103`. By default its card has what the caller asked, and
    /// nothing where the server is mounted, since only the caller knows the path.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.dispatcher.card_mut().endpoint = Some(endpoint.into());
        self
    }

    /// Adds a member `error` to the body of every error that the server itself answers, with `code` and `message` once more,
    /// for clients of other stacks that read `error.message`. Answers of [routes](Self::route) and
    /// [layers](Self::layer) of your own stay as they are.
    #[must_use]
    pub fn nested_errors(mut self) -> Self {
        self.errors = ErrorForm::Nested;
        self
    }

    /// Replaces the limits. They are checked when the server is built.
    #[must_use]
    pub fn config(mut self, config: ServerConfig) -> Self {
        self.config = config;
        self
    }

    /// Adds something that must hold for `GET /ready` to say so. Of several checks of one name all must hold.
    #[must_use]
    pub fn check<F, Fut>(mut self, name: impl Into<String>, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        self.checks.push(Check::new(name.into(), check));
        self
    }

    /// Listens on TCP, and serves until SIGTERM or Ctrl-C; then what runs may come to its end: see
    /// [`run_until_signal`](BoundServer::run_until_signal).
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    ///
    /// # Cancel safety
    /// Dropping the future closes the server and every connection at once.
    pub async fn serve(self, address: impl ToSocketAddrs) -> Result<(), ConfigError> {
        self.bind(address).await?.run_until_signal().await;
        Ok(())
    }

    /// Listens on TCP, and serves nothing yet. Port 0 has the system choose one.
    ///
    /// # Errors
    /// The server cannot be built or cannot listen; it is an error of the setting `authenticate` beyond loopback where nothing establishes who
    /// calls.
    pub async fn bind(self, address: impl ToSocketAddrs) -> Result<BoundServer, ConfigError> {
        let addresses: Vec<_> = lookup_host(address).await.map_err(not_found)?.collect();
        let beyond = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback());
        if let Some(address) = beyond {
            self.guarded(|| address.to_string())?;
        }
        let built = self.build()?;
        let acceptor = TcpAcceptor::bind(&*addresses).await.map_err(|source| {
            let named: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            ConfigError::new(named.join(", "), "cannot be listened on").with_source(source)
        })?;
        Ok(BoundServer::new(acceptor, built))
    }

    /// Takes connections from an acceptor of any kind, and serves nothing yet.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), where the acceptor is not [local](Acceptor::is_local).
    pub fn listen<A: Acceptor>(self, acceptor: A) -> Result<BoundServer<A>, ConfigError> {
        if !acceptor.is_local() {
            self.guarded(|| "on an acceptor".into())?;
        }
        Ok(BoundServer::new(acceptor, self.build()?))
    }

    /// The server as a tower service, to mount into a server that exists already. Limits on connections are then that
    /// server's; those on requests hold. Nothing closes an [orchestrator](Self::orchestrator) when that server ends: call its
    /// [`close`](Orchestrator::close) there.
    ///
    /// # Errors
    /// The server cannot be built; it is an error of the setting `authenticate` where nothing establishes who calls.
    pub fn into_service(self) -> Result<HttpService, ConfigError> {
        self.guarded(|| "a mounted service".into())?;
        self.build().map(|built| built.service)
    }

    fn guarded(&self, exposed: impl FnOnce() -> String) -> Result<(), ConfigError> {
        match self.identity.is_decided() {
            true => Ok(()),
            false => Err(ConfigError::new("authenticate", unguarded(&exposed()))),
        }
    }

    fn build(self) -> Result<Built, ConfigError> {
        self.config.check()?;
        if let Some(refused) = self.dispatcher.refused().first() {
            return Err(refused.clone());
        }
        let health = Arc::new(HealthState::new(self.checks, self.config.check_timeout));
        let parts = Parts {
            dispatcher: Arc::new(self.dispatcher),
            transport: self.transport,
            health: health.clone(),
            screen: self.reflex,
            orchestrator: self.orchestrator.clone(),
            errors: self.errors,
        };
        let mut table = parts.routes()?;
        for (method, path, service) in self.routes {
            table.service(method, &path, service)?;
        }
        let identity = Identity { limit: self.config.authenticate_timeout, ..self.identity };
        let service = HttpService::new(table, self.config, identity, self.errors);
        let service = self.layers.into_iter().fold(service, |service, layer| layer(service));
        Ok(Built { service, health, orchestrator: self.orchestrator })
    }
}

fn not_found(source: std::io::Error) -> ConfigError {
    ConfigError::new("address", "was not found").with_source(source)
}

fn unguarded(exposed: &str) -> String {
    format!(
        "is not set, so that nothing establishes who calls {exposed}, which others can reach: set `authenticate(..)`, \
         `identity_from_extensions()` or, to let everybody call everything, `open_to_all()`"
    )
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
