//! The commands of tasks.

use std::{io::Read, time::Duration};

use indicatif::ProgressBar;
use octollm::{
    contract::ContractRef,
    error::Failure,
    id::{StepKey, TaskId},
    json::RawJson,
    orchestrator::{Orchestrator, wait_to_poll},
    task::{Submission, Task, TaskBudget, TaskQuery, TaskUpdate, Timestamp},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Octo,
    args::{List, Submit},
    exit::Exit,
    print::{Printer, line, plain},
};

/// Time for which a server that is away is tried again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two attempts, at least.
pub(crate) const BETWEEN: Duration = Duration::from_millis(500);

impl Octo {
    pub(crate) async fn submit(&self, submit: Submit) -> Result<(), Exit> {
        let submission = submission(&submit)?;
        let task = tokio::select! {
            task = Orchestrator::submit(&self.client, submission, &self.cx) => task.map_err(|failure| {
                let exit = Exit::from(&failure);
                let says = "the task may have been submitted; to see whether it was: octo list";
                if failure.may_have_executed { exit.hint(says) } else { exit }
            })?,
            () = self.interrupt.notified() => {
                let exit = Exit::interrupted("interrupted; the task may have been submitted");
                return Err(exit.hint("to see whether it was: octo list"));
            }
        };
        if self.print.is_json {
            self.print.json(&task);
        } else if submit.detach {
            self.print.out(&format!("{}\n", task.task_id));
        } else {
            let word = if task.existing { "is there already" } else { "is submitted" };
            self.print.note(&format!("{} {word}", task.task_id));
        }
        if submit.detach {
            return Ok(());
        }
        if task.status.is_finished() {
            // A reflex has answered it, and no orchestrator knows it.
            return Shown::new(&self.print).end(&task);
        }
        self.follow(&task.task_id, None, submit.cancel_on_interrupt, false).await
    }

    pub(crate) async fn watch(&self, id: &TaskId, after: Option<u64>, cancels: bool) -> Result<(), Exit> {
        self.follow(id, after, cancels, true).await
    }

    pub(crate) async fn cancel(&self, id: &TaskId) -> Result<(), Exit> {
        let task = self.client.cancel(id, &self.cx).await.map_err(|failure| Exit::from(failure).task(id))?;
        self.states(&[task]);
        Ok(())
    }

    pub(crate) async fn rerun(&self, id: &TaskId, from: Option<&str>, detach: bool) -> Result<(), Exit> {
        let of_task = |failure: Failure| Exit::from(failure).task(id);
        // The updates of the run that has failed are not shown again.
        let before = self.client.get(id, &self.cx).await.map_err(of_task)?;
        let mut last = None;
        if before.status.is_finished() && !detach {
            let mut updates = self.client.watch(id, None, &self.cx).await.map_err(of_task)?;
            while let Some(update) = updates.next().await {
                last = Some(update.seq());
            }
        }
        let from = from.map(StepKey::from_text);
        let task = self.client.rerun(id, from.as_ref(), &self.cx).await.map_err(of_task)?;
        if detach {
            self.states(&[task]);
            return Ok(());
        }
        if self.print.is_json {
            self.print.json(&task);
        }
        self.follow(id, last, false, false).await
    }

