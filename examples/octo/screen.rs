//! What is displayed of running work: its progress, its chunks, and its output.

use indicatif::ProgressBar;
use octollm::task::{Task, TaskStatus, TaskUpdate};
use serde_json::Value;

use crate::{
    exit::Exit,
    print::{Printer, line, plain},
};

/// The display of one task or call. Chunks are displayed on a terminal alone: elsewhere the standard output has the output, once.
pub(crate) struct Screen<'a> {
    print: &'a Printer,
    bar: Option<ProgressBar>,
    /// The text of the chunks so far.
    text: String,
    /// Whether the last character on the standard output is no line feed.
    is_open: bool,
    progress: String,
}

impl<'a> Screen<'a> {
    pub(crate) fn new(print: &'a Printer) -> Self {
        Self { print, bar: print.bar(), text: String::new(), is_open: false, progress: String::new() }
    }

    pub(crate) fn update(&mut self, update: &TaskUpdate) {
        if self.print.is_json {
            return self.print.json(update);
        }
        match update {
            TaskUpdate::Progress { progress, message, .. } => self.progress(*progress, message),
            TaskUpdate::Chunk { data, .. } => self.chunk(&data.to_value()),
            TaskUpdate::Gap { missed, .. } => self.note(&format!("{missed} updates are no longer stored")),
            TaskUpdate::Status { status: TaskStatus::Queued | TaskStatus::Processing, .. } => {
                self.begin_again()
            }
            _ => {}
        }
    }

    /// Discards the chunks of the run before, if there are any: another brain has taken the task over, or it is another attempt.
    fn begin_again(&mut self) {
        if !self.text.is_empty() {
            self.end_line();
            self.note("the task runs again: its output begins anew");
            self.text.clear();
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
        if !self.print.is_terminal {
            return;
        }
        self.remove_bar();
        match data {
            Value::String(text) => {
                self.text += text;
                self.print.out(&plain(text));
                self.is_open = text.chars().last().map_or(self.is_open, |last| last != '\n');
            }
            Value::Null => {}
            other => {
                let json = format!("{}\n", line(&other.to_string()));
                self.text += &json;
                self.print.out(&json);
            }
        }
    }

    pub(crate) fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.print.note(text)),
            None => self.print.note(text),
        }
    }

    fn remove_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Ends the line and the bar, before something else is printed.
    fn end_line(&mut self) {
        self.remove_bar();
        if std::mem::take(&mut self.is_open) {
            self.print.out("\n");
        }
    }

    /// Prints the output, unless its chunks were that.
    pub(crate) fn output(&mut self, output: &Value) {
        self.end_line();
        let without_whitespace = |text: &str| text.split_whitespace().collect::<String>();
        let was_streamed = output.as_str().is_some_and(|text| {
            !text.is_empty() && without_whitespace(text) == without_whitespace(&self.text)
        });
        if !was_streamed {
            self.print.output(output);
        }
    }

    /// Prints how the task ended.
    pub(crate) fn end(mut self, task: &Task) -> Result<(), Exit> {
        match &task.result {
            Some(_) if self.print.is_json => Ok(()),
            Some(result) => {
                self.output(&result.output.to_value());
                Ok(())
            }
            None => Err(Exit::of_task(task)),
        }
    }
}

/// Ends the line and the bar wherever the command ends, also at a Ctrl-C.
impl Drop for Screen<'_> {
    fn drop(&mut self) {
        self.end_line();
    }
}
