//! What authors of a bus build on.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::FutureExt;
use octollm_core::bus::engine::{Counters, Expiry, Feed, Offer, Settle, Settlement, Settler, deliver};
use octollm_core::bus::{BusError, Ended, EventBus, Gap, GapReason, Overflow};
use tokio::time::Instant;

use crate::*;

fn pair(overflow: Overflow) -> (Feed, Subscription) {
    Feed::new(overflow, SECOND, Arc::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_received_where_it_was_marked() {
    let (feed, mut subscription) = pair(Overflow::DropOldest(4));
    assert!(feed.send(&event(0)).await);
    feed.gap(Gap::new(GapReason::ConnectionLost));
    assert!(feed.send(&event(1)).await);
    assert_eq!(number(&heard(&mut subscription).await), 0);
    let Some(Signal::Gap(gap)) = subscription.next().await else { panic!("it was marked") };
    assert_eq!(gap.reason, GapReason::ConnectionLost);
    assert_eq!(number(&heard(&mut subscription).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_ends_it_after_what_waits_and_stays_its_reason() {
    let (feed, mut subscription) = pair(Overflow::DropOldest(4));
    feed.send(&event(0)).await;
    feed.end(Ended::Failed(Arc::new(BusError::Closed)));
    assert!(!feed.send(&event(1)).await);
    drop(feed);
    assert_eq!(number(&heard(&mut subscription).await), 0);
    assert!(subscription.next().await.is_none());
    assert!(matches!(subscription.ended(), Some(Ended::Failed(_))));
}

#[tokio::test(start_paused = true)]
async fn whoever_feeds_learns_that_the_subscriber_went() {
    let (feed, subscription) = pair(Overflow::DropOldest(4));
    assert!(feed.closed().now_or_never().is_none());
    let (_, ()) = tokio::join!(feed.closed(), async { drop(subscription) });
    assert!(feed.is_closed());
    assert!(!feed.send(&event(0)).await);
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_frees_its_publisher_and_counts_no_loss() {
    let counters = Arc::new(Counters::default());
    let (feed, _subscription) = Feed::new(Overflow::Block, SECOND, Arc::clone(&counters)).unwrap();
    for number in 0..Overflow::BLOCK_CAPACITY {
        assert!(matches!(feed.offer(&event(number), Expiry::Never), Offer::Passed));
    }
    let (other, mut healthy) = pair(Overflow::DropOldest(4));
    let (sent, one) = (event(1), [&feed, &other]);
    let (goes_on, ()) = tokio::join!(deliver(one, &sent, Expiry::Never), async {
        assert_eq!(number(&heard(&mut healthy).await), 1, "the others have it before anybody waits");
        feed.end(Ended::Closed);
    });
    assert!(!goes_on);
    assert_eq!(counters.counts().lagged, 0);
}

#[tokio::test(start_paused = true)]
async fn what_expired_leaves_its_place_to_the_next() {
    let (feed, mut subscription) = pair(Overflow::Block);
    let soon = Expiry::At(Instant::now() + SECOND / 2);
    for number in 0..Overflow::BLOCK_CAPACITY {
        let expiry = if number == 0 { Expiry::Never } else { soon };
        assert!(matches!(feed.offer(&event(number), expiry), Offer::Passed));
    }
    let Offer::Blocked(waiting) = feed.offer(&event(7), Expiry::Never) else { panic!("there is no room") };
    tokio::time::advance(SECOND / 2).await;
    let (goes_on, ()) = tokio::join!(waiting.wait(), async {
        assert_eq!(number(&heard(&mut subscription).await), 0);
        assert_eq!(number(&heard(&mut subscription).await), 7);
    });
    assert!(goes_on);
    // All places are free again, and none more than there were.
    for number in 0..Overflow::BLOCK_CAPACITY {
        assert!(matches!(feed.offer(&event(number), Expiry::Never), Offer::Passed));
    }
    assert!(matches!(feed.offer(&event(8), Expiry::Never), Offer::Blocked(_)));
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
    assert_eq!(owed(&bus).await, (0, 0));
    bus.publish(event(0)).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
    assert_eq!(bus.batches(GROUP), [64, 36, 1], "one that is alone waits for no other");
}

/// Denies odd numbers, and forgets to answer for 4.
#[derive(Default)]
struct Odd(Mutex<Vec<u64>>);

#[async_trait]
impl Settle for Odd {
    type Lease = u64;

    async fn settle(&self, batch: Vec<(u64, Settlement)>) -> Vec<Result<(), BusError>> {
        self.0.lock().unwrap().extend(batch.iter().map(|(number, _)| *number));
        let lost = |number: u64| Err(BusError::LeaseLost { event_id: number.to_string() });
        let result = |(number, _)| if number % 2 == 0 { Ok(()) } else { lost(number) };
        batch.into_iter().filter(|(number, _)| *number != 4).map(result).collect()
    }

    async fn extend(&self, batch: Vec<(u64, Duration)>) -> Vec<Result<(), BusError>> {
        batch.into_iter().map(|_| Ok(())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn each_settlement_gets_its_own_result() {
    for settler in [Settler::direct(Odd::default()), Settler::batched(Odd::default(), 8).unwrap()] {
        let deliveries: Vec<_> = (0..5).map(|number| settler.delivery(event(0), 1, SECOND, number)).collect();
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
    assert!(matches!(Settler::batched(Odd::default(), 0), Err(BusError::InvalidSetting { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_was_dropped_costs_the_others_of_its_batch_nothing() {
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
    assert_eq!(owed(&bus).await, (0, 0));
}
