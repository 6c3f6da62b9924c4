//! The brain: the stock orchestrator, which runs arms as tasks.
//!
//! What a brain runs is an [`Arm`](crate::Arm) like any other, whose calls are journaled. If the process dies, another
//! brain on the same store takes the task and runs the arm again; calls that were answered return from the journal. So
//! an arm is written as plain code, and what makes it durable is where it runs.

mod announce;
mod as_arm;
mod builder;
mod config;
mod desk;
mod journal;
mod keeper;
mod queue;
mod run;
mod updates;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream;

use self::{
    announce::Announcer,
    desk::{Desk, Stop},
};
pub use self::{
    builder::BrainBuilder,
    config::{BrainConfig, InvalidConfig},
};
use crate::{
    bus::EventBus,
    card::ArmCard,
    clock::Clock,
    context::Context,
    dispatcher::Dispatcher,
    error::{ErrorKind, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, TaskPage, TaskQuery, TaskUpdate, TaskUpdates},
    store::{JournalEntry, StoreError, TaskFilter, TaskStore},
    task::{IllegalTransition, Submission, Task, TaskRecord, TaskStatus},
    transport::Transport,
};

/// Takes tasks, runs an arm for each, journals its calls, tells the bus, and keeps the tasks. A clone is the same brain.
///
/// Tasks run on tokio's runtime, in the background. A brain whose last clone is dropped lets its tasks run to their
/// end; [`close`](Self::close) gives them up, for another brain to take.
#[derive(Clone)]
pub struct Brain(Arc<Inner>);

struct Inner {
    /// Tells this brain from others on the same store.
    holder: String,
    dispatcher: Arc<Dispatcher>,
    transport: Arc<dyn Transport>,
    bus: Arc<dyn EventBus>,
    announcer: Announcer,
    store: Arc<dyn TaskStore>,
    clock: Clock,
    config: BrainConfig,
    desk: Desk,
}

/// The scope that shows a caller everybody's tasks.
const ADMIN: &str = "tasks:admin";

/// How often a task that runs elsewhere is looked at for those who watch it.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

impl Brain {
    /// A brain to be put together.
    pub fn builder() -> BrainBuilder {
        BrainBuilder::default()
    }

    /// The bus that it tells what becomes of tasks.
    pub fn bus(&self) -> &Arc<dyn EventBus> {
        &self.0.bus
    }

