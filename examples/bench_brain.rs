//! Measures durable tasks: each of ten steps, every one of which is journaled before it returns.
//!
//! ```text
//! cargo run --release --features sql --example bench_brain -- STORE CONCURRENCY SECONDS
//! ```
//!
//! STORE is `memory`, or the URL of a database, such as `sqlite:bench.db` or `postgres://postgres@127.0.0.1/bench`. So many tasks
//! run at once, each submitted to the queue, claimed, and awaited.
//!
//! Prints one line. `p50_us` is the time of one task, and `cpu_us` the CPU time for each step, with that of a server of Postgres on this
//! machine.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use octollm::{
    card::ArmCard,
    prelude::*,
    sql::SqlStore,
    store::{MemoryStore, TaskStore},
    transport::{Call, Reply, Transport},
};

/// Adds a number.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "bench.add", output = u64, idempotent)]
struct Add {
    sum: u64,
    number: u64,
}

/// Adds numbers, each in a step of its own.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "bench.sum", output = u64, idempotent)]
struct Sum {
    steps: u64,
}

/// Answers each call at once, without a network.
struct Adder;

#[async_trait]
impl Transport for Adder {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let wrong = |error| {
            CallError::new(
                call.contract.clone(),
                octollm::error::Failure::new(ErrorKind::BadRequest, format!("{error}")),
            )
        };
        let Add { sum, number } = serde_json::from_slice(&call.input).map_err(wrong)?;
        Ok(Reply::new((sum + number).to_string().into(), "adder", "local"))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        Vec::new()
    }
}

struct Summer;

#[async_trait]
impl Arm<Sum> for Summer {
    async fn execute(&self, input: Sum, cx: &Context) -> Result<u64, ArmError> {
        let mut sum = 0;
        for number in 0..input.steps {
            sum = cx.call(Add { sum, number }).await?;
        }
        Ok(sum)
    }
}

const STEPS: u64 = 10;

struct Arguments {
    store: String,
    concurrency: usize,
    seconds: u64,
}

fn arguments() -> Result<Arguments, octollm::Error> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: bench_brain STORE CONCURRENCY SECONDS";
    Ok(Arguments {
        store: arguments.next().ok_or(usage)?,
        concurrency: arguments.next().ok_or(usage)?.parse()?,
        seconds: arguments.next().ok_or(usage)?.parse()?,
    })
}

async fn open(url: &str) -> Result<Arc<dyn TaskStore>, octollm::Error> {
    Ok(match url {
        "memory" => Arc::new(MemoryStore::new()),
        url => Arc::new(SqlStore::open(url).await?),
    })
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let Arguments { store, concurrency, seconds } = arguments()?;
    let brain = Brain::builder()
        .arm(Summer)
        .arms(Adder)
        .store(open(&store).await?)
        .max_running(concurrency.max(256))
        .build()?;
    // What is prepared once is prepared before.
    drive(&brain, concurrency, Duration::from_secs(1)).await?;
    let (cpu, begun) = (cpu_time(), Instant::now());
    let mut times = drive(&brain, concurrency, Duration::from_secs(seconds)).await?;
    let (cpu, seconds) = (cpu_time() - cpu, begun.elapsed().as_secs_f64());
    brain.close().await;
    times.sort_unstable();
    let tasks = times.len() as f64;
    println!(
        "tasks_s={:.0} steps_s={:.0} p50_us={} cpu_us={:.1}",
        tasks / seconds,
        tasks * STEPS as f64 / seconds,
        times.get(times.len() / 2).map_or(0, Duration::as_micros),
        cpu.as_secs_f64() * 1e6 / (tasks * STEPS as f64),
    );
    Ok(())
}

/// Runs so many tasks at once for a time, and returns how long each took.
async fn drive(brain: &Brain, concurrency: usize, time: Duration) -> Result<Vec<Duration>, octollm::Error> {
    let end = Instant::now() + time;
    let wrong = Arc::new(AtomicU64::new(0));
    let workers = (0..concurrency).map(|_| {
        let (brain, wrong) = (brain.clone(), wrong.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                let sum = run(&brain).await?;
                wrong.fetch_add(u64::from(sum != STEPS * (STEPS - 1) / 2), Ordering::Relaxed);
                times.push(begun.elapsed());
            }
            Ok::<_, ArmError>(times)
        })
    });
    let mut times = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        times.extend(worker.await??);
    }
    match wrong.load(Ordering::Relaxed) {
        0 => Ok(times),
        wrong => Err(format!("{wrong} tasks have a wrong result").into()),
    }
}

/// Runs one task, and returns its result.
async fn run(brain: &Brain) -> Result<u64, ArmError> {
    Arm::<Sum>::execute(brain, Sum { steps: STEPS }, &Context::detached()).await
}

/// The CPU time of this process, and of all processes of Postgres on this machine.
fn cpu_time() -> Duration {
    let own = getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
    Duration::from_micros(own.unwrap_or(0).unsigned_abs()) + postgres_time()
}

/// The ticks of a processes' CPU time are a hundredth of a second.
const TICK: Duration = Duration::from_millis(10);

fn postgres_time() -> Duration {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ticks = processes.filter_map(|process| {
        let status = fs::read_to_string(process.path().join("stat")).ok()?;
        let (name, rest) = status.rsplit_once(')')?;
        if !name.ends_with("(postgres") {
            return None;
        }
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // User, system, and those of children that have ended.
        Some(fields.get(11..15)?.iter().filter_map(|field| field.parse::<u32>().ok()).sum::<u32>())
    });
    TICK * ticks.sum::<u32>()
}
