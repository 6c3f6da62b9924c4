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
    __private::machines::{Admitted, BreakerLimits, Circuit, Ejection, Load, outcome_of_failure},
    bus::EventBus,
    card::ArmCard,
    error::{CallError, Failure},
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
#[derive(Default)]
pub(super) struct Judging {
    /// `None` without circuit breakers.
    pub(super) breaker: Option<BreakerLimits>,
    /// The percentage and the attempts per second of the retry budget of each arm.
    pub(super) retries: (u32, u32),
    /// Source of the events.
    pub(super) source: Arc<str>,
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
            breaker: judging.breaker.map(|limits| {
                circuit(limits, name(), judging.bus.as_ref().map(|bus| (bus, &judging.source)))
            }),
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
        Rank { rejects: self.rejects(now).is_some(), is_ejected: self.ejection.is_ejected(now), ..by_card }
    }

    /// How long its breaker rejects calls; `None` where it would admit one.
    pub(super) fn rejects(&self, now: Instant) -> Option<Duration> {
        self.breaker.as_ref()?.retry_after(|| now)
    }

    /// Counts a failure to return its card, since calls do not reach an endpoint without one.
    pub(super) fn has_no_card(&self, failure: &Failure) {
        let outcome = outcome_of_failure(failure, true);
        if let (Some(breaker), Outcome::Failure) = (&self.breaker, outcome)
            && let Ok(admitted) = breaker.admit(Instant::now)
        {
            breaker.record(admitted, outcome, Instant::now);
        }
    }

    /// Ends the probe of a breaker that failures of cards have opened.
    pub(super) fn has_card(&self) {
        if let Some(breaker) = self.breaker.as_ref().filter(|breaker| !breaker.is_closed())
            && let Ok(admitted) = breaker.admit(Instant::now)
        {
            breaker.record(admitted, Outcome::Success, Instant::now);
        }
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

/// An attempt at an endpoint. If it is dropped it counts as cancelled, and nothing is learned of the endpoint but that it was not as fast.
pub(super) struct Attempt<'a> {
    metered: Metered<'a>,
    running: Running<'a>,
}

/// The place of an attempt at its endpoint.
struct Running<'a> {
    site: &'a Site,
    /// `None` without a breaker.
    admitted: Option<Admitted>,
    begun: Instant,
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
        Ok(Self {
            metered: meter.begin(now),
            running: Running { site, admitted, begun: now, has_ended: false },
        })
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
            Outcome::Success => {
                let was_probe = !was_closed && running.is_closed();
                if was_probe { site.load.renew(duration, now) } else { site.load.end(duration, now) }
            }
            Outcome::Declined | Outcome::Failure => site.load.fail(duration, now),
        }
        if set.len() > 1 && outcome != Outcome::Ignored {
            let served = outcome == Outcome::Success;
            site.ejection.record(served, now);
            if !served {
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
            let now = Instant::now();
            self.record(Outcome::Ignored, || now);
            self.site.load.give_up(now.saturating_duration_since(self.begun), now);
        }
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.arm, self.url.as_str())
    }
}

#[cfg(test)]
mod tests {
    use octollm_core::{
        contract::ContractRef,
        error::{ArmError, ErrorKind},
        resilience::BreakerState,
    };

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn site(url: &str) -> Site {
        let url = BaseUrl::parse(url).unwrap();
        let listed = Listed { arm: "judge".into(), url, weight: 1, card: None };
        let judging = Judging { breaker: Some(BreakerLimits::default()), ..Judging::default() };
        Site::new(&listed, &RetryBudget::default(), &judging)
    }

    /// Of two endpoints one answers well, and the other with a failure. Returns whether the breaker of that one is open, whether it
    /// is ejected, and whether it attracts no calls.
    fn judged(failure: &Failure) -> (bool, bool, bool) {
        let (good, bad, contract) =
            (site("http://good"), site("http://bad"), ContractRef::new("a.b", 1).unwrap());
        let meter = CallMeter::of(&"judge".into(), &contract);
        let mut open = false;
        for _ in 0..20 {
            for (site, answer) in [
                (&good, Ok(Reply::new("1".into(), "judge", "http://good"))),
                (&bad, Err(CallError::new(contract.clone(), failure.clone()).with_endpoint("http://bad"))),
            ] {
                if let Ok(attempt) = Attempt::begin(site, &meter, Instant::now()) {
                    attempt.end(&answer, [&good, &bad].into_iter());
                }
            }
            open |= matches!(bad.breaker.as_ref().unwrap().state(Instant::now()), BreakerState::Open { .. });
        }
        let now = Instant::now();
        (open, bad.ejection.is_ejected(now), bad.load.cost(now + MS) > 1e9)
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_ejection_and_load_judge_an_answer_alike() {
        let passed_on = |kind| {
            let below = CallError::new(ContractRef::new("c.d", 1).unwrap(), Failure::of(kind));
            ArmError::from(below).into_failure()
        };
        for (failure, outcome) in [
            (Failure::of(ErrorKind::ValidationFailed), Outcome::Success),
            (Failure::of(ErrorKind::TaskNotFound), Outcome::Success),
            (Failure::of(ErrorKind::RateLimited), Outcome::Declined),
            (Failure::of(ErrorKind::ContractNotOffered), Outcome::Declined),
            (passed_on(ErrorKind::ArmFailed), Outcome::Declined),
            (passed_on(ErrorKind::ConnectionLost), Outcome::Declined),
            (passed_on(ErrorKind::Unavailable), Outcome::Declined),
            (Failure::of(ErrorKind::UpstreamFailed), Outcome::Failure),
            (Failure::of(ErrorKind::ArmFailed), Outcome::Failure),
            (Failure::of(ErrorKind::Cancelled), Outcome::Ignored),
        ] {
            let expected = match outcome {
                Outcome::Success | Outcome::Ignored => (false, false, false),
                Outcome::Declined => (false, true, true),
                // The open breaker admits too few for an ejection.
                Outcome::Failure => (true, false, true),
            };
            assert_eq!(judged(&failure), expected, "{failure:?}");
        }
    }
}
