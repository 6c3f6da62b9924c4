//! Slow subscribers and consumers.

use octollm_core::bus::{BusError, EventBus, Overflow};

use crate::*;

async fn send(bus: &impl EventBus, count: usize) {
    for number in 0..count {
        bus.publish(event(number)).await.unwrap();
    }
}

async fn blocking_loses_nothing(bus: impl EventBus + Clone) {
    let mut events = bus.subscribe(all(), Overflow::Block).await.unwrap();
    let total = 4 * Overflow::BLOCK_CAPACITY;
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let bus = bus.clone();
            tokio::spawn(async move { send(&bus, total).await })
        })
        .collect();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(publishers.iter().all(|publisher| !publisher.is_finished()), "they wait for room");
    let mut sum = 0;
    for _ in 0..2 * total {
        sum += number(&received(&mut events).await);
    }
    assert_eq!(sum, total * (total - 1));
}

#[tokio::test(start_paused = true)]
async fn publishers_wait_and_nothing_is_lost() {
    blocking_loses_nothing(pub_sub()).await;
    blocking_loses_nothing(durable()).await;
}

#[tokio::test(start_paused = true)]
async fn room_for_no_event_is_refused() {
    for overflow in [Overflow::DropOldest(0), Overflow::DropNewest(0), Overflow::Disconnect(0)] {
        let refused = pub_sub().subscribe(all(), overflow).await.unwrap_err();
        assert!(refused.to_string().starts_with("`overflow` "), "{refused}");
        assert!(matches!(refused, BusError::InvalidSetting { source } if source.setting() == "overflow"));
    }
}
