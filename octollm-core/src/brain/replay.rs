//! Which recorded calls a run or a rerun replays, and in which order their answers are returned.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{Brain, limited, scheduler, tasks::uncertain};
use crate::{
    budget::Usage,
    context::Context,
    contract::Violation,
    error::{ErrorKind, Failure},
    id::{StepKey, TaskId},
    json::InputDigest,
    parts::spent,
    store::{JournalEntry, Recorded, SideEffects, StoreError},
    task::{Task, TaskError, TaskRecord, TaskStatus},
    transport::Call,
};

/// The state of the journal in one run.
#[derive(Default)]
pub(super) struct State {
    /// Entries of earlier runs whose calls this run has not made yet.
    recorded: HashMap<StepKey, JournalEntry>,
    /// Steps of the calls of this run.
    taken: HashSet<StepKey>,
    pub(super) sequence: Sequence,
    pub(super) arms: Vec<String>,
    /// Steps of this run that ended with a failure.
    pub(super) failed: HashSet<StepKey>,
    /// Positions of the failures whose calls are made again.
    pub(super) again: HashMap<StepKey, u64>,
    pub(super) mismatch: Option<Failure>,
}

/// The record of a call that is being made.
pub(super) enum Known {
    /// The answer.
    Answer(Box<JournalEntry>),
    /// The call was begun, and is not known to have ended.
    Begun(Box<JournalEntry>),
    /// There is none.
    Nothing,
}

impl State {
    pub(super) fn new(entries: Vec<JournalEntry>) -> Self {
        let answered = entries.iter().filter(|entry| entry.recorded.is_answered()).map(|entry| entry.seq);
        let last_of_all = entries.iter().map(|entry| entry.seq).max();
        let mut state = Self { sequence: Sequence::after(answered, last_of_all), ..Self::default() };
        for entry in entries {
            if entry.recorded.is_answered() {
                state.used_arm(&entry.served_by.arm);
            }
            match entry.recorded {
                Recorded::Again { last } if last_of_all <= Some(last) => {
                    state.sequence.hold(entry.seq);
                    state.again.insert(entry.step, entry.seq);
                }
                Recorded::Again { .. } => {}
                _ => drop(state.recorded.insert(entry.step.clone(), entry)),
            }
        }
        state
    }

    /// Takes the record of a call.
    ///
    /// # Errors
    /// A failure where the record is of another call.
    pub(super) fn recall(&mut self, call: &Call, digest: InputDigest) -> Result<Known, Failure> {
        if !self.taken.insert(call.step.clone()) {
            return Err(of_another_program(format!("step {} is called twice in one run", call.step)));
        }
        if self.recorded.is_empty() {
            return Ok(Known::Nothing);
        }
        let Some(entry) = self.recorded.remove(&call.step) else { return Ok(Known::Nothing) };
        if entry.contract != call.contract {
            let (was, is) = (&entry.contract, &call.contract);
            return Err(of_another_program(format!("step {} was {was} and is now {is}", call.step)));
        }
        if entry.input_digest != digest {
            let (step, contract) = (&call.step, &call.contract);
            return Err(of_another_program(format!(
                "step {step} calls {contract} with another input than it did"
            )));
        }
        if !entry.recorded.is_answered() {
            return Ok(Known::Begun(Box::new(entry)));
        }
        self.sequence.ask(entry.seq);
        if entry.recorded.failure().is_some() {
            self.failed.insert(entry.step.clone());
        }
        Ok(Known::Answer(Box::new(entry)))
    }

    /// The recorded steps of a batch that this run has not made yet, if one of them is not known to have ended.
    pub(super) fn resumed(&self, batch: &StepKey) -> HashSet<StepKey> {
        let of_batch = || self.recorded.values().filter(|entry| entry.batch.as_ref() == Some(batch));
        if !of_batch().any(|entry| matches!(entry.recorded, Recorded::Begun)) {
            return HashSet::new();
        }
        of_batch().map(|entry| entry.step.clone()).collect()
    }

    pub(super) fn used_arm(&mut self, arm: &str) {
        if !arm.is_empty() && !self.arms.iter().any(|used| used == arm) {
            self.arms.push(arm.to_owned());
        }
    }

    /// The failure of a run that does not match the journal. A run that has ended well has made so many ordered `calls`, and has
    /// to have made all recorded ones up to the entry `made_again`.
    pub(super) fn mismatch(&self, calls: Option<u32>, made_again: Option<u64>) -> Option<Failure> {
        let missing = |calls: u32| {
            let due = self.recorded.values().filter(|entry| {
                matches!(entry.step, StepKey::Order(order) if order >= calls)
                    && made_again.is_none_or(|failure| entry.seq < failure)
            });
            let JournalEntry { step, contract, .. } = due.min_by_key(|entry| &entry.step)?;
            Some(of_another_program(format!("step {step} was {contract} and is no longer taken")))
        };
        self.mismatch.clone().or_else(|| calls.and_then(missing))
    }
}

