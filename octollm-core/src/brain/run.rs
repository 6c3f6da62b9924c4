//! Runs one task, from the queue to its last status.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use super::{
    Inner,
    desk::{Started, Stop},
    journal::{self, Journal},
    keeper::is_ours,
    updates::UpdateLog,
};
use crate::{
    context::ContextParts,
    contract::TaskContract,
    deadline::Deadline,
    dispatcher::{Outcome, Route, Surroundings},
    error::{ErrorKind, Failure},
    store::StoreError,
    task::{IllegalTransition, TaskRecord, TaskRequest, TaskResult},
    update::Progress,
};

/// How many tasks are taken from the store at a time.
const TAKEN_AT_ONCE: usize = 256;

/// The end of a task is written once more after so long, and each time after twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_millis(1_600);

/// Takes up tasks from the store that this brain can run and nobody does.
pub(super) async fn take_free(inner: &Arc<Inner>) -> Result<usize, Failure> {
    let mut taken = 0;
    let contracts: Vec<_> = inner.dispatcher.routes().iter().map(|route| route.contract().clone()).collect();
    let free = inner.store.free(&contracts, inner.clock.now(), TAKEN_AT_ONCE).await?;
    if free.len() == TAKEN_AT_ONCE {
        inner.desk.more_is_free();
    }
    for record in free {
        if inner.desk.has_room().is_err() {
            break;
        }
        taken += usize::from(inner.desk.enqueue(record.id(), record.priority));
    }
    start_waiting(inner);
    Ok(taken)
}

/// Starts tasks for as long as some wait and more may run.
pub(super) fn start_waiting(inner: &Arc<Inner>) {
    while let Some(started) = inner.desk.next() {
        let in_hand = InHand { inner: inner.clone(), started };
        tokio::spawn(async move {
            // Stores and buses are others' code.
            let ran = AssertUnwindSafe(run(&in_hand.inner, &in_hand.started)).catch_unwind().await;
            if ran.is_err() {
                tracing::error!(task = %in_hand.started.id, "the run of a task panicked");
            }
            let inner = in_hand.inner.clone();
            drop(in_hand);
            start_waiting(&inner);
            if inner.desk.ran_dry()
                && let Err(error) = take_free(&inner).await
            {
                tracing::warn!(%error, "tasks not looked for");
            }
        });
    }
}

/// A task that has its place among those that run. Dropped, also with the runtime that it ran on, it gives the place
/// back.
struct InHand {
    inner: Arc<Inner>,
    started: Started,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.inner.desk.done(&self.started.id);
        // Behind `done`, so that who watches on is told by the store.
        self.started.log.close();
    }
}

