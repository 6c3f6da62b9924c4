//! The journal: calls that were answered once are not made again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    budget::Budget,
    card::ArmCard,
    clock::Clock,
    contract::{canonical, hex},
    deadline::Deadline,
    error::{CallError, ErrorKind, Failure},
    id::TaskId,
    store::{Answer, JournalEntry, StoreError, TaskStore},
    transport::{Call, Reply, StepKey, Transport, Trip},
};

/// Carries the calls of one run of a task: from its journal where they were answered before, else by the transport,
/// and then into the journal.
pub(super) struct Journal {
    pub(super) task_id: TaskId,
    pub(super) run: u32,
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) clock: Clock,
    /// Ends the run.
    pub(super) cancellation: CancellationToken,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// Answers of earlier runs that this one has not come to yet.
    recorded: HashMap<StepKey, JournalEntry>,
    /// Steps that this run has taken.
    taken: HashSet<StepKey>,
    arms: Vec<String>,
    mismatch: Option<Failure>,
}

impl State {
    pub(super) fn of(journal: Vec<JournalEntry>) -> Self {
        Self {
            recorded: journal.into_iter().map(|entry| (entry.step.clone(), entry)).collect(),
            ..Self::default()
        }
    }

    /// The recorded answer of a step, if it is one to this very question.
    fn recall(&mut self, call: &Call, digest: &str) -> Result<Option<JournalEntry>, Failure> {
        if !self.taken.insert(call.step.clone()) {
            return Err(mismatch(format!("step {} is called twice in one run", call.step)));
        }
        let Some(entry) = self.recorded.remove(&call.step) else { return Ok(None) };
        if entry.contract != call.contract {
            let (was, is) = (&entry.contract, &call.contract);
            return Err(mismatch(format!("step {} was {was} and is now {is}", call.step)));
        }
        if entry.input_digest != digest {
            let contract = &call.contract;
            return Err(mismatch(format!(
                "step {} asks {contract} with another input than it did",
                call.step
            )));
        }
        Ok(Some(entry))
    }

    fn used_arm(&mut self, arm: &str) {
        if !arm.is_empty() && !self.arms.iter().any(|used| used == arm) {
            self.arms.push(arm.to_owned());
        }
    }
}

fn mismatch(how: String) -> Failure {
    Failure::new(ErrorKind::JournalMismatch, format!("the journal is of another program: {how}"))
}

impl Journal {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The arms that answered, in the order of their first answer.
    pub(super) fn arms_used(&self) -> Vec<String> {
        self.state().arms.clone()
    }

    /// Why this run does not fit its journal: a call that differed, or, once the run has ended well with so many ordered
    /// `calls`, a step behind those. A call that was made and dropped before it was looked at, because another one had
    /// failed, is none. Named steps may be left out: that is what names are for.
    pub(super) fn mismatch(&self, calls: Option<u32>) -> Option<Failure> {
        let state = self.state();
        let left_out = |calls: u32| {
            let behind = |step: &&StepKey| matches!(step, StepKey::Order(order) if *order >= calls);
            let step = state.recorded.keys().filter(behind).min()?;
            let contract = &state.recorded.get(step)?.contract;
            Some(mismatch(format!("step {step} was {contract} and is no longer taken")))
        };
        state.mismatch.clone().or_else(|| calls.and_then(left_out))
    }

    /// The recorded answer to this call, where there is one. A call that does not fit the journal fails the whole task,
    /// whatever the arm makes of the failure.
    fn recall(&self, call: &Call, digest: &str) -> Result<Option<JournalEntry>, CallError> {
        let mut state = self.state();
        match state.recall(call, digest) {
            Ok(None) => Ok(None),
            Ok(Some(entry)) => {
                state.used_arm(&entry.trip.arm);
                Ok(Some(entry))
            }
            Err(failure) => {
                state.mismatch.get_or_insert_with(|| failure.clone());
                Err(CallError::new(call.contract.clone(), failure.before_execution()))
            }
        }
    }

    /// Makes the call, and ends it at its deadline: that it passed is an answer too, and is to be written down.
    async fn carry(&self, call: Call) -> Result<Reply, CallError> {
        let Some(deadline) = call.parts.deadline else { return self.transport.call(call).await };
        let contract = call.contract.clone();
        tokio::time::timeout_at(deadline.instant(), self.transport.call(call))
            .await
            .unwrap_or_else(|_| Err(CallError::new(contract, Failure::of(ErrorKind::DeadlineExceeded))))
    }

    async fn record(&self, entry: JournalEntry) -> Result<(), Failure> {
        let written = self.store.append(&self.task_id, self.run, entry).await;
        if matches!(written, Err(StoreError::Conflict)) {
            // Another run has the task: this one calls nothing any more.
            self.cancellation.cancel();
        }
        // What was done is not known to the next run then: it may do it again.
        written.map_err(|error| Failure { may_have_executed: true, ..error.into() })
    }
}

#[async_trait]
impl Transport for Journal {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let digest = digest(&call.input);
        if let Some(entry) = self.recall(&call, &digest)? {
            return replay(entry);
        }
        let left = call.parts.deadline.map(Deadline::remaining);
        let started = Instant::now();
        let answer = self.carry(call.clone()).await;
        let (recorded, trip, usage) = match &answer {
            Ok(reply) => (output(reply, &call)?, reply.trip.clone(), reply.usage),
            Err(error) if error.kind() == ErrorKind::Cancelled => return answer,
            Err(error) => {
                let trip = Trip::new(error.arm().unwrap_or_default(), error.endpoint().unwrap_or_default());
                (Answer::Failure(Box::new(error.failure().clone())), trip, error.usage())
            }
        };
        self.state().used_arm(&trip.arm);
        let contract = call.contract.clone();
        let entry = JournalEntry {
            step: call.step,
            contract: call.contract,
            input_digest: digest,
            answer: recorded,
            trip,
            used: Budget { tokens: Some(usage.tokens), cost: Some(usage.cost) },
            budget_left: call.parts.budget,
            time_left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            duration_ms: started.elapsed().as_secs_f64() * 1e3,
            at: self.clock.now(),
        };
        self.record(entry).await.map_err(|failure| CallError::new(contract, failure))?;
        answer
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.transport.cards().await
    }
}

fn output(reply: &Reply, call: &Call) -> Result<Answer, CallError> {
    let text = std::str::from_utf8(&reply.output).ok();
    let raw = text.and_then(|text| RawValue::from_string(text.to_owned()).ok());
    raw.map(Answer::Output).ok_or_else(|| {
        let failure = Failure::new(ErrorKind::BadResponse, "the output is not JSON");
        CallError::new(call.contract.clone(), failure).with_arm(&*reply.trip.arm)
    })
}

fn replay(entry: JournalEntry) -> Result<Reply, CallError> {
    let usage = entry.usage();
    match entry.answer {
        Answer::Output(output) => {
            let output = Bytes::from(String::from(Box::<str>::from(output)));
            Ok(Reply::new(output, entry.trip).with_usage(usage))
        }
        Answer::Failure(failure) => {
            Err(CallError::new(entry.contract, *failure).with_arm(entry.trip.arm).with_usage(usage))
        }
    }
}

/// The first half of the SHA-256 of the input in canonical form, in hexadecimal digits.
fn digest(input: &[u8]) -> String {
    let canonical = serde_json::from_slice::<Value>(input)
        .map_or_else(|_| input.to_vec(), |value| canonical(&value, false).to_string().into_bytes());
    hex(&Sha256::digest(canonical)[..16])
}
