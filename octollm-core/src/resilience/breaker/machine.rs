//! The circuit breaker: whether a target gets calls.
//!
//! It takes the time as an argument and does no I/O. A call that is admitted gets a ticket with the generation of the
//! breaker. Each opening, each closing and each probe begins another generation, so that a late result is recognized.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    random,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering, PoisonError},
    window::Window,
};

/// When a breaker opens, and for how long. The setters of [`BreakerLayer`](crate::resilience::BreakerLayer) explain each. Every value is
/// valid.
#[derive(Debug, Clone, Copy)]
pub struct BreakerLimits {
    /// Failures in a row that open it; 0 counts as 1.
    pub failures: u32,
    /// It opens where fewer percent of the calls of the window succeed; 0 is never.
    pub min_success: u32,
    /// The window.
    pub window: Duration,
    /// Calls that the window must have for that.
    pub min_calls: u32,
    /// How long it is open the first time. It doubles each time that a probe fails.
    pub open: Duration,
    /// The longest time that it is open.
    pub max_open: Duration,
    /// After this time another probe takes the place of one that has not ended.
    pub probe: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self {
            failures: 5,
            min_success: 80,
            window: Duration::from_secs(10),
            min_calls: 20,
            open: Duration::from_secs(1),
            max_open: Duration::from_secs(4),
            probe: Duration::from_secs(2),
        }
    }
}

/// What the result of a call says of its target. A [`BreakerLayer`](crate::resilience::BreakerLayer) and the choice of an endpoint
/// decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The target works. It has done the work, or the request itself is at fault.
    Success,
    /// The target works, and has not done the work: it refused the request, or something that it called failed. For a breaker it is a
    /// success. Of several endpoints, the others get more calls.
    Declined,
    /// The target failed.
    Failure,
    /// The result says nothing about the target: the call was cancelled, or not sent.
    Ignored,
}

/// The state of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// All calls pass.
    Closed,
    /// No call passes.
    Open {
        /// How long it stays open.
        retry_after: Duration,
    },
    /// One call, the probe, passes. Its outcome closes the breaker or opens it again.
    HalfOpen,
}

/// The ticket of an admitted call, whose outcome is recorded with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the outcome of an admitted call is recorded, also where it is cancelled"]
pub struct Admitted {
    generation: u64,
    is_probe: bool,
    /// Whether the breaker was open until then.
    pub begins_probing: bool,
}

impl Admitted {
    fn usual(generation: u64) -> Self {
        Self { generation, is_probe: false, begins_probing: false }
    }

    /// Whether the call decides alone if the breaker closes. It was half-open from then on.
    pub fn is_probe(self) -> bool {
        self.is_probe
    }
}

/// A circuit breaker.
///
/// While it is closed, admitting a call is one load, and recording a success one compare-and-swap. Neither reads the clock:
/// successes count at the time of the last reading, which is made at each failure and at least every 32 calls.
#[derive(Debug)]
pub struct Breaker {
    limits: BreakerLimits,
    /// The generation, and the bits below. It is written under the lock, except for the number of undated successes.
    word: AtomicU64,
    inner: Mutex<Inner>,
}

/// Successes since the last reading of the clock.
const UNDATED: u64 = 0b1_1111;
/// Whether the last call failed.
const FAILING: u64 = 1 << 5;
const CLOSED: u64 = 1 << 6;
const GENERATION: u32 = 7;

#[derive(Debug)]
struct Inner {
    phase: Phase,
    generation: u64,
    /// The generation that the last opening began: probes have later ones.
    opened: u64,
    /// Failures in a row.
    streak: u32,
    /// Openings since it was last closed.
    openings: u32,
    window: Window,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    Open {
        until: Instant,
    },
    /// When the probe loses its place; `None` where the place is free.
    HalfOpen {
        probe: Option<Instant>,
    },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(limits: BreakerLimits) -> Self {
        let window = Window::new(limits.window);
        let inner = Inner { phase: Phase::Closed, generation: 0, opened: 0, streak: 0, openings: 0, window };
        Self { limits, word: AtomicU64::new(CLOSED), inner: Mutex::new(inner) }
    }

    /// Admits a call, or returns how long to wait before another one has a chance. The clock is read unless the breaker is
    /// closed. After an opening the first call is the probe.
    ///
    /// # Errors
    /// The breaker is open, or its probe is running.
    pub fn admit(&self, clock: impl FnOnce() -> Instant) -> Result<Admitted, Duration> {
        let word = self.word.load(Ordering::Acquire);
        if word & CLOSED != 0 {
            return Ok(Admitted::usual(word >> GENERATION));
        }
        self.admit_probe(clock())
    }

    /// Records the outcome of an admitted call, and returns the new state if it has changed.
    pub fn record(
        &self,
        admitted: Admitted,
        outcome: Outcome,
        clock: impl FnOnce() -> Instant,
    ) -> Option<BreakerState> {
        let outcome = if outcome == Outcome::Declined { Outcome::Success } else { outcome };
        match outcome {
            _ if admitted.is_probe => self.record_probe(admitted, outcome, clock()),
            Outcome::Ignored => None,
            Outcome::Success if self.count_success(admitted) => None,
            _ => self.record_dated(admitted, outcome == Outcome::Success, clock()),
        }
    }

