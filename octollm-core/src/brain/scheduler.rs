//! The loops of a brain: claiming tasks, renewing leases.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{Inner, events, run};
use crate::{
    store::{Claim, Claimed, Run, StoreError, Topic},
    task::TaskSpent,
};

/// A store that failed is asked again after so long.
const PAUSE: Duration = Duration::from_millis(250);

/// Starts the loops of a brain, unless they run. They end with the brain.
pub(super) fn start(inner: &Arc<Inner>) {
    if inner.started.swap(true, std::sync::atomic::Ordering::AcqRel) || inner.running.is_closed() {
        return;
    }
    tokio::spawn(schedule(Loops(Arc::downgrade(inner)), inner.config.lease / 3));
    tokio::spawn(renew_leases(Arc::downgrade(inner), inner.config.lease));
    tokio::spawn(inner.relay.clone().run());
}

/// The loops may be started anew once they have ended, as when their runtime was shut down.
struct Loops(Weak<Inner>);

impl Drop for Loops {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.started.store(false, std::sync::atomic::Ordering::Release);
        }
    }
}

async fn schedule(brain: Loops, every: Duration) {
    let Some(inner) = brain.0.upgrade() else { return };
    let (mut queue, mut count) = (inner.store.changes(Topic::Queue), inner.running.count());
    let ended = inner.relay.ended.clone();
    drop(inner);
    loop {
        count.mark_unchanged();
        let wait = {
            let Some(inner) = brain.0.upgrade() else { return };
            if inner.running.is_closed() {
                return;
            }
            match claim(&inner).await {
                Ok(_) => every,
                Err(error) => {
                    tracing::warn!(%error, "tasks not claimed");
                    PAUSE.min(every)
                }
            }
        };
        tokio::select! {
            () = queue.changed(), if wait == every => {}
            changed = count.changed(), if wait == every => if changed.is_err() { return },
            () = ended.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

/// Claims as many tasks as may run, and starts them. Returns how many.
pub(super) async fn claim(inner: &Arc<Inner>) -> Result<usize, StoreError> {
    // One at a time: each counts the room that is left.
    let _turn = inner.claiming.lock().await;
    let mut started = 0;
    loop {
        let room = inner.running.room();
        if room == 0 {
            return Ok(started);
        }
        let spent = TaskSpent::default();
        let effects = |record: &crate::task::TaskRecord| events::of_change(record, &spent, inner.source());
        let claim = Claim {
            holder: &inner.holder,
            contracts: &inner.contracts,
            lease: inner.config.lease,
            limit: room,
            effects: &effects,
        };
        let asked = Instant::now();
        // What is claimed by an answer that comes later is free again when the lease expires.
        let claimed = timeout(inner.config.lease / 3, inner.store.claim(claim)).await;
        let claimed = claimed.map_err(|_| StoreError::Unavailable("no answer came in time".into()))??;
        let count = claimed.len();
        started += count;
        for claimed in claimed {
            begin(inner, claimed, asked + inner.config.lease);
        }
        // No more are free; the store reports those that come.
        if count < room {
            return Ok(started);
        }
    }
}

fn begin(inner: &Arc<Inner>, claimed: Claimed, held_until: Instant) {
    let record = &claimed.record;
    let log = Arc::new(super::updates::UpdateLog::new(record.id().clone(), record.task().progress.clone()));
    let run = Run::new(record.id().clone(), record.run());
    match inner.running.begin(run.clone(), log.clone(), held_until) {
        Some(cancellation) => {
            tokio::spawn(run::run(inner.clone(), claimed, run::Started { run, log, cancellation }));
        }
        // The brain was closed meanwhile, or begins no more runs.
        None => {
            tokio::spawn(run::release(inner.clone(), claimed.record));
        }
    }
}

/// Renews leases at a third of their time, and stops each run when its lease expires. A run that begins meanwhile has two
/// thirds left, so that it expires in no pause.
async fn renew_leases(brain: Weak<Inner>, lease: Duration) {
    let every = lease / 3;
    let mut wait = every;
    loop {
        sleep(wait).await;
        let Some(inner) = brain.upgrade() else { return };
        let asked = inner.running.held();
        if asked.is_empty() && inner.running.is_closed() {
            return;
        }
        wait = every;
        if !asked.is_empty() && !renew(&inner, &asked, lease).await {
            wait = every / 4;
        }
        inner.running.expire(Instant::now());
        wait = wait.min(inner.running.time_to_expiry().unwrap_or(wait));
    }
}

/// Renews the leases of these runs. What the store has given to others is stopped.
async fn renew(inner: &Inner, asked: &[Run], lease: Duration) -> bool {
    let at = Instant::now();
    let limit = inner.running.time_to_expiry().map_or(lease / 3, |left| left.min(lease / 3));
    match timeout(limit, inner.store.renew(&inner.holder, lease, asked)).await {
        Ok(Ok(held)) => {
            inner.running.renewed(asked, &held, at + lease);
            true
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "leases not renewed");
            false
        }
        Err(_) => {
            tracing::warn!("leases not renewed in time");
            false
        }
    }
}
