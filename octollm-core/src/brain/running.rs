//! The tasks that a brain runs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::updates::UpdateLog;
use crate::{id::TaskId, store::Run};

/// Why a run is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// On request: the task becomes cancelled.
    Cancel,
    /// The brain closes: the task is queued again.
    Close,
    /// The task is another brain's by now, or may be: nothing is written.
    Lost,
}

/// The runs of a brain. Every method is one short step under one lock.
pub(super) struct Running {
    state: Mutex<State>,
    max: usize,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    runs: BTreeMap<Run, Entry>,
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many more may run.
    pub(super) fn room(&self) -> usize {
        let state = self.state();
        if state.closed || state.drained { 0 } else { self.max.saturating_sub(state.runs.len()) }
    }

    /// A run begins, whose lease expires then. `None` where the brain is closed or begins no more runs.
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

    /// A run has ended.
    pub(super) fn end(&self, run: &Run) {
        let mut state = self.state();
        state.runs.remove(run);
        self.count.send_replace(state.runs.len());
    }

    /// Stops the runs of a task, for the first reason given. Returns the latest run, where one is running here.
    pub(super) fn stop(&self, task: &TaskId, why: Stop) -> Option<Run> {
        let mut state = self.state();
        let of_task = Run::new(task.clone(), 0)..=Run::new(task.clone(), u32::MAX);
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

    /// Why a run was stopped, if it was.
    pub(super) fn stopped(&self, run: &Run) -> Option<Stop> {
        self.state().runs.get(run).and_then(|entry| entry.stop)
    }

    /// The updates of a task that runs here.
    pub(super) fn log(&self, task: &TaskId) -> Option<Arc<UpdateLog>> {
        let state = self.state();
        let of_task = Run::new(task.clone(), 0)..=Run::new(task.clone(), u32::MAX);
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

    /// How long it is until the first lease expires.
    pub(super) fn time_to_expiry(&self) -> Option<Duration> {
        let state = self.state();
        let first = state.runs.values().filter(|entry| entry.is_held()).map(|entry| entry.held_until).min();
        first.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// The leases of `asked` were renewed until `until`, but for those that are not in `held`: these are lost.
    pub(super) fn renewed(&self, asked: &[Run], held: &[Run], until: Instant) {
        let held: std::collections::HashSet<&Run> = held.iter().collect();
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

    /// Stops the runs whose lease has expired because the store could not be asked in time.
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
            // The sender is ours: it is not gone.
            let _ = count.changed().await;
        }
    }

    /// Returns when nothing runs.
    pub(super) async fn idle(&self) {
        let _ = self.count.subscribe().wait_for(|running| *running == 0).await;
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
