//! Pairs of features, as users combine them.

use octollm_core::bus::{BusError, DelayBus, EventBus, Gap, MemoryDurableBus, Nack, Overflow};
use tokio::time::{Instant, advance, sleep};

use crate::*;

/// Expires at this time from now. The wall clock's now stands for the paused clock's.
fn expiring(number: usize, after: Duration) -> Event {
    event(number).with_expires_at(jiff::Timestamp::now() + after)
}

/// The numbers received, the number lost, and the reason of the end.
async fn drain(mut events: Subscription) -> (Vec<usize>, u64, Option<BusError>) {
    let (mut received, mut lost) = (Vec::new(), 0);
    while let Some(signal) = events.next().await {
        match signal {
            Signal::Event(event) => received.push(number(&event)),
            Signal::Lagged(missed) => lost += missed,
            Signal::Gap(gap) => panic!("no gap was made, but there is {gap:?}"),
        }
    }
    (received, lost, events.ended())
}

async fn ack_then_close_case(bus: impl DurableBus) {
    let mut consumer = consumer(&bus).await;
    for number in 0..3 {
        bus.publish(event(number)).await.unwrap();
    }
    let (first, second) = (delivered(&mut consumer).await, delivered(&mut consumer).await);
    first.ack().await.unwrap();
    let start = Instant::now();
    let ((), closed) = tokio::join!(
        async {
            sleep(SECOND).await;
            second.ack().await.unwrap();
        },
        consumer.close()
    );
    closed.unwrap();
    assert!(start.elapsed() >= SECOND && start.elapsed() < 2 * SECOND, "it waits for the deliveries");
    assert!(consumer.next().await.is_none());
    assert!(matches!(consumer.ended(), Some(BusError::Closed)));
    consumer.close().await.unwrap();
    let mut peer = crate::consumer(&bus).await;
    assert_eq!(
        number(delivered(&mut peer).await.event()),
        2,
        "an event that was not delivered goes to a peer"
    );
    nothing(&mut peer, LEASE / 2).await;
}

#[tokio::test(start_paused = true)]
async fn ack_then_close() {
    ack_then_close_case(durable()).await;
    ack_then_close_case(plain()).await;
}

