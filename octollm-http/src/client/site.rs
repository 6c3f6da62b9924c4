//! One endpoint of an arm, and its health.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    __private::machines::{Admitted, BreakerLimits, Circuit, Ejection, Load},
    bus::EventBus,
    card::ArmCard,
    error::{CallError, ErrorKind},
    resilience::{Calls, Outcome, Protocol, RetryBudget},
    transport::{Call, Reply},
};
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;

use super::{
    base_url::BaseUrl,
    choice::Rank,
    circuit::circuit,
    metrics::{CallMeter, Metered},
};

/// The future of a call.
pub(super) type Calling<'a> = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send + 'a>>;

/// A service of calls, within layers of the user.
pub(super) type CallService = BoxCloneSyncService<Call, Reply, CallError>;

/// A layer of a user, above or below the choice of an endpoint.
pub(super) type CallLayer = Arc<dyn Fn(CallService) -> CallService + Send + Sync>;

/// How the health of each endpoint is judged.
pub(super) struct Judging {
    /// `None` without circuit breakers.
    pub(super) breaker: Option<BreakerLimits>,
    /// Receives the changes of circuit breakers.
    pub(super) bus: Option<Arc<dyn EventBus>>,
}

/// An endpoint as configuration or a resolver has it.
#[derive(Clone)]
pub(super) struct Listed {
    pub(super) arm: Arc<str>,
    pub(super) url: BaseUrl,
    pub(super) weight: u32,
    /// Its card, if it is not asked for it.
    pub(super) card: Option<ArmCard>,
}

/// The arm and the URL of an endpoint. One that has the same as before is the same.
pub(super) type Listing = (Arc<str>, BaseUrl);

impl Listed {
    pub(super) fn listing(&self) -> Listing {
        (self.arm.clone(), self.url.clone())
    }
}

/// One endpoint of one arm. It is forgotten when its arm moves away; what is running there goes on.
pub(super) struct Site {
    pub(super) arm: Arc<str>,
    pub(super) url: BaseUrl,
    weight: AtomicU32,
    breaker: Option<Circuit>,
    load: Load,
    ejection: Ejection,
    /// That of the arm.
    pub(super) budget: RetryBudget,
    /// The layers of a user around this endpoint, from its first call on, if there are any.
    pub(super) layered: OnceLock<CallService>,
}

impl Site {
    pub(super) fn new(listed: &Listed, budget: &RetryBudget, judging: &Judging) -> Self {
        let Listed { arm, url, weight, .. } = listed;
        let name = || (arm.clone(), url.shared());
        Self {
            arm: arm.clone(),
            url: url.clone(),
            weight: AtomicU32::new(*weight),
            breaker: judging.breaker.map(|limits| circuit(limits, name(), judging.bus.as_ref())),
            load: Load::new(),
            ejection: Ejection::new(),
            budget: budget.clone(),
            layered: OnceLock::new(),
        }
    }

    pub(super) fn listing(&self) -> Listing {
        (self.arm.clone(), self.url.clone())
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub(super) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
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
            self.load.cost(now) / f64::from(self.weight())
        } else {
            0.0
        }
    }
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
    pub(super) fn begin(site: &'a Site, meter: &'a CallMeter, now: Instant) -> Result<Self, Duration> {
        let admitted = site.breaker.as_ref().map(|breaker| breaker.admit(|| now)).transpose()?;
        site.load.begin();
        Ok(Self { metered: meter.begin(now), running: Running { site, admitted, has_ended: false } })
    }

    /// Ends the attempt at one endpoint of a set. Where there are several, those that are worse than the others are ejected.
    pub(super) fn end<'s>(
        self,
        answer: &Result<Reply, CallError>,
        set: impl ExactSizeIterator<Item = &'s Site>,
    ) {
        let Self { metered, mut running } = self;
        let (site, now) = (running.site, Instant::now());
        let duration = metered.end(answer, now);
        let outcome = Calls.outcome(answer.as_ref());
        running.has_ended = true;
        let was_closed = running.is_closed();
        running.record(outcome, || now);
        match outcome {
            Outcome::Ignored => site.load.cancel(),
            Outcome::Success if !has_refused(answer) => {
                let was_probe = !was_closed && running.is_closed();
                if was_probe { site.load.renew(duration, now) } else { site.load.end(duration, now) }
            }
            _ => site.load.fail(duration, now),
        }
        if set.len() > 1 && outcome != Outcome::Ignored {
            let is_failure = outcome == Outcome::Failure;
            site.ejection.record(!is_failure, now);
            if is_failure {
                Ejection::eject(set.map(|site| &site.ejection), now);
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
