//! What a brain offers: its tasks as an orchestrator, and its contracts as an arm.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Brain, limited, publish, scheduler, scheduler::Stop};
use crate::{
    arm::Arm,
    budget::Usage,
    card::ArmCard,
    context::Context,
    contract::{ContractRef, TaskContract},
    deadline::Deadline,
    error::{ArmError, ErrorKind, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, MAX_STEPS, Orchestrator, TaskPage, TaskUpdates, authorize_unknown, follow},
    parts::spent,
    store::{JournalEntry, Recorded, SideEffects, StoreError},
    task::{Submission, Task, TaskBudget, TaskError, TaskQuery, TaskRecord, TaskStatus, TaskUpdate},
};

/// The scope of a caller that sees the tasks of all callers.
const ADMIN: &str = "tasks:admin";
/// Bytes of the tasks of one page: half of what a client reads as one answer by default.
const PAGE: usize = 4 << 20;
/// Bytes of the errors of one page of a journal, which has so many steps by default.
const STEPS_PAGE: usize = 256 << 10;
const DEFAULT_STEPS: usize = 100;

#[async_trait]
impl Orchestrator for Brain {
    fn authorize(&self, contract: &ContractRef, cx: &Context) -> Result<(), Failure> {
        match self.0.dispatcher.spec(contract) {
            Ok(spec) => cx.caller().may(spec.scope),
            // A submission of it is refused, after a reflex may have answered it.
            Err(_) => authorize_unknown(contract, cx.caller()),
        }
    }

    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        let record = self.prepare(submission, cx).await?;
        self.store(record).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        Ok(self.live(&*self.visible(id, cx).await?))
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        let limit = query.limit.unwrap_or(20).clamp(1, TaskQuery::MAX_LIMIT);
        let owner = (!sees_all(cx)).then(|| cx.caller());
        let records = limited(self.0.store.list(&query.limit(limit + 1), owner)).await?;
        let mut tasks: Vec<_> = records.iter().map(|record| self.live(record)).collect();
        let fitting = fitting(tasks.iter().map(listed_size), PAGE).min(limit);
        let more = tasks.len() > fitting;
        tasks.truncate(fitting);
        let next = tasks.last().filter(|_| more).map(|task| task.task_id.clone());
        Ok(TaskPage { tasks, next })
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.visible(id, cx).await?;
        if let Some(run) = self.0.running.stop(id, Stop::Cancel) {
            self.0.running.ended(&run).await;
        }
        // A task that has not ended by now is queued, or runs elsewhere.
        loop {
            let record = self.visible(id, cx).await?;
            if record.status().is_finished() {
                return Ok(record.task().clone());
            }
            let mut record = Arc::unwrap_or_clone(record);
            record.cancel(self.0.clock.now())?;
            let (task, effects) = (record.task().clone(), SideEffects::of_change(&record, self.0.source()));
            match limited(self.0.store.commit(record, effects)).await {
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(uncertain(error)),
                Ok(()) => {
                    // It may have been started since it was looked for.
                    self.0.running.stop(id, Stop::Lost);
                    return Ok(task);
                }
            }
        }
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        self.visible(id, cx).await?;
        Ok(publish::watch(self.0.store.clone(), id.clone(), after))
    }

    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        self.run_again(id, from, cx).await
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: Option<usize>,
        cx: &Context,
    ) -> Result<(Vec<JournalStep>, Option<u64>), Failure> {
        self.visible(id, cx).await?;
        let limit = limit.unwrap_or(DEFAULT_STEPS).clamp(1, MAX_STEPS);
        let mut entries = limited(self.0.store.journal(id, after, limit + 1)).await?;
        let fitting = fitting(entries.iter().map(JournalEntry::error_size), STEPS_PAGE).min(limit);
        let more = entries.len() > fitting;
        entries.truncate(fitting);
        let next = entries.last().filter(|_| more).map(|entry| entry.seq);
        // A call that is to be made again is not made yet.
        let calls = entries.into_iter().filter(|entry| !matches!(entry.recorded, Recorded::Again { .. }));
        Ok((calls.map(JournalStep::from).collect(), next))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.transport.cards().await
    }

    async fn drain(&self) {
        self.0.running.drain();
        // What is being claimed meanwhile is released again.
        drop(self.0.claiming.lock().await);
        self.0.running.idle().await;
    }

    async fn close(&self) {
        Self::close(self).await;
    }
}

