//! The contents of a store in memory.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::{Limits, index::Index};
use crate::{
    event::Event,
    id::{StepKey, TaskId},
    store::{Claim, JournalEntry, SideEffects, StoreError},
    task::{TaskError, TaskRecord, TaskStatus, TaskUpdate},
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

impl Tables {
    /// The row of a run that is the latest of its task and has not ended.
    pub(super) fn run(&mut self, id: &TaskId, run: u32) -> Result<&mut Row, StoreError> {
        let row = self.tasks.get_mut(id).ok_or(StoreError::NotFound)?;
        let runs = row.record.run() == run && row.record.status() == TaskStatus::Processing;
        if runs { Ok(row) } else { Err(StoreError::Conflict) }
    }

    /// Stores a record in place of the one that is there. Returns what is no longer stored, to be dropped without the lock.
    pub(super) fn replace(
        &mut self,
        record: Arc<TaskRecord>,
        effects: SideEffects,
        now: Timestamp,
        limits: &Limits,
    ) -> Vec<Row> {
        let Some(row) = self.tasks.get_mut(record.id()) else { return Vec::new() };
        self.index.remove(&row.record);
        row.record = record;
        self.outbox.extend(row.apply(effects, limits));
        self.index.insert(row, now);
        let mut surplus = Vec::new();
        while let Some(oldest) = self.index.surplus(limits) {
            surplus.extend(self.tasks.remove(&oldest));
        }
        surplus
    }

    /// The task that is not finished and has the uniqueness key of this one.
    pub(super) fn with_key_of(&self, record: &TaskRecord) -> Option<Arc<TaskRecord>> {
        let id = self.index.with_key(&record.unique_key()?)?;
        self.tasks.get(id).map(|row| row.record.clone())
    }

    /// The free task that a brain claims next.
    pub(super) fn next_free(&mut self, claim: &Claim<'_>, now: Timestamp) -> Option<Arc<TaskRecord>> {
        let id = self.index.next_free(claim, now)?;
        self.tasks.get(id).map(|row| row.record.clone())
    }
}

/// A task with its journal and its updates.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) record: Arc<TaskRecord>,
    /// In order, and the number of the entry of each step.
    pub(super) journal: BTreeMap<(u64, StepKey), Box<JournalEntry>>,
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
        let journal: usize = self.journal.values().map(|entry| entry.size()).sum();
        self.record.size() + result + error + task.progress.message.len() + self.update_bytes + journal
    }

    pub(super) fn append(&mut self, entry: Box<JournalEntry>) {
        if let Some(earlier) = self.steps.insert(entry.step.clone(), entry.seq) {
            self.journal.remove(&(earlier, entry.step.clone()));
        }
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
        journal.into_iter().for_each(|entry| self.append(Box::new(entry)));
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
