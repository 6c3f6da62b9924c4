//! The settings of a server for the rates of its callers, for the calls of single contracts, and for cached answers.

use std::{collections::HashMap, fmt, sync::Arc};

use octollm_core::{
    bus::EventBus,
    contract::{ContractRef, ContractSpec, TaskContract},
    dispatcher::Dispatcher,
    error::ConfigError,
    limit::{RateLimit, RateLimiter},
};
use tokio::sync::Semaphore;

use super::{
    Server,
    cache::AnswerCache,
    guard::Guard,
    rates::{Counted, RateRule, RateSettings, Rates, check_served},
};
use crate::limits::{ServerConfig, within};

/// The limits as they are set.
#[derive(Default)]
pub(crate) struct Limiting {
    rates: RateSettings,
    /// The most calls of a contract at a time.
    places: Vec<(ContractRef, usize)>,
}

/// Limits on the rates of callers, and on the calls of single contracts.
///
/// Rate limits count the requests with a body, once the caller is known: those for contracts, `POST /execute`, `POST /tasks`,
/// `POST /tasks/{id}/rerun` and `POST /preprocess`. [Routes](Self::route) of your own are not counted. A request over a limit is answered 429 `rate_limited` with `Retry-After`. Each
/// answer to a request that was counted has `X-RateLimit-Limit`, `-Remaining` and `-Reset`, of the limit of which the least is left.
/// Several limits may be set. A request that one of them refuses may have counted under those of its caller.
impl Server {
    /// Limits the requests of each caller, for all contracts together.
    ///
    /// A caller is the subject of its credentials. Callers without any share a limit for each address, or for the first 64 bits of
    /// an IPv6 address. The address is that of the [`Peer`](crate::io::Peer) among the extensions of the request, which the server
    /// sets where it accepts the connection itself. A [`layer`](Self::layer) can set another one, such as that in a header of a
    /// proxy that you trust. Where there is none, all share one limit.
    pub fn rate_limit(self, limit: RateLimit) -> Self {
        self.rate("rate_limit", limit, Counted::PerCaller, None)
    }

    /// Limits the calls of one contract by each caller: at its route, by `/execute`, or as a task. A rerun of a task counts under the
    /// limits for all contracts only.
    pub fn rate_limit_of<C: TaskContract>(self, limit: RateLimit) -> Self {
        self.rate("rate_limit_of", limit, Counted::PerCaller, Some(C::SPEC.reference()))
    }

    /// Limits the requests of all callers together.
    pub fn total_rate_limit(self, limit: RateLimit) -> Self {
        self.rate("total_rate_limit", limit, Counted::InTotal, None)
    }

    /// Limits the calls of one contract by all callers together.
    pub fn total_rate_limit_of<C: TaskContract>(self, limit: RateLimit) -> Self {
        self.rate("total_rate_limit_of", limit, Counted::InTotal, Some(C::SPEC.reference()))
    }

    /// Limits the authentications of each address that fail with 401. Beyond it, a request from there that needs a caller is
    /// answered 429, before its credentials are verified. So others at one address, as behind a proxy, are refused too, unless
    /// [`authenticate_now`](super::Authenticate::authenticate_now) knows them. It does not apply where the address is not known.
    pub fn failed_authentication_limit(self, limit: RateLimit) -> Self {
        self.rate("failed_authentication_limit", limit, Counted::FailedAuthentications, None)
    }

    /// Sets where requests are counted. Default: a [`MemoryRateLimiter`](octollm_core::limit::MemoryRateLimiter) of this server.
    ///
    /// All limits of a request are [counted together](RateLimiter::take_each), and failed authentications before that. If the limiter fails,
    /// or takes longer than 500 ms, the request is allowed and a warning is logged.
    pub fn rate_limiter(mut self, limiter: impl RateLimiter) -> Self {
        self.limiting.rates.limiter = Some(Arc::new(limiter));
        self
    }

    /// Sets the most calls of a contract that its arm runs at a time, at least 1. Further ones are answered 503 `overloaded` with
    /// `Retry-After`. By default only [`max_in_flight`](Self::max_in_flight) applies, as it does besides.
    pub fn max_in_flight_of<C: TaskContract>(mut self, calls: usize) -> Self {
        let contract = C::SPEC.reference();
        self.limiting.places.retain(|(limited, _)| *limited != contract);
        self.limiting.places.push((contract, calls));
        self
    }

    fn rate(
        mut self,
        setting: &'static str,
        limit: RateLimit,
        counted: Counted,
        contract: Option<ContractRef>,
    ) -> Self {
        self.limiting.rates.rules.push(RateRule { setting, limit, counted, contract });
        self
    }
}

type Guards = HashMap<ContractRef, Arc<Guard>>;

impl Limiting {
    /// The limits on rates, and the guards of the contracts that need one.
    ///
    /// # Errors
    /// A limit is out of range, or of a contract that is neither served nor, with an orchestrator, could be a task.
    pub(crate) fn build(
        self,
        dispatcher: &Dispatcher,
        has_tasks: bool,
        config: &ServerConfig,
        bus: Option<Arc<dyn EventBus>>,
    ) -> Result<(Option<Arc<Rates>>, Guards), ConfigError> {
        let arm_id = &dispatcher.card().arm_id;
        let rates = self.rates.build(arm_id, |contract| has_tasks || dispatcher.serves(contract))?;
        for (contract, calls) in &self.places {
            check_served("max_in_flight_of", Some(contract), |contract| dispatcher.serves(contract))?;
            within("max_in_flight_of", 1, *calls, Semaphore::MAX_PERMITS)?;
        }
        let caches = dispatcher.specs().any(|spec| spec.cache.is_some()) && config.cache_answers > 0;
        let cache = caches.then(|| AnswerCache::new(config.cache_answers, config.cache_bytes, bus.clone()));
        let guard = |spec: &ContractSpec| {
            let contract = spec.reference();
            let rates = rates.clone().filter(|rates| rates.apply_to(&contract));
            let places = self.places.iter().find(|(limited, _)| *limited == contract);
            let places = places.map(|(_, calls)| Arc::new(Semaphore::new(*calls)));
            let cache = cache.clone().zip(spec.cache);
            let is_needed = rates.is_some() || places.is_some() || cache.is_some();
            is_needed.then(|| (contract.clone(), Arc::new(Guard { contract, rates, places, cache })))
        };
        let guards = dispatcher.specs().filter_map(guard).collect();
        Ok((rates, guards))
    }
}

impl fmt::Debug for Limiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiting")
            .field("rates", &self.rates.rules)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}
