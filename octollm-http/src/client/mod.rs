//! Calling arms and orchestrators over HTTP: the client of arms, and its builder.
// A module uses only what stands before it here.
mod pool;
mod metrics;
mod foreign;
mod exchange;
mod sse;
mod base_url;
mod authority;
mod env;
mod choice;
mod circuit;
mod site;
mod offers;
mod cards;
mod known;
mod configured;
mod directory;
mod follow;
mod send;
mod stack;
mod protection;
mod rest;
mod orchestrator_client;
mod registration;
mod task_handle;

use std::{ffi::OsStr, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use octollm_core::{
    __private::settings::Vars,
    Context,
    bus::EventBus,
    card::ArmCard,
    context::{CallFuture, CallStream},
    contract::{ContractCard, ContractRef, TaskContract},
    deadline::Deadline,
    error::{CallError, ConfigError},
    parts::{Caller, ContextParts},
    transport::{Call, Reply, Transport},
};
use serde_json::{Map, Value};
use tower::{BoxError, Layer, Service};

pub(crate) use self::exchange::Requests;
use self::{
    authority::Authority,
    circuit::CLIENT,
    configured::{Configured, Named, PREFIX, arm_variables},
    directory::{Asking, Directory},
    exchange::{Exchange, request_setters},
    follow::{Follow, Rules},
    send::Sender,
    site::{CallLayer, CallService, Calling, Judging},
    stack::{Carrier, call_layer},
};
#[cfg(feature = "otel")]
pub(crate) use self::{exchange::Exchanger, pool::ExchangeLimits};
pub use secrecy::SecretString;

pub use self::{
    exchange::Target,
    orchestrator_client::{OrchestratorClient, OrchestratorClientBuilder},
    pool::Protocol,
    rest::{RestClient, RestClientBuilder, RestRequest, ServerEvent},
    task_handle::TaskHandle,
};
use crate::{
    limits::{ClientConfig, limits_setters},
    resolve::{Resolver, Steady},
};

pub(crate) use self::env::ORCHESTRATOR_URL;

/// A client of arms over HTTP. It is cheap to clone; clones share their connections.
///
/// ```no_run
/// # use octollm_http::client::Arms;
/// # fn main() -> Result<(), octollm_core::error::ConfigError> {
/// let arms = Arms::from_env()?; // OCTOLLM_ARM_JUDGE=http://judge-arm:8103
/// let same = Arms::builder().endpoint("judge", "http://judge-arm:8103").build()?;
/// # Ok(()) }
/// ```
///
/// The client asks every endpoint of the arms for its card at the first call, after a change, and while there are calls every 30 s
/// ([`card_refresh`](ArmsBuilder::card_refresh)). If several endpoints serve a
/// contract, a call goes to one whose card is healthy and cheapest; of equal ones, to the one with less load of two at random. If it cannot be
/// connected, or refuses the call with `contract_not_offered` or 404 before execution, another one is tried.
#[derive(Clone)]
pub struct Arms(Arc<Shared>);

struct Shared {
    carrier: Carrier,
    authority: Authority,
    directory: Arc<Directory>,
    follow: Arc<Follow>,
}

impl Arms {
    /// Creates a client of the arms in the environment: each `OCTOLLM_ARM_<ID>=http://host:port`, or several URLs separated by
    /// commas. `OCTOLLM_ARM_CODE_REVIEWER` is the arm `code-reviewer`. Without such variables the client has no arms. Limits and
    /// tokens are those of the environment too: see [`ArmsBuilder::env`].
    ///
    /// # Errors
    /// Those of [`ArmsBuilder::env`].
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(std::env::vars_os())
    }

    /// Creates a client as [`from_env`](Self::from_env) does, from these variables.
    ///
    /// # Errors
    /// Those of [`from_env`](Self::from_env).
    pub fn from_vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        Self::builder().vars(variables)?.build()
    }

    /// Returns a builder, to add arms one by one and to set limits and layers.
    pub fn builder() -> ArmsBuilder {
        ArmsBuilder::default()
    }

    /// Calls the arm that serves `C`, in a new context: see [`Context::call`].
    ///
    /// # Errors
    /// Those of [`CallFuture`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call: its connection is closed, or over HTTP/2 its stream is reset, and the arm's future is dropped.
    pub fn call<C: TaskContract>(&self, input: C) -> CallFuture<C::Output> {
        self.context().call(input)
    }

    /// Calls the arm that serves `C`, in a new context, and streams the chunks of its output: see [`Context::stream`].
    ///
    /// An arm of octollm streams them as server-sent events, and so does any arm that can and whose card has a `chunk_schema`. An arm that
    /// answers with JSON has no chunks, and the output is the same.
    pub fn stream<C: TaskContract>(&self, input: C) -> CallStream<C> {
        self.context().stream(input)
    }

    /// Calls a contract by its name, with JSON as input and output: see [`Context::call_json`].
    ///
    /// # Errors
    /// Those of [`call`](Self::call).
    ///
    /// # Cancel safety
    /// That of [`call`](Self::call).
    pub fn call_json(&self, contract: &ContractRef, input: &Value) -> CallFuture<Value> {
        self.context().call_json(contract, input)
    }

    /// Returns a new context, whose calls share a correlation id and a sum of usage.
    pub fn context(&self) -> Context {
        self.context_of(ContextParts::new())
    }

    /// Returns a new context with a deadline for all its calls together.
    pub fn within(&self, time: Duration) -> Context {
        let mut parts = ContextParts::new();
        parts.deadline = Some(Deadline::after(time));
        self.context_of(parts)
    }

    /// Returns a new context whose calls are made on behalf of a caller. If the client has the issuer of a root, each call
    /// has a token of this caller. Without an issuer the arms do not learn who calls.
    pub fn on_behalf_of(&self, caller: Caller) -> Context {
        let mut parts = ContextParts::new();
        parts.caller = caller;
        self.context_of(parts)
    }

    /// Returns a context with these parts: ids, deadline, budget and caller.
    pub fn context_of(&self, parts: ContextParts) -> Context {
        Context::from_parts(parts, Arc::clone(&self.0) as Arc<dyn Transport>)
    }

    /// Returns the cards of the arms that can be reached. They are asked, unless that was done within the last second.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on calls.
    pub async fn cards(&self) -> Vec<ArmCard> {
        self.0.cards().await
    }
}

