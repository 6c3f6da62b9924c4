//! The job of a call: how it is published, and cancelled.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

use super::{
    authority::AuthorizeJob,
    invalid,
    job::{self, Cancelled, Job, action},
    replies::Waiting,
};
use crate::{
    bus::{BusError, DurableBus},
    card::ArmCard,
    clock,
    contract::{ContractCard, ContractRef, Keys, Spec},
    error::{CallError, ErrorKind, Failure},
    event::{Channel, Event},
    transport::{Call, Transport},
};

/// Waits before a job is published again while the bus is not available.
const MIN_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(5);

/// What the clones of one queue share.
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) bus: Arc<dyn DurableBus>,
    pub(super) offers: HashMap<ContractRef, Offer>,
    pub(super) cards: Vec<ArmCard>,
    pub(super) otherwise: Arc<dyn Transport>,
    pub(super) authorizer: Option<Arc<dyn AuthorizeJob>>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) cancellations: Option<mpsc::Sender<Event>>,
    /// Ended with the last clone.
    pub(super) _tasks: JoinSet<()>,
}

/// A contract that is queued.
pub(super) struct Offer {
    pub(super) arm: Arc<str>,
    /// Position among the cards.
    pub(super) card: usize,
    pub(super) scope: String,
    pub(super) endpoint: Arc<str>,
    pub(super) queued: Channel,
    pub(super) cancelled: Channel,
}

impl Offer {
    pub(super) fn new(
        arm: &str,
        card: usize,
        contract_card: &ContractCard,
        contract: &ContractRef,
    ) -> Result<Self, BusError> {
        let queued = job::channel(contract, action::QUEUED).map_err(invalid)?;
        let cancelled = job::channel(contract, action::CANCELLED).map_err(invalid)?;
        let (scope, endpoint) = (contract_card.scope.clone(), queued.as_str().into());
        Ok(Self { arm: arm.into(), card, scope, endpoint, queued, cancelled })
    }
}

impl Inner {
    /// Publishes a job. While the bus is not available, a job that may be published twice is published again.
    pub(super) async fn publish(
        &self,
        offer: &Offer,
        call: &Call,
        input: &serde_json::Value,
        id: &str,
        cancel: &mut Cancel<'_>,
    ) -> Result<(), CallError> {
        let is_safe = call.is_idempotent()
            || self.cards[offer.card].contract(&call.contract).is_some_and(|card| card.keys == Keys::Shared);
        let (mut repeated, mut wait) = (call.parts.repeated, MIN_WAIT);
        loop {
            let failed = |failure| CallError::new(call.contract.clone(), failure);
            let event = self.job(offer, call, input, id, repeated).map_err(failed)?;
            cancel.jobs.push((event.id().to_owned(), event.expires_at()));
            match self.bus.publish(event).await {
                Ok(()) => return Ok(()),
                Err(BusError::Unavailable { .. }) if is_safe => {
                    sleep(wait).await;
                    (repeated, wait) = (true, (2 * wait).min(MAX_WAIT));
                }
                Err(error) => {
                    let failure = failure(&error);
                    if !failure.may_have_executed {
                        cancel.jobs.pop();
                    }
                    return Err(failed(failure).with_source(error));
                }
            }
        }
    }

    /// The event of a job.
    fn job(
        &self,
        offer: &Offer,
        call: &Call,
        input: &serde_json::Value,
        id: &str,
        repeated: bool,
    ) -> Result<Event, Failure> {
        let parts = &call.parts;
        let scope = call.spec.as_ref().and_then(Spec::scope).unwrap_or(&offer.scope);
        let token = match &self.authorizer {
            Some(tokens) => tokens.authorize(&parts.caller, Some(&[scope]), &self.cards[offer.card])?,
            None => None,
        };
        let job = Job {
            input: input.clone(),
            reply_to: Some(self.name.clone()),
            request_id: Some(parts.request_id.clone()),
            task_id: parts.task_id.clone(),
            budget: Some(parts.budget).filter(|budget| !budget.is_unlimited()),
            key: parts.key.as_ref().map(|key| key.as_str().to_owned()),
            repeated,
            updates: call.updates.is_some(),
            token,
        };
        let internal = |error: String| Failure::new(ErrorKind::Internal, error).before_execution();
        let data = serde_json::to_value(job).map_err(|error| internal(error.to_string()))?;
        let event = Event::on(offer.queued.clone(), &*self.name, data);
        let mut event = event.map_err(|error| internal(error.to_string()))?;
        event = event.with_subject(id).with_correlation_id(parts.correlation_id.as_str());
        if let Some(trace) = &parts.trace {
            event = event.with_traceparent(trace.traceparent());
        }
        let end = parts.deadline.and_then(|deadline| clock::now().checked_add(deadline.remaining()).ok());
        Ok(match end {
            Some(end) => event.with_expires_at(end),
            None => event,
        })
    }
}

/// Cancels the jobs of a call that is dropped before its end.
pub(super) struct Cancel<'a> {
    pub(super) inner: &'a Inner,
    pub(super) offer: &'a Offer,
    /// Ids and expiries of the events that were published.
    pub(super) jobs: Vec<(String, Option<Timestamp>)>,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        let Some(cancellations) = &self.inner.cancellations else { return };
        for (event, expires_at) in self.jobs.drain(..) {
            // Its end is the deadline, by which the worker has a dead letter of it.
            if expires_at.is_some_and(|end| end <= clock::now()) {
                continue;
            }
            let data = serde_json::to_value(Cancelled { event }).unwrap_or_default();
            let event = Event::on(self.offer.cancelled.clone(), &*self.inner.name, data);
            let event = event.map(|event| match expires_at {
                Some(end) => event.with_expires_at(end),
                None => event,
            });
            if event.is_ok_and(|event| cancellations.try_send(event).is_err()) {
                tracing::warn!("a cancellation is not published: the job runs until its deadline");
            }
        }
    }
}

/// The failure of a job that the bus did not take.
fn failure(error: &BusError) -> Failure {
    let before = |kind: ErrorKind| Failure::new(kind, error.to_string()).before_execution();
    match error {
        BusError::TooLarge { .. } => before(ErrorKind::PayloadTooLarge),
        BusError::Full { .. } => before(ErrorKind::Overloaded),
        BusError::Denied { .. } => before(ErrorKind::InsufficientScope),
        // The broker may have taken it.
        BusError::Unavailable { .. } => Failure {
            may_have_executed: true,
            ..Failure::new(ErrorKind::Unavailable, "the bus is not available")
        },
        _ => before(ErrorKind::Unavailable),
    }
}
