//! Looks through the dead letters of a group, and delivers them again.
//!
//! ```text
//! cargo run --example dead_letters
//! cargo run --example dead_letters --features redis -- --redis URL GROUP [list | inspect ID | replay ID | replay all]
//! ```
//!
//! Without `--redis` it makes some dead letters on a bus in memory, lists them, inspects one, and replays all. With it, it does one of these
//! with a group on the streams of a Redis server.

use std::sync::Arc;

use octollm::{
    bus::{BusError, ConsumeOptions, DeadLetter, DurableBus, EventBus, MemoryDurableBus, Nack},
    event::Event,
};

const USAGE: &str = "usage: dead_letters [--redis URL GROUP [list | inspect ID | replay ID | replay all]]";
/// Dead letters that are read at once.
const PAGE: usize = 100;

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => demonstrate().await,
        ["--redis", url, group] => list(&*redis(url).await?, group).await,
        ["--redis", url, group, "list"] => list(&*redis(url).await?, group).await,
        ["--redis", url, group, "inspect", id] => inspect(&*redis(url).await?, group, id).await,
        ["--redis", url, group, "replay", "all"] => replay_all(&*redis(url).await?, group).await,
        ["--redis", url, group, "replay", id] => replay(&*redis(url).await?, group, id).await,
        _ => Err(USAGE.into()),
    }
}

/// All dead letters of a group, the oldest first.
async fn all(bus: &dyn DurableBus, group: &str) -> Result<Vec<DeadLetter>, BusError> {
    let mut found: Vec<DeadLetter> = Vec::new();
    loop {
        let after = found.last().map(|letter| letter.entry.clone());
        let page = bus.dead_letters(group, after.as_deref(), PAGE).await?;
        let is_last = page.len() < PAGE;
        found.extend(page);
        if is_last {
            return Ok(found);
        }
    }
}

async fn list(bus: &dyn DurableBus, group: &str) -> Result<(), octollm::Error> {
    for letter in all(bus, group).await? {
        let about = match &letter.event {
            Ok(event) => format!("{} {}", event.event_type(), event.id()),
            Err(bytes) => format!("no event: {} bytes", bytes.len()),
        };
        println!("{}\t{about}\t{} attempts\t{}", letter.entry, letter.attempts, letter.reason);
    }
    Ok(())
}

async fn inspect(bus: &dyn DurableBus, group: &str, id: &str) -> Result<(), octollm::Error> {
    let found = all(bus, group).await?.into_iter().find(|letter| letter.entry == id);
    let letter = found.ok_or_else(|| format!("the group {group} has no dead letter {id}"))?;
    match &letter.event {
        Ok(event) => println!("{}", serde_json::to_string_pretty(event)?),
        Err(bytes) => println!("{}", String::from_utf8_lossy(bytes)),
    }
    for attempt in &letter.history {
        println!("{}\t{}\t{}", attempt.at, attempt.consumer, attempt.reason);
    }
    Ok(())
}

async fn replay(bus: &dyn DurableBus, group: &str, id: &str) -> Result<(), octollm::Error> {
    bus.replay(group, id).await?;
    println!("{id} is delivered again");
    Ok(())
}

async fn replay_all(bus: &dyn DurableBus, group: &str) -> Result<(), octollm::Error> {
    for letter in all(bus, group).await?.iter().filter(|letter| letter.event.is_ok()) {
        replay(bus, group, &letter.entry).await?;
    }
    Ok(())
}

/// Orders of which every second one cannot be billed, until that is repaired.
async fn demonstrate() -> Result<(), octollm::Error> {
    let bus = MemoryDurableBus::new();
    let mut billing = bus.consume("billing", "events:order:paid".parse()?, ConsumeOptions::default()).await?;
    for order in 1..=6 {
        bus.publish(Event::new("order.paid", "shop", order)?).await?;
        let Some(Ok(delivery)) = billing.next().await else { break };
        if order % 2 == 0 {
            delivery.nack(Nack::dead_letter("the account has no address")).await?;
        } else {
            delivery.ack().await?;
        }
    }
    list(&bus, "billing").await?;
    if let Some(letter) = all(&bus, "billing").await?.first() {
        inspect(&bus, "billing", &letter.entry).await?;
    }
    replay_all(&bus, "billing").await?;
    for _ in 0..3 {
        let Some(Ok(delivery)) = billing.next().await else { break };
        println!("billed: order {}", delivery.event().data());
        delivery.ack().await?;
    }
    assert!(all(&bus, "billing").await?.is_empty());
    Ok(())
}

#[cfg(feature = "redis")]
async fn redis(url: &str) -> Result<Arc<dyn DurableBus>, octollm::Error> {
    Ok(Arc::new(octollm::redis::RedisStreamBus::connect(url).await?))
}

#[cfg(not(feature = "redis"))]
async fn redis(_: &str) -> Result<Arc<dyn DurableBus>, octollm::Error> {
    Err("--redis needs the feature `redis`".into())
}
