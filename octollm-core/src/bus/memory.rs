//! Publish and subscribe within one process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;

use super::engine::{Capabilities, Capability, Counters, Counts, Expiry, Feed, deliver};
use super::{BusError, Ended, EventBus, Overflow, Subscription};
use crate::event::{Event, Pattern};

/// An [`EventBus`] within one process: at most once, nothing stored. Clones are the same bus.
///
/// When the last clone is dropped, its subscriptions end after what waits was delivered.
///
/// # Panics
/// A publisher that has to wait for a subscriber under [`Overflow::Block`] panics outside a tokio runtime with its timer
/// enabled.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus {
    shared: Arc<Shared>,
}

/// The limits of a [`MemoryBus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBusConfig {
    /// Size of the largest event taken, in the bytes of [`Event::size`]: by default 1 MiB.
    pub max_event_bytes: usize,
    /// Time for which a publisher waits for a subscriber under [`Overflow::Block`], by default 5 s. Zero never waits.
    pub block_timeout: Duration,
}

impl Default for MemoryBusConfig {
    fn default() -> Self {
        Self { max_event_bytes: 1024 * 1024, block_timeout: Duration::from_secs(5) }
    }
}

impl MemoryBus {
    /// A bus with the default configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// A bus with a configuration.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] when it would take no event.
    pub fn with_config(config: MemoryBusConfig) -> Result<Self, BusError> {
        if config.max_event_bytes == 0 {
            return Err(BusError::InvalidSetting { setting: "max_event_bytes", problem: "is zero" });
        }
        Ok(Self { shared: Arc::new(Shared { config, ..Shared::default() }) })
    }

    /// Ends every subscription after what waits was delivered; whatever is published or subscribed from now on is
    /// [`BusError::Closed`]. Closing again changes nothing.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let subscribers = self.shared.replace(|_| false);
        subscribers.iter().for_each(|subscriber| subscriber.feed.end(Ended::Closed));
    }

    /// The size of an event that may be published.
    pub(super) fn admit(&self, event: &Event) -> Result<usize, BusError> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(BusError::Closed);
        }
        let (size, limit) = (event.size(), self.shared.config.max_event_bytes);
        if size > limit { Err(BusError::TooLarge { size, limit }) } else { Ok(size) }
    }

    /// Passes an admitted event to its subscribers.
    pub(super) async fn spread(&self, event: &Event, expiry: Expiry) {
        self.shared.counters.add_published();
        let subscribers = self.shared.subscribers();
        let matching = subscribers.iter().filter(|subscriber| subscriber.pattern.matches(event.channel()));
        if !deliver(matching.map(|subscriber| &subscriber.feed), event, expiry).await {
            self.shared.replace(|subscriber| !subscriber.feed.is_closed());
        }
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }
}

#[async_trait]
impl EventBus for MemoryBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        // A publisher that never has to wait must still let its subscribers run.
        tokio::task::coop::consume_budget().await;
        self.admit(&event)?;
        self.spread(&event, Expiry::of(event.expires_at())).await;
        Ok(())
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        let Shared { config, counters, .. } = &*self.shared;
        let (feed, subscription) = Feed::new(overflow, config.block_timeout, Arc::clone(counters))?;
        self.shared.add(Subscriber { pattern, feed })?;
        Ok(subscription)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(&[Capability::OrderPerKey], self.shared.config.max_event_bytes)
    }

    fn counts(&self) -> Counts {
        self.shared.counters.counts()
    }
}

#[derive(Debug, Default)]
struct Shared {
    config: MemoryBusConfig,
    /// Copied when it changes, so that a publisher holds the lock for a clone of the `Arc` only.
    subscribers: RwLock<Subscribers>,
    counters: Arc<Counters>,
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
        // Read under the lock: closing takes it after it has set this, and finds whoever came before.
        if self.closed.load(Ordering::Acquire) {
            return Err(BusError::Closed);
        }
        let open = subscribers.iter().filter(|subscriber| !subscriber.feed.is_closed());
        *subscribers = Arc::new(open.cloned().chain([Arc::new(subscriber)]).collect());
        Ok(())
    }

    /// Retains some subscribers and returns those that were there before.
    fn replace(&self, retain: impl Fn(&Subscriber) -> bool) -> Subscribers {
        let mut subscribers = self.subscribers.write().unwrap_or_else(PoisonError::into_inner);
        let retained = subscribers.iter().filter(|subscriber| retain(subscriber)).cloned().collect();
        std::mem::replace(&mut *subscribers, Arc::new(retained))
    }
}
