//! Settling deliveries.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{BrokerFault, Subject, fixture::*};
use crate::{
    bus::{BusError, Capability, ConsumeOptions, DurableBus, FailedAttempt, Nack},
    conformance::support::{eventually, in_time},
};

pub(super) async fn case_11_one_in_flight_delays_the_second_until_the_ack(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(ConsumeOptions { max_in_flight: 1, ..options(LONG) }).await;
    place.publish_numbers(1..3).await;
    let first = delivered(&mut consumer).await;
    nothing(&mut consumer, Duration::from_millis(100)).await;
    let number_of_first = number(first.event());
    first.ack().await.expect("the delivery is acknowledged");
    assert_eq!(number_of_first + number(delivered(&mut consumer).await.event()), 3, "the other one comes");
}

pub(super) async fn case_12_an_acked_event_is_not_delivered_again(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut first = place.consumer(options(LEASE)).await;
    place.publish_numbers(1..2).await;
    delivered(&mut first).await.ack().await.expect("the delivery is acknowledged");
    drop(first);
    nothing(&mut place.consumer(options(LEASE)).await, 2 * LEASE).await;
}

pub(super) async fn case_14_a_retry_waits_for_its_delay_and_delays_no_other_event(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(options(LONG)).await;
    place.publish_numbers(1..3).await;
    let delay = Duration::from_millis(500);
    let (first, nacked) = (delivered(&mut consumer).await, Instant::now());
    let number_of_first = number(first.event());
    let refused = first.nack(Nack::retry_after(delay)).await;
    if !place.claims(Capability::DelayedNack) {
        return assert_unsupported(Capability::DelayedNack, refused);
    }
    refused.expect("the delivery is refused");
    let other = delivered(&mut consumer).await;
    assert_eq!(number_of_first + number(other.event()), 3, "another event is not delayed");
    let again = delivered(&mut consumer).await;
    assert_eq!((number(again.event()), again.attempt()), (number_of_first, 2));
    assert!(nacked.elapsed() >= delay, "it is not early: {:?}", nacked.elapsed());
}

pub(super) async fn case_15_attempts_count_over_nack_crash_and_reclaim(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let counts = place.claims(Capability::AttemptCounts);
    let attempt = |number| if counts { number } else { 1 };
    let mut consumer = place.consumer(options(LEASE)).await;
    place.publish_numbers(1..2).await;
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), 1);
    delivery.nack(Nack::retry()).await.expect("the delivery is refused");
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), attempt(2), "a nack is an attempt");
    drop(delivery);
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), attempt(3), "an expired lease is an attempt");
    delivery.release().await.expect("the delivery is released");
    let delivery = delivered(&mut consumer).await;
    assert_eq!(delivery.attempt(), attempt(3), "a release is none");
    delivery.ack().await.expect("the delivery is acknowledged");
}

pub(super) async fn case_16_the_last_attempt_makes_a_dead_letter(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(ConsumeOptions { max_attempts: 3, ..options(LEASE) }).await;
    let sent = place.event(1);
    place.publish(sent.clone()).await;
    for round in 1..=3 {
        let delivery = delivered(&mut consumer).await;
        // The second is lost, not refused.
        if round != 2 {
            let nack = Nack::retry().with_reason(format!("reason {round}"));
            delivery.nack(nack).await.expect("the delivery is refused");
        }
    }
    if !place.claims(Capability::AttemptCounts) {
        assert_eq!(number(delivered(&mut consumer).await.event()), 1, "no attempt is the last");
        return;
    }
    nothing(&mut consumer, 2 * LEASE).await;
    let dead = place.dead_letters().await;
    assert_eq!((dead.len(), dead[0].attempts), (1, 3), "after three deliveries it is a dead letter");
    assert_eq!(dead[0].event.as_ref().map(|event| event.id()).ok(), Some(sent.id()));
    assert!(!dead[0].reason.is_empty(), "a dead letter has a reason");
    let history = &dead[0].history;
    let reasons: Vec<_> = history.iter().map(|failed| failed.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["reason 1", FailedAttempt::LEASE_EXPIRED, "reason 3"],
        "each attempt has its reason, in order"
    );
    let name = consumer.name();
    assert!(!name.is_empty() && history.iter().all(|failed| failed.consumer == name), "{name}: {history:?}");
    assert!(history.is_sorted_by_key(|failed| failed.at), "{history:?}");
    let lost = history[2].at.duration_since(history[1].at);
    assert!(lost >= LEASE.try_into().expect("a short time"), "by the clock of the bus: {lost:?}");
    place.settled().await;
}

