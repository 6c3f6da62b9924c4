//! Slow subscribers and consumers.

use futures_util::{FutureExt, StreamExt};
use octollm_core::bus::{BusError, ConsumeOptions, EventBus, Overflow};
use tokio::sync::mpsc::unbounded_channel;

use crate::*;

/// The numbers received, and the losses with the number of events before them.
async fn drain(mut events: Subscription) -> (Vec<usize>, Vec<(usize, u64)>, Option<BusError>) {
    let (mut received, mut missed) = (Vec::new(), Vec::new());
    while let Some(signal) = events.next().await {
        match signal {
            Signal::Event(event) => received.push(event),
            Signal::Lagged(count) => missed.push((received.len(), count)),
            Signal::Gap(gap) => panic!("no gap was made, but there is {gap:?}"),
        }
    }
    (numbers(&received), missed, events.ended())
}

async fn send(bus: &impl EventBus, count: usize) {
    for number in 0..count {
        bus.publish(event(number)).await.unwrap();
    }
}

macro_rules! sixteen_of_a_thousand {
    ($bus:expr, $overflow:expr) => {{
        let bus = $bus;
        let events = bus.subscribe(all(), $overflow).await.unwrap();
        send(&bus, 1000).await;
        drop(bus);
        drain(events).await
    }};
}

#[tokio::test(start_paused = true)]
async fn the_last_sixteen_are_received_after_the_loss() {
    for (received, missed, ended) in [
        sixteen_of_a_thousand!(pub_sub(), Overflow::DropOldest(16)),
        sixteen_of_a_thousand!(durable(), Overflow::DropOldest(16)),
    ] {
        assert_eq!(received, (984..1000).collect::<Vec<_>>());
        assert_eq!(missed, [(0, 984)]);
        assert!(matches!(ended, Some(BusError::Closed)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_sixteen_are_received_before_the_loss() {
    for (received, missed, ended) in [
        sixteen_of_a_thousand!(pub_sub(), Overflow::DropNewest(16)),
        sixteen_of_a_thousand!(durable(), Overflow::DropNewest(16)),
    ] {
        assert_eq!(received, (0..16).collect::<Vec<_>>());
        assert_eq!(missed, [(16, 984)]);
        assert!(matches!(ended, Some(BusError::Closed)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_is_disconnected_after_the_waiting_events() {
    for (received, missed, ended) in [
        sixteen_of_a_thousand!(pub_sub(), Overflow::Disconnect(16)),
        sixteen_of_a_thousand!(durable(), Overflow::Disconnect(16)),
    ] {
        assert_eq!(received, (0..16).collect::<Vec<_>>());
        assert!(missed.is_empty());
        assert!(matches!(ended, Some(BusError::SlowConsumer)));
    }
}

async fn blocking_loses_nothing(bus: impl EventBus + Clone) {
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let total = 4 * Overflow::BLOCK_CAPACITY;
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let bus = bus.clone();
            tokio::spawn(async move { send(&bus, total).await })
        })
        .collect();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(publishers.iter().all(|publisher| !publisher.is_finished()), "they wait for room");
    let mut sum = 0;
    for _ in 0..2 * total {
        sum += number(&received(&mut events).await);
    }
    assert_eq!(sum, total * (total - 1));
}

#[tokio::test(start_paused = true)]
async fn publishers_wait_and_nothing_is_lost() {
    blocking_loses_nothing(pub_sub()).await;
    blocking_loses_nothing(durable()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_subscriber_stores_what_it_has_room_for() {
    let bus = pub_sub();
    let events = bus.subscribe(all(), Overflow::DropOldest(64)).await.unwrap();
    let large = Event::new("case.published", "suite", "x".repeat(1024)).unwrap();
    for _ in 0..50_000 {
        bus.publish(large.clone()).await.unwrap();
    }
    drop(bus);
    let signals: Vec<Signal> = events.collect().await;
    assert_eq!(signals.len(), 65);
    assert!(matches!(signals[0], Signal::Lagged(49_936)));
}

#[tokio::test(start_paused = true)]
async fn room_for_no_event_is_refused() {
    for overflow in [Overflow::DropOldest(0), Overflow::DropNewest(0), Overflow::Disconnect(0)] {
        let refused = pub_sub().subscribe(all(), overflow).await;
        assert!(
            matches!(refused, Err(BusError::InvalidSetting { source }) if source.setting() == "overflow")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_are_in_flight_than_allowed() {
    let bus = durable();
    let eight = ConsumeOptions { max_in_flight: 8, ..options() };
    let mut consumer = bus.consume(GROUP, all(), eight).await.unwrap();
    send(&bus, 200).await;
    let (ack, mut acks) = unbounded_channel::<Delivery>();
    let acker = tokio::spawn(async move {
        while let Some(delivery) = acks.recv().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
            delivery.ack().await.unwrap();
        }
    });
    let mut high = 0;
    for _ in 0..200 {
        ack.send(delivered(&mut consumer).await).unwrap();
        high = high.max(unsettled(&bus).await.0);
    }
    drop(ack);
    acker.await.unwrap();
    assert_eq!(high, 8);
}

#[tokio::test(start_paused = true)]
async fn a_next_that_is_dropped_takes_nothing() {
    let bus = durable();
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let mut consumer = consumer(&bus).await;
    let (mut seen, mut consumed) = (0, 0);
    for round in 0..10_000 {
        // An event waits in some rounds only. In the others the future is dropped.
        if round % 3 == 0 {
            bus.publish(event(round / 3)).await.unwrap();
        }
        if let Some(Some(Signal::Event(event))) = events.next().now_or_never() {
            assert_eq!(number(&event), seen);
            seen += 1;
        }
        tokio::select! {
            biased;
            arrival = consumer.next() => match arrival {
                Some(Ok(delivery)) => {
                    assert_eq!(number(delivery.event()), consumed);
                    consumed += 1;
                    delivery.ack().await.unwrap();
                }
                other => panic!("no delivery but {other:?}"),
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!((seen, consumed), (3334, 3334));
}
