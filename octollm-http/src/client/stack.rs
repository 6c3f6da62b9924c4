//! The path of a call: layers, attempts, the choice of an endpoint, and the endpoint.

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use octollm_core::{
    __private::machines::{Attempts, KeysHonoured, Reported, RetryLimits, RetryPolicy},
    budget::Usage,
    contract::ContractRef,
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    explain::CallEvent,
    resilience::RetryBudget,
    transport::{Call, Reply},
};
use tokio::time::{Instant, sleep};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use super::{
    choice::random,
    directory::Directory,
    follow::Follow,
    metrics::unplaced,
    offers::{Offer, Offers},
    send::{Sender, circuit_open, layered},
    site::{Attempt, CallLayer, CallService, Calling, Site},
};

/// Carries calls to the arms of a directory.
pub(super) struct Carrier {
    retried: Arc<Retried>,
    /// The same within the layers of a user, if there are any above the choice of an endpoint.
    layered: Option<CallService>,
}

/// Makes the attempts of each call.
struct Retried {
    sender: Sender,
    follow: Arc<Follow>,
    policy: RetryPolicy,
    /// Endpoints that one attempt tries.
    max_endpoints: usize,
}

/// Erases the type of a layer. An error other than [`CallError`] becomes the source of one.
pub(super) fn call_layer<L>(layer: L) -> CallLayer
where
    L: Layer<CallService> + Send + Sync + 'static,
    L::Service: Service<Call, Response = Reply> + Clone + Send + Sync + 'static,
    <L::Service as Service<Call>>::Error: Into<BoxError>,
    <L::Service as Service<Call>>::Future: Send + 'static,
{
    Arc::new(move |inner| CallService::new(Typed::new(layer.layer(inner))))
}

impl Carrier {
    pub(super) fn new(
        sender: Sender,
        follow: Arc<Follow>,
        limits: RetryLimits,
        max_endpoints: usize,
        above: &[CallLayer],
    ) -> Self {
        let cards = sender.directory().clone();
        let honoured: Arc<KeysHonoured> = Arc::new(move |call| cards.keys(&call.contract));
        let policy = RetryPolicy { limits, honoured: Some(honoured) };
        let retried = Arc::new(Retried { sender, follow, policy, max_endpoints });
        let shared = retried.clone();
        let layered = (!above.is_empty()).then(|| {
            let inner = service_fn(move |call: Call| {
                let retried = shared.clone();
                async move { retried.carry(call).await }
            });
            layered(CallService::new(inner), above)
        });
        Self { retried, layered }
    }

    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub(super) fn call(&self, call: Call) -> Calling<'_> {
        if self.layered.is_none() && !self.retried.sender.has_layers() {
            // The steps below end at the deadline themselves, with errors that state more.
            return Box::pin(self.retried.carry(call));
        }
        Box::pin(async move {
            let (deadline, contract) = (call.parts.deadline, call.contract.clone());
            let sending = pin!(self.send(call));
            Deadline::run_until(deadline, sending)
                .await
                .unwrap_or_else(|| Err(CallError::new(contract, Failure::of(ErrorKind::DeadlineExceeded))))
        })
    }

    async fn send(&self, call: Call) -> Result<Reply, CallError> {
        match &self.layered {
            Some(service) => service.clone().oneshot(call).await,
            None => self.retried.carry(call).await,
        }
    }
}

impl Retried {
    /// No `async fn`, which would have room for the call twice.
    fn carry(&self, mut call: Call) -> impl Future<Output = Result<Reply, CallError>> + Send {
        let attempts = Attempts::new(&self.policy, &call);
        // What is below would multiply them.
        call.retry = Some(0);
        // Only a layer can go on from a handle.
        let reported = self.sender.has_layers().then(|| Reported::watch(&mut call));
        async move {
            match self.once(&call).await {
                Err(error) if attempts.allowed() > 0 => {
                    Box::pin(self.retry(call, attempts, reported, error)).await
                }
                answer => answer,
            }
        }
    }

    /// Repeats a call that has failed, as long as that is safe and can help.
    async fn retry(
        &self,
        mut call: Call,
        mut attempts: Attempts,
        reported: Option<Arc<Reported>>,
        mut error: CallError,
    ) -> Result<Reply, CallError> {
        loop {
            let budget = self.budget(&call, &error);
            let now = Instant::now();
            let Some(wait) = attempts.failed(&self.policy, budget.as_ref(), &mut call, &mut error, now)
            else {
                return Err(error);
            };
            call.handle = reported.as_ref().and_then(|reported| reported.latest()).or(call.handle);
            sleep(wait).await;
            match self.once(&call).await {
                Ok(mut reply) => {
                    attempts.answered(&mut reply);
                    return Ok(reply);
                }
                Err(next) => error = next,
            }
        }
    }

