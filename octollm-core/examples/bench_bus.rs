//! Events per second from one publisher to one subscriber of the bus in memory.
//!
//! ```sh
//! cargo run --release -p octollm-core --example bench_bus -- 2000000 1 new
//! ```
//! The arguments are the number of events, the number of threads, and whether each event is made anew (`new`) or is a clone
//! of one (`clone`, the default). On one thread the two take turns; on two they also pay for waking each other.

use std::time::{Duration, Instant};

use octollm_core::bus::{EventBus, MemoryBus, Overflow, Signal};
use octollm_core::event::Event;
use serde_json::json;

fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip(1);
    let events: u64 = args.next().map_or(Ok(2_000_000), |count| count.parse())?;
    let threads: usize = args.next().map_or(Ok(1), |count| count.parse())?;
    let anew = args.next().is_some_and(|how| how == "new");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads.max(1)).enable_time().build()?;
    let elapsed = runtime.block_on(async { tokio::spawn(carry(events, anew)).await })??;
    let rate = events as f64 / elapsed.as_secs_f64();
    println!("memory-bus events={events} rate={rate:.0}/s");
    Ok(())
}

/// Time to publish so many events and to receive them all.
async fn carry(events: u64, anew: bool) -> Result<Duration, BoxError> {
    let bus = MemoryBus::new();
    let mut received = bus.subscribe("events:task:*".parse()?, Overflow::Block).await?;
    let make = || {
        Event::new("task.progress", "bench", json!({ "percentage": 40, "message": "parsing" }))
            .map(|event| event.with_subject("task_0000000000000000"))
    };
    let event = make()?;

    let start = Instant::now();
    let subscriber = tokio::spawn(async move {
        let mut count = 0;
        while count < events {
            match received.next().await {
                Some(Signal::Event(_)) => count += 1,
                other => return Err(format!("after {count} events: {other:?}")),
            }
        }
        Ok(())
    });
    for _ in 0..events {
        bus.publish(if anew { make()? } else { event.clone() }).await?;
    }
    subscriber.await??;
    Ok(start.elapsed())
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
