//! Settling deliveries.

use octollm_core::bus::{BusError, ConsumeOptions, EventBus, Nack};
use tokio::time::{Instant, advance};

use crate::*;

async fn one_in_flight_delays_the_second(bus: impl DurableBus) {
    let one = ConsumeOptions { max_in_flight: 1, ..options() };
    let mut consumer = consumer_with(&bus, one).await;
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    let first = delivered(&mut consumer).await;
    nothing(&mut consumer, Duration::from_millis(100)).await;
    first.ack().await.unwrap();
    assert_eq!(number(delivered(&mut consumer).await.event()), 2);
}

#[tokio::test(start_paused = true)]
async fn one_in_flight_delays_the_second_until_the_ack() {
    one_in_flight_delays_the_second(durable()).await;
    one_in_flight_delays_the_second(plain()).await;
}

async fn acked_is_not_delivered_again(bus: impl DurableBus) {
    let mut first = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    delivered(&mut first).await.ack().await.unwrap();
    drop(first);
    nothing(&mut consumer(&bus).await, 2 * LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn an_acked_event_is_not_delivered_again() {
    acked_is_not_delivered_again(durable()).await;
    acked_is_not_delivered_again(plain()).await;
}

async fn a_retry_waits_for_its_delay(bus: impl DurableBus) {
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    let delay = Duration::from_millis(500);
    let nacked = Instant::now();
    let refused = delivered(&mut consumer).await.nack(Nack::retry_after(delay)).await;
    if !bus.capabilities().contains(&Capability::DelayedNack) {
        assert!(matches!(refused, Err(BusError::Unsupported { capability: Capability::DelayedNack })));
        return;
    }
    refused.unwrap();
    let other = delivered(&mut consumer).await;
    assert_eq!((number(other.event()), nacked.elapsed()), (2, Duration::ZERO));
    let again = delivered(&mut consumer).await;
    assert_eq!((number(again.event()), again.attempt()), (1, 2));
    assert!(nacked.elapsed() >= delay && nacked.elapsed() < 2 * delay);
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_its_delay_and_delays_no_other_event() {
    a_retry_waits_for_its_delay(durable()).await;
    a_retry_waits_for_its_delay(plain()).await;
}

async fn attempts_count(bus: impl DurableBus) {
    let counts = bus.capabilities().contains(&Capability::AttemptCounts);
    let attempt = |number| if counts { number } else { 1 };
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), 1);
    delivery.nack(Nack::retry()).await.unwrap();
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), attempt(2));
    drop(delivery);
    let delivery = delivered_within(&mut consumer, LEASE + SECOND).await;
    assert_eq!(delivery.attempt(), attempt(3));
    delivery.release().await.unwrap();
    assert_eq!(delivered(&mut consumer).await.attempt(), attempt(3), "a released attempt does not count");
}

#[tokio::test(start_paused = true)]
async fn attempts_count_over_nack_crash_and_reclaim() {
    attempts_count(durable()).await;
    attempts_count(plain()).await;
}

async fn the_last_attempt(bus: impl DurableBus) {
    let three = ConsumeOptions { max_attempts: 3, ..options() };
    let mut consumer = consumer_with(&bus, three).await;
    let sent = event(1);
    bus.publish(sent.clone()).await.unwrap();
    for round in 1..=3 {
        let delivery = delivered_within(&mut consumer, LEASE + SECOND).await;
        // The second is lost, not refused.
        if round != 2 {
            delivery.nack(Nack::retry()).await.unwrap();
        }
    }
    if !bus.capabilities().contains(&Capability::AttemptCounts) {
        assert_eq!(number(delivered(&mut consumer).await.event()), 1, "no attempt is the last");
        return;
    }
    nothing(&mut consumer, 2 * LEASE).await;
    let dead = dead_letters(&bus).await;
    assert_eq!((dead.len(), dead[0].attempts), (1, 3));
    assert_eq!(dead[0].event.as_ref().unwrap().id(), sent.id());
    assert!(!dead[0].reason.is_empty());
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_attempt_makes_a_dead_letter() {
    the_last_attempt(durable()).await;
    the_last_attempt(plain()).await;
}

async fn drop_and_dead_letter(bus: impl DurableBus) {
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::Drop).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::dead_letter("malformed")).await.unwrap();
    nothing(&mut consumer, 2 * LEASE).await;
    let dead = dead_letters(&bus).await;
    assert_eq!(dead.len(), 1);
    let (number, reason) = (number(dead[0].event.as_ref().unwrap()), dead[0].reason.as_str());
    assert_eq!((number, dead[0].attempts, reason), (2, 1, "malformed"));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_event_ends_and_a_dead_letter_needs_no_attempts() {
    drop_and_dead_letter(durable()).await;
    drop_and_dead_letter(plain()).await;
}

