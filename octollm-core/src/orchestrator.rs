//! The trait of whatever takes tasks.

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

pub use crate::task::TaskUpdate;
use crate::{
    budget::Budget,
    card::ArmCard,
    context::Context,
    contract::ContractRef,
    error::{ErrorKind, Failure},
    id::TaskId,
    task::{Submission, Task, TaskError, TaskStatus},
    transport::StepKey,
};

/// Takes tasks and keeps them: the brain is one, a client of a brain elsewhere another.
///
/// The context says who asks. A task belongs to who submitted it: to anyone else it is not found, unless they hold
/// the scope `tasks:admin`.
#[async_trait]
pub trait Orchestrator: Send + Sync + 'static {
    /// Queues a task.
    ///
    /// # Errors
    /// [`ContractNotOffered`](crate::error::ErrorKind::ContractNotOffered), [`ValidationFailed`](crate::error::ErrorKind::ValidationFailed), [`Overloaded`](crate::error::ErrorKind::Overloaded).
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure>;

    /// A task as it stands.
    ///
    /// # Errors
    /// [`TaskNotFound`](crate::error::ErrorKind::TaskNotFound)
    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure>;

    /// The caller's tasks, newest first.
    ///
    /// # Errors
    /// [`Unavailable`](crate::error::ErrorKind::Unavailable) when the store is.
    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure>;

    /// Cancels a task. One that is finished stays as it is.
    ///
    /// # Errors
    /// [`TaskNotFound`](crate::error::ErrorKind::TaskNotFound)
    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure>;

    /// What a task tells from now on, or behind update `after`; the last update is its final status.
    ///
    /// # Errors
    /// [`TaskNotFound`](crate::error::ErrorKind::TaskNotFound)
    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure>;

    /// Runs a failed task again. What that makes of the calls that it has recorded:
    ///
    /// - Without `from`, where a call's error ended the task: that call is made again, with all failures of its batch, and
    ///   every other one is replayed. A call that is not idempotent and may have run stays begun, and is made again only
    ///   where it can be continued or its key is honoured.
    /// - Without `from`, where no call failed at all: every call is replayed, and the arm continues where it failed by itself.
    /// - With `from`: that call and every call recorded after it are discarded, and made again.
    ///
    /// A call that is made again takes the place of its failure in the order of the answers, and what was recorded after that
    /// failure may be left out. The task has its time anew, and of its budget what the attempts before have left.
    ///
    /// # Errors
    /// [`BudgetExhausted`](crate::error::ErrorKind::BudgetExhausted) and
    /// [`DeadlineExceeded`](crate::error::ErrorKind::DeadlineExceeded) where the context has nothing left.
    /// [`TaskNotFound`](crate::error::ErrorKind::TaskNotFound). [`Conflict`](crate::error::ErrorKind::Conflict) where the task
    /// has not failed and, without `from`, where calls failed but none of their errors ended the task.
    /// [`ValidationFailed`](crate::error::ErrorKind::ValidationFailed) where no call is recorded as `from`.
    /// [`NotImplemented`](crate::error::ErrorKind::NotImplemented) by default.
    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        let _ = (id, from, cx);
        Err(not_implemented())
    }

    /// The calls that a task has made, in the order in which they were answered.
    ///
    /// # Errors
    /// [`TaskNotFound`](crate::error::ErrorKind::TaskNotFound); [`NotImplemented`](crate::error::ErrorKind::NotImplemented)
    /// by default.
    async fn journal(&self, id: &TaskId, cx: &Context) -> Result<Vec<JournalStep>, Failure> {
        let _ = (id, cx);
        Err(not_implemented())
    }

    /// The cards of the arms it knows.
    async fn cards(&self) -> Vec<ArmCard>;

    /// Starts no more tasks in this process, and returns when none runs. Tasks are accepted as before, for whoever runs them. A
    /// server that ends calls this beside its last requests, for as long as its grace allows, and [`close`](Self::close) after it.
    ///
    /// Returns at once by default: for an orchestrator whose tasks run elsewhere.
    ///
    /// # Cancel safety
    /// Dropping the future stops no task; the orchestrator starts no more of them all the same.
    async fn drain(&self) {}

    /// Stops: accepts no more tasks, and hands those that run back to where another orchestrator continues them. A second call does
    /// nothing more.
    ///
    /// Does nothing by default.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the orchestrator closing.
    async fn close(&self) {}
}

