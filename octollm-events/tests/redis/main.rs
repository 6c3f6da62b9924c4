//! The buses over Redis beyond the suite: bad settings, warnings, TLS, users, a cluster, and the limits of streams. Records of keys, and rates.
#![cfg(feature = "redis")]

#[path = "../support/redis.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use the rest")]
mod redis_server;

#[cfg(feature = "sql")]
mod bus;
mod cluster;
mod connecting;
mod instances;
#[path = "../../../octollm-core/tests/buses/jobs.rs"]
mod job_cases;
mod jobs;
mod keys;
mod limiter;
mod live;
mod streams;
mod warnings;

use std::time::Duration;

use octollm_core::{
    bus::{Consumer, Delivery, EventBus, Overflow, Signal, Subscription},
    event::{Event, Pattern},
};
use tokio::time::timeout;

use self::redis_server::Redis;

/// How long a test waits for what has to come.
const LIMIT: Duration = Duration::from_secs(30);

/// An event that carries a number.
fn event(number: usize) -> Event {
    Event::new("order.paid", "shop", number).unwrap()
}

fn number(event: &Event) -> usize {
    event.data_as().unwrap()
}

async fn signal(events: &mut Subscription) -> Signal {
    timeout(LIMIT, events.next()).await.unwrap().unwrap()
}

async fn received(events: &mut Subscription) -> Event {
    match signal(events).await {
        Signal::Event(event) => event,
        other => panic!("no event but {other:?}"),
    }
}

async fn subscribed(bus: &impl EventBus) -> Subscription {
    bus.subscribe(Pattern::all(), Overflow::DropOldest(1 << 16)).await.unwrap()
}

async fn delivered(consumer: &mut Consumer) -> Delivery {
    match timeout(LIMIT, consumer.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        other => panic!("no delivery but {other:?}"),
    }
}
