//! The record of one call: where it was sent, what failed, and for what it waited.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{CallError, ErrorKind};

/// What happened to one call on its way, in order: see [`CallFuture::explained`](crate::context::CallFuture::explained).
///
/// Those that carry the call write to it: it is [`Call::explain`](crate::transport::Call::explain).
#[derive(Debug)]
pub struct CallRecord {
    begun: Instant,
    /// Each with the time since the call began.
    steps: Mutex<Vec<(Duration, CallEvent)>>,
}

/// What happened to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallEvent {
    /// It was sent to an endpoint.
    Sent {
        /// The arm.
        arm: Arc<str>,
        /// The endpoint.
        endpoint: Arc<str>,
        /// The number of the attempt, from 1.
        attempt: u32,
        /// The scopes of the token that was sent; empty where there was none.
        scopes: Vec<String>,
    },
    /// An endpoint was passed over, since its circuit breaker was open.
    CircuitOpen {
        /// The endpoint.
        endpoint: Arc<str>,
        /// How long it stays open.
        retry_after: Duration,
    },
    /// An attempt failed.
    Failed {
        /// The kind of the failure.
        kind: ErrorKind,
        /// Its endpoint, once one was chosen.
        endpoint: Option<Arc<str>>,
    },
    /// A further attempt follows.
    Retried {
        /// How long it waits.
        after: Duration,
        /// Further attempts that the retry budget has left; `None` where there is no budget.
        budget_left: Option<u32>,
    },
    /// A further attempt was refused by the retry budget.
    BudgetSpent,
    /// It was sent a second time, since the answer is late.
    Hedged,
    /// The answer was recorded by an earlier run of the task. Nothing was sent.
    Replayed,
}

impl CallRecord {
    /// The record of a call that begins now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), steps: Mutex::default() })
    }

    /// Adds a step.
    pub fn add(&self, what: CallEvent) {
        let at = self.begun.elapsed();
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push((at, what));
    }

    /// Adds how the call has failed, where that is not known of the last time that it was sent: one attempt is its only one, was
    /// cancelled, or has returned what cannot be read.
    pub(crate) fn ended(&self, error: &CallError) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, CallEvent::Sent { .. })) = steps.last() {
            let endpoint = error.endpoint().map(Into::into);
            steps.push((self.begun.elapsed(), CallEvent::Failed { kind: error.kind(), endpoint }));
        }
    }

    /// The steps until now, each with the time since the call began.
    pub fn steps(&self) -> Vec<(Duration, CallEvent)> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The endpoints to which the call was sent, the last one last.
    pub(crate) fn endpoints(&self) -> Vec<Arc<str>> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = steps.iter().filter_map(|(_, what)| match what {
            CallEvent::Sent { endpoint, .. } => Some(endpoint.clone()),
            _ => None,
        });
        sent.collect()
    }
}
