//! Consume and settle within one process.

mod consumer;
mod group;
mod order;
mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

use self::order::Item;
use self::store::Store;
use super::engine::{Capabilities, Capability, Counts, Expiry};
use super::{
    Bound, BusError, ConsumeOptions, Consumer, DeadLetter, DelayBus, DurableBus, EventBus, GroupStatus,
    MemoryBus, MemoryBusConfig, Overflow, Subscription,
};
use crate::event::{Event, Pattern};

/// A [`DurableBus`] within one process: at least once while the process lives. Clones are the same bus.
///
/// In every group, events of one partition key are handled one after the other in the order in which they were published:
/// while one is unsettled, those after it wait. When the last clone is dropped, the bus is closed.
///
/// It may be used from several runtimes. An event that is published later waits on the runtime of its publisher, and is lost
/// if that runtime ends first.
#[derive(Debug, Clone)]
pub struct MemoryDurableBus {
    owner: Arc<Owner>,
}

/// The limits of a [`MemoryDurableBus`]. Checked when the bus is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryDurableConfig {
    /// Size of the largest event taken, in the bytes of [`Event::size`]: by default 1 MiB. Each bound below has room for one,
    /// except a history without any.
    pub max_event_bytes: usize,
    /// Time for which a publisher waits for a subscriber under [`Overflow::Block`], by default 5 s. Zero never waits.
    pub block_timeout: Duration,
    /// Events stored for groups that are made later; older ones are a gap to them. By default 65 536, of 64 MiB.
    pub history: Bound,
    /// Events that a group may have unsettled; beyond, publishing to it is [`BusError::Full`]. By default 1 048 576, of
    /// 256 MiB.
    pub backlog: Bound,
    /// Events that may wait for their time at once; beyond, publishing later is [`BusError::Full`]. By default 65 536, of
    /// 64 MiB.
    pub delayed: Bound,
    /// Dead letters of a group; beyond, the oldest are deleted and counted. By default 65 536, of 64 MiB.
    pub dead_letters: Bound,
}

impl MemoryDurableBus {
    /// A bus with the default configuration.
    pub fn new() -> Self {
        let live = MemoryBus::new();
        Self::over(live, MemoryDurableConfig::default())
    }

    /// A bus with a configuration.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] names the first that is not valid.
    pub fn with_config(config: MemoryDurableConfig) -> Result<Self, BusError> {
        config.validate()?;
        let MemoryDurableConfig { max_event_bytes, block_timeout, .. } = config;
        let live = MemoryBus::with_config(MemoryBusConfig { max_event_bytes, block_timeout })?;
        Ok(Self::over(live, config))
    }

    /// Ends every subscription and consumer. What is handed out may still be settled. Closing again changes nothing.
    pub fn close(&self) {
        self.owner.shared.close();
    }

