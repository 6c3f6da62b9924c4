//! Which events a subscriber receives.

use std::collections::{HashMap, HashSet};

use octollm_core::bus::{BusError, Capability, EventBus, MemoryBus, MemoryDurableBus, Overflow};
use octollm_core::event::{Event, Pattern};
use serde_json::json;

use crate::*;

async fn nothing_is_lost_after_subscribe(bus: impl EventBus) {
    for round in 0..1000 {
        let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
        bus.publish(event(round)).await.unwrap();
        assert_eq!(number(&received(&mut events).await), round);
    }
}

#[tokio::test(start_paused = true)]
async fn publishing_right_after_subscribe_loses_nothing() {
    nothing_is_lost_after_subscribe(pub_sub()).await;
    nothing_is_lost_after_subscribe(durable()).await;
}

async fn attributes_arrive_as_they_were(bus: impl EventBus) {
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    for text in [String::new(), "\0".to_owned(), "\u{fffd}\u{1F419}".to_owned(), "x".repeat(64 * 1024)] {
        let sent = Event::on("audit:task:seen".parse().unwrap(), "suite", json!({ "text": text }))
            .unwrap()
            .with_subject("s")
            .with_correlation_id("c")
            .with_causation_id("p")
            .with_traceparent("t")
            .with_partition_key("k")
            .with_expires_at("9999-01-01T00:00:00Z".parse().unwrap());
        bus.publish(sent.clone()).await.unwrap();
        assert_eq!(received(&mut events).await, sent);
    }
}

#[tokio::test(start_paused = true)]
async fn every_attribute_arrives_as_it_was() {
    attributes_arrive_as_they_were(pub_sub()).await;
    attributes_arrive_as_they_were(durable()).await;
}

/// An event of so many bytes.
fn sized(bytes: usize) -> Event {
    let empty = Event::new("case.published", "suite", "").unwrap().size();
    Event::new("case.published", "suite", "x".repeat(bytes - empty)).unwrap()
}

