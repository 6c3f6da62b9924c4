//! The tasks of a store in memory by what they are searched for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

use super::{Limits, tables::Row};
use crate::{
    contract::ContractRef,
    id::TaskId,
    meters::Gauges,
    store::Claim,
    task::{Priority, TaskRecord, TaskStatus},
};

/// The tasks by what they are searched for.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Those that are not finished.
    open: HashMap<ContractRef, OpenTasks>,
    /// Those of them with a uniqueness key.
    unique: HashMap<String, TaskId>,
    queued: usize,
    /// Those of the queued ones that are delayed.
    delayed: usize,
    pub(super) queued_bytes: usize,
    queue_size: QueueSize,
    /// In the order in which they finished, with their bytes.
    finished: VecDeque<(TaskId, usize)>,
    finished_bytes: usize,
}

/// The tasks of one contract that are not finished.
#[derive(Debug, Default)]
struct OpenTasks {
    /// Queued, and free.
    ready: BTreeSet<(Reverse<Priority>, TaskId)>,
    /// Queued, by the time at which each is free. Those whose time has come move to `ready`.
    delayed: BTreeMap<(Timestamp, TaskId), Priority>,
    /// By the end of the lease.
    leased: BTreeMap<(Timestamp, TaskId), Priority>,
}

impl OpenTasks {
    /// Moves the tasks whose time has come, and returns their number.
    fn advance(&mut self, now: Timestamp) -> usize {
        let before = self.delayed.len();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let ((_, id), priority) = first.remove_entry();
            self.ready.insert((Reverse(priority), id));
        }
        before - self.delayed.len()
    }

    /// Removes a task, and returns whether it was delayed.
    fn remove(&mut self, record: &TaskRecord) -> bool {
        let id = record.id();
        if record.status() != TaskStatus::Queued {
            self.leased.remove(&(record.leased_until().unwrap_or(Timestamp::MIN), id.clone()));
            return false;
        }
        let delayed = record.run_at().and_then(|at| self.delayed.remove(&(at, id.clone())));
        if delayed.is_none() {
            self.ready.remove(&(Reverse(record.priority()), id.clone()));
        }
        delayed.is_some()
    }

    /// The tasks whose leases have expired.
    fn expired(&self, now: Timestamp) -> impl Iterator<Item = (Reverse<Priority>, &TaskId)> {
        let expired = self.leased.iter().take_while(move |((until, _), _)| *until <= now);
        expired.map(|((_, id), priority)| (Reverse(*priority), id))
    }

    /// The free task of the highest priority, and the oldest of those.
    fn first_free(&self, now: Timestamp) -> Option<(Reverse<Priority>, &TaskId)> {
        let ready = self.ready.first().map(|(priority, id)| (*priority, id));
        self.expired(now).chain(ready).min()
    }

    /// Whether a limit allows no further task to run.
    fn is_full(&self, most: Option<usize>, now: Timestamp) -> bool {
        most.is_some_and(|most| {
            // Those that have expired are few, and are counted only where they decide.
            self.leased.len() >= most && self.leased.len() - self.expired(now).count() >= most
        })
    }
}

/// The numbers of queued tasks that wait for a brain and for their time, which the metrics read without a lock.
#[derive(Debug)]
struct QueueSize(Arc<[AtomicUsize; 2]>);

