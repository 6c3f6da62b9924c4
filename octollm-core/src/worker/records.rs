//! The records of jobs.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    contract::Keys,
    error::Failure,
    idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun},
};

/// A store that retains the record of a job whose next attempt runs, also where the last one did nothing. By it the worker that receives
/// the job again finds that it may run it.
pub(super) struct Retained(pub(super) Arc<dyn IdempotencyStore>);

#[async_trait]
impl IdempotencyStore for Retained {
    fn keys(&self) -> Keys {
        self.0.keys()
    }

    fn retention(&self) -> Duration {
        self.0.retention()
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        self.0.begin(run, lease, must_exist).await
    }

    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure> {
        self.0.finish(run, answer).await
    }

    async fn release(&self, run: &KeyedRun, _: bool) -> Result<(), Failure> {
        self.0.release(run, true).await
    }

    fn abandon(&self, run: &KeyedRun) {
        self.0.abandon(run);
    }

    fn withdraw(&self, run: &KeyedRun) {
        self.0.withdraw(run);
    }
}
