//! The trait of an orchestrator: it accepts tasks and runs them.

use std::{
    fmt,
    pin::Pin,
    task::{Context as Poll_, Poll},
};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    budget::Budget,
    card::ArmCard,
    context::Context,
    contract::{ContractRef, TaskContract},
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    parts::Caller,
    store::{JournalEntry, Recorded},
    task::{Submission, Task, TaskError, TaskQuery, TaskRequest, TaskUpdate},
};

/// Accepts tasks and runs them: a brain, or a client of a brain in another process.
///
/// A task belongs to the caller of the context it was submitted in. Other callers do not find it, unless they have the scope
/// `tasks:admin`.
///
/// # Cancel safety
/// A method that changes a task may or may not take effect when its future is dropped, as a whole. A method that reads has no
/// effect. Dropping a future never stops a task that is accepted.
#[async_trait]
pub trait Orchestrator: Send + Sync + 'static {
    /// Checks the scope that the caller needs to submit tasks of a contract. A server checks it before it screens a submission, so
    /// that no reflex works for callers that are refused. [`submit`](Self::submit) checks it again.
    ///
    /// By default, for an orchestrator that does not know the contracts, the caller needs the scope of [`TaskRequest`] for that
    /// contract, and is not anonymous for any other.
    ///
    /// # Errors
    /// Those of [`Caller::may`], and [`ContractNotOffered`](ErrorKind::ContractNotOffered).
    fn authorize(&self, contract: &ContractRef, cx: &Context) -> Result<(), Failure> {
        match cx.caller() {
            caller if *contract == TaskRequest::SPEC.reference() => caller.may(TaskRequest::SPEC.scope),
            Caller::Anonymous => {
                let message = format!("tasks of {contract} need a caller that is known");
                Err(Failure::new(ErrorKind::Unauthenticated, message).before_execution())
            }
            _ => Ok(()),
        }
    }

    /// Queues a task, and returns it once it is stored: the task then runs also where this process ends. A task that is returned
    /// finished was answered by a reflex in front of the orchestrator, and is not stored.
    ///
    /// # Errors
    /// [`ContractNotOffered`](ErrorKind::ContractNotOffered), [`ValidationFailed`](ErrorKind::ValidationFailed), and
    /// [`Overloaded`](ErrorKind::Overloaded) when too many tasks wait. A failure with `may_have_executed` where the task may have
    /// been stored.
    ///
    /// # Cancel safety
    /// The task may or may not be queued when the future is dropped.
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure>;

    /// Returns a task.
    ///
    /// # Errors
    /// [`TaskNotFound`](ErrorKind::TaskNotFound).
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure>;

    /// Returns the caller's tasks, newest first.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when the store is not available.
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure>;

    /// Cancels a task, and returns it once it has ended. A finished task does not change.
    ///
    /// # Errors
    /// [`TaskNotFound`](ErrorKind::TaskNotFound).
    ///
    /// # Cancel safety
    /// The task may or may not be cancelled when the future is dropped.
    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure>;

    /// Returns the updates of a task after number `after`, or all that are stored. They end after its final status.
    ///
    /// # Errors
    /// [`TaskNotFound`](ErrorKind::TaskNotFound).
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure>;

    /// Runs a failed task again. Its recorded calls are treated as follows:
    ///
    /// - Without `from`, where a call's error ended the task: that call is made again, with all failures of its batch, and
    ///   every other one is replayed. A call that is not idempotent and may have run is made again only where it can be continued
    ///   or its key is honoured.
    /// - Without `from`, where no call failed: every call is replayed, and the arm continues where it failed.
    /// - With `from`: that call and every call recorded after it are discarded, and made again.
    ///
    /// A call that is made again takes the position of its failure in the order of the answers, and the arm may leave out what
    /// was recorded after that failure. The time limit starts anew; the budget is what earlier attempts have left.
    ///
    /// # Errors
    /// [`BudgetExhausted`](ErrorKind::BudgetExhausted) and [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) where the context
    /// has nothing left. [`TaskNotFound`](ErrorKind::TaskNotFound). [`Conflict`](ErrorKind::Conflict) where the task has not failed
    /// and, without `from`, where calls failed but none of their errors ended the task.
    /// [`ValidationFailed`](ErrorKind::ValidationFailed) where no call is recorded as `from`.
    /// [`NotImplemented`](ErrorKind::NotImplemented) by default.
    ///
    /// # Cancel safety
    /// The task may or may not be queued again when the future is dropped. Its journal changes together with it.
    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        let _ = (id, from, cx);
        Err(not_implemented())
    }

    /// Returns the calls of a task, in the order in which they were answered.
    ///
    /// # Errors
    /// [`TaskNotFound`](ErrorKind::TaskNotFound). [`NotImplemented`](ErrorKind::NotImplemented) by default.
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn journal(&self, id: &TaskId, cx: &Context) -> Result<Vec<JournalStep>, Failure> {
        let _ = (id, cx);
        Err(not_implemented())
    }

    /// Returns the cards of the arms that its tasks may call.
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn cards(&self) -> Vec<ArmCard>;

    /// Starts no more tasks in this process, and returns when none runs. Tasks are still accepted, for another process. A server
    /// that shuts down calls this during its grace period, and [`close`](Self::close) after it.
    ///
    /// Returns at once by default, for an orchestrator whose tasks run elsewhere.
    ///
    /// # Cancel safety
    /// Dropping the future stops no task. The orchestrator still starts no more of them.
    async fn drain(&self) {}

    /// Stops the orchestrator: accepts no more tasks, and hands back those that run, so that another orchestrator continues them. A
    /// second call has no effect.
    ///
    /// Has no effect by default.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the orchestrator closing.
    async fn close(&self) {}
}

