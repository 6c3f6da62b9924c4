//! What becomes of a delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use octollm_core::bus::{BusError, ConsumeOptions, DeadLetter, EventBus, Gap, Handler, Nack};
use octollm_core::event::Event;
use tokio::time::{Instant, advance, sleep};

use crate::*;

const SECOND: Duration = Duration::from_secs(1);

async fn dead_letters(bus: &impl DurableBus) -> Vec<DeadLetter> {
    bus.dead_letters(GROUP, None, 100).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_in_flight_holds_the_second_back_until_the_ack() {
    let bus = durable();
    let one = ConsumeOptions { max_in_flight: 1, ..options() };
    let mut consumer = bus.consume(GROUP, all(), one).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    let first = delivered(&mut consumer).await;
    nothing(&mut consumer, Duration::from_millis(100)).await;
    first.ack().await.unwrap();
    assert_eq!(number(delivered(&mut consumer).await.event()), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_acked_never_comes_again() {
    let bus = durable();
    bus.publish(event(1)).await.unwrap();
    delivered(&mut consumer(&bus).await).await.ack().await.unwrap();
    nothing(&mut consumer(&bus).await, 2 * LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_rests_and_holds_nobody_up() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    let rest = Duration::from_millis(500);
    let nacked = Instant::now();
    delivered(&mut consumer).await.nack(Nack::retry_after(rest)).await.unwrap();
    let other = delivered(&mut consumer).await;
    assert_eq!((number(other.event()), nacked.elapsed()), (2, Duration::ZERO));
    let again = delivered(&mut consumer).await;
    assert_eq!((number(again.event()), again.attempt()), (1, 2));
    assert!(nacked.elapsed() >= rest && nacked.elapsed() < 2 * rest);
}

#[tokio::test(start_paused = true)]
async fn attempts_count_over_nack_crash_and_reclaim() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), 1);
    delivery.nack(Nack::retry()).await.unwrap();
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), 2);
    drop(delivery);
    let delivery = delivered_within(&mut consumer, LEASE + SECOND).await;
    assert_eq!(delivery.attempt(), 3);
    delivery.release().await.unwrap();
    assert_eq!(delivered(&mut consumer).await.attempt(), 3, "what was not begun does not count");
}

