//! The updates of a task by polling, for orchestrators that do not stream them.

use std::{collections::VecDeque, future::Future, time::Duration};

use futures_util::stream;
use octollm_core::{
    deadline::Deadline,
    error::Failure,
    id::TaskId,
    orchestrator::{TaskUpdates, wait_to_poll},
    task::{Task, TaskStatus, TaskUpdate},
    update::Progress,
};
use tokio::time::Instant;

/// The shortest and the longest interval of polls.
pub(super) const SHORTEST: Duration = Duration::from_millis(20);
pub(super) const LONGEST: Duration = Duration::from_millis(500);

/// The differences between `first` and later answers of `ask`, as updates numbered from `after` + 1. It ends after the final
/// status, and when asking fails for good, or for as long as the timeout.
pub(in crate::client) fn updates<F, Fut>(
    first: Task,
    after: Option<u64>,
    limits: (Option<Deadline>, Duration),
    ask: F,
) -> TaskUpdates
where
    F: Fn(TaskId) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Task, Failure>> + Send + 'static,
{
    let mut seen = Seen::new(first.task_id.clone(), after.unwrap_or(0), limits);
    seen.take_in(first);
    TaskUpdates::new(stream::unfold((seen, ask), async |(mut seen, ask)| {
        loop {
            if let Some(update) = seen.pending.pop_front() {
                return Some((update, (seen, ask)));
            }
            if seen.status.is_some_and(TaskStatus::is_finished) {
                return None;
            }
            tokio::time::sleep(seen.wait.take().unwrap_or(seen.pause)).await;
            if seen.lost.is_some_and(|since| since.elapsed() >= seen.resume_timeout) {
                return None;
            }
            seen.pause = (seen.pause * 3 / 2).min(LONGEST);
            match ask(seen.id.clone()).await {
                Ok(task) => seen.take_in(task),
                Err(failure) => {
                    tracing::debug!(task = %seen.id, %failure, "a poll of the task has failed");
                    seen.lost.get_or_insert_with(Instant::now);
                    // The next request for the task, by whoever follows it, waits too.
                    seen.wait = Some(wait_to_poll(&failure, seen.pause, seen.deadline)?);
                }
            }
        }
    }))
}

/// The last state of a task, and the updates not yet returned.
struct Seen {
    id: TaskId,
    seq: u64,
    status: Option<TaskStatus>,
    /// Number of the attempt: one may follow another between two polls.
    attempt: u32,
    progress: Progress,
    pending: VecDeque<TaskUpdate>,
    pause: Duration,
    /// Wait for the next poll after a failed one.
    wait: Option<Duration>,
    /// Since when polls fail.
    lost: Option<Instant>,
    deadline: Option<Deadline>,
    resume_timeout: Duration,
}

impl Seen {
    fn new(id: TaskId, seq: u64, (deadline, resume_timeout): (Option<Deadline>, Duration)) -> Self {
        let (progress, pending) = (Progress::default(), VecDeque::new());
        let (pause, wait, lost) = (SHORTEST, None, None);
        Self {
            id,
            seq,
            status: None,
            attempt: 1,
            progress,
            pending,
            pause,
            wait,
            lost,
            deadline,
            resume_timeout,
        }
    }

    fn take_in(&mut self, task: Task) {
        self.lost = None;
        let task_id = self.id.clone();
        if task.progress != self.progress {
            self.progress = task.progress;
            self.pause = SHORTEST;
            let Progress { percentage, current_step, message, .. } = self.progress.clone();
            let seq = self.next();
            let (progress, phase) = (percentage, current_step);
            self.pending.push_back(TaskUpdate::Progress {
                task_id: task_id.clone(),
                seq,
                progress,
                phase,
                message,
            });
        }
        if (self.status, self.attempt) != (Some(task.status), task.attempt) {
            (self.status, self.attempt) = (Some(task.status), task.attempt);
            self.pause = SHORTEST;
            let (status, result, seq) = (task.status, task.result, self.next());
            // The error of the attempt before is part of the update that it has ended.
            let error = task.error.filter(|_| status != TaskStatus::Processing);
            self.pending.push_back(TaskUpdate::Status { task_id, seq, status, result, error });
        }
    }

    fn next(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }
}
