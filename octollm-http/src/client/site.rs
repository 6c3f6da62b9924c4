//! One endpoint of an arm: its health, and the calls that are sent there.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use http::header::AUTHORIZATION;
use octollm_core::{
    __private::machines::{Admitted, BreakerLimits, Circuit, Ejection, Load},
    budget::Usage,
    bus::EventBus,
    error::{CallError, ErrorKind, Failure},
    event::Event,
    explain::CallEvent,
    resilience::{BreakerState, Calls, Outcome, Protocol, Refusal, RetryBudget},
    transport::{Call, Reply},
};
use serde_json::json;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};

use super::{
    base_url::BaseUrl,
    choice::Rank,
    directory::Directory,
    exchange::{read_answer, unreadable},
    known::Listed,
    metrics::{Metered, SendSpan},
    offers::{Offer, Offers},
    pool::{ExchangeError, ExchangeLimits, ServerHints},
};

/// The future of a call.
pub(super) type Calling<'a> = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send + 'a>>;

/// A service of calls, within layers of the user.
pub(super) type CallService = BoxCloneSyncService<Call, Reply, CallError>;

/// A layer of a user, above or below the choice of an endpoint.
pub(super) type CallLayer = Arc<dyn Fn(CallService) -> CallService + Send + Sync>;

/// What is around each endpoint.
pub(super) struct Around {
    /// Layers of a user, from the innermost.
    pub(super) layers: Vec<CallLayer>,
    /// `None` without circuit breakers.
    pub(super) breaker: Option<BreakerLimits>,
    /// Receives the changes of circuit breakers.
    pub(super) bus: Option<Arc<dyn EventBus>>,
}

/// One endpoint of one arm. It is forgotten when its arm moves away; what is running there goes on.
pub(super) struct Site {
    pub(super) arm: Arc<str>,
    pub(super) url: BaseUrl,
    weight: u32,
    breaker: Option<Circuit>,
    load: Load,
    ejection: Ejection,
    /// That of the arm.
    pub(super) budget: RetryBudget,
    /// The layers of a user around this endpoint, if there are any. Without layers nothing is boxed.
    layered: OnceLock<CallService>,
    directory: Weak<Directory>,
}

impl Site {
    pub(super) fn create(
        listed: &Listed,
        budget: &RetryBudget,
        around: &Around,
        directory: &Weak<Directory>,
    ) -> Arc<Self> {
        let site = Arc::new(Self {
            arm: listed.arm.clone(),
            url: listed.url.clone(),
            weight: listed.weight,
            breaker: around.breaker.map(|limits| {
                breaker(limits, (listed.arm.clone(), listed.url.shared()), around.bus.as_ref())
            }),
            load: Load::new(),
            ejection: Ejection::new(),
            budget: budget.clone(),
            layered: OnceLock::new(),
            directory: directory.clone(),
        });
        if !around.layers.is_empty() {
            let weak = Arc::downgrade(&site);
            let inner = service_fn(move |call: Call| {
                let site = weak.upgrade();
                async move {
                    match &site {
                        Some(site) => site.carry(&call).await,
                        None => Err(CallError::new(call.contract, Failure::of(ErrorKind::Unavailable))),
                    }
                }
            });
            let _ = site.layered.set(layered(CallService::new(inner), &around.layers));
        }
        site
    }

    /// Whether this is the endpoint of the arm at this URL, with this weight.
    pub(super) fn is(&self, arm: &str, url: &BaseUrl, weight: u32) -> bool {
        *self.arm == *arm && self.url == *url && self.weight == weight
    }

    /// The rank by its card, with what is known of its health.
    pub(super) fn rank(&self, by_card: Rank, now: Instant) -> Rank {
        let rejects = self.breaker.as_ref().is_some_and(|breaker| breaker.retry_after(|| now).is_some());
        let is_ejected = self.ejection.is_ejected(now);
        Rank { rejects, is_ejected, ..by_card }
    }

    /// Its load in relation to its weight. An endpoint whose breaker waits for a probe attracts the next call.
    pub(super) fn load(&self, now: Instant) -> f64 {
        if self.breaker.as_ref().is_none_or(Circuit::is_closed) {
            self.load.cost(now) / f64::from(self.weight)
        } else {
            0.0
        }
    }

    /// Sends a call to the path of an offer, through the layers of the user.
    pub(super) async fn send(
        &self,
        directory: &Directory,
        offer: &Offer,
        call: &Call,
    ) -> Result<Reply, CallError> {
        match self.layered.get() {
            None => self.exchange(directory, offer, call).await,
            Some(service) => service.clone().oneshot(call.clone()).await,
        }
    }

