//! Several buses as one, by the channels of events.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::runtime::Handle;

use super::engine::Feed;
use super::{
    BusError, Capability, ConsumeOptions, Consumer, DeadLetter, DurableBus, EventBus, GroupStatus, MemoryBus,
    Overflow, Signal, Subscription,
};
use crate::error::ConfigError;
use crate::event::{Channel, Event, Pattern};

/// Carries each event on one of several buses, which its channel decides: live events by publish and subscribe, and those that must not
/// be lost on a durable bus. Clones are handles of the same buses.
///
/// ```
/// use octollm_core::bus::{BusMap, ConsumeOptions, DurableBus, EventBus, MemoryBus, MemoryDurableBus, Overflow};
/// use octollm_core::event::Event;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = BusMap::new(MemoryBus::new())
///     .durable("events:task:completed,events:task:failed".parse()?, MemoryDurableBus::new())
///     .live("events:task:*".parse()?, MemoryBus::new());
/// let mut monitor = bus.subscribe("events:task:*".parse()?, Overflow::DropOldest(1024)).await?; // of both
/// let mut billing = bus.consume("billing", "events:task:completed".parse()?, ConsumeOptions::default()).await?;
/// bus.publish(Event::new("task.completed", "brain", "done")?).await?;
/// # assert!(monitor.next().await.is_some() && billing.next().await.is_some());
/// # Ok(())
/// # }
/// ```
///
/// - An event is published on one bus: that of the first pattern, in the order of the calls, which matches its channel, or else that of
///   [`new`](Self::new). Patterns that overlap publish nothing twice. All processes need the same map.
/// - A subscription receives the events of all buses that its pattern concerns, with their gaps. Events of one bus stay in order; those
///   of two buses have none. [`Overflow`] applies to each bus and to what they have together. It ends with the first of the subscriptions
///   that ends.
/// - A group consumes from one durable bus: [`consume`](DurableBus::consume) returns [`BusError::InvalidSetting`] for a pattern that also matches
///   channels of another bus. The other operations on a group are those of the first durable bus that has it.
/// - A [capability](EventBus::capabilities) is one that all buses have, and the largest event is what all accept. [`bus_of`](Self::bus_of)
///   returns the bus of a channel, to ask that one.
#[derive(Clone)]
pub struct BusMap(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    routes: Vec<Route>,
    /// For the channels that no route matches.
    rest: Carrier,
    capabilities: Vec<Capability>,
}

#[derive(Clone)]
struct Route {
    pattern: Pattern,
    carrier: Carrier,
}

#[derive(Clone)]
enum Carrier {
    Live(Arc<dyn EventBus>),
    Durable(Arc<dyn DurableBus>),
}

impl Carrier {
    fn bus(&self) -> &dyn EventBus {
        match self {
            Self::Live(bus) => &**bus,
            Self::Durable(bus) => &**bus,
        }
    }
}

impl BusMap {
    /// Creates a map in which `bus` carries all events.
    pub fn new(bus: impl EventBus) -> Self {
        let capabilities = bus.capabilities().to_vec();
        let rest = Carrier::Live(Arc::new(bus));
        Self(Arc::new(Inner { routes: Vec::new(), rest, capabilities }))
    }

    /// Adds a bus for the channels that `pattern` matches, unless an earlier pattern does.
    #[must_use]
    pub fn live(self, pattern: Pattern, bus: impl EventBus) -> Self {
        self.with(pattern, Carrier::Live(Arc::new(bus)))
    }

    /// Adds a durable bus for the channels that `pattern` matches, unless an earlier pattern does.
    #[must_use]
    pub fn durable(self, pattern: Pattern, bus: impl DurableBus) -> Self {
        self.with(pattern, Carrier::Durable(Arc::new(bus)))
    }

    /// Returns the bus that carries the events of a channel.
    pub fn bus_of(&self, channel: &Channel) -> &dyn EventBus {
        self.0.carrier(self.0.place(channel)).bus()
    }

    fn with(mut self, pattern: Pattern, carrier: Carrier) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.capabilities.retain(|capability| carrier.bus().capabilities().contains(capability));
        inner.routes.push(Route { pattern, carrier });
        self
    }

    /// The durable bus that alone carries what a pattern matches.
    fn only(&self, pattern: &Pattern) -> Result<&dyn DurableBus, ConfigError> {
        match self.0.places(pattern)[..] {
            [place] => match self.0.carrier(place) {
                Carrier::Durable(bus) => Ok(&**bus),
                Carrier::Live(_) => {
                    Err(ConfigError::new("pattern", "matches channels that no durable bus carries"))
                }
            },
            _ => Err(ConfigError::new("pattern", "matches channels of several buses")),
        }
    }

    fn durables(&self) -> impl Iterator<Item = &dyn DurableBus> {
        self.0.routes.iter().filter_map(|route| match &route.carrier {
            Carrier::Durable(bus) => Some(&**bus),
            Carrier::Live(_) => None,
        })
    }

    /// The durable bus that has a group, with its status.
    async fn of_group(&self, group: &str) -> Result<(&dyn DurableBus, GroupStatus), BusError> {
        for bus in self.durables() {
            match bus.group(group).await {
                Err(BusError::UnknownGroup { .. }) => {}
                status => return Ok((bus, status?)),
            }
        }
        Err(BusError::UnknownGroup { group: group.to_owned() })
    }
}

