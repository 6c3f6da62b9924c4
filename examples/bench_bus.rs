//! Measures a bus: events from one publisher to its subscribers or consumers, on one thread.
//!
//! ```text
//! cargo run --release --features sql,redis --example bench_bus -- BUS CONCURRENCY MESSAGES [MODE]
//! ```
//!
//! BUS is `memory` or `durable` (both in memory), the URL of a Redis server for its publish and subscribe (`redis://127.0.0.1/`), the same
//! with `streams+` before it for its streams, or the URL of a database (`sqlite:bus.db`, `postgres://postgres@127.0.0.1/bench`).
//! CONCURRENCY is how many publications are in flight. MODE is one of:
//!
//! - `live` (default): to one subscriber. `live16` has 16 of them, and counts an event once.
//! - `clones`, `clones16`: the same, where the publisher makes no event anew. Without times of delivery.
//! - `publish`: to nobody. The times are those of the publications. `publish-all` publishes CONCURRENCY of them together.
//! - `consume`: consumes events that were published before, in batches that are acknowledged together.
//! - `work`: to a consumer that handles and acknowledges each event.
//! - `paced`: as `live`, 10 000 events a second by a schedule, whether earlier ones are published or not. `paced-work` as `work`. The times are
//!   those since an event was due.
//!
//! Prints one line. `p50_us` and `p99_us` are the times from the publication of an event until it is received, `cpu_us` the CPU time of
//! this process for each event.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use octollm::{
    bus::{
        ConsumeOptions, Delivery, DurableBus, EventBus, MemoryBus, MemoryDurableBus, Overflow, Signal,
        Subscription,
    },
    event::Event,
};
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Events that are handed to a consumer and not acknowledged yet.
const IN_FLIGHT: usize = 4096;
const PACE: Duration = Duration::from_millis(1);
const EVENTS_OF_A_PACE: usize = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (bus, concurrency, messages, mode) = match &*words {
        [bus, concurrency, messages] => (bus, concurrency, messages, "live"),
        [bus, concurrency, messages, mode] => (bus, concurrency, messages, mode.as_str()),
        _ => return Err("usage: bench_bus BUS CONCURRENCY MESSAGES [MODE]".into()),
    };
    let bench = Bench {
        concurrency: concurrency.parse::<usize>()?.max(1),
        messages: messages.parse::<u64>()?.max(1),
    };
    let subscribers = if mode.ends_with("16") { 16 } else { 1 };
    let opened = Opened::open(bus).await?;
    let mut measured = match mode {
        "live" | "live16" => bench.live(&opened, subscribers, Source::Anew).await?,
        "clones" | "clones16" => bench.live(&opened, subscribers, Source::Clones).await?,
        "paced" => bench.live(&opened, 1, Source::Paced).await?,
        "publish" => bench.publish(&opened).await?,
        "publish-all" => bench.publish_together(&opened).await?,
        "consume" => bench.consume(opened.durable()?).await?,
        "work" => bench.work(opened.durable()?, Source::Anew).await?,
        "paced-work" => bench.work(opened.durable()?, Source::Paced).await?,
        other => return Err(format!("there is no mode {other}").into()),
    };
    measured.times.sort();
    let name = bus.split([':', '+']).next().unwrap_or_default();
    println!(
        "{name}-{mode} conc={concurrency} calls={messages} rps={:.0} p50_us={:.1} p99_us={:.1} cpu_us={:.2} user_us={:.2} sys_us={:.2}",
        bench.messages as f64 / measured.elapsed.as_secs_f64(),
        measured.quantile(50),
        measured.quantile(99),
        bench.each(measured.user + measured.system),
        bench.each(measured.user),
        bench.each(measured.system),
    );
    Ok(())
}

/// A bus, as what it can be used for.
enum Opened {
    Live(Arc<dyn EventBus>),
    Durable(Arc<dyn DurableBus>),
}

impl Opened {
    async fn open(bus: &str) -> Result<Self> {
        Ok(match bus {
            "memory" => Self::Live(Arc::new(MemoryBus::new())),
            "durable" => Self::Durable(Arc::new(MemoryDurableBus::new())),
            url if url.starts_with("streams+") => Self::Durable(Arc::new(
                octollm::redis::RedisStreamBus::connect(&url["streams+".len()..]).await?,
            )),
            url if url.starts_with("redis") => {
                Self::Live(Arc::new(octollm::redis::RedisBus::connect(url).await?))
            }
            url => {
                let database = octollm::sql::SqlDatabase::open(url).await?;
                Self::Durable(Arc::new(octollm::sql::SqlBus::open(&database).await?))
            }
        })
    }

