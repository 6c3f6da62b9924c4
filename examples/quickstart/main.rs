//! Reviews a Rust crate with a whole system of arms, in one process: reflex server, orchestrator, planner, retriever,
//! judge and guardian, each behind its own HTTP server.
//!
//! ```text
//! cargo run --example quickstart [PATH] [--json] [--explain]
//! ```
//!
//! PATH is the crate, by default this folder. `--json` prints the report as JSON and nothing else; `--explain` adds how
//! each call was made. Exit status: 0 when the review is done, 1 when it failed, 2 when there is nothing to review,
//! 130 when it was interrupted.
//!
//! The first four modules show octollm: contracts, arms, the system they form, and here a client of it. The others review.

mod contracts;
mod arms;
mod system;
mod report;
mod source;
mod parse;
mod items;
mod judge;
mod secrets;

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use octollm::{
    orchestrator::{JournalStep, follow, whole_journal},
    prelude::*,
    task::{Task, TaskBudget, TaskUpdate},
};
use report::Report;

/// Submits the review to the reflex server and follows it to its end. `None`: it was interrupted, and is cancelled.
async fn review(reflex_url: &str) -> Result<Option<Task>, octollm::Error> {
    let reflex = OrchestratorClient::new(reflex_url)?;
    let cx = Context::detached();
    let budget =
        TaskBudget { max_tokens: Some(10_000), max_time_seconds: Some(300.0), max_cost_dollars: None };
    let request = TaskRequest { budget, ..TaskRequest::new("Review this crate, and look for secrets.") };
    let bar = progress_bar();
    let task = Orchestrator::submit(&reflex, request.into(), &cx).await?;
    let followed = follow(&reflex, &task.task_id, &cx, |update| {
        if let TaskUpdate::Progress { progress, phase, message, .. } = update {
            bar.set_position(u64::from(*progress));
            bar.set_message(if message.is_empty() { format!("{phase:?}") } else { message.clone() });
        }
    });
    let task = tokio::select! {
        task = followed => Some(task?),
        _ = tokio::signal::ctrl_c() => {
            // The calls three hops away stop with the task.
            let _ = tokio::time::timeout(Duration::from_millis(500), reflex.cancel(&task.task_id, &cx)).await;
            None
        }
    };
    bar.finish_and_clear();
    Ok(task)
}

/// A bar on standard error, hidden where that is not a terminal.
fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {bar:30} {percent:>3}% {elapsed} {wide_msg}");
    let bar = ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A line for each call of the brain.
fn explain(journal: &[JournalStep]) -> String {
    let lines = journal.iter().map(|call| {
        let JournalStep { step, contract, arm, endpoint, attempts, duration_ms, budget_left, .. } = call;
        let left = call.time_left_ms.map_or("no time limit".into(), |ms| format!("{:.1} s", ms as f64 / 1e3));
        format!(
            "call {step}: {contract} by {arm} at {endpoint}, attempts {attempts}, {duration_ms:.2} ms; \
             left {budget_left}, {left}\n"
        )
    });
    lines.collect()
}

async fn run(root: PathBuf, json: bool, explained: bool) -> Result<ExitCode, octollm::Error> {
    let (reflex_url, brain) = system::start(root).await?;
    let Some(task) = review(&reflex_url).await? else {
        eprintln!("quickstart: interrupted, and the task cancelled");
        return Ok(ExitCode::from(130));
    };
    let Some(result) = task.result else {
        let why = task.error.map_or_else(|| task.status.to_string(), |error| error.message);
        eprintln!("quickstart: the review failed: {why}");
        return Ok(ExitCode::FAILURE);
    };
    let report: Report = result.output.read()?;
    // Printing may block, and from its first `ctrl_c()` on, tokio handles the signal.
    tokio::spawn(async {
        let _ = tokio::signal::ctrl_c().await;
        std::process::exit(130);
    });
    let mut text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.page() };
    if explained {
        let calls = explain(&whole_journal(&brain, &task.task_id, &Context::detached()).await?);
        if json { eprint!("{calls}") } else { text += &calls }
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output. A reader that has seen enough, such as `head`, is not a failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    const USAGE: &str = "usage: quickstart [PATH] [--json] [--explain]";
    let arguments = std::env::args_os().skip(1);
    let (flags, paths): (Vec<_>, Vec<_>) =
        arguments.partition(|argument| argument.to_str().is_some_and(|text| text.starts_with('-')));
    let given = |name: &str| flags.iter().any(|flag| flag == name);
    if given("--help") || given("-h") {
        return print(&format!("{USAGE}\n")).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let unknown = flags.iter().find(|flag| *flag != "--json" && *flag != "--explain");
    let root = paths.first().map_or_else(|| ".".into(), PathBuf::from);
    let checked = match unknown {
        Some(flag) => Err(format!("{} is not known; {USAGE}", flag.display())),
        None if paths.len() > 1 => Err(format!("one PATH at a time; {USAGE}")),
        None => source::list(&root).map(drop),
    };
    if let Err(message) = checked {
        eprintln!("quickstart: {message}");
        return ExitCode::from(2);
    }
    // As `#[tokio::main]`, but with the stack that the parser needs, and without waiting at the end for a file that is
    // being judged.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let done = builder.enable_all().thread_stack_size(parse::STACK).build().map_err(octollm::Error::from);
    let done = done.and_then(|runtime| {
        let code = runtime.block_on(run(root, given("--json"), given("--explain")));
        runtime.shutdown_background();
        code
    });
    done.unwrap_or_else(|error| {
        eprintln!("quickstart: {error:?}");
        ExitCode::FAILURE
    })
}
