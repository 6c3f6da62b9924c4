//! What every bus promises, held against the buses within one process and against one that denies every capability.
//!
//! A case is a function over a fresh bus, and each bus it holds for is given to it; where a bus denies a capability, the
//! case asserts that it returns `Unsupported`.

mod blocking;
mod brain;
mod delivery;
mod engine;
mod groups;
mod overflow;
mod pairs;
mod plain;
mod publish;
mod settling;
mod worker;

use std::borrow::Borrow;
use std::time::Duration;

use octollm_core::bus::Capability;
use octollm_core::bus::{
    ConsumeOptions, Consumer, DeadLetter, Delivery, DurableBus, MemoryBus, MemoryDurableBus, Signal,
    Subscription,
};
use octollm_core::event::{Channel, Event, Pattern};
use tokio::time::timeout;

use self::plain::PlainBus;

const LEASE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const GROUP: &str = "workers";

fn pub_sub() -> MemoryBus {
    MemoryBus::new()
}

fn durable() -> MemoryDurableBus {
    MemoryDurableBus::new()
}

fn plain() -> PlainBus {
    PlainBus::default()
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

fn all() -> Pattern {
    Pattern::all()
}

/// An event that carries a number.
fn event(number: usize) -> Event {
    Event::new("case.told", "suite", number).unwrap()
}

fn event_on(channel: &str) -> Event {
    Event::on(channel.parse::<Channel>().unwrap(), "suite", 0).unwrap()
}

fn number(event: &impl Borrow<Event>) -> usize {
    event.borrow().data_as().unwrap()
}

fn numbers(events: &[Event]) -> Vec<usize> {
    events.iter().map(number).collect()
}

/// The next event, which must come without time passing much.
async fn heard(subscription: &mut Subscription) -> Event {
    match timeout(Duration::from_secs(1), subscription.next()).await {
        Ok(Some(Signal::Event(event))) => event,
        other => panic!("no event but {other:?}"),
    }
}

async fn delivered(consumer: &mut Consumer) -> Delivery {
    delivered_within(consumer, Duration::from_secs(1)).await
}

async fn delivered_within(consumer: &mut Consumer, time: Duration) -> Delivery {
    match timeout(time, consumer.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        other => panic!("no delivery but {other:?}"),
    }
}

/// Holds that nothing comes for so long.
async fn nothing(consumer: &mut Consumer, time: Duration) {
    if let Ok(arrival) = timeout(time, consumer.next()).await {
        panic!("nothing was to come, but there is {arrival:?}");
    }
}

fn options() -> ConsumeOptions {
    ConsumeOptions { from_start: true, lease: LEASE, ..ConsumeOptions::default() }
}

/// A consumer of the whole history, or from now on where the bus has none.
async fn consumer(bus: &impl DurableBus) -> Consumer {
    consumer_with(bus, options()).await
}

async fn consumer_with(bus: &impl DurableBus, options: ConsumeOptions) -> Consumer {
    let from_start = bus.capabilities().contains(&Capability::History);
    bus.consume(GROUP, all(), ConsumeOptions { from_start, ..options }).await.unwrap()
}

async fn dead_letters(bus: &impl DurableBus) -> Vec<DeadLetter> {
    bus.dead_letters(GROUP, None, 100).await.unwrap()
}

/// The number of deliveries handed out, and of events that wait.
async fn owed(bus: &impl DurableBus) -> (usize, usize) {
    let status = bus.group(GROUP).await.unwrap();
    (status.pending, status.waiting)
}