    /// Sends a call to the path that the arm's card names now.
    async fn carry(&self, call: &Call) -> Result<Reply, CallError> {
        let directory = self.directory.upgrade();
        let offers = directory.as_ref().and_then(|directory| directory.offers(&call.contract));
        match (&directory, offers.as_ref().and_then(|offers| offers.at_site(self))) {
            (Some(directory), Some(offer)) => self.exchange(directory, offer, call).await,
            _ => {
                let failure = Failure::of(ErrorKind::ContractNotOffered).before_execution();
                Err(self.failed(call, failure))
            }
        }
    }

    /// Writes a call as an HTTP request, and reads its answer.
    async fn exchange(&self, directory: &Directory, offer: &Offer, call: &Call) -> Result<Reply, CallError> {
        let drift = directory.drift(&call.contract, offer, call.spec.as_ref());
        let work = call.spec.as_ref().map_or(offer.timeout, |spec| spec.timeout());
        let hints =
            ServerHints { address: self.url.address(), speaks_http2: offer.callee.instance.is_some() };
        let limits = ExchangeLimits { deadline: call.parts.deadline, work, hints };
        let target = || offer.target(call, work);
        let mut request = offer.request(call);
        let scope = [&*offer.scope];
        let scopes = if offer.scope.is_empty() { &[][..] } else { &scope };
        if !self.url.has_authorization() {
            let authorized = directory.authority.add(
                request.headers_mut(),
                &call.parts.caller,
                Some(scopes),
                &offer.callee,
            );
            authorized.map_err(|failure| self.failed(call, failure))?;
        }
        if let Some(record) = &call.explain {
            let has_token = request.headers().contains_key(AUTHORIZATION) && !self.url.has_authorization();
            record.add(CallEvent::Sent {
                arm: self.arm.clone(),
                endpoint: self.url.shared(),
                attempt: call.parts.attempt,
                scopes: scopes.iter().filter(|_| has_token).map(|scope| (*scope).to_owned()).collect(),
            });
        }
        let place = (&*self.arm, self.url.as_str());
        let span = SendSpan::begin(&mut request, place, Some(&call.contract), &call.parts);
        let sent = directory.exchanger.send(request, &self.arm, limits, target).await;
        span.end(&sent);
        let response = match sent {
            Ok(response) => response,
            Err(error) => {
                // The usage is lost with the reply.
                let ExchangeError { failure, cause } = error;
                let usage = if failure.may_have_executed { Usage::UNMETERED } else { Usage::ZERO };
                let error = self.failed(call, *failure).with_usage(usage);
                return Err(match cause {
                    Some(cause) => error.with_source(cause),
                    None => error,
                });
            }
        };
        let (output, usage) = read_answer(response, call.reads);
        let output = output.and_then(|output| match drift.and_then(|_| (call.reads)(&output).err()) {
            // A difference of schemas may or may not concern this output.
            Some(error) => Err(unreadable(&error)),
            None => Ok(output),
        });
        match output {
            Ok(output) => Ok(Reply::new(output, Arc::clone(&self.arm), self.url.shared()).with_usage(usage)),
            Err(mut failure) => {
                if let Some(drift) = drift {
                    drift.explain(&mut failure);
                }
                Err(self.failed(call, failure).with_usage(usage))
            }
        }
    }

    /// The error of a call that its breaker rejects.
    pub(super) fn rejected(&self, call: &Call, wait: Duration) -> CallError {
        if let Some(record) = &call.explain {
            record.add(CallEvent::CircuitOpen { endpoint: self.url.shared(), retry_after: wait });
        }
        Calls
            .refused(call, Refusal::CircuitOpen { retry_after: wait })
            .with_arm(&*self.arm)
            .with_endpoint(self.url.as_str())
            .with_attempts(0)
    }

    fn failed(&self, call: &Call, failure: Failure) -> CallError {
        CallError::new(call.contract.clone(), failure).with_arm(&*self.arm).with_endpoint(self.url.as_str())
    }
}

/// The breaker of an endpoint. Its openings and closings are logged, and published on a bus.
pub(super) fn breaker(
    limits: BreakerLimits,
    (arm, endpoint): (Arc<str>, Arc<str>),
    bus: Option<&Arc<dyn EventBus>>,
) -> Circuit {
    let bus = bus.cloned();
    let name = Some((arm.clone(), endpoint.clone()));
    let changed = move |state| {
        let retry_after = match state {
            BreakerState::Open { retry_after } => {
                tracing::warn!(%arm, %endpoint, ?retry_after, "a circuit breaker has opened");
                Some(retry_after)
            }
            BreakerState::Closed => {
                tracing::info!(%arm, %endpoint, "a circuit breaker has closed");
                None
            }
            BreakerState::HalfOpen => return,
        };
        if let (Some(bus), Ok(runtime)) = (&bus, Handle::try_current()) {
            runtime.spawn(publish(bus.clone(), arm.clone(), endpoint.clone(), retry_after));
        }
    };
    Circuit::new(limits, name, Some(Arc::new(changed)))
}

