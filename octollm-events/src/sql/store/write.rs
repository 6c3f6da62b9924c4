//! The operations on tasks that write, of which many share a transaction.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use octollm_core::{
    id::TaskId,
    store::{JournalEntry, SideEffects, StoreError},
    task::{TaskRecord, TaskUpdate},
};

use super::{
    Shared,
    flush::{Changed, Counts, Entry, Flush, PROCESSING, QUEUED, Task, counts, locked},
    stored::{escaped, owner_key, priority_number, status_number, step_key, to_text},
};
use crate::{
    Encoding,
    sql::{
        statement::{Rows, Sql, Value},
        writer::{Operation, Tx},
    },
};

/// An operation on tasks.
pub(super) struct Write {
    pub(super) store: Arc<Shared>,
    pub(super) what: What,
}

pub(super) enum What {
    Create { record: Record, effects: Effects, max_queued: usize, max_queued_bytes: usize },
    Commit { record: Record, revision: u64, effects: Effects },
    Append { id: Arc<str>, run: u32, step: String, entry: Entry },
    AppendUpdates { id: Arc<str>, run: u32, first: u64, updates: Vec<Arc<str>> },
    Renew { holder: String, lease: i64, runs: Vec<(TaskId, u32)> },
}

/// Result of an operation. Only the renewal of leases has runs.
pub(super) type Written = Result<Vec<(TaskId, u32)>, Refused>;

/// Why an operation changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Conflict,
    NotFound,
    Full,
}

impl From<Refused> for StoreError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Conflict => Self::Conflict,
            Refused::NotFound => Self::NotFound,
            Refused::Full => Self::Full,
        }
    }
}

/// A record as it is stored, with what it is searched for.
pub(super) struct Record {
    id: Arc<str>,
    contract: String,
    status: i64,
    priority: i64,
    owner: String,
    size: i64,
    run: u32,
    revision: u64,
    holder: Option<String>,
    leased_until: Option<i64>,
    text: Arc<str>,
}

impl Record {
    pub(super) fn of(record: &TaskRecord) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: record.id().as_str().into(),
            contract: record.contract().to_string(),
            status: status_number(record.status()),
            priority: priority_number(record.priority()),
            owner: owner_key(record.caller()),
            size: i64::try_from(record.size()).unwrap_or(i64::MAX),
            run: record.run(),
            revision: record.revision(),
            holder: record.holder().map(|holder| escaped(holder).into_owned()),
            leased_until: record.leased_until().map(|until| until.as_microsecond()),
            text: to_text(record)?,
        })
    }
}

/// Effects as they are stored.
pub(super) struct Effects {
    /// Id and body of each.
    pub(super) events: Vec<(String, Arc<str>)>,
    updates: Vec<Arc<str>>,
    first_update: Option<u64>,
    discarded: Vec<String>,
    journal: Vec<(String, Entry)>,
}

