//! What became of the tasks, by the store and by what was published, not by what the load believes.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::Path,
};

use octollm::{error::ErrorKind, prelude::*, task::Task};

use crate::{
    Result,
    load::{Load, Outcome},
    say,
};

#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Tasks that the load has tried to submit.
    asked: usize,
    completed: usize,
    /// By kind of error: how many, and the last message.
    failed: BTreeMap<String, (usize, String)>,
    refused: usize,
    /// Submissions that reached nobody.
    not_submitted: usize,
    /// What is wrong, in words.
    lost: Vec<String>,
    doubled: Vec<String>,
    kills: u64,
}

impl Summary {
    /// Compares what the load has seen with the store and the ledger.
    pub(crate) async fn check(
        load: &Load,
        outcomes: Vec<Outcome>,
        ledger: &Path,
        kills: u64,
    ) -> Result<Self> {
        let published = published(ledger)?;
        let stored = load.all(|_| true).await?;
        let mut by_goal: HashMap<&str, Vec<&Task>> = HashMap::new();
        for task in &stored {
            by_goal.entry(task.goal.as_deref().unwrap_or_default()).or_default().push(task);
        }
        let mut summary = Self { asked: outcomes.len(), kills, ..Self::default() };
        for outcome in outcomes {
            let tasks = by_goal.remove(&*load.goal(outcome.number)).unwrap_or_default();
            summary.count(&outcome, &tasks, &published);
        }
        for goal in by_goal.into_keys() {
            summary.doubled.push(format!("a task that nobody has submitted: {goal}"));
        }
        Ok(summary)
    }

    fn count(&mut self, outcome: &Outcome, tasks: &[&Task], published: &HashMap<String, usize>) {
        let number = outcome.number;
        if tasks.len() > 1 {
            self.doubled.push(format!("task {number} was queued {} times", tasks.len()));
        }
        let Some(task) = tasks.first() else {
            match (&outcome.id, &outcome.end) {
                (Some(id), _) => self.lost.push(format!("task {number}, {id}, is not in the store")),
                (None, Err(failure)) if failure.kind == ErrorKind::Refused => self.refused += 1,
                (None, _) => self.not_submitted += 1,
            }
            return;
        };
        let times = published.get(task.task_id.as_str()).copied().unwrap_or_default();
        if times > 1 {
            self.doubled.push(format!("the story of task {number} was published {times} times"));
        }
        match (task.status, &task.error) {
            (TaskStatus::Completed, _) => {
                self.completed += 1;
                if times == 0 {
                    self.lost.push(format!("task {number} is completed, and its story was not published"));
                }
            }
            (TaskStatus::Failed, Some(error)) => {
                let (count, message) = self.failed.entry(error.kind.to_string()).or_default();
                *count += 1;
                message.clone_from(&error.message);
            }
            (status, _) => self.lost.push(format!("task {number} is {status}")),
        }
        // The load has to have seen the same end.
        let seen = outcome.end.as_ref().map(|seen| seen.status);
        if !seen.as_ref().is_ok_and(|seen| *seen == task.status) {
            self.lost.push(format!("the end of task {number}, {}, was not reported: {seen:?}", task.status));
        }
    }

    /// Whether every task has ended once.
    pub(crate) fn is_good(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty()
    }

    pub(crate) fn print(&self) {
        let failed: usize = self.failed.values().map(|(count, _)| count).sum();
        let Self { asked, completed, refused, not_submitted, kills, .. } = self;
        say(&format!(
            "\ntasks {asked}: completed {completed}, failed {failed}, refused {refused}, not submitted {not_submitted}"
        ));
        for (kind, (count, message)) in &self.failed {
            say(&format!("  {kind} {count}, as in: {message}"));
        }
        say(&format!(
            "parts killed {kills}, tasks lost {}, done twice {}",
            self.lost.len(),
            self.doubled.len()
        ));
        for problem in self.lost.iter().chain(&self.doubled) {
            say(&format!("  {problem}"));
        }
    }
}

/// How often the story of each task was published.
fn published(ledger: &Path) -> io::Result<HashMap<String, usize>> {
    let lines = match fs::read_to_string(ledger) {
        Ok(lines) => lines,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let mut published = HashMap::new();
    for task in lines.lines() {
        *published.entry(task.to_owned()).or_default() += 1;
    }
    Ok(published)
}
