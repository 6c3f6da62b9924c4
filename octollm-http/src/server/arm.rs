//! The routes of an arm: its contracts, its card, and its health.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{WeakShared, join_all},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use jiff::Timestamp;
use octollm_core::{
    __private::caught,
    Context,
    card::{ArmCard, ArmStatus},
    contract::ContractRef,
    deadline::Deadline,
    dispatcher::Dispatcher,
    error::{ArmError, ConfigError, ErrorKind, Failure},
    id::TaskId,
    idempotency::task_of_key,
    json, metrics,
    orchestrator::Orchestrator,
    parts::ContextParts,
    transport::Transport,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    guard::Guard,
    rates::{RateReport, Rates},
    recording::Seen,
    routes::{Answer, Endpoint, Inbound, Refusal, RouteTable, Takes, tag_of, within},
    streamed::{Ended, Unsent, streamed},
};
use crate::registry::Registry;

/// Adds the routes of every server.
pub(crate) fn add_probes(table: &mut RouteTable, own: &ArmCapabilities) -> Result<(), ConfigError> {
    let (health, version) = (own.health.clone(), own.dispatcher.card().version.clone());
    table.add(Method::GET, "/health", Health { health: health.clone(), version })?;
    table.add(Method::GET, "/ready", Ready { health })
}

/// Adds the routes of contracts, with the guards of those that are limited.
pub(crate) fn add_contracts(
    table: &mut RouteTable,
    dispatcher: &Arc<Dispatcher>,
    transport: &Arc<dyn Transport>,
    rates: Option<Arc<Rates>>,
    guards: HashMap<ContractRef, Arc<Guard>>,
    ping: Duration,
) -> Result<(), ConfigError> {
    if dispatcher.specs().next().is_none() {
        return Ok(());
    }
    for spec in dispatcher.specs() {
        let (dispatcher, transport, contract) = (dispatcher.clone(), transport.clone(), spec.reference());
        let guard = guards.get(&contract).cloned();
        let named = contract.clone();
        table.contract(&named, spec.path, Contract { dispatcher, contract, transport, guard, ping })?;
    }
    let (dispatcher, transport) = (dispatcher.clone(), transport.clone());
    table.add(Method::POST, "/execute", Execute { dispatcher, transport, rates, guards, ping })
}

/// `POST /{path}`: runs a contract.
struct Contract {
    dispatcher: Arc<Dispatcher>,
    contract: ContractRef,
    transport: Arc<dyn Transport>,
    guard: Option<Arc<Guard>>,
    /// Of an answer of events.
    ping: Duration,
}

/// The future of an endpoint.
type Answering<'f> = Pin<Box<dyn Future<Output = Result<Answer, Refusal>> + Send + 'f>>;

impl Contract {
    async fn streamed(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let report = match &self.guard {
            Some(guard) => guard.take(&inbound).await?,
            None => RateReport::default(),
        };
        let (parts, input) = (inbound.parts, inbound.body);
        let (ids, named) = ((parts.request_id.clone(), parts.task_id.clone()), parts.task_id.clone());
        let unsent = Arc::<Unsent>::default();
        let cx = Context::from_parts(parts, self.transport.clone()).with_updates(unsent.clone());
        let (dispatcher, guard) = (self.dispatcher.clone(), self.guard.clone());
        let work = executed(dispatcher, self.contract.clone(), guard, (input, named), cx);
        report.on(streamed(unsent, work, ids, self.ping).await)
    }

    async fn guarded(&self, guard: &Guard, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let report = guard.take(&inbound).await?;
        let mut cx = Context::from_parts(inbound.parts, self.transport.clone());
        let (spec, task) = (self.dispatcher.spec(&self.contract)?, cx.task_id().cloned());
        report.on(match guard.execute(&self.dispatcher, spec, &inbound.body, task.as_ref(), &mut cx).await {
            Ok((output, age)) => {
                Ok(Answer::written(output).usage(cx.used()).replayed(cx.is_replayed()).age(age))
            }
            Err(failure) => Err(Refusal::from(failure).usage(cx.used()).replayed(cx.is_replayed())),
        })
    }
}

/// Runs a contract. `task` is the one that the caller named.
async fn executed(
    dispatcher: Arc<Dispatcher>,
    contract: ContractRef,
    guard: Option<Arc<Guard>>,
    (input, task): (Bytes, Option<TaskId>),
    mut cx: Context,
) -> Ended {
    let result = match (&guard, dispatcher.spec(&contract)) {
        (Some(guard), Ok(spec)) => guard.execute(&dispatcher, spec, &input, task.as_ref(), &mut cx).await,
        _ => {
            let executed = dispatcher.execute(&contract, &input, &mut cx).await;
            executed.map(|output| (output, None)).map_err(ArmError::into_failure)
        }
    };
    Ended { result, usage: cx.used(), is_replayed: cx.is_replayed() }
}

