//! Brokers that go away, and subscribers that are slow.

use std::{collections::HashSet, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{BrokerFault, Subject, fixture::*};
use crate::{
    bus::{BusError, Capability, ConsumeOptions, Delivery, EventBus, Gap, Overflow, Signal, Subscription},
    conformance::support::{WAIT, at_once},
    event::Event,
};

/// Publishes until the bus takes the event.
pub(super) async fn publish_at_last<B: EventBus + ?Sized>(place: &Place<B>, event: Event) {
    let end = Instant::now() + WAIT;
    loop {
        match place.bus.publish(event.clone()).await {
            Ok(()) => return,
            Err(error) if error.retryable() && Instant::now() < end => sleep(SECOND / 50).await,
            Err(error) => panic!("a broker that is away is an error that passes, not {error:?}"),
        }
    }
}

/// The signals of a subscription until this event: the numbers of the gaps, and the events.
async fn until(events: &mut Subscription, last: &Event) -> (usize, Vec<Event>) {
    let (mut gaps, mut seen) = (0, Vec::new());
    loop {
        match timeout(WAIT, events.next()).await {
            Ok(Some(Signal::Event(event))) => {
                seen.push(event);
                if seen.last() == Some(last) {
                    return (gaps, seen);
                }
            }
            Ok(Some(Signal::Gap(_))) => gaps += 1,
            other => panic!("the subscription goes on until the last event, and not {other:?}"),
        }
    }
}

/// Has the broker be away meanwhile. Returns whether there is one.
async fn away(subject: &Subject, time: Duration) -> bool {
    if !subject.broker(BrokerFault::Kill).await {
        return false;
    }
    sleep(time).await;
    assert!(subject.broker(BrokerFault::Start).await, "the broker is started again");
    true
}

/// Publishes markers until the subscription receives one. Returns the number of gaps before it: until the bus has
/// subscribed again, nothing is received.
async fn found_again(place: &Place<dyn EventBus>, events: &mut Subscription, marker: &str) -> usize {
    let publishing = async {
        loop {
            publish_at_last(place, place.event(marker)).await;
            sleep(SECOND / 5).await;
        }
    };
    let receiving = async {
        let mut gaps = 0;
        loop {
            match timeout(WAIT, events.next()).await {
                Ok(Some(Signal::Gap(_))) => gaps += 1,
                Ok(Some(Signal::Event(event))) if event.data() == marker => return gaps,
                Ok(Some(Signal::Event(_))) => {}
                other => panic!("the subscription is found again, and not {other:?}"),
            }
        }
    };
    tokio::select! {
        gaps = receiving => gaps,
        () = publishing => unreachable!("publishing goes on"),
    }
}

/// A subscriber and a group over these outages, with events before, between and after.
async fn over_outages(subject: &Subject, outages: &[Duration]) {
    let (place, group) = (live(subject).await, durable(subject).await);
    let mut events = place.subscribe(Overflow::DropOldest(1 << 20)).await;
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
    let mut sent = Vec::new();
    for (number, outage) in outages.iter().enumerate() {
        for step in 0..1_000 {
            let event = place.event(number * 1_000 + step);
            publish_at_last(&place, event.clone()).await;
            sent.push(event);
        }
        if !away(subject, *outage).await {
            assert_eq!(number, 0, "a broker that restarts once does it again");
            return no_broker(subject).await;
        }
        let gaps = found_again(&place, &mut events, &format!("after {number}")).await;
        assert_eq!(gaps, 1, "outage {number} is one gap");
    }
    let Some(consumer) = &mut consumer else { return };
    let mut missing: HashSet<_> = sent.iter().map(|event| event.id().to_owned()).collect();
    while !missing.is_empty() {
        match timeout(WAIT, consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                missing.remove(delivery.event().id());
                // One that fails is delivered again.
                let _ = delivery.ack().await;
            }
            Ok(Some(Err(Gap::ConnectionLost))) => {}
            other => panic!("{} events are missing, and not {other:?}", missing.len()),
        }
    }
}

