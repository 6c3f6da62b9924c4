//! The guarantees of every bus, for the buses within one process and for one without capabilities.
//!
//! A case is a function of a new bus, and runs with each bus to which it applies. Where a bus lacks a capability, the case
//! asserts that it returns `Unsupported`.

mod blocking;
mod brain;
mod delivery;
mod engine;
mod groups;
#[path = "jobs.rs"]
mod job_cases;
mod jobs_in_memory;
mod layers;
mod map;
mod overflow;
mod pairs;
mod plain;
mod publish;
mod queued_brain;
mod scopes;
mod settling;
mod worker;

use std::borrow::Borrow;
use std::time::Duration;

use octollm_core::bus::Capability;
use octollm_core::bus::{
    ConsumeOptions, Consumer, DeadLetter, Delivery, DurableBus, GroupStatus, MemoryBus, MemoryDurableBus,
    Nack, Signal, Subscription,
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
    Event::new("case.published", "suite", number).unwrap()
}

fn event_on(channel: &str) -> Event {
    Event::on(channel.parse::<Channel>().unwrap(), "suite", 0).unwrap()
}

fn number(event: &impl Borrow<Event>) -> usize {
    event.borrow().data_as().unwrap()
}

/// The next event, within a second.
async fn received(subscription: &mut Subscription) -> Event {
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

/// Asserts that nothing is delivered for this time.
async fn nothing(consumer: &mut Consumer, time: Duration) {
    if let Ok(arrival) = timeout(time, consumer.next()).await {
        panic!("nothing was to be delivered, but there is {arrival:?}");
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

/// The numbers of the group.
async fn group(bus: &impl DurableBus) -> GroupStatus {
    bus.group(GROUP).await.unwrap()
}

/// The number of unsettled deliveries and of waiting events.
async fn unsettled(bus: &impl DurableBus) -> (usize, usize) {
    let status = group(bus).await;
    (status.pending, status.waiting)
}
