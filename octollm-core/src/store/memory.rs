//! Tasks in memory: gone with the process.

mod row;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

use self::row::Row;
use super::{
    ChangeHub, Changes, Claim, Claimed, JournalEntry, Room, Run, SideEffects, StoreError, TaskFilter,
    TaskStore, Topic,
};
use crate::{
    event::Event,
    id::TaskId,
    task::{Lease, Priority, TaskRecord, TaskStatus, TaskUpdate},
};

/// Stores tasks in memory, and of the finished ones only the latest, as many as their number and their bytes allow.
#[derive(Debug)]
pub struct MemoryStore {
    config: MemoryStoreConfig,
    tables: Mutex<Tables>,
    hub: ChangeHub,
    /// When the store's clock was read first, by tokio's clock and by the system's.
    begun: OnceLock<(Instant, Timestamp)>,
}

/// How much a [`MemoryStore`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryStoreConfig {
    /// Finished tasks: so many may finish before whoever waits for one has asked for its result (default 10 000).
    pub finished: usize,
    /// Bytes of the inputs, results and journals of those (default 256 MiB). The one that finished last is always stored.
    pub finished_bytes: usize,
    /// Live updates of one task (default 256).
    pub updates: usize,
    /// Bytes of the chunks and messages of those (default 1 MiB).
    pub update_bytes: usize,
    /// Events that wait to be published (default 100 000). While as many wait, because the bus is away, new tasks are refused.
    pub events: usize,
}

