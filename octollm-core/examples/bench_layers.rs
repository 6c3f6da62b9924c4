//! Time and allocations of the layers of retries and circuit breakers around a trivial service.
//!
//! ```sh
//! cargo run --release -p octollm-core --example bench_layers
//! ```
//! Each line has the calls that the window of the breaker contains before the measurement, and nanoseconds per call: the least
//! of all rounds, and their median. With `--short` there are fewer rounds. It fails if a call allocates, or if its cost grows with
//! the calls in the window.

use std::{
    alloc::System,
    future::{Future, Ready, ready},
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use octollm_core::resilience::{BreakerLayer, Outcome, Protocol, Refusal, Repeat, RetryLayer};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Service, ServiceBuilder};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Calls of one measurement.
const BATCH: u32 = 100;

fn main() {
    let is_short = std::env::args().any(|arg| arg == "--short");
    let clock = measure(if is_short { 200 } else { 20_000 }, || {
        black_box(tokio::time::Instant::now());
    });
    println!("one reading of the clock: {clock}");
    let mut all = Vec::new();
    for before in [100, 1_000, 10_000, 100_000] {
        let rounds = if is_short { 50 } else { 20_000_000 / (before + 1_000) };
        let bare = rounds_of(rounds, 0, || Trivial);
        let retry = rounds_of(rounds, before, || {
            ServiceBuilder::new().layer(RetryLayer::of(Numbers)).service(Trivial)
        });
        let breaker = rounds_of(rounds, before, || {
            ServiceBuilder::new().layer(BreakerLayer::of(Numbers)).service(Trivial)
        });
        let both = rounds_of(rounds, before, || {
            let layers =
                ServiceBuilder::new().layer(RetryLayer::of(Numbers)).layer(BreakerLayer::of(Numbers));
            layers.service(Trivial)
        });
        println!("{before} calls in the window: bare {bare}, retry {retry}, breaker {breaker}, both {both}");
        assert_eq!(both.allocations, 0, "a call allocates");
        all.push(both.least);
    }
    let (least, most) =
        all.iter().fold((f64::MAX, 0.0_f64), |(least, most), &ns| (least.min(ns), most.max(ns)));
    println!("retry and breaker: {least:.1} to {most:.1} ns");
    assert!(most <= 2.0 * least + 5.0, "the cost grows with the calls in the window");
}

struct Measured {
    least: f64,
    median: f64,
    allocations: usize,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} ({:.1}) ns {} allocations", self.least, self.median, self.allocations)
    }
}

/// The cost per call after so many calls.
fn rounds_of<S>(rounds: u32, before: u32, mut service: impl FnMut() -> S) -> Measured
where
    S: Service<u64, Response = u64, Error = Refused>,
{
    let mut service = service();
    (0..before).for_each(|number| call(&mut service, u64::from(number)));
    let mut number = 0;
    measure(rounds, || {
        number += 1;
        call(&mut service, number);
    })
}

fn measure(rounds: u32, mut work: impl FnMut()) -> Measured {
    let mut times = Vec::with_capacity(rounds as usize);
    let region = Region::new(ALLOCATOR);
    for _ in 0..rounds {
        let begun = Instant::now();
        (0..BATCH).for_each(|_| work());
        times.push(begun.elapsed());
    }
    let stats = region.change();
    times.sort_unstable();
    let per_call = |time: Duration| time.as_nanos() as f64 / f64::from(BATCH);
    Measured {
        least: per_call(times[0]),
        median: per_call(times[times.len() / 2]),
        allocations: stats.allocations + stats.reallocations,
    }
}

fn call<S>(service: &mut S, number: u64)
where
    S: Service<u64, Response = u64, Error = Refused>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let future = pin!(service.call(black_box(number)));
    match future.poll(&mut cx) {
        Poll::Ready(Ok(answer)) => drop(black_box(answer)),
        other => panic!("{other:?}"),
    }
}

/// Returns its request.
#[derive(Clone)]
struct Trivial;

impl Service<u64> for Trivial {
    type Response = u64;
    type Error = Refused;
    type Future = Ready<Result<u64, Refused>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refused>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, number: u64) -> Self::Future {
        ready(Ok(number))
    }
}

#[derive(Debug)]
struct Refused(#[expect(dead_code, reason = "for its text")] Refusal);

/// The protocol of the trivial service.
#[derive(Clone, Copy)]
struct Numbers;

impl Protocol for Numbers {
    type Request = u64;
    type Response = u64;
    type Error = Refused;

    fn outcome(&self, result: Result<&u64, &Refused>) -> Outcome {
        if result.is_ok() { Outcome::Success } else { Outcome::Failure }
    }

    fn refused(&self, _: &u64, refusal: Refusal) -> Refused {
        Refused(refusal)
    }

    fn copy(&self, number: &u64) -> Option<u64> {
        Some(*number)
    }
}

impl Repeat for Numbers {
    fn retry(&self, _: &Refused) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}
