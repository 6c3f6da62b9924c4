//! A task as a store holds it: its state machine.

mod secret;
mod submitted;
mod unique;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

pub(crate) use self::secret::StepKeys;
use self::{secret::Secret, submitted::Submitted};
use super::{Priority, Submission, Task, TaskBudget, TaskError, TaskMetadata, TaskResult, TaskStatus};
use crate::{
    budget::Usage,
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::{RequestId, StepKey, TaskId},
    json::RawJson,
    parts::{Caller, ContextParts, Grant},
    spans,
    trace::TraceContext,
    transport::IdempotencyKey,
    update::Progress,
};

/// A task with everything that a brain needs to run it. Its methods allow no illegal change of the status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    task: Task,
    contract: ContractRef,
    input: RawJson,
    caller: Caller,
    /// The caller of a rerun that had fewer scopes than its owner had at first, with those, until the next rerun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    narrowed: Option<Caller>,
    /// For what the caller's token was, where it was not for the subject itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    submitted: Option<Submitted>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_trace")]
    trace: Option<TraceContext>,
    priority: Priority,
    budget: TaskBudget,
    time_limit_ms: u64,
    correlation_id: RequestId,
    secret: Secret,
    deadline_at: Option<Timestamp>,
    run: u32,
    generation: u32,
    failed_step: Option<StepKey>,
    /// Usage of all attempts, once one has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<Usage>,
    /// Usage of earlier attempts, without that of calls that are replayed.
    #[serde(default, skip_serializing_if = "unused")]
    used_before: Usage,
    /// Number of the first failure whose call was made again. The program may leave later entries out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_again: Option<u64>,
    /// The uniqueness key of the submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unique: Option<String>,
    /// Attempts of the submission after the first one, and how many of them are left.
    #[serde(default, skip_serializing_if = "is_zero")]
    further_attempts: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    attempts_left: u32,
    lease: Option<Lease>,
    revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    holder: String,
    until: Timestamp,
}

impl TaskRecord {
    /// A queued task with a new id, which may run for `time_limit` from its first start. It continues the trace and the
    /// correlation id of its submitter's context, and belongs to the caller there. Without a trace there it continues that of the current span.
    pub fn new(submission: Submission, from: &ContextParts, time_limit: Duration, now: Timestamp) -> Self {
        let Submission { contract, input, goal, priority, budget, metadata, .. } = submission;
        let further_attempts = submission.attempts.saturating_sub(1);
        let (caller, correlation_id) = (from.caller.clone(), from.correlation_id.clone());
        let trace = from.trace.clone().or_else(spans::current_trace);
        Self {
            task: Task {
                task_id: TaskId::new(),
                status: TaskStatus::Queued,
                contract: Some(contract.clone()),
                goal,
                progress: Progress::default(),
                result: None,
                error: None,
                attempt: 1,
                run_at: submission.run_at,
                existing: false,
                metadata: TaskMetadata { submitted: metadata, ..TaskMetadata::default() },
                created_at: now,
                updated_at: now,
                completed_at: None,
                failed_at: None,
            },
            contract,
            input,
            narrowed: None,
            submitted: Submitted::of(&caller),
            caller,
            trace,
            priority,
            budget,
            time_limit_ms: u64::try_from(time_limit.as_millis()).unwrap_or(u64::MAX),
            correlation_id,
            secret: Secret::new(),
            deadline_at: None,
            run: 0,
            generation: 0,
            failed_step: None,
            used: None,
            used_before: Usage::ZERO,
            made_again: None,
            unique: submission.unique,
            further_attempts,
            attempts_left: further_attempts,
            lease: None,
            revision: 0,
        }
    }

    /// A completed task that no brain ran, as where a reflex answers. It is stored nowhere.
    pub fn answered(submission: Submission, result: TaskResult, now: Timestamp) -> Task {
        let mut task = Self::new(submission, &ContextParts::new(), Duration::ZERO, now).task;
        task.status = TaskStatus::Completed;
        task.progress.percentage = 100;
        task.result = Some(result);
        task.completed_at = Some(now);
        task
    }

