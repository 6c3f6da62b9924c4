//! A consumer of the bus, and its leases.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::group::{Claim, Lost, Turn};
use super::store::Membership;
use crate::bus::{Arrival, BusError, CloseConsumer, Consumer, ConsumerEngine, Delivery, Lease, Settlement};

/// The consumer of a member that has joined.
pub(super) fn consumer(shared: Arc<Shared>, membership: Membership, lease: Duration) -> Consumer {
    let closer = MemoryCloser { shared: Arc::clone(&shared), membership: membership.clone() };
    Consumer::new(Box::new(MemoryConsumer { shared, membership, lease }), Arc::new(closer))
}

struct MemoryConsumer {
    shared: Arc<Shared>,
    membership: Membership,
    lease: Duration,
}

struct MemoryCloser {
    shared: Arc<Shared>,
    membership: Membership,
}

struct MemoryLease {
    shared: Arc<Shared>,
    membership: Membership,
    claim: Claim,
}

#[async_trait]
impl ConsumerEngine for MemoryConsumer {
    async fn next(&mut self) -> Option<Arrival> {
        tokio::task::coop::consume_budget().await;
        loop {
            // Made before the look at the group, or a change in between would be missed.
            let changed = self.membership.changed.notified();
            match self.turn() {
                Turn::Claim(claim) => return Some(Arrival::Delivery(self.delivery(claim))),
                Turn::Gap(gap) => return Some(Arrival::Gap(gap)),
                Turn::Closed => return None,
                Turn::Wait(None) => changed.await,
                Turn::Wait(Some(until)) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }
}

impl MemoryConsumer {
    fn turn(&self) -> Turn {
        let mut store = self.shared.store();
        if store.check_open().is_err() {
            return Turn::Closed;
        }
        match store.slot(&self.membership.group) {
            Ok(slot) => slot.group.take(self.membership.member, Instant::now()),
            Err(_) => Turn::Closed,
        }
    }

    fn delivery(&self, claim: Claim) -> Delivery {
        let (event, attempt) = (Arc::clone(&claim.event), claim.attempt);
        let (shared, membership) = (Arc::clone(&self.shared), self.membership.clone());
        Delivery::new(event, attempt, self.lease, Box::new(MemoryLease { shared, membership, claim }))
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        if let Ok(slot) = self.shared.store().slot(&self.membership.group) {
            slot.group.leave(self.membership.member);
        }
        // Whoever closes it has nothing to wait for any more.
        self.membership.changed.notify_waiters();
    }
}

#[async_trait]
impl CloseConsumer for MemoryCloser {
    async fn close(&self) -> Result<(), BusError> {
        if let Ok(slot) = self.shared.store().slot(&self.membership.group) {
            slot.group.close(self.membership.member);
            slot.changed.notify_waiters();
        }
        loop {
            let changed = self.membership.changed.notified();
            let Some(until) = self.held_until() else { return Ok(()) };
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

impl MemoryCloser {
    /// When to look again at the latest, while something is held.
    fn held_until(&self) -> Option<Instant> {
        let mut store = self.shared.store();
        let group = &mut store.slot(&self.membership.group).ok()?.group;
        if group.is_idle(self.membership.member, Instant::now()) { None } else { group.next_due() }
    }
}

#[async_trait]
impl Lease for MemoryLease {
    async fn settle(&self, settlement: Settlement) -> Result<(), BusError> {
        let mut store = self.shared.store();
        let slot = store.slot(&self.membership.group).map_err(|_| self.lost(Lost))?;
        let settled = slot.group.settle(&self.claim, settlement, Instant::now());
        slot.changed.notify_waiters();
        settled.map_err(|lost| self.lost(lost))
    }

    async fn extend(&self, time: Duration) -> Result<(), BusError> {
        let mut store = self.shared.store();
        let slot = store.slot(&self.membership.group).map_err(|_| self.lost(Lost))?;
        let extended = slot.group.extend(&self.claim, time, Instant::now());
        // It may have been cut short, and the others sleep until it was to run out.
        slot.changed.notify_waiters();
        extended.map_err(|lost| self.lost(lost))
    }
}

impl MemoryLease {
    fn lost(&self, Lost: Lost) -> BusError {
        BusError::LeaseLost { event_id: self.claim.event.id().to_owned() }
    }
}
