//! How the consumers of groups share events.

use octollm_core::bus::{BusError, ConsumeOptions, EventBus, Gap, MemoryDurableBus};

use crate::*;

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
