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
    flush::{Changed, Counts, Entry, Flush, PROCESSING, QUEUED, Task, counts, is_finished, locked},
    stored::{
        Columns, columns, escaped, microsecond, owner_key, priority_number, status_number, step_key, time,
        to_text,
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
    id: Arc<str>,
    contract: String,
    status: i64,
    priority: i64,
    owner: String,
    size: i64,
    run: u32,
    revision: u64,
    run_at: Option<i64>,
    unique: Option<Arc<str>>,
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
    updates: Vec<Arc<str>>,
    first_update: Option<u64>,
    discarded: Vec<String>,
    journal: Vec<(String, Entry)>,
    delay: Option<i64>,
    makes_room: bool,
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

/// The tasks that are not finished and have one of the uniqueness keys of these operations, by key.
type Holders = HashMap<Arc<str>, Arc<TaskRecord>>;

async fn holders(batch: &[Write], tx: &mut Tx<'_>) -> Result<Holders, sqlx::Error> {
    let keys: BTreeSet<&Arc<str>> = batch.iter().filter_map(Write::unique).collect();
    let keys = keys.into_iter().cloned().collect::<Vec<_>>();
    if keys.is_empty() { Ok(HashMap::new()) } else { with_keys(&keys, tx).await }
}

async fn with_keys(keys: &[Arc<str>], tx: &mut Tx<'_>) -> Result<Holders, sqlx::Error> {
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

/// Near a limit, processes take turns to create tasks.
const TURN: &str = "SELECT pg_advisory_xact_lock(7164102842)";

/// Creates tasks, and returns the results by the position of the operation.
async fn create(
    batch: &[Write],
    tasks: &mut HashMap<String, Task>,
    keys: &mut Holders,
    flush: &mut Flush,
    tx: &mut Tx<'_>,
) -> Result<HashMap<usize, Written>, sqlx::Error> {
    static INSERT: Sql = Sql::new(
        "INSERT INTO octollm_tasks (id, contract, status, priority, owner, size, run, revision, run_at, \
         waits_until, unique_key, holder, leased_until, finished_at) \
         SELECT rows.id, rows.contract, rows.status, rows.priority, rows.owner, rows.size, rows.run, rows.revision, \
         CASE WHEN rows.delay IS NULL THEN rows.run_at ELSE {now} + rows.delay END, \
         CASE WHEN rows.status > 0 THEN NULL WHEN rows.delay IS NULL THEN rows.run_at ELSE {now} + rows.delay END, \
         rows.unique_key, rows.holder, rows.leased_until, CASE WHEN rows.status > 1 THEN {now} END \
         FROM {rows:id text, contract text, status int, priority int, owner text, size int, run int, revision int, run_at int, delay int, unique_key text, holder text, leased_until int} \
         WHERE true ORDER BY rows.id ON CONFLICT DO NOTHING RETURNING no, id, run_at",
    );
    let mut results = HashMap::new();
    let creations = || {
        batch.iter().enumerate().filter_map(|(at, write)| match &write.what {
            What::Create { record, effects, max_queued, max_queued_bytes, whole } => {
                Some((at, (write, whole), record, effects, (*max_queued, *max_queued_bytes)))
            }
            _ => None,
        })
    };
    if creations().next().is_none() {
        return Ok(results);
    }
    let mut waiting = counts(&mut tx.conn).await?;
    if tx.conn.is_postgres()
        && creations().any(|creation| is_near(&waiting, &creation.4, &creation.1.0.store))
    {
        tx.conn.execute_script(TURN).await?;
        waiting = counts(&mut tx.conn).await?;
    }
    let (mut queue, mut events) = waiting;
    let mut rows = Rows::new();
    let mut creating = BTreeSet::new();
    for (at, (write, whole), record, effects, limits) in creations() {
        let taken = tasks.contains_key(&*record.id) || creating.contains(&record.id);
        if let Some(existing) = record.unique.as_ref().and_then(|key| keys.get(key)).filter(|_| !taken) {
            results.insert(at, Ok(Outcome::Record(existing.clone())));
            continue;
        }
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
        rows.push(record.columns(effects.delay));
        creating.insert(record.id.clone());
        if let Some(key) = &record.unique {
            keys.insert(key.clone(), whole.clone());
        }
    }
    let mut inserted = HashMap::new();
    if !rows.is_empty() {
        for row in tx.conn.fetch_rows(&INSERT, [], rows).await? {
            inserted.insert(row.text(1)?, (row.int(0)?, row.int_or_null(2)?));
        }
    }
    let missing = creations().filter(|creation| !inserted.contains_key(&*creation.2.id));
    let missing: Vec<_> = missing.filter_map(|creation| creation.2.unique.clone()).collect();
    // Another process may have created a task with this key meanwhile.
    let others = if missing.is_empty() { HashMap::new() } else { with_keys(&missing, tx).await? };
    for (at, (_, whole), record, effects, _) in creations() {
        if results.contains_key(&at) {
            continue;
        }
        let Some((no, run_at)) = inserted.get(&*record.id) else {
            let existing = record.unique.as_ref().and_then(|key| others.get(key));
            results.insert(
                at,
                existing.map_or(Err(Refused::Conflict), |other| Ok(Outcome::Record(other.clone()))),
            );
            continue;
        };
        let mut task = record.created(*no);
        task.run_at = *run_at;
        flush.counts.change(None, record.status, record.size);
        flush.record(*no, &record.text);
        effects.apply(&mut task, flush);
        tasks.insert(record.id.to_string(), task);
        let mut stored = whole.clone();
        if let Some(at) = run_at.filter(|_| effects.delay.is_some()) {
            Arc::make_mut(&mut stored).run_in(Duration::ZERO, time(at));
        }
        results.insert(at, Ok(Outcome::Record(stored)));
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
    fn columns(&self, delay: Option<i64>) -> [Value; 13] {
        [
            (&self.id).into(),
            self.contract.as_str().into(),
            self.status.into(),
            self.priority.into(),
            self.owner.as_str().into(),
            self.size.into(),
            self.run.into(),
            self.revision.into(),
            self.run_at.into(),
            delay.into(),
            self.unique.as_ref().into(),
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
            run_at: self.run_at,
            delay: None,
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
            What::Create { record, .. } | What::Commit { record, .. } => vec![&*record.id],
            What::AppendUpdates { id, .. } => vec![&**id],
            What::Renew { runs, .. } => runs.iter().map(|(id, _)| id.as_str()).collect(),
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
            What::Create { .. } => {}
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
        self.changed.status = true;
        flush.record(self.no, &record.text);
    }
}

/// Wakes those that wait for what was changed.
fn announce(batch: &[Write], written: &[Written], tx: &mut Tx<'_>) {
    for (write, _) in batch.iter().zip(written).filter(|(_, written)| written.is_ok()) {
        match &write.what {
            What::Create { record, effects, .. } | What::Commit { record, effects, .. } => {
                if record.status == QUEUED || effects.makes_room {
                    tx.changed(super::QUEUE.into());
                }
                tx.changed(record.id.clone());
            }
            What::AppendUpdates { id, .. } => tx.changed(id.clone()),
            What::Renew { .. } => {}
        }
    }
}
