//! Settling deliveries.

use octollm_core::bus::EventBus;
use tokio::time::advance;

use crate::*;

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

async fn a_late_ack(bus: impl DurableBus) {
    let mut slow = consumer(&bus).await;
    bus.publish(event(1)).await.unwrap();
    let late = delivered(&mut slow).await;
    advance(2 * LEASE).await;
    late.ack().await.unwrap();
    nothing(&mut slow, 2 * LEASE).await;
    assert_eq!(unsettled(&bus).await, (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_ack_after_the_lease_holds_while_nobody_else_has_the_event() {
    a_late_ack(durable()).await;
    a_late_ack(plain()).await;
}
