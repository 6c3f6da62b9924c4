//! A breaker with its metrics and its hook.

use std::{fmt, sync::Arc, sync::LazyLock, time::Duration};

use tokio::time::Instant;

use super::{Admitted, Breaker, BreakerLimits, BreakerState, Outcome};
use crate::meters::{Counter, Counters, Gauges};

static TRANSITIONS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Changes of the state of circuit breakers, by the state after them.";
    Counters::new("octollm_breaker_transitions_total", help, &["arm", "state"])
});
static REJECTED: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Calls that an open circuit breaker has rejected.";
    Counters::new("octollm_breaker_rejected_total", help, &["arm"])
});
static STATES: LazyLock<Gauges<Named>> = LazyLock::new(|| {
    let help = "Endpoints by the state of their circuit breakers: closed, half_open, open.";
    Gauges::new(&[("octollm_breaker_endpoints", help, &["arm", "state"][..])], |named, gauges| {
        let state = named.breaker.state(Instant::now());
        for gauge in gauges {
            gauge.with_label_values(&[&*named.arm, text(state)]).add(1);
        }
    })
});

/// Receives the changes of the state of a breaker.
pub type OnTransition = dyn Fn(BreakerState) + Send + Sync;

/// A breaker whose transitions and rejections are counted, and passed to a hook. Clones share the breaker.
#[derive(Clone)]
pub struct Circuit {
    named: Arc<Named>,
}

/// A breaker, and what it is called in metrics and logs. Metrics have no endpoints, which come and go without end.
struct Named {
    breaker: Breaker,
    arm: Arc<str>,
    endpoint: Arc<str>,
    rejected: Counter,
    on_transition: Option<Arc<OnTransition>>,
}

impl Circuit {
    /// A closed breaker. Without a name it is in no metrics.
    pub fn new(
        limits: BreakerLimits,
        name: Option<(Arc<str>, Arc<str>)>,
        on_transition: Option<Arc<OnTransition>>,
    ) -> Self {
        let is_named = name.is_some();
        let (arm, endpoint) = name.unwrap_or_default();
        let rejected = if is_named { REJECTED.with(&[&arm]) } else { Counter::default() };
        let named = Arc::new(Named { breaker: Breaker::new(limits), arm, endpoint, rejected, on_transition });
        if is_named {
            STATES.add(&named);
        }
        Self { named }
    }

    /// Admits a call: see [`Breaker::admit`].
    ///
    /// # Errors
    /// How long to wait before another one has a chance.
    pub fn admit(&self, clock: impl FnOnce() -> Instant) -> Result<Admitted, Duration> {
        let named = &*self.named;
        let admitted = named.breaker.admit(clock);
        match &admitted {
            Ok(admitted) if admitted.begins_probing => named.changed(BreakerState::HalfOpen),
            Ok(_) => {}
            Err(_) => named.rejected(),
        }
        admitted
    }

    /// Records an outcome: see [`Breaker::record`].
    pub fn record(&self, admitted: Admitted, outcome: Outcome, clock: impl FnOnce() -> Instant) {
        if let Some(state) = self.named.breaker.record(admitted, outcome, clock) {
            self.named.changed(state);
        }
    }

    /// The state now: see [`Breaker::state`].
    pub fn state(&self, now: Instant) -> BreakerState {
        self.named.breaker.state(now)
    }

    /// Whether all calls are admitted.
    pub fn is_closed(&self) -> bool {
        self.named.breaker.is_closed()
    }

    /// How long to wait before a call has a chance: see [`Breaker::retry_after`].
    pub fn retry_after(&self, clock: impl FnOnce() -> Instant) -> Option<Duration> {
        self.named.breaker.retry_after(clock)
    }
}

impl Named {
    fn is_named(&self) -> bool {
        !self.arm.is_empty() || !self.endpoint.is_empty()
    }

    #[cold]
    fn rejected(&self) {
        self.rejected.count();
    }

    #[cold]
    fn changed(&self, state: BreakerState) {
        if self.is_named() {
            TRANSITIONS.with(&[&self.arm, text(state)]).count();
        }
        tracing::debug!(arm = %self.arm, endpoint = %self.endpoint, state = text(state), "circuit breaker has changed");
        if let Some(on_transition) = &self.on_transition {
            on_transition(state);
        }
    }
}

fn text(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Closed => "closed",
        BreakerState::HalfOpen => "half_open",
        BreakerState::Open { .. } => "open",
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit")
            .field("arm", &self.named.arm)
            .field("endpoint", &self.named.endpoint)
            .field("breaker", &self.named.breaker)
            .finish_non_exhaustive()
    }
}
