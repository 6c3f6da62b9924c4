//! Keeps hold of what a brain runs, and takes up what others have left.

use std::sync::{Arc, Weak};

use futures_util::{StreamExt, stream};

use super::{Inner, desk::Stop, run};
use crate::{
    id::TaskId,
    store::StoreError,
    task::{Lease, TaskRecord},
};

/// Starts the keeper of a brain, once. It ends with the brain.
pub(super) fn start(inner: &Arc<Inner>) {
    if inner.desk.needs_keeper() {
        tokio::spawn(keep(Arc::downgrade(inner), inner.config.lease / 3));
    }
}

async fn keep(brain: Weak<Inner>, every: std::time::Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(inner) = brain.upgrade() else { return };
        if inner.desk.is_closed() {
            return;
        }
        let renewals = inner.desk.running().into_iter().map(|id| renew_or_tell(&inner, id));
        // One behind the other, leases would run out while a slow store is asked for the first of them.
        stream::iter(renewals).for_each_concurrent(RENEWED_AT_ONCE, |renewal| renewal).await;
        if let Err(error) = run::take_free(&inner).await {
            tracing::warn!(%error, "tasks not looked for");
        }
    }
}

/// How many leases are renewed at a time.
const RENEWED_AT_ONCE: usize = 64;

async fn renew_or_tell(inner: &Inner, id: TaskId) {
    if let Err(error) = renew(inner, &id).await {
        tracing::warn!(task = %id, %error, "lease not renewed");
    }
}

/// Holds a task for longer, or lets go of it where another brain has it.
async fn renew(inner: &Inner, id: &TaskId) -> Result<(), StoreError> {
    loop {
        let Some(mut record) = inner.store.get(id).await? else {
            inner.desk.stop(id, Stop::Lost);
            return Ok(());
        };
        if !is_ours(&record, &inner.holder) {
            // Between being taken from the queue and being started it is nobody's yet.
            if !record.is_free(inner.clock.now()) {
                inner.desk.stop(id, Stop::Lost);
            }
            return Ok(());
        }
        record.lease = Some(inner.lease());
        match inner.store.update(&mut record).await {
            Err(StoreError::Conflict) => {}
            other => return other,
        }
    }
}

pub(super) fn is_ours(record: &TaskRecord, holder: &str) -> bool {
    record.lease.as_ref().is_some_and(|lease| lease.holder == holder)
}

impl Inner {
    /// A hold on a task from now.
    pub(super) fn lease(&self) -> Lease {
        let now = self.clock.now();
        Lease { holder: self.holder.clone(), until: now.checked_add(self.config.lease).unwrap_or(now) }
    }
}