pub(super) async fn case_17_a_dropped_event_ends_and_a_dead_letter_needs_no_attempts(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(options(LEASE)).await;
    place.publish_numbers(1..2).await;
    delivered(&mut consumer).await.nack(Nack::Drop).await.expect("the event is dropped");
    place.publish_numbers(2..3).await;
    let bad = delivered(&mut consumer).await;
    bad.nack(Nack::dead_letter("malformed")).await.expect("the event becomes a dead letter");
    nothing(&mut consumer, 2 * LEASE).await;
    let dead = place.dead_letters().await;
    assert_eq!(dead.len(), 1, "a dropped event is no dead letter");
    assert_eq!(dead[0].event.as_ref().map(number).ok(), Some(2));
    assert_eq!((dead[0].attempts, &*dead[0].reason), (1, "malformed"));
    if place.claims(Capability::AttemptCounts) {
        let history: Vec<_> = dead[0].history.iter().map(|failed| &*failed.reason).collect();
        assert_eq!(history, ["malformed"], "its only attempt");
    }
}

pub(super) async fn case_18_garbage_is_a_dead_letter_and_delays_no_event(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(options(LONG)).await;
    let (channel, bytes) = (format!("events:{}:published", place.entity), b"\xff\0 no event");
    if !subject.broker(BrokerFault::Garbage { channel: &channel, bytes }).await {
        return no_broker(subject).await;
    }
    place.publish_numbers(1..2).await;
    let good = delivered(&mut consumer).await;
    assert_eq!(number(good.event()), 1, "the good one is delivered");
    good.ack().await.expect("the delivery is acknowledged");
    let dead = eventually("the garbage is a dead letter", async || place.dead_letters().await.pop()).await;
    assert_eq!(dead.event.as_ref().err().map(|bytes| &bytes[..]), Some(&bytes[..]), "with its bytes");
    let replayed = place.bus.replay(&place.group, &dead.entry).await;
    assert!(matches!(replayed, Err(BusError::UnknownDeadLetter { .. })), "it is no event: {replayed:?}");
    place.settled().await;
}

pub(super) async fn case_20_a_replayed_dead_letter_is_the_same_event_at_attempt_1(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(options(LONG)).await;
    let expiring = SECOND * 2;
    for number in 0..3 {
        let event = place.event(number);
        let at = jiff::Timestamp::now() + expiring;
        place.publish(if number == 2 { event.with_expires_at(at) } else { event }).await;
        let delivery = delivered(&mut consumer).await;
        delivery.nack(Nack::dead_letter("bad")).await.expect("the event becomes a dead letter");
    }
    let dead = place.dead_letters().await;
    let ids: Vec<_> = dead.iter().filter_map(|letter| letter.event.as_ref().ok()).map(number).collect();
    assert_eq!(ids, [0, 1, 2], "dead letters are listed oldest first");
    place.bus.replay(&place.group, &dead[0].entry).await.expect("it is replayed");
    let again = delivered(&mut consumer).await;
    assert_eq!((Ok(again.event()), again.attempt()), (dead[0].event.as_ref(), 1));
    again.ack().await.expect("the delivery is acknowledged");
    assert_eq!(place.dead_letters().await, dead[1..], "it is no dead letter any more");
    let after = place.bus.dead_letters(&place.group, Some(&dead[1].entry), 10).await;
    assert_eq!(after.expect("dead letters are read"), dead[2..], "a page begins after its entry");
    for gone in [dead[0].entry.as_str(), "nonsense"] {
        let refused = place.bus.replay(&place.group, gone).await;
        assert!(
            matches!(&refused, Err(BusError::UnknownDeadLetter { entry }) if entry == gone),
            "there is no such dead letter: {refused:?}"
        );
    }
    sleep(2 * expiring).await;
    match place.bus.replay(&place.group, &dead[2].entry).await {
        Ok(()) => {
            let again = delivered(&mut consumer).await;
            assert_eq!(
                (number(again.event()), again.event().expires_at()),
                (2, None),
                "its expiry is lifted"
            );
            again.ack().await.expect("the delivery is acknowledged");
        }
        Err(_) => assert_eq!(place.dead_letters().await.len(), 2, "one that is refused is not lost"),
    }
}

