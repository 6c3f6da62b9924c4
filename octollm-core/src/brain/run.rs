//! How one task runs, from its claim to its last status.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::field::display;

use super::{
    Inner, Limits, grants,
    journal::Journal,
    limited, meters,
    relay::publish,
    repeated,
    replay::{failure_of, replayed, retry},
    running::{Run, Stop},
    updates::UpdateLog,
};
use crate::{
    budget::Usage,
    bus::EventBus,
    context::{Context, ContextParts},
    contract::{ContractRef, TaskContract},
    deadline::Deadline,
    error::{ArmError, ErrorKind, Failure},
    event::Event,
    json::RawJson,
    resilience::random,
    store::{JournalEntry, SideEffects, StoreError, progress_event},
    task::{TaskError, TaskRecord, TaskRequest, TaskResult, TaskStatus},
    update::Progress,
};

/// Pause before the end of a task is written again, doubled each time up to the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_millis(1_600);
/// Attempts to write the end of a task. The lease expires after the last one.
const ATTEMPTS: u32 = 8;

/// A run that has just begun.
pub(super) struct Started {
    pub(super) record: Arc<TaskRecord>,
    /// Time to the deadline when the task was claimed.
    pub(super) time_left: Duration,
    pub(super) run: Run,
    pub(super) log: Arc<UpdateLog>,
    pub(super) cancellation: CancellationToken,
    /// Takes the record of the task once its end is stored.
    pub(super) caller: Option<oneshot::Sender<Arc<TaskRecord>>>,
}

/// Gives the place of a run back, also by a panic.
struct Place<'a>(&'a Inner, &'a Run);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.running.end(self.1);
    }
}

/// Runs a claimed task.
pub(super) async fn run(inner: Arc<Inner>, mut started: Started) {
    let caller = started.caller.take();
    let _place = Place(&inner, &started.run);
    let begun = Instant::now();
    let Some((result, usage, journal)) = execute(&inner, &started).await else { return };
    let usage = usage.plus(started.record.used_before());
    let ending = Ending { result, journal, usage, duration: begun.elapsed() };
    if let Some(record) = finish(&inner, &started, &ending, caller.is_some()).await
        && let Some(caller) = caller
    {
        // It may not wait any more.
        let _ = caller.send(record);
    }
}

/// Queues a task again that was claimed and not started.
pub(super) async fn release(inner: &Inner, record: Arc<TaskRecord>) {
    let mut record = Arc::unwrap_or_clone(record);
    if record.release(inner.clock.now()).is_ok() {
        let effects = SideEffects::of_change(&record, inner.source());
        if let Err(error) = inner.commit(record, effects).await {
            tracing::warn!(%error, "task not handed back; its lease expires");
        }
    }
}

/// The end of a run.
struct Ending {
    result: Result<TaskResult, ArmError>,
    journal: Journal,
    usage: Usage,
    duration: Duration,
}

/// Reads the journal, which the first run of a task begins. `None` where it cannot be read, and the lease expires, or where the run
/// is stopped before it is read.
async fn recorded(inner: &Arc<Inner>, started: &Started) -> Option<Vec<JournalEntry>> {
    if started.record.run() == 1 {
        return Some(Vec::new());
    }
    let id = started.record.id();
    let read = tokio::select! {
        biased;
        read = repeated(|| inner.store.journal(id, None, usize::MAX)) => read,
        () = started.cancellation.cancelled() => {
            if inner.running.stopped(&started.run) == Some(Stop::Close) {
                release(inner, started.record.clone()).await;
            }
            return None;
        }
    };
    read.inspect_err(|error| {
        tracing::error!(task = %id, %error, "journal not read; the task is tried again when its lease expires");
    })
    .ok()
}

