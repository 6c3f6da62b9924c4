//! How tasks are created: within the limits of the queue, and one for each uniqueness key.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use octollm_core::{store::Start, task::TaskRecord};

use super::{
    Shared,
    flush::{Changed, Counts, Flush, PROCESSING, Task, counts},
    stored::{escaped, microsecond, time, unreadable},
    write::{Effects, Holders, Outcome, Record, Refused, What, Write, Written, with_keys},
};
use crate::sql::{
    statement::{Rows, Sql, Value},
    writer::Tx,
};

/// Near a limit, processes take turns to create tasks.
const TURN: &str = "SELECT pg_advisory_xact_lock(7164102842)";

/// Creates tasks, and returns the results by the position of the operation.
pub(super) async fn create(
    batch: &[Write],
    tasks: &mut HashMap<String, Task>,
    keys: &mut Holders,
    flush: &mut Flush,
    tx: &mut Tx<'_>,
) -> Result<HashMap<usize, Written>, sqlx::Error> {
    static INSERT: Sql = Sql::new(
        "INSERT INTO octollm_tasks (id, contract, status, priority, owner, size, run, revision, run_at, \
         waits_until, unique_key, holder, leased_until, first_claim, last_claim, latest, update_bytes, finished_at) \
         SELECT rows.id, rows.contract, rows.status, rows.priority, rows.owner, rows.size, rows.run, rows.revision, \
         CASE WHEN rows.delay IS NULL THEN rows.run_at ELSE {now} + rows.delay END, \
         CASE WHEN rows.status > 0 THEN NULL WHEN rows.delay IS NULL THEN rows.run_at ELSE {now} + rows.delay END, \
         rows.unique_key, rows.holder, rows.leased_until, rows.claimed, rows.claimed, rows.latest, rows.bytes, CASE WHEN rows.status > 1 THEN {now} END \
         FROM {rows:id text, contract text, status int, priority int, owner text, size int, run int, revision int, run_at int, delay int, unique_key text, holder text, leased_until int, claimed int, latest int, bytes int} \
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
    let (mut queue, mut events, now) = waiting;
    let mut rows = Rows::new();
    let mut started = HashMap::new();
    let mut creating = BTreeSet::new();
    // Those whose key the task of an earlier operation takes, if that is stored.
    let mut followers = Vec::new();
    for (at, (write, whole), record, effects, limits) in creations() {
        let taken = tasks.contains_key(&*record.id) || creating.contains(&record.id);
        let existing = record.unique.as_ref().and_then(|key| keys.get(key));
        if let Some(existing) = existing.filter(|existing| !taken && existing.id().as_str() != &*record.id) {
            match creating.get(existing.id().as_str()) {
                Some(first) => followers.push((at, Arc::clone(first))),
                None => drop(results.insert(at, Ok(Outcome::Record(existing.clone())))),
            }
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
        events += effects.events.len() as u64;
        match effects.start.as_ref().filter(|_| queue.queued <= 0) {
            Some(start) => {
                let run = Started::of(start, whole, now)?;
                rows.push(record.columns(effects, Some(&run)));
                started.insert(at, run);
            }
            None => {
                queue.change(None, record.status, record.size);
                rows.push(record.columns(effects, None));
            }
        }
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
    let missing = creations()
        .filter(|creation| creating.contains(&creation.2.id) && !inserted.contains_key(&*creation.2.id));
    let missing: Vec<_> = missing.filter_map(|creation| creation.2.unique.clone()).collect();
    // Another process may have created a task with this key meanwhile.
    let others = if missing.is_empty() { HashMap::new() } else { with_keys(&missing, tx).await? };
    for (at, (_, whole), record, effects, _) in creations() {
        if results.contains_key(&at) || !creating.contains(&record.id) {
            continue;
        }
        let Some((no, run_at)) = inserted.get(&*record.id) else {
            let existing = record.unique.as_ref().and_then(|key| others.get(key));
            let existing = existing.filter(|existing| existing.id().as_str() != &*record.id);
            results.insert(
                at,
                existing.map_or(Err(Refused::Conflict), |other| Ok(Outcome::Record(other.clone()))),
            );
            continue;
        };
        let (mut task, run) = (record.created(*no), started.remove(&at));
        task.run_at = *run_at;
        flush.created.insert(*no, record.text.clone());
        effects.apply(&mut task, flush);
        let mut stored = whole.clone();
        if let Some(Started { record, effects, .. }) = run {
            (task.status, task.run, task.revision) = (PROCESSING, record.run(), record.revision());
            task.holder = record.holder().map(|holder| escaped(holder).into_owned());
            task.leased_until = record.leased_until().map(microsecond);
            effects.apply(&mut task, flush);
            stored = record;
        }
        // The insertion has the numbers of its updates.
        task.changed.updates = effects.first_update.is_some();
        flush.counts.change(None, task.status, record.size);
        tasks.insert(record.id.to_string(), task);
        if let Some(at) = run_at.filter(|_| effects.delay.is_some()) {
            Arc::make_mut(&mut stored).run_in(Duration::ZERO, time(at));
        }
        results.insert(at, Ok(Outcome::Record(stored)));
    }
    for (at, first) in followers {
        let first = creations().find(|creation| *creation.2.id == *first).map(|creation| creation.0);
        let result = first.and_then(|first| results.get(&first).cloned());
        results.insert(at, result.unwrap_or(Err(Refused::Conflict)));
    }
    Ok(results)
}

/// A run that begins with the creation of its task.
struct Started {
    /// The record that a claim would return.
    record: Arc<TaskRecord>,
    effects: Effects,
    at: i64,
}

impl Started {
    fn of(start: &Start, record: &TaskRecord, now: i64) -> Result<Self, sqlx::Error> {
        let mut record = record.clone();
        let effects = start.start(&mut record, time(now)).map_err(unreadable)?;
        record.set_revision(record.revision() + 1);
        Ok(Self { record: Arc::new(record), effects: Effects::of(effects).map_err(unreadable)?, at: now })
    }
}

/// Whether less than a tenth of a limit is left. Then the tasks that other processes are creating count.
fn is_near((queue, events, _): &(Counts, u64, i64), limits: &(usize, usize), store: &Shared) -> bool {
    let near = |value: u64, limit: usize| value.saturating_add(512) >= (limit as u64) / 10 * 9;
    let value = |value: i64| u64::try_from(value).unwrap_or(0);
    near(value(queue.queued), limits.0)
        || value(queue.queued_bytes) >= (limits.1 as u64) / 10 * 9
        || near(*events, store.limits.events)
}

impl Record {
    fn columns(&self, effects: &Effects, started: Option<&Started>) -> [Value; 16] {
        let updates = effects.updates.iter().chain(started.iter().flat_map(|run| &run.effects.updates));
        let (latest, bytes) = updates.fold((0_i64, 0_i64), |(count, bytes), update| {
            (count + 1, bytes + i64::try_from(update.len()).unwrap_or(i64::MAX))
        });
        let (run, at) = (started.map(|run| &*run.record), started.map(|run| run.at));
        let holder = run.and_then(TaskRecord::holder).map(|holder| escaped(holder).into_owned());
        let leased_until = run.and_then(TaskRecord::leased_until).map(microsecond);
        [
            (&self.id).into(),
            self.contract.as_str().into(),
            run.map_or(self.status, |_| PROCESSING).into(),
            self.priority.into(),
            self.owner.as_str().into(),
            self.size.into(),
            run.map_or(self.run, TaskRecord::run).into(),
            run.map_or(self.revision, TaskRecord::revision).into(),
            self.run_at.into(),
            effects.delay.into(),
            self.unique.as_ref().into(),
            holder.as_deref().or(self.holder.as_deref()).into(),
            leased_until.or(self.leased_until).into(),
            at.into(),
            latest.into(),
            bytes.into(),
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
            claimed: None,
            changed: Changed::default(),
        }
    }
}