    pub(crate) async fn list(&self, list: List) -> Result<(), Exit> {
        let (mut after, mut left) = (list.after, list.limit);
        while left > 0 {
            let query = TaskQuery::default().limit(left.min(TaskQuery::MAX_LIMIT));
            let query = list.status.map_or(query.clone(), |status| query.status(status));
            let query = after.take().map_or(query.clone(), |after| query.after(after));
            let page = self.client.list(query, &self.cx).await?;
            self.states(&page.tasks[..left.min(page.tasks.len())]);
            left = left.saturating_sub(page.tasks.len());
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        Ok(())
    }

    /// Prints each task in one line. On a terminal a line ends where that does.
    fn states(&self, tasks: &[Task]) {
        if self.print.is_json {
            return tasks.iter().for_each(|task| self.print.json(task));
        }
        let width = tasks.iter().map(|task| contract(task).len()).max().unwrap_or_default();
        let now = Timestamp::now();
        for task in tasks {
            let what = match (&task.goal, &task.error) {
                (Some(goal), _) => line(goal),
                (None, Some(error)) => line(&error.message),
                (None, None) => line(&task.progress.message),
            };
            let (id, percent, age) = (&task.task_id, task.progress.percentage, age(task.created_at, now));
            let (status, seconds) = (self.print.status(task.status), task.metadata.duration_seconds);
            let rest =
                format!(" {percent:>3}%  {age:>4}  {seconds:>6.1}s  {:<width$}  {what}", contract(task));
            let before = id.as_str().len() + "  completed ".len();
            let room = self.print.width.map_or(usize::MAX, |width| width.saturating_sub(before));
            self.print.out(&format!("{id}  {status}{}\n", cut(rest.trim_end(), room)));
        }
    }

    /// Notes which task is followed.
    async fn name(&self, id: &TaskId) {
        if let Ok(task) = self.client.get(id, &self.cx).await {
            let goal = task.goal.as_ref().map(|goal| format!(", {goal}")).unwrap_or_default();
            self.print.note(&format!("{id} is {}: {}{goal}", task.status, contract(&task)));
        }
    }

    /// Follows a task to its end, and prints what it does.
    async fn follow(&self, id: &TaskId, after: Option<u64>, cancels: bool, names: bool) -> Result<(), Exit> {
        let mut shown = Shown::new(&self.print);
        let mut seen = after;
        let following = async {
            if names && !self.print.is_json && !self.print.is_quiet {
                self.name(id).await;
            }
            self.followed(id, &mut seen, &mut shown).await
        };
        let ended = tokio::select! {
            task = following => Some(task),
            () = self.interrupt.notified() => None,
        };
        match ended {
            Some(Ok(task)) => shown.end(&task),
            Some(Err(failure)) => {
                shown.pause();
                let exit = Exit::from(&failure).task(id);
                let watch = || format!("to follow the task: {}", watch_again(id, seen));
                Err(if failure.retryable { exit.hint(watch()) } else { exit })
            }
            None if cancels => {
                shown.pause();
                let task = self.client.cancel(id, &self.cx).await;
                let task = task.map_err(|failure| Exit::from(failure).task(id))?;
                Err(Exit::interrupted(format!("interrupted; {id} is {}", task.status)).task(id))
            }
            None => {
                shown.pause();
                let exit = Exit::interrupted(format!("interrupted; {id} goes on")).task(id);
                Err(exit.hint(format!("to follow it: {}", watch_again(id, seen))))
            }
        }
    }

    async fn followed(
        &self,
        id: &TaskId,
        after: &mut Option<u64>,
        shown: &mut Shown<'_>,
    ) -> Result<Task, Failure> {
        let mut lost: Option<Instant> = None;
        loop {
            let failure = match self.client.watch(id, *after, &self.cx).await {
                Err(failure) => failure,
                Ok(mut updates) => {
                    while let Some(update) = updates.next().await {
                        lost = None;
                        *after = Some(update.seq());
                        shown.update(&update);
                    }
                    match self.client.get(id, &self.cx).await {
                        Ok(task) if task.status.is_finished() => return Ok(task),
                        Ok(_) => {
                            lost = None;
                            sleep(BETWEEN).await;
                            continue;
                        }
                        Err(failure) => failure,
                    }
                }
            };
            if lost.is_none() && failure.retryable {
                shown.note(&format!("{failure}; trying again for {} s", PATIENCE.as_secs()));
            }
            let since = *lost.get_or_insert_with(Instant::now);
            let wait = wait_to_poll(&failure, BETWEEN, None).filter(|_| since.elapsed() < PATIENCE);
            sleep(wait.ok_or(failure)?).await;
        }
    }
}

/// The contract of a task, or `-` where the server does not state it.
fn contract(task: &Task) -> String {
    task.contract.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// The time since the submission, in one unit.
fn age(created: Timestamp, now: Timestamp) -> String {
    match now.duration_since(created).as_secs().max(0) {
        seconds @ ..60 => format!("{seconds}s"),
        seconds @ ..3_600 => format!("{}m", seconds / 60),
        seconds @ ..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// A text that is not longer than this, in characters.
fn cut(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

fn watch_again(id: &TaskId, seen: Option<u64>) -> String {
    let after = seen.map(|seen| format!(" --after {seen}")).unwrap_or_default();
    format!("octo watch {id}{after}")
}

/// The submission that the arguments describe.
fn submission(submit: &Submit) -> Result<Submission, Exit> {
    let body = match &submit.input {
        Some(input) => {
            let contract: ContractRef = submit.what.parse().map_err(|_| {
                Exit::usage(format!("{} is no name of a contract; a goal is one argument", submit.what))
            })?;
            let input = RawJson::from_slice(text_or_input(input)?.as_bytes())
                .map_err(|error| Exit::usage(format!("the input is not JSON: {error}")))?;
            format!(r#"{{"contract":{},"input":{}}}"#, json!(contract), input.as_str())
        }
        None => json!({ "goal": text_or_input(&submit.what)? }).to_string(),
    };
    let refused = |failure: Failure| Exit::usage(failure.message);
    let mut submission = Submission::from_json(body.as_bytes()).map_err(refused)?.attempts(submit.attempts);
    if let Some(priority) = submit.priority {
        submission = submission.priority(priority.into());
    }
    if let Some(tokens) = submit.max_tokens {
        submission = submission.budget(TaskBudget { max_tokens: Some(tokens), ..TaskBudget::default() });
    }
    if let Some(seconds) = submit.run_in {
        submission = submission.run_in(Duration::from_secs(seconds.into()));
    }
    if let Some(key) = &submit.unique {
        submission = submission.unique(key);
    }
    submission.check().map_err(|violations| refused(Failure::invalid(violations)))?;
    Ok(submission)
}

/// The text, or for `-` the standard input.
pub(crate) fn text_or_input(text: &str) -> Result<String, Exit> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut read = String::new();
    let outcome = std::io::stdin().read_to_string(&mut read);
    outcome.map_err(|error| Exit::usage(format!("the standard input cannot be read: {error}")))?;
    Ok(read)
}

/// What was shown of running work.
pub(crate) struct Shown<'a> {
    print: &'a Printer,
    bar: Option<ProgressBar>,
    /// The text of the chunks so far.
    text: String,
    /// Whether the last character on the standard output is no line feed.
    is_open: bool,
    progress: String,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(print: &'a Printer) -> Self {
        Self { print, bar: print.bar(), text: String::new(), is_open: false, progress: String::new() }
    }

    fn update(&mut self, update: &TaskUpdate) {
        if self.print.is_json {
            return self.print.json(update);
        }
        match update {
            TaskUpdate::Progress { progress, message, .. } => self.progress(*progress, message),
            TaskUpdate::Chunk { data, .. } => self.chunk(&data.to_value()),
            TaskUpdate::Gap { missed, .. } => self.note(&format!("{missed} updates are no longer stored")),
            _ => {}
        }
    }

    pub(crate) fn progress(&mut self, percent: u8, message: &str) {
        let now = format!("{percent:>3}% {}", line(message));
        if now == self.progress {
            return;
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position(percent.into());
                bar.set_message(line(message));
            }
            // The words of an output are not interrupted.
            None if !self.is_open => self.print.note(&now),
            None => {}
        }
        self.progress = now;
    }

    /// Prints a part of the output. A bar would overwrite it.
    pub(crate) fn chunk(&mut self, data: &Value) {
        self.clear();
        match data {
            Value::String(text) => {
                self.text += text;
                self.print.out(&plain(text));
                self.is_open = text.chars().last().map_or(self.is_open, |last| last != '\n');
            }
            Value::Null => {}
            other => self.print.out(&format!("{}\n", line(&other.to_string()))),
        }
    }

    pub(crate) fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.print.note(text)),
            None => self.print.note(text),
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Ends the line and the bar, before something else is printed.
    pub(crate) fn pause(&mut self) {
        self.clear();
        if std::mem::take(&mut self.is_open) {
            self.print.out("\n");
        }
    }

    /// Prints the output, unless its chunks were that.
    pub(crate) fn output(&mut self, output: &Value) {
        self.pause();
        let words = |text: &str| text.split_whitespace().collect::<String>();
        let is_shown =
            output.as_str().is_some_and(|text| !text.is_empty() && words(text) == words(&self.text));
        if !is_shown {
            self.print.output(output);
        }
    }

    /// Prints how the task ended.
    fn end(mut self, task: &Task) -> Result<(), Exit> {
        match &task.result {
            Some(_) if self.print.is_json => Ok(()),
            Some(result) => {
                self.output(&result.output.to_value());
                Ok(())
            }
            None => {
                self.pause();
                Err(Exit::of_task(task))
            }
        }
    }
}
