//! Which events a subscriber and a group receive.

use std::collections::{HashMap, HashSet};

use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use super::{Subject, fixture::*};
use crate::{
    bus::{BusError, Capability, ConsumeOptions, DurableBus, EventBus, Overflow},
    conformance::support::{at_once, in_time},
    event::{Event, Pattern},
};

pub(super) async fn case_01_publishing_right_after_subscribe_loses_nothing(subject: &Subject) {
    let (place, other) = (live(subject).await, subject.open().await);
    for round in 0..1_000 {
        let mut events = place.subscribe(Overflow::Block).await;
        // The publisher may be another process.
        let bus = if round % 2 == 0 { &place.bus } else { &other };
        bus.publish(place.event(round)).await.expect("the event is published");
        assert_eq!(number(&received(&mut events).await), round);
    }
}

pub(super) async fn case_02_every_attribute_arrives_as_it_was(subject: &Subject) {
    let place = live(subject).await;
    let mut events = place.subscribe(Overflow::Block).await;
    let texts = [String::new(), "\0".to_owned(), "\u{fffd}\u{1f419}\r\n".to_owned(), "x".repeat(64 * 1024)];
    for text in texts {
        let bare = place.event(json!(text));
        let full = place
            .event(json!({ "text": text, "numbers": [0.1, -0.0, 1e300, u64::MAX, null] }))
            .with_subject("s \u{5d0}")
            .with_correlation_id("c")
            .with_causation_id("p")
            .with_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .with_partition_key("k \"'\u{1f419}")
            .with_expires_at("9999-01-01T00:00:00.123456789Z".parse().expect("a valid time"));
        for sent in [bare, full] {
            place.publish(sent.clone()).await;
            let received = received(&mut events).await;
            assert_eq!(received, sent);
            assert!(received.attributes().eq(sent.attributes()), "each attribute is as it was");
        }
    }
}

pub(super) async fn case_03_what_is_too_large_is_refused_whole(subject: &Subject) {
    let place = live(subject).await;
    let limit = place.bus.max_event_bytes();
    let mut events = place.subscribe(Overflow::Block).await;
    let sized = |bytes: usize| place.event("x".repeat(bytes - place.event("").size()));
    let refused = place.bus.publish(sized(limit + 1)).await;
    assert!(
        matches!(refused, Err(BusError::TooLarge { size, limit: of }) if (size, of) == (limit + 1, limit)),
        "one byte above the limit is too large: {refused:?}"
    );
    place.publish(sized(limit)).await;
    assert_eq!(received(&mut events).await.size(), limit, "nothing was delivered before it");
}

pub(super) async fn case_04_twenty_channels_at_once_get_their_own(subject: &Subject) {
    let place = live(subject).await;
    let places: Vec<_> = (0..20).map(|_| place.elsewhere()).collect();
    let mut subscriptions = Vec::new();
    for place in &places {
        subscriptions.push(place.subscribe(Overflow::Block).await);
    }
    at_once(places.iter().enumerate().map(|(channel, place)| {
        let place = place.clone();
        async move { place.publish_numbers(channel * 100..channel * 100 + 100).await }
    }))
    .await;
    for (channel, events) in subscriptions.iter_mut().enumerate() {
        for expected in channel * 100..channel * 100 + 100 {
            assert_eq!(number(&received(events).await), expected, "channel {channel} has its own events");
        }
    }
}

pub(super) async fn case_05_fifty_publishers_and_fifty_members_miss_and_repeat_nothing(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let (seen, mut reports) = unbounded_channel();
    let mut members = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (mut consumer, seen) = (place.consumer(options(LONG)).await, seen.clone());
        members.spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let report = (delivery.event().id().to_owned(), delivery.attempt());
                delivery.ack().await.expect("the delivery is acknowledged");
                let _ = seen.send(report);
            }
        });
    }
    let published = at_once((0..50).map(|publisher| {
        let place = place.clone();
        async move {
            let events: Vec<_> = (0..100).map(|step| place.event(publisher * 100 + step)).collect();
            let ids: Vec<_> = events.iter().map(|event| event.id().to_owned()).collect();
            let results = place.bus.publish_all(events).await;
            assert!(results.iter().all(Result::is_ok), "all events are published");
            ids
        }
    }))
    .await;
    let mut sent: HashSet<_> = published.into_iter().flatten().collect();
    while !sent.is_empty() {
        let (id, attempt) = in_time("the next event", reports.recv()).await.expect("members report");
        assert!(sent.remove(&id), "{id} is delivered once");
        assert_eq!(attempt, 1);
    }
    place.settled().await;
}