pub(super) async fn case_27_a_broker_that_restarts_loses_nothing_or_reports_a_gap(subject: &Subject) {
    over_outages(subject, &[SECOND / 2, SECOND / 2]).await;
}

pub(super) async fn case_28_a_broker_that_is_away_for_long_is_found_again(subject: &Subject) {
    over_outages(subject, &[30 * SECOND]).await;
}

pub(super) async fn case_29_publishing_while_the_broker_is_away_is_an_error_in_time(subject: &Subject) {
    let place = live(subject).await;
    place.publish_numbers(0..1).await;
    if !subject.broker(BrokerFault::Kill).await {
        return no_broker(subject).await;
    }
    let asked = Instant::now();
    let refused = timeout(WAIT, place.bus.publish(place.event(1))).await;
    assert!(
        matches!(refused, Ok(Err(BusError::Unavailable { .. }))),
        "it is unavailable, not {refused:?}, after {:?}",
        asked.elapsed()
    );
    assert!(subject.broker(BrokerFault::Start).await, "the broker is started again");
    publish_at_last(&place, place.event(2)).await;
}

pub(super) async fn case_30_a_broker_that_is_stopped_is_a_gap(subject: &Subject) {
    let place = live(subject).await;
    let mut events = place.subscribe(Overflow::Block).await;
    if !subject.broker(BrokerFault::Stop).await {
        return no_broker(subject).await;
    }
    let signal = timeout(WAIT, events.next()).await;
    assert!(matches!(signal, Ok(Some(Signal::Gap(_)))), "silence is a gap, not {signal:?}");
    assert!(subject.broker(BrokerFault::Continue).await, "the broker is continued");
    publish_at_last(&place, place.event(1)).await;
}

pub(super) async fn case_31_a_closed_connection_is_one_gap(subject: &Subject) {
    let place = live(subject).await;
    let mut events = place.subscribe(Overflow::Block).await;
    if !subject.broker(BrokerFault::Disconnect).await {
        return no_broker(subject).await;
    }
    let signal = timeout(WAIT, events.next()).await;
    assert!(matches!(signal, Ok(Some(Signal::Gap(_)))), "a lost connection is a gap, not {signal:?}");
    let last = place.event(1);
    publish_at_last(&place, last.clone()).await;
    assert_eq!(until(&mut events, &last).await.0, 0, "and one alone");
}

const SENT: usize = 1_000;

/// The numbers of the events and of the losses, in their order, and the reason of the end.
async fn accounted(events: &mut Subscription) -> (Vec<usize>, Vec<(usize, u64)>, Option<BusError>) {
    let (mut received, mut lost) = (Vec::new(), Vec::new());
    let count = |received: &[usize], lost: &[(usize, u64)]| {
        received.len() as u64 + lost.iter().map(|(_, missed)| missed).sum::<u64>()
    };
    while count(&received, &lost) < SENT as u64 {
        match timeout(WAIT, events.next()).await {
            Ok(Some(Signal::Event(event))) => received.push(number(&event)),
            Ok(Some(Signal::Lagged(missed))) => lost.push((received.len(), missed)),
            Ok(None) => return (received, lost, events.ended()),
            other => panic!("an event or a loss follows, and not {other:?}"),
        }
    }
    (received, lost, None)
}

