//! The path of a call: layers, the choice of an endpoint, layers of that endpoint, and HTTP.

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
    transport::{Call, Reply},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

use super::{
    authority::Authority,
    directory::Directory,
    exchange::{Exchanger, read_answer, unreadable},
    metrics::{SendSpan, unplaced},
    offers::{Endpoint, Offer, Offers},
    pool::{ExchangeError, ExchangeLimits, ServerHints},
};

/// The future of a call.
pub(super) type Calling<'a> = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send + 'a>>;

/// A service of calls, within layers of the user.
pub(super) type CallService = BoxCloneSyncService<Call, Reply, CallError>;

/// A layer of a user, above or below the choice of an endpoint.
pub(super) type CallLayer = Arc<dyn Fn(CallService) -> CallService + Send + Sync>;

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

/// Carries calls to the arms of a directory.
pub(super) struct Carrier {
    sites: Arc<Sites>,
    /// The choice of an endpoint within the retry, and that within the layers of a user.
    top: CallService,
    has_layers_above: bool,
    has_layers_below: bool,
}

/// All endpoints: one is chosen for each call, which is carried there.
struct Sites {
    directory: Arc<Directory>,
    /// One stack for each endpoint; offers name theirs by position.
    stacks: Vec<Stack>,
}

/// An endpoint, and the layers of a user around it if there are any. Without layers nothing is boxed.
enum Stack {
    Plain(Arc<Site>),
    Layered(CallService),
}

/// One endpoint of one arm: writes calls as HTTP requests.
struct Site {
    position: usize,
    arm: Arc<str>,
    endpoint: Endpoint,
    directory: Arc<Directory>,
    exchanger: Exchanger,
    authority: Authority,
}

impl Carrier {
    pub(super) fn new(
        directory: &Arc<Directory>,
        exchanger: &Exchanger,
        authority: &Authority,
        (above, below): (&[CallLayer], &[CallLayer]),
    ) -> Self {
        let stack = |(position, (arm, endpoint)): (usize, (&Arc<str>, &Endpoint))| {
            let site = Arc::new(Site {
                position,
                arm: Arc::clone(arm),
                endpoint: endpoint.clone(),
                directory: Arc::clone(directory),
                exchanger: exchanger.clone(),
                authority: authority.clone(),
            });
            match below {
                [] => Stack::Plain(site),
                layers => Stack::Layered({
                    let inner =
                        service_of(site, |site: Arc<Site>, call| async move { site.carry(&call).await });
                    layered(CallService::new(inner), layers)
                }),
            }
        };
        let stacks = directory.sites().enumerate().map(stack).collect();
        let sites = Arc::new(Sites { directory: Arc::clone(directory), stacks });
        let cards = Arc::clone(directory);
        let retry = RetryLayer::new().retries(0).keys_honoured(move |call| cards.keys(&call.contract));
        let choice =
            service_of(Arc::clone(&sites), |sites: Arc<Sites>, call| async move { sites.carry(&call).await });
        let retried = CallService::new(retry.layer(choice));
        Self {
            sites,
            top: layered(retried, above),
            has_layers_above: !above.is_empty(),
            has_layers_below: !below.is_empty(),
        }
    }

    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub(super) fn call(&self, call: Call) -> Calling<'_> {
        let is_plain = call.retry == 0 && !self.has_layers_above;
        if is_plain && !self.has_layers_below {
            // The steps below end at the deadline themselves, with errors that state more.
            return Box::pin(async move { self.sites.carry(&call).await });
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
        if is_plain { self.sites.carry(&call).await } else { self.top.clone().oneshot(call).await }
    }
}

/// The layer added last is the outermost.
fn layered(inner: CallService, layers: &[CallLayer]) -> CallService {
    layers.iter().fold(inner, |inner, layer| layer(inner))
}

/// Shared state as a service. It is always ready: what has to be waited for is part of the call, where it has a time limit.
fn service_of<T, F>(
    shared: Arc<T>,
    carry: impl Fn(Arc<T>, Call) -> F + Clone + Send + Sync + 'static,
) -> impl Service<Call, Response = Reply, Error = CallError, Future = F> + Clone + Send + Sync + 'static
where
    T: Send + Sync + 'static,
    F: Future<Output = Result<Reply, CallError>> + Send + 'static,
{
    service_fn(move |call| carry(Arc::clone(&shared), call))
}

