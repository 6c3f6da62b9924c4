//! A store in memory.

mod index;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    iter,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use self::tables::{ChangeHub, Row, Tables, Topic};
use super::{Claim, Claimed, JournalEntry, SideEffects, StoreError, TaskStore};
use crate::{
    clock,
    event::Event,
    id::{StepKey, TaskId},
    parts::Caller,
    task::{TaskQuery, TaskRecord, TaskStatus, TaskUpdate},
};

/// A store in memory. It is lost with the process.
///
/// Of finished tasks it holds the latest, as many as their number and their bytes allow. Its clock follows tokio's: a system
/// clock that is set back expires no lease, and a test that pauses time pauses it too.
#[derive(Debug, Default)]
pub struct MemoryStore {
    limits: Limits,
    tables: Mutex<Tables>,
    hub: ChangeHub,
    /// The time of the first operation, by the clock of the system and by tokio's.
    start: OnceLock<(Timestamp, Instant)>,
}

#[derive(Debug)]
struct Limits {
    finished: usize,
    finished_bytes: usize,
    updates: usize,
    update_bytes: usize,
    events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            finished: 10_000,
            finished_bytes: 256 * 1024 * 1024,
            updates: 256,
            update_bytes: 1024 * 1024,
            events: 100_000,
        }
    }
}

/// A relay that asks for no events for so long has lost its turn.
const RELAY_TURN: Duration = Duration::from_secs(10);

impl MemoryStore {
    /// An empty store with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many finished tasks are stored (default 10 000). As many tasks may finish before a caller that waits for one of
    /// them reads its result. The one that finished last is always stored.
    #[must_use]
    pub fn finished(mut self, tasks: usize) -> Self {
        self.limits.finished = tasks.max(1);
        self
    }

    /// Sets how many bytes of memory the inputs, results, errors, journals and updates of finished tasks may have (default 256 MiB). The
    /// details of errors are estimated. The one that finished last is always stored.
    #[must_use]
    pub fn finished_bytes(mut self, bytes: usize) -> Self {
        self.limits.finished_bytes = bytes;
        self
    }

    /// Sets how many live updates of a task are stored (default 256). The latest one is always stored.
    #[must_use]
    pub fn updates(mut self, updates: usize) -> Self {
        self.limits.updates = updates;
        self
    }

    /// Sets how many bytes the chunks and messages of a task's live updates may have (default 1 MiB). The latest update is always
    /// stored.
    #[must_use]
    pub fn update_bytes(mut self, bytes: usize) -> Self {
        self.limits.update_bytes = bytes;
        self
    }

    /// Sets how many events may wait to be published (default 100 000). While so many wait because the bus is not available, new
    /// tasks are refused.
    #[must_use]
    pub fn events(mut self, events: usize) -> Self {
        self.limits.events = events;
        self
    }

    /// No code that could panic runs under the lock.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        let (at, started) = self.start.get_or_init(|| (clock::now(), Instant::now()));
        at.checked_add(started.elapsed()).unwrap_or(*at)
    }

    /// Delays a task by its effects.
    fn delay(&self, record: &mut TaskRecord, effects: &SideEffects) {
        if let Some(delay) = effects.delay {
            record.run_in(delay, self.now());
        }
    }

    fn notify(&self, id: &TaskId, woken: Woken) {
        if woken.queue {
            self.hub.notify(&Topic::Queue);
        }
        if woken.events {
            self.hub.notify(&Topic::Events);
        }
        self.hub.notify(&Topic::Task(id.clone()));
    }
}

/// Who is woken by a change, beside those that wait for its task.
#[derive(Clone, Copy)]
struct Woken {
    queue: bool,
    events: bool,
}

impl Woken {
    fn by(record: &TaskRecord, effects: &SideEffects) -> Self {
        let queue = record.status() == TaskStatus::Queued || effects.makes_room;
        Self { queue, events: !effects.events.is_empty() }
    }
}