fn not_implemented() -> Failure {
    Failure::new(ErrorKind::NotImplemented, "this orchestrator does not support the operation")
}

/// One call of a task, as its owner sees it: see [`Orchestrator::journal`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct JournalStep {
    /// Position of the call among the task's calls, from 0, or its name.
    pub step: StepKey,
    /// Contract of the call.
    pub contract: ContractRef,
    /// Arm that answered. Empty where none is known.
    #[serde(default)]
    pub arm: String,
    /// Endpoint of the arm. Empty where it is not known.
    #[serde(default)]
    pub endpoint: String,
    /// Number of attempts.
    #[serde(default = "one")]
    pub attempts: u32,
    /// Outcome of the call.
    pub outcome: StepOutcome,
    /// Error of a failed call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// Budget of the task when the call was made.
    #[serde(default)]
    pub budget_left: Budget,
    /// Time to the deadline when the call was made, in milliseconds.
    #[serde(default)]
    pub time_left_ms: Option<u64>,
    /// Duration of the call, in milliseconds.
    #[schemars(range(min = 0))]
    pub duration_ms: f64,
    /// Tokens that the call used, with all that its arm called.
    pub tokens_used: u64,
    /// Cost of the call in US dollars, with all that its arm called.
    #[schemars(range(min = 0))]
    pub cost_dollars: f64,
    /// Time of the answer. For an unknown outcome, time of the call.
    pub at: Timestamp,
}

impl From<JournalEntry> for JournalStep {
    fn from(entry: JournalEntry) -> Self {
        let outcome = match &entry.recorded {
            Recorded::Output(_) => StepOutcome::Answered,
            Recorded::Failure(_) => StepOutcome::Failed,
            Recorded::Begun | Recorded::Again { .. } | Recorded::Handle(_) => StepOutcome::Unknown,
        };
        Self {
            error: entry.recorded.failure().map(TaskError::from),
            outcome,
            step: entry.step,
            contract: entry.contract,
            arm: entry.served_by.arm.as_ref().into(),
            endpoint: entry.served_by.endpoint.as_ref().into(),
            attempts: entry.served_by.attempts,
            budget_left: entry.budget_left,
            time_left_ms: entry.time_left_ms,
            duration_ms: entry.duration_ms,
            tokens_used: entry.usage.tokens,
            cost_dollars: entry.usage.cost.dollars(),
            at: entry.at,
        }
    }
}

