//! Subscribers that block their publishers.

use futures_util::FutureExt;
use octollm_core::bus::{EventBus, MemoryBus, MemoryDurableBus, Overflow};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep};

use crate::*;

/// The default block timeout.
const TIMEOUT: Duration = Duration::from_secs(5);
const CAPACITY: usize = Overflow::BLOCK_CAPACITY;

async fn publish_from(bus: &impl EventBus, numbers: std::ops::Range<usize>) {
    for number in numbers {
        bus.publish(event(number)).await.unwrap();
    }
}

/// Asserts that these numbers wait, and then this loss.
async fn hold_backlog(events: &mut Subscription, numbers: std::ops::Range<usize>, lost: u64) {
    for number in numbers {
        assert_eq!(crate::number(&received(events).await), number);
    }
    match events.next().now_or_never() {
        Some(Some(Signal::Lagged(missed))) => assert_eq!(missed, lost),
        other => panic!("no loss but {other:?}"),
    }
}

async fn one_stalled_beside_one_healthy(bus: impl EventBus) {
    let mut stalled = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let mut healthy = bus.subscribe(all(), Overflow::DropOldest(2 * CAPACITY)).await.unwrap();
    publish_from(&bus, 0..CAPACITY).await;
    let start = Instant::now();
    publish_from(&bus, CAPACITY..CAPACITY + 360).await;
    assert_eq!(start.elapsed(), TIMEOUT, "the publisher waits for one event only");
    for number in 0..CAPACITY + 360 {
        assert_eq!(crate::number(&received(&mut healthy).await), number);
    }
    hold_backlog(&mut stalled, 0..CAPACITY, 360).await;
    publish_from(&bus, 7..8).await;
    assert_eq!(number(&received(&mut stalled).await), 7, "it is waited for again");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_subscriber_costs_the_others_nothing_and_its_publishers_one_timeout() {
    one_stalled_beside_one_healthy(pub_sub()).await;
    one_stalled_beside_one_healthy(durable()).await;
}

async fn publishers_that_give_up(bus: impl EventBus) {
    let mut stalled = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let mut healthy = bus.subscribe(all(), Overflow::DropOldest(2 * CAPACITY)).await.unwrap();
    publish_from(&bus, 0..CAPACITY).await;
    for number in CAPACITY..CAPACITY + 3 {
        assert!(timeout(SECOND, bus.publish(event(number))).await.is_err(), "it waits for room");
    }
    for number in 0..CAPACITY + 3 {
        assert_eq!(crate::number(&received(&mut healthy).await), number);
    }
    hold_backlog(&mut stalled, 0..CAPACITY, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_gives_up_is_a_loss_of_the_blocked_subscriber_only() {
    publishers_that_give_up(pub_sub()).await;
    publishers_that_give_up(durable()).await;
}

#[tokio::test(start_paused = true)]
async fn several_stalled_subscribers_are_waited_for_together() {
    let bus = pub_sub();
    let mut stalled = Vec::new();
    for _ in 0..5 {
        stalled.push(bus.subscribe(all(), Overflow::Block).await.unwrap());
    }
    publish_from(&bus, 0..CAPACITY).await;
    let start = Instant::now();
    publish_from(&bus, CAPACITY..CAPACITY + 1).await;
    assert_eq!(start.elapsed(), TIMEOUT);
    for events in &mut stalled {
        hold_backlog(events, 0..CAPACITY, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_loses_nothing_while_it_takes_one_now_and_then() {
    let bus = pub_sub();
    let mut slow = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let publisher = tokio::spawn({
        let bus = bus.clone();
        async move { publish_from(&bus, 0..CAPACITY + 20).await }
    });
    for number in 0..CAPACITY + 20 {
        sleep(TIMEOUT - SECOND).await;
        assert_eq!(crate::number(&received(&mut slow).await), number);
    }
    publisher.await.unwrap();
    assert!(slow.next().now_or_never().is_none(), "no loss is reported");
}

#[tokio::test(start_paused = true)]
async fn publishers_that_wait_come_in_turn() {
    let bus = pub_sub();
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    publish_from(&bus, 0..CAPACITY).await;
    let mut waiting = Vec::new();
    for number in CAPACITY..CAPACITY + 10 {
        let bus = bus.clone();
        waiting.push(tokio::spawn(async move { bus.publish(event(number)).await.unwrap() }));
        tokio::task::yield_now().await;
    }
    let (mut next, mut lost) = (0, 0);
    while next < CAPACITY + 10 {
        match events.next().await {
            Some(Signal::Event(event)) => assert_eq!(number(&event), next),
            Some(Signal::Lagged(missed)) => {
                lost += missed;
                continue;
            }
            other => panic!("no event but {other:?}"),
        }
        next += 1;
        // A later publisher does not overtake one that waits.
        if next <= 5 {
            assert!(bus.publish(event(0)).now_or_never().is_none());
        }
    }
    assert_eq!(lost, 5);
}

#[tokio::test(start_paused = true)]
async fn the_block_timeout_is_a_setting() {
    let limited = Duration::from_millis(20);
    let bus = MemoryBus::with_limits(1024, limited).unwrap();
    let durable = MemoryDurableBus::builder().block_timeout(Duration::ZERO).build().unwrap();
    let mut stalled = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let mut stalled_too = durable.subscribe(all(), Overflow::Block).await.unwrap();
    let start = Instant::now();
    publish_from(&durable, 0..CAPACITY + 5).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    hold_backlog(&mut stalled_too, 0..CAPACITY, 5).await;
    publish_from(&bus, 0..CAPACITY + 5).await;
    assert_eq!(start.elapsed(), limited);
    hold_backlog(&mut stalled, 0..CAPACITY, 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_goes_frees_the_publishers_it_blocks() {
    let bus = pub_sub();
    let events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    publish_from(&bus, 0..CAPACITY).await;
    let publisher = tokio::spawn({
        let bus = bus.clone();
        async move { publish_from(&bus, 0..CAPACITY).await }
    });
    tokio::task::yield_now().await;
    assert!(!publisher.is_finished());
    let start = Instant::now();
    drop(events);
    publisher.await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_any_race_what_is_received_and_what_is_lost_are_all() {
    let bus = MemoryBus::with_limits(1024, Duration::from_millis(1)).unwrap();
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let subscriber = tokio::spawn(async move {
        let (mut received, mut lost) = (0, 0);
        while let Some(signal) = events.next().await {
            match signal {
                Signal::Event(_) => received += 1,
                Signal::Lagged(missed) => lost += missed,
                Signal::Gap(gap) => panic!("no gap was made, but there is {gap:?}"),
            }
            // At times its publishers reach the block timeout.
            if received % 4096 == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        (received, lost)
    });
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let bus = bus.clone();
            tokio::spawn(async move {
                for number in 0..20_000 {
                    if number % 7 == publisher {
                        // Dropped at once if it has to wait for room.
                        let _ = unconstrained(bus.publish(event(number))).now_or_never();
                    } else {
                        bus.publish(event(number)).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    bus.close();
    let (received, lost): (u64, u64) = subscriber.await.unwrap();
    assert_eq!(received + lost, 4 * 20_000);
}