    /// The state now. An open breaker whose time is over is half-open.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.lock().phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { until } if now < until => BreakerState::Open { retry_after: until - now },
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How long to wait before a call has a chance; `None` where one would be admitted now. The clock is read unless the
    /// breaker is closed.
    pub fn retry_after(&self, clock: impl FnOnce() -> Instant) -> Option<Duration> {
        if self.word.load(Ordering::Acquire) & CLOSED != 0 {
            return None;
        }
        self.lock().phase.rejects(clock())
    }

    /// Whether all calls are admitted.
    pub fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    #[cold]
    fn admit_probe(&self, now: Instant) -> Result<Admitted, Duration> {
        let mut inner = self.lock();
        if matches!(inner.phase, Phase::Closed) {
            return Ok(Admitted::usual(inner.generation));
        }
        if let Some(wait) = inner.phase.rejects(now) {
            return Err(wait);
        }
        let begins_probing = matches!(inner.phase, Phase::Open { .. });
        let generation =
            self.enter(&mut inner, Phase::HalfOpen { probe: Some(later(now, self.limits.probe)) });
        Ok(Admitted { generation, is_probe: true, begins_probing })
    }

    /// Counts a success without the clock. Returns whether that was all.
    #[inline]
    fn count_success(&self, admitted: Admitted) -> bool {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if word & CLOSED == 0 || word >> GENERATION != admitted.generation {
                return true;
            }
            if word & FAILING != 0 || word & UNDATED == UNDATED {
                return false;
            }
            match self.word.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(changed) => word = changed,
            }
        }
    }

    #[cold]
    fn record_dated(&self, admitted: Admitted, success: bool, now: Instant) -> Option<BreakerState> {
        let mut inner = self.lock();
        if !matches!(inner.phase, Phase::Closed) || inner.generation != admitted.generation {
            return None;
        }
        let undated = self.word.fetch_and(!UNDATED, Ordering::AcqRel) & UNDATED;
        inner.window.current().successes += undated;
        inner.window.advance(now);
        if success {
            inner.window.current().successes += 1;
            inner.streak = 0;
            self.word.fetch_and(!FAILING, Ordering::AcqRel);
            return None;
        }
        inner.window.current().failures += 1;
        inner.streak = inner.streak.saturating_add(1);
        self.word.fetch_or(FAILING, Ordering::AcqRel);
        let counts = inner.window.counts();
        let few =
            counts.total() >= u64::from(self.limits.min_calls) && counts.is_below(self.limits.min_success);
        (inner.streak >= self.limits.failures.max(1) || few).then(|| self.open(&mut inner, now))
    }

    #[cold]
    fn record_probe(&self, admitted: Admitted, outcome: Outcome, now: Instant) -> Option<BreakerState> {
        let mut inner = self.lock();
        let Phase::HalfOpen { .. } = inner.phase else { return None };
        let is_latest = admitted.generation == inner.generation;
        match outcome {
            // Also one that has lost its place: it was sent after the opening.
            Outcome::Success if admitted.generation > inner.opened => {
                self.close(&mut inner);
                Some(BreakerState::Closed)
            }
            Outcome::Failure if is_latest => Some(self.open(&mut inner, now)),
            Outcome::Ignored if is_latest => {
                self.enter(&mut inner, Phase::HalfOpen { probe: None });
                None
            }
            _ => None,
        }
    }

    fn open(&self, inner: &mut Inner, now: Instant) -> BreakerState {
        let doubled = self.limits.open.saturating_mul(2_u32.saturating_pow(inner.openings));
        // At most a quarter shorter, so that the probes of many callers do not come at once.
        let retry_after = doubled.min(self.limits.max_open).min(FAR).mul_f64(1.0 - random() / 4.0);
        inner.openings = inner.openings.saturating_add(1);
        inner.opened = self.enter(inner, Phase::Open { until: later(now, retry_after) });
        inner.reset();
        BreakerState::Open { retry_after }
    }

    fn close(&self, inner: &mut Inner) {
        inner.openings = 0;
        inner.reset();
        self.enter(inner, Phase::Closed);
    }

    /// Begins a generation, and returns it.
    fn enter(&self, inner: &mut Inner, phase: Phase) -> u64 {
        inner.generation += 1;
        inner.phase = phase;
        let closed = if matches!(phase, Phase::Closed) { CLOSED } else { 0 };
        self.word.store(inner.generation << GENERATION | closed, Ordering::Release);
        inner.generation
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    /// How long no call is admitted.
    fn rejects(self, now: Instant) -> Option<Duration> {
        match self {
            Self::Closed | Self::HalfOpen { probe: None } => None,
            Self::Open { until } | Self::HalfOpen { probe: Some(until) } => {
                until.checked_duration_since(now).filter(|wait| !wait.is_zero())
            }
        }
    }
}

impl Inner {
    fn reset(&mut self) {
        self.streak = 0;
        self.window.clear();
    }
}

/// The longest wait: sums with it are times.
const FAR: Duration = Duration::from_secs(86_400 * 365);

/// A time that is not out of range.
fn later(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait.min(FAR)).unwrap_or(now)
}