fn not_implemented() -> Failure {
    Failure::new(ErrorKind::NotImplemented, "this orchestrator does not do that")
}

/// One call of a task, as its owner sees it: see [`Orchestrator::journal`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct JournalStep {
    /// Its order among the task's calls, from 0, or its name.
    pub step: StepKey,
    /// What was asked.
    pub contract: ContractRef,
    /// The arm that answered; empty where none is known.
    #[serde(default)]
    pub arm: String,
    /// Where that arm is; empty where it is not known.
    #[serde(default)]
    pub endpoint: String,
    /// How many attempts were made.
    #[serde(default = "one")]
    pub attempts: u32,
    /// How it ended.
    pub outcome: StepOutcome,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// What the task had left when the call was made.
    #[serde(default)]
    pub budget_left: Budget,
    /// How long the task still had then, in milliseconds.
    #[serde(default)]
    pub time_left_ms: Option<u64>,
    /// How long it took, in milliseconds.
    #[schemars(range(min = 0))]
    pub duration_ms: f64,
    /// Tokens it used, with all that the arm called.
    pub tokens_used: u64,
    /// What those cost, in US dollars.
    #[schemars(range(min = 0))]
    pub cost_dollars: f64,
    /// When it was answered; for an unknown outcome, when the call was begun.
    pub at: Timestamp,
}

fn one() -> u32 {
    1
}

/// How a call of a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepOutcome {
    /// With an output.
    Answered,
    /// With a failure.
    Failed,
    /// It was begun, and no answer was recorded: the call runs, or the process died in between.
    Unknown,
}

/// Which tasks to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskQuery {
    /// Only those of this status.
    pub status: Option<TaskStatus>,
    /// Only those older than this one: the cursor.
    pub after: Option<TaskId>,
    /// At most so many, 1 to 100 (default 20). A page of long tasks has fewer.
    pub limit: Option<usize>,
}

impl TaskQuery {
    /// How many are listed at most.
    pub const MAX_LIMIT: usize = 100;

    /// Only those of this status.
    #[must_use]
    pub fn status(mut self, status: TaskStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Only those older than this one.
    #[must_use]
    pub fn after(mut self, id: TaskId) -> Self {
        self.after = Some(id);
        self
    }

    /// At most so many.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// Some tasks, and where the next ones begin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct TaskPage {
    /// Newest first.
    pub tasks: Vec<Task>,
    /// The cursor for the next page; `None` at the end.
    pub next: Option<TaskId>,
}

impl TaskPage {
    /// A page.
    pub fn new(tasks: Vec<Task>, next: Option<TaskId>) -> Self {
        Self { tasks, next }
    }
}

/// What a task tells, as it comes. Ends behind the final status.
pub struct TaskUpdates(Pin<Box<dyn Stream<Item = TaskUpdate> + Send>>);

impl TaskUpdates {
    /// Updates from any stream.
    pub fn new(updates: impl Stream<Item = TaskUpdate> + Send + 'static) -> Self {
        Self(Box::pin(updates))
    }

    /// The next update; `None` behind the last.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
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

/// Waits until a task is finished, however long that takes.
///
/// # Errors
/// As [`Orchestrator::watch`].
///
/// # Cancel safety
/// Dropping the future leaves the task as it is.
pub async fn finished(orchestrator: &dyn Orchestrator, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
    follow(orchestrator, id, cx, |_| ()).await
}

/// Waits until a task is finished, and shows each update on the way, once.
///
/// A failure that a retry can help is lived through, up to five in a row.
///
/// # Errors
/// As [`Orchestrator::watch`].
///
/// # Cancel safety
/// Dropping the future leaves the task as it is.
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
            // The updates ended before the task did: it has moved to another brain, which is asked in a moment.
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
