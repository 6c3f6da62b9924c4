//! Publish and subscribe within one process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;

use super::subscription::{Feed, deliver_until};
use super::{BusError, Capability, EventBus, Overflow, Subscription};
use crate::error::ConfigError;
use crate::event::{Event, Expiry, Pattern};

/// An [`EventBus`] within one process. It delivers at most once and stores nothing. Clones are handles of the same bus.
///
/// When the last handle is dropped, the subscriptions end after the waiting events.
///
/// # Panics
/// A publisher that waits for a subscriber under [`Overflow::Block`] panics outside a tokio runtime with enabled
/// timers.
#[derive(Debug, Clone)]
pub struct MemoryBus {
    shared: Arc<Shared>,
}

impl MemoryBus {
    pub(super) const DEFAULT_MAX_EVENT_BYTES: usize = 1024 * 1024;
    pub(super) const DEFAULT_BLOCK_TIMEOUT: Duration = Duration::from_secs(5);

    /// Creates a bus that accepts events of at most 1 MiB and has a block timeout of 5 s.
    pub fn new() -> Self {
        Self::of(Self::DEFAULT_MAX_EVENT_BYTES, Self::DEFAULT_BLOCK_TIMEOUT)
    }

    /// Creates a bus that accepts events of at most `max_event_bytes`, as [`Event::size`] counts them. A publisher
    /// waits for a subscriber under [`Overflow::Block`] for at most `block_timeout`; it does not wait if that is zero.
    ///
    /// # Errors
    /// [`ConfigError`] when `max_event_bytes` is 0.
    pub fn with_limits(max_event_bytes: usize, block_timeout: Duration) -> Result<Self, ConfigError> {
        if max_event_bytes == 0 {
            return Err(ConfigError::new("max_event_bytes", "is 0"));
        }
        Ok(Self::of(max_event_bytes, block_timeout))
    }

    /// Ends every subscription after its waiting events. After that, publishing and subscribing return
    /// [`BusError::Closed`]. Closing twice has no effect.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let subscribers = self.shared.retain(|_| false);
        subscribers.iter().for_each(|subscriber| subscriber.feed.end(BusError::Closed));
    }

    pub(super) fn of(max_event_bytes: usize, block_timeout: Duration) -> Self {
        let (subscribers, closed) = Default::default();
        Self { shared: Arc::new(Shared { max_event_bytes, block_timeout, subscribers, closed }) }
    }

    /// Returns the size of an event that the bus accepts.
    pub(super) fn check(&self, event: &Event) -> Result<usize, BusError> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(BusError::Closed);
        }
        let (size, limit) = (event.size(), self.shared.max_event_bytes);
        if size > limit { Err(BusError::TooLarge { size, limit }) } else { Ok(size) }
    }

    /// Delivers an event that was checked to its subscribers.
    pub(super) async fn deliver(&self, event: &Event, expiry: Expiry) {
        let subscribers = self.shared.subscribers();
        let matching = subscribers.iter().filter(|subscriber| subscriber.pattern.matches(event.channel()));
        if !deliver_until(matching.map(|subscriber| &subscriber.feed), event, expiry).await {
            self.shared.retain(|subscriber| !subscriber.feed.is_closed());
        }
    }
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl EventBus for MemoryBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        // Without this, a publisher that never waits would never yield to its subscribers.
        tokio::task::coop::consume_budget().await;
        self.check(&event)?;
        self.deliver(&event, Expiry::of(&event)).await;
        Ok(())
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        let (feed, subscription) = Feed::new(overflow, self.shared.block_timeout)?;
        self.shared.add(Subscriber { pattern, feed })?;
        Ok(subscription)
    }

    fn capabilities(&self) -> &[Capability] {
        &[Capability::OrderPerKey]
    }

    fn max_event_bytes(&self) -> usize {
        self.shared.max_event_bytes
    }
}

#[derive(Debug)]
struct Shared {
    max_event_bytes: usize,
    block_timeout: Duration,
    /// Copied on change, so that a publisher holds the lock only to clone the `Arc`.
    subscribers: RwLock<Subscribers>,
    closed: AtomicBool,
}

type Subscribers = Arc<Vec<Arc<Subscriber>>>;

#[derive(Debug)]
struct Subscriber {
    pattern: Pattern,
    feed: Feed,
}

impl Shared {
    fn subscribers(&self) -> Subscribers {
        Arc::clone(&self.subscribers.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, subscriber: Subscriber) -> Result<(), BusError> {
        let mut subscribers = self.subscribers.write().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: `close` sets the flag before it takes the lock and ends the subscribers it finds.
        if self.closed.load(Ordering::Acquire) {
            return Err(BusError::Closed);
        }
        let open = subscribers.iter().filter(|subscriber| !subscriber.feed.is_closed());
        *subscribers = Arc::new(open.cloned().chain([Arc::new(subscriber)]).collect());
        Ok(())
    }

    /// Retains some subscribers. Returns those that were there before.
    fn retain(&self, retain: impl Fn(&Subscriber) -> bool) -> Subscribers {
        let mut subscribers = self.subscribers.write().unwrap_or_else(PoisonError::into_inner);
        let retained = subscribers.iter().filter(|subscriber| retain(subscriber)).cloned().collect();
        std::mem::replace(&mut *subscribers, Arc::new(retained))
    }
}
