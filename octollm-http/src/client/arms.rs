//! The arms that can be called.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::TryFutureExt;
use octollm_core::{
    Context,
    card::ArmCard,
    contract::{ContractRef, TaskContract},
    deadline::{Deadline, DeadlinePassed},
    error::{CallError, ErrorKind, Failure},
    parts::ContextParts,
    transport::{Call, Reply, Transport, Trip},
};
use serde_json::Value;

use super::{
    answer,
    directory::Directory,
    exchange::Exchanger,
    exchange_error::ExchangeError,
    route::{Offer, Route},
};

/// The arms of a system, called over HTTP. Cheap to clone; clones share their connections.
///
/// ```no_run
/// # use octollm_http::client::Arms;
/// # fn main() -> Result<(), octollm_http::client::ConfigError> {
/// let arms = Arms::from_env()?; // OCTOLLM_ARM_JUDGE=http://judge-arm:8103
/// let same = Arms::builder().arm("judge", "http://judge-arm:8103").build()?;
/// # Ok(()) }
/// ```
///
/// Which arm offers a contract is learned from the arms themselves, at the first call and whenever it changes. Where
/// several do, or an arm has several URLs, they are called in turn, and the next one is tried where no connection
/// comes about.
#[derive(Clone)]
pub struct Arms(Arc<Carrier>);

/// What carries the calls.
struct Carrier {
    exchanger: Exchanger,
    directory: Arc<Directory>,
}

impl Arms {
    pub(super) fn new(exchanger: Exchanger, directory: Arc<Directory>) -> Self {
        Self(Arc::new(Carrier { exchanger, directory }))
    }

    /// Calls the arm that serves `C`.
    ///
    /// # Errors
    /// A [`CallError`]: see its `kind`, `retryable` and `may_have_executed`.
    ///
    /// # Cancel safety
    /// Dropping the future gives the call up: its connection is closed, and the arm sees that.
    pub fn call<C: TaskContract>(
        &self,
        task: C,
    ) -> impl Future<Output = Result<C::Output, CallError>> + Send + use<C> {
        let carrier = Arc::clone(&self.0);
        self.context().call(task).map_err(move |error| carrier.explained(error))
    }

    /// Calls an arm by a contract's name, with JSON in and JSON out.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub fn call_json(
        &self,
        contract: &ContractRef,
        input: &Value,
    ) -> impl Future<Output = Result<Value, CallError>> + Send + use<> {
        self.context().call_json(contract, input)
    }

    /// The beginning of a piece of work: its calls share a correlation id, and what they use up is summed.
    pub fn context(&self) -> Context {
        self.context_of(ContextParts::new())
    }

    /// A piece of work that may take so long, all its calls together.
    pub fn within(&self, time: Duration) -> Context {
        let mut parts = ContextParts::new();
        parts.deadline = Some(Deadline::after(time));
        self.context_of(parts)
    }

    /// A piece of work with ids, a deadline and a budget that are given.
    pub fn context_of(&self, parts: ContextParts) -> Context {
        Context::from_parts(parts, Arc::clone(&self.0) as Arc<dyn Transport>)
    }

    /// The cards of the arms that can be reached now: they are asked, unless that was done within the last second.
    pub async fn cards(&self) -> Vec<ArmCard> {
        self.0.cards().await
    }
}

#[async_trait]
impl Transport for Arms {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.0.carry(&call).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.cards().await
    }
}

#[async_trait]
impl Transport for Carrier {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        self.carry(&call).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.directory.refresh().await;
        self.directory.cards()
    }
}

impl Carrier {
    async fn carry(&self, call: &Call) -> Result<Reply, CallError> {
        Deadline::run_until(call.parts.deadline, self.attempt(call)).await.unwrap_or_else(|DeadlinePassed| {
            Err(CallError::new(call.contract.clone(), Failure::of(ErrorKind::DeadlineExceeded)))
        })
    }

