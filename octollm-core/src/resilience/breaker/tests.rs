//! The breaker beside a naive reference, and the faults that breakers of other libraries have.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A breaker and the time.
struct Rig {
    breaker: Breaker,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        Self { breaker: Breaker::new(BreakerLimits::default()), now: Instant::now() }
    }

    fn admit(&self) -> Result<Admitted, Duration> {
        self.breaker.admit(|| self.now)
    }

    fn record(&self, admitted: Admitted, outcome: Outcome) -> Option<BreakerState> {
        self.breaker.record(admitted, outcome, || self.now)
    }

    fn call(&self, outcome: Outcome) -> Option<BreakerState> {
        self.record(self.admit().unwrap(), outcome)
    }

    fn calls(&self, count: u32, outcome: Outcome) {
        for _ in 0..count {
            self.call(outcome);
        }
    }

    fn open() -> Self {
        let rig = Self::new();
        rig.calls(5, Outcome::Failure);
        assert!(rig.admit().is_err());
        rig
    }

    fn half_open() -> Self {
        let mut rig = Self::open();
        rig.now += SECOND;
        rig
    }

    fn is_closed(&self) -> bool {
        self.breaker.state(self.now) == BreakerState::Closed
    }
}

#[test]
fn opens_after_five_failures_in_a_row_however_many_calls_succeeded_before() {
    for successes in [0, 1, 31, 32, 100_000] {
        let rig = Rig::new();
        rig.calls(successes, Outcome::Success);
        rig.calls(4, Outcome::Failure);
        assert!(rig.is_closed());
        rig.calls(1, Outcome::Success);
        rig.calls(4, Outcome::Failure);
        rig.calls(3, Outcome::Ignored);
        assert!(rig.is_closed());
        let Some(BreakerState::Open { retry_after }) = rig.call(Outcome::Failure) else { panic!("closed") };
        assert!(retry_after >= 750 * MS && retry_after <= SECOND, "{retry_after:?}");
        assert_eq!(rig.admit(), Err(retry_after));
    }
}

#[test]
fn opens_below_four_fifths_of_at_least_twenty_calls() {
    let rig = Rig::new();
    // Of 20 calls, 16 succeed.
    for _ in 0..4 {
        rig.calls(4, Outcome::Success);
        rig.calls(1, Outcome::Failure);
    }
    assert!(rig.is_closed());
    rig.calls(1, Outcome::Failure);
    assert!(!rig.is_closed());
    // Below 20 calls the share does not count.
    let rig = Rig::new();
    for _ in 0..4 {
        rig.calls(1, Outcome::Success);
        rig.calls(3, Outcome::Failure);
    }
    assert!(rig.is_closed());
}

#[test]
fn the_window_slides() {
    let mut rig = Rig::new();
    rig.calls(100_000, Outcome::Success);
    for _ in 0..10 {
        rig.now += SECOND;
        // As time passes, what is old stops to count: 2 of 5 calls fail.
        for outcome in
            [Outcome::Success, Outcome::Failure, Outcome::Success, Outcome::Failure, Outcome::Success]
        {
            if let Ok(admitted) = rig.admit() {
                rig.record(admitted, outcome);
            }
        }
    }
    assert!(!rig.is_closed());
    // And failures from before the window do not open it.
    let mut rig = Rig::new();
    for _ in 0..40 {
        rig.calls(1, Outcome::Failure);
        rig.calls(3, Outcome::Success);
        rig.now += 3 * SECOND;
    }
    assert!(rig.is_closed());
}

#[test]
fn stays_open_twice_as_long_each_time_up_to_its_limit_and_starts_anew_once_closed() {
    let mut rig = Rig::half_open();
    for longest in [2, 4, 4, 4] {
        let probe = rig.admit().unwrap();
        let Some(BreakerState::Open { retry_after }) = rig.record(probe, Outcome::Failure) else { panic!() };
        let longest = longest * SECOND;
        assert!(retry_after <= longest && retry_after >= longest.mul_f64(0.75), "{retry_after:?}");
        rig.now += retry_after;
    }
    let probe = rig.admit().unwrap();
    assert_eq!(rig.record(probe, Outcome::Success), Some(BreakerState::Closed));
    rig.calls(5, Outcome::Failure);
    assert!(rig.admit().unwrap_err() <= SECOND);
}

#[test]
fn fault_20_of_a_thousand_calls_one_is_the_probe() {
    let rig = Rig::half_open();
    let admitted: Vec<_> = (0..1_000).filter_map(|_| rig.admit().ok()).collect();
    assert_eq!(admitted.len(), 1);
    assert!(admitted[0].is_probe());
    assert_eq!(rig.admit(), Err(BreakerLimits::default().probe));
    assert_eq!(rig.breaker.state(rig.now), BreakerState::HalfOpen);
}

