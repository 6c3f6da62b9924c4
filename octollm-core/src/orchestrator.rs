//! The trait of an orchestrator: it accepts tasks and runs them.

mod journal;

use std::{
    fmt,
    pin::Pin,
    task::{Context as Poll_, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

pub use self::journal::{JournalStep, MAX_STEPS, StepOutcome, whole_journal};
use crate::{
    card::ArmCard,
    context::Context,
    contract::{ContractRef, TaskContract},
    deadline::Deadline,
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    parts::Caller,
    resilience::MAX_RETRY_AFTER,
    task::{Submission, Task, TaskQuery, TaskRequest, TaskUpdate},
};

/// Accepts tasks and runs them: a brain, or a client of a brain in another process.
///
/// A task belongs to the caller of the context it was submitted in. Other callers do not find it, unless they have the scope
/// `tasks:admin`. Every operation on a task needs the scope that its submission needs. A caller whose
/// [token](crate::parts::Grant::task) is limited to a task finds only that one and those that were submitted with such a token; an
/// [arm](crate::parts::Grant::actor) that acts for a subject by another token finds those that it submitted.
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
        authorize_unknown(contract, cx.caller())
    }

    /// Queues a task, and returns it once it is stored: the task then runs also where this process ends. A task that is returned
    /// finished was answered by a reflex in front of the orchestrator, and is not stored. A task that is returned as
    /// [existing](Task::existing) has the [uniqueness key](Submission::unique) of the submission, and nothing is queued.
    ///
    /// # Errors
    /// [`ContractNotOffered`](ErrorKind::ContractNotOffered), [`ValidationFailed`](ErrorKind::ValidationFailed),
    /// [`Overloaded`](ErrorKind::Overloaded) when too many tasks wait, and [`Unavailable`](ErrorKind::Unavailable) where the
    /// orchestrator is closed. A failure with `may_have_executed` where the task may have been stored.
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

    /// Cancels a task, and returns it once it has ended. A finished task does not change. The usage of a task that another process
    /// runs is what its journal has.
    ///
    /// # Errors
    /// [`TaskNotFound`](ErrorKind::TaskNotFound).
    ///
    /// # Cancel safety
    /// The task may or may not be cancelled when the future is dropped.
    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure>;

    /// Returns the updates of a task after number `after`, or all that are stored. They end after its final status. They end without
    /// one where the orchestrator can no longer be reached, as after 30 s over HTTP, or refuses the request: [`get`](Self::get) says
    /// why, and [`follow`] tries again. A number that no update has yet is read as 0, since the log has begun anew.
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
    /// - With `from`: that call and every call recorded after it are discarded, and made again. A call whose outcome is unknown
    ///   counts as recorded when it was begun. One that was begun before `from` stays unknown: it is made again only where it can be
    ///   continued or its key is honoured.
    ///
    /// A call that is made again takes the position of its failure in the order of the answers, and the arm may leave out what
    /// was recorded after that failure. The time limit starts anew; the budget is what earlier attempts have left.
    ///
    /// # Errors
    /// [`BudgetExhausted`](ErrorKind::BudgetExhausted) and [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) where the context
    /// has nothing left. [`TaskNotFound`](ErrorKind::TaskNotFound). [`Unavailable`](ErrorKind::Unavailable) where the orchestrator is
    /// closed. [`Conflict`](ErrorKind::Conflict) where the task has not failed, where another one with its
    /// [uniqueness key](Submission::unique) is not finished, and, without `from`, where calls failed but none of their errors ended the
    /// task.
    /// [`ValidationFailed`](ErrorKind::ValidationFailed) where no call is recorded as `from`.
    /// [`NotImplemented`](ErrorKind::NotImplemented) by default.
    ///
    /// # Cancel safety
    /// The task may or may not be queued again when the future is dropped. Its journal changes together with it.
    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        let _ = (id, from, cx);
        Err(not_implemented())
    }

    /// Returns a page of the calls of a task, in the order in which they were answered, and the cursor of the next page, which is
    /// `None` at the end. [`whole_journal`] follows the pages.
    ///
    /// The page begins after the position `after`, the cursor of the page before, and has at most `limit` calls, 1 to
    /// [`MAX_STEPS`] (default 100). It ends before that where its errors are long. A call that is answered between two pages may
    /// be in both.
    ///
    /// # Errors
    /// [`TaskNotFound`](ErrorKind::TaskNotFound). [`NotImplemented`](ErrorKind::NotImplemented) by default.
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: Option<usize>,
        cx: &Context,
    ) -> Result<(Vec<JournalStep>, Option<u64>), Failure> {
        let _ = (id, after, limit, cx);
        Err(not_implemented())
    }

    /// Returns the cards of the arms that its tasks may call.
    ///
    /// # Errors
    /// Those of the request, where the orchestrator is in another process. A brain has none: an arm that does not answer is listed
    /// as unavailable, or is not listed.
    ///
    /// # Cancel safety
    /// Reads alone: dropping the future changes nothing.
    async fn cards(&self) -> Result<Vec<ArmCard>, Failure>;

    /// Returns the ids of the arms that its configuration names. No other arm can be registered under them. None by default.
    fn configured_arms(&self) -> Vec<String> {
        Vec::new()
    }

    /// Starts no more tasks in this process, and returns when none runs. Tasks are still accepted, for another process: where there
    /// is none, they wait. A server that shuts down calls this during its grace period, and [`close`](Self::close) after it.
    ///
    /// Returns at once by default, for an orchestrator whose tasks run elsewhere.
    ///
    /// # Cancel safety
    /// Dropping the future stops no task. The orchestrator still starts no more of them.
    async fn drain(&self) {}

    /// Stops the orchestrator: accepts no more tasks and no reruns, and hands back the tasks that run, so that another orchestrator
    /// continues them. A second call has no effect.
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

