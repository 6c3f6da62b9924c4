//! A system that lives: a reflex, two brains over one database, and three arms of two instances each, every one of them a
//! server in a process of its own, under a load that goes on until Ctrl-C.
//!
//! ```text
//! cargo run --example octopus --features full
//! cargo run --example octopus --features full -- --tasks 30 --chaos --seed 1
//! cargo run --example octopus --features full -- --llm http://127.0.0.1:11434 --model llama3.2
//! ```
//!
//! A task asks for a story: one arm writes it word by word, one reviews it, and one publishes it, which must not happen
//! twice. `--chaos` kills parts (`kill -9`) and starts them again. `--llm` has the words from any server with
//! `/v1/chat/completions`; its key is `OPENAI_API_KEY`. The database is a SQLite file in a temporary folder, or that of
//! `--postgres`; the events are in the database, or on `--redis`.
//!
//! At the end it prints what became of the tasks. Exit status: 0, and 1 if a task was lost or done twice, or a part did not
//! start.
//!
//! Read `system` first, which is what a user writes. `parts` serves it, `fleet` starts and kills the processes.

mod system;
mod llm;
mod parts;
mod fleet;
mod load;
mod summary;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use tokio::sync::Notify;

use crate::{fleet::Fleet, llm::Model, load::Load, parts::Setting, summary::Summary};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Runs a whole system with a load, until Ctrl-C.
#[derive(Parser)]
#[command(name = "octopus")]
struct Options {
    /// End after so many tasks
    #[arg(long, value_name = "N")]
    tasks: Option<u64>,
    /// Tasks at a time
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=50))]
    at_once: u16,
    /// Kill parts at random, and start them again
    #[arg(long)]
    chaos: bool,
    /// Seed of the chaos; printed by default
    #[arg(long)]
    seed: Option<u64>,
    /// Database, in place of a SQLite file: postgres://user:password@host/name
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Redis server for the events, in place of the database
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Server with /v1/chat/completions that writes the stories
    #[arg(long, value_name = "URL", value_parser = model_url)]
    llm: Option<String>,
    /// Model of that server
    #[arg(long, default_value = "gpt-4o-mini", requires = "llm")]
    model: String,
}

/// A URL at which a model can be asked.
fn model_url(url: &str) -> std::result::Result<String, String> {
    Model::new(url, String::new()).map(|_| url.to_owned()).map_err(|error| {
        let named = if error.setting() == "url" { "it" } else { "OPENAI_API_KEY" };
        let problem = error.to_string().replacen(&format!("`{}`", error.setting()), named, 1);
        // There is no option to send the key in cleartext.
        problem.split(", or, if").next().unwrap_or_default().to_owned()
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    }
    if let Some(served) = parts::child().await {
        return match served {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("octopus: a part does not start: {error}");
                let mut cause = error.source();
                while let Some(error) = cause {
                    eprintln!("octopus: because {error}");
                    cause = error.source();
                }
                ExitCode::FAILURE
            }
        };
    }
    match run(Options::parse()).await {
        Ok(summary) if summary.is_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("octopus: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<Summary> {
    let stop = Stop::at_a_signal();
    let folder = tempfile::tempdir()?;
    let ledger: PathBuf = folder.path().join("ledger");
    let file = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let setting = Setting {
        database: options.postgres.clone().unwrap_or_else(|| file("tasks.db")),
        keys: options.postgres.clone().unwrap_or_else(|| file("keys.db")),
        redis: options.redis.clone(),
        ledger: ledger.clone(),
        llm: options.llm.clone(),
        model: options.model.clone(),
        ..Setting::default()
    };
    let mut fleet = tokio::select! {
        fleet = Fleet::start(setting) => fleet?,
        () = stop.pause(Duration::MAX) => return Err("interrupted before all parts have started".into()),
    };
    fleet.print().await?;
    let load = Load::new(fleet.url("reflex"), options.tasks, stop.clone())?;
    let seed = options.seed.unwrap_or_else(|| std::process::id().into());
    if options.chaos {
        say(&format!("chaos with --seed {seed}"));
    }
    let mut loading = std::pin::pin!(load.run(options.at_once.into()));
    let outcomes = match options.chaos {
        false => loading.await,
        true => fleet.with_chaos(seed, &mut loading).await?,
    };
    let summary = Summary::check(&load, outcomes, &ledger, fleet.kills()).await?;
    fleet.end().await;
    summary.print();
    Ok(summary)
}

/// Whether the standard output is closed.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints lines, with control characters of others as escapes. If nobody reads it, the load ends as at a Ctrl-C.
fn say(lines: &str) {
    let escaped = |c: char| match c {
        c if c.is_control() && c != '\n' => c.escape_default().to_string(),
        c => c.to_string(),
    };
    if writeln!(io::stdout(), "{}", lines.chars().map(escaped).collect::<String>()).is_err() {
        CLOSED.store(true, Ordering::Relaxed);
    }
}

/// Whether the load is to end: Ctrl-C, SIGTERM, or an output that is closed.
#[derive(Clone, Default)]
struct Stop(Arc<(AtomicBool, Notify)>);

impl Stop {
    /// Sets it at the first signal. The second one ends the process at once, and with it all parts.
    fn at_a_signal() -> Self {
        let stop = Self::default();
        let set = stop.clone();
        tokio::spawn(async move {
            signal().await;
            eprintln!("octopus: ends when the running tasks have ended; Ctrl-C again ends it at once");
            set.0.0.store(true, Ordering::Relaxed);
            set.0.1.notify_waiters();
            signal().await;
            std::process::exit(130);
        });
        stop
    }

    fn is_set(&self) -> bool {
        self.0.0.load(Ordering::Relaxed) || CLOSED.load(Ordering::Relaxed)
    }

    /// Waits, unless it is set.
    async fn pause(&self, time: Duration) {
        let set = self.0.1.notified();
        if !self.is_set() {
            tokio::select! {
                () = set => {}
                () = tokio::time::sleep(time) => {}
            }
        }
    }
}

async fn signal() {
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut terminated) => drop(terminated.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
