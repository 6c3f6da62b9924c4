//! Measures durable tasks: each of ten steps, every one of which is journaled before it returns.
//!
//! ```text
//! cargo run --release --features sql --example bench_brain -- STORE CONCURRENCY SECONDS [MODE [STEPS]]
//! ```
//!
//! STORE is `memory`, or the URL of a database, such as `sqlite:bench.db` or `postgres://postgres@127.0.0.1/bench`. MODE is one of:
//!
//! - `run` (default): so many tasks at once, each called as an arm of the brain: it is queued, claimed, and awaited here.
//! - `queue`: each is submitted, and followed by its id as any other process would.
//! - `jobs`: submitted by so many at once and not awaited, with up to 10 000 that wait. STEPS is 0 unless it is given. The time is that until
//!   the end of the last one.
//! - `store`: prints the medians of single operations on the store as it is, one at a time: of how long it takes to open it, to create a task,
//!   to claim one, to look one up, and to list a page. No brain runs.
//!
//! Prints one line. `p50_us` is the time of one task, and `cpu_us` the CPU time for each step (for each task without steps), with that
//! of a server of Postgres on this machine.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use octollm::{
    card::ArmCard,
    context::ContextParts,
    orchestrator::follow,
    prelude::*,
    sql::SqlStore,
    store::{Claim, MemoryStore, SideEffects, TaskStore},
    task::{Submission, TaskQuery, TaskRecord},
    transport::{Call, Reply, Transport},
};
use tokio::sync::Semaphore;

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

/// Adds a permit for each task that it runs.
struct Summer(Arc<Semaphore>);

#[async_trait]
impl Arm<Sum> for Summer {
    async fn execute(&self, input: Sum, cx: &Context) -> Result<u64, ArmError> {
        self.0.add_permits(1);
        let mut sum = 0;
        for number in 0..input.steps {
            sum = cx.call(Add { sum, number }).await?;
        }
        Ok(sum)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Run,
    Queue,
    Jobs,
    Store,
}

struct Arguments {
    store: String,
    concurrency: usize,
    seconds: u64,
    mode: Mode,
    steps: u64,
}

fn arguments() -> Result<Arguments, octollm::Error> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: bench_brain STORE CONCURRENCY SECONDS [run|queue|jobs|store [STEPS]]";
    let (store, concurrency, seconds) =
        (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let mode = match arguments.next().as_deref() {
        None | Some("run") => Mode::Run,
        Some("queue") => Mode::Queue,
        Some("jobs") => Mode::Jobs,
        Some("store") => Mode::Store,
        Some(_) => return Err(usage.into()),
    };
    let steps = arguments.next().map(|steps| steps.parse()).transpose()?;
    let steps = steps.unwrap_or(if mode == Mode::Jobs { 0 } else { 10 });
    Ok(Arguments { store, concurrency: concurrency.parse()?, seconds: seconds.parse()?, mode, steps })
}

async fn open(url: &str) -> Result<Arc<dyn TaskStore>, octollm::Error> {
    Ok(match url {
        "memory" => Arc::new(MemoryStore::new()),
        url => Arc::new(SqlStore::open(url).await?),
    })
}

/// Most jobs that wait to be run.
const WAITING: usize = 10_000;

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let Arguments { store, concurrency, seconds, mode, steps } = arguments()?;
    if mode == Mode::Store {
        return single_operations(&store, Duration::from_secs(seconds)).await;
    }
    let (store, room) = (open(&store).await?, Arc::new(Semaphore::new(WAITING)));
    let brain = Brain::builder()
        .arm(Summer(room.clone()))
        .arms(Adder)
        .store(store.clone())
        .max_running(concurrency.max(256))
        .max_queued(2 * WAITING)
        .build()?;
    let bench = Bench { brain, store, mode, steps, room };
    // What is prepared once is prepared before.
    bench.drive(concurrency, Duration::from_secs(1)).await?;
    let (cpu, begun) = (cpu_time(), Instant::now());
    let mut times = bench.drive(concurrency, Duration::from_secs(seconds)).await?;
    let (cpu, seconds) = (cpu_time().saturating_sub(cpu), begun.elapsed().as_secs_f64());
    bench.brain.close().await;
    times.sort_unstable();
    let tasks = times.len() as f64;
    println!(
        "tasks_s={:.0} steps_s={:.0} p50_us={} cpu_us={:.1}",
        tasks / seconds,
        tasks * steps as f64 / seconds,
        times.get(times.len() / 2).map_or(0, Duration::as_micros),
        cpu.as_secs_f64() * 1e6 / (tasks * steps.max(1) as f64),
    );
    Ok(())
}