fn of_another_program(how: String) -> Failure {
    Failure::new(ErrorKind::JournalMismatch, format!("the journal is of another program: {how}"))
}

/// What the next answer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing: the answer may be returned.
    Now,
    /// The recorded answer with this number, which the program has not asked for yet.
    NotAsked(u64),
    /// The answer with this number, which is being recorded or has not been returned yet.
    Pending(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Recorded,
    Asked,
}

/// The order of a task's answers: those of earlier runs as they were recorded, then those of this run as they come.
///
/// Every run has to receive its answers in the order in which they are recorded, so that races end as they did. An answer
/// waits until those before it were returned or dropped.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    open: BTreeMap<u64, Place>,
    /// Positions of failures whose calls are made again. No answer waits for them.
    again: BTreeSet<u64>,
    next: u64,
}

impl Sequence {
    /// Continues after these numbers of recorded answers; `last` is the greatest of all entries.
    pub(super) fn after(recorded: impl Iterator<Item = u64>, last: Option<u64>) -> Self {
        let open: BTreeMap<_, _> = recorded.map(|seq| (seq, Place::Recorded)).collect();
        Self { open, again: BTreeSet::new(), next: last.map_or(0, |last| last + 1) }
    }

    /// Reserves a position for the next answer of a call that failed.
    pub(super) fn hold(&mut self, seq: u64) {
        self.again.insert(seq);
    }

    /// The number of an entry that no answer waits for.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The position of a new answer: the one that is reserved for it, while no later answer has been returned, else the last.
    pub(super) fn enter(&mut self, held: Option<u64>) -> u64 {
        let held = held.filter(|seq| self.again.remove(seq));
        let seq = held.unwrap_or_else(|| self.number());
        self.open.insert(seq, Place::Asked);
        seq
    }

    /// Marks a recorded answer that the program asks for.
    pub(super) fn ask(&mut self, seq: u64) {
        if let Some(place) = self.open.get_mut(&seq) {
            *place = Place::Asked;
        }
    }

    /// What this answer waits for.
    pub(super) fn turn(&self, seq: u64) -> Turn {
        match self.open.first_key_value() {
            Some((first, place)) if *first < seq => match place {
                Place::Recorded => Turn::NotAsked(*first),
                Place::Asked => Turn::Pending(*first),
            },
            _ => Turn::Now,
        }
    }

    /// Removes an answer that was returned or dropped.
    pub(super) fn leave(&mut self, seq: u64) {
        self.open.remove(&seq);
        self.again = self.again.split_off(&seq);
    }

    /// Removes what other answers wait for, unless it has moved meanwhile. Returns whether it was removed.
    pub(super) fn skip(&mut self, before: Turn) -> bool {
        let (seq, place) = match before {
            Turn::Now => return false,
            Turn::NotAsked(seq) => (seq, Place::Recorded),
            Turn::Pending(seq) => (seq, Place::Asked),
        };
        let there = self.open.get(&seq) == Some(&place);
        if there {
            self.open.remove(&seq);
        }
        there
    }
}

/// The changes of a journal before a rerun.
#[derive(Debug, Default)]
struct Reopening {
    /// Steps whose entries are discarded.
    discarded: Vec<StepKey>,
    /// Entries without their answers: to be made again, or begun where the call may have run and must not run twice.
    reopened: Vec<JournalEntry>,
}

impl Reopening {
    /// Sets what the next run of the task replays.
    ///
    /// # Errors
    /// The budget of the task is used up.
    fn prepare(
        &self,
        record: &mut TaskRecord,
        journal: &[JournalEntry],
        continues: bool,
    ) -> Result<(), Failure> {
        // What stays before a named step was recorded before the calls that are open again.
        let made_again = continues.then(|| self.reopened.iter().map(|entry| entry.seq).min()).flatten();
        record.will_replay(replayed(journal, &self.discarded, &self.reopened), made_again);
        if record.budget().budget().after(record.used_before()).is_exhausted() {
            return Err(Failure::of(ErrorKind::BudgetExhausted).before_execution());
        }
        Ok(())
    }
}

