//! Sending a call to an endpoint: the layers of the user, the HTTP request and its answer.

mod chunks;

use std::{sync::Arc, time::Duration};

use http::header::ACCEPT;
use octollm_core::{
    budget::Usage,
    error::{CallError, ErrorKind, Failure},
    explain::CallEvent,
    resilience::{Calls, Protocol, Refusal},
    transport::{Call, Reply},
    update::UpdateSink,
};
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};

use super::{
    authority::Authority,
    directory::Directory,
    exchange::{read_answer, unreadable},
    metrics::SendSpan,
    offers::Offer,
    pool::{ExchangeError, ExchangeLimits, ServerHints},
    site::{CallLayer, CallService, Site},
};

/// Sends calls to endpoints.
pub(super) struct Sender {
    directory: Arc<Directory>,
    authority: Authority,
    /// Layers of a user around each endpoint, from the innermost. Without layers nothing is boxed.
    layers: Vec<CallLayer>,
}

impl Sender {
    pub(super) fn new(directory: Arc<Directory>, authority: Authority, layers: Vec<CallLayer>) -> Self {
        Self { directory, authority, layers }
    }

    pub(super) fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    pub(super) fn has_layers(&self) -> bool {
        !self.layers.is_empty()
    }

    /// Sends a call to the path of an offer, through the layers of the user.
    pub(super) async fn send(&self, offer: &Offer, call: &Call, now: Instant) -> Result<Reply, CallError> {
        if !self.has_layers() {
            return exchange(&self.directory, &self.authority, offer, call, now).await;
        }
        let service = offer.site.layered.get_or_init(|| self.layered(&offer.site));
        service.clone().oneshot(call.clone()).await
    }

    /// The layers around an endpoint. Within them a call is sent to the path that the arm's card names then.
    fn layered(&self, site: &Arc<Site>) -> CallService {
        // The directory has the site, and the site this service.
        let (directory, site) = (Arc::downgrade(&self.directory), Arc::downgrade(site));
        let authority = self.authority.clone();
        let inner = service_fn(move |call: Call| {
            let (directory, site, authority) = (directory.upgrade(), site.upgrade(), authority.clone());
            async move {
                let (Some(directory), Some(site)) = (directory, site) else {
                    return Err(CallError::new(call.contract, Failure::of(ErrorKind::Unavailable)));
                };
                let offers = directory.offers(&call.contract);
                match offers.as_ref().and_then(|offers| offers.at_site(&site)) {
                    Some(offer) => exchange(&directory, &authority, offer, &call, Instant::now()).await,
                    None => {
                        let failure = Failure::of(ErrorKind::ContractNotOffered).before_execution();
                        Err(failed(&site, &call, failure))
                    }
                }
            }
        });
        layered(CallService::new(inner), &self.layers)
    }
}

/// Writes a call as an HTTP request, and reads its answer.
async fn exchange(
    directory: &Directory,
    authority: &Authority,
    offer: &Offer,
    call: &Call,
    now: Instant,
) -> Result<Reply, CallError> {
    let site = &*offer.site;
    let drift = directory.drift(&call.contract, offer, call.spec.as_ref());
    let work = call.spec.as_ref().map_or(offer.timeout, |spec| spec.timeout());
    let speaks_http2 = offer.is_octollm();
    let mut hints = ServerHints { address: site.url.address(), speaks_http2, has_issued_token: false };
    let target = || offer.target(call, work);
    let mut request = offer.request(call, now);
    let scope = [&*offer.scope];
    let scopes = if offer.scope.is_empty() { &[][..] } else { &scope };
    if !site.url.has_authorization() {
        let authorized =
            authority.add(request.headers_mut(), &call.parts.caller, Some(scopes), &offer.callee);
        hints.has_issued_token =
            authorized.map_err(|failure| failed(site, call, failure).with_attempts(0))?;
    }
    if let Some(record) = &call.explain {
        let has_token = hints.has_issued_token;
        record.add(CallEvent::Sent {
            arm: site.arm.clone(),
            endpoint: site.url.shared(),
            attempt: call.parts.attempt,
            scopes: scopes.iter().filter(|_| has_token).map(|scope| (*scope).to_owned()).collect(),
        });
    }
    let limits = ExchangeLimits { deadline: call.parts.deadline, work, hints, begun: Some(now) };
    let place = (&*site.arm, site.url.as_str());
    let span = SendSpan::begin(&mut request, place, Some(&call.contract), &call.parts);
    let sent = match call.updates.is_read().then(|| offer.accepts_events()).flatten() {
        // Boxed, since the future of every call is as large as its largest part.
        Some(accept) => {
            request.headers_mut().insert(ACCEPT, accept);
            Box::pin(chunks::send(&directory.exchanger, request, (call, &site.arm), limits, target)).await
        }
        None => directory.exchanger.send(request, &site.arm, limits, target).await,
    };
    span.end(&sent);
    let response = match sent {
        Ok(response) => response,
        Err(error) => {
            // The usage is lost with the reply.
            let ExchangeError { failure, cause } = error;
            let usage = if failure.may_have_executed { Usage::UNMETERED } else { Usage::ZERO };
            let error = failed(site, call, *failure).with_usage(usage);
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
        Ok(output) => Ok(Reply::new(output, Arc::clone(&site.arm), site.url.shared()).with_usage(usage)),
        Err(mut failure) => {
            if let Some(drift) = drift {
                drift.explain(&mut failure);
            }
            Err(failed(site, call, failure).with_usage(usage))
        }
    }
}

/// The error of a call that its breaker rejects.
pub(super) fn circuit_open(site: &Site, call: &Call, wait: Duration) -> CallError {
    Calls
        .refused(call, Refusal::CircuitOpen { retry_after: wait })
        .with_arm(&*site.arm)
        .with_endpoint(site.url.as_str())
        .with_attempts(0)
}

fn failed(site: &Site, call: &Call, failure: Failure) -> CallError {
    CallError::new(call.contract.clone(), call.failed(failure))
        .with_arm(&*site.arm)
        .with_endpoint(site.url.as_str())
}

/// Adds layers around a service. The last one is the outermost.
pub(super) fn layered(inner: CallService, layers: &[CallLayer]) -> CallService {
    layers.iter().fold(inner, |inner, layer| layer(inner))
}
