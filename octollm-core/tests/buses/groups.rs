//! How the consumers of groups share events.

use std::collections::{HashMap, HashSet};

use octollm_core::bus::Capability;
use octollm_core::bus::{BusError, ConsumeOptions, Consumer, EventBus, Gap, MemoryDurableBus};
use octollm_core::event::Event;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::*;

/// Acknowledges each event and reports it.
async fn ack_all(mut consumer: Consumer, seen: UnboundedSender<(Event, u32)>) {
    while let Some(Ok(delivery)) = consumer.next().await {
        let report = (delivery.event().clone(), delivery.attempt());
        delivery.ack().await.unwrap();
        if seen.send(report).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_publishers_and_fifty_members_miss_and_repeat_nothing() {
    let bus = durable();
    let (seen, mut reports) = unbounded_channel();
    for _ in 0..50 {
        tokio::spawn(ack_all(consumer(&bus).await, seen.clone()));
    }
    let mut sent = HashSet::new();
    for publisher in 0..50 {
        let events: Vec<Event> = (0..100).map(|step| event(publisher * 100 + step)).collect();
        sent.extend(events.iter().map(|event| event.id().to_owned()));
        let bus = bus.clone();
        tokio::spawn(async move { assert!(bus.publish_all(events).await.iter().all(Result::is_ok)) });
    }
    for _ in 0..5000 {
        let (event, attempt) = reports.recv().await.unwrap();
        assert!(sent.remove(event.id()), "{} came twice", event.id());
        assert_eq!(attempt, 1);
    }
    assert!(sent.is_empty());
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn each_group_gets_all_and_its_members_split_it() {
    let bus = durable();
    let mut alone = bus.consume("alone", all(), options()).await.unwrap();
    let one_each = ConsumeOptions { max_in_flight: 25, ..options() };
    let mut first = bus.consume(GROUP, all(), one_each).await.unwrap();
    let mut second = bus.consume(GROUP, all(), one_each).await.unwrap();
    for number in 0..50 {
        bus.publish(event(number)).await.unwrap();
    }
    let mut shared = HashSet::new();
    let mut held = Vec::new();
    for member in [&mut first, &mut second] {
        for _ in 0..25 {
            let delivery = delivered(member).await;
            shared.insert(number(delivery.event()));
            held.push(delivery);
        }
        nothing(member, Duration::from_secs(1)).await;
    }
    assert_eq!(shared.len(), 50);
    for expected in 0..50 {
        let delivery = delivered(&mut alone).await;
        assert_eq!(number(delivery.event()), expected);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn keys_stay_in_order_over_many_members_and_retries() {
    let bus = durable();
    let (seen, mut reports) = unbounded_channel();
    for _ in 0..4 {
        let (mut consumer, seen) = (consumer(&bus).await, seen.clone());
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let event = delivery.event().clone();
                if number(&event) % 100 == 99 && delivery.attempt() == 1 {
                    delivery.nack(octollm_core::bus::Nack::retry()).await.unwrap();
                    continue;
                }
                // Reported before it is settled: after that the next of its key may overtake.
                seen.send(event).unwrap();
                tokio::task::yield_now().await;
                delivery.ack().await.unwrap();
            }
        });
    }
    for step in 0..1000 {
        for key in 0..16 {
            bus.publish(event(step).with_partition_key(format!("k{key}"))).await.unwrap();
        }
    }
    let mut next = HashMap::<String, usize>::new();
    for _ in 0..16_000 {
        let event = reports.recv().await.unwrap();
        let expected = next.entry(event.partition_key().unwrap().to_owned()).or_default();
        assert_eq!(number(&event), *expected);
        *expected += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_group_reads_the_history() {
    let bus = durable();
    for number in 0..10 {
        bus.publish(event(number)).await.unwrap();
    }
    let now = ConsumeOptions::default();
    let mut late = bus.consume("late", all(), now).await.unwrap();
    let mut early = consumer(&bus).await;
    bus.publish(event(10)).await.unwrap();
    for expected in 0..=10 {
        let delivery = delivered(&mut early).await;
        assert_eq!(number(delivery.event()), expected);
        delivery.ack().await.unwrap();
    }
    assert_eq!(number(delivered(&mut late).await.event()), 10);
    assert!(bus.capabilities().contains(&Capability::History));
}

#[tokio::test(start_paused = true)]
async fn a_bus_without_history_starts_no_group_at_the_beginning() {
    let bus = plain();
    let refused = bus.consume(GROUP, all(), options()).await;
    assert!(matches!(refused, Err(BusError::Unsupported { capability: Capability::History })));
    assert!(matches!(bus.group(GROUP).await, Err(BusError::UnknownGroup { .. })));
}

#[tokio::test(start_paused = true)]
async fn trimmed_history_is_a_gap_first() {
    let bus = MemoryDurableBus::builder().history(3, 1024).build().unwrap();
    for number in 0..5 {
        bus.publish(event(number)).await.unwrap();
    }
    let mut consumer = consumer(&bus).await;
    match consumer.next().await {
        Some(Err(gap)) => assert_eq!(gap, Gap::Trimmed { event_ids: Vec::new() }),
        other => panic!("no gap but {other:?}"),
    }
    assert_eq!(number(delivered(&mut consumer).await.event()), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_group_refuses_the_publisher_and_takes_again() {
    let builder = MemoryDurableBus::builder().max_event_bytes(300).history(0, 0).backlog(2, 1024);
    let bus = builder.build().unwrap();
    let mut consumer = consumer(&bus).await;
    bus.publish(event(0)).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    let refused = bus.publish(event(2)).await.unwrap_err();
    assert!(matches!(refused, BusError::Full { events: 2, bytes: 1024 }) && refused.retryable());
    delivered(&mut consumer).await.ack().await.unwrap();
    bus.publish(event(3)).await.unwrap();
    assert!(bus.remove_group(GROUP).await.unwrap());
    assert!(consumer.next().await.is_none(), "the consumers of a removed group end");
    assert!(matches!(consumer.ended(), Some(BusError::UnknownGroup { .. })));
    assert!(!bus.remove_group(GROUP).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn invalid_settings_are_refused() {
    let bus = durable();
    let none = ConsumeOptions { max_in_flight: 0, ..options() };
    assert!(matches!(bus.consume(GROUP, all(), none).await, Err(BusError::InvalidSetting { .. })));
    assert!(matches!(bus.consume("", all(), options()).await, Err(BusError::InvalidSetting { .. })));
    let _first = consumer(&bus).await;
    let other = bus.consume(GROUP, pattern("a:b:*"), options()).await;
    assert!(matches!(other, Err(BusError::OtherPattern { .. })));
    assert!(matches!(bus.group("none").await, Err(BusError::UnknownGroup { .. })));
    for (builder, name) in [
        (MemoryDurableBus::builder().max_event_bytes(0), "max_event_bytes"),
        (MemoryDurableBus::builder().backlog(0, 1024), "backlog"),
        (MemoryDurableBus::builder().delayed(1, 1024), "delayed"),
        (MemoryDurableBus::builder().history(2_000_000, 1024), "history"),
    ] {
        assert_eq!(builder.build().unwrap_err().setting(), name);
    }
}
