//! The operations on tasks that write, of which many share a transaction.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use octollm_core::{
    id::TaskId,
    store::{Claimed, JournalEntry, SideEffects, Start, StoreError},
    task::{TaskRecord, TaskStatus, TaskUpdate},
};

use super::{
    Shared,
    claim::Claiming,
    create::create,
    flush::{Entry, Flush, PROCESSING, QUEUED, Task, is_finished, locked},
    stored::{
        Columns, columns, escaped, microsecond, owner_key, priority_number, status_number, step_key, to_text,
    },
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
    Create {
        record: Record,
        effects: Effects,
        max_queued: usize,
        max_queued_bytes: usize,
        whole: Arc<TaskRecord>,
    },
    Commit {
        record: Record,
        revision: u64,
        effects: Effects,
    },
    AppendUpdates {
        id: Arc<str>,
        run: u32,
        first: u64,
        updates: Vec<Arc<str>>,
    },
    Renew {
        holder: String,
        lease: i64,
        runs: Vec<(TaskId, u32)>,
    },
    Claim(Claiming),
}

/// Result of an operation.
pub(super) type Written = Result<Outcome, Refused>;

#[derive(Clone)]
pub(super) enum Outcome {
    Done,
    /// The task that was created, or the one that exists with its uniqueness key.
    Record(Arc<TaskRecord>),
    /// The runs whose leases are renewed.
    Runs(Vec<(TaskId, u32)>),
    Claimed(Claimed),
}

/// Why an operation changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Conflict,
    NotFound,
    NotUnique,
    Full,
}

impl From<Refused> for StoreError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Conflict => Self::Conflict,
            Refused::NotFound => Self::NotFound,
            Refused::NotUnique => Self::NotUnique,
            Refused::Full => Self::Full,
        }
    }
}

/// A record as it is stored, with what it is searched for.
pub(super) struct Record {
    pub(super) id: Arc<str>,
    pub(super) contract: String,
    pub(super) status: i64,
    pub(super) priority: i64,
    pub(super) owner: String,
    pub(super) size: i64,
    pub(super) run: u32,
    pub(super) revision: u64,
    pub(super) run_at: Option<i64>,
    pub(super) unique: Option<Arc<str>>,
    pub(super) holder: Option<String>,
    pub(super) leased_until: Option<i64>,
    pub(super) text: Arc<str>,
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
            run_at: record.run_at().map(microsecond),
            unique: record.unique_key().map(Into::into),
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
    pub(super) updates: Vec<Arc<str>>,
    pub(super) first_update: Option<u64>,
    discarded: Vec<String>,
    journal: Vec<(String, Entry)>,
    pub(super) delay: Option<i64>,
    makes_room: bool,
    pub(super) start: Option<Start>,
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
            delay: effects.delay.map(microseconds),
            makes_room: effects.makes_room,
            start: effects.start,
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
        let mut keys = holders(batch, tx).await?;
        let mut flush = Flush::default();
        let created = create(batch, &mut tasks, &mut keys, &mut flush, tx).await?;
        let mut written = Vec::with_capacity(batch.len());
        for (at, write) in batch.iter().enumerate() {
            written.push(match created.get(&at) {
                Some(result) => result.clone(),
                None => write.apply(&mut tasks, &mut keys, &mut flush),
            });
        }
        announce(batch, &written, tx);
        let new = batch.iter().enumerate().filter_map(|(at, write)| match (&write.what, created.get(&at)) {
            // One that exists with its uniqueness key has another id.
            (What::Create { record, .. }, Some(Ok(Outcome::Record(stored))))
                if *record.id == *stored.id().as_str() && is_as_created(&tasks, record) =>
            {
                Some((record.id.to_string(), stored.clone()))
            }
            _ => None,
        });
        let new: Created = new.collect();
        let mut is_first = true;
        for (write, written) in batch.iter().zip(&mut written) {
            let What::Claim(claiming) = &write.what else { continue };
            // The first claim passes over what is changed here. A limit counts it.
            if !is_first || claiming.is_limited() {
                flush.write(tx, &mut tasks, &store).await?;
            }
            is_first = false;
            let claimed = claiming.claim(&store, (&mut tasks, &new), &mut flush, tx).await?;
            *written = Ok(Outcome::Claimed(claimed));
        }
        flush.write(tx, &mut tasks, &store).await?;
        Ok(written)
    }
}

/// Whether no later operation of the transaction has changed a task that it has created.
fn is_as_created(tasks: &HashMap<String, Task>, record: &Record) -> bool {
    tasks.get(&*record.id).is_some_and(|task| task.revision == record.revision)
}

/// The records that this transaction has created and not changed since, by id.
pub(super) type Created = HashMap<String, Arc<TaskRecord>>;

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

/// The tasks that are not finished and have one of the uniqueness keys of these operations, by key.
pub(super) type Holders = HashMap<Arc<str>, Arc<TaskRecord>>;

