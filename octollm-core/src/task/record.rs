//! A task as a store holds it.

mod secret;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use self::secret::Secret;
use super::{
    Origin, Priority, Submission, Task, TaskBudget, TaskError, TaskMetadata, TaskResult, TaskSpent,
    TaskStatus,
};
use crate::{
    budget::{Cost, Usage},
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::{RequestId, StepKey, TaskId},
    json::RawJson,
    parts::Caller,
    trace::TraceContext,
    transport::IdempotencyKey,
    update::Progress,
};

/// A task with all that is needed to run it. Its state changes by methods alone, and only where the change is legal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    task: Task,
    contract: ContractRef,
    input: RawJson,
    caller: Caller,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_trace")]
    trace: Option<TraceContext>,
    priority: Priority,
    budget: TaskBudget,
    time_limit_ms: u64,
    correlation_id: RequestId,
    secret: Secret,
    deadline_at: Option<Timestamp>,
    run: u32,
    attempt: u32,
    generation: u32,
    failed_step: Option<StepKey>,
    /// What earlier attempts used and no replay counts again.
    #[serde(default, skip_serializing_if = "unused")]
    used_before: Usage,
    /// The number of the first failure whose call was made again: what was recorded later may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_again: Option<u64>,
    lease: Option<Lease>,
    revision: u64,
}

/// A brain's hold on a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The brain.
    pub holder: String,
    /// After this moment of the store's clock another brain may claim the task.
    pub until: Timestamp,
}

impl TaskRecord {
    /// A queued task under a new id, which may run for `time_limit` once it has been started.
    pub fn new(submission: Submission, origin: Origin, time_limit: Duration, now: Timestamp) -> Self {
        let Submission { contract, input, goal, priority, budget, metadata } = submission;
        let Origin { caller, correlation_id, trace } = origin;
        Self {
            task: Task {
                task_id: TaskId::new(),
                status: TaskStatus::Queued,
                goal,
                progress: Progress::default(),
                result: None,
                error: None,
                metadata: TaskMetadata { submitted: metadata, ..TaskMetadata::default() },
                created_at: now,
                updated_at: now,
                completed_at: None,
                failed_at: None,
            },
            contract,
            input,
            caller,
            trace,
            priority,
            budget,
            time_limit_ms: u64::try_from(time_limit.as_millis()).unwrap_or(u64::MAX),
            correlation_id,
            secret: Secret::new(),
            deadline_at: None,
            run: 0,
            attempt: 1,
            generation: 0,
            failed_step: None,
            used_before: Usage::ZERO,
            made_again: None,
            lease: None,
            revision: 0,
        }
    }

    /// A task that was answered before any brain saw it, as by a reflex: completed, and stored nowhere.
    pub fn answered(submission: Submission, origin: Origin, result: TaskResult, now: Timestamp) -> Task {
        let mut task = Self::new(submission, origin, Duration::ZERO, now).task;
        task.status = TaskStatus::Completed;
        task.progress.percentage = 100;
        task.result = Some(result);
        task.completed_at = Some(now);
        task
    }

    /// The task's id.
    pub fn id(&self) -> &TaskId {
        &self.task.task_id
    }

    /// The task as its owner sees it.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The task as its owner sees it, without the rest.
    pub fn into_task(self) -> Task {
        self.task
    }

    /// Its status.
    pub fn status(&self) -> TaskStatus {
        self.task.status
    }

    /// What is run.
    pub fn contract(&self) -> &ContractRef {
        &self.contract
    }

    /// The contract's JSON.
    pub fn input(&self) -> &RawJson {
        &self.input
    }

    /// Who submitted it, and what they may do.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The trace in which it was submitted.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// How urgent it is.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// What it may use, over all attempts.
    pub fn budget(&self) -> &TaskBudget {
        &self.budget
    }

    /// What earlier attempts used, without what a replay of the journal counts again.
    pub fn used_before(&self) -> Usage {
        self.used_before
    }

