//! The runs of a brain, the reasons to stop them, and the leases that they hold.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::updates::UpdateLog;
use crate::id::TaskId;

/// A run of a task: the task, and the number of the run from 1.
pub(super) type Run = (TaskId, u32);

/// The reason to stop a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// On request: the task becomes cancelled.
    Cancel,
    /// The brain closes: the task is queued again.
    Close,
    /// Another brain holds the task, or may hold it: nothing is written.
    Lost,
}

/// The runs of a brain. Every method is one short step under one lock.
pub(super) struct Running {
    state: Mutex<Runs>,
    max: usize,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Runs {
    runs: BTreeMap<Run, Entry>,
    /// Places of tasks that are being created, and may start at once.
    reserved: usize,
    /// Nothing more is claimed.
    drained: bool,
    closed: bool,
}

struct Entry {
    log: Arc<UpdateLog>,
    cancellation: CancellationToken,
    stop: Option<Stop>,
    /// After this moment the lease has expired, as far as is known here.
    held_until: Instant,
}

impl Running {
    pub(super) fn new(max: usize) -> Self {
        Self { state: Mutex::default(), max, count: watch::Sender::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, Runs> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of further runs that may begin.
    pub(super) fn room(&self) -> usize {
        let state = self.state();
        state.room(self.max)
    }

    /// Reserves a place for a run that may begin. `None` where there is no room.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Reserved> {
        let mut state = self.state();
        (state.room(self.max) > 0).then(|| {
            state.reserved += 1;
            Reserved(self.clone())
        })
    }

    /// Adds a run, whose lease expires at `held_until`. `None` where the brain is closed or drained.
    pub(super) fn begin(
        &self,
        run: Run,
        log: Arc<UpdateLog>,
        held_until: Instant,
    ) -> Option<CancellationToken> {
        let mut state = self.state();
        if state.closed || state.drained {
            return None;
        }
        let cancellation = CancellationToken::new();
        let entry = Entry { log, cancellation: cancellation.clone(), stop: None, held_until };
        state.runs.insert(run, entry);
        self.count.send_replace(state.runs.len());
        Some(cancellation)
    }

    /// Removes a run.
    pub(super) fn end(&self, run: &Run) {
        let mut state = self.state();
        state.runs.remove(run);
        self.count.send_replace(state.runs.len());
    }

    /// Stops the runs of a task, and returns the latest one. The first reason to stop a run counts.
    pub(super) fn stop(&self, task: &TaskId, why: Stop) -> Option<Run> {
        let mut state = self.state();
        let of_task = (task.clone(), 0)..=(task.clone(), u32::MAX);
        let mut latest = None;
        for (run, entry) in state.runs.range_mut(of_task) {
            entry.halt(why);
            latest = Some(run.clone());
        }
        latest
    }

    /// Stops one run.
    pub(super) fn stop_run(&self, run: &Run, why: Stop) {
        if let Some(entry) = self.state().runs.get_mut(run) {
            entry.halt(why);
        }
    }

    /// The reason why a run was stopped.
    pub(super) fn stopped(&self, run: &Run) -> Option<Stop> {
        self.state().runs.get(run).and_then(|entry| entry.stop)
    }

    /// The updates of a task that runs here.
    pub(super) fn log(&self, task: &TaskId) -> Option<Arc<UpdateLog>> {
        let state = self.state();
        let of_task = (task.clone(), 0)..=(task.clone(), u32::MAX);
        state.runs.range(of_task).next_back().map(|(_, entry)| entry.log.clone())
    }

    /// The runs whose leases are to be renewed.
    pub(super) fn held(&self) -> Vec<Run> {
        let state = self.state();
        state.runs.iter().filter(|(_, entry)| entry.is_held()).map(|(run, _)| run.clone()).collect()
    }

    /// Whether a run holds its task at `now`, as far as is known here.
    pub(super) fn is_held(&self, run: &Run, now: Instant) -> bool {
        self.state().runs.get(run).is_some_and(|entry| entry.is_held() && now < entry.held_until)
    }

    /// Whether the lease of a run has expired at `now`, as far as is known here.
    pub(super) fn has_expired(&self, run: &Run, now: Instant) -> bool {
        self.state().runs.get(run).is_none_or(|entry| entry.held_until <= now)
    }

    /// The time from `now` until the next lease expires. A run whose lease has expired may still be ending.
    pub(super) fn time_to_expiry(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let held = state.runs.values().filter(|entry| entry.is_held() && entry.held_until > now);
        held.map(|entry| entry.held_until - now).min()
    }

    /// Extends the leases of the runs in `held` to `until`, and stops the other ones of `asked` as lost.
    pub(super) fn renewed(&self, asked: &[Run], held: &[Run], until: Instant) {
        let held: HashSet<&Run> = held.iter().collect();
        let mut state = self.state();
        for run in asked {
            let Some(entry) = state.runs.get_mut(run) else { continue };
            if held.contains(run) {
                entry.held_until = until;
            } else {
                entry.halt(Stop::Lost);
            }
        }
    }

    /// Stops the runs whose leases have expired.
    pub(super) fn expire(&self, now: Instant) {
        for entry in self.state().runs.values_mut().filter(|entry| entry.held_until <= now) {
            entry.halt(Stop::Lost);
        }
    }

    /// Begins nothing more.
    pub(super) fn drain(&self) {
        self.state().drained = true;
    }

    /// Begins nothing more, and stops what runs.
    pub(super) fn close(&self, why: Stop) {
        let mut state = self.state();
        state.closed = true;
        state.runs.values_mut().for_each(|entry| entry.halt(why));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Changes whenever a run begins or ends.
    pub(super) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Returns when a run has ended.
    pub(super) async fn ended(&self, run: &Run) {
        let mut count = self.count.subscribe();
        while self.state().runs.contains_key(run) {
            // The sender is in `self`.
            let _ = count.changed().await;
        }
    }

    /// Returns when nothing runs, and nothing is about to.
    pub(super) async fn idle(&self) {
        let mut count = self.count.subscribe();
        while !self.state().is_idle() {
            // The sender is in `self`.
            let _ = count.changed().await;
        }
    }
}

impl Runs {
    fn room(&self, max: usize) -> usize {
        match self.closed || self.drained {
            true => 0,
            false => max.saturating_sub(self.runs.len() + self.reserved),
        }
    }

    fn is_idle(&self) -> bool {
        self.runs.is_empty() && self.reserved == 0
    }
}

/// A place that is reserved for a run.
pub(super) struct Reserved(Arc<Running>);

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.reserved -= 1;
        self.0.count.send_replace(state.runs.len());
    }
}

impl Entry {
    fn is_held(&self) -> bool {
        self.stop != Some(Stop::Lost)
    }

    fn halt(&mut self, why: Stop) {
        self.stop.get_or_insert(why);
        self.cancellation.cancel();
    }
}