async fn holders(batch: &[Write], tx: &mut Tx<'_>) -> Result<Holders, sqlx::Error> {
    let keys: BTreeSet<&Arc<str>> = batch.iter().filter_map(Write::unique).collect();
    let keys = keys.into_iter().cloned().collect::<Vec<_>>();
    if keys.is_empty() { Ok(HashMap::new()) } else { with_keys(&keys, tx).await }
}

pub(super) async fn with_keys(keys: &[Arc<str>], tx: &mut Tx<'_>) -> Result<Holders, sqlx::Error> {
    static HOLDERS: Sql = Sql::new(concat!(
        "SELECT t.unique_key, r.format, r.record, ",
        columns!(),
        " FROM {rows:key text} {lite:CROSS} JOIN octollm_tasks AS t ON t.unique_key = rows.key AND t.status <= 1 \
         AND t.unique_key IS NOT NULL {lite:CROSS} JOIN octollm_records AS r ON r.task = t.no"
    ));
    let mut rows = Rows::new();
    keys.iter().for_each(|key| rows.push([Value::from(key)]));
    let mut holders = HashMap::new();
    for row in tx.conn.fetch_rows(&HOLDERS, [], rows).await? {
        let record = Columns::of(&row, 3)?.apply(row.int(1)?, &row.text(2)?)?;
        holders.insert(row.text(0)?.into(), Arc::new(record));
    }
    Ok(holders)
}

impl Write {
    /// The uniqueness key of a task that is created or changed, and is not finished.
    fn unique(&self) -> Option<&Arc<str>> {
        match &self.what {
            What::Create { record, .. } | What::Commit { record, .. } => {
                record.unique.as_ref().filter(|_| !is_finished(record.status))
            }
            _ => None,
        }
    }

    /// The tasks that the operation reads or changes.
    fn ids(&self) -> Vec<&str> {
        match &self.what {
            What::Commit { record, .. } => vec![&*record.id],
            What::AppendUpdates { id, .. } => vec![&**id],
            What::Renew { runs, .. } => runs.iter().map(|(id, _)| id.as_str()).collect(),
            // The insertion of a task finds the one that has its id.
            What::Create { .. } | What::Claim(_) => Vec::new(),
        }
    }

    /// Applies the operation to the tasks, as they are after the operations before.
    fn apply(&self, tasks: &mut HashMap<String, Task>, keys: &mut Holders, flush: &mut Flush) -> Written {
        let of_run = |tasks: &mut HashMap<String, Task>, id: &str, run: u32| {
            let task = tasks.get(id).ok_or(Refused::NotFound)?;
            let runs = task.run == run && task.status == PROCESSING;
            if runs { Ok(()) } else { Err(Refused::Conflict) }
        };
        match &self.what {
            What::Create { .. } | What::Claim(_) => {}
            What::Commit { record, revision, effects } => {
                let task = tasks.get_mut(&*record.id).ok_or(Refused::NotFound)?;
                if task.revision != *revision {
                    return Err(Refused::Conflict);
                }
                if let Some(key) = &record.unique {
                    let other = keys.get(key).is_some_and(|other| *other.id().as_str() != *record.id);
                    match (is_finished(record.status), other) {
                        (false, true) => return Err(Refused::NotUnique),
                        (true, false) => drop(keys.remove(key)),
                        _ => {}
                    }
                }
                task.commit(record, effects.delay, flush);
                effects.apply(task, flush);
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
                return Ok(Outcome::Runs(held.cloned().collect()));
            }
        }
        Ok(Outcome::Done)
    }
}

impl Task {
    fn commit(&mut self, record: &Record, delay: Option<i64>, flush: &mut Flush) {
        flush.counts.change(Some(self.status), record.status, self.size);
        // The lease may have been renewed since the record was read.
        let renewed = record.status == PROCESSING && self.run == record.run && self.holder == record.holder;
        self.leased_until =
            if renewed { self.leased_until.max(record.leased_until) } else { record.leased_until };
        self.lease = self.lease.filter(|_| renewed);
        (self.status, self.run, self.revision) = (record.status, record.run, record.revision);
        (self.run_at, self.delay) = (record.run_at, delay);
        self.holder.clone_from(&record.holder);
        self.claimed = None;
        self.changed.status = true;
        flush.record(self.no, &record.text);
    }
}

/// Wakes those that wait for what was changed.
fn announce(batch: &[Write], written: &[Written], tx: &mut Tx<'_>) {
    for (write, written) in batch.iter().zip(written) {
        let Ok(written) = written else { continue };
        let is_started = matches!(written, Outcome::Record(stored) if stored.status() != TaskStatus::Queued);
        match &write.what {
            What::Create { record, effects, .. } | What::Commit { record, effects, .. } => {
                if (record.status == QUEUED && !is_started) || effects.makes_room {
                    tx.changed(super::QUEUE.into());
                }
                tx.changed(record.id.clone());
            }
            What::AppendUpdates { id, .. } => tx.changed(id.clone()),
            What::Renew { .. } | What::Claim(_) => {}
        }
    }
}