fn one() -> u32 {
    1
}

/// The outcome of a call of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepOutcome {
    /// The call returned an output.
    Answered,
    /// The call failed.
    Failed,
    /// No answer is recorded: the call runs, or the process died during it.
    Unknown,
}

/// A page of a list of tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskPage {
    /// Tasks, newest first.
    pub tasks: Vec<Task>,
    /// Cursor of the next page. `None` at the end.
    pub next: Option<TaskId>,
}

impl TaskPage {
    /// A page of these tasks.
    pub fn new(tasks: Vec<Task>, next: Option<TaskId>) -> Self {
        Self { tasks, next }
    }
}

/// A stream of the updates of a task. It ends after the final status.
pub struct TaskUpdates(Pin<Box<dyn Stream<Item = TaskUpdate> + Send>>);

impl TaskUpdates {
    /// The updates of any stream.
    pub fn new(updates: impl Stream<Item = TaskUpdate> + Send + 'static) -> Self {
        Self(Box::pin(updates))
    }

    /// Returns the next update, or `None` after the last.
    ///
    /// # Cancel safety
    /// Dropping the future loses no update.
    pub async fn next(&mut self) -> Option<TaskUpdate> {
        self.0.next().await
    }
}

impl Stream for TaskUpdates {
    type Item = TaskUpdate;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for TaskUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskUpdates")
    }
}

/// Waits until a task is finished, without a time limit, and returns it.
///
/// # Errors
/// As [`Orchestrator::watch`].
///
/// # Cancel safety
/// Dropping the future does not change the task.
pub async fn finished(orchestrator: &dyn Orchestrator, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
    follow(orchestrator, id, cx, |_| ()).await
}

/// Waits until a task is finished, and calls `each` with every update, once. Returns the task.
///
/// After a failure that is retryable it tries again, up to five times in a row.
///
/// # Errors
/// As [`Orchestrator::watch`].
///
/// # Cancel safety
/// Dropping the future does not change the task.
pub async fn follow(
    orchestrator: &dyn Orchestrator,
    id: &TaskId,
    cx: &Context,
    mut each: impl FnMut(&TaskUpdate) + Send,
) -> Result<Task, Failure> {
    let (mut failures, mut after) = (0, None);
    loop {
        match watch_to_the_end(orchestrator, id, cx, &mut after, &mut each).await {
            Ok(task) if task.status.is_finished() => return Ok(task),
            // The updates ended before the task did: another brain continues it.
            Ok(_) => failures = 0,
            Err(failure) if failure.retryable && failures < FOLLOW_FAILURES => failures += 1,
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(FOLLOW_INTERVAL * 2_u32.pow(failures)).await;
    }
}

const FOLLOW_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);
const FOLLOW_FAILURES: u32 = 5;

async fn watch_to_the_end(
    orchestrator: &dyn Orchestrator,
    id: &TaskId,
    cx: &Context,
    after: &mut Option<u64>,
    each: &mut (dyn FnMut(&TaskUpdate) + Send),
) -> Result<Task, Failure> {
    let mut updates = orchestrator.watch(id, *after, cx).await?;
    while let Some(update) = updates.next().await {
        *after = Some(update.seq());
        each(&update);
    }
    orchestrator.get(id, cx).await
}

#[async_trait]
impl<O: Orchestrator + ?Sized> Orchestrator for std::sync::Arc<O> {
    fn authorize(&self, contract: &ContractRef, cx: &Context) -> Result<(), Failure> {
        (**self).authorize(contract, cx)
    }

    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        (**self).submit(submission, cx).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        (**self).get(id, cx).await
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        (**self).list(query, cx).await
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        (**self).cancel(id, cx).await
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        (**self).watch(id, after, cx).await
    }

    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        (**self).rerun(id, from, cx).await
    }

    async fn journal(&self, id: &TaskId, cx: &Context) -> Result<Vec<JournalStep>, Failure> {
        (**self).journal(id, cx).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        (**self).cards().await
    }

    async fn drain(&self) {
        (**self).drain().await;
    }

    async fn close(&self) {
        (**self).close().await;
    }
}
