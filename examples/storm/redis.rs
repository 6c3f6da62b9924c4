//! Buses over a Redis server that is killed again and again, while events are published and consumed.

#[path = "../../octollm-events/tests/support/redis.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use the rest")]
mod server;

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use octollm::{
    bus::{BusError, ConsumeOptions, Consumer, DurableBus, EventBus, Gap, Overflow, Signal, Subscription},
    event::Event,
    redis::{RedisBus, RedisStreamBus},
};
use serde_json::json;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use self::server::Redis;
use crate::Result;

const PUBLISHERS: u64 = 4;
const CONSUMERS: usize = 4;
const SUBSCRIBERS: usize = 4;
/// Pause of a publisher between two events.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the server is away.
const AWAY: Duration = Duration::from_secs(2);
/// How long events may take after the last restart.
const LIMIT: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(2);
/// One delivery of so many is not acknowledged, as by a consumer that dies.
const FORGOTTEN: u64 = 50;
const GROUP: &str = "storm";

/// How long a storm lasts, and how often the server is killed.
pub(crate) struct Size {
    time: Duration,
    every: Duration,
}

impl Size {
    pub(crate) const FULL: Self = Self { time: Duration::from_secs(600), every: Duration::from_secs(30) };
    pub(crate) const SHORT: Self = Self { time: Duration::from_secs(12), every: Duration::from_secs(4) };
}

/// The numbers of events: of a publisher in its upper half, and of its event in the lower one.
type Numbers = Arc<Mutex<BTreeSet<u64>>>;

fn locked(numbers: &Mutex<BTreeSet<u64>>) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What publishers and receivers count.
#[derive(Default)]
struct Counts {
    stopped: AtomicBool,
    /// Publications that were confirmed.
    published: Numbers,
    refused: AtomicU64,
    handled: Numbers,
    deliveries: AtomicU64,
    doubled: AtomicU64,
    gaps: AtomicU64,
    lost_in_gaps: AtomicU64,
    lost: AtomicU64,
}

pub(crate) async fn storm(size: &Size) -> Result<()> {
    let mut server = spawn_blocking(|| Redis::start(&["--appendonly yes", "--appendfsync always"])).await?;
    let (durable, live) = (Arc::new(Counts::default()), Arc::new(Counts::default()));
    let streams = RedisStreamBus::connect(&server.url()).await?;
    let pubsub = RedisBus::connect(&server.url()).await?;
    let mut tasks = JoinSet::new();
    for _ in 0..CONSUMERS {
        let options =
            ConsumeOptions { lease: LEASE, max_attempts: 1_000, max_in_flight: 64, ..Default::default() };
        let consumer = streams.consume(GROUP, "events:storm:*".parse()?, options).await?;
        tasks.spawn(consume(streams.clone(), consumer, options, durable.clone()));
    }
    for _ in 0..SUBSCRIBERS {
        let events = pubsub.subscribe("events:storm:*".parse()?, Overflow::DropOldest(1 << 16)).await?;
        tasks.spawn(watch(events, live.clone()));
    }
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(publish(streams.clone(), true, publisher, durable.clone()));
        publishers.spawn(publish(pubsub.clone(), false, publisher, live.clone()));
    }

    let (begun, mut kills, mut resident) = (Instant::now(), 0, Vec::new());
    while begun.elapsed() < size.time {
        sleep(size.every - AWAY).await;
        resident.push(resident_kib()?);
        server = spawn_blocking(move || {
            server.kill();
            std::thread::sleep(AWAY);
            server.restart();
            server
        })
        .await?;
        kills += 1;
        println!("{:>4} s: {}", begun.elapsed().as_secs(), line(&durable, &live, resident.last().copied()));
    }
    // Both buses have a publication that arrives after the last restart, so that each loss is within a gap.
    sleep(AWAY).await;
    for counts in [&durable, &live] {
        counts.stopped.store(true, Ordering::Relaxed);
    }
    while let Some(ended) = publishers.join_next().await {
        ended??;
    }
    let end = Instant::now() + LIMIT;
    while missing(&durable) > 0 && Instant::now() < end {
        sleep(Duration::from_millis(100)).await;
    }
    let status = streams.group(GROUP).await?;
    let growth = growth(&resident);
    println!(
        "{kills} kills: {}, dead letters {}",
        line(&durable, &live, resident_kib().ok()),
        status.dead_letters
    );
    println!("resident memory: {growth:+.1} % since the middle");
    tasks.shutdown().await;
    let lost = missing(&durable) as u64 + live.lost.load(Ordering::Relaxed);
    match lost {
        0 if status.dead_letters == 0 => Ok(()),
        _ => Err(format!("{lost} events are lost, {} are dead letters", status.dead_letters).into()),
    }
}

