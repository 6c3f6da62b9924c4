//! One task in memory, with its journal and its updates.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::Limits;
use crate::{
    event::Event,
    id::StepKey,
    store::{JournalEntry, SideEffects},
    task::{TaskRecord, TaskUpdate},
};

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
        let error = task.error.as_ref().map_or(0, |error| error.message.len());
        let journal: usize = self.journal.values().map(JournalEntry::size).sum();
        self.record.size() + result + error + self.update_bytes + journal
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
        let SideEffects { events, updates, first_update, discarded, journal } = effects;
        discarded.iter().for_each(|step| self.discard(step));
        journal.into_iter().for_each(|entry| self.append(entry));
        self.add_updates(first_update, updates, limits);
        events
    }
}
