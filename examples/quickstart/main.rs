//! Reviews a Rust crate with a whole system of arms, in one process: reflex server, orchestrator, planner, retriever,
//! judge and guardian, each behind its own HTTP server.
//!
//! ```text
//! cargo run --example quickstart [PATH] [--json] [--explain]
//! ```
//!
//! PATH is the crate, by default this folder. `--json` prints the report as JSON and nothing else; `--explain` adds how
//! each call travelled. Exit status: 0 when the review is done, 1 when it failed, 2 when there is nothing to review,
//! 130 when it was interrupted.

mod arms;
mod client;
mod contracts;
mod finding;
mod judge;
mod lexer;
mod report;
mod review;
mod secrets;
mod source;
mod system;

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use octollm::prelude::*;

use client::End;
use report::Report;

const USAGE: &str = "usage: quickstart [PATH] [--json] [--explain]";

struct Options {
    path: PathBuf,
    json: bool,
    explain: bool,
    help: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options { path: PathBuf::new(), json: false, explain: false, help: false };
    let mut paths = Vec::new();
    for argument in std::env::args_os().skip(1) {
        match argument.to_str() {
            Some("--json") => options.json = true,
            Some("--explain") => options.explain = true,
            Some("--help" | "-h") => options.help = true,
            Some(flag) if flag.starts_with('-') => return Err(format!("{flag} is not known; {USAGE}")),
            _ => paths.push(PathBuf::from(argument)),
        }
    }
    if paths.len() > 1 {
        return Err(format!("one PATH at a time; {USAGE}"));
    }
    options.path = paths.pop().unwrap_or_else(|| PathBuf::from("."));
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(message) => return refuse(&message),
    };
    if options.help {
        return match print(&format!("{USAGE}\n")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if let Err(error) = source::list(&options.path, arms::MAX_BYTES) {
        return refuse(&error.to_string());
    }
    match in_runtime(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quickstart: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// As `#[tokio::main]`, but for its end: a file that is being judged at that moment is not waited for.
fn in_runtime(options: &Options) -> Result<ExitCode, octollm::Error> {
    let runtime = tokio::runtime::Runtime::new()?;
    let code = runtime.block_on(run(options));
    runtime.shutdown_background();
    code
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("quickstart: {message}");
    ExitCode::from(2)
}

async fn run(options: &Options) -> Result<ExitCode, octollm::Error> {
    let system = system::start(options.path.clone()).await?;
    let task = match client::review(&system.reflex_url).await? {
        End::Finished(task) => task,
        End::Interrupted => {
            eprintln!("quickstart: interrupted, and the task cancelled");
            return Ok(ExitCode::from(130));
        }
    };
    let Some(result) = task.result else {
        let why = task.error.map_or_else(|| task.status.to_string(), |error| error.message);
        eprintln!("quickstart: the review failed: {why}");
        return Ok(ExitCode::FAILURE);
    };
    let report: Report = result.output.read()?;
    // Whoever reads the report may take long, and the signal is ours since it was first waited for.
    tokio::spawn(async {
        let _ = tokio::signal::ctrl_c().await;
        std::process::exit(130);
    });
    let mut text = page(&report, options.json)?;
    if options.explain {
        let journal = system.brain.journal(&task.task_id, &Context::detached()).await?;
        let explained = client::explain(&journal);
        if options.json { eprint!("{explained}") } else { text += &format!("\n{explained}") }
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output. A reader that has seen enough, such as `head`, is no failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn page(report: &Report, json: bool) -> Result<String, serde_json::Error> {
    if json {
        return Ok(serde_json::to_string_pretty(report)? + "\n");
    }
    Ok(report::render(report, takes_color()))
}

/// Standard output is a terminal, and nobody asked for plain text.
fn takes_color() -> bool {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !plain
}
