//! Reviews a Rust crate with a system of services in one process: a reflex server, a brain and four arms, each of them behind
//! an HTTP server of its own.
//!
//! ```text
//! cargo run --example quickstart [PATH] [--goal TEXT] [--json] [--explain]
//! cargo run --example quickstart --features sql,redis -- [PATH] [OPTIONS] [--database URL] [--kill-brain] [--redis URL]
//! ```
//!
//! PATH is the folder of the crate, by default this one. TEXT is what the brain is asked for: a review, a search for
//! secrets, or both. `--json` prints the report as JSON and nothing else. `--explain` adds the calls and the events of the
//! task.
//!
//! `--database` stores the task and its events in a database: `sqlite:tasks.db`, or `postgres://user:password@host/name`.
//! `--kill-brain` runs the brain in a process of its own, kills that (`kill -9`) after half of the calls, and starts it again. It
//! continues the task after the lease of 2 s. Without `--database` the task is in a SQLite file in a temporary folder. Both need
//! `--features sql`. `--redis` publishes the events over a Redis server; it needs `--features redis`.
//!
//! Exit status: 0 when the task is completed, 1 when it failed or was refused, 2 when there is nothing to review, 130 when it was
//! interrupted.
//!
//! Read this file first, then `contracts` and `arms`. The other modules do the arms' own work, without octollm.

mod contracts;
mod arms;
mod brain;
mod report;
mod sources;
mod analysis;

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use octollm::{
    bus::{EventBus, Overflow, Signal},
    http::BoundServer,
    orchestrator::JournalStep,
    prelude::*,
    task::{TaskBudget, TaskUpdate},
};

use crate::{
    arms::{Answered, Guardian, Judge, NoTakeover, Planner, Retriever},
    brain::{Servers, Storage, Url},
    contracts::{ListSources, ReadSource},
    report::Report,
};

/// Starts the arms, on ports that the operating system chooses. Returns the URL of each.
async fn start_arms(root: PathBuf, answered: Answered) -> Result<Vec<Url>, octollm::Error> {
    let retriever = Retriever { root };
    let retriever = Server::new("retriever")
        .description("Lists and reads the sources of one crate.")
        .arm::<ListSources>(retriever.clone())
        .arm::<ReadSource>(retriever);
    let retriever = spawn(retriever.bind("127.0.0.1:0").await?);

    // Arms call arms directly: these two call the retriever for each file.
    let sources = Arms::builder().endpoint("retriever", &retriever).build()?;
    let judge = Server::new("judge").arm(Judge(answered.clone())).arms(sources.clone());
    let guardian = Server::new("guardian").arm(Guardian(answered)).arms(sources);
    Ok(vec![
        ("planner", spawn(Server::new("planner").arm(Planner).bind("127.0.0.1:0").await?)),
        ("retriever", retriever),
        ("judge", spawn(judge.bind("127.0.0.1:0").await?)),
        ("guardian", spawn(guardian.bind("127.0.0.1:0").await?)),
    ])
}

/// Starts the reflex server before the brain. Returns its URL.
async fn start_reflex(brain: &str) -> Result<String, octollm::Error> {
    let reflex = Server::new("reflex").reflex(NoTakeover).orchestrator(OrchestratorClient::new(brain)?);
    Ok(spawn(reflex.bind("127.0.0.1:0").await?))
}

/// Serves until the process ends. Returns the URL.
fn spawn(server: BoundServer) -> String {
    let url = server.url();
    tokio::spawn(server.run());
    url
}

