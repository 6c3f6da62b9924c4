//! Publishing: batches, expiry, delays; and what a bus claims.

use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{Subject, delivery, fixture::*, settling, workers};
use crate::{
    bus::{BusError, DurableBus, EventBus, Nack, Overflow, Signal},
    event::Event,
};

pub(super) async fn case_38_a_batch_returns_results_by_index(subject: &Subject) {
    let place = live(subject).await;
    let mut events = place.subscribe(Overflow::Block).await;
    let mut batch: Vec<Event> = (0..100).map(|number| place.event(number)).collect();
    batch[42] = place.event("x".repeat(place.bus.max_event_bytes()));
    let results = place.bus.publish_all(batch).await;
    assert_eq!(results.len(), 100, "each event has a result");
    for (index, result) in results.iter().enumerate() {
        match result {
            Ok(()) => {
                assert_eq!(number(&received(&mut events).await), index, "the others are delivered, in order")
            }
            Err(error) => {
                assert!(index == 42 && matches!(error, BusError::TooLarge { .. }), "{index}: {error:?}");
            }
        }
    }
    assert!(results[42].is_err(), "the one that is too large is not published");
    assert!(place.bus.publish_all(Vec::new()).await.is_empty());
}

pub(super) async fn case_40_expired_events_are_counted_and_not_delivered(subject: &Subject) {
    let place = live(subject).await;
    // Also where tokio's clock is paused: an author of events has the time of day alone.
    let at = |time: Duration| Timestamp::now() + time;
    let past: Timestamp = "2000-01-01T00:00:00Z".parse().expect("a valid time");
    let mut events = place.subscribe(Overflow::Block).await;
    place.publish(place.event(0).with_expires_at(past)).await;
    place.publish(place.event(1).with_expires_at(at(SECOND))).await;
    place.publish(place.event(2).with_expires_at(at(600 * SECOND))).await;
    sleep(2 * SECOND).await;
    assert_eq!(number(&received(&mut events).await), 2, "those that have expired are not received");
    assert_eq!(events.expired(), 2, "they are counted");
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(options(LONG)).await;
    place.publish(place.event(1).with_expires_at(at(SECOND)).with_partition_key("k")).await;
    place.publish(place.event(2).with_partition_key("k")).await;
    sleep(2 * SECOND).await;
    let delivery = delivered(&mut consumer).await;
    assert_eq!(number(delivery.event()), 2, "one that has expired does not block its key");
    delivery.ack().await.expect("the delivery is acknowledged");
    place.settled().await;
    assert_eq!(place.status().await.expired, 1, "it is counted");
}

pub(super) async fn case_41_delayed_events_are_not_early_and_can_be_cancelled(subject: &Subject) {
    let Some(delay) = subject.delay().await else { return };
    let (place, group) = (live(subject).await, durable(subject).await);
    let mut events = place.subscribe(Overflow::Block).await;
    let mut consumer = match &group {
        Some(group) => Some(
            group
                .bus
                .consume(&group.group, place.pattern(), options(LONG))
                .await
                .expect("the bus takes a group"),
        ),
        None => None,
    };
    let (published, cancelled) = (place.event(1), place.event(2));
    let start = Instant::now();
    delay.publish_after(published.clone(), 2 * SECOND).await.expect("it is published later");
    delay.publish_after(cancelled.clone(), SECOND).await.expect("it is published later");
    assert!(
        delay.cancel_publish(cancelled.id()).await.expect("the bus is available"),
        "it waits, and is cancelled"
    );
    assert!(
        !delay.cancel_publish(cancelled.id()).await.expect("the bus is available"),
        "it does not wait any more"
    );
    assert_eq!(received(&mut events).await, published, "the other one alone is received");
    assert!(start.elapsed() >= 2 * SECOND, "it is not early: {:?}", start.elapsed());
    if let Some(consumer) = &mut consumer {
        let delivery = delivered(consumer).await;
        assert_eq!(delivery.event(), &published, "a group has it as well");
        delivery.ack().await.expect("the delivery is acknowledged");
    }
    let late = delay.cancel_publish(published.id()).await.expect("the bus is available");
    assert!(!late, "it was published");
}

