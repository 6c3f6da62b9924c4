//! How a failed task runs again: which recorded calls are replayed, and which are made again.

use std::{collections::HashSet, sync::Arc};

use super::{Brain, events, limited, scheduler, tasks::uncertain};
use crate::{
    budget::Usage,
    context::Context,
    contract::Violation,
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    parts::spent,
    store::{JournalEntry, Recorded, SideEffects, StoreError},
    task::{Task, TaskRecord, TaskStatus},
};

/// The changes of a journal before a rerun.
#[derive(Debug, Default)]
struct Reopening {
    /// Steps whose entries are discarded.
    discarded: Vec<StepKey>,
    /// Entries without their answers: to be made again, or begun where the call may have run and must not run twice.
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
        let task = loop {
            let record = self.visible(id, cx).await?;
            if record.status() != TaskStatus::Failed {
                let message = format!("a {} task is not run again", record.status());
                return Err(Failure::new(ErrorKind::Conflict, message));
            }
            let journal = limited(self.0.store.journal(id)).await?;
            let Reopening { discarded, reopened } = match from {
                Some(step) => discard_from(step, &journal)?,
                None => continue_after(record.failed_step(), &journal)?,
            };
            let mut record: TaskRecord = Arc::unwrap_or_clone(record);
            let made_again = reopened.iter().map(|entry| entry.seq).min();
            record.will_replay(replayed(&journal, &discarded, &reopened), made_again);
            if record.budget().budget().after(record.used_before()).is_exhausted() {
                return Err(Failure::of(ErrorKind::BudgetExhausted).before_execution());
            }
            record.set_caller(self.granted_again(&record, cx).await?);
            record.rerun(from.is_some(), self.0.clock.now())?;
            let task = record.task().clone();
            let change = events::of_change(&record, self.0.source());
            let effects = SideEffects { discarded, journal: reopened, ..change };
            match limited(self.0.store.commit(record, effects)).await {
                // Another rerun came first, and may have failed again: this one is of the journal before it.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(uncertain(error)),
                Ok(()) => break task,
            }
        };
        scheduler::start(&self.0);
        Ok(task)
    }
}

/// The usage of the answers that are replayed.
pub(super) fn replayed(journal: &[JournalEntry], discarded: &[StepKey], reopened: &[JournalEntry]) -> Usage {
    let gone: HashSet<_> = discarded.iter().chain(reopened.iter().map(|entry| &entry.step)).collect();
    let left = journal.iter().filter(|entry| entry.recorded.is_answered() && !gone.contains(&entry.step));
    left.fold(Usage::ZERO, |used, entry| used.plus(entry.usage))
}

/// Discards a step and everything that was recorded after it.
fn discard_from(step: &StepKey, journal: &[JournalEntry]) -> Result<Reopening, Failure> {
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
    Ok(Reopening { discarded: later.map(|entry| entry.step.clone()).collect(), ..Reopening::default() })
}

/// Makes the call again whose error ended the task, with all failures of its batch, and replays all others.
///
/// Where no call's error ended the task, the arm itself failed, and every call is replayed. That is refused where a call
/// failed: the arm may have failed because of it, and would fail again.
fn continue_after(failed: Option<&StepKey>, journal: &[JournalEntry]) -> Result<Reopening, Failure> {
    let failures = || journal.iter().filter(|entry| entry.recorded.failure().is_some());
    let Some(step) = failed else {
        if failures().next().is_none() {
            return Ok(Reopening::default());
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
    Ok(Reopening { reopened: reopened.collect(), ..Reopening::default() })
}

fn listed(journal: &[JournalEntry]) -> String {
    let steps: Vec<_> = journal.iter().map(|entry| entry.step.to_string()).collect();
    if steps.is_empty() { "none".to_owned() } else { steps.join(", ") }
}
