//! Following a task by asking for it again and again.

use std::{collections::VecDeque, future::Future, time::Duration};

use futures_util::stream;
use octollm_core::{
    error::Failure,
    id::TaskId,
    orchestrator::{TaskUpdate, TaskUpdates},
    task::{Task, TaskStatus},
    update::Progress,
};

/// The first pause, the longest, and how many questions in a row may fail.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);
const FAILURES: u32 = 5;

/// What `first` and later answers of `ask` tell, numbered from behind `after`. Ends behind the final status, and where
/// asking fails for good.
pub(super) fn updates<F, Fut>(first: Task, after: Option<u64>, ask: F) -> TaskUpdates
where
    F: Fn(TaskId) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Task, Failure>> + Send + 'static,
{
    let mut seen = Seen::new(first.task_id.clone(), after.unwrap_or(0));
    seen.take_in(first);
    TaskUpdates::new(stream::unfold((seen, ask), async |(mut seen, ask)| {
        loop {
            if let Some(update) = seen.untold.pop_front() {
                return Some((update, (seen, ask)));
            }
            if seen.status.is_some_and(TaskStatus::is_finished) {
                return None;
            }
            tokio::time::sleep(seen.pause).await;
            seen.pause = (seen.pause * 3 / 2).min(LONGEST);
            match ask(seen.id.clone()).await {
                Ok(task) => seen.take_in(task),
                Err(failure) if failure.retryable && seen.failures < FAILURES => seen.failures += 1,
                Err(failure) => {
                    tracing::debug!(task = %seen.id, %failure, "no longer following the task");
                    return None;
                }
            }
        }
    }))
}

/// What is known of a task, and what of it is still to be told.
struct Seen {
    id: TaskId,
    seq: u64,
    status: Option<TaskStatus>,
    progress: Progress,
    untold: VecDeque<TaskUpdate>,
    pause: Duration,
    failures: u32,
}

impl Seen {
    fn new(id: TaskId, seq: u64) -> Self {
        let (progress, untold) = (Progress::default(), VecDeque::new());
        Self { id, seq, status: None, progress, untold, pause: SHORTEST, failures: 0 }
    }

    fn take_in(&mut self, task: Task) {
        self.failures = 0;
        let task_id = self.id.clone();
        if task.progress != self.progress {
            self.progress = task.progress;
            self.pause = SHORTEST;
            let Progress { percentage, current_step, message, .. } = self.progress.clone();
            let seq = self.next();
            let (progress, phase) = (percentage, current_step);
            self.untold.push_back(TaskUpdate::Progress {
                task_id: task_id.clone(),
                seq,
                progress,
                phase,
                message,
            });
        }
        if self.status != Some(task.status) {
            self.status = Some(task.status);
            self.pause = SHORTEST;
            let (status, result, error, seq) = (task.status, task.result, task.error, self.next());
            self.untold.push_back(TaskUpdate::Status { task_id, seq, status, result, error });
        }
    }

    fn next(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }
}