#[async_trait]
impl TaskStore for MemoryStore {
    async fn create(
        &self,
        mut record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<Arc<TaskRecord>, StoreError> {
        let mut guard = self.tables();
        let tables = &mut *guard;
        if tables.tasks.contains_key(record.id()) {
            return Err(StoreError::Conflict);
        }
        if let Some(existing) = tables.with_key_of(&record) {
            return Ok(existing);
        }
        let full = tables.index.queued() >= max_queued || tables.outbox.len() >= self.limits.events;
        if full || tables.index.queued_bytes.saturating_add(record.size()) > max_queued_bytes {
            return Err(StoreError::Full);
        }
        self.delay(&mut record, &effects);
        let now = self.now();
        let start = effects.start.as_ref().filter(|_| tables.index.queued() == 0);
        let started = start.and_then(|start| start.start(&mut record, now).ok());
        record.set_revision(record.revision() + u64::from(started.is_some()));
        let woken = Woken::by(&record, &effects);
        let record = Arc::new(record);
        let mut row = Row::new(record.clone());
        for effects in iter::once(effects).chain(started) {
            tables.outbox.extend(row.apply(effects, &self.limits));
        }
        tables.index.insert(&row, now);
        tables.tasks.insert(record.id().clone(), row);
        drop(guard);
        self.notify(record.id(), woken);
        Ok(record)
    }

    fn starts(&self) -> bool {
        true
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError> {
        Ok(self.tables().tasks.get(id).map(|row| row.record.clone()))
    }

    async fn commit(&self, mut record: TaskRecord, effects: SideEffects) -> Result<(), StoreError> {
        let (id, woken) = (record.id().clone(), Woken::by(&record, &effects));
        let mut tables = self.tables();
        let row = tables.tasks.get(&id).ok_or(StoreError::NotFound)?;
        if row.record.revision() != record.revision() {
            return Err(StoreError::Conflict);
        }
        if !record.status().is_finished()
            && tables.with_key_of(&record).is_some_and(|other| *other.id() != id)
        {
            return Err(StoreError::NotUnique);
        }
        self.delay(&mut record, &effects);
        record.set_revision(record.revision() + 1);
        let surplus = tables.replace(Arc::new(record), effects, self.now(), &self.limits);
        drop(tables);
        drop(surplus);
        self.notify(&id, woken);
        Ok(())
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError> {
        let now = self.now();
        let mut claimed = Claimed::default();
        while claimed.tasks.len() < claim.limit {
            let mut tables = self.tables();
            let Some(free) = tables.next_free(claim, now) else {
                claimed.free_in = tables.index.free_in(claim.contracts, now);
                break;
            };
            let mut record = TaskRecord::clone(&free);
            let Ok(stored) = claim.start(&mut record, now) else { break };
            let woken = Woken { queue: false, events: !stored.events.is_empty() };
            record.set_revision(record.revision() + 1);
            let record = Arc::new(record);
            let surplus = tables.replace(record.clone(), stored, now, &self.limits);
            drop(tables);
            drop(surplus);
            self.notify(record.id(), woken);
            let left = record.deadline_at().map(|at| at.duration_since(now));
            let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
            claimed.tasks.push((record, left));
        }
        Ok(claimed)
    }

    async fn renew(
        &self,
        holder: &str,
        lease: Duration,
        runs: &[(TaskId, u32)],
    ) -> Result<Vec<(TaskId, u32)>, StoreError> {
        let now = self.now();
        let until = now.checked_add(lease).unwrap_or(Timestamp::MAX);
        let mut guard = self.tables();
        let tables = &mut *guard;
        let mut held = Vec::with_capacity(runs.len());
        for run @ (id, number) in runs {
            let Some(row) = tables.tasks.get_mut(id) else { continue };
            if row.record.is_held(holder, *number) {
                tables.index.remove(&row.record);
                Arc::make_mut(&mut row.record).renew(holder, *number, until);
                tables.index.insert(row, now);
                held.push(run.clone());
            }
        }
        Ok(held)
    }

    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError> {
        let tables = self.tables();
        let wanted = |record: &&Arc<TaskRecord>| {
            query.status.is_none_or(|status| record.status() == status)
                && owner.is_none_or(|owner| record.caller().is_same_as(owner))
        };
        let records = |rows: &mut dyn Iterator<Item = &Row>| {
            let records = rows.map(|row| &row.record).filter(wanted);
            records.take(query.limit.unwrap_or(20)).cloned().collect()
        };
        Ok(match &query.after {
            Some(after) => records(&mut tables.tasks.range(..after).rev().map(|(_, row)| row)),
            None => records(&mut tables.tasks.values().rev()),
        })
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let Some(first) = after.map_or(Some(0), |after| after.checked_add(1)) else { return Ok(Vec::new()) };
        let tables = self.tables();
        let Some(row) = tables.tasks.get(id) else { return Ok(Vec::new()) };
        let page = row.journal.range((first, StepKey::Order(0))..).take(limit);
        Ok(page.map(|(_, entry)| JournalEntry::clone(entry)).collect())
    }

    async fn append(&self, id: &TaskId, run: u32, entry: JournalEntry) -> Result<(), StoreError> {
        let entry = Box::new(JournalEntry { at: self.now(), ..entry });
        self.tables().run(id, run)?.append(entry);
        Ok(())
    }

    async fn append_updates(
        &self,
        id: &TaskId,
        run: u32,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError> {
        self.tables().run(id, run)?.add_updates(Some(first), updates, &self.limits);
        self.notify(id, Woken { queue: false, events: false });
        Ok(())
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        let tables = self.tables();
        let Some(row) = tables.tasks.get(id) else { return Ok(Vec::new()) };
        let after = if after > row.latest { 0 } else { after };
        let oldest = row.updates.front().map_or(row.latest + 1, TaskUpdate::seq);
        let missed = oldest.saturating_sub(1).saturating_sub(after);
        let gap = (missed > 0).then(|| TaskUpdate::Gap { task_id: id.clone(), seq: oldest - 1, missed });
        let later = row.updates.iter().filter(|update| update.seq() > after).cloned();
        Ok(gap.into_iter().chain(later).take(limit).collect())
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        let (mut tables, now) = (self.tables(), Instant::now());
        if tables.relay.as_ref().is_some_and(|(other, until)| other != relay && now < *until) {
            return Ok(Vec::new());
        }
        let events: Vec<_> = tables.outbox.iter().take(limit).cloned().collect();
        tables.relay = (!events.is_empty()).then(|| (relay.to_owned(), now + RELAY_TURN));
        Ok(events)
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        let mut tables = self.tables();
        // They are the first ones, unless another relay took over: the events after them are not searched.
        let those = event_ids.iter().zip(&tables.outbox);
        let first = those.take_while(|(id, event)| *id == event.id()).count();
        let published: Vec<_> = tables.outbox.drain(..first).collect();
        if let Some(rest) = event_ids.get(first..).filter(|rest| !rest.is_empty()) {
            let ids: HashSet<&str> = rest.iter().map(String::as_str).collect();
            tables.outbox.retain(|event| !ids.contains(event.id()));
        }
        // Dropped without the lock.
        drop(tables);
        drop(published);
        Ok(())
    }

    fn queue_changes(&self) -> watch::Receiver<()> {
        self.hub.subscribe(Topic::Queue)
    }

    fn event_changes(&self) -> watch::Receiver<()> {
        self.hub.subscribe(Topic::Events)
    }

    fn task_changes(&self, id: &TaskId) -> watch::Receiver<()> {
        self.hub.subscribe(Topic::Task(id.clone()))
    }
}