    /// The budget of the arm that has failed. Where none was found there is no load to bound: all calls wait for the same cards.
    fn budget(&self, call: &Call, error: &CallError) -> Option<RetryBudget> {
        let offers = self.directory().offers(&call.contract)?;
        offers.sites().find(|site| Some(&*site.arm) == error.arm()).map(|site| site.budget.clone())
    }

    fn directory(&self) -> &Directory {
        self.sender.directory()
    }

    /// Makes one attempt.
    async fn once(&self, call: &Call) -> Result<Reply, CallError> {
        self.follow.ensure();
        let mut now = Instant::now();
        let offers = match self.directory().offers_now(&call.contract, now) {
            Some(offers) => offers,
            None => {
                // Boxed, since small futures are moved at less cost.
                let found = Box::pin(self.find(call)).await?;
                now = Instant::now();
                found
            }
        };
        let mut gone = Vec::new();
        let first = self.along(&offers, call, call.parts.attempt <= 1, &mut gone, Some(now)).await;
        if gone.is_empty() {
            return first;
        }
        match first {
            Err(error) if is_elsewhere_worth_trying(&error) => {
                Box::pin(self.again(&offers, call, &gone, error)).await
            }
            tried => {
                self.directory().refresh_later();
                tried
            }
        }
    }

    /// Repeats a call that no endpoint could take, at the paths that their cards name now. `gone` are the endpoints that do not know
    /// it.
    async fn again(
        &self,
        refused: &Offers,
        call: &Call,
        gone: &[Arc<Site>],
        error: CallError,
    ) -> Result<Reply, CallError> {
        let refreshed = self.directory().refresh_sites(gone);
        if Deadline::run_until(call.parts.deadline, refreshed).await.is_none() {
            return Err(error);
        }
        match self.directory().offers(&call.contract) {
            Some(now) if !now.is_same(refused) => self.along(&now, call, false, &mut Vec::new(), None).await,
            Some(_) => Err(error),
            // No arm offers the contract any more. The failure lists what is offered.
            None => Err(self.find(call).await.err().unwrap_or(error)),
        }
    }

    async fn find(&self, call: &Call) -> Result<Arc<Offers>, CallError> {
        Deadline::run_until(call.parts.deadline, self.directory().find(&call.contract))
            .await
            .unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded).before_execution()))
            .map_err(|failure| CallError::new(call.contract.clone(), failure))
            .inspect_err(unplaced)
    }

    /// Tries the offers until one takes the call, the best one first: see [`Offers::choose`]. Adds to `gone` the endpoints that do not
    /// know the call. The first time it counts in the retry budget. Each is tried once, and so many of them at most that no call tries a large set until its deadline. If no offer takes
    /// it, and one could not be connected, the error is of that one, since a retry can help.
    async fn along(
        &self,
        offers: &Offers,
        call: &Call,
        is_first: bool,
        gone: &mut Vec<Arc<Site>>,
        mut begins: Option<Instant>,
    ) -> Result<Reply, CallError> {
        offers.check_keys(call)?;
        let (mut tried, mut sent, mut open) = (Vec::new(), 0, note_all_open(offers, call));
        let (mut refused, mut rejected): (Option<CallError>, Option<(Duration, &Site)>) = (None, None);
        let (mut attempts, mut used, mut passed_over) = (0_u32, Usage::ZERO, None);
        while sent < self.max_endpoints {
            let now = begins.take().unwrap_or_else(Instant::now);
            let Some(position) = offers.choose(call, &tried, now, random()) else { break };
            let Some(offer) = offers.get(position) else { break };
            // The failure at the last endpoint is recorded as that of the attempt.
            if let (Some(record), Some(failed)) = (&call.explain, passed_over.take()) {
                record.add(failed);
            }
            if is_first && tried.is_empty() {
                offer.site.budget.deposit();
            }
            let attempt = match Attempt::begin(&offer.site, &offer.meter, now) {
                Ok(attempt) => attempt,
                Err(wait) => {
                    note_open(call, &mut open, position, offer, wait);
                    tried.push(position);
                    if rejected.is_none_or(|(least, _)| wait < least) {
                        rejected = Some((wait, &offer.site));
                    }
                    continue;
                }
            };
            let answer = self.sender.send(offer, call, now).await;
            sent += 1;
            attempt.end(&answer, offers.sites());
            match answer {
                Ok(mut reply) => {
                    reply.attempts = reply.attempts.saturating_add(attempts);
                    reply.usage = used.plus(reply.usage);
                    return Ok(reply);
                }
                Err(error) => {
                    let error = offer.name_instance(error);
                    attempts = attempts.saturating_add(error.attempts());
                    used = used.plus(error.usage());
                    if !is_elsewhere_worth_trying(&error) {
                        return Err(error.with_attempts(attempts).with_usage(used));
                    }
                    if is_gone(&error) {
                        gone.push(offer.site.clone());
                    }
                    tried.push(position);
                    let endpoint = Some(offer.site.url.shared());
                    passed_over = Some(CallEvent::Failed { kind: error.kind(), endpoint });
                    refused = Some(more_hopeful(refused, error));
                }
            }
        }
        Err(match (refused, rejected) {
            (Some(error), _) => error.with_attempts(attempts).with_usage(used),
            (None, Some((wait, site))) => circuit_open(site, call, wait),
            (None, None) => CallError::new(call.contract.clone(), Failure::of(ErrorKind::Unavailable)),
        })
    }
}