/// Pattern, channel, and whether it matches; `None` where the pattern is not valid. `#` is an entity of the case.
const VERDICTS: [(&str, &str, Option<bool>); 30] = [
    ("events:#:completed", "events:#:completed", Some(true)),
    ("events:#:completed", "events:#:failed", Some(false)),
    ("events:#:completed", "events:#x:completed", Some(false)),
    ("events:#:completed", "audit:#:completed", Some(false)),
    ("events:#:complete", "events:#:completed", Some(false)),
    ("events:#:completed", "events:#:complete", Some(false)),
    ("events:#:*", "events:#:completed", Some(true)),
    ("events:#:*", "events:#:x", Some(true)),
    ("events:#:*", "events:#x:completed", Some(false)),
    ("events:*:a#", "events:task:a#", Some(true)),
    ("events:*:a#", "events:arm:a#", Some(true)),
    ("events:*:a#", "events:task:b#", Some(false)),
    ("*:#:completed", "audit:#:completed", Some(true)),
    ("*:#:completed", "audit:#x:completed", Some(false)),
    ("d#:*:*", "d#:arm:registered", Some(true)),
    ("d#:*:*", "e#:arm:registered", Some(false)),
    ("*:*:a#", "audit:arm:a#", Some(true)),
    ("*:#:*", "audit:#:registered", Some(true)),
    ("*:*:*", "a:b:#", Some(true)),
    ("a-b:c_#:0", "a-b:c_#:0", Some(true)),
    ("a-b:c_#:0", "a-b:c-#:0", Some(false)),
    ("events:#:comp*", "events:#:completed", None),
    ("events:#:**", "events:#:completed", None),
    ("events:#:complete?", "events:#:completed", None),
    ("events:#:[a-z]", "events:#:a", None),
    ("events:*", "events:#:completed", None),
    ("*", "events:#:completed", None),
    ("events:#:completed:*", "events:#:completed", None),
    ("Events:#:*", "events:#:completed", None),
    ("events: #:*", "events:#:completed", None),
];

pub(super) async fn case_06_patterns_have_one_table(subject: &Subject) {
    let place = live(subject).await;
    for (text, channel, verdict) in VERDICTS {
        let own = place.elsewhere().entity;
        let (text, channel) = (text.replace('#', &own), channel.replace('#', &own));
        let Some(meant) = verdict else {
            assert!(text.parse::<Pattern>().is_err(), "{text} is no pattern");
            continue;
        };
        let end = format!("end:{own}:end");
        let parse = |text: &str| text.parse::<Pattern>().expect("a valid pattern");
        let both = parse(&text).or(parse(&end));
        let mut events =
            place.bus.subscribe(both, Overflow::Block).await.expect("the bus takes a subscriber");
        for channel in [&channel, &end] {
            let channel = channel.parse().expect("a valid channel");
            let event = Event::on(channel, "suite", 0).expect("a valid event");
            place.publish(event).await;
        }
        // A bus may have other events under the widest patterns.
        let first = loop {
            let event = received(&mut events).await;
            if event.channel().as_str().contains(&own) {
                break event;
            }
        };
        assert_eq!(first.channel().as_str() == channel, meant, "{text} and {channel}");
    }
}

pub(super) async fn case_07_overlapping_patterns_deliver_once(subject: &Subject) {
    let place = live(subject).await;
    let text = format!("events:{0}:published,events:{0}:*,*:{0}:*", place.entity);
    let pattern = text.parse().expect("a valid pattern");
    let mut events = place.bus.subscribe(pattern, Overflow::Block).await.expect("the bus takes a subscriber");
    place.publish_numbers(1..4).await;
    for expected in 1..4 {
        assert_eq!(number(&received(&mut events).await), expected, "each is received once");
    }
}

