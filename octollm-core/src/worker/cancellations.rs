//! The cancellations of jobs, which callers publish.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::{
    invalid,
    job::{self, Cancelled, action},
    replies::subscribed_again,
};
use crate::{
    bus::{BusError, DurableBus, Overflow, Signal},
    contract::ContractRef,
    error::ConfigError,
    event::{Event, Pattern},
};

/// Cancellations that a worker has not read yet.
const UNREAD: usize = 1024;
/// Cancellations of jobs that this worker has not received.
const CANCELLED: usize = 4096;

/// The jobs that run here, and those that were cancelled before they were received, by the ids of their events.
#[derive(Default)]
pub(super) struct Cancellations(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Each with its number, since a job can be received again before its last attempt here is dropped.
    running: HashMap<String, (u64, CancellationToken)>,
    begun: u64,
    /// Each with whether the job had an expiry.
    cancelled: HashMap<String, bool>,
    /// The oldest is dropped first.
    order: VecDeque<String>,
}

/// A job that runs, until it is dropped.
pub(super) struct Running<'a> {
    all: &'a Cancellations,
    id: String,
    number: u64,
    pub(super) token: CancellationToken,
}

impl Cancellations {
    /// Begins a job, unless it was cancelled.
    pub(super) fn begin(&self, job: &Event) -> Option<Running<'_>> {
        let (mut known, id) = (self.known(), job.id().to_owned());
        // A job that no longer has its expiry is a dead letter that was replayed.
        if known.cancelled.get(&id).is_some_and(|had_expiry| !had_expiry || job.expires_at().is_some()) {
            return None;
        }
        let token = CancellationToken::new();
        known.begun += 1;
        let number = known.begun;
        known.running.insert(id.clone(), (number, token.clone()));
        drop(known);
        Some(Running { all: self, id, number, token })
    }

    fn cancel(&self, id: &str, has_expiry: bool) {
        let mut known = self.known();
        if let Some((_, token)) = known.running.get(id) {
            return token.cancel();
        }
        if known.cancelled.insert(id.to_owned(), has_expiry).is_none() {
            known.order.push_back(id.to_owned());
        }
        if known.order.len() > CANCELLED
            && let Some(oldest) = known.order.pop_front()
        {
            known.cancelled.remove(&oldest);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut known = self.all.known();
        if known.running.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            known.running.remove(&self.id);
        }
    }
}

/// Subscribes to the cancellations of jobs. Returns the task that applies them.
pub(super) async fn follow(
    contracts: &[ContractRef],
    bus: &Arc<dyn DurableBus>,
    jobs: &Arc<Cancellations>,
) -> Result<impl Future<Output = ()> + Send + use<>, BusError> {
    let mut pattern: Option<Pattern> = None;
    for contract in contracts {
        let next = job::channel(contract, action::CANCELLED).map_err(invalid)?.into();
        pattern = Some(match pattern {
            Some(pattern) => pattern.or(next),
            None => next,
        });
    }
    let Some(pattern) = pattern else { return Err(ConfigError::new("arm", "was not called").into()) };
    let overflow = Overflow::DropOldest(UNREAD);
    let bus = bus.clone();
    let (mut events, jobs) = (bus.subscribe(pattern.clone(), overflow).await?, jobs.clone());
    Ok(async move {
        loop {
            // A lost cancellation has its job run until its deadline.
            while let Some(signal) = events.next().await {
                if let Signal::Event(cancelled) = signal
                    && let Ok(Cancelled { event }) = cancelled.data_as()
                {
                    jobs.cancel(&event, cancelled.expires_at().is_some());
                }
            }
            tracing::warn!(reason = ?events.ended(), "a worker receives no cancellations at the moment");
            events = subscribed_again(&*bus, &pattern, overflow).await;
        }
    })
}
