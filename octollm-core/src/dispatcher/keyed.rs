//! Calls with an idempotency key, which run once.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::Served;
use crate::{
    budget::narrower,
    clock,
    context::Context,
    contract::{ContractCard, Keys},
    deadline::Deadline,
    error::{ArmError, ErrorKind, Failure},
    idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun, Started},
};

/// Time limit of an operation of a store.
const STORE_LIMIT: Duration = Duration::from_secs(5);
/// Time that a run may take beyond its deadline: until its arm is dropped and its answer is recorded.
const BEYOND_DEADLINE: Duration = Duration::from_secs(10);
/// After this time a call that still runs can be repeated.
const STILL_RUNNING: Duration = Duration::from_secs(1);

pub(super) fn honours_keys(is_idempotent: bool, store: &dyn IdempotencyStore) -> bool {
    !is_idempotent && store.keys() != Keys::None
}

/// Sets whether calls of a contract with a key run once.
pub(super) fn honour_keys(card: &mut ContractCard, store: &dyn IdempotencyStore) {
    let honoured = honours_keys(card.idempotent, store);
    card.keys = if honoured { store.keys() } else { Keys::None };
    card.keys_retained_s = honoured.then(|| store.retention().as_secs());
}

impl Served {
    /// Answers a call with a key from its record, or runs it and records the answer.
    pub(super) async fn run_once(
        &self,
        input: &[u8],
        cx: &mut Context,
        limit: Duration,
        store: &dyn IdempotencyStore,
    ) -> Result<Bytes, ArmError> {
        let Some(run) = KeyedRun::new(cx.parts(), &self.contract, input) else {
            return self.run(input, cx, limit, Instant::now()).await;
        };
        let must_exist = cx.parts().repeated && store.keys() != Keys::Shared;
        // The arm is dropped at its deadline, so that the lease needs no renewal.
        let deadline = narrower(cx.deadline(), Some(Deadline::after(limit)));
        let lease = deadline.map_or(limit, Deadline::remaining).saturating_add(BEYOND_DEADLINE);
        let mut started = Started::new(store, &run);
        let begun = within(Deadline::run_until(deadline, store.begin(&run, lease, must_exist))).await?;
        match begun
            .unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded)))
            .map_err(Failure::before_execution)?
        {
            Begun::Run => started.runs(),
            other => {
                started.ended();
                return answered(other, cx);
            }
        }
        let (began, clock) = (clock::now(), Instant::now());
        let result = self.run(input, cx, limit, clock).await;
        let failure = result.as_ref().err().map(ArmError::failure);
        if failure.is_some_and(|failure| failure.kind == ErrorKind::Cancelled) {
            return result;
        }
        let took = clock.elapsed();
        cx.executed_in(began, took);
        let recorded = match failure {
            Some(failure) if failure.retryable || !failure.may_have_executed => {
                within(store.release(&run, failure.may_have_executed)).await
            }
            _ => {
                let answer = result.as_ref().map(Bytes::clone).map_err(|error| error.failure().clone());
                within(store.finish(&run, KeyedAnswer::new(answer, cx.used(), began, took))).await
            }
        };
        match recorded.and_then(|recorded| recorded) {
            Ok(()) => started.ended(),
            // The caller gets the answer all the same. A repeated call is answered that the outcome is unknown.
            Err(error) => {
                tracing::warn!(contract = %self.contract, %error, "the answer of a call with a key is not recorded")
            }
        }
        result
    }
}

/// The recorded answer of a call, or why it does not run.
fn answered(begun: Begun, cx: &mut Context) -> Result<Bytes, ArmError> {
    match begun {
        Begun::Answered(KeyedAnswer { result, usage, began, took }) => {
            cx.replay(usage, began, took);
            Ok(result?)
        }
        other => Err(refusal(&other).into()),
    }
}

/// The failure of a call whose key does not let it run.
fn refusal(begun: &Begun) -> Failure {
    match begun {
        Begun::Running => {
            let words = "a call with this idempotency key is still running";
            let mut running = Failure::new(ErrorKind::Conflict, words).retryable_after(STILL_RUNNING);
            running.may_have_executed = true;
            running
        }
        Begun::OtherInput => {
            let words = "the idempotency key was used with another input";
            Failure::new(ErrorKind::ValidationFailed, words).before_execution()
        }
        Begun::Full => {
            let words = "there are too many calls with idempotency keys";
            Failure::new(ErrorKind::Overloaded, words).retryable_after(STILL_RUNNING).before_execution()
        }
        _ => outcome_unknown(),
    }
}

/// The failure of a call that may have been executed, and of which there is no record.
pub(super) fn outcome_unknown() -> Failure {
    let words = "a call with this idempotency key may have been executed, and its outcome is not known";
    Failure::new(ErrorKind::OutcomeUnknown, words)
}

/// Limits the time of an operation of a store.
async fn within<T>(operation: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure::new(ErrorKind::Unavailable, "the store of idempotency keys did not answer");
    timeout(STORE_LIMIT, operation).await.map_err(late)
}
