//! How many events the in-memory bus carries from one publisher to one listener.
//!
//! ```sh
//! cargo run --release -p octollm-core --example bench_bus -- 2000000 1
//! ```
//! The numbers are how many events, and on how many threads. On one thread the two take turns; on two they also pay for
//! waking each other.

use std::time::{Duration, Instant};

use octollm_core::bus::{EventBus, MemoryBus, Overflow, Signal};
use octollm_core::event::Event;
use serde_json::json;

fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip(1);
    let events: u64 = args.next().map_or(Ok(2_000_000), |count| count.parse())?;
    let threads: usize = args.next().map_or(Ok(1), |count| count.parse())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads.max(1)).enable_time().build()?;
    let elapsed = runtime.block_on(async { tokio::spawn(carry(events)).await })??;
    let rate = events as f64 / elapsed.as_secs_f64();
    println!("memory-bus events={events} rate={rate:.0}/s");
    Ok(())
}

/// How long it takes to tell so many events and to hear them all.
async fn carry(events: u64) -> Result<Duration, BoxError> {
    let bus = MemoryBus::new();
    let mut heard = bus.subscribe("events:task:*".parse()?, Overflow::Block).await?;
    let event = Event::new("task.progress", "bench", json!({ "percentage": 40, "message": "parsing" }))?
        .with_subject("task_0000000000000000");

    let start = Instant::now();
    let listener = tokio::spawn(async move {
        let mut count = 0;
        while count < events {
            match heard.next().await {
                Some(Signal::Event(_)) => count += 1,
                other => return Err(format!("after {count} events: {other:?}")),
            }
        }
        Ok(())
    });
    for _ in 0..events {
        bus.publish(event.clone()).await?;
    }
    listener.await??;
    Ok(start.elapsed())
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
