//! A brain as an arm: of another brain, of a mesh, of a server.

use std::time::Duration;

use async_trait::async_trait;

use super::{Brain, running::Stop};
use crate::{
    arm::Arm,
    budget::Usage,
    context::Context,
    contract::TaskContract,
    deadline::Deadline,
    error::{ArmError, ErrorKind, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, TaskUpdate, follow},
    task::{Submission, TaskBudget, TaskStatus},
};

/// Runs the contract as a task of this brain and waits for its end. The task gets no more budget than the caller has left,
/// and slightly less time, so that what it used is known before the caller's deadline. It is cancelled when the caller goes
/// away.
#[async_trait]
impl<C: TaskContract> Arm<C> for Brain {
    async fn execute(&self, input: C, cx: &Context) -> Result<C::Output, ArmError> {
        let submission = Submission::of(&input)?;
        let end = cx.deadline().map(|deadline| Deadline::after(shortened(deadline.remaining())));
        let budget = narrowed(submission.budget, end);
        let record = self.prepare(submission.with_budget(budget), cx)?;
        let id = record.id().clone();
        // Before the task is stored: it must not outlive a caller that goes away meanwhile.
        let guard = CancelOnDrop { brain: self, id: &id, cx, armed: true };
        self.store(record).await?;
        let followed = Deadline::run_until(end, follow(self, &id, cx, |update| pass_on(update, cx))).await;
        let in_time = followed.is_some();
        let task = match followed {
            Some(task) => task?,
            // It waited in the queue, or is just being ended.
            None => self.cancel(&id, cx).await?,
        };
        guard.disarm();
        let used = Usage { cost: task.metadata.cost, ..Usage::tokens(task.metadata.tokens_used) };
        // What is done is done, also where it took more than there was: the next call is refused then.
        let _ = cx.spend(used);
        if !in_time && task.status == TaskStatus::Cancelled {
            return Err(Failure::of(ErrorKind::DeadlineExceeded).into());
        }
        Ok(task.into_output::<C>()?)
    }
}

/// The longest part of a caller's time that is left to end a task and to read what it used.
const TO_END: Duration = Duration::from_millis(50);

fn shortened(left: Duration) -> Duration {
    left.saturating_sub(TO_END.min(left / 10))
}

/// Here the caller waits, so that its deadline is the task's.
fn narrowed(asked: TaskBudget, end: Option<Deadline>) -> TaskBudget {
    let seconds = end.map(|end| end.remaining().as_secs_f64().max(1e-3));
    let max_time_seconds = match (asked.max_time_seconds, seconds) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    TaskBudget { max_time_seconds, ..asked }
}

/// The caller sees the task's progress as the arm's own.
fn pass_on(update: &TaskUpdate, cx: &Context) {
    if let TaskUpdate::Progress { progress, phase, message, .. } = update {
        cx.phase(*phase);
        cx.progress(*progress, message.clone());
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

/// How often it is tried to cancel a task that may just be on its way into the store.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // What runs stops at once; the rest needs the store, and so a moment.
        self.brain.0.running.stop(self.id, Stop::Cancel);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (brain, id, cx) = (self.brain.clone(), self.id.clone(), self.cx.clone());
            runtime.spawn(async move {
                for _ in 0..ATTEMPTS {
                    match brain.cancel(&id, &cx).await {
                        Ok(_) => return,
                        Err(failure) => {
                            tracing::debug!(task = %id, %failure, "abandoned task not cancelled yet")
                        }
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
    }
}