impl Brain {
    /// A task that this caller may see.
    pub(super) async fn visible(&self, id: &TaskId, cx: &Context) -> Result<Arc<TaskRecord>, Failure> {
        let record = limited(self.0.store.get(id)).await?;
        record
            .filter(|record| sees_all(cx) || record.caller().is_same_as(cx.caller()))
            .ok_or_else(|| Failure::of(ErrorKind::TaskNotFound))
    }

    /// Checks a submission, and makes a task of it.
    async fn prepare(&self, mut submission: Submission, cx: &Context) -> Result<TaskRecord, Failure> {
        if self.0.running.is_closed() {
            return Err(Failure::new(ErrorKind::Unavailable, "the brain is closed").before_execution());
        }
        if let Some(failure) = spent(cx.deadline(), cx.budget()) {
            return Err(failure);
        }
        let spec = self.0.dispatcher.spec(&submission.contract)?;
        self.authorize(&submission.contract, cx)?;
        submission.budget.check().map_err(Failure::invalid)?;
        self.0.dispatcher.check(&submission.contract, submission.input.as_str().as_bytes())?;
        // A task has no more budget than its submitter. The deadline of the submitter is for the submission alone.
        submission.budget = submission.budget.within(cx.budget());
        let asked = submission.budget.time().unwrap_or(spec.timeout);
        let time_limit = asked.min(self.0.limits.max_task_time);
        let mut record = TaskRecord::new(submission, cx.parts(), time_limit, self.0.clock.now());
        record.set_caller(self.granted(cx).await?);
        Ok(record)
    }

