//! What stands before the arm of one contract: limits on the rate of its calls and on how many run at once, and cached answers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use octollm_core::{
    Context,
    contract::{ContractRef, ContractSpec},
    deadline::Deadline,
    dispatcher::Dispatcher,
    error::{ArmError, Failure},
    id::TaskId,
};
use tokio::sync::Semaphore;

use super::{
    cache::{AnswerCache, Lookup, cache_key},
    rates::{RateReport, Rates},
    request_body::overloaded,
    routes::{Inbound, Refusal},
};

/// What stands before the arm of one contract. A contract without limits and cache has no guard.
#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) contract: ContractRef,
    pub(crate) rates: Option<Arc<Rates>>,
    /// Places for calls that run.
    pub(crate) places: Option<Arc<Semaphore>>,
    /// Answers, and the time for which each is repeated.
    pub(crate) cache: Option<(Arc<AnswerCache>, Duration)>,
}

impl Guard {
    /// Counts a request for the contract.
    ///
    /// # Errors
    /// It is over a limit.
    pub(crate) async fn take(&self, inbound: &Inbound<'_>) -> Result<RateReport, Refusal> {
        match &self.rates {
            Some(rates) => rates.take(&inbound.parts.caller, inbound.head, Some(&self.contract)).await,
            None => Ok(RateReport::default()),
        }
    }

    /// Runs a contract in one of its places, or repeats an answer of which the age is returned. `task` is the one that the caller
    /// named.
    ///
    /// # Errors
    /// There is no place, or those of [`Dispatcher::execute`].
    pub(crate) async fn execute(
        &self,
        dispatcher: &Dispatcher,
        spec: &ContractSpec,
        input: &[u8],
        task: Option<&TaskId>,
        cx: &mut Context,
    ) -> Result<(Bytes, Option<Duration>), Failure> {
        let Some((cache, time)) = self.cache.as_ref().filter(|_| may_run(spec, cx)) else {
            return Ok((self.run(dispatcher, spec, input, cx).await?, None));
        };
        let key = cache_key(&self.contract, input, cx.caller(), task);
        let miss = match cache.get(&key) {
            Lookup::Hit(output, age) => return Ok((output, Some(age))),
            Lookup::Miss(miss) => Some(miss),
            Lookup::Off => None,
        };
        let output = self.run(dispatcher, spec, input, cx).await?;
        if let Some(miss) = miss {
            cache.store(key, self.contract.clone(), &output, *time, miss);
        }
        Ok((output, None))
    }

    async fn run(
        &self,
        dispatcher: &Dispatcher,
        spec: &ContractSpec,
        input: &[u8],
        cx: &mut Context,
    ) -> Result<Bytes, Failure> {
        let _place = match &self.places {
            // A caller without the scope receives that, and not the load of others.
            Some(places) if may_run(spec, cx) => Some(places.try_acquire().map_err(|_| overloaded())?),
            _ => None,
        };
        dispatcher.execute(&self.contract, input, cx).await.map_err(ArmError::into_failure)
    }
}

/// Whether the caller may have the contract run now. If not, [`Dispatcher::execute`] refuses it.
fn may_run(spec: &ContractSpec, cx: &Context) -> bool {
    cx.caller().may(spec.scope).is_ok()
        && !cx.budget().is_exhausted()
        && !cx.deadline().is_some_and(Deadline::has_passed)
}
