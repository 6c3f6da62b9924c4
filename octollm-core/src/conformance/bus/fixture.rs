//! A channel and a group of a case's own.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::{BrokerFault, Subject};
use crate::{
    bus::{
        BusError, Capability, ConsumeOptions, Consumer, DeadLetter, Delivery, DurableBus, EventBus,
        GroupStatus, Overflow, Signal, Subscription,
    },
    conformance::support::{WAIT, eventually},
    event::{Event, Pattern},
};

/// A lease that is to expire.
pub(super) const LEASE: Duration = Duration::from_secs(1);
/// A lease that expires in no case.
pub(super) const LONG: Duration = Duration::from_secs(600);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A bus, and names that no other case uses.
pub(super) struct Place<B: ?Sized> {
    pub(super) bus: Arc<B>,
    pub(super) entity: String,
    pub(super) group: String,
}

impl<B: ?Sized> Clone for Place<B> {
    fn clone(&self) -> Self {
        Self { bus: self.bus.clone(), entity: self.entity.clone(), group: self.group.clone() }
    }
}

/// The bus, for a case of every bus.
pub(super) async fn live(subject: &Subject) -> Place<dyn EventBus> {
    Place::of(subject.open().await)
}

/// The bus, for a case of durable buses. Asserts that another bus claims nothing of it.
pub(super) async fn durable(subject: &Subject) -> Option<Place<dyn DurableBus>> {
    if let Some(bus) = subject.durable().await {
        return Some(Place::of(bus));
    }
    let bus = subject.open().await;
    for claimed in bus.capabilities() {
        let of_groups = !matches!(claimed, Capability::OrderPerKey);
        assert!(!of_groups, "a bus that is not durable claims {claimed}");
    }
    None
}

/// Asserts that a bus without this fault has no broker at all.
pub(super) async fn no_broker(subject: &Subject) {
    let garbage = BrokerFault::Garbage { channel: "events:suite:garbage", bytes: b"\xff" };
    use BrokerFault::{Continue, Disconnect, Kill, Start, Stop};
    for fault in [Kill, Start, Stop, Continue, Disconnect, garbage] {
        assert!(!subject.broker(fault).await, "a broker that does {fault:?} does all of them");
    }
}

impl<B: EventBus + ?Sized> Place<B> {
    fn of(bus: Arc<B>) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        Self { bus, entity: format!("c{id}"), group: format!("workers-{id}") }
    }

    /// The same bus, with other names.
    pub(super) fn elsewhere(&self) -> Self {
        Self::of(self.bus.clone())
    }

    pub(super) fn claims(&self, capability: Capability) -> bool {
        self.bus.capabilities().contains(&capability)
    }

    /// An event that carries this.
    pub(super) fn event(&self, data: impl Into<Value>) -> Event {
        Event::new(&format!("{}.published", self.entity), "suite", data.into()).expect("a valid event")
    }

    /// The channels of the case.
    pub(super) fn pattern(&self) -> Pattern {
        format!("events:{}:*", self.entity).parse().expect("a valid pattern")
    }

    pub(super) async fn publish(&self, event: Event) {
        self.bus.publish(event).await.expect("the event is published");
    }

    pub(super) async fn publish_numbers(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.publish(self.event(number)).await;
        }
    }

    pub(super) async fn subscribe(&self, overflow: Overflow) -> Subscription {
        self.bus.subscribe(self.pattern(), overflow).await.expect("the bus takes a subscriber")
    }
}

impl Place<dyn DurableBus> {
    /// A consumer of the group, from the next event on.
    pub(super) async fn consumer(&self, options: ConsumeOptions) -> Consumer {
        let joined = self.bus.consume(&self.group, self.pattern(), options).await;
        joined.expect("the group takes a consumer")
    }

    pub(super) async fn status(&self) -> GroupStatus {
        self.bus.group(&self.group).await.expect("the group is there")
    }

    /// Waits until nothing of the group is unsettled.
    pub(super) async fn settled(&self) {
        eventually("all events of the group are settled", async || {
            let status = self.status().await;
            ((status.pending, status.waiting) == (0, 0)).then_some(())
        })
        .await;
    }

    pub(super) async fn dead_letters(&self) -> Vec<DeadLetter> {
        self.bus.dead_letters(&self.group, None, 100).await.expect("dead letters are read")
    }
}

pub(super) fn options(lease: Duration) -> ConsumeOptions {
    ConsumeOptions { lease, ..ConsumeOptions::default() }
}

pub(super) fn number(event: &Event) -> usize {
    event.data_as().expect("the event has a number")
}

/// The next event.
pub(super) async fn received(subscription: &mut Subscription) -> Event {
    match timeout(WAIT, subscription.next()).await {
        Ok(Some(Signal::Event(event))) => event,
        other => panic!("an event is received, not {other:?}"),
    }
}

/// The next delivery.
pub(super) async fn delivered(consumer: &mut Consumer) -> Delivery {
    match timeout(WAIT, consumer.next()).await {
        Ok(Some(Ok(delivery))) => delivery,
        other => panic!("an event is delivered, not {other:?}"),
    }
}

/// Asserts that nothing is delivered for this time.
pub(super) async fn nothing(consumer: &mut Consumer, time: Duration) {
    if let Ok(other) = timeout(time, consumer.next()).await {
        panic!("nothing is delivered for {time:?}, and not {other:?}");
    }
}

pub(super) fn assert_unsupported<T: std::fmt::Debug>(wanted: Capability, result: Result<T, BusError>) {
    assert!(
        matches!(result, Err(BusError::Unsupported { capability }) if capability == wanted),
        "a bus without {wanted} returns that it is unsupported, not {result:?}"
    );
}
