//! Which events a subscriber receives.

use std::collections::HashSet;

use octollm_core::bus::{BusError, EventBus, MemoryBus, MemoryDurableBus, Overflow};
use octollm_core::event::Event;

use crate::*;

/// An event of so many bytes.
fn sized(bytes: usize) -> Event {
    let empty = Event::new("case.published", "suite", "").unwrap().size();
    Event::new("case.published", "suite", "x".repeat(bytes - empty)).unwrap()
}

async fn limit_holds(bus: impl EventBus) {
    let limit = bus.max_event_bytes();
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let refused = bus.publish(sized(limit + 1)).await;
    assert!(
        matches!(refused, Err(BusError::TooLarge { size, limit: reported }) if (size, reported) == (limit + 1, limit))
    );
    bus.publish(sized(limit)).await.unwrap();
    assert_eq!(received(&mut events).await.size(), limit, "nothing was delivered before it");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_refused_whole() {
    limit_holds(pub_sub()).await;
    limit_holds(durable()).await;
    limit_holds(MemoryBus::with_limits(300, SECOND).unwrap()).await;
    limit_holds(MemoryDurableBus::builder().max_event_bytes(300).build().unwrap()).await;
    assert_eq!(MemoryBus::with_limits(0, SECOND).unwrap_err().setting(), "max_event_bytes");
}

/// A runtime of its own, on a thread of its own.
fn elsewhere<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    })
}

#[test]
fn a_bus_carries_events_from_one_runtime_to_another() {
    const EVENTS: usize = 5_000;
    let bus = MemoryDurableBus::new();
    let (ready, start) = std::sync::mpsc::channel();
    let subscriber = elsewhere({
        let (bus, ready) = (bus.clone(), ready.clone());
        async move {
            let mut events =
                bus.subscribe("suite:other:event".parse().unwrap(), Overflow::Block).await.unwrap();
            ready.send(()).unwrap();
            for number in 0..EVENTS {
                let Some(Signal::Event(event)) = events.next().await else { panic!("{number} is missing") };
                assert_eq!(crate::number(&event), number);
            }
        }
    });
    let consumer = elsewhere({
        let bus = bus.clone();
        async move {
            let mut consumer = consumer_with(&bus, ConsumeOptions::default()).await;
            ready.send(()).unwrap();
            let mut numbers = HashSet::new();
            while numbers.len() < EVENTS {
                let Some(Ok(delivery)) = consumer.next().await else { panic!("some are missing") };
                assert!(numbers.insert(crate::number(delivery.event())), "each comes once");
                delivery.ack().await.unwrap();
            }
        }
    });
    start.recv().unwrap();
    start.recv().unwrap();
    let publisher = elsewhere(async move {
        for number in 0..EVENTS {
            let event = Event::on("suite:other:event".parse().unwrap(), "suite", number).unwrap();
            bus.publish(event).await.unwrap();
        }
        bus
    });
    let _bus = publisher.join().unwrap();
    subscriber.join().unwrap();
    consumer.join().unwrap();
}
