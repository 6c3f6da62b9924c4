//! Storms: slow and hostile connections at a server beside an even load of calls, a leaf that fails under the calls of a client, brains
//! that are killed, the memory that connections take, and a server for load generators.
//!
//! ```text
//! cargo run --release --example storm [loris] [--short]
//! cargo run --release --example storm hops [--short] [--picture FILE]
//! cargo run --release --example storm memory [--short]
//! cargo run --release --features sql --example storm kills [DATABASE..] [--short]
//! cargo run --release --features sql --example storm brains [--brains NUMBER] [--lease SECONDS] [--short]
//! cargo run --release --features sql --example storm outage [--short]
//! cargo run --release --features redis --example storm redis [--short]
//! cargo run --release --example storm serve [--keys FILE --issuer NAME] [--certificate FILE --key FILE] [--compress] [--log]
//! cargo run --release --example storm bare
//! ```
//!
//! `loris` makes 2 000 calls/s for 60 s beside 1 000 connections that send too little: nothing at all, heads byte by byte, bodies
//! of 1 B/s, and HTTP/2 prefaces and frames that stop. When the server closes one, it is opened again. Before that it makes the
//! same calls for 20 s without them. The server has default limits, and runs in a process of its own. The program ends with 1 if a call
//! fails, if a connection is open for longer than the limits of the server allow, or if the server has sockets left after the end.
//!
//! `hops` makes 500 calls/s over three hops. One of the three leaves fails for 60 s: it refuses connections, hangs, answers 503 or 500 at
//! once, or is slow. The program ends with 1 if the leaf gets more than 1.2 times its share and 10 calls/s, if more than one call in a
//! thousand fails, if the leaf does not have half of its share within 5 s after it has recovered, or if 99 % of calls over two hops take
//! 100 ms. `--picture` draws calls, failures and the state of the breaker over time. `--short` fails for 6 s, in all ways at once.
//!
//! `memory` measures the memory of the server for each idle connection and each running request.
//!
//! `kills`, `brains` and `outage` run tasks of 30 steps, of which ten are idempotent, ten are not and are made at an arm that keeps keys,
//! and ten are not and are made at an arm that ignores keys. The arms count each execution. A service handles the events of the tasks
//! behind an inbox, and does not acknowledge one delivery of 50. The programs end with 1 if a task has another result, a step that is
//! not idempotent is executed twice, an event is missing, or an event has its effect twice. A step may end with `outcome_unknown`
//! in place of a second execution. Postgres is started from Debian's package `postgresql`.
//!
//! `kills` kills a brain 1 000 times (`kill -9`) at random moments, on each DATABASE: `sqlite` (a temporary file), `postgres`
//! (a server of its own), or a URL; by default on the first two. A new process follows each. `--short` kills 20 times.
//!
//! `brains` runs 2 and then 4 brains over one Postgres. With default settings they run each step once. Then one of them is killed
//! every 5 s for 5 minutes: each task ends within the lease (3 s) and 5 s. Then they are stopped in order: another one starts their tasks
//! within 1 s.
//!
//! `outage` stops Postgres for 30 s (SIGSTOP), and kills it for 30 s. The server of the brain answers 503 meanwhile.
//!
//! `redis` publishes and consumes for 10 minutes, over streams and over publish and subscribe, while the server is killed every 30 s. It ends
//! with 1 if an event of the streams is lost, or one of the other bus without a gap that is reported. Debian's `redis-server` is started.
//!
//! `serve` prints the address that it listens on, and serves `POST /check` and `POST /report` until Ctrl-C or SIGTERM. With `--keys`
//! callers need tokens, and rates and concurrency are limited. With `--log` spans and the access log are on. `bare` is a server of hyper alone with the same `POST /check`, to
//! compare with. `scripts/load.sh` runs both under load.

mod bare;
#[cfg(all(feature = "sql", unix))]
mod durable;
mod hops;
mod load;
mod loris;
mod memory;
mod picture;
mod process;
#[cfg(all(feature = "redis", unix))]
mod redis;
mod target;

