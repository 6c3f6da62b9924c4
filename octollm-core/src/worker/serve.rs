//! One job: from its delivery to its reply.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::join;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    authority::AuthenticateJob,
    cancellations::Cancellations,
    job::{self, Ended, Job, Reply},
};
use crate::{
    budget::{Usage, narrower},
    bus::{BusError, Capability, DurableBus, EventHandler, Gap, Nack},
    context::Context,
    contract::ContractRef,
    deadline::Deadline,
    dispatcher::Dispatcher,
    error::{ErrorKind, Failure},
    event::Event,
    parts::{Caller, ContextParts},
    transport::Transport,
    update::{Update, UpdateSink},
};

/// Updates of one job that wait to be published. Progress beyond that is dropped, chunks wait.
const UPDATES: usize = 64;

/// What the consumers of a worker share.
pub(super) struct Shared {
    pub(super) bus: Arc<dyn DurableBus>,
    pub(super) dispatcher: Dispatcher,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) authenticator: Option<Arc<dyn AuthenticateJob>>,
    pub(super) time_limit: Option<Duration>,
    pub(super) max_attempts: u32,
    /// Ends the jobs that still run after the grace period.
    pub(super) stop: CancellationToken,
    pub(super) cancellations: Arc<Cancellations>,
}

/// Handles the jobs of one contract.
pub(super) struct Jobs {
    pub(super) shared: Arc<Shared>,
    pub(super) contract: ContractRef,
}

#[async_trait]
impl EventHandler for Jobs {
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack> {
        let job = Job::read(&event).map_err(|failure| Nack::dead_letter(reason(&failure)))?;
        let delivered = Delivered { shared: &self.shared, contract: &self.contract, event, job, attempt };
        delivered.serve().await
    }

    async fn gap(&self, gap: Gap) {
        tracing::warn!(contract = %self.contract, %gap, "jobs may be lost");
    }
}

/// One attempt at a job.
struct Delivered<'a> {
    shared: &'a Shared,
    contract: &'a ContractRef,
    event: Event,
    job: Job,
    attempt: u32,
}

/// The end of an attempt.
struct Attempt {
    result: Result<serde_json::Value, Failure>,
    usage: Usage,
}

