//! What a brain offers as an orchestrator.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use tracing::Instrument;

use super::{
    Brain, grants, limited,
    replay::report_recorded,
    running::{Reserved, Stop},
    scheduler, updates,
};
use crate::{
    audit::AuditEntry,
    card::ArmCard,
    context::Context,
    contract::{ContractRef, Violation},
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, MAX_STEPS, Orchestrator, TaskPage, TaskUpdates, authorize_unknown},
    parts::spent,
    store::{JournalEntry, Recorded, SideEffects, StoreError},
    task::{Submission, Task, TaskError, TaskQuery, TaskRecord},
};

/// Most pages of the store that are searched for one page of a list.
const SEARCHED: usize = 10;
/// Bytes of the tasks of one page: half of what a client reads as one answer by default.
const PAGE: usize = 4 << 20;
/// Bytes of the errors of one page of a journal, which has so many steps by default.
const STEPS_PAGE: usize = 256 << 10;
const DEFAULT_STEPS: usize = 100;

#[async_trait]
impl Orchestrator for Brain {
    fn authorize(&self, contract: &ContractRef, cx: &Context) -> Result<(), Failure> {
        match self.0.dispatcher.spec(contract) {
            Ok(spec) => cx.caller().may(spec.scope),
            // A submission of it is refused, after a reflex may have answered it.
            Err(_) => authorize_unknown(contract, cx.caller()),
        }
    }

    async fn submit(&self, submission: Submission, cx: &Context) -> Result<Task, Failure> {
        let contract = submission.contract.clone();
        let prepared = self.prepare(submission, cx).await;
        let (record, delay) = self.refusal_recorded(prepared, (Some(&contract), None), cx).await?;
        self.accept(record, delay, cx).await
    }

    async fn get(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        Ok(self.live(&*self.visible(id, cx).await?))
    }

    async fn list(&self, query: TaskQuery, cx: &Context) -> Result<TaskPage, Failure> {
        let limit = query.limit.unwrap_or(20).clamp(1, TaskQuery::MAX_LIMIT);
        let (records, rest) = self.search(query, limit, cx).await?;
        let mut tasks: Vec<_> = records.iter().map(|record| self.live(record)).collect();
        let fitting = fitting(tasks.iter().map(listed_size), PAGE).min(limit);
        let more = tasks.len() > fitting;
        tasks.truncate(fitting);
        let next = if more { tasks.last().map(|task| task.task_id.clone()) } else { rest };
        Ok(TaskPage { tasks, next })
    }

    async fn cancel(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        let record = self.refusal_recorded(self.visible(id, cx).await, (None, Some(id)), cx).await?;
        self.act_recorded(AuditEntry::CANCELLED, &record, cx).await?;
        self.end(id, cx).await
    }

    async fn watch(&self, id: &TaskId, after: Option<u64>, cx: &Context) -> Result<TaskUpdates, Failure> {
        self.visible(id, cx).await?;
        Ok(updates::watch(self.0.store.clone(), id.clone(), after))
    }

    async fn rerun(&self, id: &TaskId, from: Option<&StepKey>, cx: &Context) -> Result<Task, Failure> {
        let record = self.refusal_recorded(self.visible(id, cx).await, (None, Some(id)), cx).await?;
        self.act_recorded(AuditEntry::RERUN, &record, cx).await?;
        let again = self.run_again(id, from, cx).await;
        self.failure_recorded(again, &record, cx).await
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: Option<usize>,
        cx: &Context,
    ) -> Result<(Vec<JournalStep>, Option<u64>), Failure> {
        self.visible(id, cx).await?;
        let limit = limit.unwrap_or(DEFAULT_STEPS).clamp(1, MAX_STEPS);
        let mut entries = limited(self.0.store.journal(id, after, limit + 1)).await?;
        let fitting = fitting(entries.iter().map(JournalEntry::error_size), STEPS_PAGE).min(limit);
        let more = entries.len() > fitting;
        entries.truncate(fitting);
        let next = entries.last().filter(|_| more).map(|entry| entry.seq);
        // A call that is to be made again is not made yet.
        let calls = entries.into_iter().filter(|entry| !matches!(entry.recorded, Recorded::Again { .. }));
        Ok((calls.map(JournalStep::from).collect(), next))
    }

    async fn cards(&self) -> Result<Vec<ArmCard>, Failure> {
        Ok(self.0.transport.cards().await)
    }