use std::{env, process::ExitCode, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use octollm::prelude::*;

use crate::{
    load::Load,
    loris::Lorises,
    process::{Process, Sockets},
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match run(&words).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words {
        [] | ["loris"] => storm(Size::FULL).await,
        ["--short"] | ["loris", "--short"] => storm(Size::SHORT).await,
        ["hops"] => hops::storm(&hops::Size::FULL, None).await,
        ["hops", "--picture", file] => hops::storm(&hops::Size::FULL, Some(file)).await,
        ["hops", "--short"] => hops::storm(&hops::Size::SHORT, None).await,
        ["hops", "--short", "--picture", file] => hops::storm(&hops::Size::SHORT, Some(file)).await,
        ["memory"] => memory::measure(4_000, 1_000).await,
        ["memory", "--short"] => memory::measure(200, 100).await,
        ["serve", ref options @ ..] => target::serve(options).await,
        ["bare"] => bare::serve().await,
        #[cfg(all(feature = "redis", unix))]
        ["redis"] => redis::storm(&redis::Size::FULL).await,
        #[cfg(all(feature = "redis", unix))]
        ["redis", "--short"] => redis::storm(&redis::Size::SHORT).await,
        ["kills" | "brains" | "outage" | "brain", ..] => durable(&words).await,
        _ => Err("usage: storm [loris|hops|memory|kills|brains|outage|redis] [--short] [--picture FILE] | serve [OPTIONS] | bare".into()),
    }
}

#[cfg(all(feature = "sql", unix))]
async fn durable(words: &[&str]) -> Result<()> {
    durable::run(words).await
}

#[cfg(not(all(feature = "sql", unix)))]
async fn durable(words: &[&str]) -> Result<()> {
    Err(format!("{} needs the feature `sql`", words[0]).into())
}

/// How much, and for how long.
struct Size {
    lorises: usize,
    calls_per_second: u32,
    alone: Duration,
    beside: Duration,
}

impl Size {
    const FULL: Self = Self {
        lorises: 1_000,
        calls_per_second: 2_000,
        alone: Duration::from_secs(20),
        beside: Duration::from_secs(60),
    };
    const SHORT: Self = Self {
        lorises: 100,
        calls_per_second: 200,
        alone: Duration::from_secs(1),
        beside: Duration::from_secs(3),
    };
}

async fn storm(size: Size) -> Result<()> {
    let server = Process::start(&["serve"])?;
    let arms = Arms::builder().endpoint("storm", server.url()).build()?;
    let before = server.figures();
    let rate = size.calls_per_second;
    load::run(&arms, rate, Duration::from_millis(500)).await;
    let warm = server.figures();

    let alone = load::run(&arms, rate, size.alone).await;
    println!("storm lorises=0 {alone} resident_mib={:.1}", server.figures().resident_mib());
    let lorises = Lorises::start(server.address(), size.lorises);
    let beside = load::run(&arms, rate, size.beside).await;
    let under = server.figures();
    let attacked = lorises.stop().await;
    println!("storm lorises={} {beside} resident_mib={:.1}", size.lorises, under.resident_mib());
    for line in &attacked {
        println!("storm {line}");
    }
    drop(arms);
    let left = server.sockets_left(before.sockets).await;
    let after = server.figures();
    println!(
        "storm resident_mib before={:.1} warm={:.1} under={:.1} after={:.1} sockets under={} after={left}",
        before.resident_mib(),
        warm.resident_mib(),
        under.resident_mib(),
        after.resident_mib(),
        under.sockets - before.sockets.min(under.sockets),
    );
    verdict(&[&alone, &beside], attacked.iter().filter(|line| line.is_late()).count(), left)
}

fn verdict(loads: &[&Load], late: usize, left: Sockets) -> Result<()> {
    let failed: usize = loads.iter().map(|load| load.failed()).sum();
    if failed > 0 {
        return Err(format!("{failed} calls have failed").into());
    }
    if late > 0 {
        return Err("connections were open for longer than the limits of the server allow".into());
    }
    if left > 0 {
        return Err(format!("the server has {left} sockets left").into());
    }
    Ok(())
}