static QUEUED: LazyLock<Gauges<[AtomicUsize; 2]>> = LazyLock::new(|| {
    let ready = ("octollm_tasks_queued", "Tasks that wait for a brain in the stores in memory.", &[][..]);
    let delayed =
        ("octollm_tasks_delayed", "Tasks that wait for their time in the stores in memory.", &[][..]);
    Gauges::new(&[ready, delayed], |sizes, gauges| {
        for (gauge, size) in gauges.iter().zip(sizes) {
            let size = i64::try_from(size.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
            gauge.with_label_values::<&str>(&[]).add(size);
        }
    })
});

impl QueueSize {
    fn store(&self, ready: usize, delayed: usize) {
        self.0[0].store(ready, Ordering::Relaxed);
        self.0[1].store(delayed, Ordering::Relaxed);
    }
}

impl Default for QueueSize {
    fn default() -> Self {
        let size = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        QUEUED.add(&size);
        Self(size)
    }
}

impl Index {
    pub(super) fn insert(&mut self, row: &Row, now: Timestamp) {
        let (record, id) = (&row.record, row.record.id().clone());
        if record.status().is_finished() {
            let bytes = row.bytes();
            self.finished_bytes += bytes;
            self.finished.push_back((id, bytes));
            return;
        }
        if let Some(key) = record.unique_key() {
            self.unique.insert(key, id.clone());
        }
        // Contracts are few, and copied once each.
        if !self.open.contains_key(record.contract()) {
            self.open.insert(record.contract().clone(), OpenTasks::default());
        }
        let Some(open) = self.open.get_mut(record.contract()) else { return };
        match (record.status(), record.run_at()) {
            (TaskStatus::Queued, Some(at)) if at > now => {
                open.delayed.insert((at, id), record.priority());
                self.delayed += 1;
            }
            (TaskStatus::Queued, _) => {
                open.ready.insert((Reverse(record.priority()), id));
            }
            _ => {
                let until = record.leased_until().unwrap_or(Timestamp::MIN);
                open.leased.insert((until, id), record.priority());
            }
        }
        if record.status() == TaskStatus::Queued {
            self.count_queued(self.queued + 1, self.queued_bytes + record.size());
        }
    }

    pub(super) fn remove(&mut self, record: &TaskRecord) {
        let id = record.id();
        if record.status().is_finished() {
            if let Some(at) = self.finished.iter().position(|(finished, _)| finished == id)
                && let Some((_, bytes)) = self.finished.remove(at)
            {
                self.finished_bytes -= bytes;
            }
            return;
        }
        if let Some(key) = record.unique_key() {
            self.unique.remove(&key);
        }
        if let Some(open) = self.open.get_mut(record.contract()) {
            self.delayed -= usize::from(open.remove(record));
        }
        if record.status() == TaskStatus::Queued {
            self.count_queued(self.queued - 1, self.queued_bytes - record.size());
        }
    }

    fn count_queued(&mut self, tasks: usize, bytes: usize) {
        (self.queued, self.queued_bytes) = (tasks, bytes);
        self.publish_size();
    }

    fn publish_size(&self) {
        self.queue_size.store(self.queued - self.delayed, self.delayed);
    }

    /// Moves the delayed tasks of these contracts whose time has come.
    fn advance(&mut self, contracts: &[ContractRef], now: Timestamp) {
        let mut moved = 0;
        for contract in contracts {
            moved += self.open.get_mut(contract).map_or(0, |open| open.advance(now));
        }
        if moved > 0 {
            self.delayed -= moved;
            self.publish_size();
        }
    }

    #[cfg(test)]
    pub(super) fn counts_the_delayed(&self) -> bool {
        self.delayed == self.open.values().map(|open| open.delayed.len()).sum::<usize>()
    }

    /// The number of queued tasks, delayed ones included.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// The time until the first delayed task of these contracts is free.
    pub(super) fn free_in(&self, contracts: &[ContractRef], now: Timestamp) -> Option<Duration> {
        let open = contracts.iter().filter_map(|contract| self.open.get(contract));
        let first = open.filter_map(|open| open.delayed.first_key_value()).map(|((at, _), _)| *at).min();
        first.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default())
    }

    /// The task with this uniqueness key.
    pub(super) fn with_key(&self, key: &str) -> Option<&TaskId> {
        self.unique.get(key)
    }

    /// The free task that a brain claims next.
    pub(super) fn next_free(&mut self, claim: &Claim<'_>, now: Timestamp) -> Option<&TaskId> {
        self.advance(claim.contracts, now);
        let open = claim.contracts.iter().filter_map(|contract| Some((contract, self.open.get(contract)?)));
        let below = open.filter(|(contract, open)| !open.is_full(claim.max_running_of(contract), now));
        below.filter_map(|(_, open)| open.first_free(now)).min().map(|(_, id)| id)
    }

    /// The finished task to be dropped, where there are too many.
    pub(super) fn surplus(&mut self, limits: &Limits) -> Option<TaskId> {
        let full = self.finished.len() > limits.finished
            || (self.finished_bytes > limits.finished_bytes && self.finished.len() > 1);
        let (oldest, bytes) = if full { self.finished.pop_front()? } else { return None };
        self.finished_bytes -= bytes;
        Some(oldest)
    }
}
