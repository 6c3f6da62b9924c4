//! The way of a call: layers, the choice of an endpoint, layers again, and at the bottom HTTP.

use std::{
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use octollm_core::{
    budget::Usage,
    contract::ContractRef,
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    resilience::RetryLayer,
    transport::{Call, CallService, Reply, ServedBy},
};
use tower::{BoxError, Layer, Service, ServiceExt};

use super::{
    answer,
    directory::Directory,
    endpoint::Endpoint,
    exchange::Exchanger,
    pool::Terms,
    route::{Offer, Route},
};

/// The future of a call.
pub(super) type Calling<'a> = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send + 'a>>;

/// A layer of a user, for the place above the choice of an endpoint or below it.
pub(super) type CallLayer = Arc<dyn Fn(CallService) -> CallService + Send + Sync>;

/// Makes one of a layer of any type. An error that is no [`CallError`] becomes the source of one.
pub(super) fn call_layer<L>(layer: L) -> CallLayer
where
    L: Layer<CallService> + Send + Sync + 'static,
    L::Service: Service<Call, Response = Reply> + Clone + Send + Sync + 'static,
    <L::Service as Service<Call>>::Error: Into<BoxError>,
    <L::Service as Service<Call>>::Future: Send + 'static,
{
    Arc::new(move |inner| CallService::new(Typed::new(layer.layer(inner))))
}

/// A service, and the layers around it if there are any. Without layers nothing is boxed.
#[derive(Clone)]
enum Stack<S> {
    Plain(S),
    Layered(CallService),
}

impl<S> Stack<S>
where
    S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    /// The layer added last is the outermost.
    fn new(inner: S, layers: &[CallLayer]) -> Self {
        match layers {
            [] => Self::Plain(inner),
            layers => Self::Layered(layers.iter().fold(CallService::new(inner), |inner, layer| layer(inner))),
        }
    }
}

/// Carries calls to the arms of a directory.
pub(super) struct Carrier {
    choice: Choice,
    /// The choice within the retry, and that within the layers of a user.
    top: CallService,
    has_layers_above: bool,
    has_layers_below: bool,
}

/// Chooses an endpoint for each call, and carries the call there.
#[derive(Clone)]
struct Choice(Arc<Sites>);

struct Sites {
    directory: Arc<Directory>,
    /// One stack for each endpoint, for as long as it is known; offers name theirs by position.
    stacks: Vec<Stack<AtEndpoint>>,
}

/// One endpoint of one arm: writes calls as HTTP requests.
#[derive(Clone)]
struct AtEndpoint(Arc<Site>);

struct Site {
    position: usize,
    arm: Arc<str>,
    endpoint: Endpoint,
    directory: Arc<Directory>,
    exchanger: Exchanger,
}

impl Carrier {
    pub(super) fn new(
        directory: &Arc<Directory>,
        exchanger: &Exchanger,
        (above, below): (&[CallLayer], &[CallLayer]),
    ) -> Self {
        let at = |(position, (arm, endpoint)): (usize, (&Arc<str>, &Endpoint))| {
            AtEndpoint(Arc::new(Site {
                position,
                arm: Arc::clone(arm),
                endpoint: endpoint.clone(),
                directory: Arc::clone(directory),
                exchanger: exchanger.clone(),
            }))
        };
        let stacks = directory.sites().enumerate().map(|site| Stack::new(at(site), below)).collect();
        let choice = Choice(Arc::new(Sites { directory: Arc::clone(directory), stacks }));
        let cards = Arc::clone(directory);
        let retry =
            RetryLayer::new().attempts(1).keys_honoured(move |call| cards.honours_keys(&call.contract));
        let retried = CallService::new(retry.layer(choice.clone()));
        Self {
            choice,
            top: above.iter().fold(retried, |inner, layer| layer(inner)),
            has_layers_above: !above.is_empty(),
            has_layers_below: !below.is_empty(),
        }
    }

    /// # Cancel safety
    /// Dropping the future gives the call up.
    pub(super) fn call(&self, call: Call) -> Calling<'_> {
        let is_plain = call.retry == 0 && !self.has_layers_above;
        if is_plain && !self.has_layers_below {
            // The steps below end at the deadline themselves, and say more about it.
            return Box::pin(async move { self.choice.0.carry(&call).await });
        }
        Box::pin(async move {
            let (deadline, contract) = (call.parts.deadline, call.contract.clone());
            let sending = pin!(self.send(call, is_plain));
            Deadline::run_until(deadline, sending)
                .await
                .unwrap_or_else(|| Err(CallError::new(contract, Failure::of(ErrorKind::DeadlineExceeded))))
        })
    }

    async fn send(&self, call: Call, is_plain: bool) -> Result<Reply, CallError> {
        if is_plain { self.choice.0.carry(&call).await } else { self.top.clone().oneshot(call).await }
    }
}

impl Sites {
    async fn carry(&self, call: &Call) -> Result<Reply, CallError> {
        let route = match self.directory.route(&call.contract) {
            Some(route) => route,
            // What is rare is boxed: calls are moved about less when their futures are small.
            None => Box::pin(self.find(call)).await?,
        };
        match self.along(&route, call).await {
            Err(error) if is_gone(&error) => Box::pin(self.again(&route, call, error)).await,
            other => other,
        }
    }

    /// Sends a call that its arm does not know to where the arm's card names it now.
    async fn again(&self, refused: &Route, call: &Call, error: CallError) -> Result<Reply, CallError> {
        let refreshed = self.directory.refresh_arm(error.arm().unwrap_or_default());
        if Deadline::run_until(call.parts.deadline, refreshed).await.is_none() {
            return Err(error);
        }
        match self.directory.route(&call.contract) {
            Some(now) if !now.is_same(refused) => self.along(&now, call).await,
            Some(_) => Err(error),
            // Nobody offers it any more, and the failure says what is offered.
            None => Err(self.find(call).await.err().unwrap_or(error)),
        }
    }

