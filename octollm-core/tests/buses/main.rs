//! What every bus owes its users, held against the buses within one process.
//!
//! A case that several buses share is one function over the trait; where a bus denies a capability, the case asserts that
//! it says so.

mod delivery;
mod groups;
mod overflow;
mod publish;
mod settling;

use std::borrow::Borrow;
use std::time::Duration;

use octollm_core::bus::{
    Arrival, ConsumeOptions, Consumer, Delivery, DurableBus, MemoryBus, MemoryDurableBus, Signal, Start,
    Subscription,
};
use octollm_core::event::{Channel, Event, Pattern};
use tokio::time::timeout;

const LEASE: Duration = Duration::from_secs(30);
const GROUP: &str = "workers";

fn pub_sub() -> MemoryBus {
    MemoryBus::new()
}

fn durable() -> MemoryDurableBus {
    MemoryDurableBus::new()
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
        Ok(Some(Arrival::Delivery(delivery))) => delivery,
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
    ConsumeOptions { start: Start::Beginning, lease: LEASE, ..ConsumeOptions::default() }
}

async fn consumer(bus: &impl DurableBus) -> Consumer {
    bus.consume(GROUP, all(), options()).await.unwrap()
}

/// The number of deliveries handed out, and of events that wait.
async fn owed(bus: &impl DurableBus) -> (usize, usize) {
    let status = bus.group(GROUP).await.unwrap();
    (status.pending, status.waiting)
}