    fn over(live: MemoryBus, config: MemoryDurableConfig) -> Self {
        let store = Mutex::new(Store::new(config, Arc::clone(live.counters())));
        Self { owner: Arc::new(Owner { shared: Arc::new(Shared { live, store, config }) }) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    fn parse_entry(entry: &str) -> Result<u64, BusError> {
        entry.parse().map_err(|_| BusError::UnknownDeadLetter { entry: entry.to_owned() })
    }
}

impl Default for MemoryDurableBus {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for MemoryDurableConfig {
    fn default() -> Self {
        const EVENTS: usize = 64 * 1024;
        const BYTES: usize = 64 * 1024 * 1024;
        let MemoryBusConfig { max_event_bytes, block_timeout } = MemoryBusConfig::default();
        Self {
            max_event_bytes,
            block_timeout,
            history: Bound::new(EVENTS, BYTES),
            backlog: Bound::new(16 * EVENTS, 4 * BYTES),
            delayed: Bound::new(EVENTS, BYTES),
            dead_letters: Bound::new(EVENTS, BYTES),
        }
    }
}

impl MemoryDurableConfig {
    fn validate(&self) -> Result<(), BusError> {
        let invalid = |setting, problem| Err(BusError::InvalidSetting { setting, problem });
        let bounds =
            [("backlog", self.backlog), ("delayed", self.delayed), ("dead_letters", self.dead_letters)];
        for (setting, bound) in bounds {
            if !bound.holds(1, self.max_event_bytes) {
                return invalid(setting, "has no room for the largest event");
            }
        }
        if !self.backlog.holds(self.history.events, self.history.bytes) {
            return invalid("history", "is more than a group may have as backlog");
        }
        Ok(())
    }
}

#[async_trait]
impl EventBus for MemoryDurableBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        tokio::task::coop::consume_budget().await;
        let size = self.shared().live.admit(&event)?;
        let item = Item::new(event, size);
        {
            let mut store = self.shared().store();
            store.check_open()?;
            store.check_room(&item)?;
            store.append(&item);
        }
        self.shared().live.spread(&item.event, item.expiry).await;
        Ok(())
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.shared().live.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> Capabilities {
        const CLAIMED: &[Capability] = &[
            Capability::OrderPerKey,
            Capability::History,
            Capability::FencedSettling,
            Capability::AttemptCounts,
            Capability::DelayedNack,
            Capability::LeaseExtension,
        ];
        Capabilities::new(CLAIMED, self.shared().config.max_event_bytes)
    }

    fn counts(&self) -> Counts {
        self.shared().live.counts()
    }
}

#[async_trait]
impl DelayBus for MemoryDurableBus {
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        let shared = self.shared();
        let item = Item::new(event.clone(), shared.live.admit(&event)?);
        let runtime =
            Handle::try_current().map_err(|error| BusError::Unavailable { source: Some(Box::new(error)) })?;
        let mut store = shared.store();
        store.check_open()?;
        store.delayed.check_room(shared.config.delayed, &item)?;
        let number = store.number();
        let (bus, due) = (Arc::downgrade(shared), Instant::now().checked_add(delay));
        let alarm = runtime.spawn(async move {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
            if let Some(shared) = bus.upgrade() {
                shared.publish_delayed(number).await;
            }
        });
        store.delayed.insert(number, item, alarm.abort_handle());
        Ok(())
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        Ok(self.shared().store().delayed.cancel(event_id))
    }
}

#[async_trait]
impl DurableBus for MemoryDurableBus {
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        options.validate()?;
        if group.is_empty() {
            return Err(BusError::InvalidSetting { setting: "group", problem: "is empty" });
        }
        let membership = self.shared().store().join(group, pattern, &options)?;
        Ok(consumer::consumer(Arc::clone(self.shared()), membership, options.lease))
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        Ok(self.shared().store().slot(group)?.group.status(Instant::now()))
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        Ok(self.shared().store().remove(group))
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        let after = after.map(Self::parse_entry).transpose()?;
        Ok(self.shared().store().slot(group)?.group.dead_letters(after, limit, Instant::now()))
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        self.shared().store().replay(group, Self::parse_entry(entry)?, Instant::now())
    }
}

/// What the clones of a bus share. Its consumers do not: they end with it.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[derive(Debug)]
struct Shared {
    /// Publishes to those that have subscribed, and counts.
    live: MemoryBus,
    store: Mutex<Store>,
    config: MemoryDurableConfig,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        // Nothing under the lock panics half way, so what a poisoned one guards is whole.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.store().close();
        self.live.close();
    }

    /// A delayed event was taken already, so no group is too full for it.
    async fn publish_delayed(&self, number: u64) {
        let item = {
            let mut store = self.store();
            let Some(item) = store.delayed.remove(number) else { return };
            store.append(&item);
            item
        };
        self.live.spread(&item.event, item.expiry).await;
    }
}

impl Item {
    fn new(event: Event, size: usize) -> Self {
        let expiry = Expiry::of(event.expires_at());
        Self { event, expiry, size, attempts: 0, hold: None }
    }
}
