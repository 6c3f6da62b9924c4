//! Layers for any tower service of [`Call`](crate::transport::Call)s that survive the failures of arms. They are independent of
//! HTTP. By a [`Protocol`] they work for services of other requests as well. Programs that depend on `octollm` alone write
//! `octollm::resilience` where the examples have `octollm_core::resilience`.
//!
//! | layer | |
//! |---|---|
//! | [`RetryLayer`] | tries a failed call again, within a [`RetryBudget`] |
//! | [`BreakerLayer`] | rejects calls while their target fails |
//! | [`HedgeLayer`] | sends a late call to another endpoint as well |
//! | [`BulkheadLayer`] | limits how many calls run at once |
//! | [`TimeoutLayer`] | ends each attempt after a time |
//!
//! # When a call is tried again
//!
//! All of these have to hold:
//!
//! - Attempts are left: [`RetryLayer::retries`], or those that the call itself
//!   [asks for](crate::context::CallFuture::retry).
//! - The failure is [`retryable`](crate::error::Failure::retryable). A failure that is passed on from a hop further down is not,
//!   whatever its kind: only the hop beside it retries. Nor is one that the same call meets again: 4xx but for `rate_limited` and `request_timeout`, a
//!   passed deadline, a spent budget, a cancellation.
//! - It is safe: no attempt has begun the work, or the caller's own contract is idempotent, or the arm honours the key of the
//!   call ([`RetryLayer::keys_honoured`]).
//! - The wait ends before the deadline, and something of the budget is left.
//! - The [`RetryBudget`] has a token.
//! - The input has at most 64 KiB, or the call asks for the attempts itself.
//!
//! The wait is a random part of `backoff · 2ⁿ` (full jitter), and never shorter than a `Retry-After`. A `Retry-After` beyond
//! [`RetryLayer::max_retry_after`] fails the call at once.

mod attempts;
mod breaker;
mod budget;
mod ejection;
mod bulkhead;
mod hedge;
mod load;
mod policy;
mod protocol;
mod retry;
mod timeout;
mod window;

pub(crate) use self::policy::MAX_RETRY_AFTER;
pub use self::{
    breaker::{BreakerLayer, BreakerState, Outcome},
    budget::RetryBudget,
    bulkhead::BulkheadLayer,
    hedge::HedgeLayer,
    protocol::{Calls, Protocol, Refusal, Repeat},
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

/// The state machines, for the client.
#[doc(hidden)]
pub mod machines {
    pub use super::{
        attempts::{Attempts, FailedRequest, KeysHonoured, RetryPolicy},
        breaker::{Admitted, Breaker, BreakerLimits, Circuit, OnTransition},
        ejection::Ejection,
        load::{Load, two_choices},
        policy::RetryLimits,
        protocol::outcome_of_failure,
        retry::Reported,
    };
    pub use crate::{dropped::report, transport::sent_until};
}

use std::{
    hash::{BuildHasher, RandomState},
    mem,
};

/// What threads meet at. The test with loom has its own.
mod sync {
    pub(super) use std::sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };
}

/// At least 0 and below 1.
pub(crate) fn random() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The service that was polled ready. A clone, which was not, takes its place.
fn take_ready<S: Clone>(service: &mut S) -> S {
    let clone = service.clone();
    mem::replace(service, clone)
}
