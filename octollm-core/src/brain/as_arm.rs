//! A brain as an arm: of another brain, of a mesh, behind an arm server.

use async_trait::async_trait;
use serde_json::Value;

use super::{Brain, desk::Stop};
use crate::{
    arm::Arm,
    budget::Usage,
    context::Context,
    contract::TaskContract,
    error::{ArmError, ErrorKind, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, TaskUpdate, follow},
    task::{Submission, Task, TaskBudget, TaskRequest, TaskStatus},
};

/// Runs the contract as a task of this brain and waits for its end. The task gets no more time and no more budget than
/// the caller has left, and is cancelled when the caller goes away.
#[async_trait]
impl<C: TaskContract> Arm<C> for Brain {
    async fn execute(&self, task: C, cx: &Context) -> Result<C::Output, ArmError> {
        let submission = Submission::of(&task)?;
        let budget = narrowed(submission.budget, cx);
        let queued = self.queue_new(submission.with_budget(budget), cx).await?;
        let guard = CancelOnDrop { brain: self, id: &queued.task_id, cx, armed: true };
        let task = follow(self, &queued.task_id, cx, |update| hand_on(update, cx)).await?;
        guard.disarm();
        let used = Usage::tokens(task.metadata.tokens_used).with_cost(task.metadata.cost);
        // What is done is done, also where it took more than there was: the next call is refused then.
        let _ = cx.spend(used);
        output::<C>(task)
    }
}

/// Here the caller waits, so that its deadline is the task's.
fn narrowed(asked: TaskBudget, cx: &Context) -> TaskBudget {
    let seconds = cx.remaining().map(|left| left.as_secs_f64().max(1e-3));
    let max_time_seconds = match (asked.max_time_seconds, seconds) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    TaskBudget { max_time_seconds, ..asked }
}

/// The caller sees the task's progress as the arm's own.
fn hand_on(update: &TaskUpdate, cx: &Context) {
    if let TaskUpdate::Progress { progress, phase, message, .. } = update {
        cx.phase(*phase);
        cx.progress(*progress, message.clone());
    }
}

fn output<C: TaskContract>(task: Task) -> Result<C::Output, ArmError> {
    match (task.status, task.result, task.error) {
        (TaskStatus::Completed, Some(result), _) => {
            let goal = C::SPEC.reference() == TaskRequest::SPEC.reference();
            let value: Value = if goal { serde_json::to_value(result)? } else { result.output };
            Ok(serde_json::from_value(value)?)
        }
        (TaskStatus::Failed, _, Some(error)) => {
            Err(Failure { details: error.details, ..Failure::new(error.kind, error.message) }.into())
        }
        _ => Err(ArmError::new(ErrorKind::Cancelled, "the task was cancelled")),
    }
}

/// Cancels the task when the caller goes away.
struct CancelOnDrop<'a> {
    brain: &'a Brain,
    id: &'a TaskId,
    cx: &'a Context,
    armed: bool,
}

impl CancelOnDrop<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // What runs stops at once; what still waits needs the store, and so a moment.
        let stopped = self.brain.0.desk.stop(self.id, Stop::Cancel);
        if stopped.is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (brain, id, cx) = (self.brain.clone(), self.id.clone(), self.cx.clone());
            runtime.spawn(async move {
                if let Err(error) = brain.cancel(&id, &cx).await {
                    tracing::warn!(task = %id, %error, "abandoned task not cancelled");
                }
            });
        }
    }
}
