//! Runs one task, from its claim to its last status.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, events,
    journal::{Backing, Hold, Journal},
    relay,
    running::Stop,
    updates::UpdateLog,
};
use crate::{
    budget::Usage,
    context::ContextParts,
    contract::TaskContract,
    deadline::Deadline,
    dispatcher::{Execution, Outcome, Route},
    error::{ArmError, ErrorKind, Failure},
    json::RawJson,
    store::{Claimed, Run, SideEffects, StoreError},
    task::{TaskError, TaskRecord, TaskRequest, TaskResult, TaskSpent},
    update::Progress,
};

/// The end of a task is written once more after so long, and each time after twice as long, up to the last pause.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_millis(1_600);
/// So many attempts are made; then the task is left to expire.
const ATTEMPTS: u32 = 8;

/// A run that has just begun.
pub(super) struct Started {
    pub(super) run: Run,
    pub(super) log: Arc<UpdateLog>,
    pub(super) cancellation: CancellationToken,
}

/// Gives the place of a run back, however it ends.
struct Place<'a>(&'a Inner, &'a Run);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.running.end(self.1);
    }
}

/// Runs a claimed task.
pub(super) async fn run(inner: Arc<Inner>, claimed: Claimed, started: Started) {
    let _place = Place(&inner, &started.run);
    let begun = Instant::now();
    let Some((result, usage, journal)) = execute(&inner, &claimed, &started).await else { return };
    let usage = usage.plus(claimed.record.used_before());
    let spent = TaskSpent::new(usage, journal.arms_used(), begun.elapsed());
    let ending = Ending { result, journal, spent };
    finish(&inner, claimed.record, &started, &ending).await;
}

/// Hands a task back that was claimed and not started.
pub(super) async fn release(inner: Arc<Inner>, mut record: TaskRecord) {
    if record.release(inner.clock.now()).is_ok() {
        let effects = events::of_change(&record, &TaskSpent::default(), inner.source());
        if let Err(error) = inner.store.commit(record, effects).await {
            tracing::warn!(%error, "task not handed back; its lease expires");
        }
    }
}

/// What a run ended with.
struct Ending {
    result: Result<TaskResult, ArmError>,
    journal: Journal,
    spent: TaskSpent,
}

/// Runs the arm, stores its updates, and publishes its progress. `None` where the journal cannot be read: the lease
/// expires then.
async fn execute(
    inner: &Arc<Inner>,
    claimed: &Claimed,
    started: &Started,
) -> Option<(Result<TaskResult, ArmError>, Usage, Journal)> {
    let record = &claimed.record;
    let entries = match inner.store.journal(record.id()).await {
        Ok(entries) => entries,
        Err(error) => {
            tracing::error!(task = %record.id(), %error, "journal not read; the task is tried again");
            return None;
        }
    };
    let (store, transport, clock) = (inner.store.clone(), inner.transport.clone(), inner.clock);
    let claimed_at = claimed.at().unwrap_or_else(|| clock.now());
    let backing = Backing { store, transport, clock, claimed_at, hold: hold(inner, &started.run) };
    let journal = Journal::new(record.clone(), entries, backing);
    let (result, usage) = match inner.dispatcher.find(record.contract()) {
        Ok(route) => {
            let around = surroundings(claimed, started, journal.clone());
            let work = async {
                let outcome = route.execute(record.input().as_str().as_bytes(), around).await;
                started.log.end();
                outcome
            };
            let write = async {
                if !started.log.write(&*inner.store, &started.run).await {
                    inner.running.stop_run(&started.run, Stop::Lost);
                }
            };
            let run = futures_util::future::join(work, write);
            // From before the arm's first step.
            let (version, progress) = (started.log.version(), started.log.progress());
            let outcome = tokio::select! {
                (outcome, ()) = run => outcome,
                never = publish_progress(inner, record, &started.log, version, progress) => match never {},
            };
            let usage = outcome.usage;
            (checked(outcome, route, &journal), usage)
        }
        // Only contracts that this brain runs are claimed.
        Err(failure) => (Err(failure.into()), Usage::default()),
    };
    Some((result, usage, journal))
}

fn hold(inner: &Arc<Inner>, run: &Run) -> Hold {
    let (brain, held) = (Arc::downgrade(inner), run.clone());
    let lasts =
        move || brain.upgrade().is_some_and(|inner: Arc<Inner>| inner.running.is_held(&held, Instant::now()));
    let (brain, lost) = (Arc::downgrade(inner), run.clone());
    let lose = move || {
        if let Some(inner) = brain.upgrade() {
            inner.running.stop_run(&lost, Stop::Lost);
        }
    };
    Hold { lasts: Box::new(lasts), lose: Box::new(lose) }
}

