//! The record of every call.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use super::fault::Fault;
use crate::{
    contract::{ContractRef, TaskContract},
    error::Failure,
    id::{RequestId, TaskId},
    transport::{Call, StepKey},
};

/// Calls of a mesh, in the order in which they were made: see [`Mesh::calls`](super::Mesh::calls).
#[derive(Debug, Clone, Default)]
pub struct Calls(Vec<RecordedCall>);

impl Calls {
    /// Only those to one arm.
    pub fn to(self, arm: &str) -> Self {
        self.only(|call| call.arm == arm)
    }

    /// Only those that one arm made; the brain is `orchestrator`.
    pub fn from(self, arm: &str) -> Self {
        self.only(|call| call.from.as_deref() == Some(arm))
    }

    /// Only those of one contract.
    pub fn of<C: TaskContract>(self) -> Self {
        let contract = C::SPEC.reference();
        self.only(|call| call.contract == contract)
    }

    /// Only those of one piece of work.
    pub fn correlated(self, id: &RequestId) -> Self {
        self.only(|call| call.correlation_id == *id)
    }

    /// Only those that failed.
    pub fn failed(self) -> Self {
        self.only(|call| call.failure().is_some())
    }

    /// Only those that meet a condition.
    pub fn only(mut self, condition: impl FnMut(&RecordedCall) -> bool) -> Self {
        self.0.retain(condition);
        self
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The first.
    pub fn first(&self) -> Option<&RecordedCall> {
        self.0.first()
    }

    /// The last.
    pub fn last(&self) -> Option<&RecordedCall> {
        self.0.last()
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, RecordedCall> {
        self.0.iter()
    }
}

impl IntoIterator for Calls {
    type Item = RecordedCall;
    type IntoIter = std::vec::IntoIter<RecordedCall>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Calls {
    type Item = &'a RecordedCall;
    type IntoIter = std::slice::Iter<'a, RecordedCall>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One call, as it was made and as it ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RecordedCall {
    /// The how-manieth call of the mesh it is, from 0.
    pub order: usize,
    /// The arm that was called.
    pub arm: String,
    /// The arm that called, `orchestrator` for the brain; `None` for the test itself.
    pub from: Option<String>,
    /// What was asked.
    pub contract: ContractRef,
    /// Which call of its maker it was.
    pub step: StepKey,
    /// 1 for the first try.
    pub attempt: u32,
    /// Names this call alone.
    pub request_id: RequestId,
    /// Names the piece of work that it belongs to.
    pub correlation_id: RequestId,
    /// The task that it belongs to.
    pub task_id: Option<TaskId>,
    /// When it was made, since the mesh was started.
    pub at: Duration,
    /// How long it took; `None` while it runs.
    pub duration: Option<Duration>,
    /// What was made to go wrong with it.
    pub fault: Option<Fault>,
    /// How it ended.
    pub ending: Ending,
    input: Bytes,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Ending {
    /// It has not: it still runs.
    Running,
    /// It was answered, with this JSON.
    Output(Bytes),
    /// It failed.
    Failure(Failure),
    /// The caller gave it up.
    GivenUp,
}

impl RecordedCall {
    /// What it was called with; null where that is no JSON.
    pub fn input(&self) -> Value {
        serde_json::from_slice(&self.input).unwrap_or_default()
    }

    /// What was answered, if it was.
    pub fn output(&self) -> Option<Value> {
        match &self.ending {
            Ending::Output(output) => serde_json::from_slice(output).ok(),
            _ => None,
        }
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.ending {
            Ending::Failure(failure) => Some(failure),
            _ => None,
        }
    }
}

/// Writes the record.
#[derive(Debug)]
pub(super) struct Recorder {
    started: Instant,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    calls: BTreeMap<usize, RecordedCall>,
    next: usize,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), record: Mutex::default() }
    }

    pub(super) fn calls(&self) -> Calls {
        Calls(self.record().calls.values().cloned().collect())
    }

    /// Takes the calls that have ended out of the record.
    pub(super) fn forget(&self) {
        self.record().calls.retain(|_, call| call.ending == Ending::Running);
    }

    /// A call begins. It was given up if the recording is dropped before it ends.
    pub(super) fn begin(self: &Arc<Self>, call: &Call, arm: &str, fault: Option<Fault>) -> Recording {
        let mut record = self.record();
        let order = record.next;
        record.next += 1;
        let recorded = RecordedCall {
            order,
            arm: arm.to_owned(),
            from: call.from.as_deref().map(str::to_owned),
            contract: call.contract.clone(),
            step: call.step.clone(),
            attempt: call.parts.attempt,
            request_id: call.parts.request_id.clone(),
            correlation_id: call.parts.correlation_id.clone(),
            task_id: call.parts.task_id.clone(),
            at: self.started.elapsed(),
            duration: None,
            fault,
            ending: Ending::Running,
            input: call.input.clone(),
        };
        record.calls.insert(order, recorded);
        Recording { recorder: self.clone(), order, begun: Instant::now() }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that runs.
pub(super) struct Recording {
    recorder: Arc<Recorder>,
    order: usize,
    begun: Instant,
}

impl Recording {
    pub(super) fn end(&self, ending: Ending) {
        if let Some(call) = self.recorder.record().calls.get_mut(&self.order)
            && call.ending == Ending::Running
        {
            call.ending = ending;
            call.duration = Some(self.begun.elapsed());
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.end(Ending::GivenUp);
    }
}
