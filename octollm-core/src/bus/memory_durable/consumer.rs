//! A consumer of the bus, and its leases.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::group::{Claim, Group, Lost, Turn};
use super::store::Membership;
use crate::bus::engine::{CloseConsumer, ConsumerEngine, Settle, Settlement, Settler};
use crate::bus::{Arrival, BusError, Consumer, Ended};

/// The consumer of a member that has joined.
pub(super) fn consumer(shared: Arc<Shared>, membership: Membership, lease: Duration) -> Consumer {
    let closer = MemoryCloser { shared: Arc::clone(&shared), membership: membership.clone() };
    // There is no way to the bus that would be worth sharing.
    let settler =
        Settler::direct(MemoryLeases { shared: Arc::clone(&shared), membership: membership.clone() });
    Consumer::new(Box::new(MemoryConsumer { shared, membership, lease, settler }), Arc::new(closer))
}

struct MemoryConsumer {
    shared: Arc<Shared>,
    membership: Membership,
    lease: Duration,
    settler: Settler<MemoryLeases>,
}

struct MemoryCloser {
    shared: Arc<Shared>,
    membership: Membership,
}

struct MemoryLeases {
    shared: Arc<Shared>,
    membership: Membership,
}

#[async_trait]
impl ConsumerEngine for MemoryConsumer {
    async fn next(&mut self) -> Result<Arrival, Ended> {
        tokio::task::coop::consume_budget().await;
        loop {
            // Made before the look at the group, or a change in between would be missed.
            let changed = self.membership.changed.notified();
            match self.turn() {
                Turn::Claim(claim) => {
                    let (event, attempt) = (claim.event.clone(), claim.attempt);
                    let delivery = self.settler.delivery(event, attempt, self.lease, claim);
                    return Ok(Arrival::Delivery(delivery));
                }
                Turn::Gap(gap) => return Ok(Arrival::Gap(gap)),
                Turn::Ended(reason) => return Err(reason),
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
            return Turn::Ended(Ended::Closed);
        }
        match store.slot(&self.membership.group) {
            Ok(slot) => slot.group.take(self.membership.member, Instant::now()),
            Err(_) => Turn::Ended(Ended::GroupRemoved),
        }
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
impl Settle for MemoryLeases {
    type Lease = Claim;

    async fn settle(&self, batch: Vec<(Claim, Settlement)>) -> Vec<Result<(), BusError>> {
        self.each(batch, |group, claim, settlement, now| group.settle(claim, settlement, now))
    }

    async fn extend(&self, batch: Vec<(Claim, Duration)>) -> Vec<Result<(), BusError>> {
        self.each(batch, |group, claim, time, now| group.extend(claim, time, now))
    }
}

impl MemoryLeases {
    /// Changes the group for each claim, and wakes its members: what they wait for may come sooner now.
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