    /// The contracts it runs as tasks, as the arm that it is too.
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.0.dispatcher
    }

    /// The arms that its tasks call.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }

    /// Takes up tasks in the store that this brain can run and nobody does, and says how many: 256 at most, and further
    /// ones when those are done.
    ///
    /// A brain does so by itself, at a third of its lease, once it has been given its first task. A brain that is to go
    /// on where another stopped calls this when it starts.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the store is.
    pub async fn recover(&self) -> Result<usize, Failure> {
        keeper::start(&self.0);
        run::take_free(&self.0).await
    }

    /// Runs a failed task once more. Calls that were answered return from the journal, those that failed are made again.
    ///
    /// # Errors
    /// [`ErrorKind::TaskNotFound`]; [`ErrorKind::Conflict`] unless it has failed; [`ErrorKind::Overloaded`].
    pub async fn rerun(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        let failed = |record: &TaskRecord| match record.task.status {
            TaskStatus::Failed => Ok(()),
            from => Err(conflict(IllegalTransition { from, to: TaskStatus::Queued })),
        };
        failed(&self.visible(id, cx).await?)?;
        self.0.desk.has_room()?;
        // While nobody may take it: the next run would find what is to be forgotten.
        self.0.store.forget_failures(id).await?;
        let (record, _) = self
            .change(id, cx, |record, now| {
                failed(record)?;
                record.requeue(now).map(|()| true).map_err(conflict)
            })
            .await?;
        self.0.announcer.status(&record, Duration::ZERO).await;
        keeper::start(&self.0);
        self.enqueue(&record);
        Ok(record.task)
    }

    /// The calls that a task has made, in the order in which they were answered.
    ///
    /// # Errors
    /// [`ErrorKind::TaskNotFound`]
    pub async fn journal(&self, id: &TaskId, cx: &Context) -> Result<Vec<JournalEntry>, Failure> {
        self.visible(id, cx).await?;
        Ok(self.0.store.journal(id).await?)
    }

    /// Stops: takes no more tasks, gives up those that run and leaves them queued, so that another brain goes on with
    /// them. A second call does nothing more.
    pub async fn close(&self) {
        self.0.desk.close(Stop::Close);
        self.0.desk.idle().await;
    }

    /// Stops as a crash would: what runs is dropped and nothing is written.
    #[cfg(feature = "mesh")]
    pub(crate) async fn crash(&self) {
        self.0.desk.close(Stop::Lost);
        self.0.desk.idle().await;
    }

    /// Another brain for the same tasks, on the same store.
    #[cfg(feature = "mesh")]
    pub(crate) fn successor(&self) -> Self {
        let Inner { dispatcher, transport, bus, announcer, store, clock, config, .. } = &*self.0;
        Self(Arc::new(Inner {
            holder: format!("{}-{}", dispatcher.card().arm_id, crate::id::RequestId::new()),
            dispatcher: dispatcher.clone(),
            transport: transport.clone(),
            bus: bus.clone(),
            announcer: announcer.clone(),
            store: store.clone(),
            clock: *clock,
            config: config.clone(),
            desk: Desk::new(config),
        }))
    }

    /// A task that this caller may see.
    async fn visible(&self, id: &TaskId, cx: &Context) -> Result<TaskRecord, Failure> {
        let record = self.0.store.get(id).await?;
        record
            .filter(|record| sees_all(cx) || record.caller.is_same_as(cx.caller()))
            .ok_or_else(|| Failure::of(ErrorKind::TaskNotFound))
    }

    /// Changes a task in the store, again from the start where somebody else's change came first. `change` says whether
    /// there is anything to keep; so does what comes back.
    async fn change(
        &self,
        id: &TaskId,
        cx: &Context,
        change: impl Fn(&mut TaskRecord, jiff::Timestamp) -> Result<bool, Failure> + Send + Sync,
    ) -> Result<(TaskRecord, bool), Failure> {
        loop {
            let mut record = self.visible(id, cx).await?;
            if !change(&mut record, self.0.clock.now())? {
                return Ok((record, false));
            }
            match self.0.store.update(&mut record).await {
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => return Ok((record, true)),
            }
        }
    }

    /// Puts a task that the store has in the queue, and starts what can be started. Where the brain was closed
    /// meanwhile, the task waits in the store for another one, like all that it leaves.
    fn enqueue(&self, record: &TaskRecord) {
        if self.0.desk.enqueue(record.id(), record.priority) {
            run::start_waiting(&self.0);
        }
    }

    async fn queue_new(&self, mut submission: Submission, cx: &Context) -> Result<Task, Failure> {
        // Whoever submits cannot give what they do not have. Their deadline is for the submission, not for the task.
        submission.budget = submission.budget.within(cx.budget());
        let route = self.0.dispatcher.find(&submission.contract)?;
        route.admit(cx.caller())?;
        route.check(submission.input.to_string().as_bytes())?;
        submission.budget.check().map_err(Failure::invalid)?;
        self.0.desk.has_room()?;
        // Finds the task again should this be dropped half way.
        keeper::start(&self.0);
        let owner = cx.caller().clone();
        let correlation = cx.correlation_id().clone();
        let record = TaskRecord::new(submission, owner, correlation, self.0.clock.now());
        self.0.store.create(record.clone()).await?;
        self.0.announcer.status(&record, Duration::ZERO).await;
        self.enqueue(&record);
        Ok(record.task)
    }

    /// The task as it stands, with the progress that only this brain knows.
    fn live(&self, record: TaskRecord) -> Task {
        let mut task = record.task;
        if !task.status.is_finished()
            && let Some(log) = self.0.desk.log(&task.task_id)
        {
            task.progress = log.progress();
        }
        task
    }

    /// A task that runs elsewhere, or no longer: told by what the store says.
    fn watch_store(&self, id: TaskId) -> TaskUpdates {
        let brain = self.clone();
        TaskUpdates::new(stream::unfold(Some((brain, id)), |state| async move {
            let (brain, id) = state?;
            loop {
                let task = brain.0.store.get(&id).await.ok().flatten()?.task;
                if task.status.is_finished() {
                    let Task { task_id, status, result, error, .. } = task;
                    return Some((TaskUpdate::Status { task_id, seq: 1, status, result, error }, None));
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        }))
    }
}

fn sees_all(cx: &Context) -> bool {
    cx.caller().may(ADMIN).is_ok()
}

#[async_trait]
impl Orchestrator for Brain {
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        self.queue_new(submission, cx).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        Ok(self.live(self.visible(id, cx).await?))
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        let limit = query.limit.unwrap_or(20).clamp(1, TaskQuery::MAX_LIMIT);
        let owner = (!sees_all(cx)).then(|| cx.caller().clone());
        let filter = TaskFilter { status: query.status, after: query.after, owner, limit: limit + 1 };
        let mut records = self.0.store.list(&filter).await?;
        let more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| more).map(|record| record.id().clone());
        Ok(TaskPage { tasks: records.into_iter().map(|record| self.live(record)).collect(), next })
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.visible(id, cx).await?;
        if let Some(log) = self.0.desk.stop(id, Stop::Cancel) {
            let mut updates = log.watch(None);
            while updates.next().await.is_some() {}
            let record = self.visible(id, cx).await?;
            if record.task.status.is_finished() {
                return Ok(record.task);
            }
            // It has stopped and its end was not written, or it was queued again: it is cancelled where it waits.
        }
        let (record, cancelled) = self
            .change(id, cx, |record, now| {
                // A finished task stays as it is.
                if record.task.status.is_finished() {
                    return Ok(false);
                }
                record.cancel(now).map(|()| true).map_err(conflict)
            })
            .await?;
        if cancelled {
            self.0.announcer.status(&record, Duration::ZERO).await;
            self.0.desk.forget(&record);
            // It may have been started since it was looked for.
            self.0.desk.stop(id, Stop::Lost);
        }
        Ok(record.task)
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        // The log is asked for first: a task that ends meanwhile is then told by the log, to its end.
        let log = self.0.desk.log(id);
        self.visible(id, cx).await?;
        Ok(match log {
            Some(log) => log.watch(after),
            None => self.watch_store(id.clone()),
        })
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.transport.cards().await
    }
}

fn conflict(error: IllegalTransition) -> Failure {
    Failure::new(ErrorKind::Conflict, error.to_string())
}

impl fmt::Debug for Brain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brain").field("holder", &self.0.holder).field("arm", &self.0.dispatcher).finish()
    }
}