#[test]
fn fault_21_the_place_of_a_probe_that_hangs_or_is_cancelled_comes_back() {
    let mut rig = Rig::half_open();
    let hanging = rig.admit().unwrap();
    rig.now += BreakerLimits::default().probe;
    let next = rig.admit().unwrap();
    assert!(next.is_probe() && rig.admit().is_err());
    // What hung does not decide against the next one.
    assert_eq!(rig.record(hanging, Outcome::Failure), None);
    assert_eq!(rig.record(hanging, Outcome::Ignored), None);
    assert!(rig.admit().is_err());
    // One that is cancelled gives its place back at once.
    assert_eq!(rig.record(next, Outcome::Ignored), None);
    let last = rig.admit().unwrap();
    assert!(last.is_probe());
    // A success of the slow one shows that the target works.
    assert_eq!(rig.record(hanging, Outcome::Success), Some(BreakerState::Closed));
    assert_eq!(rig.record(last, Outcome::Failure), None);
    assert!(rig.is_closed());
}

#[test]
fn a_late_result_never_decides_for_the_probe_and_is_not_in_the_next_window() {
    let mut rig = Rig::new();
    let late: Vec<_> = (0..200).map(|_| rig.admit().unwrap()).collect();
    rig.calls(5, Outcome::Failure);
    rig.now += SECOND;
    let probe = rig.admit().unwrap();
    for &late in &late[..100] {
        assert_eq!(rig.record(late, Outcome::Success), None);
        assert_eq!(rig.record(late, Outcome::Failure), None);
    }
    assert!(!rig.is_closed());
    rig.record(probe, Outcome::Success);
    for &late in &late[100..] {
        assert_eq!(rig.record(late, Outcome::Failure), None);
    }
    // Nor is a probe of an earlier time.
    assert_eq!(rig.record(probe, Outcome::Failure), None);
    assert!(rig.is_closed());
    rig.calls(4, Outcome::Failure);
    assert!(rig.is_closed());
}

#[test]
fn a_closed_breaker_reads_the_clock_at_failures_and_at_every_thirty_second_success() {
    let rig = Rig::new();
    let readings = std::cell::Cell::new(0);
    let clock = || {
        readings.set(readings.get() + 1);
        rig.now
    };
    for _ in 0..3_200 {
        let admitted = rig.breaker.admit(clock).unwrap();
        rig.breaker.record(admitted, Outcome::Success, clock);
    }
    assert_eq!(readings.get(), 100);
}

#[test]
fn no_limit_is_invalid() {
    let zero = BreakerLimits {
        failures: 0,
        min_success: 0,
        window: Duration::ZERO,
        min_calls: 0,
        open: Duration::ZERO,
        max_open: Duration::ZERO,
        probe: Duration::ZERO,
    };
    let huge = BreakerLimits {
        failures: u32::MAX,
        min_success: u32::MAX,
        window: Duration::MAX,
        min_calls: u32::MAX,
        open: Duration::MAX,
        max_open: Duration::MAX,
        probe: Duration::MAX,
    };
    let min_above_max = BreakerLimits { open: 9 * SECOND, max_open: SECOND, ..BreakerLimits::default() };
    for limits in [zero, huge, BreakerLimits { failures: 1, ..huge }, min_above_max] {
        let mut rig = Rig { breaker: Breaker::new(limits), now: Instant::now() };
        for step in 0..200_u32 {
            if let Ok(admitted) = rig.admit() {
                rig.record(admitted, if step % 3 == 0 { Outcome::Success } else { Outcome::Failure });
            }
            rig.now += step * MS;
        }
    }
}

/// The same rules, written without regard to cost.
struct Reference {
    origin: Option<Instant>,
    /// When the clock was read the last time.
    read: Instant,
    undated: u32,
    calls: Vec<(u64, bool)>,
    streak: u32,
    openings: u32,
    /// Openings and closings.
    period: u32,
    phase: ReferencePhase,
    probes: u32,
}

#[derive(Clone, Copy)]
enum ReferencePhase {
    Closed,
    Open(Instant),
    HalfOpen(Option<(u32, Instant)>),
}

/// A ticket of the reference: the period, and the number of the probe.
type Ticket = (u32, Option<u32>);

impl Reference {
    fn new(now: Instant) -> Self {
        let phase = ReferencePhase::Closed;
        let calls = Vec::new();
        Self {
            origin: None,
            read: now,
            undated: 0,
            calls,
            streak: 0,
            openings: 0,
            period: 0,
            phase,
            probes: 0,
        }
    }

