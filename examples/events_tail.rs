//! Prints the events of a pattern as they are published, one line each, and where some are missing.
//!
//! ```text
//! cargo run --example events_tail
//! cargo run --example events_tail --features redis -- --redis URL [PATTERN] [--count EVENTS]
//! ```
//!
//! Without `--redis` it follows some events on a bus in memory. With it, it follows what is published over a Redis server, by default all events,
//! until it is interrupted or has printed so many.

use std::sync::Arc;

use octollm::{
    bus::{BusError, EventBus, MemoryBus, Overflow, Signal, Subscription},
    event::{Event, Pattern},
};

const USAGE: &str = "usage: events_tail [--redis URL [PATTERN] [--count EVENTS]]";
/// Events that wait while the terminal is slow. The oldest of more are left out, and counted.
const WAITING: usize = 4096;

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let (mut url, mut pattern, mut count) = (None, Pattern::all(), usize::MAX);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--redis" => url = Some(arguments.next().ok_or(USAGE)?),
            "--count" => count = arguments.next().ok_or(USAGE)?.parse()?,
            text => pattern = text.parse()?,
        }
    }
    match url {
        Some(url) => {
            let bus = redis(&url).await?;
            tail(bus.subscribe(pattern, Overflow::DropOldest(WAITING)).await?, count).await
        }
        None => demonstrate(pattern).await,
    }
}

/// Prints so many events.
async fn tail(mut events: Subscription, count: usize) -> Result<(), octollm::Error> {
    let mut printed = 0;
    while printed < count {
        let signal = tokio::select! {
            signal = events.next() => signal,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        match signal {
            Some(Signal::Event(event)) => {
                printed += 1;
                println!("{} {} {} {}", event.timestamp(), event.channel(), event.source(), event.data());
            }
            Some(Signal::Gap(gap)) => println!("-- events may be missing here: {gap}"),
            Some(Signal::Lagged(missed)) => println!("-- {missed} events are missing here: too slow"),
            None => break,
        }
    }
    match events.ended() {
        None | Some(BusError::Closed) => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// More events than there is room for.
async fn demonstrate(pattern: Pattern) -> Result<(), octollm::Error> {
    let bus = MemoryBus::new();
    let events = bus.subscribe(pattern, Overflow::DropOldest(3)).await?;
    for kind in ["task.queued", "task.started", "task.progress", "task.completed"] {
        bus.publish(Event::new(kind, "brain", "one")?).await?;
    }
    drop(bus);
    tail(events, usize::MAX).await
}

#[cfg(feature = "redis")]
async fn redis(url: &str) -> Result<Arc<dyn EventBus>, octollm::Error> {
    Ok(Arc::new(octollm::redis::RedisBus::connect(url).await?))
}

#[cfg(not(feature = "redis"))]
async fn redis(_: &str) -> Result<Arc<dyn EventBus>, octollm::Error> {
    Err("--redis needs the feature `redis`".into())
}