impl Sites {
    async fn carry(&self, call: &Call) -> Result<Reply, CallError> {
        let offers = match self.directory.offers(&call.contract) {
            Some(offers) => offers,
            // Boxed, since small futures are moved at less cost.
            None => Box::pin(self.find(call)).await?,
        };
        let mut gone = Vec::new();
        let first = self.along(&offers, call, &mut gone).await;
        if gone.is_empty() {
            return first;
        }
        match first {
            Err(error) if is_elsewhere_worth_trying(&error) => {
                Box::pin(self.again(&offers, call, &gone, error)).await
            }
            tried => {
                self.directory.refresh_later();
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
        gone: &[usize],
        error: CallError,
    ) -> Result<Reply, CallError> {
        let refreshed = self.directory.refresh_sites(gone);
        if Deadline::run_until(call.parts.deadline, refreshed).await.is_none() {
            return Err(error);
        }
        match self.directory.offers(&call.contract) {
            Some(now) if !now.is_same(refused) => self.along(&now, call, &mut Vec::new()).await,
            Some(_) => Err(error),
            // No arm offers the contract any more. The failure lists what is offered.
            None => Err(self.find(call).await.err().unwrap_or(error)),
        }
    }

    async fn find(&self, call: &Call) -> Result<Arc<Offers>, CallError> {
        Deadline::run_until(call.parts.deadline, self.directory.find(&call.contract))
            .await
            .unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded).before_execution()))
            .map_err(|failure| CallError::new(call.contract.clone(), failure))
            .inspect_err(unplaced)
    }

    /// Tries the offers in turn until one takes the call. Those that the call avoids come last. Adds to `gone` the endpoints that do not
    /// know the call. If no offer takes it, and one could not be connected, the error is of that one, since a retry can help.
    async fn along(&self, offers: &Offers, call: &Call, gone: &mut Vec<usize>) -> Result<Reply, CallError> {
        let turn = offers.next_turn();
        let mut refused: Option<CallError> = None;
        let (mut attempts, mut used) = (0_u32, Usage::ZERO);
        for step in offers.steps() {
            let Some(offer) = offers.offer(turn, step, call) else { continue };
            let metered = offer.meter.begin();
            let answer = self.at(offer, call).await;
            metered.end(&answer);
            match answer {
                Ok(mut reply) => {
                    reply.attempts = reply.attempts.saturating_add(attempts);
                    reply.usage = used.plus(reply.usage);
                    return Ok(reply);
                }
                Err(error) => {
                    attempts = attempts.saturating_add(error.attempts());
                    used = used.plus(error.usage());
                    if !is_elsewhere_worth_trying(&error) {
                        return Err(error.with_attempts(attempts).with_usage(used));
                    }
                    let is_gone = is_gone(&error);
                    if is_gone {
                        gone.push(offer.site);
                    }
                    refused = Some(match refused {
                        Some(unreachable) if is_gone && !self::is_gone(&unreachable) => unreachable,
                        _ => error,
                    });
                }
            }
        }
        let none = || CallError::new(call.contract.clone(), Failure::of(ErrorKind::Unavailable));
        Err(refused.map_or_else(none, |error| error.with_attempts(attempts).with_usage(used)))
    }

    async fn at(&self, offer: &Offer, call: &Call) -> Result<Reply, CallError> {
        match self.stacks.get(offer.site) {
            Some(Stack::Plain(site)) => site.exchange(offer, call).await,
            Some(Stack::Layered(service)) => service.clone().oneshot(call.clone()).await,
            None => Err(CallError::new(call.contract.clone(), Failure::of(ErrorKind::Unavailable))),
        }
    }
}

impl Site {
    /// Sends the call to the path that the arm's card names now.
    async fn carry(&self, call: &Call) -> Result<Reply, CallError> {
        let offers = self.directory.offers(&call.contract);
        match offers.as_ref().and_then(|offers| offers.at_site(self.position)) {
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
        let hints = ServerHints { speaks_http2: offer.callee.instance.is_some(), ..ServerHints::default() };
        let limits = ExchangeLimits { deadline: call.parts.deadline, work, hints };
        let target = || offer.target(call, work);
        let mut request = offer.request(call);
        let scope = [&*offer.scope];
        let scopes = if offer.scope.is_empty() { &[][..] } else { &scope };
        if !self.endpoint.has_authorization() {
            let authorized =
                self.authority.add(request.headers_mut(), &call.parts.caller, Some(scopes), &offer.callee);
            authorized.map_err(|failure| self.failed(call, failure))?;
        }
        let place = (&*self.arm, self.endpoint.as_str());
        let span = SendSpan::begin(&mut request, place, Some(&call.contract), &call.parts);
        let sent = self.exchanger.send(request, &offer.arm, limits, target).await;
        span.end(&sent);
        let response = match sent {
            Ok(response) => response,
            Err(error) => {
                // The usage is lost with the reply.
                let ExchangeError { failure, cause } = error;
                let usage = if failure.may_have_executed { Usage::UNMETERED } else { Usage::ZERO };
                let error = self.failed(call, *failure).with_usage(usage);
                return Err(match cause {
                    Some(cause) => error.with_source(cause),
                    None => error,
                });
            }
        };
        let (output, usage) = read_answer(response, call.reads);
        let output = output.and_then(|output| match drift.and_then(|_| (call.reads)(&output).err()) {
            // A difference of schemas may or may not concern this output.
            Some(error) => Err(unreadable(&error)),
            None => Ok(output),
        });
        match output {
            Ok(output) => {
                Ok(Reply::new(output, Arc::clone(&self.arm), self.endpoint.shared()).with_usage(usage))
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
        f.debug_struct("Carrier").field("has_layers_above", &self.has_layers_above).finish_non_exhaustive()
    }
}