/// The result of an outcome. One that does not fit its journal, or whose output is no result, is a failure.
fn checked(outcome: Outcome, route: &Route, journal: &Journal) -> Result<TaskResult, ArmError> {
    let ended_well = outcome.result.is_ok();
    match journal.mismatch(ended_well.then_some(outcome.calls)) {
        Some(failure) => Err(failure.into()),
        None => Ok(result(route, &outcome.result?)?),
    }
}

fn surroundings(claimed: &Claimed, started: &Started, journal: Journal) -> Execution {
    let record = &claimed.record;
    let mut parts = ContextParts::new();
    parts.correlation_id = record.correlation_id().clone();
    parts.task_id = Some(record.id().clone());
    parts.trace = record.trace().cloned();
    parts.budget = record.budget().budget().after(record.used_before());
    parts.caller = record.caller().clone();
    parts.attempt = record.attempt();
    parts.deadline = Some(Deadline::after(claimed.time_left));
    let mut around = Execution::new(parts, Arc::new(journal));
    around.cancellation = started.cancellation.clone();
    around.updates = Some(started.log.clone());
    // The submission decides, within the limit of the brain.
    around.time_limit = Some(record.time_limit());
    around
}

/// Publishes progress as it comes, the latest where it comes faster than the bus takes it.
async fn publish_progress(
    inner: &Inner,
    record: &TaskRecord,
    log: &UpdateLog,
    mut version: watch::Receiver<u64>,
    mut published: Progress,
) -> Infallible {
    loop {
        if version.changed().await.is_err() {
            return std::future::pending().await;
        }
        let progress = log.progress();
        if progress != published {
            published.clone_from(&progress);
            if let Some(event) = events::of_progress(record, progress, inner.source()) {
                relay::publish_once(&*inner.bus, event).await;
            }
        }
    }
}

/// Stores how the task ended, unless it is no longer this run's to store.
async fn finish(inner: &Inner, claimed: TaskRecord, started: &Started, ending: &Ending) {
    let (mut pause, mut current) = (FIRST_PAUSE, Some(claimed));
    let updates = started.log.take_pending();
    for _ in 0..ATTEMPTS {
        let stop = inner.running.stopped(&started.run);
        if stop == Some(Stop::Lost) {
            return;
        }
        let record = match current.take() {
            Some(record) => Ok(Some(record)),
            None => inner.store.get(&started.run.task).await,
        };
        let written = match record {
            Ok(Some(record)) if record.is_held(&inner.holder, started.run.number) => {
                let Ok((record, mut effects)) = end(inner, record, started, ending, stop) else { return };
                effects.updates.splice(..0, updates.iter().cloned());
                inner.store.commit(record, effects).await.map(drop)
            }
            // It ended elsewhere, or by a write that was reported as failed.
            Ok(_) => return,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) | Err(StoreError::NotFound) => return,
            Err(StoreError::Conflict) => continue,
            Err(error) => {
                tracing::warn!(task = %started.run.task, %error, "end of task not stored yet");
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
    tracing::error!(task = %started.run.task, "end of task not stored; its lease expires");
}

/// The record as the run leaves it, and what is stored with it.
fn end(
    inner: &Inner,
    mut record: TaskRecord,
    started: &Started,
    ending: &Ending,
    stop: Option<Stop>,
) -> Result<(TaskRecord, SideEffects), Failure> {
    record.report(&ending.spent, started.log.progress());
    settle(&mut record, ending, stop, inner.clock.now())?;
    let effects = events::of_change(&record, &ending.spent, inner.source());
    Ok((record, effects))
}

/// The status that an outcome leads to. A result that came before the cancellation is a result.
fn settle(
    record: &mut TaskRecord,
    ending: &Ending,
    stop: Option<Stop>,
    now: Timestamp,
) -> Result<(), Failure> {
    let error = match &ending.result {
        Ok(result) => return record.complete(result.clone(), now),
        Err(error) => match (error.kind(), stop) {
            (ErrorKind::Cancelled, Some(Stop::Cancel)) => return record.cancel(now),
            (ErrorKind::Cancelled, Some(Stop::Close)) => return record.release(now),
            _ => {
                let step = error.step().filter(|step| ending.journal.has_failed(step)).cloned();
                TaskError::from(error.failure()).at_step(step)
            }
        },
    };
    record.fail(error, now)
}

/// The result that an output makes. A goal in words is answered by a [`TaskResult`] itself.
fn result(route: &Route, output: &Bytes) -> Result<TaskResult, Failure> {
    let read = if *route.contract() == TaskRequest::SPEC.reference() {
        serde_json::from_slice(output)
    } else {
        RawJson::from_slice(output).map(TaskResult::new)
    };
    read.map_err(|error| Failure::new(ErrorKind::ArmFailed, format!("the output is no result: {error}")))
}