    fn admit(&mut self, now: Instant, limits: &BreakerLimits) -> Option<Ticket> {
        let until = match self.phase {
            ReferencePhase::Closed => return Some((self.period, None)),
            ReferencePhase::Open(until) | ReferencePhase::HalfOpen(Some((_, until))) => until,
            ReferencePhase::HalfOpen(None) => now,
        };
        if now < until {
            return None;
        }
        self.probes += 1;
        self.phase = ReferencePhase::HalfOpen(Some((self.probes, now + limits.probe)));
        Some((self.period, Some(self.probes)))
    }

    fn bucket(&self, at: Instant, limits: &BreakerLimits) -> u64 {
        ((at - self.origin.unwrap_or(at)).as_nanos() / (limits.window / 10).as_nanos()) as u64
    }

    /// Returns whether it opens or closes.
    fn record(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Instant,
        limits: &BreakerLimits,
    ) -> Option<bool> {
        if ticket.0 != self.period || (outcome == Outcome::Ignored && ticket.1.is_none()) {
            return None;
        }
        if let ReferencePhase::HalfOpen(slot) = self.phase {
            let is_slot = slot.map(|(probe, _)| probe) == ticket.1;
            return match outcome {
                Outcome::Success => Some(true),
                Outcome::Failure if is_slot => Some(false),
                Outcome::Ignored if is_slot => {
                    self.phase = ReferencePhase::HalfOpen(None);
                    None
                }
                _ => None,
            };
        }
        if outcome == Outcome::Success && self.streak == 0 && self.undated < 31 {
            self.undated += 1;
            return None;
        }
        self.origin.get_or_insert(now);
        let before = self.bucket(self.read, limits);
        (0..std::mem::take(&mut self.undated)).for_each(|_| self.calls.push((before, true)));
        self.read = now;
        let bucket = self.bucket(now, limits);
        self.calls.push((bucket, outcome == Outcome::Success));
        self.streak = if outcome == Outcome::Success { 0 } else { self.streak + 1 };
        let window: Vec<_> = self.calls.iter().filter(|(at, _)| at + 10 > bucket).collect();
        let successes = window.iter().filter(|(_, success)| *success).count();
        let few = window.len() >= limits.min_calls as usize
            && (successes * 100) < window.len() * limits.min_success as usize;
        let opens = outcome == Outcome::Failure && (self.streak >= limits.failures || few);
        opens.then_some(false)
    }

    fn change(&mut self, phase: ReferencePhase) {
        self.period += 1;
        (self.streak, self.undated) = (0, 0);
        self.calls.clear();
        self.openings = if matches!(phase, ReferencePhase::Open(_)) { self.openings + 1 } else { 0 };
        self.phase = phase;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Admit,
    Record(prop::sample::Index, Outcome),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Success),
        3 => Just(Outcome::Failure),
        1 => Just(Outcome::Ignored),
    ];
    prop_oneof![
        8 => Just(Step::Admit),
        8 => (any::<prop::sample::Index>(), outcome).prop_map(|(which, outcome)| Step::Record(which, outcome)),
        2 => (0_u64..3_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn does_what_the_reference_does(steps in prop::collection::vec(step(), 0..600), failures in 2_u32..8) {
        let limits = BreakerLimits { failures, min_calls: 10, window: 5 * SECOND, ..BreakerLimits::default() };
        let mut rig = Rig { breaker: Breaker::new(limits), now: Instant::now() };
        let mut reference = Reference::new(rig.now);
        let mut running: Vec<(Admitted, Ticket)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(ms) => rig.now += Duration::from_millis(ms),
                Step::Admit => {
                    let admits = rig.breaker.retry_after(|| rig.now).is_none();
                    let (admitted, expected) = (rig.admit(), reference.admit(rig.now, &limits));
                    prop_assert_eq!(admitted.is_ok(), expected.is_some());
                    prop_assert_eq!(admitted.is_ok(), admits);
                    if let (Ok(admitted), Some(ticket)) = (admitted, expected) {
                        prop_assert_eq!(admitted.is_probe(), ticket.1.is_some());
                        running.push((admitted, ticket));
                    }
                }
                Step::Record(which, outcome) if !running.is_empty() => {
                    let (admitted, ticket) = running.swap_remove(which.index(running.len()));
                    let changed = rig.record(admitted, outcome);
                    match (changed, reference.record(ticket, outcome, rig.now, &limits)) {
                        (None, None) => {}
                        (Some(BreakerState::Closed), Some(true)) => reference.change(ReferencePhase::Closed),
                        (Some(BreakerState::Open { retry_after }), Some(false)) => {
                            let longest = (SECOND * 2_u32.pow(reference.openings.min(9))).min(4 * SECOND);
                            prop_assert!(retry_after <= longest && retry_after >= longest.mul_f64(0.75));
                            reference.change(ReferencePhase::Open(rig.now + retry_after));
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Record(..) => {}
            }
        }
    }
}