/// Runs the arm, stores its updates, and publishes its progress. `None` where its journal is not read.
async fn execute(
    inner: &Arc<Inner>,
    started: &Started,
) -> Option<(Result<TaskResult, ArmError>, Usage, Journal)> {
    let record = &started.record;
    let entries = recorded(inner, started).await?;
    let claimed_at = record.deadline_at().and_then(|end| end.checked_sub(started.time_left).ok());
    let claimed_at = claimed_at.unwrap_or_else(|| inner.clock.now());
    let replays = replayed(&entries, &[], &[]);
    let journal = Journal::new(inner, record.clone(), entries, claimed_at);
    let contract = record.contract();
    let mut cx = context(started, journal.clone());
    started.log.runs_in(&cx, journal.in_flight());
    let work = async {
        // The limit is that of the submission, within the limit of the brain.
        let (limit, input) = (record.time_limit(), record.input().as_str().as_bytes());
        let result = inner.dispatcher.execute_within(limit, contract, input, &mut cx).await;
        started.log.end();
        result
    };
    let write = async {
        if !started.log.write(&*inner.store, &started.run).await {
            inner.running.stop_run(&started.run, Stop::Lost);
        }
    };
    let run = futures_util::future::join(work, write);
    // From before the arm's first step.
    let (version, progress) = (started.log.version(), started.log.progress());
    let result = tokio::select! {
        (result, ()) = run => result,
        never = publish_progress(inner, record, &started.log, version, progress) => match never {},
    };
    // A run that ended before it had replayed everything used what is recorded all the same.
    let usage = cx.used().plus(replays.minus(cx.used()));
    let result = checked(result, cx.ordered_calls(), contract, &journal);
    // An earlier run of the task may have done all of it.
    let result = result.map_err(|error| if record.run() > 1 { error.executed() } else { error });
    Some((result, usage, journal))
}

/// The result of an execution. A run that does not match its journal, or whose output is no result, has failed.
fn checked(
    output: Result<Bytes, ArmError>,
    calls: u32,
    contract: &ContractRef,
    journal: &Journal,
) -> Result<TaskResult, ArmError> {
    match journal.mismatch(output.is_ok().then_some(calls)) {
        Some(failure) => Err(failure.into()),
        None => Ok(result(contract, &output?)?),
    }
}

fn context(started: &Started, journal: Journal) -> Context {
    let record = &started.record;
    let mut parts = ContextParts::new();
    parts.correlation_id = record.correlation_id().clone();
    parts.task_id = Some(record.id().clone());
    parts.trace = record.trace().cloned();
    parts.budget = record.budget().budget().after(record.used_before());
    parts.caller = grants::of_run(record);
    parts.attempt = record.attempt();
    parts.deadline = Some(Deadline::after(started.time_left));
    Context::from_parts(parts, Arc::new(journal))
        .with_cancellation(started.cancellation.clone())
        .with_updates(started.log.clone())
}

/// Publishes progress. Where it changes faster than the bus takes events, only the latest is published.
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
            if let Some(event) = progress_event(record, progress, inner.source()) {
                publish_once(&*inner.bus, event).await;
            }
        }
    }
}

/// Publishes an event that may be lost.
async fn publish_once(bus: &dyn EventBus, event: Event) {
    let event_type = event.event_type().to_owned();
    if let Err(problem) = publish(bus, event, Duration::from_secs(1)).await {
        tracing::debug!(event_type, %problem, "event not published");
    }
}

