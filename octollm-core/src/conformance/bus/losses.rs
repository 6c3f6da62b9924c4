//! What a broker loses although it was not settled.

use std::collections::HashSet;

use tokio::time::{Instant, sleep, timeout};

use super::{BrokerFault, Subject, faults::publish_at_last, fixture::*};
use crate::{
    bus::{BusError, Consumer, DurableBus, Gap},
    conformance::support::WAIT,
    event::Event,
};

/// The gaps of a consumer and the numbers of its events, which are acknowledged, until `ended` says so.
async fn until(
    consumer: &mut Consumer,
    ended: impl Fn(&[Gap], &HashSet<usize>) -> bool,
) -> (Vec<Gap>, HashSet<usize>) {
    let (mut gaps, mut numbers) = (Vec::new(), HashSet::new());
    let end = Instant::now() + WAIT;
    while !ended(&gaps, &numbers) {
        match timeout(end.saturating_duration_since(Instant::now()), consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                numbers.insert(number(delivery.event()));
                // A delivery from before the loss cannot be acknowledged on every bus.
                if let Err(error) = delivery.ack().await {
                    assert!(matches!(error, BusError::LeaseLost { .. }), "{error:?}");
                }
            }
            Ok(Some(Err(gap))) => gaps.push(gap),
            other => panic!("the consumer goes on after {gaps:?} and {numbers:?}, and not {other:?}"),
        }
    }
    (gaps, numbers)
}

/// Asserts that nothing more comes, but for few gaps: what was lost is not reported for ever.
async fn quiet(consumer: &mut Consumer, mut gaps: usize) {
    let end = Instant::now() + 2 * LEASE + SECOND;
    while let Ok(next) = timeout(end.saturating_duration_since(Instant::now()), consumer.next()).await {
        assert!(matches!(next, Some(Err(_))), "nothing is delivered again, and not {next:?}");
        gaps += 1;
        assert!(gaps <= 5, "a loss is reported once");
    }
}

pub(super) async fn case_35_what_is_deleted_before_it_is_settled_is_a_gap(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(options(LEASE)).await;
    let sent: Vec<Event> = (0..5).map(|number| place.event(number)).collect();
    for event in &sent {
        place.publish(event.clone()).await;
    }
    // One is delivered and not settled.
    drop(delivered(&mut consumer).await);
    if !subject.broker(BrokerFault::Trim { channel: sent[0].channel().as_str() }).await {
        // What is not settled is never deleted.
        until(&mut consumer, |_, numbers| numbers.len() == sent.len()).await;
        return place.settled().await;
    }
    place.publish(place.event(5)).await;
    let (gaps, _) = until(&mut consumer, |gaps, numbers| !gaps.is_empty() && numbers.contains(&5)).await;
    for gap in &gaps {
        let Gap::Trimmed { event_ids } = gap else { panic!("events were deleted, and not {gap:?}") };
        let known = |id: &String| sent.iter().any(|event| event.id() == id);
        assert!(event_ids.iter().all(known), "the ids are those of deleted events: {event_ids:?}");
    }
    quiet(&mut consumer, gaps.len()).await;
    place.settled().await;
    place.publish(place.event(6)).await;
    let next = delivered(&mut consumer).await;
    assert_eq!((number(next.event()), next.attempt()), (6, 1), "the group goes on");
    next.ack().await.expect("the delivery is acknowledged");
}

pub(super) async fn case_36_a_group_that_is_gone_is_created_again_after_a_gap(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(options(LEASE)).await;
    place.publish_numbers(0..3).await;
    let stale = delivered(&mut consumer).await;
    if !subject.broker(BrokerFault::Empty).await {
        return removed(&place, consumer).await;
    }
    publish_at_last(&place, place.event(3)).await;
    let recreated = |gaps: &[Gap]| gaps.contains(&Gap::GroupRecreated);
    let (gaps, numbers) = until(&mut consumer, |gaps, numbers| recreated(gaps) && numbers.contains(&3)).await;
    assert!(gaps.len() <= 3, "the loss is reported once: {gaps:?}");
    assert!(numbers.iter().all(|number| *number <= 3), "{numbers:?}");
    let settled = stale.ack().await;
    assert!(matches!(settled, Err(BusError::LeaseLost { .. })), "it is of the group before: {settled:?}");
    quiet(&mut consumer, gaps.len()).await;
    place.settled().await;
    place.publish(place.event(4)).await;
    let next = delivered(&mut consumer).await;
    assert_eq!((number(next.event()), next.attempt()), (4, 1), "the group goes on");
    next.ack().await.expect("the delivery is acknowledged");
    place.settled().await;
}

/// A group that goes only where somebody removes it: its consumers end, and the next one begins with the next event.
async fn removed(place: &Place<dyn DurableBus>, mut consumer: Consumer) {
    assert!(place.bus.remove_group(&place.group).await.expect("the group is removed"));
    while let Some(next) = timeout(WAIT, consumer.next()).await.expect("the consumer ends") {
        assert!(next.is_ok(), "{next:?}");
    }
    let ended = consumer.ended();
    assert!(matches!(ended, Some(BusError::UnknownGroup { .. })), "it ends by its reason: {ended:?}");
    assert!(!place.bus.remove_group(&place.group).await.expect("the bus is available"));
    let mut consumer = place.consumer(options(LONG)).await;
    place.publish(place.event(3)).await;
    let next = delivered(&mut consumer).await;
    assert_eq!((number(next.event()), next.attempt()), (3, 1), "a new group begins with the next event");
    next.ack().await.expect("the delivery is acknowledged");
    sleep(SECOND / 2).await;
    place.settled().await;
}
