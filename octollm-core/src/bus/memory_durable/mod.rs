//! A durable bus within one process.

mod group;
mod queue;
mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

use self::group::{Claim, Group, Lost, Turn};
use self::store::{Item, Limit, Limits, Membership, Store};
use super::engine::ConsumerEngine;
use super::{
    BusError, Capability, ConsumeOptions, Consumer, DeadLetter, DelayBus, DurableBus, EventBus, Gap,
    GroupStatus, MemoryBus, Nack, Overflow, Subscription,
};
use crate::error::ConfigError;
use crate::event::{Event, Pattern};

/// A [`DurableBus`] within one process. It delivers at least once while the process lives. Clones are handles of the
/// same bus.
///
/// Each group handles the events of one partition key one at a time, in the order of publication. When the last handle
/// is dropped, the bus is closed.
///
/// The bus can be used from several runtimes. An event of [`publish_after`](DelayBus::publish_after) waits on the
/// runtime of its publisher, and is lost if that runtime ends before.
#[derive(Debug, Clone)]
pub struct MemoryDurableBus {
    owner: Arc<Owner>,
}

/// Builds a [`MemoryDurableBus`].
///
/// Each limit is a number of events and the sum of their [`size`](crate::event::Event::size)s in bytes.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryDurableBusBuilder {
    max_event_bytes: usize,
    block_timeout: Duration,
    limits: Limits,
}

impl MemoryDurableBus {
    /// Creates a bus with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a builder, to set the limits.
    pub fn builder() -> MemoryDurableBusBuilder {
        MemoryDurableBusBuilder {
            max_event_bytes: MemoryBus::DEFAULT_MAX_EVENT_BYTES,
            block_timeout: MemoryBus::DEFAULT_BLOCK_TIMEOUT,
            limits: Limits::default(),
        }
    }

    /// Ends every subscription and consumer. Deliveries can still be settled. Closing twice has no effect.
    pub fn close(&self) {
        self.owner.shared.close();
    }

    fn over(live: MemoryBus, limits: Limits) -> Self {
        let store = Mutex::new(Store::new(limits));
        Self { owner: Arc::new(Owner { shared: Arc::new(Shared { live, store }) }) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    fn parse_entry(entry: &str) -> Result<u64, BusError> {
        entry.parse().map_err(|_| BusError::UnknownDeadLetter { entry: entry.to_owned() })
    }
}

impl MemoryDurableBusBuilder {
    /// Sets the size of the largest event that is accepted (default 1 MiB). Each limit below has room for such an
    /// event, except that the history can be empty.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets the time for which a publisher waits for a subscriber under [`Overflow::Block`] (default 5 s). It does not wait if
    /// that is zero.
    pub fn block_timeout(mut self, timeout: Duration) -> Self {
        self.block_timeout = timeout;
        self
    }

    /// Limits the events that are stored for later groups (default 65 536 events, 64 MiB). A group that starts with the
    /// history receives a gap if older events were deleted.
    pub fn history(mut self, events: usize, bytes: usize) -> Self {
        self.limits.history = Limit { events, bytes };
        self
    }

    /// Limits the unsettled events of a group (default 1 048 576 events, 256 MiB). Publishing another one to the group
    /// returns [`BusError::Full`].
    pub fn backlog(mut self, events: usize, bytes: usize) -> Self {
        self.limits.backlog = Limit { events, bytes };
        self
    }

    /// Limits the events that are to be published later (default 65 536 events, 64 MiB). Adding another one returns
    /// [`BusError::Full`].
    pub fn delayed(mut self, events: usize, bytes: usize) -> Self {
        self.limits.delayed = Limit { events, bytes };
        self
    }

    /// Limits the dead letters of a group (default 65 536 events, 64 MiB with their reasons). The oldest are deleted to make room.
    pub fn dead_letters(mut self, events: usize, bytes: usize) -> Self {
        self.limits.dead_letters = Limit { events, bytes };
        self
    }

    /// Creates the bus.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that is not valid.
    pub fn build(self) -> Result<MemoryDurableBus, ConfigError> {
        let invalid = |setting, reason| Err(ConfigError::new(setting, reason));
        let live = MemoryBus::with_limits(self.max_event_bytes, self.block_timeout)?;
        let Limits { history, backlog, delayed, dead_letters } = self.limits;
        for (setting, limit) in [("backlog", backlog), ("delayed", delayed), ("dead_letters", dead_letters)] {
            if !limit.allows(1, self.max_event_bytes) {
                return invalid(setting, "has no room for the largest event");
            }
        }
        if !backlog.allows(history.events, history.bytes) {
            return invalid("history", "is greater than the backlog");
        }
        Ok(MemoryDurableBus::over(live, self.limits))
    }
}

impl Default for MemoryDurableBus {
    fn default() -> Self {
        let live = MemoryBus::new();
        Self::over(live, Limits::default())
    }
}

#[async_trait]
impl EventBus for MemoryDurableBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        tokio::task::coop::consume_budget().await;
        let size = self.shared().live.check(&event)?;
        let item = Item::new(event, size);
        {
            let mut store = self.shared().store();
            store.check_open()?;
            store.check_room(&item)?;
            store.append(&item);
        }
        self.shared().live.deliver(&item.event, item.expiry).await;
        Ok(())
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.shared().live.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        &[
            Capability::OrderPerKey,
            Capability::History,
            Capability::FencedSettling,
            Capability::AttemptCounts,
            Capability::DelayedNack,
            Capability::LeaseExtension,
        ]
    }

