//! Reviews a Rust crate with a system of services in one process: a reflex server, a brain and four arms, each of them behind
//! an HTTP server of its own.
//!
//! ```text
//! cargo run --example quickstart [PATH] [--goal TEXT] [--json] [--explain] [--database URL] [--redis URL]
//! ```
//!
//! PATH is the folder of the crate, by default this one. TEXT is what the brain is asked for: a review, a search for
//! secrets, or both. `--json` prints the report as JSON and nothing else. `--explain` adds the calls and the events of the
//! task. `--database` stores the task in a database, such as `sqlite:tasks.db`; it needs `--features sql`.
//! `--redis` publishes the events of the task over a Redis server; it needs `--features redis`. Exit status: 0 when the task is completed, 1 when it failed or was refused, 2 when there is nothing to review,
//! 130 when it was interrupted.
//!
//! Read this file first, then `contracts` and `arms`. The other modules do the arms' own work, without octollm.

mod contracts;
mod arms;
mod report;
mod sources;
mod analysis;

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use octollm::{
    bus::{MemoryBus, Overflow, Signal},
    http::BoundServer,
    orchestrator::JournalStep,
    prelude::*,
    store::{MemoryStore, TaskStore},
    task::{TaskBudget, TaskUpdate},
};

use crate::{
    arms::{Guardian, Judge, NoTakeover, Planner, Retriever, Review},
    contracts::{ListSources, ReadSource},
    report::Report,
};

/// Starts all servers, on ports that the operating system chooses. Returns the URL of the reflex server.
async fn start(
    root: PathBuf,
    bus: Arc<dyn EventBus>,
    store: Arc<dyn TaskStore>,
) -> Result<String, octollm::Error> {
    let retriever = Retriever { root };
    let retriever = Server::new("retriever")
        .description("Lists and reads the sources of one crate.")
        .arm::<ListSources>(retriever.clone())
        .arm::<ReadSource>(retriever);
    let retriever = spawn(retriever.bind("127.0.0.1:0").await?);

    // Arms call arms directly: these two call the retriever for each file.
    let sources = Arms::builder().endpoint("retriever", &retriever).build()?;
    let judge = spawn(Server::new("judge").arm(Judge).arms(sources.clone()).bind("127.0.0.1:0").await?);
    let guardian = spawn(Server::new("guardian").arm(Guardian).arms(sources).bind("127.0.0.1:0").await?);
    let planner = spawn(Server::new("planner").arm(Planner).bind("127.0.0.1:0").await?);

    let arms = Arms::builder()
        .endpoint("planner", planner)
        .endpoint("retriever", retriever)
        .endpoint("judge", judge)
        .endpoint("guardian", guardian)
        .build()?;
    let brain = Brain::builder().arm(Review).arms(arms).bus(bus).store(store).build()?;
    let brain = spawn(Server::new("brain").orchestrator(brain).bind("127.0.0.1:0").await?);

    let reflex = Server::new("reflex").reflex(NoTakeover).orchestrator(OrchestratorClient::new(brain)?);
    Ok(spawn(reflex.bind("127.0.0.1:0").await?))
}

/// The store of tasks: in memory, or in a database.
async fn store(database: Option<&str>) -> Result<Arc<dyn TaskStore>, octollm::Error> {
    match database {
        None => Ok(Arc::new(MemoryStore::new())),
        #[cfg(feature = "sql")]
        Some(url) => Ok(Arc::new(octollm::sql::SqlStore::open(url).await?)),
        #[cfg(not(feature = "sql"))]
        Some(_) => Err("--database needs the feature `sql`".into()),
    }
}

/// The bus of events: in memory, or over Redis.
async fn bus(redis: Option<&str>) -> Result<Arc<dyn EventBus>, octollm::Error> {
    match redis {
        None => Ok(Arc::new(MemoryBus::new())),
        #[cfg(feature = "redis")]
        Some(url) => Ok(Arc::new(octollm::redis::RedisBus::connect(url).await?)),
        #[cfg(not(feature = "redis"))]
        Some(_) => Err("--redis needs the feature `redis`".into()),
    }
}

/// Serves until the process ends. Returns the URL.
fn spawn(server: BoundServer) -> String {
    let url = server.url();
    tokio::spawn(server.run());
    url
}

/// Submits the task as any client would, follows it to its end, and prints the report. Returns the exit status.
async fn run(options: Options) -> Result<i32, octollm::Error> {
    let bus = bus(options.redis.as_deref()).await?;
    let events = "events:task:queued,events:task:started,events:task:completed".parse()?;
    let mut events = bus.subscribe(events, Overflow::DropOldest(16)).await?;
    let store = store(options.database.as_deref()).await?;
    let reflex = OrchestratorClient::new(start(options.root, bus, store).await?)?;

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
    redis: Option<String>,
    help: bool,
}

const USAGE: &str =
    "usage: quickstart [PATH] [--goal TEXT] [--json] [--explain] [--database URL] [--redis URL]";

/// Reads the command line. The error is one line.
fn options() -> Result<Options, String> {
    let goal = "Review this crate, and look for secrets.".into();
    let mut options = Options {
        root: ".".into(),
        goal,
        json: false,
        explain: false,
        database: None,
        redis: None,
        help: false,
    };
    let mut paths = 0;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--json") => options.json = true,
            Some("--explain") => options.explain = true,
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
    let status = done.unwrap_or_else(|error| {
        eprintln!("quickstart: {error:?}");
        1
    });
    // Ends without waiting for a file that is still being judged.
    std::process::exit(status)
}
