//! The span and the metrics of the tasks of a brain.

use std::sync::{Arc, LazyLock};

use tracing::{Span, field::Empty, info_span};

use super::Inner;
use crate::{
    meters::{Counter, Counters, Gauges},
    spans::Scope,
    task::{TaskRecord, TaskStatus},
};

static SUBMITTED: LazyLock<Counters> = LazyLock::new(|| {
    Counters::new("octollm_tasks_submitted_total", "Tasks that a brain has accepted.", &["brain"])
});
static ENDED: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Runs of tasks whose end a brain has stored, by the status after it; queued where the task runs again.";
    Counters::new("octollm_tasks_ended_total", help, &["brain", "status"])
});
static WRITES: LazyLock<Counters> = LazyLock::new(|| {
    Counters::new("octollm_journal_writes_total", "Records of calls that a brain has stored.", &["brain"])
});
static RUNNING: LazyLock<Gauges<Inner>> = LazyLock::new(|| {
    let gauge = ("octollm_tasks_running", "Tasks that run now.", &["brain"][..]);
    Gauges::new(&[gauge], |brain, gauges| {
        let running = i64::try_from(*brain.running.count().borrow()).unwrap_or(i64::MAX);
        for gauge in gauges {
            gauge.with_label_values(&[brain.source()]).add(running);
        }
    })
});

/// The metrics of one brain.
pub(super) struct Meters {
    pub(super) submitted: Counter,
    pub(super) writes: Counter,
}

impl Meters {
    pub(super) fn new(brain: &str) -> Self {
        Self { submitted: SUBMITTED.with(&[brain]), writes: WRITES.with(&[brain]) }
    }
}

/// Counts the end of a run, by the status of its task after it.
pub(super) fn ended(brain: &str, status: TaskStatus) {
    ENDED.with(&[brain, status.as_str()]).count();
}

/// Adds a brain to those whose tasks are counted while they run.
pub(super) fn read(brain: &Arc<Inner>) {
    RUNNING.add(brain);
}

/// The span of one run of a task. The request that submitted the task has ended, or was made to another brain: its span is the
/// parent in the trace alone.
pub(super) fn span(record: &TaskRecord) -> Span {
    let span = info_span!(
        target: "octollm::span",
        parent: None,
        "task",
        contract = %record.contract(),
        task = %record.id(),
        run = record.run(),
        correlation = %record.correlation_id(),
        code = Empty,
    );
    Scope::joined(span, || record.trace()).span().cloned().unwrap_or_else(Span::none)
}