/// Publishes that a breaker has opened, or closed where there is nothing to wait for.
async fn publish(bus: Arc<dyn EventBus>, arm: Arc<str>, endpoint: Arc<str>, retry_after: Option<Duration>) {
    let milliseconds = retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let data = json!({ "arm_id": arm, "endpoint": endpoint, "retry_after_ms": milliseconds });
    let event_type = if retry_after.is_some() { "circuit.opened" } else { "circuit.closed" };
    let published = match Event::new(event_type, "client", data) {
        Ok(event) => timeout(PUBLISH, bus.publish(event.with_subject(&*arm))).await,
        Err(error) => {
            tracing::error!(%error, "event cannot be written");
            return;
        }
    };
    match published {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a change of a circuit breaker could not be published"),
        Err(_) => tracing::warn!("a change of a circuit breaker could not be published in time"),
    }
}

/// Time limit on publishing an event.
const PUBLISH: Duration = Duration::from_secs(1);

/// Adds layers around a service. The last one is the outermost.
pub(super) fn layered(inner: CallService, layers: &[CallLayer]) -> CallService {
    layers.iter().fold(inner, |inner, layer| layer(inner))
}

/// An attempt at an endpoint. If it is dropped it counts as cancelled, and nothing is learned of the endpoint.
pub(super) struct Attempt<'a> {
    metered: Metered<'a>,
    running: Running<'a>,
}

/// The place of an attempt at its endpoint.
struct Running<'a> {
    site: &'a Site,
    /// `None` without a breaker.
    admitted: Option<Admitted>,
    has_ended: bool,
}

impl<'a> Attempt<'a> {
    /// Begins an attempt, unless the breaker of the endpoint is open.
    ///
    /// # Errors
    /// The time after which the breaker admits a probe.
    pub(super) fn begin(offer: &'a Offer, now: Instant) -> Result<Self, Duration> {
        let site = &*offer.site;
        let admitted = site.breaker.as_ref().map(|breaker| breaker.admit(|| now)).transpose()?;
        site.load.begin();
        Ok(Self { metered: offer.meter.begin(now), running: Running { site, admitted, has_ended: false } })
    }

    /// Ends the attempt. Where it was one of several endpoints, those that are worse than the others are ejected.
    pub(super) fn end(self, answer: &Result<Reply, CallError>, offers: &Offers) {
        let Self { metered, mut running } = self;
        let (site, now) = (running.site, Instant::now());
        let duration = metered.end(answer, now);
        let outcome = Calls.outcome(answer.as_ref());
        running.has_ended = true;
        let was_closed = running.is_closed();
        running.record(outcome, || now);
        match outcome {
            // This was the probe.
            Outcome::Success if !was_closed && running.is_closed() && !has_refused(answer) => {
                site.load.renew(duration, now);
            }
            Outcome::Ignored => site.load.cancel(),
            Outcome::Success if !has_refused(answer) => site.load.end(duration, now),
            _ => site.load.fail(duration, now),
        }
        if offers.are_several() && outcome != Outcome::Ignored {
            let is_failure = outcome == Outcome::Failure;
            site.ejection.record(!is_failure, now);
            if is_failure {
                Ejection::eject(offers.sites().map(|site| &site.ejection), now);
            }
        }
    }
}

impl Running<'_> {
    fn is_closed(&self) -> bool {
        self.site.breaker.as_ref().is_none_or(Circuit::is_closed)
    }

    fn record(&self, outcome: Outcome, clock: impl FnOnce() -> Instant) {
        if let (Some(breaker), Some(admitted)) = (&self.site.breaker, self.admitted) {
            breaker.record(admitted, outcome, clock);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.record(Outcome::Ignored, Instant::now);
            self.site.load.cancel();
        }
    }
}

/// Whether an endpoint that works did not take the call, or has passed on the failure of another one: it must attract no further
/// calls.
fn has_refused(answer: &Result<Reply, CallError>) -> bool {
    let kinds = [ErrorKind::RateLimited, ErrorKind::ContractNotOffered, ErrorKind::NotFound];
    answer.as_ref().is_err_and(|error| kinds.contains(&error.kind()) || error.kind().status() >= 500)
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.arm, self.url.as_str())
    }
}