#[tokio::test(start_paused = true)]
async fn close_then_ack_after_the_lease() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let late = delivered(&mut consumer).await;
    let start = Instant::now();
    consumer.close().await.unwrap();
    assert_eq!(start.elapsed(), LEASE, "a close does not wait for an expired lease");
    late.ack().await.unwrap();
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nack_with_a_delay_then_extend() {
    let bus = durable();
    let (mut consumer, mut peer) = (consumer(&bus).await, consumer(&bus).await);
    bus.publish(event(1)).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::retry_after(SECOND)).await.unwrap();
    let again = delivered_within(&mut consumer, 2 * SECOND).await;
    assert_eq!(again.attempt(), 2);
    again.extend(3 * LEASE).await.unwrap();
    nothing(&mut peer, 2 * LEASE).await;
    again.nack(Nack::retry_after(SECOND)).await.unwrap();
    assert_eq!(delivered_within(&mut peer, 2 * SECOND).await.attempt(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_batch_published_beside_three_kinds_of_overflow() {
    let bus = durable();
    let block = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let oldest = bus.subscribe(all(), Overflow::DropOldest(16)).await.unwrap();
    let disconnect = bus.subscribe(all(), Overflow::Disconnect(16)).await.unwrap();
    let start = Instant::now();
    let total = Overflow::BLOCK_CAPACITY + 40;
    let outcomes = bus.publish_all((0..total).map(event).collect()).await;
    assert!(outcomes.len() == total && outcomes.iter().all(Result::is_ok));
    assert_eq!(start.elapsed(), Duration::from_secs(5), "the batch waits for the stalled one once");
    drop(bus);
    let (received, lost, ended) = drain(block).await;
    assert_eq!((received, lost), ((0..Overflow::BLOCK_CAPACITY).collect(), 40));
    assert!(matches!(ended, Some(BusError::Closed)));
    let (received, lost, _) = drain(oldest).await;
    assert_eq!((received, lost), ((total - 16..total).collect(), total as u64 - 16));
    let (received, lost, ended) = drain(disconnect).await;
    assert_eq!((received, lost), ((0..16).collect(), 0));
    assert!(matches!(ended, Some(BusError::SlowConsumer)));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_beside_a_stalled_subscriber() {
    let bus = durable();
    let _stalled = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let mut consumer = consumer(&bus).await;
    let total = Overflow::BLOCK_CAPACITY + 5;
    let publisher = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish_all((0..total).map(event).collect()).await }
    });
    for expected in 0..=Overflow::BLOCK_CAPACITY {
        let delivery = delivered(&mut consumer).await;
        assert_eq!(number(delivery.event()), expected, "the group has it before the publisher waits");
        delivery.ack().await.unwrap();
    }
    assert!(!publisher.is_finished());
    publisher.abort();
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_past_its_expiry_is_replayed() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish(expiring(1, 60 * SECOND)).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::dead_letter("bad")).await.unwrap();
    advance(120 * SECOND).await;
    let dead = dead_letters(&bus).await;
    bus.replay(GROUP, &dead[0].entry).await.unwrap();
    let again = delivered(&mut consumer).await;
    let event = dead[0].event.clone().unwrap();
    assert_eq!((again.event(), again.attempt()), (&event.without_expiry(), 1));
    again.ack().await.unwrap();
    assert_eq!((group(&bus).await.expired, unsettled(&bus).await), (0, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_replay_into_a_full_group_is_refused_and_loses_nothing() {
    let builder = MemoryDurableBus::builder().max_event_bytes(300).history(0, 0).backlog(1, 300);
    let bus = builder.build().unwrap();
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::dead_letter("bad")).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    let entry = dead_letters(&bus).await.remove(0).entry;
    assert!(matches!(bus.replay(GROUP, &entry).await, Err(BusError::Full { .. })));
    assert_eq!(dead_letters(&bus).await.len(), 1);
    delivered(&mut consumer).await.ack().await.unwrap();
    bus.replay(GROUP, &entry).await.unwrap();
    assert_eq!(number(delivered(&mut consumer).await.event()), 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_expires_before_its_delay_is_over() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish_after(expiring(1, 5 * SECOND), 10 * SECOND).await.unwrap();
    nothing(&mut consumer, 20 * SECOND).await;
    assert_eq!((group(&bus).await.expired, unsettled(&bus).await), (1, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_group_removed_while_its_delivery_is_held() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let held = delivered(&mut consumer).await;
    bus.remove_group(GROUP).await.unwrap();
    let mut successor = crate::consumer(&bus).await;
    let again = delivered(&mut successor).await;
    assert!(
        matches!(held.ack().await, Err(BusError::LeaseLost { .. })),
        "it does not settle the new group's delivery"
    );
    assert!(consumer.next().await.is_none());
    assert!(matches!(consumer.ended(), Some(BusError::UnknownGroup { .. })));
    again.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn stored_bytes_are_bounded() {
    let bus = durable();
    for _ in 0..=65_536 {
        bus.publish(event(0)).await.unwrap();
    }
    let _late = bus.consume(GROUP, all(), options()).await.unwrap();
    assert_eq!(unsettled(&bus).await, (0, 65_536), "the default limit of the history");
    let large = Event::new("case.published", "suite", "x".repeat(100_000)).unwrap();
    let (history, backlog) = (1_000_000, 2_000_000);
    let builder = MemoryDurableBus::builder().max_event_bytes(history);
    let bus = builder.history(65_536, history).backlog(1_048_576, backlog).build().unwrap();
    for _ in 0..50 {
        bus.publish(large.clone()).await.unwrap();
    }
    let mut late = bus.consume(GROUP, all(), options()).await.unwrap();
    assert!(matches!(late.next().await, Some(Err(Gap::Trimmed { .. }))));
    assert_eq!(unsettled(&bus).await, (0, history / large.size()));
    let mut published = 0;
    while bus.publish(large.clone()).await.is_ok() {
        published += 1;
    }
    assert_eq!(published, backlog / large.size() - history / large.size());
    delivered(&mut late).await.ack().await.unwrap();
    bus.publish(large.clone()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dead_letters_and_delays_are_bounded_by_bytes_too() {
    let builder = MemoryDurableBus::builder().max_event_bytes(1200);
    let bus = builder.delayed(10, 2500).dead_letters(10, 2500).build().unwrap();
    let mut consumer = consumer(&bus).await;
    let large = || Event::new("case.published", "suite", "x".repeat(1000)).unwrap();
    for _ in 0..3 {
        bus.publish(large()).await.unwrap();
        delivered(&mut consumer).await.nack(Nack::dead_letter("bad")).await.unwrap();
    }
    assert_eq!((dead_letters(&bus).await.len(), group(&bus).await.discarded), (2, 1));
    // The reasons count.
    bus.publish(event(0)).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::dead_letter("r".repeat(2000))).await.unwrap();
    assert_eq!((dead_letters(&bus).await.len(), group(&bus).await.discarded), (1, 3));
    let first = large();
    bus.publish_after(first.clone(), SECOND).await.unwrap();
    bus.publish_after(large(), SECOND).await.unwrap();
    assert!(matches!(bus.publish_after(large(), SECOND).await, Err(BusError::Full { .. })));
    assert!(bus.cancel_publish(first.id()).await.unwrap());
    bus.publish_after(large(), SECOND).await.unwrap();
}

async fn drop_then_ack_case(bus: impl DurableBus) {
    let mut leaving = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let held = delivered(&mut leaving).await;
    drop(leaving);
    held.ack().await.unwrap();
    nothing(&mut consumer(&bus).await, 2 * LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn drop_the_consumer_then_ack() {
    drop_then_ack_case(durable()).await;
    drop_then_ack_case(plain()).await;
}

async fn close_dropped_case(bus: impl DurableBus) {
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    let held = delivered(&mut consumer).await;
    assert!(timeout(SECOND, consumer.close()).await.is_err(), "it waits for the delivery");
    assert!(consumer.next().await.is_none(), "it has ended nevertheless");
    held.ack().await.unwrap();
    consumer.close().await.unwrap();
    assert_eq!(unsettled(&bus).await, (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_dropped_and_called_again() {
    close_dropped_case(durable()).await;
    close_dropped_case(plain()).await;
}

#[tokio::test(start_paused = true)]
async fn alternatives_of_a_group_in_any_order() {
    let bus = durable();
    let mut first = bus.consume(GROUP, pattern("a:b:*,c:d:e"), options()).await.unwrap();
    let _second = bus.consume(GROUP, pattern("c:d:e").or(pattern("a:b:*")), options()).await.unwrap();
    let other = bus.consume(GROUP, pattern("a:b:*"), options()).await;
    assert!(matches!(other, Err(BusError::OtherPattern { pattern, .. }) if pattern == "a:b:*,c:d:e"));
    for channel in ["a:b:x", "a:c:x", "c:d:e"] {
        bus.publish(event_on(channel)).await.unwrap();
    }
    for channel in ["a:b:x", "c:d:e"] {
        assert_eq!(delivered(&mut first).await.event().channel().as_str(), channel);
    }
    assert_eq!(unsettled(&bus).await, (2, 0));
}
