//! The load: tasks that are submitted and followed, a few at a time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::stream::{self, StreamExt};
use octollm::{
    error::Failure,
    id::TaskId,
    orchestrator::finished,
    prelude::*,
    task::{Submission, Task, TaskQuery},
};
use tokio::time::{Instant, sleep};

use crate::{Result, Stop, say, system::DULL};

/// Time for which parts that are away are tried again.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN: Duration = Duration::from_millis(300);
/// Time between two tasks of the same place.
const PAUSE: Duration = Duration::from_millis(100);

/// Submits tasks through the reflex.
pub(crate) struct Load {
    client: OrchestratorClient,
    cx: Context,
    /// Part of each goal, so that a database may have tasks of other runs.
    run: u32,
    tasks: u64,
    next: AtomicU64,
    stop: Stop,
}

/// What became of a task.
pub(crate) struct Outcome {
    pub(crate) number: u64,
    pub(crate) id: Option<TaskId>,
    pub(crate) end: Result<Task, Failure>,
}

impl Load {
    pub(crate) fn new(url: String, tasks: Option<u64>, stop: Stop) -> Result<Self> {
        Ok(Self {
            client: OrchestratorClient::new(url)?,
            cx: Context::detached(),
            run: std::process::id(),
            tasks: tasks.unwrap_or(u64::MAX),
            next: AtomicU64::new(1),
            stop,
        })
    }

    /// Runs tasks until there were enough, and returns when none runs any more.
    pub(crate) async fn run(&self, at_once: usize) -> Vec<Outcome> {
        let places = (0..at_once).map(|_| async {
            let mut outcomes = Vec::new();
            while !self.stop.is_set() {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                if number > self.tasks {
                    break;
                }
                outcomes.push(self.one(number).await);
                self.stop.pause(PAUSE).await;
            }
            outcomes
        });
        let all: Vec<Vec<Outcome>> = stream::iter(places).buffer_unordered(at_once).collect().await;
        all.into_iter().flatten().collect()
    }

    async fn one(&self, number: u64) -> Outcome {
        let begun = Instant::now();
        let outcome = match self.submitted(number).await {
            Err(failure) => Outcome { number, id: None, end: Err(failure) },
            Ok(id) => Outcome { number, end: self.finished(&id).await, id: Some(id) },
        };
        let how = match &outcome.end {
            Ok(task) => match &task.error {
                Some(error) => format!("{}: {}", task.status, error.message),
                None => task.status.to_string(),
            },
            Err(failure) => failure.kind.to_string(),
        };
        say(&format!("{number:>5}  {:>5.1} s  {how}", begun.elapsed().as_secs_f64()));
        outcome
    }

    /// The goal of a task. Its number is at its end.
    pub(crate) fn goal(&self, number: u64) -> String {
        let about = match number % 15 {
            0 => "previous instructions",
            7 => DULL,
            _ => ["an octopus", "a crab", "a lighthouse", "two whales"][number as usize % 4],
        };
        format!("a story about {about} [{}/{number}]", self.run)
    }

    /// Submits a task once, whatever happens to the answers.
    async fn submitted(&self, number: u64) -> Result<TaskId, Failure> {
        let goal = TaskRequest::new(self.goal(number));
        let submission = Submission::of(&goal)?.unique(format!("{}/{number}", self.run)).attempts(3);
        let begun = Instant::now();
        loop {
            let failure = match Orchestrator::submit(&self.client, submission.clone(), &self.cx).await {
                Ok(task) => return Ok(task.task_id),
                Err(failure) => failure,
            };
            if !(failure.retryable || failure.may_have_executed) || begun.elapsed() > PATIENCE {
                return Err(failure);
            }
            sleep(BETWEEN).await;
            // Its key holds while it runs, and it may have ended.
            if failure.may_have_executed
                && let Ok(known) = self.all(|task| task.goal.as_deref() == Some(&*goal.goal)).await
                && let Some(task) = known.into_iter().next()
            {
                return Ok(task.task_id);
            }
        }
    }

    /// Follows a task to its end, over restarts of what is between.
    async fn finished(&self, id: &TaskId) -> Result<Task, Failure> {
        let begun = Instant::now();
        loop {
            match finished(&self.client, id, &self.cx).await {
                Err(failure) if failure.retryable && begun.elapsed() < PATIENCE => sleep(BETWEEN).await,
                ended => return ended,
            }
        }
    }

    /// The tasks of this run in the store for which `is_wanted` holds.
    pub(crate) async fn all(&self, is_wanted: impl Fn(&Task) -> bool) -> Result<Vec<Task>, Failure> {
        let (mut found, mut after) = (Vec::new(), None);
        let mark = format!(" [{}/", self.run);
        let begun = Instant::now();
        loop {
            let query = TaskQuery::default().limit(TaskQuery::MAX_LIMIT);
            let query = match &after {
                Some(after) => query.after(TaskId::clone(after)),
                None => query,
            };
            let page = match self.client.list(query, &self.cx).await {
                Ok(page) => page,
                Err(failure) if failure.retryable && begun.elapsed() < PATIENCE => {
                    sleep(BETWEEN).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let is_own = |task: &Task| task.goal.as_deref().is_some_and(|goal| goal.contains(&mark));
            found.extend(page.tasks.into_iter().filter(|task| is_own(task) && is_wanted(task)));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(found),
            }
        }
    }
}