    fn bus(&self) -> &dyn EventBus {
        match self {
            Self::Live(bus) => &**bus,
            Self::Durable(bus) => &**bus,
        }
    }

    fn durable(&self) -> Result<&dyn DurableBus> {
        match self {
            Self::Live(_) => Err("the mode needs a durable bus".into()),
            Self::Durable(bus) => Ok(&**bus),
        }
    }
}

/// How the publisher gets its events.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Anew,
    Clones,
    Paced,
}

struct Measured {
    elapsed: Duration,
    times: Vec<Duration>,
    user: Duration,
    system: Duration,
}

impl Measured {
    /// A quantile of the times in µs; 0 without times.
    fn quantile(&self, percent: usize) -> f64 {
        let at = (self.times.len() * percent / 100).min(self.times.len().saturating_sub(1));
        self.times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

/// The moments at which events were published, by their number.
#[derive(Clone)]
struct Published(Arc<Mutex<Vec<Instant>>>);

impl Published {
    fn new(messages: u64) -> Self {
        Self(Arc::new(Mutex::new(vec![Instant::now(); messages as usize])))
    }

    fn at(&self, number: u64, time: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[number as usize] = time;
    }

    fn elapsed(&self, event: &Event) -> Result<Duration> {
        let number = event
            .subject()
            .and_then(|task| task.strip_prefix("task-"))
            .ok_or("an event of another program")?;
        let number: usize = number.parse()?;
        let published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(published.get(number).ok_or("an event of an earlier run")?.elapsed())
    }
}

fn event(number: u64) -> Result<Event> {
    let task = format!("task-{number}");
    let data = json!({ "task_id": task, "status": "completed", "duration_ms": 1234 });
    Ok(Event::new("task.completed", "orchestrator", data)?.with_subject(task))
}

struct Bench {
    concurrency: usize,
    messages: u64,
}

impl Bench {
    /// CPU time for each event, in µs.
    fn each(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.messages as f64
    }

    /// Publishes the events.
    async fn publish_all(&self, bus: &dyn EventBus, published: &Published, source: Source) -> Result<()> {
        if source == Source::Paced {
            return self.publish_paced(bus, published).await;
        }
        let first = event(0)?;
        if source == Source::Clones && self.concurrency == 1 {
            for _ in 0..self.messages {
                bus.publish(first.clone()).await?;
            }
            return Ok(());
        }
        let mut publications = futures_util::stream::iter(0..self.messages)
            .map(|number| {
                let first = &first;
                async move {
                    let event = if source == Source::Clones { first.clone() } else { event(number)? };
                    published.at(number, Instant::now());
                    bus.publish(event).await?;
                    Result::Ok(())
                }
            })
            .buffer_unordered(self.concurrency);
        while let Some(done) = publications.next().await {
            done?;
        }
        Ok(())
    }

    /// Publishes the events when they are due.
    async fn publish_paced(&self, bus: &dyn EventBus, published: &Published) -> Result<()> {
        let (mut pace, mut publications) = (tokio::time::interval(PACE), FuturesUnordered::new());
        let mut numbers = 0..self.messages;
        while !numbers.is_empty() || !publications.is_empty() {
            tokio::select! {
                due = pace.tick(), if !numbers.is_empty() => {
                    for number in numbers.by_ref().take(EVENTS_OF_A_PACE) {
                        published.at(number, due.into_std());
                        publications.push(bus.publish(event(number)?));
                    }
                }
                Some(done) = publications.next() => done?,
            }
        }
        Ok(())
    }

    /// From a publisher to subscribers.
    async fn live(&self, opened: &Opened, subscribers: usize, source: Source) -> Result<Measured> {
        let (bus, published) = (opened.bus(), Published::new(self.messages));
        let mut receivers = Vec::new();
        for _ in 0..subscribers {
            let events = bus.subscribe("events:task:*".parse()?, Overflow::Block).await?;
            let timed = (source != Source::Clones).then(|| published.clone());
            receivers.push(tokio::spawn(receive(events, self.messages, timed)));
        }
        let started = Started::now()?;
        self.publish_all(bus, &published, source).await?;
        let mut times = Vec::new();
        for receiver in receivers {
            times.extend(receiver.await??);
        }
        started.measured(times)
    }

    /// From a publisher to nobody.
    async fn publish(&self, opened: &Opened) -> Result<Measured> {
        let (bus, started) = (opened.bus(), Started::now()?);
        let mut publications = futures_util::stream::iter(0..self.messages)
            .map(|number| async move {
                let begun = Instant::now();
                bus.publish(event(number)?).await?;
                Result::Ok(begun.elapsed())
            })
            .buffer_unordered(self.concurrency);
        let mut times = Vec::with_capacity(self.messages as usize);
        while let Some(time) = publications.next().await {
            times.push(time?);
        }
        started.measured(times)
    }

    /// From a publisher to nobody, as many together as are in flight.
    async fn publish_together(&self, opened: &Opened) -> Result<Measured> {
        let (bus, started, mut times) = (opened.bus(), Started::now()?, Vec::new());
        let mut numbers = 0..self.messages;
        while !numbers.is_empty() {
            let events: Result<Vec<_>> = numbers.by_ref().take(self.concurrency).map(event).collect();
            let begun = Instant::now();
            bus.publish_all(events?).await.into_iter().collect::<std::result::Result<(), _>>()?;
            times.push(begun.elapsed());
        }
        started.measured(times)
    }

    /// A group of this run.
    async fn group(&self, bus: &dyn DurableBus) -> Result<octollm::bus::Consumer> {
        let group = format!("bench-{}", std::process::id());
        let options = ConsumeOptions { max_in_flight: IN_FLIGHT, ..ConsumeOptions::default() };
        Ok(bus.consume(&group, "events:task:*".parse()?, options).await?)
    }

    /// Consumes what waits, in batches.
    async fn consume(&self, bus: &dyn DurableBus) -> Result<Measured> {
        let mut consumer = self.group(bus).await?;
        consumer.close().await?;
        let published = Published::new(self.messages);
        self.publish_all(bus, &published, Source::Anew).await?;
        let (mut consumer, started, mut count) = (self.group(bus).await?, Started::now()?, 0);
        while count < self.messages {
            let mut batch: Vec<Delivery> = Vec::with_capacity(self.concurrency);
            while batch.len() < self.concurrency && count + (batch.len() as u64) < self.messages {
                batch.push(consumer.next().await.ok_or("the consumer has ended")??);
            }
            count += batch.len() as u64;
            for acknowledged in Delivery::ack_all(batch).await {
                acknowledged?;
            }
        }
        let measured = started.measured(Vec::new())?;
        remove(bus).await?;
        Ok(measured)
    }

    /// From a publisher to a consumer that acknowledges each event.
    async fn work(&self, bus: &dyn DurableBus, source: Source) -> Result<Measured> {
        let (mut consumer, published) = (self.group(bus).await?, Published::new(self.messages));
        let started = Started::now()?;
        let handled = async {
            let (mut times, mut acknowledged) =
                (Vec::with_capacity(self.messages as usize), tokio::task::JoinSet::new());
            while times.len() < self.messages as usize {
                let delivery = consumer.next().await.ok_or("the consumer has ended")??;
                times.push(published.elapsed(delivery.event())?);
                acknowledged.spawn(delivery.ack());
            }
            while let Some(done) = acknowledged.join_next().await {
                done??;
            }
            Result::Ok(times)
        };
        let (sent, times) = tokio::join!(self.publish_all(bus, &published, source), handled);
        sent?;
        let measured = started.measured(times?)?;
        remove(bus).await?;
        Ok(measured)
    }
}

/// Removes the group of this run.
async fn remove(bus: &dyn DurableBus) -> Result<()> {
    bus.remove_group(&format!("bench-{}", std::process::id())).await?;
    Ok(())
}

/// Receives so many events. Returns the time of each one where they are `timed`.
async fn receive(mut events: Subscription, messages: u64, timed: Option<Published>) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(if timed.is_some() { messages as usize } else { 0 });
    for number in 0..messages {
        match events.next().await {
            Some(Signal::Event(event)) => {
                if let Some(published) = &timed {
                    times.push(published.elapsed(&event)?);
                }
            }
            other => return Err(format!("after {number} events: {other:?}").into()),
        }
    }
    Ok(times)
}

/// The beginning of a measurement.
struct Started {
    at: Instant,
    user: Duration,
    system: Duration,
}

impl Started {
    fn now() -> Result<Self> {
        let (user, system) = cpu()?;
        Ok(Self { at: Instant::now(), user, system })
    }

    fn measured(self, times: Vec<Duration>) -> Result<Measured> {
        let (elapsed, (user, system)) = (self.at.elapsed(), cpu()?);
        Ok(Measured { elapsed, times, user: user - self.user, system: system - self.system })
    }
}

/// CPU time of this process: of its own code, and of the system for it.
fn cpu() -> Result<(Duration, Duration)> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = |micros: i64| Duration::from_micros(micros.try_into().unwrap_or(0));
    Ok((time(usage.user_time().num_microseconds()), time(usage.system_time().num_microseconds())))
}
