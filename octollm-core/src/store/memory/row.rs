//! One task in memory.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::MemoryStoreConfig;
use crate::{
    event::Event,
    id::StepKey,
    store::{JournalEntry, Recorded, SideEffects},
    task::{TaskRecord, TaskUpdate},
};

/// A task with its journal and its updates.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) record: TaskRecord,
    /// In order, and where the entry of each step is.
    pub(super) journal: BTreeMap<(u64, StepKey), JournalEntry>,
    steps: HashMap<StepKey, u64>,
    pub(super) updates: VecDeque<TaskUpdate>,
    /// Bytes of their chunks and messages.
    update_bytes: usize,
    /// The number of the latest update.
    pub(super) latest: u64,
}

impl Row {
    pub(super) fn new(record: TaskRecord) -> Self {
        let (journal, steps, updates) = Default::default();
        Self { record, journal, steps, updates, update_bytes: 0, latest: 0 }
    }

    /// Bytes of what it holds that can be large.
    pub(super) fn bytes(&self) -> usize {
        let entry = |entry: &JournalEntry| match &entry.recorded {
            Recorded::Output(output) => output.as_str().len(),
            Recorded::Failure(failure) => failure.message.len(),
            Recorded::Begun | Recorded::Again { .. } | Recorded::Handle(_) => 0,
        };
        let task = self.record.task();
        let result = task.result.as_ref().map_or(0, |result| result.output.as_str().len());
        let error = task.error.as_ref().map_or(0, |error| error.message.len());
        self.record.size()
            + result
            + error
            + self.update_bytes
            + self.journal.values().map(entry).sum::<usize>()
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

    pub(super) fn add_updates(&mut self, updates: Vec<TaskUpdate>, config: &MemoryStoreConfig) {
        for update in updates {
            self.latest += 1;
            self.update_bytes += update.bytes();
            self.updates.push_back(update.with_seq(self.latest));
        }
        while (self.updates.len() > config.updates || self.update_bytes > config.update_bytes)
            && self.updates.len() > 1
            && let Some(oldest) = self.updates.pop_front()
        {
            self.update_bytes -= oldest.bytes();
        }
    }

    /// Applies all but the events.
    pub(super) fn apply(&mut self, effects: SideEffects, config: &MemoryStoreConfig) -> Vec<Event> {
        let SideEffects { events, updates, discarded, journal } = effects;
        discarded.iter().for_each(|step| self.discard(step));
        journal.into_iter().for_each(|entry| self.append(entry));
        self.add_updates(updates, config);
        events
    }
}
