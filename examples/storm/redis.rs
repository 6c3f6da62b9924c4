//! Buses over a Redis server that is killed again and again, while events are published and consumed.

#[path = "../../octollm-events/tests/support/redis.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use the rest")]
mod server;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
use crate::{Result, process};

const PUBLISHERS: usize = 4;
const CONSUMERS: usize = 4;
const SUBSCRIBERS: usize = 4;
/// Pause of a publisher between two events.
const PAUSE: Duration = Duration::from_millis(2);
/// Pause before a publication that was refused is tried again.
const AGAIN: Duration = Duration::from_millis(100);
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

/// The numbers of the events of each publisher that were handled.
#[derive(Default)]
struct Handled {
    /// All numbers below this one.
    below: [u64; PUBLISHERS],
    /// Those above, with their publishers.
    above: BTreeSet<(usize, u64)>,
}

impl Handled {
    /// Adds a number. `false` where it was handled before.
    fn insert(&mut self, of: usize, number: u64) -> bool {
        let added = number >= self.below[of] && self.above.insert((of, number));
        while self.above.remove(&(of, self.below[of])) {
            self.below[of] += 1;
        }
        added
    }

    /// How many of the first `published` numbers of a publisher are missing.
    fn missing(&self, of: usize, published: u64) -> u64 {
        let above = self.above.range((of, 0)..(of, published)).count() as u64;
        published.saturating_sub(self.below[of]).saturating_sub(above)
    }
}

/// What publishers and receivers count.
#[derive(Default)]
struct Counts {
    stopped: AtomicBool,
    /// How many publications of each publisher were confirmed.
    published: [AtomicU64; PUBLISHERS],
    refused: AtomicU64,
    handled: Mutex<Handled>,
    deliveries: AtomicU64,
    doubled: AtomicU64,
    gaps: AtomicU64,
    lost_in_gaps: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    fn handled(&self) -> MutexGuard<'_, Handled> {
        self.handled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) -> u64 {
        self.published.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Confirmed publications that were not handled.
    fn missing(&self) -> u64 {
        let handled = self.handled();
        let of = |(of, count): (usize, &AtomicU64)| handled.missing(of, count.load(Ordering::Relaxed));
        self.published.iter().enumerate().map(of).sum()
    }
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
        publishers.spawn(publish(streams.clone(), publisher, durable.clone()));
        publishers.spawn(publish(pubsub.clone(), publisher, live.clone()));
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
    while durable.missing() > 0 && Instant::now() < end {
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
    let lost = durable.missing() + live.lost.load(Ordering::Relaxed);
    match lost {
        0 if status.dead_letters == 0 => Ok(()),
        _ => Err(format!("{lost} events are lost, {} are dead letters", status.dead_letters).into()),
    }
}

fn line(durable: &Counts, live: &Counts, resident: Option<u64>) -> String {
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    format!(
        "streams: published {} (refused {}), deliveries {}, doubled before the inbox {}, missing {} | \
         pub/sub: published {} (refused {}), received {}, gaps {}, lost in gaps {}, lost {} | resident {} KiB",
        durable.published(),
        of(&durable.refused),
        of(&durable.deliveries),
        of(&durable.doubled),
        durable.missing(),
        live.published(),
        of(&live.refused),
        of(&live.deliveries),
        of(&live.gaps),
        of(&live.lost_in_gaps),
        of(&live.lost),
        resident.unwrap_or(0),
    )
}

/// Publishes events until the storm ends. One that is refused is published again under its id.
async fn publish(bus: impl EventBus, of: usize, counts: Arc<Counts>) -> Result<()> {
    for number in 0.. {
        let event = Event::new("storm.published", "storm", json!({ "number": number, "of": of }))?;
        while !counts.stopped.load(Ordering::Relaxed) {
            match bus.publish(event.clone()).await {
                Ok(()) => {
                    counts.published[of].store(number + 1, Ordering::Relaxed);
                    break;
                }
                Err(BusError::Unavailable { .. }) => {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                    sleep(AGAIN).await;
                }
                Err(other) => return Err(other.into()),
            }
        }
        if counts.stopped.load(Ordering::Relaxed) {
            break;
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Handles events behind their numbers, which stand for an inbox. Joins again where the consumer has ended.
async fn consume(
    bus: RedisStreamBus,
    mut consumer: Consumer,
    options: ConsumeOptions,
    counts: Arc<Counts>,
) -> Result<()> {
    loop {
        while let Some(next) = consumer.next().await {
            let Ok(delivery) = next else { continue };
            let (of, number) = number(delivery.event())?;
            if !counts.handled().insert(of, number) {
                counts.doubled.fetch_add(1, Ordering::Relaxed);
            }
            if !counts.deliveries.fetch_add(1, Ordering::Relaxed).is_multiple_of(FORGOTTEN) {
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

/// Receives events. Of each publisher the numbers ascend: one that is left out is lost, and within a gap where one was reported since.
async fn watch(mut events: Subscription, counts: Arc<Counts>) -> Result<()> {
    let (mut next, mut gap) = ([0; PUBLISHERS], [false; PUBLISHERS]);
    while let Some(signal) = events.next().await {
        let event = match signal {
            Signal::Event(event) => event,
            Signal::Gap(Gap::ConnectionLost) => {
                counts.gaps.fetch_add(1, Ordering::Relaxed);
                gap = [true; PUBLISHERS];
                continue;
            }
            other => return Err(format!("{other:?} of a subscriber that is fast").into()),
        };
        counts.deliveries.fetch_add(1, Ordering::Relaxed);
        let (of, number) = number(&event)?;
        // A lower one was published again, since its publication was not confirmed.
        if number < next[of] {
            continue;
        }
        let count = if gap[of] { &counts.lost_in_gaps } else { &counts.lost };
        count.fetch_add(number - next[of], Ordering::Relaxed);
        (next[of], gap[of]) = (number + 1, false);
    }
    Ok(())
}

/// The publisher of an event, and the number that the event has there.
fn number(event: &Event) -> Result<(usize, u64)> {
    let read = |name| event.data()[name].as_u64().ok_or("an event without a number");
    let of = usize::try_from(read("of")?)?;
    if of < PUBLISHERS { Ok((of, read("number")?)) } else { Err("an event of another program".into()) }
}

/// Growth of the memory since the middle, in percent.
fn growth(resident: &[u64]) -> f64 {
    let middle = resident.get(resident.len() / 2).copied().unwrap_or(0).max(1);
    let last = resident.last().copied().unwrap_or(middle);
    (last as f64 / middle as f64 - 1.0) * 100.0
}

/// Resident memory of this process.
fn resident_kib() -> Result<u64> {
    Ok(process::resident_kib("/proc/self").ok_or("the memory of this process is not known")?)
}
