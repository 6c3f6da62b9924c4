//! Publishing: batches, expiry, delays, closing.

use octollm_core::bus::{BusError, DelayBus, EventBus, MemoryDurableBus, Overflow};

use crate::*;

#[tokio::test(start_paused = true)]
async fn delayed_events_are_bounded() {
    let bus = MemoryDurableBus::builder().max_event_bytes(300).delayed(1, 300).build().unwrap();
    bus.publish_after(event(0), SECOND).await.unwrap();
    let refused = bus.publish_after(event(1), SECOND).await;
    assert!(matches!(refused, Err(BusError::Full { events: 1, bytes: 300 })));
}

#[tokio::test(start_paused = true)]
async fn a_closed_bus_ends_its_subscribers_and_refuses_publishers() {
    let bus = pub_sub();
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    bus.close();
    bus.close();
    assert!(matches!(bus.publish(event(2)).await, Err(BusError::Closed)));
    assert!(matches!(bus.subscribe(all(), Overflow::Block).await, Err(BusError::Closed)));
    assert_eq!(number(&received(&mut events).await), 1, "the waiting event is still received");
    assert!(events.next().await.is_none());
    assert!(matches!(events.ended(), Some(BusError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_durable_bus_ends_its_consumers() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    let waiting = tokio::spawn(async move { consumer.next().await.is_none() });
    tokio::task::yield_now().await;
    bus.publish_after(event(1), SECOND).await.unwrap();
    drop(bus);
    assert!(waiting.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn buses_are_shared_as_trait_objects() {
    let bus: std::sync::Arc<dyn DurableBus> = std::sync::Arc::new(durable());
    let mut consumer = bus.consume(GROUP, all(), options()).await.unwrap();
    let bus: std::sync::Arc<dyn EventBus> = bus;
    bus.publish(event(1)).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
}
