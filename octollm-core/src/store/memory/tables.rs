//! The contents of a store in memory.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::Limits;
use crate::{
    contract::ContractRef,
    event::Event,
    id::{StepKey, TaskId},
    meters::Gauges,
    store::{Claim, JournalEntry, SideEffects, StoreError},
    task::{Priority, TaskError, TaskRecord, TaskStatus, TaskUpdate},
};

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// In the order of submission, since ids sort by time.
    pub(super) tasks: BTreeMap<TaskId, Row>,
    pub(super) index: Index,
    pub(super) outbox: VecDeque<Event>,
    /// The relay that publishes, and until when no other one may.
    pub(super) relay: Option<(String, Instant)>,
}

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
    leased: BTreeSet<(Timestamp, TaskId)>,
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
    fn expired(&self, now: Timestamp) -> impl Iterator<Item = &TaskId> {
        self.leased.iter().take_while(move |(until, _)| *until <= now).map(|(_, id)| id)
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
                open.leased.insert((record.leased_until().unwrap_or(Timestamp::MIN), id));
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

    /// The finished task to be dropped, where there are too many.
    fn surplus(&mut self, limits: &Limits) -> Option<TaskId> {
        let full = self.finished.len() > limits.finished
            || (self.finished_bytes > limits.finished_bytes && self.finished.len() > 1);
        let (oldest, bytes) = if full { self.finished.pop_front()? } else { return None };
        self.finished_bytes -= bytes;
        Some(oldest)
    }
}

impl Tables {
    /// The row of a run that is the latest of its task and has not ended.
    pub(super) fn run(&mut self, id: &TaskId, run: u32) -> Result<&mut Row, StoreError> {
        let row = self.tasks.get_mut(id).ok_or(StoreError::NotFound)?;
        let runs = row.record.run() == run && row.record.status() == TaskStatus::Processing;
        if runs { Ok(row) } else { Err(StoreError::Conflict) }
    }

    /// Stores a record in place of the one that is there.
    pub(super) fn replace(
        &mut self,
        record: Arc<TaskRecord>,
        effects: SideEffects,
        now: Timestamp,
        limits: &Limits,
    ) {
        let Some(row) = self.tasks.get_mut(record.id()) else { return };
        self.index.remove(&row.record);
        row.record = record;
        self.outbox.extend(row.apply(effects, limits));
        self.index.insert(row, now);
        while let Some(oldest) = self.index.surplus(limits) {
            self.tasks.remove(&oldest);
        }
    }

    /// The task that is not finished and has the uniqueness key of this one.
    pub(super) fn with_key_of(&self, record: &TaskRecord) -> Option<Arc<TaskRecord>> {
        let id = self.index.unique.get(&record.unique_key()?)?;
        self.tasks.get(id).map(|row| row.record.clone())
    }

    /// The free task that a brain claims next: of the highest priority, and the oldest of those.
    pub(super) fn next_free(&mut self, claim: &Claim<'_>, now: Timestamp) -> Option<Arc<TaskRecord>> {
        self.index.advance(claim.contracts, now);
        let mut first: Option<(Reverse<Priority>, &TaskId)> = None;
        for contract in claim.contracts {
            let Some(open) = self.index.open.get(contract) else { continue };
            if open.is_full(claim.max_running_of(contract), now) {
                continue;
            }
            let of_priority = |id| self.tasks.get(id).map(|row| (Reverse(row.record.priority()), id));
            let ready = open.ready.first().map(|(priority, id)| (*priority, id));
            let free = open.expired(now).filter_map(of_priority).chain(ready);
            first = first.into_iter().chain(free).min();
        }
        first.and_then(|(_, id)| self.tasks.get(id)).map(|row| row.record.clone())
    }
}

/// A task with its journal and its updates.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) record: Arc<TaskRecord>,
    /// In order, and the number of the entry of each step.
    pub(super) journal: BTreeMap<(u64, StepKey), JournalEntry>,
    steps: HashMap<StepKey, u64>,
    pub(super) updates: VecDeque<TaskUpdate>,
    /// Bytes of their chunks and messages.
    update_bytes: usize,
    /// The number of the latest update.
    pub(super) latest: u64,
    /// A run, and how many of its updates were appended.
    appended: (u32, u64),
}

