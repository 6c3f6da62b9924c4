//! Publishing: batches, expiry, delays, closing.

use octollm_core::bus::{BusError, DelayBus, EventBus, MemoryDurableBus, Overflow};
use tokio::time::{Instant, advance};

use crate::*;

async fn one_bad_of_a_hundred(bus: impl EventBus) {
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let mut batch: Vec<Event> = (0..100).map(event).collect();
    batch[42] = Event::new("case.published", "suite", "x".repeat(bus.max_event_bytes())).unwrap();
    let outcomes = bus.publish_all(batch).await;
    assert_eq!(outcomes.len(), 100);
    for (index, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(()) => assert_eq!(number(&received(&mut events).await), index),
            Err(error) => assert!(index == 42 && matches!(error, BusError::TooLarge { .. })),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_returns_results_by_index() {
    one_bad_of_a_hundred(pub_sub()).await;
    one_bad_of_a_hundred(durable()).await;
}

/// Expires at this time from now. The wall clock's now stands for the paused clock's.
fn expiring(number: usize, after: Duration) -> Event {
    event(number).with_expires_at(jiff::Timestamp::now() + after)
}

async fn expired_is_counted(bus: impl EventBus) {
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    bus.publish(event(0).with_expires_at("2000-01-01T00:00:00Z".parse().unwrap())).await.unwrap();
    bus.publish(expiring(1, 60 * SECOND)).await.unwrap();
    bus.publish(expiring(2, 600 * SECOND)).await.unwrap();
    advance(120 * SECOND).await;
    assert_eq!(number(&received(&mut events).await), 2);
    assert_eq!(events.expired(), 2);
}

#[tokio::test(start_paused = true)]
async fn expired_events_are_counted_and_not_received() {
    expired_is_counted(pub_sub()).await;
    expired_is_counted(durable()).await;
}

#[tokio::test(start_paused = true)]
async fn expired_events_are_counted_and_not_consumed() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish(expiring(1, 60 * SECOND).with_partition_key("k")).await.unwrap();
    bus.publish(event(2).with_partition_key("k")).await.unwrap();
    advance(120 * SECOND).await;
    assert_eq!(number(delivered(&mut consumer).await.event()), 2, "it does not block its key");
    assert_eq!((group(&bus).await.expired, unsettled(&bus).await), (1, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn delayed_events_are_not_early_and_can_be_cancelled() {
    let bus = durable();
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let mut consumer = consumer(&bus).await;
    let (published, cancelled) = (event(1), event(2));
    let start = Instant::now();
    bus.publish_after(published, 10 * SECOND).await.unwrap();
    bus.publish_after(cancelled.clone(), 5 * SECOND).await.unwrap();
    assert!(bus.cancel_publish(cancelled.id()).await.unwrap());
    assert!(!bus.cancel_publish(cancelled.id()).await.unwrap());
    let delivery = delivered_within(&mut consumer, 11 * SECOND).await;
    assert_eq!(number(delivery.event()), 1);
    assert!(start.elapsed() >= 10 * SECOND && start.elapsed() < 11 * SECOND);
    assert_eq!(number(&received(&mut events).await), 1);
    assert!(!bus.cancel_publish(delivery.event().id()).await.unwrap(), "it was published");
}

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
