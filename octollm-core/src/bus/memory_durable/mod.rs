//! Consume and settle within one process.

mod group;
mod lanes;
mod member;
mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

use self::lanes::Item;
use self::store::Store;
use super::engine::{Capabilities, Capability, Counts, queue::Expiry};
use super::{
    BusError, ConsumeOptions, Consumer, DeadLetter, DurableBus, EventBus, GroupStatus, MemoryBus,
    MemoryBusConfig, Overflow, Subscription,
};
use crate::event::{Event, Patterns};

/// A [`DurableBus`] within one process: at least once while the process lives. Clones are the same bus.
///
/// Events of one partition key are worked off one after the other in the order they were published, in every group: while
/// one is unsettled, those behind it wait. When the last clone goes, the bus is closed.
#[derive(Debug, Clone)]
pub struct MemoryDurableBus {
    owner: Arc<Owner>,
}

/// What a [`MemoryDurableBus`] may be told. Checked when the bus is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryDurableConfig {
    /// The largest event taken, in the bytes of [`Event::size`](crate::event::Event::size). 1 MiB unless told.
    pub max_event_bytes: usize,
    /// How many events are kept for groups to come; older ones are a gap to them. 65 536 unless told.
    pub history: usize,
    /// How many events a group may have that are not settled; then publishing to it is [`BusError::Full`]. 1 048 576
    /// unless told.
    pub max_backlog: usize,
    /// How many events may wait for their time at once. 65 536 unless told.
    pub max_delayed: usize,
    /// How many dead letters a group keeps; then the oldest go and are counted. 65 536 unless told.
    pub max_dead_letters: usize,
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
    /// [`BusError::InvalidSetting`] names what makes no sense.
    pub fn with_config(config: MemoryDurableConfig) -> Result<Self, BusError> {
        config.validate()?;
        let live = MemoryBus::with_config(MemoryBusConfig { max_event_bytes: config.max_event_bytes })?;
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
        const MANY: usize = 64 * 1024;
        Self {
            max_event_bytes: 1024 * 1024,
            history: MANY,
            max_backlog: 16 * MANY,
            max_delayed: MANY,
            max_dead_letters: MANY,
        }
    }
}

impl MemoryDurableConfig {
    fn validate(&self) -> Result<(), BusError> {
        let invalid = |setting, problem| Err(BusError::InvalidSetting { setting, problem });
        if self.max_backlog == 0 {
            return invalid("max_backlog", "is zero");
        }
        if self.max_dead_letters == 0 {
            return invalid("max_dead_letters", "is zero");
        }
        if self.history > self.max_backlog {
            return invalid("history", "is more than a group may have as backlog");
        }
        Ok(())
    }
}

#[async_trait]
impl EventBus for MemoryDurableBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        tokio::task::coop::consume_budget().await;
        self.shared().live.admit(&event)?;
        let item = Item::new(event);
        {
            let mut store = self.shared().store();
            store.check_open()?;
            store.check_room(&item)?;
            store.append(&item);
        }
        self.shared().live.spread(&item.event, item.expiry).await;
        Ok(())
    }

    async fn subscribe_any(&self, patterns: Patterns, overflow: Overflow) -> Result<Subscription, BusError> {
        self.shared().live.subscribe_any(patterns, overflow).await
    }

    fn capabilities(&self) -> Capabilities {
        const CLAIMED: &[Capability] =
            &[Capability::OrderPerKey, Capability::Settling, Capability::History, Capability::Delay];
        Capabilities::new(CLAIMED, self.shared().config.max_event_bytes)
    }

    fn counts(&self) -> Counts {
        self.shared().live.counts()
    }

    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        let shared = self.shared();
        shared.live.admit(&event)?;
        let runtime =
            Handle::try_current().map_err(|error| BusError::Unavailable { source: Some(Box::new(error)) })?;
        let mut store = shared.store();
        store.check_open()?;
        let limit = shared.config.max_delayed;
        if store.delayed.len() >= limit {
            return Err(BusError::Full { limit });
        }
        let number = store.number();
        let (bus, due) = (Arc::downgrade(shared), Instant::now().checked_add(delay));
        let alarm = runtime.spawn(async move {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
            if let Some(shared) = bus.upgrade() {
                shared.tell_delayed(number).await;
            }
        });
        store.delayed.insert(number, event, alarm.abort_handle());
        Ok(())
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        Ok(self.shared().store().delayed.cancel(event_id))
    }
}

#[async_trait]
impl DurableBus for MemoryDurableBus {
    async fn consume_any(
        &self,
        group: &str,
        patterns: Patterns,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        options.validate()?;
        if group.is_empty() {
            return Err(BusError::InvalidSetting { setting: "group", problem: "is empty" });
        }
        let membership = self.shared().store().join(group, patterns, &options)?;
        Ok(member::consumer(Arc::clone(self.shared()), membership, options.lease))
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
        let number = Self::parse_entry(entry)?;
        let mut store = self.shared().store();
        let again = store.number();
        let slot = store.slot(group)?;
        let event = slot
            .group
            .exhume(number, Instant::now())
            .ok_or_else(|| BusError::UnknownDeadLetter { entry: entry.to_owned() })?;
        let expiry = Expiry::of(event.expires_at());
        slot.group.push(again, Item { event, expiry, attempts: 0 });
        slot.changed.notify_waiters();
        Ok(())
    }
}

/// What the clones of a bus share; its consumers do not, and end with it.
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
    /// Tells those that subscribe, and counts.
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
    async fn tell_delayed(&self, number: u64) {
        let item = {
            let mut store = self.store();
            let Some(event) = store.delayed.remove(number) else { return };
            let item = Item::new(event);
            store.append(&item);
            item
        };
        self.live.spread(&item.event, item.expiry).await;
    }
}

impl Item {
    fn new(event: Event) -> Self {
        let expiry = Expiry::of(event.expires_at());
        Self { event: Arc::new(event), expiry, attempts: 0 }
    }
}
