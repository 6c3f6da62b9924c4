//! The brain: the stock orchestrator, which runs arms as tasks.
//!
//! What a brain runs is an [`Arm`](crate::Arm) like any other, whose calls are journaled. If the process dies, another
//! brain on the same store claims the task and runs the arm again; calls that were answered return from the journal. So
//! an arm is written as plain code, and what makes it durable is where it runs.

mod as_arm;
mod builder;
mod config;
mod entry;
mod events;
mod guarded;
mod journal;
mod recall;
mod relay;
mod rerun;
mod run;
mod running;
mod scheduler;
mod sequence;
mod updates;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::timeout;

pub use self::{builder::BrainBuilder, config::BrainConfig};
use self::{
    relay::Relay,
    running::{Running, Stop},
};
use crate::{
    bus::EventBus,
    card::ArmCard,
    clock::Clock,
    context::Context,
    contract::ContractRef,
    dispatcher::Dispatcher,
    error::{ErrorKind, Failure},
    id::{RequestId, StepKey, TaskId},
    orchestrator::{JournalStep, Orchestrator, TaskPage, TaskQuery, TaskUpdates},
    parts::spent,
    store::{Recorded, Room, SideEffects, StoreError, TaskFilter, TaskStore},
    task::{Origin, Submission, Task, TaskRecord, TaskSpent},
    transport::Transport,
};

/// Accepts tasks, runs an arm for each, journals its calls, publishes events, and stores the tasks. A clone is the same
/// brain.
///
/// Tasks run on tokio's runtime, in the background. A brain whose last clone is dropped lets its tasks run to their
/// end; [`close`](Self::close) hands them back, for another brain to claim.
#[derive(Clone)]
pub struct Brain(Arc<Inner>);

struct Inner {
    /// Tells this brain from others on the same store.
    holder: String,
    dispatcher: Arc<Dispatcher>,
    contracts: Vec<ContractRef>,
    transport: Arc<dyn Transport>,
    bus: Arc<dyn EventBus>,
    store: Arc<dyn TaskStore>,
    clock: Clock,
    config: BrainConfig,
    running: Running,
    relay: Arc<Relay>,
    claiming: tokio::sync::Mutex<()>,
    /// Whether the loops run.
    started: AtomicBool,
}

/// The scope that shows a caller everybody's tasks.
const ADMIN: &str = "tasks:admin";
/// How long a brain that closes waits for the bus.
const LAST_EVENTS: Duration = Duration::from_secs(2);

impl Inner {
    fn new(parts: BrainBuilder) -> Self {
        let BrainBuilder { dispatcher, transport, bus, store, clock, config } = parts;
        let store = Arc::new(guarded::Guarded(store));
        Self::with(Arc::new(dispatcher), transport, bus, store, clock, config)
    }

    fn with(
        dispatcher: Arc<Dispatcher>,
        transport: Arc<dyn Transport>,
        bus: Arc<dyn EventBus>,
        store: Arc<dyn TaskStore>,
        clock: Clock,
        config: BrainConfig,
    ) -> Self {
        let holder = format!("{}-{}", dispatcher.card().arm_id, RequestId::new());
        let relay = Relay::new(holder.clone(), store.clone(), bus.clone());
        Self {
            holder,
            contracts: dispatcher.routes().iter().map(|route| route.contract().clone()).collect(),
            running: Running::new(config.max_running),
            relay: Arc::new(relay),
            claiming: tokio::sync::Mutex::default(),
            started: AtomicBool::new(false),
            dispatcher,
            transport,
            bus,
            store,
            clock,
            config,
        }
    }

    /// The source of its events.
    fn source(&self) -> &str {
        &self.dispatcher.card().arm_id
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.relay.ended.cancel();
    }
}

impl Brain {
    /// A builder of a brain.
    pub fn builder() -> BrainBuilder {
        BrainBuilder::default()
    }

    /// The bus to which it publishes the events of its tasks.
    pub fn bus(&self) -> &Arc<dyn EventBus> {
        &self.0.bus
    }

