//! Tasks in memory: gone with the process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{JournalEntry, StoreError, TaskFilter, TaskStore};
use crate::{contract::ContractRef, id::TaskId, task::TaskRecord};

/// Keeps tasks in memory, and of the finished ones only the latest.
#[derive(Debug)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
    finished_kept: usize,
}

#[derive(Debug, Default)]
struct Tables {
    /// Ids sort by time, so this is in the order of submission.
    tasks: BTreeMap<TaskId, Row>,
    /// Those done with, in the order in which they were finished.
    finished: VecDeque<TaskId>,
}

#[derive(Debug)]
struct Row {
    record: TaskRecord,
    journal: Vec<JournalEntry>,
}

impl MemoryStore {
    /// How many finished tasks are kept unless told otherwise: so many may finish before whoever waits for one has asked
    /// for its result.
    pub const FINISHED_KEPT: usize = 10_000;

    /// An empty store.
    pub fn new() -> Self {
        Self::keeping(Self::FINISHED_KEPT)
    }

    /// An empty store that keeps so many finished tasks.
    pub fn keeping(finished: usize) -> Self {
        Self { tables: Mutex::default(), finished_kept: finished }
    }

    /// No code that could panic runs under the lock, and every change is one assignment.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl TaskStore for MemoryStore {
    async fn create(&self, record: TaskRecord) -> Result<(), StoreError> {
        let mut tables = self.tables();
        if tables.tasks.contains_key(record.id()) {
            return Err(StoreError::Conflict);
        }
        tables.tasks.insert(record.id().clone(), Row { record, journal: Vec::new() });
        Ok(())
    }

    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError> {
        Ok(self.tables().tasks.get(id).map(|row| row.record.clone()))
    }

    async fn update(&self, record: &mut TaskRecord) -> Result<(), StoreError> {
        let mut guard = self.tables();
        let tables = &mut *guard;
        let row = tables.tasks.get_mut(record.id()).ok_or(StoreError::NotFound)?;
        if row.record.revision != record.revision {
            return Err(StoreError::Conflict);
        }
        record.revision += 1;
        let was_finished = row.record.task.status.is_finished();
        row.record = record.clone();
        match (was_finished, record.task.status.is_finished()) {
            (false, true) => tables.finished.push_back(record.id().clone()),
            (true, false) => tables.finished.retain(|id| id != record.id()),
            _ => {}
        }
        while tables.finished.len() > self.finished_kept
            && let Some(oldest) = tables.finished.pop_front()
        {
            tables.tasks.remove(&oldest);
        }
        Ok(())
    }

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError> {
        let tables = self.tables();
        let wanted = |record: &TaskRecord| {
            filter.status.is_none_or(|status| record.task.status == status)
                && filter.owner.as_ref().is_none_or(|owner| record.caller.is_same_as(owner))
        };
        let older = |id: &TaskId| filter.after.as_ref().is_none_or(|after| id < after);
        Ok(tables
            .tasks
            .iter()
            .rev()
            .filter(|(id, row)| older(id) && wanted(&row.record))
            .take(filter.limit)
            .map(|(_, row)| row.record.clone())
            .collect())
    }

    async fn free(
        &self,
        contracts: &[ContractRef],
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<TaskRecord>, StoreError> {
        let tables = self.tables();
        let free = |record: &&TaskRecord| record.is_free(now) && contracts.contains(&record.contract);
        Ok(tables.tasks.values().map(|row| &row.record).filter(free).take(limit).cloned().collect())
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        Ok(self.tables().tasks.get(id).map(|row| row.journal.clone()).unwrap_or_default())
    }

    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let row = tables.tasks.get_mut(id).ok_or(StoreError::NotFound)?;
        if row.record.run != run {
            return Err(StoreError::Conflict);
        }
        row.journal.retain(|earlier| earlier.step != entry.step);
        row.journal.push(entry);
        Ok(())
    }

    async fn forget_failures(&self, id: &TaskId) -> Result<(), StoreError> {
        if let Some(row) = self.tables().tasks.get_mut(id) {
            row.journal.retain(|entry| matches!(entry.answer, super::Answer::Output(_)));
        }
        Ok(())
    }
}
