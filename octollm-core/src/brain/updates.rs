//! What a task has told so far.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::stream;
use tokio::sync::watch;

use crate::{
    id::TaskId,
    orchestrator::{TaskUpdate, TaskUpdates},
    task::Task,
    update::{Phase, Progress, Update, UpdateSink},
};

/// How many updates of a task are kept for those who come late.
const KEPT: usize = 256;

/// The updates of one task while it waits and runs, the latest ones kept.
#[derive(Debug)]
pub(super) struct UpdateLog {
    task_id: TaskId,
    state: Mutex<State>,
    /// The number of the latest update; closed with the log.
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    progress: Progress,
    kept: VecDeque<TaskUpdate>,
    latest: u64,
    finished: bool,
}

impl UpdateLog {
    pub(super) fn new(task_id: TaskId) -> Self {
        Self { task_id, state: Mutex::default(), latest: watch::Sender::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task has been started: whatever it does from now on is execution, unless it says otherwise.
    pub(super) fn started(&self) {
        self.state().progress.current_step = Phase::Execution;
    }

    pub(super) fn progress(&self) -> Progress {
        self.state().progress.clone()
    }

    /// Tells the status of a task; behind a final one nothing more is told.
    pub(super) fn status(&self, task: &Task) {
        let (result, error) = (task.result.clone(), task.error.clone());
        self.push(|task_id, seq, _| TaskUpdate::Status { task_id, seq, status: task.status, result, error });
    }

    fn push(&self, update: impl FnOnce(TaskId, u64, &State) -> TaskUpdate) {
        let mut state = self.state();
        if state.finished {
            return;
        }
        state.latest += 1;
        let update = update(self.task_id.clone(), state.latest, &state);
        state.finished = update.is_last();
        if state.kept.len() == KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back(update);
        let latest = state.latest;
        drop(state);
        self.latest.send_replace(latest);
    }

    /// Ends the log without a last status: the task is no longer told of here.
    pub(super) fn close(&self) {
        let mut state = self.state();
        if state.finished {
            return;
        }
        state.finished = true;
        state.latest += 1;
        let latest = state.latest;
        drop(state);
        self.latest.send_replace(latest);
    }

    /// Resolves once there is an update behind `seen`, with the number of the latest.
    pub(super) async fn changed(&self, seen: u64) -> u64 {
        let mut latest = self.latest.subscribe();
        let news = latest.wait_for(|latest| *latest > seen).await.map(|latest| *latest);
        match news {
            Ok(latest) => latest,
            // The sender is ours, so this does not come to pass.
            Err(_) => std::future::pending().await,
        }
    }

    /// The updates kept behind `seen`, a gap before them where some are no longer kept.
    fn since(&self, seen: &mut u64) -> (Vec<TaskUpdate>, bool) {
        let state = self.state();
        let oldest = state.kept.front().map_or(state.latest, TaskUpdate::seq);
        // A cursor from an earlier run of the task: all of this one is news, also what is yet to come.
        if *seen > state.latest {
            *seen = 0;
        }
        let seen = *seen;
        let missed = (oldest.saturating_sub(1)).saturating_sub(seen);
        let gap = (missed > 0).then(|| TaskUpdate::Gap {
            task_id: self.task_id.clone(),
            seq: oldest.saturating_sub(1),
            missed,
        });
        let news = state.kept.iter().filter(|update| update.seq() > seen).cloned();
        (gap.into_iter().chain(news).collect(), state.finished)
    }

    /// Everything behind `after`, as it comes.
    pub(super) fn watch(self: Arc<Self>, after: Option<u64>) -> TaskUpdates {
        let start = Cursor { log: self, seen: after.unwrap_or(0), ready: VecDeque::new(), ended: false };
        TaskUpdates::new(stream::unfold(start, |mut cursor| async move {
            let update = cursor.next().await?;
            Some((update, cursor))
        }))
    }
}

impl UpdateSink for UpdateLog {
    fn update(&self, update: Update) {
        self.state().progress.apply(&update);
        self.push(|task_id, seq, state| match update {
            Update::Chunk(data) => TaskUpdate::Chunk { task_id, seq, data },
            _ => TaskUpdate::Progress {
                task_id,
                seq,
                progress: state.progress.percentage,
                phase: state.progress.current_step,
                message: state.progress.message.clone(),
            },
        });
    }
}

struct Cursor {
    log: Arc<UpdateLog>,
    seen: u64,
    ready: VecDeque<TaskUpdate>,
    ended: bool,
}

impl Cursor {
    async fn next(&mut self) -> Option<TaskUpdate> {
        while self.ready.is_empty() {
            if self.ended {
                return None;
            }
            let (news, finished) = self.log.since(&mut self.seen);
            self.ready.extend(news);
            if self.ready.is_empty() {
                if finished {
                    return None;
                }
                self.log.changed(self.seen).await;
            }
        }
        let update = self.ready.pop_front()?;
        self.seen = update.seq();
        self.ended = update.is_last();
        Some(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_late_is_told_how_much_is_gone() {
        let log = Arc::new(UpdateLog::new(TaskId::new()));
        for percent in 0..(KEPT as u64 + 12) {
            log.update(Update::Progress((percent % 100) as u8, String::new()));
        }
        let mut updates = log.clone().watch(Some(2));
        assert!(matches!(updates.next().await, Some(TaskUpdate::Gap { missed: 10, seq: 12, .. })));
        for seq in 13..=(KEPT as u64 + 12) {
            assert_eq!(updates.next().await.unwrap().seq(), seq);
        }
    }
}