/// Submits the task as any client would, follows it to its end, and prints the report. Returns the exit status.
async fn run(options: Options) -> Result<i32, octollm::Error> {
    let calls = arms::calls(&options.goal, sources::list(&options.root)?.len());
    let answered = Answered::default();
    let arms = start_arms(options.root, answered.clone()).await?;
    let servers = Servers { database: options.database, redis: options.redis };
    let storage = Storage::open(servers, options.kill_brain).await?;
    let events = "events:task:queued,events:task:started,events:task:completed".parse()?;
    let mut events = storage.bus.subscribe(events, Overflow::DropOldest(16)).await?;
    let brain = if options.kill_brain {
        brain::killed_after(&storage, &arms, async move { answered.reach(calls / 2).await }).await?
    } else {
        spawn(brain::serve(&storage, &arms).await?)
    };
    let reflex = OrchestratorClient::new(start_reflex(&brain).await?)?;

    let budget =
        TaskBudget { max_tokens: Some(10_000), max_time_seconds: Some(300.0), max_cost_dollars: None };
    let task = reflex.submit(TaskRequest { budget, ..TaskRequest::new(options.goal) }).await?;
    let bar = progress_bar();
    let mut updates = task.watch().await?;
    let followed = async {
        while let Some(update) = updates.next().await {
            if let TaskUpdate::Progress { progress, phase, message, .. } = update {
                bar.set_position(u64::from(progress));
                bar.set_message(if message.is_empty() { format!("{phase:?}") } else { message });
            }
        }
        task.output().await
    };
    let result = tokio::select! {
        result = followed => result,
        _ = tokio::signal::ctrl_c() => {
            bar.finish_and_clear();
            // The calls three hops away stop with the task.
            let _ = tokio::time::timeout(Duration::from_millis(500), task.cancel()).await;
            eprintln!("quickstart: interrupted");
            return Ok(130);
        }
    };
    bar.finish_and_clear();
    // Printing may block, and from its first `ctrl_c()` on, tokio handles the signal.
    tokio::spawn(async {
        let _ = tokio::signal::ctrl_c().await;
        std::process::exit(130);
    });

    let report: Report = result?.output.read()?;
    let mut text = if options.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.page() };
    if options.explain {
        let mut lines: String = task.journal().await?.iter().map(explain).collect();
        while let Some(Signal::Event(event)) = events.next().await {
            lines += &format!("event {}: {}\n", event.event_type(), event.data());
            if event.event_type() == "task.completed" {
                break;
            }
        }
        if options.json { eprint!("{lines}") } else { text += &lines }
    }
    print(&text)?;
    Ok(0)
}

/// One call of the brain, as a line.
fn explain(call: &JournalStep) -> String {
    let JournalStep { step, contract, arm, endpoint, attempts, duration_ms, budget_left, .. } = call;
    let left = call.time_left_ms.map_or("no time limit".into(), |ms| format!("{:.1} s", ms as f64 / 1e3));
    format!(
        "call {step}: {contract} by {arm} at {endpoint}, attempts {attempts}, {duration_ms:.2} ms; \
         left {budget_left}, {left}\n"
    )
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

/// Writes to standard output. A reader that has seen enough, such as `head`, is not a failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

struct Options {
    root: PathBuf,
    goal: String,
    json: bool,
    explain: bool,
    database: Option<String>,
    kill_brain: bool,
    redis: Option<String>,
    help: bool,
}

const USAGE: &str = "usage: quickstart [PATH] [--goal TEXT] [--json] [--explain] [--database URL] [--kill-brain] [--redis URL]";

/// Reads the command line. The error is one line.
fn options() -> Result<Options, String> {
    let goal = "Review this crate, and look for secrets.".into();
    let mut options = Options {
        root: ".".into(),
        goal,
        json: false,
        explain: false,
        database: None,
        kill_brain: false,
        redis: None,
        help: false,
    };
    let mut paths = 0;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--json") => options.json = true,
            Some("--explain") => options.explain = true,
            Some("--kill-brain") => options.kill_brain = true,
            Some("--help" | "-h") => options.help = true,
            Some("--goal") => {
                let goal = arguments.next().and_then(|goal| goal.into_string().ok());
                options.goal = goal.ok_or_else(|| format!("--goal needs a text; {USAGE}"))?;
            }
            Some("--database") => {
                let url = arguments.next().and_then(|url| url.into_string().ok());
                options.database = Some(url.ok_or_else(|| format!("--database needs a URL; {USAGE}"))?);
            }
            Some("--redis") => {
                let url = arguments.next().and_then(|url| url.into_string().ok());
                options.redis = Some(url.ok_or_else(|| format!("--redis needs a URL; {USAGE}"))?);
            }
            Some(flag) if flag.starts_with('-') => return Err(format!("{flag} is not known; {USAGE}")),
            _ if paths > 0 => return Err(format!("one PATH at a time; {USAGE}")),
            _ => (options.root, paths) = (argument.into(), 1),
        }
    }
    if !options.help {
        sources::list(&options.root)?;
    }
    Ok(options)
}

#[tokio::main]
async fn main() {
    if let Some(done) = brain::child().await {
        std::process::exit(done.map_or_else(failed, |()| 0));
    }
    let done = match options() {
        Ok(Options { help: true, .. }) => {
            print(&format!("{USAGE}\n")).map(|()| 0).map_err(octollm::Error::from)
        }
        Ok(options) => run(options).await,
        Err(message) => {
            eprintln!("quickstart: {message}");
            Ok(2)
        }
    };
    // Ends without waiting for a file that is still being judged.
    std::process::exit(done.unwrap_or_else(failed))
}

fn failed(error: octollm::Error) -> i32 {
    eprintln!("quickstart: {error:?}");
    1
}
