//! Running a failed task again: which recorded calls are kept, and which are made once more.

use std::collections::HashSet;

use super::{Brain, scheduler, uncertain};
use crate::{
    budget::Usage,
    context::Context,
    contract::Violation,
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    orchestrator::{JournalStep, StepOutcome},
    parts::spent,
    store::{JournalEntry, Recorded, SideEffects, StoreError},
    task::{Task, TaskError, TaskStatus},
};

/// What a rerun does with the journal.
#[derive(Debug, Default)]
struct Plan {
    /// Steps that are discarded: made again if the program comes to them.
    discarded: Vec<StepKey>,
    /// Steps that are no longer answered: made again, or begun where they may have run and must not run twice.
    reopened: Vec<JournalEntry>,
}

impl Brain {
    pub(super) async fn run_again(
        &self,
        id: &TaskId,
        from: Option<&StepKey>,
        cx: &Context,
    ) -> Result<Task, Failure> {
        if let Some(failure) = spent(cx.deadline(), cx.budget()) {
            return Err(failure);
        }
        let record = loop {
            let mut record = self.visible(id, cx).await?;
            if record.status() != TaskStatus::Failed {
                let message = format!("a {} task is not run again", record.status());
                return Err(Failure::new(ErrorKind::Conflict, message));
            }
            let journal = self.0.store.journal(id).await?;
            let Plan { discarded, reopened } = match from {
                Some(step) => discard_from(step, &journal)?,
                None => continue_after(record.failed_step(), &journal)?,
            };
            let made_again = reopened.iter().map(|entry| entry.seq).min();
            record.will_replay(replayed(&journal, &discarded, &reopened), made_again);
            record.rerun(from.is_some(), self.0.clock.now())?;
            let effects = SideEffects { discarded, journal: reopened, ..self.effects(&record) };
            match self.0.store.commit(record, effects).await {
                // Another rerun came first, and has failed again by now: this plan is of the journal before it.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(uncertain(error)),
                Ok(record) => break record,
            }
        };
        scheduler::start(&self.0);
        Ok(record.into_task())
    }
}

/// What the answers used that are replayed, and so count again.
fn replayed(journal: &[JournalEntry], discarded: &[StepKey], reopened: &[JournalEntry]) -> Usage {
    let gone: HashSet<_> = discarded.iter().chain(reopened.iter().map(|entry| &entry.step)).collect();
    let left = journal.iter().filter(|entry| entry.recorded.is_answered() && !gone.contains(&entry.step));
    left.fold(Usage::ZERO, |used, entry| used.plus(entry.usage))
}

/// Discards a step and everything that was recorded after it.
fn discard_from(step: &StepKey, journal: &[JournalEntry]) -> Result<Plan, Failure> {
    // A failed task names its step as a text, where a position and a name of digits look alike.
    let alike = match step {
        StepKey::Name(text) => StepKey::from_text(text),
        StepKey::Order(order) => StepKey::Name(order.to_string()),
    };
    let find = |step: &StepKey| journal.iter().find(|entry| entry.step == *step);
    let Some(first) = find(step).or_else(|| find(&alike)) else {
        let message = format!("the journal has no step {step}; it has: {}", listed(journal));
        return Err(Failure::invalid(vec![Violation::new("from", message)]));
    };
    let later = journal.iter().filter(|entry| entry.seq >= first.seq || !entry.recorded.is_answered());
    Ok(Plan { discarded: later.map(|entry| entry.step.clone()).collect(), ..Plan::default() })
}

/// Keeps everything that the program got past, and makes the call again whose error ended the task, with all failures of
/// its batch.
///
/// Where no call's error ended the task, everything is kept: the arm itself failed, and continues where it was once it has
/// been corrected. That is refused where a call failed too: the arm may have failed because of it, and would again.
fn continue_after(failed: Option<&StepKey>, journal: &[JournalEntry]) -> Result<Plan, Failure> {
    let failures = || journal.iter().filter(|entry| entry.recorded.failure().is_some());
    let Some(step) = failed else {
        if failures().next().is_none() {
            return Ok(Plan::default());
        }
        let failed: Vec<_> = failures().map(|entry| entry.step.to_string()).collect();
        let message = format!(
            "no call's error ended the task, so the step to run from has to be named; failed: {}",
            failed.join(", ")
        );
        return Err(Failure::new(ErrorKind::Conflict, message));
    };
    let batch = journal.iter().find(|entry| entry.step == *step).and_then(|entry| entry.batch.clone());
    let with_it = |entry: &&JournalEntry| entry.step == *step || (batch.is_some() && entry.batch == batch);
    let last = journal.iter().map(|entry| entry.seq).max().unwrap_or_default();
    let reopened = failures().filter(with_it).map(|entry| {
        let ran = entry.recorded.failure().is_some_and(|failure| failure.may_have_executed);
        let recorded = if !entry.idempotent && ran { Recorded::Begun } else { Recorded::Again { last } };
        JournalEntry { recorded, ..entry.clone() }
    });
    Ok(Plan { reopened: reopened.collect(), ..Plan::default() })
}

fn listed(journal: &[JournalEntry]) -> String {
    let steps: Vec<_> = journal.iter().map(|entry| entry.step.to_string()).collect();
    if steps.is_empty() { "none".to_owned() } else { steps.join(", ") }
}

impl From<JournalEntry> for JournalStep {
    fn from(entry: JournalEntry) -> Self {
        let outcome = match &entry.recorded {
            Recorded::Output(_) => StepOutcome::Answered,
            Recorded::Failure(_) => StepOutcome::Failed,
            Recorded::Begun | Recorded::Again { .. } | Recorded::Handle(_) => StepOutcome::Unknown,
        };
        Self {
            error: entry.recorded.failure().map(TaskError::from),
            outcome,
            step: entry.step,
            contract: entry.contract,
            arm: entry.served_by.arm.as_ref().into(),
            endpoint: entry.served_by.endpoint.as_ref().into(),
            attempts: entry.served_by.attempts,
            budget_left: entry.budget_left,
            time_left_ms: entry.time_left_ms,
            duration_ms: entry.duration_ms,
            tokens_used: entry.usage.tokens,
            cost_dollars: entry.usage.cost.dollars(),
            at: entry.at,
        }
    }
}
