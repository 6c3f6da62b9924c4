//! The places where threads meet in the breaker and in the retry budget, in all orders that loom finds.
//!
//! The sources are those of the crate, with loom's lock and atomics in place of the standard library's.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "a part of each source is used")]

#[path = "../src/resilience/budget.rs"]
mod budget;
#[path = "../src/resilience/breaker/machine.rs"]
mod machine;
#[path = "../src/resilience/window.rs"]
mod window;

mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };
}

use std::{sync::Arc, time::Duration};

use loom::thread;
use tokio::time::Instant;

use self::{
    budget::RetryBudget,
    machine::{Admitted, Breaker, BreakerLimits, BreakerState, Outcome},
};

fn random() -> f64 {
    0.0
}

fn main() {
    loom::model(one_of_two_calls_is_the_probe);
    loom::model(a_late_result_does_not_reach_the_next_generation);
    loom::model(a_success_and_failures_at_once_lose_nothing);
    loom::model(the_last_token_is_taken_once);
    loom::model(no_deposit_is_lost);
}

/// A breaker that opens at the second failure in a row.
fn breaker() -> Arc<Breaker> {
    Arc::new(Breaker::new(BreakerLimits { failures: 2, ..BreakerLimits::default() }))
}

fn opened(begun: Instant) -> Arc<Breaker> {
    let breaker = breaker();
    for _ in 0..2 {
        let admitted = breaker.admit(|| begun).unwrap();
        breaker.record(admitted, Outcome::Failure, || begun);
    }
    breaker
}

fn one_of_two_calls_is_the_probe() {
    let begun = Instant::now();
    let (breaker, now) = (opened(begun), begun + Duration::from_secs(1));
    let other = breaker.clone();
    let other = thread::spawn(move || other.admit(|| now).is_ok());
    let one = breaker.admit(|| now).is_ok();
    assert!(one != other.join().unwrap());
}

fn a_late_result_does_not_reach_the_next_generation() {
    let begun = Instant::now();
    let breaker = breaker();
    let late: Vec<Admitted> = (0..4).map(|_| breaker.admit(|| begun).unwrap()).collect();
    breaker.record(late[0], Outcome::Failure, || begun);
    breaker.record(late[1], Outcome::Failure, || begun);
    let now = begun + Duration::from_secs(1);
    let probe = breaker.admit(|| now).unwrap();
    let (other, late) = (breaker.clone(), late[2]);
    let other = thread::spawn(move || other.record(late, Outcome::Failure, || now));
    assert_eq!(breaker.record(probe, Outcome::Success, || now), Some(BreakerState::Closed));
    assert_eq!(other.join().unwrap(), None);
    // One failure alone does not open it, so that the late one has not counted.
    let admitted = breaker.admit(|| now).unwrap();
    assert_eq!(breaker.record(admitted, Outcome::Failure, || now), None);
}

fn a_success_and_failures_at_once_lose_nothing() {
    let now = Instant::now();
    let breaker = breaker();
    let tickets: Vec<Admitted> = (0..3).map(|_| breaker.admit(|| now).unwrap()).collect();
    let (other, success) = (breaker.clone(), tickets[0]);
    let other = thread::spawn(move || other.record(success, Outcome::Success, || now));
    let failed = [tickets[1], tickets[2]].map(|ticket| breaker.record(ticket, Outcome::Failure, || now));
    assert_eq!(other.join().unwrap(), None, "a success opens and closes nothing");
    assert_eq!(failed[0], None);
    // Either the success came in between, or the second failure has opened it.
    let opens = failed[1].is_some();
    assert_eq!(breaker.admit(|| now).is_err(), opens);
    if !opens {
        let next = breaker.admit(|| now).unwrap();
        assert!(
            breaker.record(next, Outcome::Failure, || now).is_some(),
            "the second failure was the last call"
        );
    }
}

fn the_last_token_is_taken_once() {
    let (budget, now) = (RetryBudget::new(0, 0), Instant::now());
    let other = budget.clone();
    let other = thread::spawn(move || other.withdraw(now));
    let one = budget.withdraw(now);
    assert!(one != other.join().unwrap());
}

fn no_deposit_is_lost() {
    let (budget, now) = (RetryBudget::new(100, 1), Instant::now());
    while budget.withdraw(now) {}
    let other = budget.clone();
    let other = thread::spawn(move || other.deposit());
    let taken = u32::from(budget.withdraw(now));
    other.join().unwrap();
    assert_eq!(budget.left(now) + taken, 1);
}