pub(super) async fn case_21_a_killed_consumers_event_is_at_a_peer_after_the_lease(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let (mut doomed, mut peer) = (place.consumer(options(LEASE)).await, place.consumer(options(LEASE)).await);
    let published = Instant::now();
    place.publish_numbers(1..2).await;
    // Whichever gets it is the one that dies.
    let held = tokio::select! {
        held = delivered(&mut doomed) => { drop(doomed); held }
        held = delivered(&mut peer) => { drop(peer); peer = doomed; held }
    };
    drop(held);
    let again = delivered(&mut peer).await;
    assert!(published.elapsed() >= LEASE, "not before the lease expires: {:?}", published.elapsed());
    assert_eq!(again.attempt(), if place.claims(Capability::AttemptCounts) { 2 } else { 1 });
    again.ack().await.expect("the delivery is acknowledged");
    place.settled().await;
}

pub(super) async fn case_23_a_stale_owner_has_lost_its_lease_and_the_new_one_has_not(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut slow = place.consumer(options(LEASE)).await;
    place.publish_numbers(1..2).await;
    let stale = delivered(&mut slow).await;
    let mut peer = place.consumer(options(LONG)).await;
    let fresh = delivered(&mut peer).await;
    let extended = stale.extend(LEASE).await;
    if place.claims(Capability::LeaseExtension) {
        assert!(matches!(extended, Err(BusError::LeaseLost { .. })), "it cannot extend: {extended:?}");
    } else {
        assert_unsupported(Capability::LeaseExtension, extended);
    }
    let id = stale.event().id().to_owned();
    let acked = stale.ack().await;
    if place.claims(Capability::FencedSettling) {
        assert!(
            matches!(&acked, Err(BusError::LeaseLost { event_id }) if *event_id == id),
            "the stale owner has lost its lease: {acked:?}"
        );
    }
    fresh.ack().await.expect("the new owner has not");
    place.settled().await;
}

pub(super) async fn case_24_the_events_of_a_dead_consumer_are_delivered_to_a_peer(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut dying = place.consumer(options(LEASE)).await;
    place.publish_numbers(0..5).await;
    for _ in 0..5 {
        drop(delivered(&mut dying).await);
    }
    drop(dying);
    let mut peer = place.consumer(options(LONG)).await;
    let mut numbers = Vec::new();
    for _ in 0..5 {
        let delivery = delivered(&mut peer).await;
        numbers.push(number(delivery.event()));
        delivery.ack().await.expect("the delivery is acknowledged");
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4], "none of them is lost");
    place.settled().await;
    drop(peer);
    eventually("a dead consumer is no member", async || {
        // A bus may not count its members.
        (place.status().await.members <= 1).then_some(())
    })
    .await;
}

pub(super) async fn case_26_an_ack_that_races_the_close_holds(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    for round in 0..200 {
        let mut consumer = place.consumer(options(LONG)).await;
        place.publish(place.event(round)).await;
        let delivery = delivered(&mut consumer).await;
        assert_eq!((number(delivery.event()), delivery.attempt()), (round, 1), "no event is delivered again");
        let (acked, closed) = tokio::join!(
            tokio::spawn(delivery.ack()),
            tokio::spawn(async move { in_time("a close", consumer.close()).await.map(|()| consumer) }),
        );
        acked.expect("no panic").expect("the delivery is acknowledged");
        let mut consumer = closed.expect("no panic").expect("the consumer is closed");
        assert!(consumer.next().await.is_none(), "a closed consumer has ended");
        consumer.close().await.expect("a second close has no effect");
        place.settled().await;
    }
}
