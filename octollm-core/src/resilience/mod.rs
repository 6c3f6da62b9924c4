//! Layers for any tower service of [`Call`](crate::transport::Call)s that survive the failures of arms. They are independent of
//! HTTP.
//!
//! # When a call is tried again
//!
//! All of these have to hold:
//!
//! - Attempts are left: [`RetryLayer::retries`], or those that the call itself
//!   [asks for](crate::context::CallFuture::retry).
//! - The failure is [`retryable`](crate::error::Failure::retryable). A failure of a hop further down is not: only the hop
//!   beside it retries. Nor is one that the same call meets again: 4xx but for `rate_limited` and `request_timeout`, a
//!   passed deadline, a spent budget, a cancellation.
//! - It is safe: the work was never begun, or the caller's own contract is idempotent, or the arm honours the key of the
//!   call ([`RetryLayer::keys_honoured`]).
//! - The wait ends before the deadline, and something of the budget is left.
//!
//! The wait is a random part of `backoff · 2ⁿ` (full jitter), and never shorter than a `Retry-After`. A `Retry-After` beyond
//! [`RetryLayer::max_retry_after`] fails the call at once.

mod breaker;
mod budget;
mod load;
mod policy;
mod retry;
mod window;

pub(crate) use self::policy::MAX_RETRY_AFTER;
pub use self::{
    breaker::{BreakerState, Outcome},
    budget::RetryBudget,
    retry::RetryLayer,
};

/// The state machines, for the client.
#[doc(hidden)]
pub mod machines {
    pub use super::{
        breaker::{Admitted, Breaker, BreakerLimits},
        load::{Ejection, Load, two_choices},
    };
}

use std::hash::{BuildHasher, RandomState};

/// What threads meet at. The test with loom has its own.
mod sync {
    pub(super) use std::sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    };
}

/// At least 0 and below 1.
fn random() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}