/// Waits until a task is finished, without a time limit, and returns it. It tries again as [`follow`] does.
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
/// After a failure that is retryable it tries again, up to five times in a row. It waits for at least the time that the failure asks
/// for: see [`wait_to_poll`].
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
        let wait = match watch_to_the_end(orchestrator, id, cx, &mut after, &mut each).await {
            Ok(task) if task.status.is_finished() => return Ok(task),
            Ok(_) => {
                // The updates ended before the task did: another brain continues it.
                failures = 0;
                FOLLOW_INTERVAL
            }
            Err(failure) => {
                failures += 1;
                let wait = wait_to_poll(&failure, FOLLOW_INTERVAL * 2_u32.pow(failures), cx.deadline());
                match wait.filter(|_| failures <= FOLLOW_FAILURES) {
                    Some(wait) => wait,
                    None => return Err(failure),
                }
            }
        };
        tokio::time::sleep(wait).await;
    }
}

const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
const FOLLOW_FAILURES: u32 = 5;

/// Returns how long to wait for the next poll after a failed one: `shortest`, or longer where the failure asks for it. `None` where
/// the failure is not retryable, or asks for more than 60 s or for more than is left until the deadline.
pub fn wait_to_poll(failure: &Failure, shortest: Duration, deadline: Option<Deadline>) -> Option<Duration> {
    if !failure.retryable {
        return None;
    }
    let Some(asked) = failure.retry_after else { return Some(shortest) };
    let wait = shortest.max(asked);
    let in_time = deadline.is_none_or(|deadline| wait < deadline.remaining());
    (asked <= MAX_RETRY_AFTER && in_time).then_some(wait)
}

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

/// Checks a caller for a contract whose scope is not known here.
pub(crate) fn authorize_unknown(contract: &ContractRef, caller: &Caller) -> Result<(), Failure> {
    match caller {
        caller if *contract == TaskRequest::SPEC.reference() => caller.may(TaskRequest::SPEC.scope),
        Caller::Anonymous => {
            let message = format!("tasks of {contract} need a caller that is known");
            Err(Failure::new(ErrorKind::Unauthenticated, message).before_execution())
        }
        _ => Ok(()),
    }
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

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: Option<usize>,
        cx: &Context,
    ) -> Result<(Vec<JournalStep>, Option<u64>), Failure> {
        (**self).journal(id, after, limit, cx).await
    }

    async fn cards(&self) -> Result<Vec<ArmCard>, Failure> {
        (**self).cards().await
    }

    fn configured_arms(&self) -> Vec<String> {
        (**self).configured_arms()
    }

    async fn drain(&self) {
        (**self).drain().await;
    }

    async fn close(&self) {
        (**self).close().await;
    }
}