    /// How long it may run, from the first start to the end. A task that is run again gets the time anew.
    pub fn time_limit(&self) -> Duration {
        Duration::from_millis(self.time_limit_ms)
    }

    /// Names the piece of work over all its requests.
    pub fn correlation_id(&self) -> &RequestId {
        &self.correlation_id
    }

    /// When its time is up, by the store's clock; `None` before the first start.
    pub fn deadline_at(&self) -> Option<Timestamp> {
        self.deadline_at
    }

    /// Counts the times that a brain claimed it; 0 before the first. A brain that holds an older number has lost the task.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// 1, and one more each time that it was run again after a failure. Waiting for recovery is no attempt.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The step whose error ended the task; `None` unless it has failed by one.
    pub fn failed_step(&self) -> Option<&StepKey> {
        self.failed_step.as_ref()
    }

    /// The number of the first journal entry whose call a rerun has made again.
    pub(crate) fn made_again(&self) -> Option<u64> {
        self.made_again
    }

    /// The brain that runs it, and until when it holds the task.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Counts the changes: a store refuses one that was made from an older revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Sets the revision: a store does when it has stored a change.
    pub fn set_revision(&mut self, revision: u64) {
        self.revision = revision;
    }

    /// Bytes of what was submitted: what waiting tasks are limited by.
    pub fn size(&self) -> usize {
        self.input.as_str().len() + self.task.metadata.submitted.as_str().len()
    }

    /// Whether a brain may claim it at `now`, by the store's clock: it waits, or its lease has expired.
    pub fn is_free(&self, now: Timestamp) -> bool {
        match self.task.status {
            TaskStatus::Queued => true,
            TaskStatus::Processing => self.lease.as_ref().is_none_or(|lease| lease.until <= now),
            _ => false,
        }
    }

    /// Whether this run of this brain still has the task.
    pub fn is_held(&self, holder: &str, run: u32) -> bool {
        self.run == run && self.lease.as_ref().is_some_and(|lease| lease.holder == holder)
    }

    /// The idempotency key of one of its calls: the same over attempts and recoveries, and another one once an operator
    /// has discarded the journal.
    ///
    /// It is an HMAC-SHA256 (RFC 2104) of the step under a secret of the task, so that nobody can guess it.
    pub fn idempotency_key(&self, step: &StepKey) -> Option<IdempotencyKey> {
        self.secret.key_of(step, self.generation)
    }

    fn become_(&mut self, status: TaskStatus, now: Timestamp) -> Result<(), Failure> {
        let from = self.task.status;
        if !from.may_become(status) {
            return Err(illegal(from, status));
        }
        self.task.status = status;
        self.updated(now);
        self.lease = None;
        Ok(())
    }

    /// Records pass between brains whose clocks differ: no change is earlier than the one before.
    fn updated(&mut self, now: Timestamp) {
        self.task.updated_at = self.task.updated_at.max(now);
    }

    /// A brain claims the task and runs it until `lease` expires; `now` is of the store's clock. A task whose lease has
    /// expired stays processing.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless it [is free](Self::is_free).
    pub fn claim(&mut self, lease: Lease, now: Timestamp) -> Result<(), Failure> {
        let from = self.task.status;
        if !self.is_free(now) {
            return Err(illegal(from, TaskStatus::Processing));
        }
        self.task.status = TaskStatus::Processing;
        self.updated(now);
        self.lease = Some(lease);
        self.run = self.run.saturating_add(1);
        let end = now.checked_add(self.time_limit()).unwrap_or(Timestamp::MAX);
        self.deadline_at.get_or_insert(end);
        Ok(())
    }

    /// Holds the task for longer, where this run still has it.
    pub fn renew(&mut self, holder: &str, run: u32, until: Timestamp) -> bool {
        let held = self.is_held(holder, run);
        if held && let Some(lease) = &mut self.lease {
            lease.until = until;
        }
        held
    }

