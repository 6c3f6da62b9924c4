//! What happens to a run whose future is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{IdempotencyStore, KeyedRun};
use crate::panics::discard;

/// A run that is withdrawn or abandoned where it is dropped before its end is recorded.
pub(crate) struct Started<'a> {
    store: &'a dyn IdempotencyStore,
    run: &'a KeyedRun,
    state: State,
}

enum State {
    /// The store has not answered: nothing is done yet.
    Begins,
    Runs,
    Ended,
}

impl<'a> Started<'a> {
    /// A run that the store is asked to begin.
    pub(crate) fn new(store: &'a dyn IdempotencyStore, run: &'a KeyedRun) -> Self {
        Self { store, run, state: State::Begins }
    }

    /// The store has begun the run.
    pub(crate) fn runs(&mut self) {
        self.state = State::Runs;
    }

    /// The run did not begin, or its end is recorded.
    pub(crate) fn ended(&mut self) {
        self.state = State::Ended;
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let end = || match self.state {
            State::Begins => self.store.withdraw(self.run),
            State::Runs => self.store.abandon(self.run),
            State::Ended => {}
        };
        // The run may have panicked, on its way out.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(end)) {
            discard(panic);
            tracing::error!("the store of idempotency keys panicked");
        }
    }
}