impl Row {
    pub(super) fn new(record: Arc<TaskRecord>) -> Self {
        let (journal, steps, updates) = Default::default();
        Self { record, journal, steps, updates, update_bytes: 0, latest: 0, appended: (0, 0) }
    }

    /// Bytes of what can be large.
    pub(super) fn bytes(&self) -> usize {
        let task = self.record.task();
        let result = task.result.as_ref().map_or(0, |result| result.output.as_str().len());
        let error = task.error.as_ref().map_or(0, TaskError::memory);
        let journal: usize = self.journal.values().map(JournalEntry::size).sum();
        self.record.size() + result + error + task.progress.message.len() + self.update_bytes + journal
    }

    pub(super) fn append(&mut self, entry: JournalEntry) {
        self.discard(&entry.step);
        self.steps.insert(entry.step.clone(), entry.seq);
        self.journal.insert((entry.seq, entry.step.clone()), entry);
    }

    fn discard(&mut self, step: &StepKey) {
        if let Some(seq) = self.steps.remove(step) {
            self.journal.remove(&(seq, step.clone()));
        }
    }

    /// Appends updates, where the first is `first` of its run without those that were appended before.
    pub(super) fn add_updates(&mut self, first: Option<u64>, updates: Vec<TaskUpdate>, limits: &Limits) {
        let mut known = 0;
        if let Some(first) = first {
            let run = self.record.run();
            let appended = if self.appended.0 == run { self.appended.1 } else { 0 };
            known = appended.saturating_sub(first);
            self.appended = (run, appended.max(first + updates.len() as u64));
        }
        for update in updates.into_iter().skip(usize::try_from(known).unwrap_or(usize::MAX)) {
            self.latest += 1;
            self.update_bytes += update.bytes();
            self.updates.push_back(update.with_seq(self.latest));
        }
        while (self.updates.len() > limits.updates || self.update_bytes > limits.update_bytes)
            && self.updates.len() > 1
            && let Some(oldest) = self.updates.pop_front()
        {
            self.update_bytes -= oldest.bytes();
        }
    }

    /// Applies all effects but the events, and returns those.
    pub(super) fn apply(&mut self, effects: SideEffects, limits: &Limits) -> Vec<Event> {
        let SideEffects { events, updates, first_update, discarded, journal, .. } = effects;
        discarded.iter().for_each(|step| self.discard(step));
        journal.into_iter().for_each(|entry| self.append(entry));
        self.add_updates(first_update, updates, limits);
        events
    }
}

/// What the store reports changes of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// Tasks that are free to claim.
    Queue,
    /// Events that are not published.
    Events,
    /// A task and its updates.
    Task(TaskId),
}

/// The senders of a store's changes, by topic.
#[derive(Debug, Default)]
pub(super) struct ChangeHub(Mutex<HashMap<Topic, watch::Sender<()>>>);

/// With so many topics, those without a receiver are removed.
const SWEPT_AT: usize = 64;

impl ChangeHub {
    pub(super) fn subscribe(&self, topic: Topic) -> watch::Receiver<()> {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.len() >= SWEPT_AT && topics.len().is_power_of_two() {
            topics.retain(|_, sender| sender.receiver_count() > 0);
        }
        topics.entry(topic).or_default().subscribe()
    }

    pub(super) fn notify(&self, topic: &Topic) {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.get(topic)
            && sender.send(()).is_err()
        {
            topics.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::id::TaskId;

    #[test]
    fn a_change_wakes_those_who_wait_for_it_once() {
        let hub = ChangeHub::default();
        let task = Topic::Task(TaskId::new());
        let (mut queue, mut one) = (hub.subscribe(Topic::Queue), hub.subscribe(task.clone()));
        hub.notify(&task);
        hub.notify(&task);
        assert!(queue.changed().now_or_never().is_none());
        assert!(one.changed().now_or_never().is_some());
        assert!(one.changed().now_or_never().is_none());
        drop(one);
        hub.notify(&task);
        assert_eq!(hub.0.lock().unwrap().len(), 1, "nobody waits for the task any more");
    }
}
