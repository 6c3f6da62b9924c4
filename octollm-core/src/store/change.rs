//! What is stored together with a change of a task.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::JournalEntry;
use crate::{
    contract::ContractRef,
    error::Failure,
    event::Event,
    id::StepKey,
    size,
    task::{TaskError, TaskEvent, TaskRecord, TaskStatus, TaskUpdate},
    update::Progress,
};

/// What is stored together with a change of a task.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SideEffects {
    /// Events to be published, in this order.
    pub events: Vec<Event>,
    /// Live updates, which the store numbers.
    pub updates: Vec<TaskUpdate>,
    /// Position of the first of these updates among those of the run: see
    /// [`append_updates`](super::TaskStore::append_updates). `None` where they are not of a run; all of them are appended then.
    pub first_update: Option<u64>,
    /// Steps whose journal entries are discarded.
    pub discarded: Vec<StepKey>,
    /// Journal entries that are written after that.
    pub journal: Vec<JournalEntry>,
    /// Time for which the task is delayed from now on, by the store's clock: the store calls [`TaskRecord::run_in`] with it.
    pub delay: Option<Duration>,
    /// Whether a brain may now claim a task that was free before, as where the end of this one makes room below a
    /// [limit](Claim::max_running). The store reports it as a change of the queue.
    pub makes_room: bool,
    /// The run that the store may start together with the creation of a task, where no other task is queued: see [`Start`].
    pub start: Option<Start>,
}

/// The first run of a task that is created for the brain that creates it, which saves the transaction of a claim.
///
/// The store decides: [`create`](super::TaskStore::create) returns the task as it is stored, processing with a lease of this brain, or
/// queued. One that starts it stores the effects of the start after those of the creation. A store that knows nothing of it
/// queues the task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Start {
    /// The brain: see [`Claim::holder`].
    pub holder: String,
    /// Time until the lease expires.
    pub lease: Duration,
    /// Source of the events of the start.
    pub source: String,
}

impl Start {
    /// A start by this brain.
    pub fn new(holder: impl Into<String>, lease: Duration, source: impl Into<String>) -> Self {
        Self { holder: holder.into(), lease, source: source.into() }
    }

    /// Starts the run as [`Claim::start`] does.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless the task [is free](TaskRecord::is_free).
    pub fn start(&self, record: &mut TaskRecord, now: Timestamp) -> Result<SideEffects, Failure> {
        Claim::new(&self.holder, &[], self.lease, 1, &self.source).start(record, now)
    }
}

impl SideEffects {
    /// The event and the update of a task's new status.
    pub(crate) fn of_change(record: &TaskRecord, source: &str) -> Self {
        let error = record.task().error.as_ref().filter(|_| record.status() == TaskStatus::Failed);
        Self::with_error(record, error, source)
    }

    /// The same where an attempt failed and another one follows after a delay.
    pub(crate) fn of_retry(record: &TaskRecord, delay: Duration, source: &str) -> Self {
        let effects = Self::with_error(record, record.task().error.as_ref(), source);
        Self { delay: Some(delay), ..effects }
    }

    fn with_error(record: &TaskRecord, error: Option<&TaskError>, source: &str) -> Self {
        let mut effects = Self::default();
        let task = record.task();
        let mut event = TaskEvent::of_status(task.task_id.clone(), record.contract().clone(), task.status)
            .with_attempt(task.attempt);
        if let Some(error) = error {
            event = event.with_error(brief(error));
        }
        if task.status.is_finished() {
            event = event.with_arms_used(task.metadata.arms_used.clone());
            if let Some(usage) = record.usage() {
                let duration = Duration::try_from_secs_f64(task.metadata.duration_seconds);
                event = event.with_usage(usage).with_duration(duration.unwrap_or_default());
            }
        }
        effects.events.extend(written(record, &event, source));
        effects.updates.push(TaskUpdate::Status {
            task_id: task.task_id.clone(),
            seq: 0,
            status: task.status,
            result: task.result.clone(),
            error: error.cloned(),
        });
        effects
    }
}

