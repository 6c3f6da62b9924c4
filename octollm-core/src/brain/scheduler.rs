//! How a brain claims tasks, and renews and ends their leases.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::Instrument;

use super::{
    Inner,
    arm::Caller,
    limited, meters, run,
    running::{Reserved, Run},
    updates::UpdateLog,
};
use crate::{
    store::{Claim, SideEffects, Start, StoreError},
    task::TaskRecord,
};

/// Pause after a failure of the store.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest time between two claims: the store reports no lease that expires.
const LONGEST: Duration = Duration::from_secs(2);
/// The shortest wait for a delayed task.
const SHORTEST: Duration = Duration::from_millis(1);

/// Starts the loops of a brain, unless they run. They end with the brain.
pub(super) fn start(inner: &Arc<Inner>) {
    if inner.started.swap(true, std::sync::atomic::Ordering::AcqRel) || inner.running.is_closed() {
        return;
    }
    tokio::spawn(schedule(Loops(Arc::downgrade(inner)), LONGEST.min(inner.limits.lease / 3)));
    tokio::spawn(renew_leases(Arc::downgrade(inner), inner.limits.lease));
    inner.relay.wake();
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
    let (mut queue, mut count) = (inner.store.queue_changes(), inner.running.count());
    let ended = inner.relay.ended.clone();
    drop(inner);
    loop {
        count.mark_unchanged();
        let (wait, is_full) = {
            let Some(inner) = brain.0.upgrade() else { return };
            if inner.running.is_closed() {
                return;
            }
            match claim(&inner).await {
                Ok(Claims { free_in, is_full, .. }) => {
                    (free_in.map_or(every, |time| time.clamp(SHORTEST, every)), Some(is_full))
                }
                Err(error) => {
                    tracing::warn!(%error, "tasks not claimed");
                    (PAUSE.min(every), None)
                }
            }
        };
        tokio::select! {
            () = store_changed(&mut queue), if is_full.is_some() => {}
            // Where there was room, nothing is free that the store does not report.
            changed = count.changed(), if is_full == Some(true) => if changed.is_err() { return },
            () = ended.cancelled() => return,
            () = sleep(wait) => {}
        }
    }
}

/// Returns at the next change of the store. A store that is gone has no changes.
pub(super) async fn store_changed(changes: &mut watch::Receiver<()>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a brain has claimed.
pub(super) struct Claims {
    pub(super) started: usize,
    /// The time until a delayed task is free.
    free_in: Option<Duration>,
    /// Whether further tasks may be free, for which there is no room.
    is_full: bool,
}

/// Claims as many tasks as may run, and starts them.
pub(super) async fn claim(inner: &Arc<Inner>) -> Result<Claims, StoreError> {
    // One at a time: each counts the room that is left.
    let _turn = inner.claiming.lock().await;
    let mut started = 0;
    loop {
        let room = inner.running.room();
        if room == 0 {
            return Ok(Claims { started, free_in: None, is_full: true });
        }
        let (lease, asked) = (inner.limits.lease, Instant::now());
        let (holder, source, contracts) = (&*inner.holder, inner.source(), &*inner.contracts);
        let claim =
            Claim { holder, contracts, lease, limit: room, max_running: &inner.max_running_of, source };
        // Tasks that are claimed by a later answer are free again when their leases expire.
        let claimed = timeout(lease / 3, limited(inner.store.claim(&claim))).await;
        let claimed = claimed.map_err(|_| StoreError::Unavailable("no answer came in time".into()))??;
        let count = claimed.tasks.len();
        started += count;
        for (record, time_left) in claimed.tasks {
            if let Some(record) = begin(inner, record, time_left, asked + lease) {
                run::release(inner, record).await;
            }
        }
        // No more are free; the store reports those that come.
        if count < room {
            return Ok(Claims { started, free_in: claimed.free_in, is_full: false });
        }
    }
}

/// Creates a task, and starts it where the store does. Returns it as it is stored.
///
/// Once it is begun it is to end: a task that is started and not begun would wait for the end of its lease.
pub(super) async fn create(
    inner: Arc<Inner>,
    record: TaskRecord,
    mut effects: SideEffects,
    place: Option<Reserved>,
) -> Result<Arc<TaskRecord>, StoreError> {
    let (lease, asked, id) = (inner.limits.lease, Instant::now(), record.id().clone());
    effects.start = place.is_some().then(|| Start::new(&inner.holder, lease, inner.source()));
    let (tasks, bytes) = (inner.limits.max_queued, inner.limits.max_queued_bytes);
    let stored = match limited(inner.store.create(record, effects, tasks, bytes)).await {
        // It may have been stored all the same.
        Err(error @ StoreError::Unavailable(_)) => match limited(inner.store.get(&id)).await {
            Ok(Some(stored)) => stored,
            _ => return Err(error),
        },
        created => created?,
    };
    if place.is_some() && *stored.id() == id && stored.is_held(&inner.holder, 1) {
        let time_left = stored.time_limit();
        if let Some(record) = begin(&inner, stored.clone(), time_left, asked + lease) {
            run::release(&inner, record).await;
        }
    }
    Ok(stored)
}

/// Starts a claimed task. Returns it where the brain begins no more runs.
fn begin(
    inner: &Arc<Inner>,
    record: Arc<TaskRecord>,
    time_left: Duration,
    held_until: Instant,
) -> Option<Arc<TaskRecord>> {
    let (cx, caller) = inner.callers.take(record.id()).map(|Caller { cx, ended }| (cx, ended)).unzip();
    let log = Arc::new(UpdateLog::new(record.id().clone(), record.task().progress.clone(), cx));
    let run = (record.id().clone(), record.run());
    match inner.running.begin(run.clone(), log.clone(), held_until) {
        Some(cancellation) => {
            let (inner, started) =
                (inner.clone(), run::Started { record, time_left, run, log, cancellation, caller });
            tokio::spawn(async move {
                // Not within the span of a submitter, which would be its parent twice.
                let span = meters::span(&started.record);
                run::run(inner, started).instrument(span).await;
            });
            None
        }
        None => Some(record),
    }
}

/// Renews leases after a third of their time, and stops each run whose lease expires. A run that begins meanwhile has two
/// thirds left, so that its lease does not expire during a pause.
async fn renew_leases(brain: Weak<Inner>, lease: Duration) {
    let every = lease / 3;
    let mut wait = every;
    loop {
        sleep(wait).await;
        let Some(inner) = brain.upgrade() else { return };
        inner.running.expire(Instant::now());
        let asked = inner.running.held();
        if asked.is_empty() && inner.running.is_closed() {
            return;
        }
        wait = every;
        if !asked.is_empty() && !renew(&inner, &asked, lease).await {
            wait = every / 4;
        }
        let now = Instant::now();
        inner.running.expire(now);
        wait = wait.min(inner.running.time_to_expiry(now).unwrap_or(wait));
    }
}

/// Renews the leases of these runs, and stops those that other brains hold. Returns whether the store answered.
async fn renew(inner: &Inner, asked: &[Run], lease: Duration) -> bool {
    let at = Instant::now();
    let limit = inner.running.time_to_expiry(at).map_or(lease / 3, |left| left.min(lease / 3));
    match timeout(limit, limited(inner.store.renew(&inner.holder, lease, asked))).await {
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