#[derive(Clone)]
struct Bench {
    brain: Brain,
    store: Arc<dyn TaskStore>,
    mode: Mode,
    steps: u64,
    /// A permit for each job that may be submitted.
    room: Arc<Semaphore>,
}

impl Bench {
    /// Runs so many tasks at once for a time, and returns how long each took.
    async fn drive(&self, concurrency: usize, time: Duration) -> Result<Vec<Duration>, octollm::Error> {
        let end = Instant::now() + time;
        let workers = (0..concurrency).map(|_| {
            let bench = self.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    bench.once().await?;
                    times.push(begun.elapsed());
                }
                Ok::<_, octollm::Error>(times)
            })
        });
        let mut times = Vec::new();
        for worker in workers.collect::<Vec<_>>() {
            times.extend(worker.await??);
        }
        for status in [TaskStatus::Queued, TaskStatus::Processing] {
            let one = TaskQuery::default().status(status).limit(1);
            while !self.store.list(&one, None).await?.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(times)
    }

    async fn once(&self) -> Result<(), octollm::Error> {
        let (input, cx) = (Sum { steps: self.steps }, Context::detached());
        let sum = match self.mode {
            Mode::Run => Arm::<Sum>::execute(&self.brain, input, &cx).await?,
            Mode::Queue => {
                let task = self.brain.submit(Submission::of(&input)?, &cx).await?;
                follow(&self.brain, &task.task_id, &cx, |_| {}).await?.into_output::<Sum>()?
            }
            Mode::Jobs | Mode::Store => {
                // The task returns it.
                self.room.acquire().await?.forget();
                let submission = Submission::of(&input)?;
                self.brain.submit(submission, &cx).await?;
                return Ok(());
            }
        };
        match sum == self.steps * self.steps.saturating_sub(1) / 2 {
            true => Ok(()),
            false => Err("a task has a wrong result".into()),
        }
    }
}

/// Measures single operations for a time.
async fn single_operations(url: &str, time: Duration) -> Result<(), octollm::Error> {
    let mut begun = Instant::now();
    let store = open(url).await?;
    let opened = begun.elapsed();
    let mut times: [Vec<Duration>; 5] = Default::default();
    let contracts = [Sum::SPEC.reference()];
    let end = Instant::now() + time;
    while Instant::now() < end {
        let mut at = 0;
        let mut lap = |begun: &mut Instant| {
            times[at].push(begun.elapsed());
            (at, *begun) = (at + 1, Instant::now());
        };
        let submission = Submission::of(&Sum { steps: 0 })?;
        let hour = Duration::from_secs(3600);
        let now = std::time::SystemTime::now().try_into()?;
        let record = TaskRecord::new(submission, &ContextParts::new(), hour, now);
        begun = Instant::now();
        let task = store.create(record, SideEffects::default(), usize::MAX, usize::MAX).await?;
        lap(&mut begun);
        let claim = Claim::new("bench", &contracts, hour, 1, "bench");
        let claimed = store.claim(&claim).await?.tasks;
        lap(&mut begun);
        store.get(task.id()).await?;
        lap(&mut begun);
        store.list(&TaskQuery::default(), None).await?;
        lap(&mut begun);
        for (record, _) in claimed {
            let mut record = Arc::unwrap_or_clone(record);
            record.cancel(now)?;
            begun = Instant::now();
            store.commit(record, SideEffects::default()).await?;
        }
        lap(&mut begun);
    }
    print!("open_us={}", opened.as_micros());
    for (name, mut times) in ["create", "claim", "get", "list", "commit"].into_iter().zip(times) {
        times.sort_unstable();
        print!(" {name}_us={}", times.get(times.len() / 2).map_or(0, Duration::as_micros));
    }
    println!();
    Ok(())
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