    /// The id of the task.
    pub fn id(&self) -> &TaskId {
        &self.task.task_id
    }

    /// The task as its owner sees it.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Converts to the task as its owner sees it.
    pub fn into_task(self) -> Task {
        Task { contract: Some(self.contract), ..self.task }
    }

    /// The task with its contract, which a task within a record that an earlier version has stored lacks.
    pub(crate) fn to_task(&self) -> Task {
        Task { contract: Some(self.contract.clone()), ..self.task.clone() }
    }

    /// The status of the task.
    pub fn status(&self) -> TaskStatus {
        self.task.status
    }

    /// The contract of the task.
    pub fn contract(&self) -> &ContractRef {
        &self.contract
    }

    /// The input of the contract, as JSON.
    pub fn input(&self) -> &RawJson {
        &self.input
    }

    /// The caller that submitted the task.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn set_caller(&mut self, caller: Caller) {
        (self.caller, self.narrowed) = (caller, None);
    }

    /// Sets the caller of the next attempt only.
    pub(crate) fn narrow(&mut self, caller: Option<Caller>) {
        self.narrowed = caller;
    }

    /// The caller with the scopes of the present attempt.
    pub(crate) fn runs_for(&self) -> &Caller {
        self.narrowed.as_ref().unwrap_or(&self.caller)
    }

    /// Whether a token is for this task, as `Submitted` defines.
    pub(crate) fn is_of(&self, grant: &Grant) -> bool {
        Submitted::is_of(self.submitted.as_ref(), self.id(), grant)
    }

    /// The trace of the submission.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// The priority of the task.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// The budget of all attempts together.
    pub fn budget(&self) -> &TaskBudget {
        &self.budget
    }

    /// The usage of all attempts. `None` until one has ended, and where nothing is recorded of a task that was cancelled by a brain
    /// that did not run it.
    pub fn usage(&self) -> Option<Usage> {
        self.used
    }

    /// The usage of earlier attempts, without that of calls that are replayed.
    pub fn used_before(&self) -> Usage {
        self.used_before
    }

    /// The time limit, from the first start to the end. A rerun starts it anew.
    pub fn time_limit(&self) -> Duration {
        Duration::from_millis(self.time_limit_ms)
    }

    /// The correlation id of the submission.
    pub fn correlation_id(&self) -> &RequestId {
        &self.correlation_id
    }

    /// The deadline by the store's clock. `None` before the first start.
    pub fn deadline_at(&self) -> Option<Timestamp> {
        self.deadline_at
    }

    /// The number of the latest run: 0 before the first claim. A brain with an older number has lost the task.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// The number of the attempt, from 1. A rerun and a [retry](Self::retry) start a new attempt; a recovery does not.
    pub fn attempt(&self) -> u32 {
        self.task.attempt
    }

    /// How many further attempts follow by themselves, as long as each fails in a way that another attempt can help.
    pub fn attempts_left(&self) -> u32 {
        self.attempts_left
    }

    /// How many attempts followed by themselves since the submission or the latest rerun.
    pub(crate) fn retries(&self) -> u32 {
        self.further_attempts.saturating_sub(self.attempts_left)
    }

    /// The time before which a queued task is not free, by the store's clock.
    pub fn run_at(&self) -> Option<Timestamp> {
        self.task.run_at
    }

    /// Delays a queued task by this time from `now`. A store calls this with [`SideEffects::delay`](crate::store::SideEffects::delay),
    /// by its clock, before it stores the record.
    pub fn run_in(&mut self, delay: Duration, now: Timestamp) {
        self.task.run_at = Some(now.checked_add(delay).unwrap_or(Timestamp::MAX));
    }

    /// What no two tasks that are not finished may have in common: a digest of the submission's uniqueness key with its contract, its
    /// caller, and the task and the arm that the caller's token was limited to. `None` where the submission has no key.
    pub fn unique_key(&self) -> Option<String> {
        let key = self.unique.as_deref()?;
        Some(unique::digest(key, &self.contract, &self.caller, self.submitted.as_ref()))
    }

    /// The step whose error ended the task. `None` unless the task failed at one.
    pub fn failed_step(&self) -> Option<&StepKey> {
        self.failed_step.as_ref()
    }

    /// The number of the first journal entry whose call a rerun makes again.
    pub(crate) fn made_again(&self) -> Option<u64> {
        self.made_again
    }

    /// The brain that holds the lease.
    pub fn holder(&self) -> Option<&str> {
        self.lease.as_ref().map(|lease| &*lease.holder)
    }

    /// The end of the lease, by the store's clock. Another brain may claim the task after that.
    pub fn leased_until(&self) -> Option<Timestamp> {
        self.lease.as_ref().map(|lease| lease.until)
    }

    /// The number of the latest change. A store refuses a change that was made from an older revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Sets the revision. A store calls this when it stores a change.
    pub fn set_revision(&mut self, revision: u64) {
        self.revision = revision;
    }

    /// The size of the submission in bytes, by which queued tasks are limited.
    pub fn size(&self) -> usize {
        self.input.as_str().len() + self.task.metadata.submitted.as_str().len()
    }

    /// Whether a brain may claim the task at `now` by the store's clock: it is queued and its [time](Self::run_at) has come, or its
    /// lease has expired.
    pub fn is_free(&self, now: Timestamp) -> bool {
        match self.task.status {
            TaskStatus::Queued => self.task.run_at.is_none_or(|at| at <= now),
            TaskStatus::Processing => self.lease.as_ref().is_none_or(|lease| lease.until <= now),
            _ => false,
        }
    }

    /// Whether this run of this brain holds the task.
    pub fn is_held(&self, holder: &str, run: u32) -> bool {
        self.run == run && self.lease.as_ref().is_some_and(|lease| lease.holder == holder)
    }

    /// The idempotency key of a call that is begun in this [generation](Self::generation). It is the same over attempts and recoveries.
    ///
    /// It is an HMAC-SHA256 (RFC 2104) of the step under a secret of the task, so that it cannot be guessed.
    pub fn idempotency_key(&self, step: &StepKey, generation: u32) -> Option<IdempotencyKey> {
        self.step_keys()?.of(step, generation)
    }

    /// What makes these keys.
    pub(crate) fn step_keys(&self) -> Option<StepKeys> {
        self.secret.keys()
    }

    /// The number of times that a part of the journal was discarded.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    fn change_status(&mut self, status: TaskStatus, now: Timestamp) -> Result<(), Failure> {
        let from = self.task.status;
        if !from.may_become(status) {
            return Err(illegal(from, status));
        }
        self.task.status = status;
        self.updated(now);
        self.lease = None;
        Ok(())
    }

    /// The clocks of brains differ: no change is earlier than the one before.
    fn updated(&mut self, now: Timestamp) {
        self.task.updated_at = self.task.updated_at.max(now);
    }

    /// Starts a run of the brain `holder`, whose lease expires at `until`. Both times are of the store's clock.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless the task [is free](Self::is_free).
    pub fn claim(&mut self, holder: &str, until: Timestamp, now: Timestamp) -> Result<(), Failure> {
        let from = self.task.status;
        if !self.is_free(now) {
            return Err(illegal(from, TaskStatus::Processing));
        }
        self.task.status = TaskStatus::Processing;
        self.updated(now);
        self.lease = Some(Lease { holder: holder.to_owned(), until });
        self.run = self.run.saturating_add(1);
        let end = now.checked_add(self.time_limit()).unwrap_or(Timestamp::MAX);
        self.deadline_at.get_or_insert(end);
        Ok(())
    }

    /// Extends the lease where this run holds the task, and returns whether it does.
    pub fn renew(&mut self, holder: &str, run: u32, until: Timestamp) -> bool {
        let held = self.is_held(holder, run);
        if held && let Some(lease) = &mut self.lease {
            lease.until = until;
        }
        held
    }

    /// Sets what the task used and how far it came, at the end of a run.
    pub fn report(&mut self, usage: Usage, arms_used: Vec<String>, duration: Duration, progress: Progress) {
        self.used = Some(usage);
        let metadata = &mut self.task.metadata;
        (metadata.tokens_used, metadata.cost) = (usage.tokens, usage.cost);
        metadata.arms_used = arms_used;
        metadata.duration_seconds = duration.as_secs_f64();
        self.task.progress = progress;
    }

    /// Completes the task.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless the task is processing.
    pub fn complete(&mut self, result: TaskResult, now: Timestamp) -> Result<(), Failure> {
        self.change_status(TaskStatus::Completed, now)?;
        self.task.progress.percentage = 100;
        self.task.error = None;
        self.task.result = Some(result);
        self.task.completed_at = Some(self.task.updated_at);
        Ok(())
    }

    /// Ends the task with an error.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict when the task is finished.
    pub fn fail(&mut self, error: TaskError, now: Timestamp) -> Result<(), Failure> {
        self.change_status(TaskStatus::Failed, now)?;
        self.failed_step.clone_from(&error.step);
        self.task.error = Some(error);
        self.task.failed_at = Some(self.task.updated_at);
        Ok(())
    }

    /// Cancels the task.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict when the task is finished.
    pub fn cancel(&mut self, now: Timestamp) -> Result<(), Failure> {
        self.change_status(TaskStatus::Cancelled, now)?;
        self.task.error = None;
        Ok(())
    }

    /// Queues the task again, where its brain stops before the task has ended.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless the task is processing.
    pub fn release(&mut self, now: Timestamp) -> Result<(), Failure> {
        match self.task.status {
            TaskStatus::Processing => self.change_status(TaskStatus::Queued, now),
            from => Err(illegal(from, TaskStatus::Queued)),
        }
    }

    /// Queues a failed task for one more attempt, with its time limit anew and the rest of its budget. With `discarded`, a part
    /// of the journal is discarded, and further calls have other idempotency keys.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless the task has failed.
    pub fn rerun(&mut self, discarded: bool, now: Timestamp) -> Result<(), Failure> {
        match self.task.status {
            TaskStatus::Failed => self.change_status(TaskStatus::Queued, now)?,
            from => return Err(illegal(from, TaskStatus::Queued)),
        }
        (self.task.error, self.task.failed_at) = (None, None);
        (self.deadline_at, self.failed_step) = (None, None);
        self.task.run_at = None;
        self.task.attempt = self.task.attempt.saturating_add(1);
        self.attempts_left = self.further_attempts;
        self.generation = self.generation.saturating_add(u32::from(discarded));
        Ok(())
    }

    /// Queues the task for one of the attempts that are left in place of failing it, as [`rerun`](Self::rerun) does after that. The
    /// task still has the error.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless the task is processing and has attempts left.
    pub fn retry(&mut self, error: TaskError, now: Timestamp) -> Result<(), Failure> {
        let (from, left) = (self.task.status, self.attempts_left.checked_sub(1));
        let (TaskStatus::Processing, Some(left)) = (from, left) else {
            return Err(illegal(from, TaskStatus::Queued));
        };
        self.fail(error, now)?;
        let error = self.task.error.take();
        self.rerun(false, now)?;
        (self.task.error, self.attempts_left) = (error, left);
        Ok(())
    }

    /// Sets what the next run replays: `replayed` is the usage of the recorded calls, and `made_again` the number of the first
    /// failure whose call is made again.
    pub(crate) fn will_replay(&mut self, replayed: Usage, made_again: Option<u64>) {
        self.used_before = self.used.unwrap_or_default().minus(replayed);
        self.made_again = [self.made_again, made_again].into_iter().flatten().min();
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn unused(usage: &Usage) -> bool {
    usage.is_zero()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The failure for a change that the status does not allow.
fn illegal(from: TaskStatus, to: TaskStatus) -> Failure {
    Failure::new(ErrorKind::Conflict, format!("a {from} task cannot become {to}"))
}

/// A stored trace that cannot be read is dropped.
fn known_trace<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TraceContext>, D::Error> {
    let stored = Option::<serde_json::Value>::deserialize(from)?;
    Ok(stored.and_then(|stored| serde_json::from_value(stored).ok()))
}

#[cfg(test)]
mod tests;
