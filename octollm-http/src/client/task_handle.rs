//! Typed tasks, for programs without a context.

use std::{fmt, future::pending, marker::PhantomData, time::Duration};

use octollm_core::{
    Context,
    budget::Usage,
    contract::TaskContract,
    error::{CallError, ErrorKind, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, Orchestrator, TaskUpdates, finished, whole_journal},
    task::{Submission, Task},
};

use super::orchestrator_client::{OrchestratorClient, updates};

impl OrchestratorClient {
    /// Submits a task, waits until it has finished, and returns its output. There is no time limit.
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit) and [`TaskHandle::output`]. Once the task is accepted, or may be, no error is retryable, since
    /// a second `run` would submit a second task. The id in the error leads to the accepted one: see [`task`](Self::task).
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the task: only [`TaskHandle::cancel`] does.
    pub async fn run<C: TaskContract>(&self, input: C) -> Result<C::Output, CallError> {
        let handle = self.submit(input).await?;
        let ended = handle.wait().await;
        ended.map_err(|(failure, usage)| self.failed::<C>(not_repeatable(failure)).with_usage(usage))
    }

    /// Submits a task, and returns once it is queued.
    ///
    /// # Errors
    /// The input cannot be written as JSON, or the orchestrator cannot be reached or refuses the task. If the task may be queued all the
    /// same, the error has `may_have_executed`, is not retryable, and counts one unmetered call.
    ///
    /// # Cancel safety
    /// If the future is dropped, the task may be queued or not.
    pub async fn submit<C: TaskContract>(&self, input: C) -> Result<TaskHandle<C>, CallError> {
        let submission =
            Submission::of(&input).map_err(|failure| CallError::new(C::SPEC.reference(), failure))?;
        self.submit_job(submission).await
    }

    /// Submits a task with a start, a uniqueness key, attempts, a priority or a budget, and returns once it is queued. Where a task has
    /// the [uniqueness key](Submission::unique), the handle is of [that one](TaskHandle::existing).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use octollm_http::client::OrchestratorClient;
    /// # use octollm_core::{error::Error, task::{Priority, Submission, TaskRequest}};
    /// # async fn run(client: OrchestratorClient) -> Result<(), Error> {
    /// let job = Submission::of(&TaskRequest::new("Write the digest of the day."))?
    ///     .run_in(Duration::from_secs(3600))
    ///     .unique("digest-2026-11-27")
    ///     .attempts(5)
    ///     .priority(Priority::Low);
    /// let digest = client.submit_job::<TaskRequest>(job).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit). The submission is of another contract than `C`, or a member is out of range.
    ///
    /// # Cancel safety
    /// If the future is dropped, the task may be queued or not.
    pub async fn submit_job<C: TaskContract>(
        &self,
        submission: Submission,
    ) -> Result<TaskHandle<C>, CallError> {
        if submission.contract != C::SPEC.reference() {
            let message = format!("the submission is of {}", submission.contract);
            return Err(self.failed::<C>(Failure::new(ErrorKind::BadRequest, message).before_execution()));
        }
        let cx = self.context();
        let submitted = Orchestrator::submit(self, submission, &cx).await;
        let task = submitted.map_err(|failure| match failure.may_have_executed {
            true => self.failed::<C>(not_repeatable(failure)).with_usage(Usage::UNMETERED),
            false => self.failed::<C>(failure),
        })?;
        let (id, existing) = (task.task_id.clone(), task.existing);
        let answered = task.status.is_finished().then(|| Box::new(task));
        Ok(TaskHandle { client: self.clone(), cx, id, existing, answered, contract: PhantomData })
    }

    /// Returns a handle to the task of this id, which an earlier [`submit`](Self::submit) returned. Nothing is sent.
    pub fn task<C: TaskContract>(&self, id: TaskId) -> TaskHandle<C> {
        let (client, cx) = (self.clone(), self.context());
        TaskHandle { client, cx, id, existing: true, answered: None, contract: PhantomData }
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
    existing: bool,
    /// The task, if a reflex answered it at once, so that no orchestrator knows it.
    answered: Option<Box<Task>>,
    contract: PhantomData<fn(C)>,
}

impl<C: TaskContract> TaskHandle<C> {
    /// Returns the id of the task.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// Returns whether the task was there before this handle: the submission had its [uniqueness key](Submission::unique), or none was
    /// made.
    pub fn existing(&self) -> bool {
        self.existing
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
    /// [`BadResponse`](octollm_core::error::ErrorKind::BadResponse) if its output is not one of the contract. Such an error is not retryable,
    /// and has the usage of the task.
    ///
    /// Otherwise the orchestrator cannot be reached, refuses the request, or does not know the task. If such an error is retryable, a
    /// second `output` can succeed. Its usage is one unmetered call.
    ///
    /// Every error has `may_have_executed`, and the id of the task as `task_id` in the details of its failure, unless a reflex answered
    /// the task.
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the task. The method can be called again.
    pub async fn output(&self) -> Result<C::Output, CallError> {
        let ended = self.wait().await;
        ended.map_err(|(failure, usage)| self.client.failed::<C>(failure).with_usage(usage))
    }

    async fn wait(&self) -> Result<C::Output, (Failure, Usage)> {
        let finished = match &self.answered {
            Some(task) => Ok(Task::clone(task)),
            None => finished(&self.client, &self.id, &self.cx).await,
        };
        let (failure, usage) = match finished {
            Ok(task) => {
                let usage = Usage::tokens(task.metadata.tokens_used).with_cost(task.metadata.cost);
                match task.into_output::<C>() {
                    Ok(output) => return Ok(output),
                    Err(failure) => (not_repeatable(failure), usage),
                }
            }
            Err(mut failure) => {
                failure.message = format!("task {} cannot be followed: {failure}", self.id);
                (failure, Usage::UNMETERED)
            }
        };
        Err((self.of_accepted(failure), usage))
    }

    /// The failure of a task that was accepted.
    fn of_accepted(&self, mut failure: Failure) -> Failure {
        failure.may_have_executed = true;
        if self.answered.is_none() {
            failure.add_detail("task_id", self.id.as_str().into());
        }
        failure
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

    /// Returns the updates of the task: those that are stored, and then each as it comes. The last one is its final status, unless the
    /// orchestrator was away for [`resume_timeout`](super::OrchestratorClientBuilder::resume_timeout), or has refused a request: then
    /// [`status`](Self::status) says why.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, refuses the request, or does not know the task.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the task.
    pub async fn watch(&self) -> Result<TaskUpdates, CallError> {
        if let Some(task) = &self.answered {
            return Ok(updates(Task::clone(task), None, (None, Duration::ZERO), |_| pending()));
        }
        self.client.watch(&self.id, None, &self.cx).await.map_err(|failure| self.client.failed::<C>(failure))
    }
}

/// The failure, where the same call would submit a second task or meet the same end.
fn not_repeatable(mut failure: Failure) -> Failure {
    (failure.retryable, failure.retry_after) = (false, None);
    failure
}

impl<C> fmt::Debug for TaskHandle<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("id", &self.id)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