/// A brain's request for tasks: see [`TaskStore::claim`](super::TaskStore::claim).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Claim<'a> {
    /// The brain, by a name that no other one on the store has.
    pub holder: &'a str,
    /// Contracts of the tasks.
    pub contracts: &'a [ContractRef],
    /// Time until the lease of each task expires.
    pub lease: Duration,
    /// Greatest number of tasks.
    pub limit: usize,
    /// For some of the contracts, how many of its tasks may be processing with a lease that has not expired, over all brains.
    pub max_running: &'a [(ContractRef, usize)],
    /// Source of the events of the claim.
    pub source: &'a str,
}

/// What a brain has claimed: the answer of [`TaskStore::claim`](super::TaskStore::claim).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Claimed {
    /// Each task, with its new run number, and the time that is left to its deadline.
    pub tasks: Vec<(Arc<TaskRecord>, Duration)>,
    /// Time until the first of the queued tasks of these contracts that are [delayed](TaskRecord::run_at) is free. `None` where
    /// none is delayed, or it is not known because more tasks than those claimed may be free.
    pub free_in: Option<Duration>,
}

impl<'a> Claim<'a> {
    /// A request for at most `limit` tasks of these contracts, with leases of this length. `source` is the source of the events.
    pub const fn new(
        holder: &'a str,
        contracts: &'a [ContractRef],
        lease: Duration,
        limit: usize,
        source: &'a str,
    ) -> Self {
        Self { holder, contracts, lease, limit, max_running: &[], source }
    }

    /// Sets how many tasks of some of the contracts may be processing.
    #[must_use]
    pub const fn max_running(mut self, limits: &'a [(ContractRef, usize)]) -> Self {
        self.max_running = limits;
        self
    }

    /// The most tasks of a contract that may be processing. `None` where it has no limit.
    pub fn max_running_of(&self, contract: &ContractRef) -> Option<usize> {
        self.max_running.iter().find(|(limited, _)| limited == contract).map(|(_, most)| *most)
    }

    /// Starts a run of the task, with a lease from `now` by the store's clock. Returns what the store writes together with the
    /// record.
    ///
    /// # Errors
    /// A [`Failure`] of kind conflict unless the task [is free](TaskRecord::is_free).
    pub fn start(&self, record: &mut TaskRecord, now: Timestamp) -> Result<SideEffects, Failure> {
        let until = now.checked_add(self.lease).unwrap_or(Timestamp::MAX);
        record.claim(self.holder, until, now)?;
        Ok(SideEffects::of_change(record, self.source))
    }
}

/// The event of a task's progress.
pub(crate) fn progress_event(record: &TaskRecord, progress: Progress, source: &str) -> Option<Event> {
    let message = shortened(progress.message.clone());
    let event = TaskEvent::of_progress(record.id().clone(), Progress { message, ..progress });
    written(record, &event, source)
}

/// The longest message of an event in bytes, and the longest details of an error. A bus refuses larger events, and no
/// subscriber would receive the end of the task.
const MESSAGE: usize = 4 * 1024;
const DETAILS: usize = 16 * 1024;

fn shortened(mut message: String) -> String {
    size::cut(&mut message, MESSAGE);
    message
}

/// An error as an event carries it. The task has the whole of it.
fn brief(error: &TaskError) -> TaskError {
    let details = error.details.clone().filter(|details| size::text(details) <= DETAILS);
    TaskError { message: shortened(error.message.clone()), details, ..error.clone() }
}

fn written(record: &TaskRecord, event: &TaskEvent, source: &str) -> Option<Event> {
    match event.to_event(source) {
        Ok(event) => {
            let event = event.with_correlation_id(record.correlation_id().as_str());
            Some(match record.trace() {
                Some(trace) => event.with_traceparent(trace.traceparent()),
                None => event,
            })
        }
        Err(error) => {
            tracing::error!(task = %record.id(), %error, "the event of a task cannot be written");
            None
        }
    }
}