pub(super) async fn case_32_what_is_received_and_what_is_lost_are_all(subject: &Subject) {
    let place = live(subject).await;
    let mut oldest = place.subscribe(Overflow::DropOldest(16)).await;
    let mut newest = place.subscribe(Overflow::DropNewest(16)).await;
    let mut disconnected = place.subscribe(Overflow::Disconnect(16)).await;
    let mut all = place.subscribe(Overflow::DropOldest(2 * SENT)).await;
    let mut blocking = place.subscribe(Overflow::Block).await;
    place.publish_numbers(0..SENT).await;
    for expected in 0..SENT {
        assert_eq!(number(&received(&mut all).await), expected, "one with room loses nothing");
    }
    // The others have them at the same time, more or less.
    sleep(SECOND / 2).await;
    let (received, lost, _) = accounted(&mut oldest).await;
    assert_eq!(
        (received, lost),
        ((SENT - 16..SENT).collect(), vec![(0, 984)]),
        "the last ones, after the loss"
    );
    let (received, lost, _) = accounted(&mut newest).await;
    assert_eq!((received, lost), ((0..16).collect(), vec![(16, 984)]), "the first ones, before the loss");
    let (received, lost, ended) = accounted(&mut disconnected).await;
    assert_eq!((received, lost), ((0..16).collect(), vec![]), "the first ones, and then the end");
    assert!(matches!(ended, Some(BusError::SlowConsumer)), "it was too slow: {ended:?}");
    let (received, lost, _) = accounted(&mut blocking).await;
    assert_eq!(
        (received, lost),
        ((0..SENT).collect(), vec![]),
        "one that blocks its publishers loses nothing"
    );
}

pub(super) async fn case_33_a_stalled_subscriber_stores_what_it_has_room_for(subject: &Subject) {
    const EVENTS: u64 = 20_000;
    let place = live(subject).await;
    let mut stalled = place.subscribe(Overflow::DropOldest(64)).await;
    let mut prompt = place.subscribe(Overflow::DropOldest(64)).await;
    let publishers = (0..4).map(|_| {
        let place = place.clone();
        async move {
            let large = "x".repeat(1_024);
            for _ in 0..EVENTS / 4 {
                place.publish(place.event(large.clone())).await;
            }
        }
    });
    at_once(publishers).await;
    // Once another subscriber has all, so has this one.
    let mut seen = 0;
    while seen < EVENTS {
        match timeout(WAIT, prompt.next()).await {
            Ok(Some(Signal::Event(_))) => seen += 1,
            Ok(Some(Signal::Lagged(missed))) => seen += missed,
            other => panic!("an event follows, and not {other:?}"),
        }
    }
    sleep(SECOND / 10).await;
    let first = timeout(WAIT, stalled.next()).await;
    let Ok(Some(Signal::Lagged(mut lost))) = first else { panic!("the loss comes first, and not {first:?}") };
    let mut received = 0;
    while received + lost < EVENTS {
        match timeout(WAIT, stalled.next()).await {
            Ok(Some(Signal::Event(_))) => received += 1,
            Ok(Some(Signal::Lagged(missed))) => lost += missed,
            other => panic!("an event follows, and not {other:?}"),
        }
    }
    assert!((1..=64).contains(&received), "it has stored at most 64 events, not {received}");
}

pub(super) async fn case_34_no_more_are_in_flight_than_allowed(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let mut consumer = place.consumer(ConsumeOptions { max_in_flight: 8, ..options(LONG) }).await;
    place.publish_numbers(0..100).await;
    let mut held: Vec<Delivery> = Vec::new();
    let mut handled = 0;
    while handled < 100 {
        while held.len() < 8.min(100 - handled) {
            held.push(delivered(&mut consumer).await);
        }
        if handled == 0 {
            nothing(&mut consumer, Duration::from_millis(200)).await;
        }
        let pending = place.status().await.pending;
        assert!(pending <= 8, "{pending} are in flight");
        handled += 1;
        held.swap_remove(0).ack().await.expect("the delivery is acknowledged");
    }
    place.settled().await;
}

pub(super) async fn case_37_what_was_published_survives_a_killed_broker(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    if !place.claims(Capability::Persistence) {
        return;
    }
    let mut consumer = place.consumer(options(LEASE)).await;
    let sent = place.event(1);
    place.publish(sent.clone()).await;
    if !away(subject, SECOND / 2).await {
        return no_broker(subject).await;
    }
    loop {
        match timeout(WAIT, consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                assert_eq!(delivery.event(), &sent, "it is there");
                return;
            }
            Ok(Some(Err(_))) => {}
            other => panic!("it is there, and not {other:?}"),
        }
    }
}