#[tokio::test(start_paused = true)]
async fn the_last_attempt_makes_a_dead_letter() {
    let bus = durable();
    let mut consumer =
        bus.consume(GROUP, all(), ConsumeOptions { max_attempts: 3, ..options() }).await.unwrap();
    let sent = event(1);
    bus.publish(sent.clone()).await.unwrap();
    for attempt in 1..=3 {
        let delivery = delivered_within(&mut consumer, LEASE + SECOND).await;
        assert_eq!(delivery.attempt(), attempt);
        // The second is lost, not refused.
        if attempt != 2 {
            delivery.nack(Nack::retry()).await.unwrap();
        }
    }
    nothing(&mut consumer, 2 * LEASE).await;
    let dead = dead_letters(&bus).await;
    assert_eq!((dead.len(), dead[0].attempts), (1, 3));
    assert_eq!(dead[0].event().unwrap().id(), sent.id());
    assert!(!dead[0].reason.is_empty());
    assert_eq!(owed(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn dropping_ends_it_and_a_dead_letter_needs_no_attempts() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::Drop).await.unwrap();
    delivered(&mut consumer).await.nack(Nack::dead_letter("malformed")).await.unwrap();
    nothing(&mut consumer, 2 * LEASE).await;
    let dead = dead_letters(&bus).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(
        (number(dead[0].event().unwrap()), dead[0].attempts, dead[0].reason.as_str()),
        (2, 1, "malformed")
    );
}

#[tokio::test(start_paused = true)]
async fn a_replayed_dead_letter_is_the_same_event_at_attempt_1() {
    let bus = durable();
    let mut consumer = consumer(&bus).await;
    for number in 0..2 {
        bus.publish(event(number)).await.unwrap();
        delivered(&mut consumer).await.nack(Nack::dead_letter("bad")).await.unwrap();
    }
    let dead = dead_letters(&bus).await;
    bus.replay(GROUP, &dead[0].entry).await.unwrap();
    let again = delivered(&mut consumer).await;
    assert_eq!((again.event().id(), again.attempt()), (dead[0].event().unwrap().id(), 1));
    assert_eq!(dead_letters(&bus).await, dead[1..]);
    assert_eq!(bus.dead_letters(GROUP, Some(&dead[1].entry), 10).await.unwrap(), []);
    for gone in [dead[0].entry.as_str(), "nonsense"] {
        let refused = bus.replay(GROUP, gone).await;
        assert!(matches!(refused, Err(BusError::UnknownDeadLetter { entry }) if entry == gone));
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_consumers_event_is_at_a_peer_after_the_lease() {
    let bus = durable();
    let (mut doomed, mut peer) = (consumer(&bus).await, consumer(&bus).await);
    bus.publish(event(1)).await.unwrap();
    let task = tokio::spawn(async move {
        let _held = delivered(&mut doomed).await;
        std::future::pending::<()>().await;
    });
    tokio::task::yield_now().await;
    let taken = Instant::now();
    task.abort();
    let delivery = delivered_within(&mut peer, LEASE + SECOND).await;
    assert_eq!((delivery.attempt(), taken.elapsed() >= LEASE), (2, true));
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

#[tokio::test(start_paused = true)]
async fn a_stale_owner_has_lost_its_lease_and_the_new_one_has_not() {
    let bus = durable();
    let (mut slow, mut peer) = (consumer(&bus).await, consumer(&bus).await);
    bus.publish(event(1)).await.unwrap();
    let stale = delivered(&mut slow).await;
    advance(LEASE).await;
    let fresh = delivered(&mut peer).await;
    assert!(matches!(stale.extend(LEASE).await, Err(BusError::LeaseLost { .. })));
    let id = stale.event().id().to_owned();
    assert!(matches!(stale.ack().await, Err(BusError::LeaseLost { event_id }) if event_id == id));
    fresh.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dead_consumer_is_cleaned_away_and_nothing_of_it_is_lost() {
    let bus = durable();
    let mut dying = consumer(&bus).await;
    for number in 0..5 {
        bus.publish(event(number)).await.unwrap();
        drop(delivered(&mut dying).await);
    }
    drop(dying);
    let status = bus.group(GROUP).await.unwrap();
    assert_eq!((status.members, status.pending), (0, 5));
    let mut peer = consumer(&bus).await;
    for expected in 0..5 {
        let delivery = delivered_within(&mut peer, LEASE + SECOND).await;
        assert_eq!((number(delivery.event()), delivery.attempt()), (expected, 2));
        delivery.ack().await.unwrap();
    }
    assert_eq!(owed(&bus).await, (0, 0));
}

/// Does as its events say.
#[derive(Clone, Default)]
struct Scripted {
    handled: Arc<AtomicU32>,
}

#[async_trait::async_trait]
impl Handler for Scripted {
    async fn handle(&self, event: Event, attempt: u32) -> Result<(), Nack> {
        self.handled.fetch_add(1, Ordering::Relaxed);
        match event.subject() {
            Some("panics first") if attempt == 1 => panic!("as told"),
            Some("fails first") if attempt == 1 => return Err(Nack::retry()),
            Some("is slow") => sleep(3 * LEASE).await,
            _ => {}
        }
        Ok(())
    }

    async fn gap(&self, _gap: Gap) {}
}

async fn handled(subject: &str, time: Duration) -> u32 {
    let bus = durable();
    let (consumer, handler) = (consumer(&bus).await, Scripted::default());
    let closer = consumer.closer();
    let worker = tokio::spawn(consumer.run(handler.clone()));
    bus.publish(event(1).with_subject(subject)).await.unwrap();
    sleep(time).await;
    closer.close().await.unwrap();
    worker.await.unwrap();
    assert_eq!(owed(&bus).await, (0, 0));
    assert!(dead_letters(&bus).await.is_empty());
    handler.handled.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_is_a_nack_and_the_worker_lives() {
    assert_eq!(handled("panics first", SECOND).await, 2);
    assert_eq!(handled("fails first", SECOND).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_three_leases_is_extended_and_runs_once() {
    assert_eq!(handled("is slow", SECOND).await, 1, "closing waits for what runs");
}

#[tokio::test(start_paused = true)]
async fn closing_lets_what_runs_end_and_a_peer_have_the_rest() {
    let bus = durable();
    let two = ConsumeOptions { max_in_flight: 2, ..options() };
    let consumer = bus.consume(GROUP, all(), two).await.unwrap();
    let closer = consumer.closer();
    let worker = tokio::spawn(consumer.run(Scripted::default()));
    for number in 0..5 {
        bus.publish(event(number).with_subject("is slow")).await.unwrap();
    }
    sleep(SECOND).await;
    let closing = tokio::spawn({
        let closer = closer.clone();
        async move { closer.close().await }
    });
    let mut peer = crate::consumer(&bus).await;
    for expected in 2..5 {
        let delivery = delivered(&mut peer).await;
        assert_eq!((number(delivery.event()), delivery.attempt()), (expected, 1));
        delivery.ack().await.unwrap();
    }
    closing.await.unwrap().unwrap();
    worker.await.unwrap();
    closer.close().await.unwrap();
    nothing(&mut peer, 2 * LEASE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_that_races_the_close_holds() {
    let bus = durable();
    for round in 0..1000 {
        let mut consumer = consumer(&bus).await;
        bus.publish(event(round)).await.unwrap();
        let delivery = match consumer.next().await {
            Some(Arrival::Delivery(delivery)) => delivery,
            other => panic!("no delivery but {other:?}"),
        };
        assert_eq!((number(delivery.event()), delivery.attempt()), (round, 1));
        let (acked, closed) = tokio::join!(
            tokio::spawn(delivery.ack()),
            tokio::spawn(async move { consumer.close().await.map(|()| consumer) }),
        );
        acked.unwrap().unwrap();
        assert!(closed.unwrap().unwrap().next().await.is_none());
        assert_eq!(owed(&bus).await, (0, 0));
    }
}
