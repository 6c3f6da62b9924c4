//! The commands of tasks.

use std::{io, thread, time::Duration};

use octollm::{
    contract::ContractRef,
    error::Failure,
    id::{StepKey, TaskId},
    json::RawJson,
    orchestrator::{Orchestrator, wait_to_poll},
    task::{Submission, Task, TaskBudget, TaskQuery, TaskUpdate, Timestamp},
};
use serde_json::json;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    Octo, Step,
    args::{List, Submit},
    exit::Exit,
    print::line,
    screen::Screen,
};

/// Time for which a server that is away is tried again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two attempts, at least.
pub(crate) const BETWEEN: Duration = Duration::from_millis(500);

impl Octo {
    pub(crate) async fn submit(&self, submit: Submit) -> Result<(), Exit> {
        let submission = submission(&submit).await?;
        self.step.set(Step::Submit);
        let task = Orchestrator::submit(&self.client, submission, &self.cx).await.map_err(|failure| {
            let exit = Exit::from(&failure);
            let says = "the task may have been submitted; to see whether it was: octo list";
            if failure.may_have_executed { exit.hint(says) } else { exit }
        })?;
        self.step.set(Step::Read);
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
            return Screen::new(&self.print).end(&task);
        }
        self.follow(&task.task_id, None, submit.cancel_on_interrupt, false).await
    }

    pub(crate) async fn watch(&self, id: &TaskId, after: Option<u64>, cancels: bool) -> Result<(), Exit> {
        self.follow(id, after, cancels, true).await
    }

    pub(crate) async fn cancel(&self, id: &TaskId) -> Result<(), Exit> {
        self.step.set(Step::Change(id.clone()));
        let task = self.client.cancel(id, &self.cx).await.map_err(|failure| Exit::from(failure).task(id))?;
        self.print_tasks(&[task]);
        Ok(())
    }

    pub(crate) async fn rerun(&self, id: &TaskId, from: Option<&str>, detach: bool) -> Result<(), Exit> {
        let of_task = |failure: Failure| Exit::from(failure).task(id);
        // The updates of the run that has failed are not displayed again.
        let before = self.client.get(id, &self.cx).await.map_err(of_task)?;
        let mut last = None;
        if before.status.is_finished() && !detach {
            let mut updates = self.client.watch(id, None, &self.cx).await.map_err(of_task)?;
            while let Some(update) = updates.next().await {
                last = Some(update.seq());
            }
        }
        let from = from.map(StepKey::from_text);
        self.step.set(Step::Change(id.clone()));
        let task = self.client.rerun(id, from.as_ref(), &self.cx).await.map_err(of_task)?;
        if detach {
            self.print_tasks(&[task]);
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
            self.print_tasks(&page.tasks[..left.min(page.tasks.len())]);
            left = left.saturating_sub(page.tasks.len());
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        Ok(())
    }

    /// Prints each task in one line. On a terminal it is cut where that ends: its goal is the last part, and the first that is lost.
    fn print_tasks(&self, tasks: &[Task]) {
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
            let (status, seconds) = (task.status, task.metadata.duration_seconds);
            let before = format!("{id}  ");
            let rest =
                format!(" {percent:>3}%  {age:>5}  {seconds:>6.1}s  {:<width$}  {what}", contract(task));
            self.print.task(&before, status, rest.trim_end());
        }
    }

    /// Notes which task is followed.
    async fn note_task(&self, id: &TaskId) {
        if let Ok(task) = self.client.get(id, &self.cx).await {
            let goal = task.goal.as_ref().map(|goal| format!(", {goal}")).unwrap_or_default();
            self.print.note(&format!("{id} is {}: {}{goal}", task.status, contract(&task)));
        }
    }

    /// Follows a task to its end, and prints what it does.
    async fn follow(&self, id: &TaskId, after: Option<u64>, cancels: bool, names: bool) -> Result<(), Exit> {
        let mut screen = Screen::new(&self.print);
        let mut last = after;
        self.step.set(Step::Follow { id: id.clone(), after, cancels });
        if names && !self.print.is_json && !self.print.is_quiet {
            self.note_task(id).await;
        }
        let each = |update: &TaskUpdate| {
            self.step.set(Step::Follow { id: id.clone(), after: Some(update.seq()), cancels });
            last = Some(update.seq());
        };
        match self.read_updates(id, after, &mut screen, each).await {
            Ok(task) => screen.end(&task),
            Err(failure) => {
                let exit = Exit::from(&failure).task(id).after(last);
                let watch = || format!("to follow the task: {}", watch_again(id, last));
                Err(if failure.retryable { exit.hint(watch()) } else { exit })
            }
        }
    }

    /// Displays the updates of a task until it is finished. In place of `octollm::orchestrator::follow`: that one begins at the first update,
    /// tries five times in place of a minute, and does not say that it tries again.
    async fn read_updates(
        &self,
        id: &TaskId,
        mut after: Option<u64>,
        screen: &mut Screen<'_>,
        mut each: impl FnMut(&TaskUpdate),
    ) -> Result<Task, Failure> {
        let mut lost: Option<Instant> = None;
        loop {
            let failure = match self.client.watch(id, after, &self.cx).await {
                Err(failure) => failure,
                Ok(mut updates) => {
                    while let Some(update) = updates.next().await {
                        lost = None;
                        after = Some(update.seq());
                        each(&update);
                        screen.update(&update);
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
                screen.note(&format!("trying again for {} s: {failure}", PATIENCE.as_secs()));
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

/// The command that follows a task after an update.
pub(crate) fn watch_again(id: &TaskId, seen: Option<u64>) -> String {
    let after = seen.map(|seen| format!(" --after {seen}")).unwrap_or_default();
    format!("octo watch {id}{after}")
}

/// The submission that the arguments describe.
async fn submission(submit: &Submit) -> Result<Submission, Exit> {
    let body = match &submit.input {
        Some(input) => {
            let contract: ContractRef = submit.what.parse().map_err(|_| {
                Exit::usage(format!("{} is no name of a contract; a goal is one argument", submit.what))
            })?;
            let input = RawJson::from_slice(text_or_input(input).await?.as_bytes())
                .map_err(|error| Exit::usage(format!("the input is not JSON: {error}")))?;
            format!(r#"{{"contract":{},"input":{}}}"#, json!(contract), input.as_str())
        }
        None => json!({ "goal": text_or_input(&submit.what).await? }).to_string(),
    };
    let refused = |failure: Failure| Exit::usage(failure.message);
    let mut submission = Submission::from_json(body.as_bytes()).map_err(refused)?.attempts(submit.attempts);
    if let Some(priority) = submit.priority {
        submission = submission.priority(priority.into());
    }
    if let Some(tokens) = submit.max_tokens {
        submission = submission.budget(TaskBudget { max_tokens: Some(tokens), ..TaskBudget::default() });
    }
    if let Some(time) = submit.run_in {
        submission = submission.run_in(time);
    }
    if let Some(key) = &submit.unique {
        submission = submission.unique(key);
    }
    submission.check().map_err(|violations| refused(Failure::invalid(violations)))?;
    Ok(submission)
}

/// The text, or for `-` the standard input.
pub(crate) async fn text_or_input(text: &str) -> Result<String, Exit> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let (done, read) = oneshot::channel();
    // A thread of its own: a Ctrl-C does not wait for the end of the input.
    thread::spawn(move || done.send(io::read_to_string(io::stdin())));
    let read = read.await.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()));
    read.map_err(|error| Exit::usage(format!("the standard input cannot be read: {error}")))
}