/// Records which endpoints are passed over, since their breakers are open. Returns their positions.
fn note_all_open(offers: &Offers, call: &Call) -> Vec<usize> {
    let mut noted = Vec::new();
    if call.explain.is_some() {
        for (position, offer, wait) in offers.rejecting(call, Instant::now()) {
            note_open(call, &mut noted, position, offer, wait);
        }
    }
    noted
}

/// Records once that an endpoint is passed over, since its breaker is open.
fn note_open(call: &Call, noted: &mut Vec<usize>, position: usize, offer: &Offer, retry_after: Duration) {
    if let Some(record) = call.explain.as_ref().filter(|_| !noted.contains(&position)) {
        noted.push(position);
        record.add(CallEvent::CircuitOpen { endpoint: offer.site.url.shared(), retry_after });
    }
}

/// Of the errors of two endpoints that did not take a call, the one that a retry can help rather.
fn more_hopeful(before: Option<CallError>, error: CallError) -> CallError {
    match before {
        Some(unreachable) if is_gone(&error) && !is_gone(&unreachable) => unreachable,
        _ => error,
    }
}

/// Whether an endpoint does not know a path that a card of its arm names.
fn is_gone(error: &CallError) -> bool {
    matches!(error.kind(), ErrorKind::ContractNotOffered | ErrorKind::NotFound) && !error.may_have_executed()
}

fn is_elsewhere_worth_trying(error: &CallError) -> bool {
    is_gone(error) || (error.kind() == ErrorKind::Unreachable && !error.may_have_executed())
}

/// The service of a layer, with its errors as [`CallError`]s.
struct Typed<S> {
    service: S,
    /// Error of `poll_ready`, which the next call returns, since that has a contract to name.
    unready: Option<BoxError>,
}

impl<S> Typed<S> {
    fn new(service: S) -> Self {
        Self { service, unready: None }
    }
}

impl<S: Clone> Clone for Typed<S> {
    fn clone(&self) -> Self {
        Self::new(self.service.clone())
    }
}

impl<S> Service<Call> for Typed<S>
where
    S: Service<Call, Response = Reply>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Calling<'static>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.service.poll_ready(cx).map(|ready| {
            self.unready = ready.err().map(Into::into);
            Ok(())
        })
    }

    fn call(&mut self, call: Call) -> Calling<'static> {
        let contract = call.contract.clone();
        if let Some(error) = self.unready.take() {
            return Box::pin(async move { Err(typed(contract, error)) });
        }
        let answer = self.service.call(call);
        Box::pin(async move { answer.await.map_err(|error| typed(contract, error.into())) })
    }
}

fn typed(contract: ContractRef, error: BoxError) -> CallError {
    match error.downcast::<CallError>() {
        Ok(ours) => *ours,
        Err(foreign) => {
            let failure = Failure::new(ErrorKind::Internal, "a layer of the client failed");
            CallError::new(contract, failure).with_source(foreign)
        }
    }
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carrier").field("has_layers_above", &self.layered.is_some()).finish_non_exhaustive()
    }
}
