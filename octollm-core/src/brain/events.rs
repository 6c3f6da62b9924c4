//! What is stored beside each change of a task: its event, and its live update.

use crate::{
    event::Event,
    store::SideEffects,
    task::{TaskChange, TaskError, TaskEvent, TaskRecord, TaskSpent, TaskStatus, TaskUpdate},
    update::Progress,
};

/// The event and the update of a task's new status.
pub(super) fn of_change(record: &TaskRecord, spent: &TaskSpent, source: &str) -> SideEffects {
    let mut effects = SideEffects::default();
    let task = record.task();
    let change = match task.status {
        TaskStatus::Queued => TaskChange::Queued,
        TaskStatus::Processing => TaskChange::Started,
        TaskStatus::Completed => TaskChange::Completed(spent.clone()),
        TaskStatus::Cancelled => TaskChange::Cancelled(spent.clone()),
        _ => match &task.error {
            Some(error) => TaskChange::Failed(brief(error), spent.clone()),
            None => return effects,
        },
    };
    effects.events.extend(event(record, change, source));
    effects.updates.push(TaskUpdate::Status {
        task_id: task.task_id.clone(),
        seq: 0,
        status: task.status,
        result: task.result.clone(),
        error: task.error.clone(),
    });
    effects
}

/// The event of a task's progress.
pub(super) fn of_progress(record: &TaskRecord, progress: Progress, source: &str) -> Option<Event> {
    let message = shortened(progress.message.clone());
    event(record, TaskChange::Progress(Progress { message, ..progress }), source)
}

/// The longest message of an event, in bytes, and the longest details of an error. A bus refuses what is too large, and
/// then nobody would learn that a task has ended.
const MESSAGE: usize = 4 * 1024;
const DETAILS: usize = 16 * 1024;

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE {
        let end = (0..=MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
        message.truncate(end);
        message.push('…');
    }
    message
}

/// An error as an event carries it; the task has all of it.
fn brief(error: &TaskError) -> TaskError {
    let details = error.details.clone().filter(|details| details.to_string().len() <= DETAILS);
    TaskError { message: shortened(error.message.clone()), details, ..error.clone() }
}

fn event(record: &TaskRecord, change: TaskChange, source: &str) -> Option<Event> {
    let event = TaskEvent::new(record.id().clone(), record.contract().clone(), change).to_event(source);
    match event {
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
