//! Tasks for programs at the edge, which have no context: typed like calls.

use std::{fmt, future::pending, marker::PhantomData};

use octollm_core::{
    Context,
    budget::Usage,
    contract::TaskContract,
    error::{CallError, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, Orchestrator, TaskUpdates, finished},
    task::{Submission, Task},
};

use super::orchestrator_client::{OrchestratorClient, updates};

impl OrchestratorClient {
    /// Submits a task, waits until it has finished, however long that takes, and returns its output.
    ///
    /// # Errors
    /// As [`submit`](Self::submit) and [`TaskHandle::output`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the task running: only [`TaskHandle::cancel`] ends it.
    pub async fn run<C: TaskContract>(&self, input: C) -> Result<C::Output, CallError> {
        self.submit(input).await?.output().await
    }

    /// Submits a task, and returns once it is queued.
    ///
    /// # Errors
    /// A [`CallError`]: the input cannot be written as JSON, the orchestrator refused it, or it could not be reached.
    ///
    /// # Cancel safety
    /// Dropping the future may leave a task queued.
    pub async fn submit<C: TaskContract>(&self, input: C) -> Result<TaskHandle<C>, CallError> {
        let submission =
            Submission::of(&input).map_err(|failure| CallError::new(C::SPEC.reference(), failure))?;
        let cx = Context::detached();
        let task =
            Orchestrator::submit(self, submission, &cx).await.map_err(|failure| self.failed::<C>(failure))?;
        let id = task.task_id.clone();
        let answered = task.status.is_finished().then(|| Box::new(task));
        Ok(TaskHandle { client: self.clone(), cx, id, answered, contract: PhantomData })
    }

    /// The task of this id, which an earlier [`submit`](Self::submit) returned. Nothing is sent.
    pub fn task<C: TaskContract>(&self, id: TaskId) -> TaskHandle<C> {
        let (client, cx) = (self.clone(), Context::detached());
        TaskHandle { client, cx, id, answered: None, contract: PhantomData }
    }

    fn failed<C: TaskContract>(&self, failure: Failure) -> CallError {
        CallError::new(C::SPEC.reference(), failure).with_endpoint(self.url())
    }
}

/// A task that was submitted: see [`OrchestratorClient::submit`]. Dropping it leaves the task running.
pub struct TaskHandle<C> {
    client: OrchestratorClient,
    /// All requests for one task have one correlation id.
    cx: Context,
    id: TaskId,
    /// A task that had finished when it was submitted: a reflex answered it, and no orchestrator knows of it.
    answered: Option<Box<Task>>,
    contract: PhantomData<fn(C)>,
}

impl<C: TaskContract> TaskHandle<C> {
    /// The id of the task.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// The task as it stands.
    ///
    /// # Errors
    /// A [`CallError`] where the orchestrator cannot be asked.
    pub async fn status(&self) -> Result<Task, CallError> {
        if let Some(task) = &self.answered {
            return Ok(Task::clone(task));
        }
        self.client.get(&self.id, &self.cx).await.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// Waits until the task has finished, and returns its output.
    ///
    /// # Errors
    /// A [`CallError`]: of the kind of the task's own error where it failed, [`Cancelled`](ErrorKind::Cancelled) where it
    /// was cancelled, [`BadResponse`](ErrorKind::BadResponse) where its output is none of the contract; or the orchestrator
    /// cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the task running; the method can be called again.
    pub async fn output(&self) -> Result<C::Output, CallError> {
        let finished = match &self.answered {
            Some(task) => Ok(Task::clone(task)),
            None => finished(&self.client, &self.id, &self.cx).await,
        };
        let task = finished.map_err(|failure| self.client.failed::<C>(failure))?;
        let usage = Usage::tokens(task.metadata.tokens_used).with_cost(task.metadata.cost);
        task.into_output::<C>().map_err(|failure| self.client.failed::<C>(failure).with_usage(usage))
    }

    /// Cancels the task. One that has finished stays as it is.
    ///
    /// # Errors
    /// A [`CallError`] where the orchestrator cannot be asked.
    pub async fn cancel(&self) -> Result<Task, CallError> {
        if let Some(task) = &self.answered {
            return Ok(Task::clone(task));
        }
        self.client.cancel(&self.id, &self.cx).await.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// Runs the failed task once more: calls that were answered are not made again. It returns once the task is queued; wait for
    /// [`output`](Self::output).
    ///
    /// # Errors
    /// A [`CallError`]: [`Conflict`](ErrorKind::Conflict) unless the task has failed, and where calls failed but none of them
    /// ended it; or the orchestrator cannot be asked.
    pub async fn rerun(&self) -> Result<Task, CallError> {
        self.rerun_with(None).await
    }

    /// Runs the failed task once more, and makes every call from this step on again: its order, from 0, or its name.
    ///
    /// # Errors
    /// A [`CallError`]: [`Conflict`](ErrorKind::Conflict) unless the task has failed; or the orchestrator cannot be asked.
    pub async fn rerun_from(&self, step: impl Into<StepKey>) -> Result<Task, CallError> {
        self.rerun_with(Some(step.into())).await
    }

    async fn rerun_with(&self, from: Option<StepKey>) -> Result<Task, CallError> {
        let task = self.client.rerun(&self.id, from.as_ref(), &self.cx).await;
        task.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// The calls that the task has made, in the order in which they were answered.
    ///
    /// # Errors
    /// A [`CallError`] where the orchestrator cannot be asked.
    pub async fn journal(&self) -> Result<Vec<JournalStep>, CallError> {
        if self.answered.is_some() {
            return Ok(Vec::new());
        }
        self.client.journal(&self.id, &self.cx).await.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// The updates of the task from now on; the last one is its final status.
    ///
    /// # Errors
    /// A [`CallError`] where the orchestrator cannot be asked.
    pub async fn watch(&self) -> Result<TaskUpdates, CallError> {
        if let Some(task) = &self.answered {
            return Ok(updates(Task::clone(task), None, |_| pending()));
        }
        self.client.watch(&self.id, None, &self.cx).await.map_err(|failure| self.client.failed::<C>(failure))
    }
}

impl<C> fmt::Debug for TaskHandle<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("id", &self.id)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
