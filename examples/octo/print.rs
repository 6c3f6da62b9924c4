//! The output: text or JSON, without control characters of a server, and a progress bar on a terminal.

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use octollm::task::TaskStatus;
use serde::Serialize;
use serde_json::Value;

use crate::exit::Exit;

/// Where and how the program prints.
#[derive(Clone)]
pub(crate) struct Printer {
    pub(crate) is_json: bool,
    pub(crate) is_quiet: bool,
    /// Whether the standard output is a terminal.
    pub(crate) is_terminal: bool,
    /// Columns of the terminal that the standard output is, and of that which the standard error is.
    width: Option<usize>,
    width_of_notes: Option<usize>,
    has_color: bool,
    has_bar: bool,
}

impl Printer {
    pub(crate) fn new(is_json: bool, is_quiet: bool) -> Self {
        let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_terminal = io::stdout().is_terminal();
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            is_json,
            is_quiet,
            is_terminal,
            width: Term::stdout().size_checked().map(|(_, columns)| columns.into()),
            width_of_notes: Term::stderr().size_checked().map(|(_, columns)| columns.into()),
            has_color: is_terminal && !is_dumb && !is_set("NO_COLOR"),
            has_bar: is_terminal && !is_dumb && !is_json && !is_quiet && io::stderr().is_terminal(),
        }
    }

    /// Writes to the standard output. If its reader has closed it, the program ends.
    pub(crate) fn out(&self, text: &str) {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => {
                self.err(&format!("octo: the output cannot be written: {error}\n"));
                std::process::exit(1);
            }
        }
    }

    /// Writes to the standard error, where that is possible.
    pub(crate) fn err(&self, text: &str) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// Writes a line that is no result, unless it is not wanted. It ends where the terminal does.
    pub(crate) fn note(&self, text: &str) {
        if !self.is_quiet && !self.is_json {
            self.err(&format!("{}\n", cut(&line(text), self.width_of_notes)));
        }
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(json) => self.out(&format!("{}\n", json_line(&json))),
            Err(error) => self.err(&format!("octo: a value cannot be written as JSON: {error}\n")),
        }
    }

    /// Writes an output: a text as it is, anything else as JSON.
    pub(crate) fn output(&self, output: &Value) {
        match output {
            Value::String(text) => self.out(&format!("{}\n", plain(text.trim_end_matches('\n')))),
            other => {
                let json = serde_json::to_string_pretty(other).unwrap_or_default();
                self.out(&format!("{}\n", plain(&json)));
            }
        }
    }

    /// Writes why the program ends.
    pub(crate) fn problem(&self, exit: &Exit) {
        if self.is_json {
            let json = serde_json::to_string(&exit.problem).unwrap_or_default();
            self.err(&format!("{}\n", json_line(&json)));
            return;
        }
        self.err(&format!("octo: {}\n", line(exit.message())));
        if let Some(hint) = &exit.hint {
            self.err(&format!("      {}\n", line(hint)));
        }
    }

    /// Writes the line of a task, whose status is padded and in its color. It ends where the terminal does.
    pub(crate) fn task(&self, before: &str, status: TaskStatus, rest: &str) {
        let color = match status {
            TaskStatus::Completed => "32",
            TaskStatus::Failed => "31",
            TaskStatus::Cancelled => "33",
            _ => "36",
        };
        let status = format!("{:<10}", status.as_str());
        let text = cut(&format!("{before}{status}{rest}"), self.width);
        let colored = self.colored(&status, color);
        // A terminal that is too narrow for a status has none in color.
        self.out(&format!("{}\n", text.replacen(&status, &colored, 1)));
    }

    pub(crate) fn colored(&self, text: &str, code: &str) -> String {
        if self.has_color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A progress bar on the standard error; hidden where one of the outputs is no terminal.
    pub(crate) fn bar(&self) -> Option<ProgressBar> {
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {elapsed} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        self.has_bar.then(|| ProgressBar::new(100).with_style(style))
    }
}

/// A text whose control characters are written as escapes; line feeds and tabs stay.
pub(crate) fn plain(text: &str) -> String {
    escaped(text, |c| (is_control(c) && c != '\n' && c != '\t').then(|| c.escape_default().to_string()))
}

/// The same as one line.
pub(crate) fn line(text: &str) -> String {
    escaped(text, |c| is_control(c).then(|| c.escape_default().to_string()))
}

/// JSON whose control characters are all escaped: it has those beyond ASCII as they are, and only within strings.
fn json_line(json: &str) -> String {
    escaped(json, |c| is_control(c).then(|| format!("\\u{:04x}", u32::from(c))))
}

/// The text, which ends with `…` where it has more than so many columns.
fn cut(text: &str, columns: Option<usize>) -> String {
    let mut left = columns.unwrap_or(usize::MAX);
    if text.chars().map(columns_of).sum::<usize>() <= left {
        return text.to_owned();
    }
    left = left.saturating_sub(columns_of('…'));
    let fits = |c: &char| {
        let rest = left.checked_sub(columns_of(*c));
        left = rest.unwrap_or_default();
        rest.is_some()
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Columns of a character, at most: two where a font may have a wide one.
fn columns_of(c: char) -> usize {
    match c {
        '\u{1100}'..='\u{1fff}' | '\u{2300}'.. => 2,
        _ => 1,
    }
}

fn escaped(text: &str, escape: impl Fn(char) -> Option<String>) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        match escape(c) {
            Some(escape) => _ = safe.write_str(&escape),
            None => safe.push(c),
        }
        safe
    })
}

/// What a terminal acts on, and what changes the order of the characters around it.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