pub(super) async fn case_42_a_next_that_is_dropped_takes_nothing(subject: &Subject) {
    const ROUNDS: usize = 10_000;
    let (place, group) = (live(subject).await, durable(subject).await);
    let mut events = place.subscribe(Overflow::Block).await;
    let mut consumer = match &group {
        Some(group) => Some(
            group
                .bus
                .consume(&group.group, place.pattern(), options(LONG))
                .await
                .expect("the bus takes a group"),
        ),
        None => None,
    };
    let (mut sent, mut seen, mut consumed) = (0, 0, 0);
    let mut round = 0;
    while seen < sent || (consumer.is_some() && consumed < sent) || round < ROUNDS {
        // An event waits in some rounds only. In the others the future is dropped.
        if round < ROUNDS && round % 10 == 0 {
            place.publish(place.event(sent)).await;
            sent += 1;
        }
        round += 1;
        assert!(round < 1_000 * ROUNDS, "received are {seen}, consumed {consumed} of {sent}");
        if let Some(Some(Signal::Event(event))) = events.next().now_or_never() {
            assert_eq!(number(&event), seen, "none is lost");
            seen += 1;
        }
        if let Some(consumer) = &mut consumer {
            tokio::select! {
                biased;
                arrival = consumer.next() => match arrival {
                    Some(Ok(delivery)) => {
                        assert_eq!(number(delivery.event()), consumed, "none is lost");
                        consumed += 1;
                        delivery.ack().await.expect("the delivery is acknowledged");
                    }
                    other => panic!("an event is delivered, and not {other:?}"),
                },
                () = tokio::task::yield_now() => {}
            }
        } else {
            tokio::task::yield_now().await;
        }
        if round >= ROUNDS {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(super) async fn case_43_trace_and_causation_reach_each_attempt(subject: &Subject) {
    let place = live(subject).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let parent = place.event(1).with_traceparent(trace).with_correlation_id("work-1");
    let child = place.event(2).caused_by(&parent);
    assert_eq!(child.causation_id(), Some(parent.id()), "the cause of an event is its parent");
    assert_eq!(child.correlation_id(), Some("work-1"), "which has the same work");
    let Some(place) = durable(subject).await else {
        let mut events = place.subscribe(Overflow::Block).await;
        place.publish(parent.clone()).await;
        return assert_eq!(received(&mut events).await.traceparent(), Some(trace));
    };
    let mut consumer = place.consumer(options(LONG)).await;
    let parent = place.event(1).with_traceparent(trace).with_correlation_id("work-1");
    place.publish(parent).await;
    for _ in 0..2 {
        let delivery = delivered(&mut consumer).await;
        let event = delivery.event();
        assert_eq!((event.traceparent(), event.correlation_id()), (Some(trace), Some("work-1")));
        delivery.nack(Nack::retry()).await.expect("the delivery is refused");
    }
    delivered(&mut consumer).await.ack().await.expect("the delivery is acknowledged");
}

pub(super) async fn case_51_each_capability_is_shown_or_denied(subject: &Subject) {
    let bus = subject.open().await;
    let claimed = bus.capabilities();
    for (index, capability) in claimed.iter().enumerate() {
        assert!(!claimed[..index].contains(capability), "{capability} is claimed once");
    }
    if let Some(durable) = subject.durable().await {
        assert_eq!(durable.capabilities(), claimed, "all handles of a bus claim the same");
    }
    // Each case asserts `Unsupported` where the bus denies the capability, and that it has it where it claims it.
    delivery::case_09_keys_stay_in_order(subject).await;
    delivery::case_10_a_new_group_reads_the_history(subject).await;
    settling::case_14_a_retry_waits_for_its_delay_and_delays_no_other_event(subject).await;
    settling::case_15_attempts_count_over_nack_crash_and_reclaim(subject).await;
    workers::case_22_a_handler_of_three_leases_runs_once(subject).await;
    settling::case_23_a_stale_owner_has_lost_its_lease_and_the_new_one_has_not(subject).await;
}

/// Events of version 1, as they are stored and sent.
const GOLDEN: [&str; 2] = [
    r#"{"event_type":"task.completed","timestamp":"2025-11-10T10:30:00Z","source":"orchestrator","data":{"task_id":"task_3fK9aZ0qLw81bXyT","duration_ms":1234}}"#,
    r#"{"event_type":"task.completed","timestamp":"2025-11-10T10:30:00.123456789Z","source":"orchestrator","data":{"list":[null,1.5],"text":"\u0000\"é"},"id":"019a6d2f-9c00-7000-8000-000000000001","specversion":"1.0","subject":"task_3fK9aZ0qLw81bXyT","correlation_id":"req-1","causation_id":"019a6d2f-9c00-7000-8000-000000000000","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","partition_key":"task_3fK9aZ0qLw81bXyT"}"#,
];

pub(super) async fn case_52_golden_events_arrive_as_they_are_read(subject: &Subject) {
    let place = live(subject).await;
    for golden in GOLDEN {
        let event = Event::from_json(golden.as_bytes()).expect("an event of version 1 is read");
        assert_eq!((event.event_type(), event.source()), ("task.completed", "orchestrator"));
        assert_eq!(event.channel().as_str(), "events:task:completed");
        let pattern = "events:task:completed".parse().expect("a valid pattern");
        let subscribed = place.bus.subscribe(pattern, Overflow::DropOldest(1 << 16)).await;
        let mut events = subscribed.expect("the bus takes a subscriber");
        place.publish(event.clone()).await;
        // Others may use the bus.
        while received(&mut events).await != event {}
    }
}