/// Stores how the task ended, unless it is no longer this run's to store. Returns the record that is stored, where it is `asked` for
/// and the task is finished.
async fn finish(inner: &Inner, started: &Started, ending: &Ending, asked: bool) -> Option<Arc<TaskRecord>> {
    let (mut pause, mut current) = (FIRST_PAUSE, Some(started.record.clone()));
    let (first_update, updates) = started.log.take_pending();
    let (mut status, mut finished) = (TaskStatus::Processing, None);
    for _ in 0..ATTEMPTS {
        let stop = inner.running.stopped(&started.run);
        if stop == Some(Stop::Lost) {
            return None;
        }
        let record = match current.take() {
            Some(record) => Ok(Some(record)),
            None => limited(inner.store.get(&started.run.0)).await,
        };
        let written = match record {
            Ok(Some(record)) if record.is_held(&inner.holder, started.run.1) => {
                match end(inner, &record, started, ending, stop).await {
                    Ok(Some((record, mut effects))) => {
                        status = record.status();
                        finished = (asked && status.is_finished()).then(|| Arc::new(record.clone()));
                        effects.updates.splice(..0, updates.iter().cloned());
                        effects.first_update = Some(first_update);
                        inner.commit(record, effects).await
                    }
                    Ok(None) => return None,
                    Err(error) => Err(error),
                }
            }
            // It ended elsewhere, or by a write that was reported as failed.
            Ok(_) => return None,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                ended(inner, status, ending);
                return finished;
            }
            Err(StoreError::NotFound) => return None,
            Err(StoreError::Conflict) => continue,
            Err(error) => {
                tracing::warn!(task = %started.run.0, %error, "end of task not stored yet");
                // Others take the task over, and nobody waits longer for the end of this brain.
                if stop == Some(Stop::Close) && inner.running.has_expired(&started.run, Instant::now()) {
                    break;
                }
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
    tracing::error!(task = %started.run.0, "end of task not stored; its lease expires");
    None
}

/// Logs and counts the end of a run.
fn ended(inner: &Inner, status: TaskStatus, ending: &Ending) {
    meters::ended(inner.source(), status);
    let (duration_ms, usage) = (ending.duration.as_millis() as u64, ending.usage);
    let (tokens, code) = (usage.tokens, ending.result.as_ref().err().map(|error| display(error.kind())));
    tracing::Span::current().record("code", &code);
    tracing::info!(%status, duration_ms, tokens, code, "the run of a task has ended");
}

/// The record as the run leaves it, and what is stored with it. `None` where its status allows no such end.
async fn end(
    inner: &Inner,
    record: &TaskRecord,
    started: &Started,
    ending: &Ending,
    stop: Option<Stop>,
) -> Result<Option<(TaskRecord, SideEffects)>, StoreError> {
    let (mut record, now) = (record.clone(), inner.clock.now());
    record.report(ending.usage, ending.journal.arms_used(), ending.duration, started.log.progress());
    let changed = match &ending.result {
        // A result that came before the cancellation completes the task.
        Ok(result) => record.complete(result.clone(), now),
        Err(error) => match (error.kind(), stop) {
            (ErrorKind::Cancelled, Some(Stop::Cancel)) => record.cancel(now),
            (ErrorKind::Cancelled, Some(Stop::Close)) => {
                // Usage that is not recorded in the journal stays counted.
                record.will_replay(replayed(&journal(inner, &record).await?, &[], &[]), None);
                record.release(now)
            }
            _ => {
                let step = error.step().filter(|step| ending.journal.has_failed(step)).cloned();
                let task_error = TaskError::from(error.failure()).at_step(step);
                if record.attempts_left() > 0
                    && let Some(effects) =
                        again(inner, &mut record, &task_error, error.failure(), now).await?
                {
                    return Ok(Some((record, effects)));
                }
                record.fail(task_error, now)
            }
        },
    };
    let effects = || SideEffects::of_change(&record, inner.source());
    Ok(changed.is_ok().then(effects).map(|effects| (record, effects)))
}

async fn journal(inner: &Inner, record: &TaskRecord) -> Result<Vec<JournalEntry>, StoreError> {
    limited(inner.store.journal(record.id(), None, usize::MAX)).await
}

/// Queues a task for another attempt after a failure, where one is left and can help.
async fn again(
    inner: &Inner,
    record: &mut TaskRecord,
    error: &TaskError,
    failure: &Failure,
    now: Timestamp,
) -> Result<Option<SideEffects>, StoreError> {
    let journal = journal(inner, record).await?;
    let retries = record.retries();
    let of_call = error.step.as_ref().and_then(|step| failure_of(step, &journal));
    let asked = failure
        .retry_after
        .or_else(|| of_call.and_then(|failure| failure.retry_after.or(failure.restart_after())));
    let wait = retry_wait(&inner.limits, retries, asked, random());
    // The attempt would be refused.
    let start = now.checked_add(wait).unwrap_or(Timestamp::MAX);
    if grants::end_of(record).is_some_and(|end| end <= start) {
        return Ok(None);
    }
    let Some(reopened) = retry(record, error, &journal, now) else { return Ok(None) };
    let change = SideEffects::of_retry(record, wait, inner.source());
    Ok(Some(SideEffects { journal: reopened, ..change }))
}

/// The longest wait for another attempt that a failure can ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(24 * 3600);

/// The wait for another attempt after so many retries: a random part of a time that doubles, and at least what is asked for.
fn retry_wait(limits: &Limits, retries: u32, asked: Option<Duration>, random: f64) -> Duration {
    let doubled = limits.retry_wait.saturating_mul(2_u32.saturating_pow(retries));
    doubled.min(limits.max_retry_wait).mul_f64(random).max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

/// The result of an output. The output for a goal in words is a [`TaskResult`] itself.
fn result(contract: &ContractRef, output: &Bytes) -> Result<TaskResult, Failure> {
    let read = if *contract == TaskRequest::SPEC.reference() {
        serde_json::from_slice(output)
    } else {
        RawJson::from_slice(output).map(TaskResult::new)
    };
    read.map_err(|error| Failure::new(ErrorKind::ArmFailed, format!("the output is no result: {error}")))
}
