//! What a brain has in hand: tasks that wait and tasks that run.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{config::BrainConfig, queue::Queue, updates::UpdateLog};
use crate::{
    error::{ErrorKind, Failure},
    id::TaskId,
    task::{Priority, TaskRecord},
};

/// Why a running task is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somebody asked for it: it becomes cancelled.
    Cancel,
    /// The brain closes: it is queued again.
    Close,
    /// Another brain has it, or this one crashed: nothing is written.
    Lost,
}

/// The tasks in hand. Every method is one short step under one lock.
pub(super) struct Desk {
    state: Mutex<State>,
    max_running: usize,
    max_queued: usize,
    running: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    queue: Queue,
    waiting: HashMap<TaskId, (Priority, Arc<UpdateLog>)>,
    running: HashMap<TaskId, Running>,
    closed: bool,
    keeper: bool,
    more_is_free: bool,
}

struct Running {
    log: Arc<UpdateLog>,
    cancellation: CancellationToken,
    stop: Option<Stop>,
    /// It was queued again while it ran.
    again: Option<Priority>,
}

impl State {
    fn wait(&mut self, id: &TaskId, priority: Priority) {
        self.queue.push(priority, id.clone());
        self.waiting.insert(id.clone(), (priority, Arc::new(UpdateLog::new(id.clone()))));
    }
}

/// A task that has just been taken from the queue to be run.
pub(super) struct Started {
    pub(super) id: TaskId,
    pub(super) log: Arc<UpdateLog>,
    pub(super) cancellation: CancellationToken,
}

impl Desk {
    pub(super) fn new(config: &BrainConfig) -> Self {
        Self {
            state: Mutex::default(),
            max_running: config.max_running,
            max_queued: config.max_queued,
            running: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more task could wait.
    pub(super) fn has_room(&self) -> Result<(), Failure> {
        let state = self.state();
        if state.closed {
            return Err(Failure::new(ErrorKind::Unavailable, "the brain is closed"));
        }
        if state.queue.len() >= self.max_queued {
            let full = Failure::new(ErrorKind::Overloaded, "too many tasks are waiting");
            return Err(Failure { retry_after: Some(Duration::from_secs(1)), ..full });
        }
        Ok(())
    }

    /// Puts a task in the queue, unless it is in hand already. Tasks that were let in before the queue filled up, or that
    /// the store kept, are never turned away here: they are known to the store and wait there.
    /// One that still runs, because its end is being told, is queued once it is done.
    pub(super) fn enqueue(&self, id: &TaskId, priority: Priority) -> bool {
        let mut state = self.state();
        if state.closed || state.waiting.contains_key(id) {
            return false;
        }
        if let Some(running) = state.running.get_mut(id) {
            running.again = Some(priority);
            return false;
        }
        state.wait(id, priority);
        true
    }

    /// Takes the next task from the queue, if one waits and may run.
    pub(super) fn next(&self) -> Option<Started> {
        let mut state = self.state();
        if state.closed || state.running.len() >= self.max_running {
            return None;
        }
        let id = state.queue.pop()?;
        let (_, log) = state.waiting.remove(&id)?;
        let cancellation = CancellationToken::new();
        let running =
            Running { log: log.clone(), cancellation: cancellation.clone(), stop: None, again: None };
        state.running.insert(id.clone(), running);
        self.running.send_replace(state.running.len());
        Some(Started { id, log, cancellation })
    }

    /// A task no longer runs.
    pub(super) fn done(&self, id: &TaskId) {
        let mut state = self.state();
        let again = state.running.remove(id).and_then(|running| running.again);
        if let Some(priority) = again.filter(|_| !state.closed) {
            state.wait(id, priority);
        }
        self.running.send_replace(state.running.len());
    }

    /// Stops a running task; its updates then end with its last status. `None` when it does not run here.
    pub(super) fn stop(&self, id: &TaskId, why: Stop) -> Option<Arc<UpdateLog>> {
        let mut state = self.state();
        let running = state.running.get_mut(id)?;
        running.stop.get_or_insert(why);
        running.cancellation.cancel();
        Some(running.log.clone())
    }

    /// Why a running task was stopped, if it was.
    pub(super) fn stopped(&self, id: &TaskId) -> Option<Stop> {
        self.state().running.get(id).and_then(|running| running.stop)
    }

    /// A task that waited is finished without having run.
    pub(super) fn forget(&self, record: &TaskRecord) {
        let mut state = self.state();
        if let Some((priority, log)) = state.waiting.remove(record.id()) {
            state.queue.remove(priority, record.id());
            drop(state);
            log.status(&record.task);
        }
    }

    /// The updates of a task in hand.
    pub(super) fn log(&self, id: &TaskId) -> Option<Arc<UpdateLog>> {
        let state = self.state();
        let waiting = state.waiting.get(id).map(|(_, log)| log);
        waiting.or_else(|| state.running.get(id).map(|running| &running.log)).cloned()
    }

    /// The tasks that run.
    pub(super) fn running(&self) -> Vec<TaskId> {
        self.state().running.keys().cloned().collect()
    }

    /// Takes no more, and stops what runs.
    pub(super) fn close(&self, why: Stop) {
        let mut state = self.state();
        state.closed = true;
        state.queue = Queue::default();
        for (_, (_, log)) in state.waiting.drain() {
            log.close();
        }
        for running in state.running.values_mut() {
            running.stop.get_or_insert(why);
            running.cancellation.cancel();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Resolves when nothing runs.
    pub(super) async fn idle(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// The store had more tasks than were taken at a time.
    pub(super) fn more_is_free(&self) {
        self.state().more_is_free = true;
    }

    /// Whether no task waits here any more while the store may have some. Says so once.
    pub(super) fn ran_dry(&self) -> bool {
        let mut state = self.state();
        !state.closed && state.queue.len() == 0 && std::mem::take(&mut state.more_is_free)
    }

    /// Whether this is the first to ask: a brain has one keeper.
    pub(super) fn needs_keeper(&self) -> bool {
        !std::mem::replace(&mut self.state().keeper, true)
    }
}
