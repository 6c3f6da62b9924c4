//! Publish and subscribe within one process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;

use super::engine::queue::Expiry;
use super::{
    BusError, Ended, EventBus, Overflow, Subscription,
    engine::{Capabilities, Capability, Counters, Counts, Feed},
};
use crate::event::{Event, Patterns};

/// An [`EventBus`] within one process: at most once, nothing kept. Clones are the same bus.
///
/// When the last clone goes, its subscriptions end after what waits was delivered.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus {
    shared: Arc<Shared>,
}

/// What a [`MemoryBus`] may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBusConfig {
    /// The largest event taken, in the bytes of [`Event::size`]. 1 MiB unless told.
    pub max_event_bytes: usize,
}

impl Default for MemoryBusConfig {
    fn default() -> Self {
        Self { max_event_bytes: 1024 * 1024 }
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
        let listeners = self.shared.replace(|_| false);
        listeners.iter().for_each(|listener| listener.feed.end(Ended::Closed));
    }

    /// Refuses what is larger than the limit, and everything once closed.
    pub(super) fn admit(&self, event: &Event) -> Result<(), BusError> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(BusError::Closed);
        }
        let (size, limit) = (event.size(), self.shared.config.max_event_bytes);
        if size > limit { Err(BusError::TooLarge { size, limit }) } else { Ok(()) }
    }

    /// Passes an admitted event to its listeners.
    pub(super) async fn spread(&self, event: &Arc<Event>, expiry: Expiry) {
        self.shared.counters.add_published();
        let listeners = self.shared.listeners();
        let mut left = false;
        for listener in listeners.iter().filter(|listener| listener.patterns.matches(event.channel())) {
            left |= !listener.feed.send_until(event, expiry).await;
        }
        if left {
            self.shared.replace(|listener| !listener.feed.is_closed());
        }
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }
}

#[async_trait]
impl EventBus for MemoryBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        // A publisher that never has to wait must still let its listeners run.
        tokio::task::coop::consume_budget().await;
        self.admit(&event)?;
        let expiry = Expiry::of(event.expires_at());
        self.spread(&Arc::new(event), expiry).await;
        Ok(())
    }

    async fn subscribe_any(&self, patterns: Patterns, overflow: Overflow) -> Result<Subscription, BusError> {
        let (feed, subscription) = Feed::new(overflow, Arc::clone(&self.shared.counters))?;
        self.shared.add(Listener { patterns, feed })?;
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
    listeners: RwLock<Listeners>,
    counters: Arc<Counters>,
    closed: AtomicBool,
}

type Listeners = Arc<Vec<Arc<Listener>>>;

#[derive(Debug)]
struct Listener {
    patterns: Patterns,
    feed: Feed,
}

impl Shared {
    fn listeners(&self) -> Listeners {
        Arc::clone(&self.listeners.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, listener: Listener) -> Result<(), BusError> {
        let mut listeners = self.listeners.write().unwrap_or_else(PoisonError::into_inner);
        // Asked under the lock: closing takes it after it has said so, and finds whoever came before.
        if self.closed.load(Ordering::Acquire) {
            return Err(BusError::Closed);
        }
        let open = listeners.iter().filter(|listener| !listener.feed.is_closed());
        *listeners = Arc::new(open.cloned().chain([Arc::new(listener)]).collect());
        Ok(())
    }

    /// Keeps some listeners and gives back what was there before.
    fn replace(&self, keep: impl Fn(&Listener) -> bool) -> Listeners {
        let mut listeners = self.listeners.write().unwrap_or_else(PoisonError::into_inner);
        let kept = listeners.iter().filter(|listener| keep(listener)).cloned().collect();
        std::mem::replace(&mut *listeners, Arc::new(kept))
    }
}