    fn max_event_bytes(&self) -> usize {
        self.shared().live.max_event_bytes()
    }
}

#[async_trait]
impl DelayBus for MemoryDurableBus {
    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        let shared = self.shared();
        let size = shared.live.check(&event)?;
        let runtime = Handle::try_current().map_err(BusError::unavailable)?;
        let mut store = shared.store();
        store.check_open()?;
        store.check_delayed(size)?;
        let number = store.number();
        let (bus, due) = (Arc::downgrade(shared), Instant::now().checked_add(delay));
        let timer = runtime.spawn(async move {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
            if let Some(shared) = bus.upgrade() {
                shared.publish_delayed(number).await;
            }
        });
        store.delay(number, Item::new(event, size), timer.abort_handle());
        Ok(())
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        Ok(self.shared().store().cancel_delayed(event_id))
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
        options.check()?;
        if group.is_empty() {
            return Err(ConfigError::new("group", "is empty").into());
        }
        let membership = self.shared().store().join(group, pattern, options)?;
        let member = Member { shared: Arc::clone(self.shared()), membership };
        Ok(Consumer::new(member, options.lease))
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

/// Shared by the handles of a bus. Its consumers do not hold it, because they end with the last handle.
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
    /// Delivers to subscribers, and counts.
    live: MemoryBus,
    store: Mutex<Store>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        // No code panics while it holds the lock, so the store is consistent.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.store().close();
        self.live.close();
    }

    /// Publishes to groups without a check for room, because the event was accepted before.
    async fn publish_delayed(&self, number: u64) {
        let item = {
            let mut store = self.store();
            let Some(item) = store.take_delayed(number) else { return };
            store.append(&item);
            item
        };
        self.live.deliver(&item.event, item.expiry).await;
    }
}

/// A member of a group.
struct Member {
    shared: Arc<Shared>,
    membership: Membership,
}

#[async_trait]
impl ConsumerEngine for Member {
    type Receipt = Claim;

    async fn next(&self) -> Result<Result<(Event, u32, Claim), Gap>, BusError> {
        tokio::task::coop::consume_budget().await;
        loop {
            // Created before the group is read, so that no change in between is missed.
            let changed = self.membership.changed.notified();
            match self.turn()? {
                Turn::Claim(claim) => return Ok(Ok((claim.event.clone(), claim.attempt, claim))),
                Turn::Gap(gap) => return Ok(Err(gap)),
                Turn::Wait(None) => changed.await,
                Turn::Wait(Some(until)) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    async fn settle(&self, batch: Vec<(Claim, Result<(), Nack>)>) -> Vec<Result<(), BusError>> {
        self.each(batch, |group, claim, outcome, now| group.settle(claim, outcome, now))
    }

    async fn extend(&self, batch: Vec<(Claim, Duration)>) -> Vec<Result<(), BusError>> {
        self.each(batch, |group, claim, time, now| group.extend(claim, time, now))
    }

    async fn close(&self) -> Result<(), BusError> {
        loop {
            let changed = self.membership.changed.notified();
            let Some(until) = self.busy_until() else { return Ok(()) };
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {}
            }
        }
    }

    fn name(&self) -> String {
        self.membership.member.to_string()
    }

    fn leave(&self) {
        if let Ok(slot) = self.shared.store().slot(&self.membership.group) {
            slot.group.leave(self.membership.member);
        }
        self.membership.changed.notify_waiters();
    }
}

impl Member {
    fn turn(&self) -> Result<Turn, BusError> {
        let mut store = self.shared.store();
        store.check_open()?;
        let group = &self.membership.group;
        let turn = store.slot(group)?.group.take(self.membership.member, Instant::now());
        // A group of the same name may have been created since.
        turn.ok_or_else(|| BusError::UnknownGroup { group: group.to_string() })
    }

    /// Returns when the next lease expires, or `None` if this member has no deliveries.
    fn busy_until(&self) -> Option<Instant> {
        let mut store = self.shared.store();
        let group = &mut store.slot(&self.membership.group).ok()?.group;
        if group.is_idle(self.membership.member, Instant::now()) { None } else { group.next_due() }
    }

    /// Applies a change to each claim, and wakes the members of the group.
    fn each<T>(
        &self,
        batch: Vec<(Claim, T)>,
        change: impl Fn(&mut Group, &Claim, T, Instant) -> Result<(), Lost>,
    ) -> Vec<Result<(), BusError>> {
        let lost = |claim: &Claim| BusError::LeaseLost { event_id: claim.event.id().to_owned() };
        let (mut store, now) = (self.shared.store(), Instant::now());
        let Ok(slot) = store.slot(&self.membership.group) else {
            return batch.iter().map(|(claim, _)| Err(lost(claim))).collect();
        };
        let one = |(claim, how)| change(&mut slot.group, &claim, how, now).map_err(|Lost| lost(&claim));
        let results = batch.into_iter().map(one).collect();
        slot.changed.notify_waiters();
        results
    }
}
