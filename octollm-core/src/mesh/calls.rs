//! The record of the calls of a mesh.

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
    contract::ContractRef,
    error::Failure,
    id::{RequestId, TaskId},
    transport::{Call, StepKey},
};

/// A call of a mesh: see [`Mesh::calls`](super::Mesh::calls).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RecordedCall {
    /// Position among the calls of the mesh, from 0.
    pub order: usize,
    /// Arm that was called.
    pub arm: String,
    /// Arm that made the call, `orchestrator` for the brain. `None` for the test itself.
    pub from: Option<String>,
    /// Contract of the call.
    pub contract: ContractRef,
    /// Step of the call.
    pub step: StepKey,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Request id of the call.
    pub request_id: RequestId,
    /// Correlation id of the call.
    pub correlation_id: RequestId,
    /// Task that the call belongs to.
    pub task_id: Option<TaskId>,
    /// Time of the call since the start of the mesh.
    pub at: Duration,
    /// Duration of the call. `None` while it runs.
    pub duration: Option<Duration>,
    /// Fault that was injected.
    pub fault: Option<Fault>,
    ending: Ending,
    input: Bytes,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ending {
    Running,
    Output(Bytes),
    Failure(Failure),
    /// Its caller dropped it.
    Dropped,
}

impl RecordedCall {
    /// The input, or null where it is not JSON.
    pub fn input(&self) -> Value {
        serde_json::from_slice(&self.input).unwrap_or_default()
    }

    /// The output of a call that succeeded.
    pub fn output(&self) -> Option<Value> {
        match &self.ending {
            Ending::Output(output) => serde_json::from_slice(output).ok(),
            _ => None,
        }
    }

    /// Whether the call still runs.
    pub fn is_running(&self) -> bool {
        self.ending == Ending::Running
    }

    /// Whether the caller dropped the call before it ended.
    pub fn is_dropped(&self) -> bool {
        self.ending == Ending::Dropped
    }

    /// The failure of a call that failed.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.ending {
            Ending::Failure(failure) => Some(failure),
            _ => None,
        }
    }
}

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

    /// The calls that meet a condition.
    pub(super) fn calls(&self, condition: impl Fn(&RecordedCall) -> bool) -> Vec<RecordedCall> {
        self.record().calls.values().filter(|call| condition(call)).cloned().collect()
    }

    /// Deletes the calls that have ended.
    pub(super) fn forget(&self) {
        self.record().calls.retain(|_, call| call.ending == Ending::Running);
    }

    /// Adds a call that begins.
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

/// The record of a call that runs. Dropping it records that the call was dropped.
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
        self.end(Ending::Dropped);
    }
}