impl Default for MemoryStoreConfig {
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

#[derive(Debug, Default)]
struct Tables {
    /// Ids sort by time, so this is in the order of submission.
    tasks: BTreeMap<TaskId, Row>,
    queued: BTreeSet<(Reverse<Priority>, TaskId)>,
    queued_bytes: usize,
    /// By the end of their lease.
    leased: BTreeSet<(Timestamp, TaskId)>,
    /// In the order in which they were finished, with their bytes.
    finished: VecDeque<(TaskId, usize)>,
    finished_bytes: usize,
    outbox: VecDeque<Event>,
    /// Who publishes, and until when nobody else may.
    relay: Option<(String, Instant)>,
}

/// A relay that asks for no events for so long has lost its turn.
const RELAY_TURN: Duration = Duration::from_secs(10);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_config(MemoryStoreConfig::default())
    }

    /// An empty store with limits of its own. At least one update of a task is stored: its last status.
    pub fn with_config(config: MemoryStoreConfig) -> Self {
        Self { config, tables: Mutex::default(), hub: ChangeHub::new(), begun: OnceLock::new() }
    }

    /// No code that could panic runs under the lock.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows tokio's clock: a system clock that is set back expires no lease, and a paused test pauses it.
    fn now(&self) -> Timestamp {
        let (begun, at) = self.begun.get_or_init(|| (Instant::now(), Timestamp::now()));
        at.checked_add(begun.elapsed()).unwrap_or(*at)
    }

    fn notify(&self, id: &TaskId, queue: bool, events: bool) {
        if queue {
            self.hub.notify(&Topic::Queue);
        }
        if events {
            self.hub.notify(&Topic::Events);
        }
        self.hub.notify(&Topic::Task(id.clone()));
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Tables {
    /// The row of a run that is the latest of its task and has not ended.
    fn run(&mut self, run: &Run) -> Result<&mut Row, StoreError> {
        let row = self.tasks.get_mut(&run.task).ok_or(StoreError::NotFound)?;
        let runs = row.record.run() == run.number && row.record.status() == TaskStatus::Processing;
        if runs { Ok(row) } else { Err(StoreError::Conflict) }
    }

    fn index(&mut self, record: &TaskRecord) {
        let id = record.id().clone();
        match record.status() {
            TaskStatus::Queued => {
                self.queued.insert((Reverse(record.priority()), id));
                self.queued_bytes += record.size();
            }
            TaskStatus::Processing => {
                let until = record.lease().map_or(Timestamp::MIN, |lease| lease.until);
                self.leased.insert((until, id));
            }
            _ => {
                let bytes = self.tasks.get(&id).map_or(0, Row::bytes);
                self.finished_bytes += bytes;
                self.finished.push_back((id, bytes));
            }
        }
    }

    fn unindex(&mut self, record: &TaskRecord) {
        let id = record.id();
        match record.status() {
            TaskStatus::Queued => {
                self.queued.remove(&(Reverse(record.priority()), id.clone()));
                self.queued_bytes -= record.size();
            }
            TaskStatus::Processing => {
                let until = record.lease().map_or(Timestamp::MIN, |lease| lease.until);
                self.leased.remove(&(until, id.clone()));
            }
            _ => {
                if let Some(at) = self.finished.iter().position(|(finished, _)| finished == id)
                    && let Some((_, bytes)) = self.finished.remove(at)
                {
                    self.finished_bytes -= bytes;
                }
            }
        }
    }

    /// Stores a record in place of the one that is there.
    fn replace(&mut self, record: TaskRecord, effects: SideEffects, config: &MemoryStoreConfig) {
        let Some(row) = self.tasks.get_mut(record.id()) else { return };
        let events = row.apply(effects, config);
        let before = std::mem::replace(&mut row.record, record.clone());
        self.outbox.extend(events);
        self.unindex(&before);
        self.index(&record);
        let full = |tables: &Self| {
            tables.finished.len() > config.finished
                || (tables.finished_bytes > config.finished_bytes && tables.finished.len() > 1)
        };
        while full(self)
            && let Some((oldest, bytes)) = self.finished.pop_front()
        {
            self.finished_bytes -= bytes;
            self.tasks.remove(&oldest);
        }
    }

    /// The most urgent free task of these contracts, and among those the oldest.
    fn next_free(&self, claim: &Claim<'_>, now: Timestamp) -> Option<TaskId> {
        let runs = |id: &TaskId| {
            self.tasks
                .get(id)
                .filter(|row| claim.contracts.contains(row.record.contract()))
                .map(|row| &row.record)
        };
        let queued = self.queued.iter().find_map(|(_, id)| runs(id));
        let expired =
            self.leased.iter().take_while(|(until, _)| *until <= now).filter_map(|(_, id)| runs(id));
        expired
            .chain(queued)
            .min_by_key(|record| (Reverse(record.priority()), record.id()))
            .map(|record| record.id().clone())
    }
}

#[async_trait]
impl TaskStore for MemoryStore {
    async fn create(&self, record: TaskRecord, effects: SideEffects, room: Room) -> Result<(), StoreError> {
        let (id, queued, events) =
            (record.id().clone(), record.status() == TaskStatus::Queued, !effects.events.is_empty());
        let mut tables = self.tables();
        if tables.tasks.contains_key(&id) {
            return Err(StoreError::Conflict);
        }
        let full = tables.queued.len() >= room.tasks || tables.outbox.len() >= self.config.events;
        if full || tables.queued_bytes.saturating_add(record.size()) > room.bytes {
            return Err(StoreError::Full);
        }
        tables.index(&record);
        let mut row = Row::new(record);
        let published = row.apply(effects, &self.config);
        tables.outbox.extend(published);
        tables.tasks.insert(id.clone(), row);
        drop(tables);
        self.notify(&id, queued, events);
        Ok(())
    }

    async fn get(&self, id: &TaskId) -> Result<Option<TaskRecord>, StoreError> {
        Ok(self.tables().tasks.get(id).map(|row| row.record.clone()))
    }

    async fn commit(&self, mut record: TaskRecord, effects: SideEffects) -> Result<TaskRecord, StoreError> {
        let (queued, events) = (record.status() == TaskStatus::Queued, !effects.events.is_empty());
        let mut tables = self.tables();
        let row = tables.tasks.get(record.id()).ok_or(StoreError::NotFound)?;
        if row.record.revision() != record.revision() {
            return Err(StoreError::Conflict);
        }
        record.set_revision(record.revision() + 1);
        tables.replace(record.clone(), effects, &self.config);
        drop(tables);
        self.notify(record.id(), queued, events);
        Ok(record)
    }

    async fn claim(&self, claim: Claim<'_>) -> Result<Vec<Claimed>, StoreError> {
        let now = self.now();
        let until = now.checked_add(claim.lease).unwrap_or(Timestamp::MAX);
        let mut claimed: Vec<Claimed> = Vec::new();
        while claimed.len() < claim.limit {
            let mut tables = self.tables();
            let Some(id) = tables.next_free(&claim, now) else { break };
            let Some(mut record) = tables.tasks.get(&id).map(|row| row.record.clone()) else { break };
            let lease = Lease { holder: claim.holder.to_owned(), until };
            if record.claim(lease, now).is_err() {
                break;
            }
            record.set_revision(record.revision() + 1);
            let effects = (claim.effects)(&record);
            tables.replace(record.clone(), effects, &self.config);
            drop(tables);
            self.notify(&id, false, true);
            let left = record.deadline_at().map(|at| at.duration_since(now));
            let time_left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
            claimed.push(Claimed::new(record, time_left));
        }
        Ok(claimed)
    }

    async fn renew(&self, holder: &str, lease: Duration, runs: &[Run]) -> Result<Vec<Run>, StoreError> {
        let until = self.now().checked_add(lease).unwrap_or(Timestamp::MAX);
        let mut guard = self.tables();
        let tables = &mut *guard;
        let mut held = Vec::with_capacity(runs.len());
        for run in runs {
            let Some(row) = tables.tasks.get_mut(&run.task) else { continue };
            let before = row.record.lease().map(|lease| lease.until);
            if !row.record.renew(holder, run.number, until) {
                continue;
            }
            if let Some(before) = before {
                tables.leased.remove(&(before, run.task.clone()));
            }
            tables.leased.insert((until, run.task.clone()));
            held.push(run.clone());
        }
        Ok(held)
    }

    async fn list(&self, filter: &TaskFilter) -> Result<Vec<TaskRecord>, StoreError> {
        let tables = self.tables();
        let wanted = |record: &TaskRecord| {
            filter.status.is_none_or(|status| record.status() == status)
                && filter.owner.as_ref().is_none_or(|owner| record.caller().is_same_as(owner))
        };
        let records = |rows: &mut dyn Iterator<Item = &Row>| {
            let records = rows.map(|row| &row.record).filter(|record| wanted(record));
            records.take(filter.limit).cloned().collect()
        };
        Ok(match &filter.after {
            Some(after) => records(&mut tables.tasks.range(..after).rev().map(|(_, row)| row)),
            None => records(&mut tables.tasks.values().rev()),
        })
    }

    async fn journal(&self, id: &TaskId) -> Result<Vec<JournalEntry>, StoreError> {
        Ok(self.tables().tasks.get(id).map(|row| row.journal.values().cloned().collect()).unwrap_or_default())
    }

    async fn append(&self, run: &Run, entry: JournalEntry) -> Result<(), StoreError> {
        let at = self.now();
        self.tables().run(run)?.append(JournalEntry { at, ..entry });
        Ok(())
    }

    async fn append_updates(&self, run: &Run, updates: Vec<TaskUpdate>) -> Result<(), StoreError> {
        self.tables().run(run)?.add_updates(updates, &self.config);
        self.notify(&run.task, false, false);
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
        let mut ids: HashSet<&str> = event_ids.iter().map(String::as_str).collect();
        // They are the first ones, unless another relay took over meanwhile: what waits after them is not looked at.
        while tables.outbox.front().is_some_and(|event| ids.remove(event.id())) {
            tables.outbox.pop_front();
        }
        if !ids.is_empty() {
            tables.outbox.retain(|event| !ids.contains(event.id()));
        }
        Ok(())
    }

    fn changes(&self, topic: Topic) -> Changes {
        self.hub.subscribe(topic)
    }
}
