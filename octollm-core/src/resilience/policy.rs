//! The decision whether a failed call is tried again, and after which wait.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    budget::Budget,
    deadline::Deadline,
    error::{ErrorKind, Failure},
};

/// How often and after which waits calls are tried again: the setters of [`RetryLayer`](super::RetryLayer) explain each.
#[derive(Debug, Clone, Copy)]
pub struct RetryLimits {
    /// Attempts after the first one.
    pub retries: u32,
    /// The longest wait before the second attempt.
    pub backoff: Duration,
    /// The same where the arm has more work than it takes.
    pub throttled_backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// The longest wait that an arm may ask for.
    pub max_retry_after: Duration,
    /// Bytes of the largest input that is stored for attempts that the call does not ask for.
    pub max_stored: usize,
}

/// No wait is longer.
const FAR: Duration = Duration::from_secs(86_400 * 365);

/// The longest wait that a failure may ask for, by default.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

impl Default for RetryLimits {
    fn default() -> Self {
        Self {
            retries: 2,
            backoff: Duration::from_millis(50),
            throttled_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(5),
            max_retry_after: MAX_RETRY_AFTER,
            max_stored: 64 << 10,
        }
    }
}

impl RetryLimits {
    /// How long to wait for the next attempt; `None` where there is none. `random` is at least 0 and below 1.
    pub(super) fn wait(&self, failed: &Failed<'_>, now: Instant, random: f64) -> Option<Duration> {
        let failure = failed.failure;
        let safe = failed.repeatable || !failed.may_have_executed;
        if failed.retries >= failed.allowed || !safe || !failure.retryable || is_final(failure) {
            return None;
        }
        if failed.budget.is_exhausted() {
            return None;
        }
        let asked = failure.retry_after.unwrap_or_default();
        let wait = self.backoff(failure.kind, failed.retries, random).max(asked);
        let in_time = failed
            .deadline
            .is_none_or(|deadline| now.checked_add(wait).is_some_and(|next| next < deadline.instant()));
        (asked <= self.max_retry_after && in_time).then_some(wait)
    }

    fn backoff(&self, kind: ErrorKind, retries: u32, random: f64) -> Duration {
        self.wait_for(is_throttled(kind), retries, random)
    }

    /// A random part of the longest wait.
    pub(super) fn wait_for(&self, throttled: bool, retries: u32, random: f64) -> Duration {
        let base = if throttled { self.throttled_backoff } else { self.backoff };
        let longest = base.saturating_mul(2_u32.saturating_pow(retries)).min(self.max_backoff).min(FAR);
        longest.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// A call after a failed attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failed<'a> {
    pub(super) failure: &'a Failure,
    /// Whether this attempt or an earlier one may have done the work.
    pub(super) may_have_executed: bool,
    /// Whether the call may be sent again after the work was done.
    pub(super) repeatable: bool,
    /// Attempts after the first one.
    pub(super) retries: u32,
    /// How many of those may be made.
    pub(super) allowed: u32,
    pub(super) deadline: Option<Deadline>,
    /// What is left of it.
    pub(super) budget: Budget,
}

/// Whether the same call would fail again, whatever `retryable` is.
fn is_final(failure: &Failure) -> bool {
    match failure.kind {
        // A key that is still running is answered with the time to wait; any other conflict stays one.
        ErrorKind::Conflict => failure.retry_after.is_none(),
        ErrorKind::RateLimited | ErrorKind::RequestTimeout => false,
        ErrorKind::DeadlineExceeded | ErrorKind::JournalMismatch => true,
        // A cancellation and a spent budget are among them.
        other => (400..500).contains(&other.status()),
    }
}

fn is_throttled(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::RateLimited | ErrorKind::Overloaded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn failed(failure: &Failure) -> Failed<'_> {
        Failed {
            failure,
            may_have_executed: failure.may_have_executed,
            repeatable: true,
            retries: 0,
            allowed: 2,
            deadline: None,
            budget: Budget::UNLIMITED,
        }
    }

    fn wait(failed: &Failed<'_>) -> Option<Duration> {
        RetryLimits::default().wait(failed, Instant::now(), 0.5)
    }