#[async_trait]
impl Endpoint for Contract {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    fn is_streaming(&self) -> bool {
        true
    }

    // The expansion of an `async fn`, which would have room for the request twice.
    fn call<'s, 'r, 'f>(&'s self, inbound: Inbound<'r>) -> Answering<'f>
    where
        's: 'f,
        'r: 'f,
        Self: 'f,
    {
        if inbound.prefers_events {
            return Box::pin(self.streamed(inbound));
        }
        if let Some(guard) = &self.guard {
            return Box::pin(self.guarded(guard, inbound));
        }
        let Inbound { parts, body, .. } = inbound;
        let mut cx = Context::from_parts(parts, self.transport.clone());
        Box::pin(async move {
            match self.dispatcher.execute(&self.contract, &body, &mut cx).await {
                Ok(output) => Ok(Answer::written(output).usage(cx.used()).replayed(cx.is_replayed())),
                Err(error) => {
                    Err(Refusal::from(error.into_failure()).usage(cx.used()).replayed(cx.is_replayed()))
                }
            }
        })
    }
}

/// `POST /execute`: runs the contract that the body names.
struct Execute {
    dispatcher: Arc<Dispatcher>,
    transport: Arc<dyn Transport>,
    rates: Option<Arc<Rates>>,
    guards: HashMap<ContractRef, Arc<Guard>>,
    /// Of an answer of events.
    ping: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    #[serde(default)]
    task_id: Option<TaskId>,
    contract: ContractRef,
    input: Box<RawValue>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Executed<'a> {
    task_id: TaskId,
    #[schemars(extend("const" = "completed"))]
    status: &'static str,
    #[schemars(with = "serde_json::Value")]
    output: &'a RawValue,
    provenance: Provenance<'a>,
}

#[derive(Serialize, JsonSchema)]
struct Provenance<'a> {
    arm_id: &'a str,
    timestamp: Timestamp,
    duration_ms: u64,
}

#[async_trait]
impl Endpoint for Execute {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    fn is_streaming(&self) -> bool {
        true
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let envelope = json::read_input::<Envelope>(&inbound.body);
        let streams = inbound.prefers_events;
        let Some(rates) = &self.rates else {
            return self.run(envelope?, inbound.parts, inbound.seen, streams).await;
        };
        let contract = envelope.as_ref().ok().map(|envelope| &envelope.contract);
        let report = rates.take(&inbound.parts.caller, inbound.head, contract).await?;
        report.on(match envelope {
            Ok(envelope) => Box::pin(self.run(envelope, inbound.parts, inbound.seen, streams)).await,
            Err(failure) => Err(failure.into()),
        })
    }
}