impl Effects {
    pub(super) fn of(effects: SideEffects) -> Result<Self, serde_json::Error> {
        let event = |event: &octollm_core::event::Event| {
            let body = Encoding::Native.encode(event).map_err(serde::ser::Error::custom)?;
            let text = String::from_utf8(body.into()).map_err(serde::ser::Error::custom)?;
            Ok((event.id().to_owned(), text.into()))
        };
        Ok(Self {
            events: effects.events.iter().map(event).collect::<Result<_, serde_json::Error>>()?,
            updates: texts(&effects.updates)?,
            first_update: effects.first_update,
            discarded: effects.discarded.iter().map(step_key).collect(),
            journal: effects.journal.iter().map(|entry| to_entry(entry, true)).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn apply(&self, task: &mut Task, flush: &mut Flush) {
        for step in &self.discarded {
            flush.journal.insert((task.no, step.clone()), None);
        }
        for (step, entry) in &self.journal {
            flush.journal.insert((task.no, step.clone()), Some(entry.clone()));
        }
        task.add_updates(self.first_update, &self.updates, flush);
        self.events.iter().for_each(|(id, body)| flush.event(id, body));
    }
}

pub(super) fn texts(updates: &[TaskUpdate]) -> Result<Vec<Arc<str>>, serde_json::Error> {
    updates.iter().map(to_text).collect()
}

/// The step of an entry, and what is stored of it. An entry of a run has the time at which it is stored.
pub(super) fn to_entry(entry: &JournalEntry, with_time: bool) -> Result<(String, Entry), serde_json::Error> {
    let at = with_time.then(|| entry.at.as_microsecond());
    Ok((step_key(&entry.step), Entry { seq: entry.seq, at, text: to_text(entry)? }))
}

/// A lease in microseconds.
pub(crate) fn microseconds(lease: Duration) -> i64 {
    // A thousand years: the sum with a time is a number.
    i64::try_from(lease.as_micros()).unwrap_or(i64::MAX).min(1_000 * 366 * 86_400 * 1_000_000)
}

static LOCK: Sql = Sql::new(concat!(
    "SELECT ",
    locked!(),
    " FROM {rows:id text} {lite:CROSS} JOIN octollm_tasks AS t ON t.id = rows.id ORDER BY t.no {pg:FOR NO KEY UPDATE OF t}"
));

impl Operation for Write {
    type Output = Written;
    const ORDER: u8 = 10;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Written>, sqlx::Error> {
        let Some(store) = batch.first().map(|write| write.store.clone()) else { return Ok(Vec::new()) };
        let mut tasks = lock(batch, tx).await?;
        let mut flush = Flush::default();
        let created = create(batch, &mut tasks, &mut flush, tx).await?;
        let mut written = Vec::with_capacity(batch.len());
        for (at, write) in batch.iter().enumerate() {
            written.push(match created.get(&at) {
                Some(result) => result.map(|()| Vec::new()),
                None => write.apply(&mut tasks, &mut flush),
            });
        }
        announce(batch, &written, tx);
        let mut tasks: Vec<&mut Task> = tasks.values_mut().collect();
        tasks.sort_by_key(|task| task.no);
        flush.write(tx, &mut tasks, &store.limits, store.stripe).await?;
        Ok(written)
    }
}

/// Locks the tasks of all operations, and returns them by id. No other transaction changes them, or claims them, until the end of this one.
async fn lock(batch: &[Write], tx: &mut Tx<'_>) -> Result<HashMap<String, Task>, sqlx::Error> {
    let ids: BTreeSet<&str> = batch.iter().flat_map(Write::ids).collect();
    let mut rows = Rows::new();
    ids.iter().for_each(|id| rows.push([Value::from(*id)]));
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    tx.conn.fetch_rows(&LOCK, [], rows).await?.iter().map(Task::of).collect()
}

/// Near a limit, processes take turns to create tasks.
const TURN: &str = "SELECT pg_advisory_xact_lock(7164102842)";

/// Creates tasks, and returns the results by the position of the operation.
async fn create(
    batch: &[Write],
    tasks: &mut HashMap<String, Task>,
    flush: &mut Flush,
    tx: &mut Tx<'_>,
) -> Result<HashMap<usize, Result<(), Refused>>, sqlx::Error> {
    static INSERT: Sql = Sql::new(
        "INSERT INTO octollm_tasks (id, contract, status, priority, owner, size, run, revision, holder, leased_until, finished_at) \
         SELECT rows.id, rows.contract, rows.status, rows.priority, rows.owner, rows.size, rows.run, rows.revision, \
         rows.holder, rows.leased_until, CASE WHEN rows.status > 1 THEN {now} END \
         FROM {rows:id text, contract text, status int, priority int, owner text, size int, run int, revision int, holder text, leased_until int} \
         WHERE true ORDER BY rows.id ON CONFLICT (id) DO NOTHING RETURNING no, id",
    );
    let mut results = HashMap::new();
    let creations = || {
        batch.iter().enumerate().filter_map(|(at, write)| match &write.what {
            What::Create { record, effects, max_queued, max_queued_bytes } => {
                Some((at, write, record, effects, (*max_queued, *max_queued_bytes)))
            }
            _ => None,
        })
    };
    if creations().next().is_none() {
        return Ok(results);
    }
    let mut waiting = counts(&mut tx.conn).await?;
    if tx.conn.is_postgres() && creations().any(|creation| is_near(&waiting, &creation.4, &creation.1.store))
    {
        tx.conn.execute_script(TURN).await?;
        waiting = counts(&mut tx.conn).await?;
    }
    let (mut queue, mut events) = waiting;
    let mut rows = Rows::new();
    let mut creating = HashMap::new();
    for (at, write, record, effects, limits) in creations() {
        let taken = tasks.contains_key(&*record.id) || creating.contains_key(&record.id);
        let fits = |value: i64, limit: usize| u64::try_from(value).unwrap_or(0) <= limit as u64;
        let full = !fits(queue.queued + 1, limits.0)
            || events >= write.store.limits.events as u64
            || !fits(queue.queued_bytes.saturating_add(record.size), limits.1);
        if taken || full {
            results.insert(at, Err(if taken { Refused::Conflict } else { Refused::Full }));
            continue;
        }
        queue.change(None, record.status, record.size);
        events += effects.events.len() as u64;
        rows.push(record.columns());
        creating.insert(record.id.clone(), at);
    }
    let mut inserted = HashMap::new();
    if !rows.is_empty() {
        for row in tx.conn.fetch_rows(&INSERT, [], rows).await? {
            inserted.insert(row.text(1)?, row.int(0)?);
        }
    }
    for (at, _, record, effects, _) in creations() {
        if results.contains_key(&at) {
            continue;
        }
        let Some(no) = inserted.get(&*record.id) else {
            results.insert(at, Err(Refused::Conflict));
            continue;
        };
        let mut task = record.created(*no);
        flush.counts.change(None, record.status, record.size);
        flush.record(*no, &record.text);
        effects.apply(&mut task, flush);
        tasks.insert(record.id.to_string(), task);
        results.insert(at, Ok(()));
    }
    Ok(results)
}

/// Whether less than a tenth of a limit is left. Then the tasks that other processes are creating count.
fn is_near((queue, events): &(Counts, u64), limits: &(usize, usize), store: &Shared) -> bool {
    let near = |value: u64, limit: usize| value.saturating_add(512) >= (limit as u64) / 10 * 9;
    let value = |value: i64| u64::try_from(value).unwrap_or(0);
    near(value(queue.queued), limits.0)
        || value(queue.queued_bytes) >= (limits.1 as u64) / 10 * 9
        || near(*events, store.limits.events)
}

impl Record {
    fn columns(&self) -> [Value; 10] {
        [
            (&self.id).into(),
            self.contract.as_str().into(),
            self.status.into(),
            self.priority.into(),
            self.owner.as_str().into(),
            self.size.into(),
            self.run.into(),
            self.revision.into(),
            self.holder.as_deref().into(),
            self.leased_until.into(),
        ]
    }

    /// The task that was created with this record.
    fn created(&self, no: i64) -> Task {
        Task {
            no,
            status: self.status,
            run: self.run,
            revision: self.revision,
            size: self.size,
            holder: self.holder.clone(),
            leased_until: self.leased_until,
            lease: None,
            oldest: 1,
            latest: 0,
            update_bytes: 0,
            appended: (0, 0),
            changed: Changed::default(),
        }
    }
}

impl Write {
    /// The tasks that the operation reads or changes.
    fn ids(&self) -> Vec<&str> {
        match &self.what {
            What::Create { record, .. } | What::Commit { record, .. } => vec![&*record.id],
            What::Append { id, .. } | What::AppendUpdates { id, .. } => vec![&**id],
            What::Renew { runs, .. } => runs.iter().map(|(id, _)| id.as_str()).collect(),
        }
    }

    /// Applies the operation to the tasks, as they are after the operations before.
    fn apply(&self, tasks: &mut HashMap<String, Task>, flush: &mut Flush) -> Written {
        let of_run = |tasks: &mut HashMap<String, Task>, id: &str, run: u32| {
            let task = tasks.get(id).ok_or(Refused::NotFound)?;
            let runs = task.run == run && task.status == PROCESSING;
            if runs { Ok(()) } else { Err(Refused::Conflict) }
        };
        match &self.what {
            What::Create { .. } => {}
            What::Commit { record, revision, effects } => {
                let task = tasks.get_mut(&*record.id).ok_or(Refused::NotFound)?;
                if task.revision != *revision {
                    return Err(Refused::Conflict);
                }
                task.commit(record, flush);
                effects.apply(task, flush);
            }
            What::Append { id, run, step, entry } => {
                of_run(tasks, id, *run)?;
                if let Some(task) = tasks.get(&**id) {
                    flush.journal.insert((task.no, step.clone()), Some(entry.clone()));
                }
            }
            What::AppendUpdates { id, run, first, updates } => {
                of_run(tasks, id, *run)?;
                if let Some(task) = tasks.get_mut(&**id) {
                    task.add_updates(Some(*first), updates, flush);
                }
            }
            What::Renew { holder, lease, runs } => {
                let held = runs.iter().filter(|(id, run)| match tasks.get_mut(id.as_str()) {
                    Some(task) if task.is_held(holder, *run) => {
                        task.lease = Some(*lease);
                        task.changed.lease = true;
                        true
                    }
                    _ => false,
                });
                return Ok(held.cloned().collect());
            }
        }
        Ok(Vec::new())
    }
}

impl Task {
    fn commit(&mut self, record: &Record, flush: &mut Flush) {
        flush.counts.change(Some(self.status), record.status, self.size);
        // The lease may have been renewed since the record was read.
        let renewed = record.status == PROCESSING && self.run == record.run && self.holder == record.holder;
        self.leased_until =
            if renewed { self.leased_until.max(record.leased_until) } else { record.leased_until };
        self.lease = self.lease.filter(|_| renewed);
        (self.status, self.run, self.revision) = (record.status, record.run, record.revision);
        self.holder.clone_from(&record.holder);
        self.changed.status = true;
        flush.record(self.no, &record.text);
    }
}

/// Wakes those that wait for what was changed.
fn announce(batch: &[Write], written: &[Written], tx: &mut Tx<'_>) {
    for (write, _) in batch.iter().zip(written).filter(|(_, written)| written.is_ok()) {
        match &write.what {
            What::Create { record, .. } | What::Commit { record, .. } => {
                if record.status == QUEUED {
                    tx.changed(super::QUEUE.into());
                }
                tx.changed(record.id.clone());
            }
            What::AppendUpdates { id, .. } => tx.changed(id.clone()),
            What::Append { .. } | What::Renew { .. } => {}
        }
    }
}