async fn replayed(bus: impl DurableBus) {
    let mut consumer = consumer(&bus).await;
    for number in 0..2 {
        bus.publish(event(number)).await.unwrap();
        delivered(&mut consumer).await.nack(Nack::dead_letter("bad")).await.unwrap();
    }
    let dead = dead_letters(&bus).await;
    bus.replay(GROUP, &dead[0].entry).await.unwrap();
    let again = delivered(&mut consumer).await;
    assert_eq!((again.event().id(), again.attempt()), (dead[0].event.as_ref().unwrap().id(), 1));
    assert_eq!(dead_letters(&bus).await, dead[1..]);
    assert_eq!(bus.dead_letters(GROUP, Some(&dead[1].entry), 10).await.unwrap(), []);
    for gone in [dead[0].entry.as_str(), "nonsense"] {
        let refused = bus.replay(GROUP, gone).await;
        assert!(matches!(refused, Err(BusError::UnknownDeadLetter { entry }) if entry == gone));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replayed_dead_letter_is_the_same_event_at_attempt_1() {
    replayed(durable()).await;
    replayed(plain()).await;
}

async fn a_killed_consumer(bus: impl DurableBus) {
    let (mut doomed, mut peer) = (consumer(&bus).await, consumer(&bus).await);
    bus.publish(event(1)).await.unwrap();
    let task = tokio::spawn(async move {
        let _held = delivered(&mut doomed).await;
        std::future::pending::<()>().await;
    });
    tokio::task::yield_now().await;
    let taken = Instant::now();
    task.abort();
    delivered_within(&mut peer, LEASE + SECOND).await.ack().await.unwrap();
    assert!(taken.elapsed() >= LEASE);
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_killed_consumers_event_is_at_a_peer_after_the_lease() {
    a_killed_consumer(durable()).await;
    a_killed_consumer(plain()).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_cut_short_wakes_the_peer_that_waits_for_its_end() {
    let bus = durable();
    let (mut first, mut peer) = (consumer(&bus).await, consumer(&bus).await);
    bus.publish(event(1)).await.unwrap();
    let delivery = delivered(&mut first).await;
    let waiting = tokio::spawn(async move { delivered_within(&mut peer, 2 * SECOND).await.attempt() });
    tokio::task::yield_now().await;
    delivery.extend(SECOND).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 2);
}

async fn a_stale_owner(bus: impl DurableBus) {
    let (mut slow, mut peer) = (consumer(&bus).await, consumer(&bus).await);
    bus.publish(event(1)).await.unwrap();
    let stale = delivered(&mut slow).await;
    advance(LEASE).await;
    let fresh = delivered(&mut peer).await;
    let extended = stale.extend(LEASE).await;
    if bus.capabilities().contains(&Capability::LeaseExtension) {
        assert!(matches!(extended, Err(BusError::LeaseLost { .. })));
    } else {
        assert!(matches!(extended, Err(BusError::Unsupported { capability: Capability::LeaseExtension })));
    }
    let id = stale.event().id().to_owned();
    let acked = stale.ack().await;
    if bus.capabilities().contains(&Capability::FencedSettling) {
        assert!(matches!(acked, Err(BusError::LeaseLost { event_id }) if event_id == id));
    } else {
        acked.unwrap();
    }
    fresh.ack().await.unwrap();
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stale_owner_has_lost_its_lease_and_the_new_one_has_not() {
    a_stale_owner(durable()).await;
    a_stale_owner(plain()).await;
}

async fn a_late_ack(bus: impl DurableBus) {
    let mut slow = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let late = delivered(&mut slow).await;
    advance(2 * LEASE).await;
    late.ack().await.unwrap();
    nothing(&mut slow, 2 * LEASE).await;
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_ack_after_the_lease_holds_while_nobody_else_has_the_event() {
    a_late_ack(durable()).await;
    a_late_ack(plain()).await;
}

async fn a_dead_consumer(bus: impl DurableBus) {
    let mut dying = consumer(&bus).await;
    for number in 0..5 {
        bus.publish(event(number)).await.unwrap();
        drop(delivered(&mut dying).await);
    }
    drop(dying);
    assert_eq!(group(&bus).await.pending, 5);
    let mut peer = consumer(&bus).await;
    for expected in 0..5 {
        let delivery = delivered_within(&mut peer, LEASE + SECOND).await;
        assert_eq!(number(delivery.event()), expected);
        delivery.ack().await.unwrap();
    }
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_events_of_a_dropped_consumer_are_delivered_to_a_peer() {
    a_dead_consumer(durable()).await;
    a_dead_consumer(plain()).await;
    let bus = durable();
    drop(consumer(&bus).await);
    assert_eq!(group(&bus).await.members, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_that_races_the_close_holds() {
    let bus = durable();
    for round in 0..1000 {
        let mut consumer = consumer(&bus).await;
        bus.publish(event(round)).await.unwrap();
        let delivery = match consumer.next().await {
            Some(Ok(delivery)) => delivery,
            other => panic!("no delivery but {other:?}"),
        };
        assert_eq!((number(delivery.event()), delivery.attempt()), (round, 1));
        let (acked, closed) = tokio::join!(
            tokio::spawn(delivery.ack()),
            tokio::spawn(async move { consumer.close().await.map(|()| consumer) }),
        );
        acked.unwrap().unwrap();
        assert!(closed.unwrap().unwrap().next().await.is_none());
        assert_eq!(unsettled(&bus).await, (0, 0));
    }
}