/// Confirmed publications of the durable bus that were not handled.
fn missing(counts: &Counts) -> usize {
    let handled = locked(&counts.handled).clone();
    locked(&counts.published).difference(&handled).count()
}

fn line(durable: &Counts, live: &Counts, resident: Option<u64>) -> String {
    let (of, len) =
        (|count: &AtomicU64| count.load(Ordering::Relaxed), |numbers: &Numbers| locked(numbers).len());
    format!(
        "streams: published {} (refused {}), deliveries {}, handled {} once, doubled before the inbox {}, missing {} | \
         pub/sub: published {} (refused {}), received {}, gaps {}, lost in gaps {}, lost {} | resident {} KiB",
        len(&durable.published),
        of(&durable.refused),
        of(&durable.deliveries),
        len(&durable.handled),
        of(&durable.doubled),
        missing(durable),
        len(&live.published),
        of(&live.refused),
        of(&live.deliveries),
        of(&live.gaps),
        of(&live.lost_in_gaps),
        of(&live.lost),
        resident.unwrap_or(0),
    )
}

/// Publishes events until the storm ends. One that is refused is published again where the bus is durable, under its id.
async fn publish(bus: impl EventBus, durable: bool, publisher: u64, counts: Arc<Counts>) -> Result<()> {
    for number in 0.. {
        if counts.stopped.load(Ordering::Relaxed) {
            break;
        }
        let number = publisher << 32 | number;
        let event = Event::new("storm.published", "storm", json!({ "number": number, "of": publisher }))?;
        loop {
            match bus.publish(event.clone()).await {
                Ok(()) => {
                    locked(&counts.published).insert(number);
                    break;
                }
                Err(BusError::Unavailable { .. }) => {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                    if !durable {
                        break;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
                Err(other) => return Err(other.into()),
            }
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Handles events behind a set of numbers, which stands for an inbox. Joins again where the consumer has ended.
async fn consume(
    bus: RedisStreamBus,
    mut consumer: Consumer,
    options: ConsumeOptions,
    counts: Arc<Counts>,
) -> Result<()> {
    loop {
        while let Some(next) = consumer.next().await {
            let Ok(delivery) = next else { continue };
            let number = number(delivery.event())?;
            if !locked(&counts.handled).insert(number) {
                counts.doubled.fetch_add(1, Ordering::Relaxed);
            }
            if counts.deliveries.fetch_add(1, Ordering::Relaxed) % FORGOTTEN != 0 {
                // Where the server is away, the event is delivered again.
                let _ = delivery.ack().await;
            }
        }
        if matches!(consumer.ended(), Some(BusError::Closed)) {
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
        if let Ok(again) = bus.consume(GROUP, "events:storm:*".parse()?, options).await {
            consumer = again;
        }
    }
}

/// Receives events. Of each publisher the numbers ascend: where one is left out without a gap since, it is lost.
async fn watch(mut events: Subscription, counts: Arc<Counts>) -> Result<()> {
    let (mut last, mut gap) = ([None; PUBLISHERS as usize], [false; PUBLISHERS as usize]);
    while let Some(signal) = events.next().await {
        let event = match signal {
            Signal::Event(event) => event,
            Signal::Gap(Gap::ConnectionLost) => {
                counts.gaps.fetch_add(1, Ordering::Relaxed);
                gap = [true; PUBLISHERS as usize];
                continue;
            }
            other => return Err(format!("{other:?} of a subscriber that is fast").into()),
        };
        counts.deliveries.fetch_add(1, Ordering::Relaxed);
        let number = number(&event)?;
        let (of, number) = ((number >> 32) as usize, number & u64::from(u32::MAX));
        // What was refused and not published is no loss.
        let published = locked(&counts.published);
        let next = last[of].map_or(0, |last: u64| last + 1);
        let left_out = (next..number).filter(|left_out| published.contains(&((of as u64) << 32 | left_out)));
        let left_out = left_out.count() as u64;
        drop(published);
        let count = if gap[of] { &counts.lost_in_gaps } else { &counts.lost };
        count.fetch_add(left_out, Ordering::Relaxed);
        (last[of], gap[of]) = (Some(number), false);
    }
    Ok(())
}

fn number(event: &Event) -> Result<u64> {
    event.data()["number"].as_u64().ok_or_else(|| "an event without a number".into())
}

/// Growth of the memory since the middle, in percent.
fn growth(resident: &[u64]) -> f64 {
    let middle = resident.get(resident.len() / 2).copied().unwrap_or(0).max(1);
    let last = resident.last().copied().unwrap_or(middle);
    (last as f64 / middle as f64 - 1.0) * 100.0
}

/// Resident memory of this process.
fn resident_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
