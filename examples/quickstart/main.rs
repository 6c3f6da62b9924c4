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
//!
//! What is octollm's comes first: the contracts, the arms, the system, its client. What the arms do follows.

mod contracts;
mod arms;
mod system;
mod client;
mod report;
mod source;
mod parse;
mod items;
mod judge;
mod secrets;

use std::{
    io::{self, ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
};

use octollm::prelude::*;

use client::End;
use report::Report;

const USAGE: &str = "usage: quickstart [PATH] [--json] [--explain]";

#[derive(Default)]
struct Options {
    path: Option<PathBuf>,
    json: bool,
    explain: bool,
    help: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    for argument in std::env::args_os().skip(1) {
        match argument.to_str() {
            Some("--json") => options.json = true,
            Some("--explain") => options.explain = true,
            Some("--help" | "-h") => options.help = true,
            Some(flag) if flag.starts_with('-') => return Err(format!("{flag} is not known; {USAGE}")),
            _ if options.path.is_some() => return Err(format!("one PATH at a time; {USAGE}")),
            _ => options.path = Some(argument.into()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let done = options().and_then(|options| {
        if options.help {
            return Ok(print(&format!("{USAGE}\n"))
                .map(|()| ExitCode::SUCCESS)
                .map_err(octollm::Error::from));
        }
        let root = options.path.clone().unwrap_or_else(|| ".".into());
        source::list(&root)?;
        Ok(in_runtime(root, &options))
    });
    match done {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            eprintln!("quickstart: {error:?}");
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("quickstart: {message}");
            ExitCode::from(2)
        }
    }
}

/// As `#[tokio::main]`, but with the stack that the parser needs, and without waiting at the end for a file
/// that is being judged.
fn in_runtime(root: PathBuf, options: &Options) -> Result<ExitCode, octollm::Error> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().thread_stack_size(parse::STACK).build()?;
    let code = runtime.block_on(run(root, options));
    runtime.shutdown_background();
    code
}

async fn run(root: PathBuf, options: &Options) -> Result<ExitCode, octollm::Error> {
    let system = system::start(root).await?;
    let End::Finished(task) = client::review(&system.reflex_url).await? else {
        eprintln!("quickstart: interrupted, and the task cancelled");
        return Ok(ExitCode::from(130));
    };
    let Some(result) = task.result else {
        let why = task.error.map_or_else(|| task.status.to_string(), |error| error.message);
        eprintln!("quickstart: the review failed: {why}");
        return Ok(ExitCode::FAILURE);
    };
    let report: Report = result.output.read()?;
    // Who reads the report may take long, and tokio handles the signal since it was first waited for.
    tokio::spawn(async {
        let _ = tokio::signal::ctrl_c().await;
        std::process::exit(130);
    });
    let json = options.json.then(|| serde_json::to_string_pretty(&report)).transpose()?;
    let mut text = json.map_or_else(|| report::render(&report), |json| json + "\n");
    if options.explain {
        let journal = system.brain.journal(&task.task_id, &Context::detached()).await?;
        let explained = client::explain(&journal);
        if options.json { eprint!("{explained}") } else { text += &format!("\n{explained}") }
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