    async fn find(&self, call: &Call) -> Result<Arc<Route>, CallError> {
        Deadline::run_until(call.parts.deadline, self.directory.find(&call.contract))
            .await
            .unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded).before_execution()))
            .map_err(|failure| CallError::new(call.contract.clone(), failure))
    }

    /// Tries the offers of a route in turn, as long as no connection comes about. Those that the call is to avoid come last.
    async fn along(&self, route: &Route, call: &Call) -> Result<Reply, CallError> {
        let turn = route.next_turn();
        let mut refused: Option<CallError> = None;
        let mut failovers = 0;
        for step in route.steps() {
            let Some(offer) = route.offer(turn, step, &call.avoid) else { continue };
            match self.at(offer, call).await {
                Ok(mut reply) => {
                    reply.served_by.attempts = reply.served_by.attempts.saturating_add(failovers);
                    return Ok(reply);
                }
                Err(error) => {
                    let attempts = error.attempts().saturating_add(failovers);
                    let error = error.with_attempts(attempts);
                    if !is_elsewhere_worth_trying(&error) {
                        return Err(error);
                    }
                    refused = Some(error);
                }
            }
            failovers += 1;
        }
        Err(refused
            .unwrap_or_else(|| CallError::new(call.contract.clone(), Failure::of(ErrorKind::Unavailable))))
    }

    async fn at(&self, offer: &Offer, call: &Call) -> Result<Reply, CallError> {
        match self.stacks.get(offer.site) {
            Some(Stack::Plain(AtEndpoint(site))) => site.exchange(offer, call).await,
            Some(Stack::Layered(service)) => service.clone().oneshot(call.clone()).await,
            None => Err(CallError::new(call.contract.clone(), Failure::of(ErrorKind::Unavailable))),
        }
    }
}

impl Site {
    /// Sends the call to the route that the arm's card names now.
    async fn carry(&self, call: &Call) -> Result<Reply, CallError> {
        let route = self.directory.route(&call.contract);
        match route.as_ref().and_then(|route| route.at_site(self.position)) {
            Some(offer) => self.exchange(offer, call).await,
            None => {
                let failure = Failure::of(ErrorKind::ContractNotOffered).before_execution();
                Err(self.failed(call, failure))
            }
        }
    }

    async fn exchange(&self, offer: &Offer, call: &Call) -> Result<Reply, CallError> {
        let drift = self.directory.drift(&call.contract, offer, call.spec.as_ref());
        let work = call.spec.as_ref().map_or(offer.timeout, |spec| spec.timeout());
        let terms = Terms { deadline: call.parts.deadline, work };
        let target = || offer.target(call, work);
        let sent = self.exchanger.send(offer.request(call), &offer.arm, terms, target).await;
        let response = match sent {
            Ok(response) => response,
            Err(error) => {
                // What a reply would have reported is lost with it.
                let usage = if error.may_have_executed() { Usage::UNMETERED } else { Usage::ZERO };
                let (failure, source) = error.into_parts();
                let error = self.failed(call, failure).with_usage(usage);
                return Err(match source {
                    Some(source) => error.with_source(source),
                    None => error,
                });
            }
        };
        let (output, usage) = answer::read(response, call.reads);
        let output = output.and_then(|output| match drift.and_then(|_| (call.reads)(&output).err()) {
            // Schemas that differ may or may not matter to this output.
            Some(error) => Err(answer::unreadable(&error)),
            None => Ok(output),
        });
        match output {
            Ok(output) => {
                let served_by = ServedBy::new(Arc::clone(&self.arm), self.endpoint.shared());
                Ok(Reply::new(output, served_by).with_usage(usage))
            }
            Err(mut failure) => {
                if let Some(drift) = drift {
                    drift.explain(&mut failure);
                }
                Err(self.failed(call, failure).with_usage(usage))
            }
        }
    }

    fn failed(&self, call: &Call, failure: Failure) -> CallError {
        CallError::new(call.contract.clone(), failure)
            .with_arm(&*self.arm)
            .with_endpoint(self.endpoint.as_str())
    }
}

/// Whether an arm does not know a route that its card names.
fn is_gone(error: &CallError) -> bool {
    matches!(error.kind(), ErrorKind::ContractNotOffered | ErrorKind::NotFound) && !error.may_have_executed()
}

fn is_elsewhere_worth_trying(error: &CallError) -> bool {
    error.kind() == ErrorKind::Unreachable && !error.may_have_executed()
}

type Carrying = Calling<'static>;

/// Always ready: what has to be waited for is part of the call, where it has a time limit.
impl Service<Call> for Choice {
    type Response = Reply;
    type Error = CallError;
    type Future = Carrying;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Carrying {
        let sites = Arc::clone(&self.0);
        Box::pin(async move { sites.carry(&call).await })
    }
}

/// Always ready, as [`Choice`] is.
impl Service<Call> for AtEndpoint {
    type Response = Reply;
    type Error = CallError;
    type Future = Carrying;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Carrying {
        let site = Arc::clone(&self.0);
        Box::pin(async move { site.carry(&call).await })
    }
}

/// A layer's service whose errors are made [`CallError`]s.
struct Typed<S> {
    service: S,
    /// Why it cannot be called: returned by the next call, which has a contract to name.
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
    type Future = Carrying;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.service.poll_ready(cx).map(|ready| {
            self.unready = ready.err().map(Into::into);
            Ok(())
        })
    }

    fn call(&mut self, call: Call) -> Carrying {
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
        f.debug_struct("Carrier").field("has_layers_above", &self.has_layers_above).finish_non_exhaustive()
    }
}