    /// Sets what its run used and how far it came.
    pub fn report(&mut self, spent: &TaskSpent, progress: Progress) {
        let taken = &mut self.task.metadata;
        let usage = spent.usage.unwrap_or_default();
        (taken.tokens_used, taken.cost) = (usage.tokens, usage.cost);
        taken.arms_used.clone_from(&spent.arms_used);
        taken.duration_seconds = spent.duration.unwrap_or_default().as_secs_f64();
        self.task.progress = progress;
    }

    /// It has a result.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless it is being run.
    pub fn complete(&mut self, result: TaskResult, now: Timestamp) -> Result<(), Failure> {
        self.become_(TaskStatus::Completed, now)?;
        self.task.progress.percentage = 100;
        self.task.result = Some(result);
        self.task.completed_at = Some(self.task.updated_at);
        Ok(())
    }

    /// It has an error, that of `error.step` where one is named.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict when it is finished.
    pub fn fail(&mut self, error: TaskError, now: Timestamp) -> Result<(), Failure> {
        self.become_(TaskStatus::Failed, now)?;
        self.failed_step.clone_from(&error.step);
        self.task.error = Some(error);
        self.task.failed_at = Some(self.task.updated_at);
        Ok(())
    }

    /// It is given up on request.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict when it is finished.
    pub fn cancel(&mut self, now: Timestamp) -> Result<(), Failure> {
        self.become_(TaskStatus::Cancelled, now)
    }

    /// It waits again: its brain has let go of it.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless it is being run.
    pub fn release(&mut self, now: Timestamp) -> Result<(), Failure> {
        match self.task.status {
            TaskStatus::Processing => self.become_(TaskStatus::Queued, now),
            from => Err(illegal(from, TaskStatus::Queued)),
        }
    }

    /// It waits again after a failure, for one more attempt with its time anew, and with what it has left of its budget.
    /// `discarded` says that its journal was discarded from a step on: the calls made then have other idempotency keys.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless it has failed.
    pub fn rerun(&mut self, discarded: bool, now: Timestamp) -> Result<(), Failure> {
        match self.task.status {
            TaskStatus::Failed => self.become_(TaskStatus::Queued, now)?,
            from => return Err(illegal(from, TaskStatus::Queued)),
        }
        (self.task.error, self.task.failed_at) = (None, None);
        (self.deadline_at, self.failed_step) = (None, None);
        self.attempt = self.attempt.saturating_add(1);
        self.generation = self.generation.saturating_add(u32::from(discarded));
        Ok(())
    }

    /// Before a rerun: the recorded answers that are replayed used `replayed`, and `made_again` is the number of the first
    /// failure whose call is made again.
    pub(crate) fn will_replay(&mut self, replayed: Usage, made_again: Option<u64>) {
        let (used, cost) = (self.task.metadata.tokens_used, self.task.metadata.cost.nano_dollars());
        let cost = cost.saturating_sub(replayed.cost.nano_dollars());
        self.used_before =
            Usage::tokens(used.saturating_sub(replayed.tokens)).with_cost(Cost::from_nano_dollars(cost));
        self.made_again = [self.made_again, made_again].into_iter().flatten().min();
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn unused(usage: &Usage) -> bool {
    usage.is_zero()
}

/// The failure of a change that the status of the task does not allow.
fn illegal(from: TaskStatus, to: TaskStatus) -> Failure {
    Failure::new(ErrorKind::Conflict, format!("a {from} task does not become {to}"))
}

/// A trace that is no longer understood costs the task its trace, and nothing else.
fn known_trace<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TraceContext>, D::Error> {
    let stored = Option::<serde_json::Value>::deserialize(from)?;
    Ok(stored.and_then(|stored| serde_json::from_value(stored).ok()))
}

#[cfg(test)]
mod tests;