pub(super) async fn case_08_each_group_gets_all_and_its_members_split_it(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let half = ConsumeOptions { max_in_flight: 25, ..options(LONG) };
    let alone = place.bus.consume(&format!("{}-alone", place.group), place.pattern(), options(LONG)).await;
    let mut alone = alone.expect("the bus takes a group");
    let (mut first, mut second) = (place.consumer(half).await, place.consumer(half).await);
    place.publish_numbers(0..50).await;
    let (mut shared, mut held) = (HashSet::new(), Vec::new());
    for member in [&mut first, &mut second] {
        for _ in 0..25 {
            let delivery = delivered(member).await;
            shared.insert(number(delivery.event()));
            held.push(delivery);
        }
        nothing(member, SECOND / 2).await;
    }
    assert_eq!(shared.len(), 50, "the members split the events");
    let mut of_other = HashSet::new();
    for _ in 0..50 {
        let delivery = delivered(&mut alone).await;
        of_other.insert(number(delivery.event()));
        delivery.ack().await.expect("the delivery is acknowledged");
    }
    assert_eq!(of_other.len(), 50, "another group gets all");
}

pub(super) async fn case_09_keys_stay_in_order(subject: &Subject) {
    let place = live(subject).await;
    if !place.claims(Capability::OrderPerKey) {
        return;
    }
    const STEPS: usize = 1_000;
    let mut events = place.subscribe(Overflow::DropOldest(1 << 20)).await;
    let publishers = (0..16).map(|key| {
        let place = place.clone();
        async move {
            for step in 0..STEPS {
                place.publish(place.event(step).with_partition_key(format!("k{key}"))).await;
            }
        }
    });
    at_once(publishers).await;
    let mut next = HashMap::<String, usize>::new();
    for _ in 0..16 * STEPS {
        let event = received(&mut events).await;
        let expected = next.entry(event.partition_key().unwrap_or_default().to_owned()).or_default();
        assert_eq!(number(&event), *expected, "a key is in order");
        *expected += 1;
    }
    if let Some(place) = durable(subject).await {
        keys_of_a_group(place).await;
    }
}

/// Order within a group: over several members, and over a retry.
async fn keys_of_a_group(place: Place<dyn DurableBus>) {
    let (seen, mut reports) = unbounded_channel();
    let mut members = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (mut consumer, seen) = (place.consumer(options(LONG)).await, seen.clone());
        members.spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let event = delivery.event().clone();
                if number(&event) % 50 == 49 && delivery.attempt() == 1 {
                    delivery.nack(crate::bus::Nack::retry()).await.expect("the delivery is refused");
                    continue;
                }
                // Reported before it is settled: after that the next of its key may overtake.
                let _ = seen.send(event);
                delivery.ack().await.expect("the delivery is acknowledged");
            }
        });
    }
    for step in 0..100 {
        for key in 0..16 {
            place.publish(place.event(step).with_partition_key(format!("k{key}"))).await;
        }
    }
    let mut next = HashMap::<String, usize>::new();
    for _ in 0..1_600 {
        let event = in_time("the next event", reports.recv()).await.expect("members report");
        let expected = next.entry(event.partition_key().unwrap_or_default().to_owned()).or_default();
        assert_eq!(number(&event), *expected, "a key is in order within its group");
        *expected += 1;
    }
}

pub(super) async fn case_10_a_new_group_reads_the_history(subject: &Subject) {
    let Some(place) = durable(subject).await else { return };
    let from_start = ConsumeOptions { from_start: true, ..options(LONG) };
    if !place.claims(Capability::History) {
        let refused = place.bus.consume(&place.group, place.pattern(), from_start).await;
        assert_unsupported(Capability::History, refused);
        let group = place.bus.group(&place.group).await;
        assert!(matches!(group, Err(BusError::UnknownGroup { .. })), "the group is not created: {group:?}");
        return;
    }
    place.publish_numbers(0..10).await;
    let late = place.bus.consume(&format!("{}-late", place.group), place.pattern(), options(LONG)).await;
    let mut late = late.expect("the bus takes a group");
    let mut early = place.consumer(from_start).await;
    place.publish_numbers(10..11).await;
    for expected in 0..=10 {
        let delivery = delivered(&mut early).await;
        assert_eq!(number(delivery.event()), expected, "it begins with the oldest event");
        delivery.ack().await.expect("the delivery is acknowledged");
    }
    assert_eq!(number(delivered(&mut late).await.event()), 10, "another one begins with the next");
}