    /// The contracts that it runs as tasks, as the arm that it is too.
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.0.dispatcher
    }

    /// The arms that its tasks call.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }

    /// Starts to work: claims tasks in the store that it can run and nobody runs, as many as may run at a time, and
    /// returns how many; and publishes events that wait there. It goes on with both in the background.
    ///
    /// A brain starts by itself at its first submission. One that is to continue where another stopped calls this.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the store is; it is tried again in the background.
    ///
    /// # Cancel safety
    /// Dropping the future loses no task.
    pub async fn recover(&self) -> Result<usize, Failure> {
        scheduler::start(&self.0);
        Ok(scheduler::claim(&self.0).await?)
    }

    /// Stops: accepts no more tasks, stops those that run and hands them back to the store, so that another brain
    /// continues them, and publishes the events that wait (for at most 2 s). A second call does nothing more.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the brain closing: its tasks are handed back all the same.
    pub async fn close(&self) {
        self.0.running.close(Stop::Close);
        self.0.running.idle().await;
        self.0.relay.ended.cancel();
        if !matches!(timeout(LAST_EVENTS, self.0.relay.drain()).await, Ok(Ok(()))) {
            tracing::warn!(brain = self.0.holder, "events are left in the store");
        }
    }

    /// Stops as a crash would: what runs is dropped and nothing is written.
    #[cfg(feature = "mesh")]
    pub(crate) async fn crash(&self) {
        self.0.relay.crashed.cancel();
        self.0.running.close(Stop::Lost);
        self.0.running.idle().await;
    }

    /// Another brain for the same tasks, on the same store.
    #[cfg(feature = "mesh")]
    pub(crate) fn successor(&self) -> Self {
        let Inner { dispatcher, transport, bus, store, clock, config, .. } = &*self.0;
        let (transport, bus, store) = (transport.clone(), bus.clone(), store.clone());
        Self(Arc::new(Inner::with(dispatcher.clone(), transport, bus, store, *clock, config.clone())))
    }

    /// A task that this caller may see.
    async fn visible(&self, id: &TaskId, cx: &Context) -> Result<TaskRecord, Failure> {
        let record = self.0.store.get(id).await?;
        record
            .filter(|record| sees_all(cx) || record.caller().is_same_as(cx.caller()))
            .ok_or_else(|| Failure::of(ErrorKind::TaskNotFound))
    }

    /// Changes a task in the store, again from the start where another change came first. `change` returns what is
    /// stored with it, or `None` where there is nothing to change.
    async fn change(
        &self,
        id: &TaskId,
        cx: &Context,
        change: impl Fn(&mut TaskRecord, jiff::Timestamp) -> Result<Option<SideEffects>, Failure> + Send + Sync,
    ) -> Result<(TaskRecord, bool), Failure> {
        loop {
            let mut record = self.visible(id, cx).await?;
            let Some(effects) = change(&mut record, self.0.clock.now())? else { return Ok((record, false)) };
            match self.0.store.commit(record, effects).await {
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(uncertain(error)),
                Ok(record) => return Ok((record, true)),
            }
        }
    }

    /// What is stored with a change of a task that has not run since.
    fn effects(&self, record: &TaskRecord) -> SideEffects {
        events::of_change(record, &TaskSpent::default(), self.0.source())
    }

    /// Checks a submission, and makes a task of it.
    fn prepare(&self, mut submission: Submission, cx: &Context) -> Result<TaskRecord, Failure> {
        if self.0.running.is_closed() {
            return Err(Failure::new(ErrorKind::Unavailable, "the brain is closed").before_execution());
        }
        if let Some(failure) = spent(cx.deadline(), cx.budget()) {
            return Err(failure);
        }
        let route = self.0.dispatcher.find(&submission.contract)?;
        route.admit(cx.caller())?;
        submission.budget.check().map_err(Failure::invalid)?;
        route.check(submission.input.as_str().as_bytes())?;
        // Nobody can give what they do not have. Their deadline is for the submission, not for the task.
        submission.budget = submission.budget.within(cx.budget());
        let asked = submission.budget.time().unwrap_or(route.spec().timeout);
        let time_limit = asked.min(self.0.config.max_task_time);
        let origin = Origin::new(cx.caller().clone(), cx.correlation_id().clone()).trace(cx.trace().cloned());
        Ok(TaskRecord::new(submission, origin, time_limit, self.0.clock.now()))
    }

    /// Queues a task.
    async fn store(&self, record: TaskRecord) -> Result<Task, Failure> {
        scheduler::start(&self.0);
        self.0.relay.caught_up().await;
        let task = record.task().clone();
        // Who submits knows that it is queued: the live updates begin with its start.
        let effects = SideEffects { updates: Vec::new(), ..self.effects(&record) };
        let room = Room::new(self.0.config.max_queued, self.0.config.max_queued_bytes);
        match self.0.store.create(record, effects, room).await {
            Ok(()) => Ok(task),
            // It may have been stored all the same.
            Err(error @ StoreError::Unavailable(_)) => match self.0.store.get(&task.task_id).await {
                Ok(Some(record)) => Ok(record.into_task()),
                _ => Err(uncertain(error)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// The task as it stands, with the progress that only this brain knows.
    fn live(&self, record: TaskRecord) -> Task {
        let mut task = record.into_task();
        if !task.status.is_finished()
            && let Some(log) = self.0.running.log(&task.task_id)
        {
            task.progress = log.progress();
        }
        task
    }
}

/// A change that a store failed to confirm may have been stored.
fn uncertain(error: StoreError) -> Failure {
    let unknown = matches!(error, StoreError::Unavailable(_));
    if unknown {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "it is not known whether a change was stored"
        );
    }
    let failure = Failure::from(error);
    Failure { may_have_executed: failure.may_have_executed || unknown, ..failure }
}

/// Bytes of the tasks of one page: half of what a client reads as one answer by default.
const PAGE: usize = 4 << 20;

/// How many of these fit into one page: at least one, however long it is.
fn fitting(records: &[TaskRecord]) -> usize {
    let mut bytes = 0_usize;
    let mut fits = |record: &&TaskRecord| {
        let task = record.task();
        let output = task.result.as_ref().map_or(0, |result| result.output.as_str().len());
        bytes = bytes.saturating_add(task.metadata.submitted.as_str().len()).saturating_add(output);
        bytes <= PAGE
    };
    records.iter().take_while(&mut fits).count().max(1)
}

fn sees_all(cx: &Context) -> bool {
    cx.caller().may(ADMIN).is_ok()
}

#[async_trait]
impl Orchestrator for Brain {
    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        let record = self.prepare(submission, cx)?;
        self.store(record).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        Ok(self.live(self.visible(id, cx).await?))
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        let limit = query.limit.unwrap_or(20).clamp(1, TaskQuery::MAX_LIMIT);
        let owner = (!sees_all(cx)).then(|| cx.caller().clone());
        let filter = TaskFilter { status: query.status, after: query.after, owner, limit: limit + 1 };
        let mut records = self.0.store.list(&filter).await?;
        let fitting = fitting(&records).min(limit);
        let more = records.len() > fitting;
        records.truncate(fitting);
        let next = records.last().filter(|_| more).map(|record| record.id().clone());
        Ok(TaskPage { tasks: records.into_iter().map(|record| self.live(record)).collect(), next })
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        self.visible(id, cx).await?;
        if let Some(run) = self.0.running.stop(id, Stop::Cancel) {
            self.0.running.ended(&run).await;
        }
        // What has not ended by that waits, or runs elsewhere.
        let (record, cancelled) = self
            .change(id, cx, |record, now| {
                // A finished task stays as it is.
                if record.status().is_finished() {
                    return Ok(None);
                }
                record.cancel(now)?;
                Ok(Some(self.effects(record)))
            })
            .await?;
        if cancelled {
            // It may have been started since it was looked for.
            self.0.running.stop(id, Stop::Lost);
        }
        Ok(record.into_task())
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        self.visible(id, cx).await?;
        Ok(updates::watch(self.0.store.clone(), id.clone(), after))
    }

    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        self.run_again(id, from, cx).await
    }

    async fn journal(&self, id: &TaskId, cx: &Context) -> Result<Vec<JournalStep>, Failure> {
        self.visible(id, cx).await?;
        let entries = self.0.store.journal(id).await?.into_iter();
        // What is to be made again is no call yet.
        let calls = entries.filter(|entry| !matches!(entry.recorded, Recorded::Again { .. }));
        Ok(calls.map(JournalStep::from).collect())
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.transport.cards().await
    }

    async fn drain(&self) {
        self.0.running.drain();
        // What is being claimed meanwhile is released again.
        drop(self.0.claiming.lock().await);
        self.0.running.idle().await;
    }

    async fn close(&self) {
        Self::close(self).await;
    }
}

impl fmt::Debug for Brain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brain").field("holder", &self.0.holder).field("arm", &self.0.dispatcher).finish()
    }
}