    #[test]
    fn each_kind_is_tried_again_where_that_is_safe_and_can_help() {
        use ErrorKind::*;
        for &kind in ErrorKind::ALL {
            let failure = Failure::of(kind);
            let retried = wait(&failed(&failure)).is_some();
            let expected = matches!(
                kind,
                RequestTimeout
                    | RateLimited
                    | UpstreamFailed
                    | ConnectionLost
                    | Unavailable
                    | Overloaded
                    | CircuitOpen
                    | Unreachable
                    | Timeout
            );
            assert_eq!(retried, expected, "{kind}, idempotent");
            let retried = wait(&Failed { repeatable: false, ..failed(&failure) }).is_some();
            let expected = matches!(
                kind,
                RequestTimeout | RateLimited | Unavailable | Overloaded | CircuitOpen | Unreachable
            );
            assert_eq!(retried, expected, "{kind}, not idempotent");
        }
        let mut failure = Failure { retryable: true, ..Failure::of(ArmFailed) };
        assert!(wait(&failed(&failure)).is_some(), "an arm may ask for it");
        failure = Failure { retryable: false, ..Failure::of(Unavailable) };
        assert_eq!(wait(&failed(&failure)), None, "a hop further down");
        failure = Failure::of(Conflict).retryable_after(2_000 * MS);
        assert_eq!(wait(&failed(&failure)), Some(2_000 * MS), "a key that is still running");
        for kind in
            [Cancelled, DeadlineExceeded, BudgetExhausted, JournalMismatch, ValidationFailed, Conflict]
        {
            failure = Failure { retryable: true, ..Failure::of(kind) };
            assert_eq!(wait(&failed(&failure)), None, "{kind}");
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_is_longer_for_the_throttled() {
        let waits = |kind| {
            let failure = Failure::of(kind);
            let at =
                |retries| wait(&Failed { retries, allowed: 99, ..failed(&failure) }).unwrap().as_millis();
            [0, 1, 2, 6, 7, 40].map(at)
        };
        assert_eq!(waits(ErrorKind::Unavailable), [25, 50, 100, 1_600, 2_500, 2_500]);
        assert_eq!(waits(ErrorKind::RateLimited), [500, 1_000, 2_000, 2_500, 2_500, 2_500]);
    }

    #[test]
    fn retry_after_is_waited_for_or_fails_the_call_now() {
        let after =
            |wait: Duration| Failure { retry_after: Some(wait), ..Failure::of(ErrorKind::Unavailable) };
        let (zero, two, minute, day) =
            (after(Duration::ZERO), after(2_000 * MS), after(60_000 * MS), after(86_400_000 * MS));
        assert_eq!(wait(&failed(&zero)), Some(25 * MS));
        assert_eq!(wait(&failed(&two)), Some(2_000 * MS));
        assert_eq!(wait(&failed(&minute)), Some(60_000 * MS));
        assert_eq!(wait(&failed(&day)), None);
    }

    #[test]
    fn nothing_is_tried_beyond_attempts_deadline_and_budget() {
        let failure = Failure::of(ErrorKind::Unavailable);
        let config = RetryLimits::default();
        let now = Instant::now();
        let until = |left: Duration| Failed { deadline: Some(Deadline::at(now + left)), ..failed(&failure) };
        assert_eq!(config.wait(&until(26 * MS), now, 0.5), Some(25 * MS));
        assert_eq!(config.wait(&until(25 * MS), now, 0.5), None);
        assert_eq!(wait(&Failed { retries: 2, ..failed(&failure) }), None);
        assert_eq!(wait(&Failed { budget: Budget::tokens(0), ..failed(&failure) }), None);
        assert_eq!(wait(&Failed { budget: Budget::tokens(1), ..failed(&failure) }), Some(25 * MS));
    }

    proptest! {
        #[test]
        fn any_wait_is_bounded(random in 0.0_f64..1.0, retries: u32, hint in prop::option::of(0_u64..100_000), left in 0_u64..100_000) {
            let failure = Failure { retry_after: hint.map(Duration::from_millis), ..Failure::of(ErrorKind::Overloaded) };
            let now = Instant::now();
            let deadline = Some(Deadline::at(now + Duration::from_millis(left)));
            let failed = Failed { retries, allowed: u32::MAX, deadline, ..failed(&failure) };
            if let Some(wait) = RetryLimits::default().wait(&failed, now, random) {
                prop_assert!(wait < Duration::from_millis(left));
                prop_assert!(wait >= failure.retry_after.unwrap_or_default());
                prop_assert!(wait <= Duration::from_secs(5).max(failure.retry_after.unwrap_or_default()));
            }
        }
    }
}