    /// Queues a task.
    async fn store(&self, record: TaskRecord) -> Result<Task, Failure> {
        scheduler::start(&self.0);
        self.0.relay.caught_up().await;
        let task = record.task().clone();
        // The submitter knows that it is queued: the live updates begin with its start.
        let effects = SideEffects { updates: Vec::new(), ..SideEffects::of_change(&record, self.0.source()) };
        let (tasks, bytes) = (self.0.limits.max_queued, self.0.limits.max_queued_bytes);
        match limited(self.0.store.create(record, effects, tasks, bytes)).await {
            Ok(()) => {
                self.0.meters.submitted.count();
                Ok(task)
            }
            // It may have been stored all the same.
            Err(error @ StoreError::Unavailable(_)) => match limited(self.0.store.get(&task.task_id)).await {
                Ok(Some(_)) => Ok(task),
                _ => Err(uncertain(error)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// A task with the progress that only this brain knows.
    fn live(&self, record: &TaskRecord) -> Task {
        let mut task = record.task().clone();
        if !task.status.is_finished()
            && let Some(log) = self.0.running.log(&task.task_id)
        {
            task.progress = log.progress();
        }
        task
    }
}

/// The failure for a change that may have been stored.
pub(super) fn uncertain(error: StoreError) -> Failure {
    let unknown = matches!(error, StoreError::Unavailable(_));
    if unknown {
        tracing::warn!(error = &error as &dyn std::error::Error, "a change may or may not have been stored");
    }
    let failure = Failure::from(error);
    Failure { may_have_executed: failure.may_have_executed || unknown, ..failure }
}

/// How many items of these sizes fit into a page of so many bytes: at least one.
fn fitting(sizes: impl Iterator<Item = usize>, page: usize) -> usize {
    let mut bytes = 0_usize;
    let mut fits = |size: &usize| {
        bytes = bytes.saturating_add(*size);
        bytes <= page
    };
    sizes.take_while(&mut fits).count().max(1)
}

fn listed_size(task: &Task) -> usize {
    let output = task.result.as_ref().map_or(0, |result| result.output.as_str().len());
    let goal = task.goal.as_ref().map_or(0, String::len);
    let error = task.error.as_ref().map_or(0, TaskError::size);
    goal + output + error + task.progress.message.len() + task.metadata.submitted.as_str().len()
}

fn sees_all(cx: &Context) -> bool {
    cx.caller().may(ADMIN).is_ok()
}

/// Runs the contract as a task of this brain and waits for its end.
///
/// The task has at most the budget of the caller, and slightly less time than its deadline leaves, so that the usage of the
/// task is known before the deadline. It is cancelled when the call is dropped.
#[async_trait]
impl<C: TaskContract> Arm<C> for Brain {
    async fn execute(&self, input: C, cx: &Context) -> Result<C::Output, ArmError> {
        let submission = Submission::of(&input)?;
        let end = cx.deadline().map(|deadline| Deadline::after(shortened(deadline.remaining())));
        let budget = narrowed(submission.budget, end);
        let record = self.prepare(submission.with_budget(budget), cx).await?;
        let id = record.id().clone();
        // Before the task is stored: the call may be dropped meanwhile.
        let mut guard = CancelOnDrop { brain: self, id: &id, cx, armed: true, stored: false };
        self.store(record).await?;
        guard.stored = true;
        let followed = Deadline::run_until(end, follow(self, &id, cx, |update| pass_on(update, cx))).await;
        let in_time = followed.is_some();
        let task = match followed {
            Some(task) => task?,
            // It is queued, or is just being ended.
            None => self.cancel(&id, cx).await?,
        };
        // The task itself has neither the parts of its tokens nor the unmetered calls.
        let record = limited(self.0.store.get(&id)).await.ok().flatten();
        guard.disarm();
        let used = record.and_then(|record| record.usage()).unwrap_or_else(|| Usage {
            cost: task.metadata.cost,
            ..Usage::tokens(task.metadata.tokens_used)
        });
        // Work that is done is answered, also above the budget: the next call is refused then.
        let _ = cx.spend(used);
        if !in_time && task.status == TaskStatus::Cancelled {
            return Err(Failure::of(ErrorKind::DeadlineExceeded).into());
        }
        Ok(task.into_output::<C>()?)
    }
}

/// The longest part of a caller's time that is reserved to end a task and to read its usage.
const TO_END: Duration = Duration::from_millis(50);

fn shortened(left: Duration) -> Duration {
    left.saturating_sub(TO_END.min(left / 10))
}

/// The caller waits, so that its deadline is that of the task.
fn narrowed(asked: TaskBudget, end: Option<Deadline>) -> TaskBudget {
    let seconds = end.map(|end| end.remaining().as_secs_f64().max(1e-3));
    let max_time_seconds = match (asked.max_time_seconds, seconds) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    TaskBudget { max_time_seconds, ..asked }
}

/// Reports the progress of the task as that of the arm.
fn pass_on(update: &TaskUpdate, cx: &Context) {
    if let TaskUpdate::Progress { progress, phase, message, .. } = update {
        cx.phase(*phase);
        cx.progress(*progress, message.clone());
    }
}

/// Cancels the task of a call that is dropped.
struct CancelOnDrop<'a> {
    brain: &'a Brain,
    id: &'a TaskId,
    cx: &'a Context,
    armed: bool,
    stored: bool,
}

impl CancelOnDrop<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

/// Attempts to cancel a task that may just be on its way into the store.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // What runs here has used this much. What runs elsewhere is unknown.
        let _ = self.cx.spend(match self.brain.0.running.log(self.id) {
            Some(log) => log.used(),
            None if self.stored => Usage::UNMETERED,
            None => Usage::ZERO,
        });
        // A run stops at once; the change of the task waits for the store.
        self.brain.0.running.stop(self.id, Stop::Cancel);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (brain, id, cx) = (self.brain.clone(), self.id.clone(), self.cx.clone());
            runtime.spawn(async move {
                for _ in 0..ATTEMPTS {
                    match brain.cancel(&id, &cx).await {
                        Ok(_) => return,
                        Err(failure) => {
                            tracing::debug!(task = %id, %failure, "abandoned task not cancelled yet");
                        }
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
    }
}