#[async_trait]
impl Transport for Arms {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        Transport::call(&*self.0, call).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.cards().await
    }

    fn configured_arms(&self) -> Vec<String> {
        self.0.follow.configured()
    }

    fn public_key(&self) -> Option<Map<String, Value>> {
        self.0.authority.public_key()
    }
}

#[async_trait]
impl Transport for Shared {
    // The expansion of an `async fn`, without a future around the one that is boxed already.
    fn call<'a, 'async_trait>(&'a self, call: Call) -> Calling<'async_trait>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        self.carrier.call(call)
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.follow.ensure();
        self.directory.refresh().await;
        self.directory.cards()
    }
}

impl fmt::Debug for Arms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arms").field("directory", &self.0.directory).finish()
    }
}

/// Builds [`Arms`]: see [`Arms::builder`]. [`build`](Self::build) checks all settings.
///
/// A call passes the layers of [`layer`](Self::layer). Then an endpoint is chosen, and the call passes its layers of
/// [`endpoint_layer`](Self::endpoint_layer). It is written as an HTTP request, which passes those of
/// [`request_layer`](Self::request_layer).
#[must_use = "a builder does nothing until it builds"]
#[derive(Default)]
pub struct ArmsBuilder {
    arms: Vec<Named>,
    above: Vec<CallLayer>,
    below: Vec<CallLayer>,
    requests: Requests,
    authority: Authority,
    /// Arm, name and value.
    headers: Vec<(String, String, String)>,
    resolvers: Vec<Box<dyn Resolver>>,
    bus: Option<Arc<dyn EventBus>>,
    name: Option<String>,
}

request_setters!(ArmsBuilder);

impl ArmsBuilder {
    /// Adds an arm with its id and its URL, or several URLs separated by commas. The arm is asked for its contracts.
    ///
    /// With the feature `dns`, `dns+http://judge-arm:8103` is an endpoint at each address of the name, and
    /// `srv+http://_http._tcp.judge-arm` one at each of its SRV records: see [`resolve`](crate::resolve).
    pub fn endpoint(self, id: impl Into<String>, urls: impl AsRef<str>) -> Self {
        self.named(id.into(), urls.as_ref(), None)
    }

