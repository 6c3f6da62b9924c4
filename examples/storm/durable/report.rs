//! What came of all tasks, steps and events.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::PoisonError,
};

use octollm::task::TaskRecord;

use super::{
    events::Seen,
    program::{Kind, Outcome, Program, STEPS},
    seconds,
    system::{Ended, System, is_end},
};
use crate::Result;

/// The figures.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) tasks: usize,
    pub(super) runs: usize,
    /// Seconds from the end of a process to the next start of each of its tasks, sorted.
    pub(super) takeovers: Vec<f64>,
    /// Seconds from the last end of a process that ran a task to the end of the task, the longest.
    pub(super) longest: f64,
    /// Further executions of idempotent steps.
    pub(super) repeated: u32,
    /// Steps with an unknown outcome, at the arm that keeps keys, and at the other one.
    pub(super) unknown: [usize; 2],
    pub(super) events: usize,
    /// Events that were delivered more than once, before the inbox and behind it.
    pub(super) double: [usize; 2],
    /// What must not be, of which the first ones are described.
    pub(super) problems: Vec<String>,
}

impl Report {
    /// Reads it, where these processes have ended.
    pub(super) async fn of(system: &System, ended: &[Ended]) -> Result<Self> {
        let mut report = Self::default();
        let (records, seen) = (system.records().await?, system.events.seen());
        report.tasks = records.len();
        let mut by_task = BTreeMap::<&str, Vec<&Seen>>::new();
        let mut ids = BTreeSet::new();
        for seen in &seen {
            if ids.insert((&seen.source, &seen.id)) {
                by_task.entry(&seen.task).or_default().push(seen);
            }
        }
        let (handled, different) = system.events.handled().await?;
        report.events = ids.len();
        report.double = [seen.len() - ids.len(), usize::try_from(handled - different)?];
        if usize::try_from(different)? != ids.len() {
            report.problems.push(format!("{different} events were handled, and {} delivered", ids.len()));
        }
        if handled != different {
            report.problems.push(format!("{handled} effects of {different} events"));
        }
        let ends: HashMap<&str, _> = ended.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        for record in &records {
            let events = by_task.remove(record.id().as_str()).unwrap_or_default();
            report.steps(system, record);
            report.events_of(record, &events);
            report.takeovers_of(&events, &ends);
        }
        let stored: BTreeSet<_> = records.iter().map(|record| record.id().to_string()).collect();
        let accepted = system.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = accepted.difference(&stored).map(|task| format!("{task} was accepted and is not stored"));
        report.problems.extend(lost);
        report.takeovers.sort_by(f64::total_cmp);
        Ok(report)
    }

    fn problem(&mut self, record: &TaskRecord, what: impl fmt::Display) {
        self.problems.push(format!("{}: {what}", record.id()));
    }

    /// The result of a task, and the executions of its steps.
    fn steps(&mut self, system: &System, record: &TaskRecord) {
        self.runs += record.run() as usize;
        let outcome: Outcome = match record.task().clone().into_output::<Program>() {
            Ok(outcome) => outcome,
            Err(error) => return self.problem(record, format!("{}, {error}", record.status())),
        };
        if outcome.sum != STEPS * (STEPS - 1) / 2 {
            self.problem(record, format!("the sum is {}", outcome.sum));
        }
        for number in 0..STEPS {
            let executions = system.ledger.executions(record.id().as_str(), number);
            let (kind, is_unknown) = (Kind::of(number), outcome.unknown.contains(&number));
            match kind {
                Kind::Idempotent => self.repeated += executions.saturating_sub(1),
                Kind::Keyed => self.unknown[0] += usize::from(is_unknown),
                Kind::Unkeyed => self.unknown[1] += usize::from(is_unknown),
            }
            if executions == 0 && !is_unknown || executions > 1 && kind != Kind::Idempotent {
                self.problem(record, format!("step {number} ({kind:?}) was executed {executions} times"));
            }
        }
    }

    /// Each change of a task has one event.
    fn events_of(&mut self, record: &TaskRecord, events: &[&Seen]) {
        let count = |which: &str| events.iter().filter(|event| event.event_type == which).count();
        let (queued, started) = (count("task.queued"), count("task.started"));
        if started != record.run() as usize {
            self.problem(record, format!("{started} events of {} starts", record.run()));
        }
        if queued == 0 || count("task.completed") != 1 || events.iter().filter(is_last).count() != 1 {
            let types: Vec<_> = events.iter().map(|event| &*event.event_type).collect();
            self.problem(record, format!("its events are {types:?}"));
        }
    }

    fn takeovers_of(&mut self, events: &[&Seen], ended: &HashMap<&str, octollm::task::Timestamp>) {
        let mut starts: Vec<_> = events.iter().filter(|event| event.event_type == "task.started").collect();
        starts.sort_by_key(|event| event.at);
        let end = events.iter().find(|event| is_end(&event.event_type)).map(|event| event.at);
        let mut last = None;
        for (at, start) in starts.iter().enumerate() {
            let Some(&killed) = ended.get(&*start.source) else { continue };
            let next = starts.get(at + 1).map(|next| next.at);
            if let Some(next) = next.filter(|next| *next > killed && start.at <= killed) {
                self.takeovers.push(seconds(killed, next));
                last = Some(killed);
            }
        }
        if let (Some(last), Some(end)) = (last, end) {
            self.longest = self.longest.max(seconds(last, end));
        }
    }

    /// A percentile of the takeovers.
    fn takeover(&self, percent: usize) -> f64 {
        let at = (self.takeovers.len() * percent / 100).min(self.takeovers.len().saturating_sub(1));
        self.takeovers.get(at).copied().unwrap_or_default()
    }

    /// Fails where something is not as it must be.
    pub(super) fn verdict(&self) -> Result<()> {
        for problem in self.problems.iter().take(10) {
            eprintln!("{problem}");
        }
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(format!("{} problems", self.problems.len()).into())
        }
    }
}

fn is_last(event: &&&Seen) -> bool {
    is_end(&event.event_type)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tasks, runs, repeated, events, longest, .. } = self;
        let ([keyed, unkeyed], [before, behind]) = (self.unknown, self.double);
        write!(
            f,
            "tasks={tasks} runs={runs} takeovers={} takeover_s_p50={:.2} p99={:.2} max={:.2} end_s_max={longest:.2} \
             repeated_idempotent={repeated} unknown_keyed={keyed} unknown_unkeyed={unkeyed} events={events} \
             double_before_inbox={before} double_behind_inbox={behind} problems={}",
            self.takeovers.len(),
            self.takeover(50),
            self.takeover(99),
            self.takeover(100),
            self.problems.len(),
        )
    }
}