async fn run(inner: &Arc<Inner>, started: &Started) {
    let begun = Instant::now();
    let record = match take(inner, started).await {
        Ok(Some(record)) => record,
        // Somebody else has it, or it was cancelled while it waited.
        Ok(None) => return tell_as_stored(inner, started).await,
        Err(error) => {
            tracing::error!(task = %started.id, %error, "task not started");
            return;
        }
    };
    inner.announcer.status(&record, Duration::ZERO).await;
    started.log.started();
    started.log.status(&record.task);
    let (outcome, arms) = execute(inner, &record, started).await;
    let took = begun.elapsed();
    let mut pause = FIRST_PAUSE;
    let written = loop {
        match finish(inner, started, &record, &outcome, &arms, took).await {
            Err(error) if pause <= LAST_PAUSE => {
                tracing::warn!(task = %started.id, %error, "end of task not written yet");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            written => break written,
        }
    };
    if let Err(error) = written {
        // The lease runs out, and another run finds the journal as it is.
        tracing::error!(task = %started.id, %error, "end of task not written");
    }
}

/// Makes the task this brain's own. `None` when it is not to be had.
async fn take(inner: &Inner, started: &Started) -> Result<Option<TaskRecord>, StoreError> {
    loop {
        let Some(mut record) = inner.store.get(&started.id).await? else { return Ok(None) };
        let now = inner.clock.now();
        if !record.is_free(now) {
            return Ok(None);
        }
        let limit = time_limit(inner, &record);
        let deadline_at = now.checked_add(limit).unwrap_or(now);
        if record.start(inner.lease(), deadline_at, now).is_err() {
            return Ok(None);
        }
        match inner.store.update(&mut record).await {
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(Some(record)),
        }
    }
}

/// The shorter of the contract's limit and the submission's.
fn time_limit(inner: &Inner, record: &TaskRecord) -> Duration {
    let contract = inner.dispatcher.find(&record.contract).map(|route| route.spec().timeout);
    let limit = contract.unwrap_or_default();
    record.budget.time().map_or(limit, |asked| asked.min(limit))
}

/// Runs the arm, and tells the bus how far it is meanwhile.
async fn execute(inner: &Inner, record: &TaskRecord, started: &Started) -> (Outcome, Vec<String>) {
    let route = match inner.dispatcher.find(&record.contract) {
        Ok(route) => route,
        // The task was submitted to a brain that ran other contracts.
        Err(failure) => return (failed(failure), Vec::new()),
    };
    let journal = match inner.store.journal(&started.id).await {
        Ok(entries) => Arc::new(Journal {
            task_id: started.id.clone(),
            run: record.run,
            store: inner.store.clone(),
            transport: inner.transport.clone(),
            clock: inner.clock,
            cancellation: started.cancellation.clone(),
            state: Mutex::new(journal::State::of(entries)),
        }),
        Err(error) => return (failed(error.into()), Vec::new()),
    };
    let around = surroundings(inner, record, started, journal.clone());
    let input = record.input.to_string();
    let told = started.log.progress();
    let mut outcome = tokio::select! {
        outcome = route.execute(input.as_bytes(), around) => outcome,
        never = tell_progress(inner, record, &started.log, told) => match never {},
    };
    let ended_well = outcome.result.is_ok();
    if let Some(failure) = journal.mismatch(ended_well.then_some(outcome.calls)) {
        outcome.result = Err(failure.into());
    }
    if let Ok(output) = &outcome.result
        && let Err(failure) = result(route, output)
    {
        outcome.result = Err(failure.into());
    }
    (outcome, journal.arms_used())
}

fn failed(failure: Failure) -> Outcome {
    Outcome { result: Err(failure.into()), usage: Default::default(), calls: 0 }
}

fn surroundings(
    inner: &Inner,
    record: &TaskRecord,
    started: &Started,
    journal: Arc<Journal>,
) -> Surroundings {
    let mut parts = ContextParts::new();
    parts.correlation_id = record.correlation_id.clone();
    parts.task_id = Some(started.id.clone());
    parts.budget = record.budget.budget();
    parts.caller = record.caller.clone();
    parts.attempt = record.run;
    parts.deadline = record.deadline_at.map(|at| {
        let left = at.duration_since(inner.clock.now());
        Deadline::after(Duration::try_from(left).unwrap_or_default())
    });
    Surroundings {
        cancellation: started.cancellation.clone(),
        updates: Some(started.log.clone()),
        ..Surroundings::new(parts, journal)
    }
}

/// Publishes progress as it comes, the latest where it comes faster than the bus takes it.
async fn tell_progress(
    inner: &Inner,
    record: &TaskRecord,
    log: &UpdateLog,
    mut told: Progress,
) -> std::convert::Infallible {
    let mut seen = 0;
    loop {
        seen = log.changed(seen).await;
        let progress = log.progress();
        if progress != told {
            inner.announcer.progress(record, &progress).await;
            told = progress;
        }
    }
}

/// Writes how the task ended, unless it is no longer this brain's to write.
async fn finish(
    inner: &Inner,
    started: &Started,
    record: &TaskRecord,
    outcome: &Outcome,
    arms: &[String],
    took: Duration,
) -> Result<(), StoreError> {
    let stop = inner.desk.stopped(&started.id);
    loop {
        let current = inner.store.get(&started.id).await?;
        let ours = |current: &TaskRecord| current.run == record.run && is_ours(current, &inner.holder);
        let Some(mut current) = current.filter(ours).filter(|_| stop != Some(Stop::Lost)) else {
            tell_as_stored(inner, started).await;
            return Ok(());
        };
        let taken = &mut current.task.metadata;
        (taken.arms_used, taken.tokens_used) = (arms.to_vec(), outcome.usage.tokens);
        (taken.cost, taken.duration_seconds) = (outcome.usage.cost, took.as_secs_f64());
        current.task.progress = started.log.progress();
        if end(inner, &mut current, outcome, stop).is_err() {
            tell_as_stored(inner, started).await;
            return Ok(());
        }
        match inner.store.update(&mut current).await {
            Err(StoreError::Conflict) => continue,
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        inner.announcer.status(&current, took).await;
        started.log.status(&current.task);
        return Ok(());
    }
}

/// Which status an outcome leads to. A result that came before the cancellation took hold is kept.
fn end(
    inner: &Inner,
    record: &mut TaskRecord,
    outcome: &Outcome,
    stop: Option<Stop>,
) -> Result<(), IllegalTransition> {
    let now = inner.clock.now();
    let failure = match &outcome.result {
        Ok(output) => {
            let route = inner.dispatcher.find(&record.contract);
            match route.and_then(|route| result(route, output)) {
                Ok(result) => return record.complete(result, now),
                Err(failure) => failure,
            }
        }
        Err(error) => match (error.kind(), stop) {
            (ErrorKind::Cancelled, Some(Stop::Cancel)) => return record.cancel(now),
            (ErrorKind::Cancelled, Some(Stop::Close)) => return record.requeue(now),
            _ => error.failure().clone(),
        },
    };
    record.fail((&failure).into(), now)
}

/// The result that an output makes. A goal in words is answered by a [`TaskResult`] itself.
fn result(route: &Route, output: &Bytes) -> Result<TaskResult, Failure> {
    let read = if *route.contract() == TaskRequest::SPEC.reference() {
        serde_json::from_slice(output)
    } else {
        serde_json::from_slice(output).map(|output: serde_json::Value| TaskResult::new(output))
    };
    read.map_err(|error| Failure::new(ErrorKind::ArmFailed, format!("the output is no result: {error}")))
}

/// Tells those who watch how the task ended elsewhere. Where it has not, they are told by the store.
async fn tell_as_stored(inner: &Inner, started: &Started) {
    if let Ok(Some(record)) = inner.store.get(&started.id).await
        && record.task.status.is_finished()
    {
        started.log.status(&record.task);
    }
}
