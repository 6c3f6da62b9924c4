//! Typed tasks, for programs without a context.

use std::{fmt, future::pending, marker::PhantomData};

use octollm_core::{
    Context,
    budget::Usage,
    contract::TaskContract,
    error::{CallError, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, Orchestrator, TaskUpdates, finished, whole_journal},
    task::{Submission, Task},
};

use super::orchestrator_client::{OrchestratorClient, updates};

impl OrchestratorClient {
    /// Submits a task, waits until it has finished, and returns its output. There is no time limit.
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit) and [`TaskHandle::output`].
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the task: only [`TaskHandle::cancel`] does.
    pub async fn run<C: TaskContract>(&self, input: C) -> Result<C::Output, CallError> {
        self.submit(input).await?.output().await
    }

    /// Submits a task, and returns once it is queued.
    ///
    /// # Errors
    /// The input cannot be written as JSON, or the orchestrator cannot be reached or refuses the task.
    ///
    /// # Cancel safety
    /// If the future is dropped, the task may be queued or not.
    pub async fn submit<C: TaskContract>(&self, input: C) -> Result<TaskHandle<C>, CallError> {
        let submission =
            Submission::of(&input).map_err(|failure| CallError::new(C::SPEC.reference(), failure))?;
        let cx = self.context();
        let task =
            Orchestrator::submit(self, submission, &cx).await.map_err(|failure| self.failed::<C>(failure))?;
        let id = task.task_id.clone();
        let answered = task.status.is_finished().then(|| Box::new(task));
        Ok(TaskHandle { client: self.clone(), cx, id, answered, contract: PhantomData })
    }

    /// Returns a handle to the task of this id, which an earlier [`submit`](Self::submit) returned. Nothing is sent.
    pub fn task<C: TaskContract>(&self, id: TaskId) -> TaskHandle<C> {
        let (client, cx) = (self.clone(), self.context());
        TaskHandle { client, cx, id, answered: None, contract: PhantomData }
    }

    fn failed<C: TaskContract>(&self, failure: Failure) -> CallError {
        CallError::new(C::SPEC.reference(), failure).with_endpoint(self.url())
    }
}

/// A handle to a submitted task: see [`OrchestratorClient::submit`]. Dropping it does not cancel the task.
pub struct TaskHandle<C> {
    client: OrchestratorClient,
    /// Context of all requests for the task, which share its correlation id.
    cx: Context,
    id: TaskId,
    /// The task, if a reflex answered it at once, so that no orchestrator knows it.
    answered: Option<Box<Task>>,
    contract: PhantomData<fn(C)>,
}

impl<C: TaskContract> TaskHandle<C> {
    /// Returns the id of the task.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// Returns the current state of the task.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the task.
    pub async fn status(&self) -> Result<Task, CallError> {
        if let Some(task) = &self.answered {
            return Ok(Task::clone(task));
        }
        self.client.get(&self.id, &self.cx).await.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// Waits until the task has finished, and returns its output.
    ///
    /// # Errors
    /// The kind is that of the task's error if it has failed, [`Cancelled`](octollm_core::error::ErrorKind::Cancelled) if it was cancelled, and
    /// [`BadResponse`](octollm_core::error::ErrorKind::BadResponse) if its output is not one of the contract. Otherwise the orchestrator cannot be
    /// reached, refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the task. The method can be called again.
    pub async fn output(&self) -> Result<C::Output, CallError> {
        let finished = match &self.answered {
            Some(task) => Ok(Task::clone(task)),
            None => finished(&self.client, &self.id, &self.cx).await,
        };
        let task = finished.map_err(|failure| self.client.failed::<C>(failure))?;
        let usage = Usage::tokens(task.metadata.tokens_used).with_cost(task.metadata.cost);
        task.into_output::<C>().map_err(|failure| self.client.failed::<C>(failure).with_usage(usage))
    }

    /// Cancels the task. A finished task is not changed.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// If the future is dropped, the task may be cancelled or not.
    pub async fn cancel(&self) -> Result<Task, CallError> {
        if let Some(task) = &self.answered {
            return Ok(Task::clone(task));
        }
        self.client.cancel(&self.id, &self.cx).await.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// Runs the failed task again, without repeating its answered calls. It returns once the task is queued; await
    /// [`output`](Self::output) then.
    ///
    /// # Errors
    /// The kind is [`Conflict`](octollm_core::error::ErrorKind::Conflict) if the task has not failed, or if calls failed and none of them ended it.
    /// Otherwise the orchestrator cannot be reached, refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// If the future is dropped, the task may be queued or not.
    pub async fn rerun(&self) -> Result<Task, CallError> {
        self.rerun_with(None).await
    }

    /// Runs the failed task again, and repeats this call and every call recorded after it. A step is a position, from 0, or a
    /// name. A call that was begun before it and whose outcome is unknown is not repeated.
    ///
    /// # Errors
    /// The kind is [`Conflict`](octollm_core::error::ErrorKind::Conflict) if the task has not failed. Otherwise the orchestrator cannot be reached,
    /// refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// If the future is dropped, the task may be queued or not.
    pub async fn rerun_from(&self, step: impl Into<StepKey>) -> Result<Task, CallError> {
        self.rerun_with(Some(step.into())).await
    }

    async fn rerun_with(&self, from: Option<StepKey>) -> Result<Task, CallError> {
        let task = self.client.rerun(&self.id, from.as_ref(), &self.cx).await;
        task.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// Returns all calls that the task has made, in the order of their answers. They are requested in pages.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the task.
    pub async fn journal(&self) -> Result<Vec<JournalStep>, CallError> {
        if self.answered.is_some() {
            return Ok(Vec::new());
        }
        let journal = whole_journal(&self.client, &self.id, &self.cx).await;
        journal.map_err(|failure| self.client.failed::<C>(failure))
    }

    /// Returns the updates of the task from now on. The last one is its final status.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the task.
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