impl Execute {
    async fn run(
        &self,
        envelope: Envelope,
        mut parts: ContextParts,
        seen: Option<&Seen>,
        streams: bool,
    ) -> Result<Answer, Refusal> {
        let named = envelope.task_id.or_else(|| parts.task_id.take());
        let task = named.clone().unwrap_or_else(|| match &parts.key {
            Some(key) => task_of_key(&parts.caller, key),
            None => TaskId::new(),
        });
        parts.caller.may_work_for(&task)?;
        parts.task_id = Some(task.clone());
        let offered = self.dispatcher.spec(&envelope.contract);
        let spec = offered.map_err(|failure| Refusal::from(failure).task(task.clone()))?;
        if let Some(seen) = seen {
            seen.contract.get_or_init(|| spec.reference());
        }

        if streams {
            let unsent = Arc::<Unsent>::default();
            let ids = (parts.request_id.clone(), Some(task));
            let cx = Context::from_parts(parts, self.transport.clone()).with_updates(unsent.clone());
            let (dispatcher, guard) = (self.dispatcher.clone(), self.guards.get(&envelope.contract).cloned());
            let input = Bytes::from(String::from(Box::<str>::from(envelope.input)));
            let work = executed(dispatcher, envelope.contract, guard, (input, named), cx);
            return Box::pin(streamed(unsent, work, ids, self.ping)).await;
        }
        let (timestamp, begun) = (Timestamp::now(), Instant::now());
        let (mut cx, input) = (Context::from_parts(parts, self.transport.clone()), envelope.input.get());
        let executed = match self.guards.get(&envelope.contract) {
            Some(guard) => {
                let (input, task) = (input.as_bytes(), named.as_ref());
                Box::pin(guard.execute(&self.dispatcher, spec, input, task, &mut cx)).await
            }
            None => {
                let executed = self.dispatcher.execute(&envelope.contract, input.as_bytes(), &mut cx).await;
                executed.map(|output| (output, None)).map_err(ArmError::into_failure)
            }
        };
        let refused =
            |failure| Refusal::from(failure).usage(cx.used()).task(task.clone()).replayed(cx.is_replayed());
        let (output, age) = executed.map_err(refused)?;
        let output = serde_json::from_slice(&output).map_err(|_| Failure::of(ErrorKind::Internal))?;
        let arm_id = &self.dispatcher.card().arm_id;
        let (timestamp, took) = cx.executed().unwrap_or_else(|| (timestamp, begun.elapsed()));
        let provenance = Provenance { arm_id, timestamp, duration_ms: milliseconds(took) };
        let executed = Executed { task_id: task, status: "completed", output, provenance };
        Ok(Answer::json(&executed)?.usage(cx.used()).replayed(cx.is_replayed()).age(age))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `GET /health`: reports that the process runs.
struct Health {
    pub(crate) health: Arc<HealthState>,
    pub(crate) version: String,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct HealthBody<'a> {
    status: ArmStatus,
    version: &'a str,
    uptime_seconds: u64,
}

#[async_trait]
impl Endpoint for Health {
    fn takes(&self) -> Takes {
        Takes::Probe
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Answer, Refusal> {
        let uptime_seconds = self.health.uptime().as_secs();
        Ok(Answer::json(&HealthBody { status: ArmStatus::Healthy, version: &self.version, uptime_seconds })?)
    }
}

/// `GET /ready`: reports whether the server accepts work.
struct Ready {
    pub(crate) health: Arc<HealthState>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ReadyBody {
    ready: bool,
    checks: Arc<Passed>,
    timestamp: Timestamp,
}

#[async_trait]
impl Endpoint for Ready {
    fn takes(&self) -> Takes {
        Takes::Probe
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Answer, Refusal> {
        let checks = self.health.run_checks().await;
        let ready = !self.health.is_draining() && checks.values().all(|passed| *passed);
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Ok(Answer::json(&ReadyBody { ready, checks, timestamp: Timestamp::now() })?.status(status))
    }
}

/// `GET /capabilities` of an arm: its card.
#[derive(Clone)]
pub(crate) struct ArmCapabilities {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) health: Arc<HealthState>,
}

#[async_trait]
impl Endpoint for ArmCapabilities {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Answer, Refusal> {
        Ok(Answer::json(&self.card())?)
    }
}

impl ArmCapabilities {
    /// The current card.
    pub(crate) fn card(&self) -> ArmCard {
        let mut card = self.dispatcher.card().clone();
        if self.health.is_draining() {
            card.status = ArmStatus::Unavailable;
        }
        card
    }
}

/// `GET /capabilities` and `GET /arms` of an orchestrator: the cards of the arms it knows, and its own if it serves contracts.
#[derive(Clone)]
pub(crate) struct KnownArms {
    pub(crate) orchestrator: Arc<dyn Orchestrator>,
    pub(crate) own: ArmCapabilities,
    pub(crate) registry: Option<Registry>,
    pub(crate) written: Arc<Mutex<Option<WrittenArms>>>,
}

/// The last list, which is written again where it has changed.
pub(crate) struct WrittenArms {
    own: Option<ArmCard>,
    arms: Vec<ArmCard>,
    registered: Arc<[ArmCard]>,
    body: Bytes,
    tag: HeaderValue,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ArmsBody<'a> {
    #[serde(flatten)]
    own: Option<&'a ArmCard>,
    arms: Vec<&'a ArmCard>,
}

impl KnownArms {
    fn answer(
        &self,
        own: Option<ArmCard>,
        mut arms: Vec<ArmCard>,
        head: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let registered = self.registry.as_ref().map_or_else(Arc::default, Registry::listed);
        let of = |card: &'_ ArmCard| (card.arm_id.clone(), card.endpoint.clone());
        let known: HashSet<_> = registered.iter().map(of).collect();
        arms.retain(|card| !known.contains(&of(card)));
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |last: &&WrittenArms| {
            Arc::ptr_eq(&last.registered, &registered) && last.own == own && last.arms == arms
        };
        if let Some(last) = written.as_ref().filter(is_same) {
            return Ok(Answer::written(last.body.clone()).tagged(last.tag.clone(), head));
        }
        let all = arms.iter().chain(&*registered).collect();
        let body = Answer::json(&ArmsBody { own: own.as_ref(), arms: all })?;
        let body = body.0.body().whole().cloned().unwrap_or_default();
        let tag = tag_of(&body)?;
        *written = Some(WrittenArms { own, arms, registered, body: body.clone(), tag: tag.clone() });
        Ok(Answer::written(body).tagged(tag, head))
    }
}

#[async_trait]
impl Endpoint for KnownArms {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let own = Some(self.own.card()).filter(|card| !card.contracts.is_empty());
        let (cards, deadline) = (self.orchestrator.cards(), inbound.parts.deadline);
        let arms = match &own {
            // Callers of its contracts do without the arms. A brain that is among its own arms, or among theirs, would wait for
            // itself.
            Some(card) => {
                let half = deadline.map(|deadline| Deadline::after(deadline.remaining() / 2));
                within(half, cards).await.unwrap_or_else(|failure| {
                    tracing::warn!(
                        server = card.arm_id,
                        %failure,
                        "the card of a server was sent without the arms of its orchestrator"
                    );
                    Vec::new()
                })
            }
            None => within(deadline, cards).await?,
        };
        Ok(self.answer(own, arms, &inbound.head.headers)?)
    }
}

/// `GET /metrics`: the metrics of the process.
pub(crate) struct MetricsPage {
    /// The scope that its callers need.
    pub(crate) scope: Option<String>,
}

#[async_trait]
impl Endpoint for MetricsPage {
    fn takes(&self) -> Takes {
        if self.scope.is_some() { Takes::GuardedDocument } else { Takes::Document }
    }

    fn is_json(&self) -> bool {
        false
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        if let Some(scope) = &self.scope {
            inbound.parts.caller.may(scope)?;
        }
        Ok(Answer::written(metrics::page().into()).header(CONTENT_TYPE, TEXT))
    }
}

/// A document that never changes.
pub(crate) struct Written(pub(crate) Bytes);

#[async_trait]
impl Endpoint for Written {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Answer, Refusal> {
        Ok(Answer::written(self.0.clone()))
    }
}

/// `GET /.well-known/jwks.json`: the public keys of an issuer, as they are now.
#[cfg(feature = "tokens")]
pub(crate) struct Jwks(pub(crate) crate::token::KeySet);

#[cfg(feature = "tokens")]
#[async_trait]
impl Endpoint for Jwks {
    fn takes(&self) -> Takes {
        Takes::Document
    }

    async fn call(&self, _: Inbound<'_>) -> Result<Answer, Refusal> {
        Ok(Answer::json(&self.0.to_jwks())?)
    }
}

/// A readiness check.
pub(crate) struct Check {
    name: String,
    /// Its own time limit, where it has one.
    pub(crate) limit: Option<Duration>,
    run: Box<dyn Fn() -> CheckFuture + Send + Sync>,
}

type CheckFuture = Pin<Box<dyn Future<Output = bool> + Send>>;
/// Which checks hold, by name.
type Passed = BTreeMap<String, bool>;
/// A run of all checks, for whoever probes meanwhile.
type Run = Pin<Box<dyn Future<Output = Arc<Passed>> + Send>>;

impl Check {
    pub(crate) fn new<F, Fut>(name: String, limit: Option<Duration>, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        Self { name, limit, run: Box::new(move || Box::pin(check())) }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

/// The health of a server: its uptime, its readiness checks, and whether it shuts down.
#[derive(Debug)]
pub(crate) struct HealthState {
    started: Instant,
    draining: AtomicBool,
    checks: Arc<[Check]>,
    check_timeout: Duration,
    running: Mutex<Option<WeakShared<Run>>>,
    /// Cancelled when the streams of updates are to end.
    streams: CancellationToken,
}

impl HealthState {
    pub(crate) fn new(checks: Vec<Check>, check_timeout: Duration) -> Self {
        Self {
            started: Instant::now(),
            draining: AtomicBool::new(false),
            checks: checks.into(),
            check_timeout,
            running: Mutex::default(),
            streams: CancellationToken::new(),
        }
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Makes the server not ready from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Ends the streams of updates, so that those who follow a task do so at another server.
    pub(crate) fn end_streams(&self) {
        self.streams.cancel();
    }

    /// Cancelled when the streams of updates are to end.
    pub(crate) fn streams(&self) -> CancellationToken {
        self.streams.clone()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Returns the result of the run of all checks that is under way, or of a new one.
    async fn run_checks(&self) -> Arc<Passed> {
        let run = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let under_way = running.as_ref().and_then(WeakShared::upgrade);
            under_way.filter(|run| run.peek().is_none()).unwrap_or_else(|| {
                let run: Run = Box::pin(run_all(self.checks.clone(), self.check_timeout));
                let run = run.shared();
                *running = run.downgrade();
                run
            })
        };
        run.await
    }
}

/// Runs all checks concurrently. A check that exceeds its time limit or panics has failed.
async fn run_all(checks: Arc<[Check]>, default_limit: Duration) -> Arc<Passed> {
    let runs = checks.iter().map(|check| async move {
        let run = caught(async { (check.run)().await });
        matches!(timeout(check.limit.unwrap_or(default_limit), run).await, Ok(Ok(true)))
    });
    let mut passed = Passed::new();
    for (check, holds) in checks.iter().zip(join_all(runs).await) {
        *passed.entry(check.name.clone()).or_insert(true) &= holds;
    }
    Arc::new(passed)
}