async fn limit_holds(bus: impl EventBus) {
    let limit = bus.max_event_bytes();
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let refused = bus.publish(sized(limit + 1)).await;
    assert!(
        matches!(refused, Err(BusError::TooLarge { size, limit: reported }) if (size, reported) == (limit + 1, limit))
    );
    bus.publish(sized(limit)).await.unwrap();
    assert_eq!(received(&mut events).await.size(), limit, "nothing was delivered before it");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_refused_whole() {
    limit_holds(pub_sub()).await;
    limit_holds(durable()).await;
    limit_holds(MemoryBus::with_limits(300, SECOND).unwrap()).await;
    limit_holds(MemoryDurableBus::builder().max_event_bytes(300).build().unwrap()).await;
    assert_eq!(MemoryBus::with_limits(0, SECOND).unwrap_err().setting(), "max_event_bytes");
}

async fn each_channel_gets_its_own(bus: impl EventBus + Clone) {
    let mut subscriptions = Vec::new();
    for channel in 0..20 {
        let pattern = pattern(&format!("events:c{channel}:published"));
        subscriptions.push(bus.subscribe(pattern, Overflow::Block).await.unwrap());
    }
    let publishers = (0..20).map(|channel| {
        let bus = bus.clone();
        tokio::spawn(async move {
            for number in 0..100 {
                let event =
                    Event::new(&format!("c{channel}.published"), "suite", channel * 100 + number).unwrap();
                bus.publish(event).await.unwrap();
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
    for (channel, events) in subscriptions.iter_mut().enumerate() {
        for number in 0..100 {
            assert_eq!(crate::number(&received(events).await), channel * 100 + number);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_channels_at_once_get_their_own() {
    each_channel_gets_its_own(pub_sub()).await;
    each_channel_gets_its_own(durable()).await;
}

/// Pattern, channel, and whether it matches; `None` where the pattern is not valid.
const VERDICTS: [(&str, &str, Option<bool>); 30] = [
    ("events:task:completed", "events:task:completed", Some(true)),
    ("events:task:completed", "events:task:failed", Some(false)),
    ("events:task:completed", "events:arm:completed", Some(false)),
    ("events:task:completed", "audit:task:completed", Some(false)),
    ("events:task:complete", "events:task:completed", Some(false)),
    ("events:task:completed", "events:task:complete", Some(false)),
    ("events:task:*", "events:task:completed", Some(true)),
    ("events:task:*", "events:task:x", Some(true)),
    ("events:task:*", "events:arm:completed", Some(false)),
    ("events:*:completed", "events:task:completed", Some(true)),
    ("events:*:completed", "events:arm:completed", Some(true)),
    ("events:*:completed", "events:task:failed", Some(false)),
    ("*:task:completed", "audit:task:completed", Some(true)),
    ("*:task:completed", "audit:arm:completed", Some(false)),
    ("events:*:*", "events:arm:registered", Some(true)),
    ("events:*:*", "audit:arm:registered", Some(false)),
    ("*:*:registered", "audit:arm:registered", Some(true)),
    ("*:arm:*", "audit:arm:registered", Some(true)),
    ("*:*:*", "a:b:c", Some(true)),
    ("a-b:c_d:0", "a-b:c_d:0", Some(true)),
    ("a-b:c_d:0", "a-b:c-d:0", Some(false)),
    ("events:task:comp*", "events:task:completed", None),
    ("events:task:**", "events:task:completed", None),
    ("events:task:complete?", "events:task:completed", None),
    ("events:task:[a-z]", "events:task:a", None),
    ("events:*", "events:task:completed", None),
    ("*", "events:task:completed", None),
    ("events:task:completed:*", "events:task:completed", None),
    ("Events:task:*", "events:task:completed", None),
    ("events: task:*", "events:task:completed", None),
];

/// A runtime of its own, on a thread of its own.
fn elsewhere<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    })
}

#[test]
fn a_bus_carries_events_from_one_runtime_to_another() {
    const EVENTS: usize = 5_000;
    let bus = MemoryDurableBus::new();
    let (ready, start) = std::sync::mpsc::channel();
    let subscriber = elsewhere({
        let (bus, ready) = (bus.clone(), ready.clone());
        async move {
            let mut events =
                bus.subscribe("suite:other:event".parse().unwrap(), Overflow::Block).await.unwrap();
            ready.send(()).unwrap();
            for number in 0..EVENTS {
                let Some(Signal::Event(event)) = events.next().await else { panic!("{number} is missing") };
                assert_eq!(crate::number(&event), number);
            }
        }
    });
    let consumer = elsewhere({
        let bus = bus.clone();
        async move {
            let mut consumer = consumer_with(&bus, ConsumeOptions::default()).await;
            ready.send(()).unwrap();
            let mut numbers = HashSet::new();
            while numbers.len() < EVENTS {
                let Some(Ok(delivery)) = consumer.next().await else { panic!("some are missing") };
                assert!(numbers.insert(crate::number(delivery.event())), "each comes once");
                delivery.ack().await.unwrap();
            }
        }
    });
    start.recv().unwrap();
    start.recv().unwrap();
    let publisher = elsewhere(async move {
        for number in 0..EVENTS {
            let event = Event::on("suite:other:event".parse().unwrap(), "suite", number).unwrap();
            bus.publish(event).await.unwrap();
        }
        bus
    });
    let _bus = publisher.join().unwrap();
    subscriber.join().unwrap();
    consumer.join().unwrap();
}

async fn patterns_match_as_the_table_says(bus: impl EventBus) {
    for (text, channel, verdict) in VERDICTS {
        let Some(meant) = verdict else {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
            continue;
        };
        let mut events =
            bus.subscribe(pattern(text).or(pattern("end:end:end")), Overflow::Block).await.unwrap();
        bus.publish(event_on(channel)).await.unwrap();
        bus.publish(event_on("end:end:end")).await.unwrap();
        let first = received(&mut events).await;
        assert_eq!(first.channel().as_str() == channel, meant, "{text} {channel}");
    }
}

#[tokio::test(start_paused = true)]
async fn patterns_have_one_table_everywhere() {
    patterns_match_as_the_table_says(pub_sub()).await;
    patterns_match_as_the_table_says(durable()).await;
}

async fn overlapping_is_once(bus: impl EventBus) {
    let pattern = pattern("events:case:published").or(pattern("events:case:*")).or(all());
    let mut events = bus.subscribe(pattern, Overflow::Block).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    bus.publish(event(2)).await.unwrap();
    assert_eq!(number(&received(&mut events).await), 1);
    assert_eq!(number(&received(&mut events).await), 2);
}

#[tokio::test(start_paused = true)]
async fn overlapping_patterns_deliver_once() {
    overlapping_is_once(pub_sub()).await;
    overlapping_is_once(durable()).await;
}

async fn events_of_a_key_are_in_order(bus: impl EventBus + Clone) {
    assert!(bus.capabilities().contains(&Capability::OrderPerKey));
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    for key in 0..16 {
        let bus = bus.clone();
        tokio::spawn(async move {
            for step in 0..1000 {
                bus.publish(event(step).with_partition_key(format!("k{key}"))).await.unwrap();
            }
        });
    }
    let mut next = HashMap::<String, usize>::new();
    for _ in 0..16_000 {
        let event = received(&mut events).await;
        let expected = next.entry(event.partition_key().unwrap().to_owned()).or_default();
        assert_eq!(number(&event), *expected);
        *expected += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn sixteen_keys_stay_in_order() {
    events_of_a_key_are_in_order(pub_sub()).await;
    events_of_a_key_are_in_order(durable()).await;
}