impl Delivered<'_> {
    async fn serve(&self) -> Result<(), Nack> {
        let Some(running) = self.shared.cancellations.begin(&self.event) else { return Err(Nack::Drop) };
        let parts = match self.parts().await {
            Ok(parts) => parts,
            Err(failure) => return self.failed(failure, None, Usage::ZERO).await,
        };
        let deadline = parts.deadline;
        let attempt = tokio::select! {
            biased;
            attempt = self.run(parts, &running.token) => attempt,
            () = self.shared.stop.cancelled() => {
                return Err(Nack::retry().with_reason("the worker stopped"));
            }
        };
        if running.token.is_cancelled() {
            return Err(Nack::Drop);
        }
        match attempt.result {
            Ok(output) => self.completed(output, attempt.usage).await,
            Err(failure) => self.failed(failure, deadline, attempt.usage).await,
        }
    }

    /// The context of the attempt, with its caller.
    async fn parts(&self) -> Result<ContextParts, Failure> {
        let mut parts = self.job.parts(&self.event, self.attempt)?;
        parts.caller = match &self.shared.authenticator {
            Some(authenticator) => authenticator.authenticate(self.job.token.as_deref()).await?,
            None => Caller::Unchecked,
        };
        if let Some(task) = &parts.task_id {
            parts.caller.may_work_for(task)?;
        }
        Ok(parts)
    }

    /// Runs the arm. While another run of the key has not ended, this attempt waits for it.
    async fn run(&self, mut parts: ContextParts, cancelled: &CancellationToken) -> Attempt {
        let job_deadline = parts.deadline;
        parts.deadline = narrower(job_deadline, self.shared.time_limit.map(Deadline::after));
        loop {
            let mut attempt = self.execute(parts.clone(), cancelled).await;
            let Err(failure) = &mut attempt.result else { return attempt };
            match failure.kind {
                ErrorKind::Conflict if failure.retryable => {
                    let wait = failure.retry_after.unwrap_or(Duration::from_secs(1));
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = cancelled.cancelled() => return attempt,
                    }
                }
                // A limit that is shorter than the time that the caller waits: another attempt may be faster.
                ErrorKind::DeadlineExceeded if !job_deadline.is_some_and(Deadline::has_passed) => {
                    failure.kind = ErrorKind::Timeout;
                    if failure.message == ErrorKind::DeadlineExceeded.summary() {
                        failure.message = "the time limit of the run has passed".into();
                    }
                    failure.retryable = self.is_idempotent();
                    return attempt;
                }
                _ => return attempt,
            }
        }
    }

    async fn execute(&self, parts: ContextParts, cancelled: &CancellationToken) -> Attempt {
        let mut cx = Context::from_parts(parts, self.shared.transport.clone());
        cx = cx.with_cancellation(cancelled.clone());
        let (updates, received) = mpsc::channel(UPDATES);
        if self.job.updates && self.job.reply_to.is_some() {
            cx = cx.with_updates(Arc::new(Updates(updates)));
        }
        let ended = CancellationToken::new();
        let execute = async {
            let input = self.job.input();
            let output = self.shared.dispatcher.execute(self.contract, &input, &mut cx).await;
            ended.cancel();
            output
        };
        let (output, ()) = join(execute, self.publish_updates(received, &ended)).await;
        let result = match output {
            Ok(output) => job::value(&output, "the output").map_err(|failure| Failure {
                kind: ErrorKind::BadResponse,
                may_have_executed: true,
                ..failure
            }),
            Err(error) => Err(error.into_failure()),
        };
        Attempt { result, usage: cx.used() }
    }

    /// Publishes updates until the arm has ended and all are published.
    async fn publish_updates(&self, mut updates: mpsc::Receiver<Update>, ended: &CancellationToken) {
        loop {
            let update = tokio::select! {
                biased;
                update = updates.recv() => update,
                () = ended.cancelled() => updates.try_recv().ok(),
            };
            let Some(update) = update else { return };
            if let Err(error) = self.reply(&Reply::Update(update)).await {
                tracing::debug!(contract = %self.contract, %error, "update of a job not published");
            }
        }
    }

    async fn completed(&self, output: serde_json::Value, usage: Usage) -> Result<(), Nack> {
        match self.reply(&self.end(Ok(output), usage)).await {
            Ok(()) => Ok(()),
            Err(BusError::TooLarge { size, limit }) => {
                let words = format!("the output is too large: its event has {size} bytes of at most {limit}");
                let mut failure = Failure::new(ErrorKind::PayloadTooLarge, words);
                failure.may_have_executed = true;
                self.failed(failure, None, usage).await
            }
            Err(error) => Err(not_published(&error)),
        }
    }

    async fn failed(&self, failure: Failure, deadline: Option<Deadline>, usage: Usage) -> Result<(), Nack> {
        let words = reason(&failure);
        let wait = failure.retry_after.unwrap_or_default();
        let in_time = deadline.is_none_or(|deadline| deadline.remaining() > wait);
        if failure.retryable && self.attempt < self.shared.max_attempts && in_time {
            let can_wait = self.shared.bus.capabilities().contains(&Capability::DelayedNack);
            let after = failure.retry_after.filter(|_| can_wait);
            return Err(Nack::Retry { after, reason: Some(words) });
        }
        match self.reply(&self.end(Err(failure), usage)).await {
            Err(error) if error.retryable() && self.attempt < self.shared.max_attempts => {
                Err(not_published(&error))
            }
            _ => Err(Nack::dead_letter(words)),
        }
    }

    fn end(&self, result: Result<serde_json::Value, Failure>, usage: Usage) -> Reply {
        let arm = self.shared.dispatcher.card().arm_id.clone();
        Reply::Ended(Box::new(Ended { result, arm, attempt: self.attempt, usage }))
    }

    async fn reply(&self, reply: &Reply) -> Result<(), BusError> {
        let Some(to) = &self.job.reply_to else { return Ok(()) };
        let arm = &self.shared.dispatcher.card().arm_id;
        match reply.to_event(to, &self.event, arm) {
            Ok(event) => self.shared.bus.publish(event).await,
            Err(error) => {
                tracing::error!(contract = %self.contract, %error, "a reply to a job cannot be written");
                Ok(())
            }
        }
    }

    fn is_idempotent(&self) -> bool {
        self.shared.dispatcher.spec(self.contract).is_ok_and(|spec| spec.idempotent)
    }
}

fn not_published(error: &BusError) -> Nack {
    tracing::warn!(%error, "the end of a job is not published: the job is delivered again");
    Nack::retry().with_reason("the reply could not be published")
}

/// The reason of a dead letter or of an attempt: the code of the failure and its message.
fn reason(failure: &Failure) -> String {
    format!("{}: {}", failure.kind, failure.message)
}

/// Sends the updates of an arm to the task that publishes them.
struct Updates(mpsc::Sender<Update>);

#[async_trait]
impl UpdateSink for Updates {
    fn update(&self, update: Update) {
        // Progress that comes too fast is dropped.
        let _ = self.0.try_send(update);
    }

    async fn chunk(&self, chunk: serde_json::Value) {
        let _ = self.0.send(Update::Chunk(chunk)).await;
    }
}