impl Brain {
    pub(super) async fn run_again(
        &self,
        id: &TaskId,
        from: Option<&StepKey>,
        cx: &Context,
    ) -> Result<Task, Failure> {
        self.is_open()?;
        if let Some(failure) = spent(cx.deadline(), cx.budget(), tokio::time::Instant::now()) {
            return Err(failure);
        }
        let task = loop {
            let record = self.visible(id, cx).await?;
            if record.status() != TaskStatus::Failed {
                let message = format!("a {} task is not run again", record.status());
                return Err(Failure::new(ErrorKind::Conflict, message));
            }
            let journal = limited(self.0.store.journal(id, None, usize::MAX)).await?;
            let reopening = match from {
                Some(step) => discard_from(step, &journal)?,
                None => continue_after(record.failed_step(), &journal)?,
            };
            let mut record: TaskRecord = Arc::unwrap_or_clone(record);
            reopening.prepare(&mut record, &journal, from.is_none())?;
            let Reopening { discarded, reopened } = reopening;
            self.grant_again(&mut record, cx).await?;
            record.rerun(from.is_some(), self.0.clock.now())?;
            let task = record.to_task();
            let change = SideEffects::of_change(&record, self.0.source());
            let effects = SideEffects { discarded, journal: reopened, ..change };
            match self.0.commit(record, effects).await {
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

/// Queues a task for another attempt after this error, as a rerun without a step would, and returns the journal entries that are
/// open again. `None`, and an unchanged record, where none of its attempts is left or another one cannot help.
///
/// Another attempt can help where the failure is retryable: that of the arm, or of the call whose error the arm returned. A call that
/// may have run and must not run twice is not made again, so that another attempt would end with `outcome_unknown`.
pub(super) fn retry(
    record: &mut TaskRecord,
    error: &TaskError,
    journal: &[JournalEntry],
    now: Timestamp,
) -> Option<Vec<JournalEntry>> {
    let of_call = error.step.as_ref().and_then(|step| failure_of(step, journal));
    let is_that_of_call = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::UpstreamFailed);
    let can_help = error.retryable || is_that_of_call && of_call.is_some_and(Failure::can_restart);
    if !can_help || record.attempts_left() == 0 {
        return None;
    }
    let reopening = continue_after(error.step.as_ref(), journal).ok()?;
    if reopening.reopened.iter().any(|entry| matches!(entry.recorded, Recorded::Begun)) {
        return None;
    }
    let mut next = record.clone();
    reopening.prepare(&mut next, journal, true).ok()?;
    next.retry(error.clone(), now).ok()?;
    *record = next;
    Some(reopening.reopened)
}

/// The recorded failure of a step.
pub(super) fn failure_of<'a>(step: &StepKey, journal: &'a [JournalEntry]) -> Option<&'a Failure> {
    journal.iter().find(|entry| entry.step == *step)?.recorded.failure()
}

/// The usage of the calls that stay recorded. One that is begun is unmetered.
pub(super) fn replayed(journal: &[JournalEntry], discarded: &[StepKey], reopened: &[JournalEntry]) -> Usage {
    let gone: HashSet<_> = discarded.iter().chain(reopened.iter().map(|entry| &entry.step)).collect();
    let left = journal.iter().filter(|entry| !gone.contains(&entry.step));
    left.fold(Usage::ZERO, |used, entry| used.plus(entry.usage))
}

/// Reports what is recorded of a task that ends without a run which reports it. A task whose journal is empty reports nothing.
pub(super) fn report_recorded(record: &mut TaskRecord, journal: Vec<JournalEntry>, now: Timestamp) {
    let Some(last) = journal.iter().map(|entry| entry.at).max() else { return };
    let usage = record.used_before().plus(replayed(&journal, &[], &[]));
    let task = record.task();
    let duration = match task.status {
        // Since it was claimed. The clocks may differ.
        TaskStatus::Processing => now.max(last).duration_since(task.updated_at).as_secs_f64(),
        _ => task.metadata.duration_seconds,
    };
    let duration = Duration::try_from_secs_f64(duration).unwrap_or_default();
    let progress = task.progress.clone();
    record.report(usage, State::new(journal).arms, duration, progress);
}

/// Discards a step and everything that was recorded after it. A call that was begun before the step stays begun where its
/// outcome is unknown.
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
    let position = first.position();
    let later = journal.iter().filter(|entry| entry.position() >= position);
    let begun = journal.iter().filter(|entry| entry.position() < position && entry.seq >= position);
    Ok(Reopening {
        discarded: later.map(|entry| entry.step.clone()).collect(),
        reopened: begun.map(|entry| reopened(entry, entry.position(), Recorded::Begun)).collect(),
    })
}

/// An entry without its answer, whose usage is counted already.
fn reopened(entry: &JournalEntry, seq: u64, recorded: Recorded) -> JournalEntry {
    JournalEntry { seq, begun: None, recorded, usage: Usage::ZERO, ..entry.clone() }
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
    let again = failures().filter(with_it).map(|entry| {
        let ran = entry.recorded.failure().is_some_and(|failure| failure.may_have_executed);
        let recorded = if !entry.idempotent && ran { Recorded::Begun } else { Recorded::Again { last } };
        reopened(entry, entry.seq, recorded)
    });
    Ok(Reopening { reopened: again.collect(), ..Reopening::default() })
}

fn listed(journal: &[JournalEntry]) -> String {
    let steps: Vec<_> = journal.iter().map(|entry| entry.step.to_string()).collect();
    if steps.is_empty() { "none".to_owned() } else { steps.join(", ") }
}

#[cfg(test)]
mod tests;
