//! The parts for authors of a bus.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::FutureExt;
use octollm_core::bus::engine::{ConsumerEngine, Feed, deliver};
use octollm_core::bus::{BusError, EventBus, Gap, Nack, Overflow};

use crate::*;

fn pair(overflow: Overflow) -> (Feed, Subscription) {
    Feed::new(overflow, SECOND).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_received_where_it_was_marked() {
    let (feed, mut subscription) = pair(Overflow::DropOldest(4));
    assert!(feed.send(&event(0)).await);
    feed.gap(Gap::ConnectionLost);
    assert!(feed.send(&event(1)).await);
    assert_eq!(number(&received(&mut subscription).await), 0);
    let Some(Signal::Gap(gap)) = subscription.next().await else { panic!("it was marked") };
    assert_eq!(gap, Gap::ConnectionLost);
    assert_eq!(number(&received(&mut subscription).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_feed_ends_after_the_waiting_events_with_its_first_reason() {
    let (feed, mut subscription) = pair(Overflow::DropOldest(4));
    feed.send(&event(0)).await;
    feed.end(BusError::Unavailable { source: None });
    assert!(!feed.send(&event(1)).await);
    drop(feed);
    assert_eq!(number(&received(&mut subscription).await), 0);
    assert!(subscription.next().await.is_none());
    assert!(matches!(subscription.ended(), Some(BusError::Unavailable { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_feed_reports_that_its_subscriber_was_dropped() {
    let (feed, subscription) = pair(Overflow::DropOldest(4));
    assert!(feed.closed().now_or_never().is_none());
    let (_, ()) = tokio::join!(feed.closed(), async { drop(subscription) });
    assert!(feed.is_closed());
    assert!(!feed.send(&event(0)).await);
}

/// Sends an event that has room.
fn send(feed: &Feed, event: &Event) {
    assert_eq!(feed.send(event).now_or_never(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_frees_its_publisher_and_reports_no_loss() {
    let (feed, mut subscription) = pair(Overflow::Block);
    for number in 0..Overflow::BLOCK_CAPACITY {
        send(&feed, &event(number));
    }
    let (other, mut healthy) = pair(Overflow::DropOldest(4));
    let sent = event(1);
    let (open, ()) = tokio::join!(deliver([&feed, &other], &sent), async {
        assert_eq!(number(&received(&mut healthy).await), 1, "the others have it before the publisher waits");
        feed.end(BusError::Closed);
    });
    assert!(!open);
    for number in 0..Overflow::BLOCK_CAPACITY {
        assert_eq!(crate::number(&received(&mut subscription).await), number);
    }
    assert!(subscription.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_expired_event_leaves_its_room_to_the_next() {
    let (feed, mut subscription) = pair(Overflow::Block);
    let soon = jiff::Timestamp::now() + SECOND / 2;
    send(&feed, &event(0));
    for number in 1..Overflow::BLOCK_CAPACITY {
        send(&feed, &event(number).with_expires_at(soon));
    }
    let next = event(7);
    let mut waiting = std::pin::pin!(feed.send(&next));
    assert!(waiting.as_mut().now_or_never().is_none(), "there is no room");
    tokio::time::advance(SECOND / 2).await;
    let (open, ()) = tokio::join!(waiting, async {
        assert_eq!(number(&received(&mut subscription).await), 0);
        assert_eq!(number(&received(&mut subscription).await), 7);
    });
    assert!(open);
    // All room is free again, and not more than there was.
    for number in 0..Overflow::BLOCK_CAPACITY {
        send(&feed, &event(number));
    }
    assert!(feed.send(&event(8)).now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn settlements_go_in_batches() {
    let bus = plain();
    let many = ConsumeOptions { max_in_flight: 100, ..options() };
    let mut consumer = consumer_with(&bus, many).await;
    let mut deliveries = Vec::new();
    for number in 0..100 {
        bus.publish(event(number)).await.unwrap();
        deliveries.push(delivered(&mut consumer).await);
    }
    let results = Delivery::ack_all(deliveries).await;
    assert!(results.len() == 100 && results.iter().all(Result::is_ok));
    assert_eq!(bus.batches(GROUP), [64, 36]);
    assert_eq!(unsettled(&bus).await, (0, 0));
    bus.publish(event(0)).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
    assert_eq!(bus.batches(GROUP), [64, 36, 1], "a single one does not wait for others");
}

/// Delivers 0, 1, .. with these numbers as receipts. Settles even ones, and returns no result for 4.
#[derive(Default)]
struct Odd(AtomicU64);

#[async_trait]
impl ConsumerEngine for Odd {
    type Receipt = u64;

    async fn next(&self) -> Result<Result<(Event, u32, u64), Gap>, BusError> {
        Ok(Ok((event(0), 1, self.0.fetch_add(1, Ordering::Relaxed))))
    }

    async fn settle(&self, batch: Vec<(u64, Result<(), Nack>)>) -> Vec<Result<(), BusError>> {
        let lost = |number: u64| Err(BusError::LeaseLost { event_id: number.to_string() });
        let result = |(number, _)| if number % 2 == 0 { Ok(()) } else { lost(number) };
        batch.into_iter().filter(|(number, _)| *number != 4).map(result).collect()
    }

    async fn extend(&self, batch: Vec<(u64, Duration)>) -> Vec<Result<(), BusError>> {
        batch.into_iter().map(|_| Ok(())).collect()
    }

    async fn close(&self) -> Result<(), BusError> {
        Ok(())
    }

    fn leave(&self) {}
}

#[tokio::test(start_paused = true)]
async fn each_settlement_gets_its_own_result() {
    let direct = Consumer::new(Odd::default(), SECOND);
    for mut consumer in [direct, Consumer::batched(Odd::default(), SECOND, 8).unwrap()] {
        let mut deliveries = Vec::new();
        for _ in 0..5 {
            deliveries.push(delivered(&mut consumer).await);
        }
        deliveries[0].extend(SECOND).await.unwrap();
        let results = Delivery::ack_all(deliveries).await;
        let kinds: Vec<_> = results
            .iter()
            .map(|result| match result {
                Ok(()) => "ok",
                Err(BusError::LeaseLost { .. }) => "lost",
                Err(BusError::Unavailable { .. }) => "unavailable",
                Err(_) => "other",
            })
            .collect();
        assert_eq!(kinds, ["ok", "lost", "ok", "lost", "unavailable"]);
    }
    let refused = Consumer::batched(Odd::default(), SECOND, 0);
    assert!(matches!(refused, Err(BusError::InvalidSetting { source }) if source.setting() == "max_batch"));
}

#[test]
fn a_consumer_that_settles_in_batches_needs_a_runtime() {
    let refused = Consumer::batched(Odd::default(), SECOND, 8);
    assert!(matches!(refused, Err(BusError::Unavailable { source: Some(_) })));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_settlement_does_not_affect_its_batch() {
    let bus = plain();
    let mut consumer = consumer(&bus).await;
    for number in 0..2 {
        bus.publish(event(number)).await.unwrap();
    }
    let (first, second) = (delivered(&mut consumer).await, delivered(&mut consumer).await);
    let mut dropped = Box::pin(first.ack());
    assert!(dropped.as_mut().now_or_never().is_none());
    let second = tokio::spawn(second.ack());
    tokio::task::yield_now().await;
    drop(dropped);
    second.await.unwrap().unwrap();
    assert_eq!(unsettled(&bus).await, (0, 0));
}
