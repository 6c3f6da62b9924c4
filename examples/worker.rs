//! Arms that are called by a queue: work waits for workers that are away, and goes on at another one when a worker stops.
//!
//! ```text
//! cargo run --example worker                                                            # everything in one process
//! cargo run --example worker --features redis -- work --redis redis://127.0.0.1/        # a worker, in as many terminals as you like
//! cargo run --example worker --features redis -- call --redis redis://127.0.0.1/        # calls, before or after the workers start
//! ```
//!
//! With the feature `sql`, `--database URL` is a bus in SQLite (`sqlite:jobs.db`) or Postgres. A worker stops at Ctrl-C: what it runs ends, and
//! what it has not begun goes to the others.

use std::{sync::Arc, time::Duration};

use octollm::{
    bus::{DurableBus, MemoryDurableBus},
    prelude::*,
    worker::{QueuedArms, Worker, group},
};

/// Counts the words of a text. The time limit includes the time for which a call waits in the queue.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = Count, idempotent, timeout = "10m")]
struct CountWords {
    text: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Count {
    words: usize,
    attempt: u32,
}

struct Scribe;

#[async_trait]
impl Arm<CountWords> for Scribe {
    async fn execute(&self, input: CountWords, cx: &Context) -> Result<Count, ArmError> {
        cx.progress(50, "counting");
        tokio::time::sleep(Duration::from_millis(100)).await;
        if input.text.is_empty() {
            return Err(ArmError::invalid("text", "is empty")); // no retry can help: a dead letter
        }
        if input.text.ends_with('?') && cx.attempt() < 3 {
            return Err(ArmError::unavailable("not sure yet")); // is tried again
        }
        println!("  {:?}, attempt {}", input.text, cx.attempt());
        Ok(Count { words: input.text.split_whitespace().count(), attempt: cx.attempt() })
    }
}

const TEXTS: [&str; 5] = ["one", "two words", "now we are three", "is it four, really?", ""];

fn worker(bus: Arc<dyn DurableBus>) -> Worker {
    Worker::new(bus).id("scribe").arm(Scribe).concurrency(2).time_limit(Duration::from_secs(5))
}

async fn call(bus: &Arc<dyn DurableBus>) -> Result<(), octollm::Error> {
    let arms = QueuedArms::builder("desk", bus.clone()).contract::<CountWords>("scribe").connect().await?;
    let cx = Context::root(Arc::new(arms));
    println!("{} calls are queued", TEXTS.len());
    let counts = cx.call_all(TEXTS.map(|text| CountWords { text: text.into() })).each().await;
    for (text, count) in TEXTS.iter().zip(counts) {
        match count {
            Ok(Count { words, attempt }) => println!("{text:?}: {words} words, at attempt {attempt}"),
            Err(error) => println!("{text:?}: {error}"),
        }
    }
    for letter in bus.dead_letters(&group(&CountWords::SPEC.reference()), None, 10).await? {
        println!("dead letter {}: {}", letter.entry, letter.reason);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let bus = bus(&arguments).await?;
    match arguments.first().map(String::as_str) {
        Some("work") => {
            println!("a worker runs; Ctrl-C stops it");
            worker(bus).run_until(async { drop(tokio::signal::ctrl_c().await) }).await?;
        }
        Some("call") => call(&bus).await?,
        _ => {
            let calls = {
                let bus = bus.clone();
                tokio::spawn(async move { call(&bus).await.map_err(octollm::Error::into_boxed) })
            };
            // The calls wait for a worker.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let worker = tokio::spawn(worker(bus).run_until(async { drop(stopped.await) }));
            calls.await??;
            drop(stop);
            worker.await??;
        }
    }
    Ok(())
}

/// The bus that the arguments name.
async fn bus(arguments: &[String]) -> Result<Arc<dyn DurableBus>, octollm::Error> {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let (redis, database) = (value("--redis"), value("--database"));
    #[cfg(feature = "redis")]
    if let Some(url) = &redis {
        return Ok(Arc::new(octollm::redis::RedisStreamBus::connect(url).await?));
    }
    #[cfg(feature = "sql")]
    if let Some(url) = &database {
        let database = octollm::sql::SqlDatabase::open(url).await?;
        return Ok(Arc::new(octollm::sql::SqlBus::open(&database).await?));
    }
    if redis.is_some() || database.is_some() {
        return Err("run it with `--features redis` or `--features sql`".into());
    }
    if matches!(arguments.first().map(String::as_str), Some("work" | "call")) {
        return Err("processes need a bus in common: --redis URL or --database URL".into());
    }
    Ok(Arc::new(MemoryDurableBus::new()))
}