    fn configured_arms(&self) -> Vec<String> {
        self.0.transport.configured_arms()
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

impl Brain {
    /// A task that this caller may see.
    pub(super) async fn visible(&self, id: &TaskId, cx: &Context) -> Result<Arc<TaskRecord>, Failure> {
        grants::check_known(cx.caller())?;
        let record = limited(self.0.store.get(id)).await?;
        let record = record.ok_or_else(|| Failure::of(ErrorKind::TaskNotFound))?;
        self.check_access(&record, cx)?;
        Ok(record)
    }

    /// The tasks that this caller may see: more than `limit` if there are more, else with the last task that was looked at if some
    /// are left.
    async fn search(
        &self,
        mut query: TaskQuery,
        limit: usize,
        cx: &Context,
    ) -> Result<(Vec<Arc<TaskRecord>>, Option<TaskId>), Failure> {
        grants::check_known(cx.caller())?;
        let owner = (!grants::sees_all(cx.caller())).then(|| cx.caller());
        let (most, mut found) = (limit + 1, Vec::new());
        for _ in 0..SEARCHED {
            let page = limited(self.0.store.list(&query.clone().limit(most), owner)).await?;
            let (is_last, last) = (page.len() < most, page.last().map(|record| record.id().clone()));
            found.extend(page.into_iter().filter(|record| self.check_access(record, cx).is_ok()));
            if is_last || found.len() > limit {
                return Ok((found, None));
            }
            query.after = last;
        }
        Ok((found, query.after))
    }

    /// Cancels a task that this caller may see.
    pub(super) async fn end(&self, id: &TaskId, cx: &Context) -> Result<Task, Failure> {
        if let Some(run) = self.0.running.stop(id, Stop::Cancel) {
            self.0.running.ended(&run).await;
        }
        // A task that has not ended by now is queued, or runs elsewhere.
        let (record, _) = self.cancel_stored(id, cx, |_| true).await?;
        Ok(record.into_task())
    }

    /// Checks that the brain accepts tasks.
    pub(super) fn is_open(&self) -> Result<(), Failure> {
        if self.0.running.is_closed() { Err(closed()) } else { Ok(()) }
    }

    /// Cancels a task that does not run here, unless it has ended or is not one of `those`. Returns it, and whether it was
    /// cancelled.
    pub(super) async fn cancel_stored(
        &self,
        id: &TaskId,
        cx: &Context,
        those: impl Fn(&TaskRecord) -> bool + Send,
    ) -> Result<(TaskRecord, bool), Failure> {
        loop {
            let mut record = Arc::unwrap_or_clone(self.visible(id, cx).await?);
            if record.status().is_finished() || !those(&record) {
                return Ok((record, false));
            }
            let now = self.0.clock.now();
            if record.run() > 0 {
                let journal = limited(self.0.store.journal(id, None, usize::MAX)).await?;
                report_recorded(&mut record, journal, now);
            }
            record.cancel(now)?;
            let effects = SideEffects::of_change(&record, self.0.source());
            match self.0.commit(record.clone(), effects).await {
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(uncertain(error)),
                Ok(()) => {
                    // It may have been started since it was looked for.
                    self.0.running.stop(id, Stop::Lost);
                    return Ok((record, true));
                }
            }
        }
    }

    /// Checks a submission, and makes a task of it. Returns it with the time from now on by which it is delayed.
    pub(super) async fn prepare(
        &self,
        mut submission: Submission,
        cx: &Context,
    ) -> Result<(TaskRecord, Option<Duration>), Failure> {
        self.is_open()?;
        if let Some(failure) = spent(cx.deadline(), cx.budget(), tokio::time::Instant::now()) {
            return Err(failure);
        }
        let spec = self.0.dispatcher.spec(&submission.contract)?;
        self.authorize(&submission.contract, cx)?;
        submission.check().map_err(Failure::invalid)?;
        self.0.dispatcher.check(&submission.contract, submission.input.as_str().as_bytes())?;
        // A task has no more budget than its submitter. The deadline of the submitter is for the submission alone.
        submission.budget = submission.budget.within(cx.budget());
        let asked = submission.budget.time().unwrap_or(spec.timeout);
        let time_limit = asked.min(self.0.limits.max_task_time);
        let (delay, now) = (submission.run_in, self.0.clock.now());
        let mut record = TaskRecord::new(submission, cx.parts(), time_limit, now);
        record.set_caller(self.granted(cx).await?);
        check_start(&record, delay, now).map_err(|violation| Failure::invalid(vec![violation]))?;
        Ok((record, delay))
    }

    /// Queues a task, or returns the one that has its uniqueness key.
    pub(super) async fn store(&self, record: TaskRecord, delay: Option<Duration>) -> Result<Task, Failure> {
        let _wakes = self.0.relay.wakes();
        scheduler::start(&self.0);
        self.0.relay.caught_up().await;
        let id = record.id().clone();
        // The submitter knows that it is queued: the live updates begin with its start.
        let change = SideEffects::of_change(&record, self.0.source());
        let effects = SideEffects { updates: Vec::new(), delay, ..change };
        let place = self.place(&record, delay);
        // Its submitter sees a task as queued also where it starts at once.
        let queued = place.is_some().then(|| record.task().clone());
        let created = scheduler::create(self.0.clone(), record, effects, place);
        let created = match &queued {
            Some(_) => begun(created).await,
            None => created.await,
        };
        match created {
            Ok(stored) if *stored.id() == id => {
                self.0.meters.submitted.count();
                Ok(queued.unwrap_or_else(|| stored.task().clone()))
            }
            Ok(existing) => Ok(Task { existing: true, ..self.live(&existing) }),
            Err(error @ StoreError::Unavailable(_)) => Err(uncertain(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Reserves a place for a task that may start together with its creation.
    fn place(&self, record: &TaskRecord, delay: Option<Duration>) -> Option<Reserved> {
        let is_free = delay.is_none() && record.run_at().is_none() && !self.0.is_limited(record.contract());
        (is_free && self.0.store.starts()).then(|| self.0.running.reserve()).flatten()
    }

    /// A task with the progress that only this brain knows.
    fn live(&self, record: &TaskRecord) -> Task {
        let mut task = record.to_task();
        if !task.status.is_finished()
            && let Some(log) = self.0.running.log(&task.task_id)
        {
            task.progress = log.progress();
        }
        task
    }
}

/// Creates a task that may start at once. The run begins also where the submitter is gone.
async fn begun(
    created: impl Future<Output = Result<Arc<TaskRecord>, StoreError>> + Send + 'static,
) -> Result<Arc<TaskRecord>, StoreError> {
    let mut created = Box::pin(created.in_current_span());
    match poll_fn(|cx| Poll::Ready(created.as_mut().poll(cx))).await {
        Poll::Ready(created) => created,
        Poll::Pending => {
            let created = tokio::spawn(created).await;
            created.unwrap_or_else(|error| Err(StoreError::Unavailable(error.into())))
        }
    }
}

/// The failure of a brain that is closed.
pub(super) fn closed() -> Failure {
    Failure::new(ErrorKind::Unavailable, "the brain is closed").before_execution()
}

/// The failure for a change that may have been stored.
pub(super) fn uncertain(error: StoreError) -> Failure {
    let unknown = matches!(error, StoreError::Unavailable(_));
    if unknown {
        tracing::warn!(error = &error as &dyn std::error::Error, "a change may or may not have been stored");
    }
    let failure = Failure::from(error);
    Failure { may_have_executed: failure.may_have_executed || unknown, ..failure }
}

/// Checks that a task is not started so late that its grant has ended, or in ten years.
fn check_start(record: &TaskRecord, delay: Option<Duration>, now: Timestamp) -> Result<(), Violation> {
    let after = |time: Duration| now.checked_add(time).unwrap_or(Timestamp::MAX);
    let (start, path) = match (record.run_at(), delay) {
        (Some(at), _) if at > after(Submission::MAX_DELAY) => {
            return Err(Violation::new("run_at", "is more than ten years ahead"));
        }
        (Some(at), _) if at > now => (at, "run_at"),
        (None, Some(delay)) => (after(delay), "run_in_seconds"),
        _ => return Ok(()),
    };
    match grants::end_of(record) {
        Some(end) if end <= start => {
            Err(Violation::new(path, format!("is after {end}, when the grant of the task ends")))
        }
        _ => Ok(()),
    }
}

/// How many items of these sizes fit into a page of so many bytes: at least one.
fn fitting(sizes: impl Iterator<Item = usize>, page: usize) -> usize {
    let mut bytes = 0_usize;
    let mut fits = |size: &usize| {
        bytes = bytes.saturating_add(*size);
        bytes <= page
    };
    sizes.take_while(&mut fits).count().max(1)
}

fn listed_size(task: &Task) -> usize {
    let output = task.result.as_ref().map_or(0, |result| result.output.as_str().len());
    let goal = task.goal.as_ref().map_or(0, String::len);
    let error = task.error.as_ref().map_or(0, TaskError::size);
    goal + output + error + task.progress.message.len() + task.metadata.submitted.as_str().len()
}