impl Inner {
    /// The position of the bus of a channel. The last one is `rest`.
    fn place(&self, channel: &Channel) -> usize {
        let matching = self.routes.iter().position(|route| route.pattern.matches(channel));
        matching.unwrap_or(self.routes.len())
    }

    fn carrier(&self, place: usize) -> &Carrier {
        self.routes.get(place).map_or(&self.rest, |route| &route.carrier)
    }

    /// The positions of the buses that carry channels which a pattern matches, in order.
    fn places(&self, pattern: &Pattern) -> Vec<usize> {
        let mut places = Vec::new();
        for wanted in pattern.alternatives() {
            let mut is_covered = false;
            for (place, route) in self.routes.iter().enumerate() {
                if route.pattern.alternatives().any(|carried| overlaps(carried, wanted)) {
                    places.push(place);
                }
                is_covered |= route.pattern.alternatives().any(|carried| covers(carried, wanted));
                if is_covered {
                    break;
                }
            }
            if !is_covered {
                places.push(self.routes.len());
            }
        }
        places.sort_unstable();
        places.dedup();
        places
    }
}

const WILDCARD: &str = "*";

/// Whether a channel can match both alternatives.
fn overlaps(a: &str, b: &str) -> bool {
    a.split(':').zip(b.split(':')).all(|(a, b)| a == b || a == WILDCARD || b == WILDCARD)
}

/// Whether each channel that matches `inner` matches `outer`.
fn covers(outer: &str, inner: &str) -> bool {
    outer.split(':').zip(inner.split(':')).all(|(outer, inner)| outer == inner || outer == WILDCARD)
}

#[async_trait]
impl EventBus for BusMap {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        self.bus_of(event.channel()).publish(event).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        let places = self.0.places(&pattern);
        if let [place] = places[..] {
            return self.0.carrier(place).bus().subscribe(pattern, overflow).await;
        }
        let runtime = Handle::try_current().map_err(BusError::unavailable)?;
        let mut parts = Vec::with_capacity(places.len());
        for place in places {
            parts.push((place, self.0.carrier(place).bus().subscribe(pattern.clone(), overflow).await?));
        }
        let (feed, subscription) = Feed::new(overflow, MemoryBus::DEFAULT_BLOCK_TIMEOUT)?;
        let feed = Arc::new(feed);
        for (place, part) in parts {
            runtime.spawn(forward(self.0.clone(), place, part, feed.clone()));
        }
        Ok(subscription)
    }

    fn capabilities(&self) -> &[Capability] {
        &self.0.capabilities
    }

    fn max_event_bytes(&self) -> usize {
        let sizes = self.0.routes.iter().map(|route| route.carrier.bus().max_event_bytes());
        sizes.fold(self.0.rest.bus().max_event_bytes(), usize::min)
    }

    /// The events of each bus are published in order, and those of different buses at the same time.
    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let count = events.len();
        let mut by_bus: Vec<(Vec<usize>, Vec<Event>)> = vec![Default::default(); self.0.routes.len() + 1];
        for (index, event) in events.into_iter().enumerate() {
            let (indices, of_bus) = &mut by_bus[self.0.place(event.channel())];
            indices.push(index);
            of_bus.push(event);
        }
        let parts = by_bus.into_iter().enumerate().filter(|(_, (indices, _))| !indices.is_empty());
        let parts = parts.map(|(place, (indices, events))| async move {
            (indices, self.0.carrier(place).bus().publish_all(events).await)
        });
        // A bus returns a result for each event.
        let mut results = vec![Err(BusError::Unavailable { source: None }); count];
        for (indices, published) in join_all(parts).await {
            for (index, result) in indices.into_iter().zip(published) {
                results[index] = result;
            }
        }
        results
    }
}

/// Forwards what one bus carries until either subscription ends.
async fn forward(map: Arc<Inner>, place: usize, mut part: Subscription, feed: Arc<Feed>) {
    loop {
        let signal = tokio::select! {
            biased;
            () = feed.closed() => return,
            signal = part.next() => signal,
        };
        match signal {
            // Another program may publish on a bus what belongs to another one.
            Some(Signal::Event(event)) if map.place(event.channel()) == place => {
                if !feed.send(&event).await {
                    return;
                }
            }
            Some(Signal::Event(_)) => {}
            Some(Signal::Gap(gap)) => feed.gap(gap),
            Some(Signal::Lagged(events)) => feed.lagged(events),
            None => return feed.end(part.ended().unwrap_or(BusError::Closed)),
        }
    }
}

#[async_trait]
impl DurableBus for BusMap {
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        self.only(&pattern)?.consume(group, pattern, options).await
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        Ok(self.of_group(group).await?.1)
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        for bus in self.durables() {
            if bus.remove_group(group).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        self.of_group(group).await?.0.dead_letters(group, after, limit).await
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        self.of_group(group).await?.0.replay(group, entry).await
    }
}

impl fmt::Debug for BusMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for Route { pattern, carrier } in &self.0.routes {
            let kind = if matches!(carrier, Carrier::Durable(_)) { "durable" } else { "live" };
            map.entry(&pattern.to_string(), &kind);
        }
        map.finish_non_exhaustive()
    }
}