    async fn attempt(&self, call: &Call) -> Result<Reply, CallError> {
        let route = match self.directory.route(&call.contract) {
            Some(route) => route,
            None => self.find(&call.contract).await?,
        };
        match self.along(&route, call).await {
            Err(error) if is_gone(&error) => {
                // The arm has changed behind our back: where its card says so, what it refused is tried anew.
                self.directory.refresh_arm(error.arm().unwrap_or_default()).await;
                match self.directory.route(&call.contract) {
                    Some(now) if !now.is_same(&route) => self.along(&now, call).await,
                    Some(_) => Err(error),
                    // Nobody offers it any more, and the failure says what is offered.
                    None => Err(self.find(&call.contract).await.err().unwrap_or(error)),
                }
            }
            other => other,
        }
    }

    async fn find(&self, contract: &ContractRef) -> Result<Arc<Route>, CallError> {
        self.directory.find(contract).await.map_err(|failure| CallError::new(contract.clone(), failure))
    }

    /// Tries the offers of a route in turn, as long as no connection comes about.
    async fn along(&self, route: &Route, call: &Call) -> Result<Reply, CallError> {
        let mut attempts = 0;
        let mut offers = route.in_turn().peekable();
        while let Some(offer) = offers.next() {
            attempts += 1;
            let drift = self.directory.drift(&call.contract, offer, call.spec.as_ref());
            let request = offer.request(call.input.clone(), &call.parts);
            let target = || offer.target(&call.contract, &call.parts);
            let failure = match self.exchanger.send(request, call.parts.deadline, target).await {
                Ok(response) => match answer::read(response) {
                    (Ok(output), usage) => {
                        let mut trip = Trip::new(&*offer.arm, offer.endpoint.as_str());
                        trip.attempts = attempts;
                        return Ok(Reply::new(output, trip).with_usage(usage));
                    }
                    (Err(mut failure), usage) => {
                        if let Some(drift) = drift {
                            drift.explain(&mut failure);
                        }
                        return Err(at(offer, &call.contract, (failure, None)).with_usage(usage));
                    }
                },
                Err(error) if is_elsewhere_worth_trying(&error) && offers.peek().is_some() => continue,
                Err(error) => error.into_parts(),
            };
            return Err(at(offer, &call.contract, failure));
        }
        Err(CallError::new(call.contract.clone(), Failure::of(ErrorKind::Unavailable)))
    }

    /// Adds that schemas differ to the error of an output that could not be read.
    fn explained(&self, error: CallError) -> CallError {
        if error.kind() != ErrorKind::BadResponse {
            return error;
        }
        let route = self.directory.route(error.contract());
        let offer = error.arm().and_then(|arm| route.as_ref()?.of_arm(arm));
        let Some(drift) = offer.and_then(|offer| offer.drift.get()?.as_ref()) else { return error };
        let (mut failure, contract) = (error.failure().clone(), error.contract().clone());
        drift.explain(&mut failure);
        let told = CallError::new(contract, failure).with_arm(error.arm().unwrap_or_default());
        match error.endpoint().map(str::to_owned) {
            Some(endpoint) => told.with_endpoint(endpoint),
            None => told,
        }
        .with_source(error)
    }
}

/// Whether an arm does not know a route that its card told of.
fn is_gone(error: &CallError) -> bool {
    matches!(error.kind(), ErrorKind::ContractNotOffered | ErrorKind::NotFound) && !error.may_have_executed()
}

fn is_elsewhere_worth_trying(error: &ExchangeError) -> bool {
    error.kind() == ErrorKind::Unreachable && !error.may_have_executed()
}

type Told = (Failure, Option<Box<dyn std::error::Error + Send + Sync>>);

fn at(offer: &Offer, contract: &ContractRef, (failure, source): Told) -> CallError {
    let error = CallError::new(contract.clone(), failure)
        .with_arm(&*offer.arm)
        .with_endpoint(offer.endpoint.as_str());
    match source {
        Some(source) => error.with_source(source),
        None => error,
    }
}

impl fmt::Debug for Arms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arms").field("directory", &self.0.directory).finish()
    }
}