    /// Adds a service that serves `C` at its usual path and is not asked for a card, such as one without octollm. A service with
    /// several contracts is added once for each, with the same URLs.
    ///
    /// Where `C` has chunks, a [stream](Arms::stream) accepts both `text/event-stream` and `application/json`, and takes what the service
    /// answers. Events of another form than those of `docs/wire.md` are [`BadResponse`](octollm_core::error::ErrorKind::BadResponse):
    /// such a service is called without streaming.
    pub fn endpoint_serving<C: TaskContract>(self, id: impl Into<String>, urls: impl AsRef<str>) -> Self {
        // The schemas of the service are not known.
        let mut card = ContractCard::of::<C>();
        card.fingerprint = String::new();
        self.named(id.into(), urls.as_ref(), Some(card))
    }

    fn named(mut self, id: String, urls: &str, serves: Option<ContractCard>) -> Self {
        let urls = urls.split(',').map(|url| url.trim().to_owned()).collect();
        self.arms.push(Named { name: id.clone(), id, urls, serves });
        self
    }

    /// Publishes on this bus each opening and closing of a circuit breaker, as `circuit.opened` and `circuit.closed`.
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.bus = Some(Arc::new(bus));
        self
    }

    /// Sets the name of the client: the `source` of the events on its [bus](Self::bus), such as the id of the service that calls. Default
    /// `client`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds the arms and endpoints that a resolver finds, and follows their changes. Endpoints of an arm that is added by its id are
    /// left out, and so are those to which tokens or header fields would go in cleartext. The last endpoints stay in use while the
    /// resolver fails.
    ///
    /// The first call begins to follow it, in a task on the runtime of the call. The client waits for its first answer at most as long
    /// as for a card.
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.resolvers.push(Box::new(resolver));
        self
    }

    /// Configures the client by the environment.
    ///
    /// It adds the arm of each `OCTOLLM_ARM_<ID>=url[,url]`. `OCTOLLM_CLIENT_CONNECT_TIMEOUT=2s` is
    /// [`connect_timeout`](Self::connect_timeout) of 2 s, and so on for each limit. As with any setter, the last one holds: a limit that
    /// is set before this is a default, which a variable replaces, and one that is set after it is fixed.
    ///
    /// | variable | |
    /// |---|---|
    /// | `OCTOLLM_CLIENT_TOKEN_KEY_FILE` | PEM file with the private key of an issuer (feature `tokens`), which sends tokens |
    /// | `OCTOLLM_CLIENT_TOKEN_ISSUER` | the `iss` of the issuer, where it is a root |
    /// | `OCTOLLM_CLIENT_TOKEN_ARM` | the id of the arm, where it is one that calls others; one of the two |
    /// | `OCTOLLM_CLIENT_CLEARTEXT` | `true` for [`cleartext`](Self::cleartext) |
    ///
    /// # Errors
    /// A variable that begins with `OCTOLLM_` is unknown, or its value cannot be read or is out of range. The setting of the error is
    /// its name. URLs are checked when the client is built.
    pub fn env(self) -> Result<Self, ConfigError> {
        self.vars(std::env::vars_os())
    }

    /// Configures the client by these variables, as [`env`](Self::env) does.
    ///
    /// # Errors
    /// Those of [`env`](Self::env).
    pub fn vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let (arms, others): (Vec<_>, Vec<_>) =
            variables.into_iter().partition(|(name, _)| name.as_ref().to_string_lossy().starts_with(PREFIX));
        let vars = Vars::read(env::PREFIX, others)?;
        env::take(vars, &mut self.requests, &mut self.authority)?;
        self.arms.extend(arm_variables(arms)?);
        Ok(self)
    }

    /// Sends a token with each call.
    ///
    /// A root issues it to the caller of the context. It acts for itself in a context whose callers are not checked, such as that of
    /// [`Arms::call`]. An arm issues it by the link that it was given. If the caller has not delegated the scope of the contract,
    /// the call fails before it is sent.
    ///
    /// Each arm is the audience of its tokens under the id that it has here.
    #[cfg(feature = "tokens")]
    pub fn tokens(mut self, issuer: crate::token::TokenIssuer) -> Self {
        self.authority.issuer = Some(issuer);
        self
    }

    /// Adds a header field to each request to one arm, such as the API key or the fixed bearer token of a service that does not know
    /// tokens of octollm. With a field `authorization`, no token is issued for the arm.
    ///
    /// The value is a secret: it is not logged, and not sent in cleartext to another machine unless [`cleartext`](Self::cleartext) is
    /// set.
    ///
    /// ```
    /// # use octollm_http::Arms;
    /// # fn main() -> Result<(), octollm_core::error::ConfigError> {
    /// # let key = "secret";
    /// let arms = Arms::builder()
    ///     .endpoint("scribe", "http://localhost:8200")
    ///     .header("scribe", "authorization", format!("Bearer {key}"))
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn header(
        mut self,
        arm: impl Into<String>,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.headers.push((arm.into(), name.into(), value.into()));
        self
    }

    /// Allows tokens and the [header fields](Self::header) of an arm to be sent in cleartext to other machines, as in a service mesh
    /// that encrypts connections itself. With a [connector](Self::connector) of your own they are allowed.
    pub fn cleartext(mut self) -> Self {
        self.authority.cleartext = true;
        self
    }

    /// Adds a tower layer around each call, above its [retry](octollm_core::context::CallFuture::retry) and the choice of an
    /// endpoint. A retry in this layer can reach another endpoint with [`Call::avoid`]. The layer added last is the outermost.
    ///
    /// An error other than [`CallError`] becomes the source of one.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<CallService> + Send + Sync + 'static,
        L::Service: Service<Call, Response = Reply> + Clone + Send + Sync + 'static,
        <L::Service as Service<Call>>::Error: Into<BoxError>,
        <L::Service as Service<Call>>::Future: Send + 'static,
    {
        self.above.push(call_layer(layer));
        self
    }

    /// Adds a tower layer around the calls to each endpoint. It creates one service per endpoint, which is used as long as the
    /// client exists. The layer added last is the outermost.
    pub fn endpoint_layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<CallService> + Send + Sync + 'static,
        L::Service: Service<Call, Response = Reply> + Clone + Send + Sync + 'static,
        <L::Service as Service<Call>>::Error: Into<BoxError>,
        <L::Service as Service<Call>>::Future: Send + 'static,
    {
        self.below.push(call_layer(layer));
        self
    }

    /// Builds the client. The first call opens the first connection.
    ///
    /// # Errors
    /// A setting, an id or a URL is invalid.
    pub fn build(self) -> Result<Arms, ConfigError> {
        let Self { arms, above, below, requests, authority, headers, resolvers, bus, name } = self;
        let source: Arc<str> = name.as_deref().unwrap_or(CLIENT).into();
        if source.trim().is_empty() {
            return Err(ConfigError::new("name", "is empty: it is the source of the events of the client"));
        }
        let grace = requests.config.resolver_grace;
        let ClientConfig { capabilities_timeout: time_limit, card_refresh: refresh, .. } = requests.config;
        let over_tcp = requests.connector.is_none();
        let mut configured = Configured::default();
        for named in arms {
            configured.add(named)?;
        }
        let fields = authority::fields(&headers)?;
        if resolvers.is_empty() {
            configured.check_headers(&headers)?;
        }
        let Configured { listed: endpoints, resolvers: mut all, groups: ids } = configured;
        let mut listed = Vec::new();
        for mut endpoint in endpoints {
            if let Some(fields) = fields.get(&*endpoint.arm) {
                endpoint.url = endpoint.url.with_fields(fields.clone());
            }
            if over_tcp {
                authority.check(&endpoint.arm, &endpoint.url)?;
            }
            listed.push(endpoint);
        }
        // What the configuration names comes first.
        let others = all.last().map_or(1, |(last, _)| last + 1);
        all.extend((others..).zip(resolvers));
        let (groups, resolvers): (Vec<_>, Vec<_>) =
            all.into_iter().map(|(group, resolver)| (group, Steady::new(resolver, grace))).unzip();
        let (retries, breaker) = (requests.config.retry_limits(), requests.config.breaker_limits());
        let max_endpoints = requests.config.max_endpoints;
        let retry_budget = (requests.config.retry_budget_percent, requests.config.retry_budget_per_second);
        let (exchanger, judging) =
            (requests.build()?, Judging { breaker, retries: retry_budget, source, bus });
        let directory = Directory::new(
            listed,
            groups.iter().copied(),
            exchanger,
            judging,
            Asking { time_limit, refresh },
        );
        let rules = Rules::new(ids, groups, fields, authority.clone(), over_tcp);
        let follow = Follow::new(&directory, resolvers, rules);
        let sender = Sender::new(directory.clone(), authority.clone(), below);
        let carrier = Carrier::new(sender, follow.clone(), retries, max_endpoints, &above);
        Ok(Arms(Arc::new(Shared { carrier, authority, directory, follow })))
    }
}

impl fmt::Debug for ArmsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No values of headers, which are secrets.
        f.debug_struct("ArmsBuilder")
            .field("arms", &self.arms)
            .field("config", &self.requests.config)
            .finish_non_exhaustive()
    }
}
