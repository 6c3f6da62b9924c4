//! How a brain claims tasks.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    contract::ContractRef,
    store::{Claim, Claimed},
    task::TaskRecord,
};

use super::{
    Shared,
    flush::{Flush, PROCESSING, Task, locked},
    stored::{Columns, columns, escaped, time, unreadable},
    write::{Created, Effects, microseconds},
};
use crate::sql::{
    connection::Row,
    statement::{Rows, Sql, Value},
    writer::Tx,
};

/// The claim of a brain.
pub(super) struct Claiming {
    pub(super) holder: String,
    pub(super) contracts: Vec<ContractRef>,
    pub(super) lease: Duration,
    pub(super) limit: usize,
    pub(super) max_running: Vec<(ContractRef, usize)>,
    pub(super) source: String,
}

/// Claims with limits of contracts take turns, so that they do not exceed them together.
const TURN: &str = "SELECT pg_advisory_xact_lock(7164102843)";

/// The tasks of a transaction: those that it has locked, and the records of those that it has created.
type Tasks<'t> = (&'t mut HashMap<String, Task>, &'t Created);

impl Claiming {
    /// Whether contracts have limits.
    pub(super) fn is_limited(&self) -> bool {
        !self.max_running.is_empty()
    }

    /// Claims free tasks. Its rows are those that no other transaction has locked: it waits for none.
    pub(super) async fn claim(
        &self,
        store: &Shared,
        tasks: Tasks<'_>,
        flush: &mut Flush,
        tx: &mut Tx<'_>,
    ) -> Result<Claimed, sqlx::Error> {
        let mut claimed = Claimed::default();
        let contracts: Vec<_> = self.contracts.iter().map(ToString::to_string).collect();
        if contracts.is_empty() || self.limit == 0 {
            return Ok(claimed);
        }
        if self.is_limited() && tx.conn.is_postgres() {
            tx.conn.execute_script(TURN).await?;
        }
        let mut free_in = free_in(&contracts, tx).await?;
        if free_in.is_some_and(|time| time.is_zero()) {
            promote(&contracts, tx).await?;
            free_in = self::free_in(&contracts, tx).await?;
        }
        let free = self.search(&contracts, &store.claims, tx).await?;
        let found = unchanged(&free, &tasks)?;
        claimed.free_in = match (free.len() < self.limit, found.len() < free.len()) {
            (true, _) => free_in,
            // Others may be free in place of those that were passed over.
            (false, true) => Some(Duration::ZERO),
            (false, false) => None,
        };
        if !found.is_empty() {
            claimed.tasks = self.start(found, tasks, flush, tx).await?;
        }
        Ok(claimed)
    }

    /// Finds free tasks, and locks them.
    async fn search(
        &self,
        contracts: &[String],
        claims: &Claims,
        tx: &mut Tx<'_>,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let mut rooms = Vec::with_capacity(contracts.len());
        for contract in contracts {
            let most = self.max_running.iter().find(|(limited, _)| limited.to_string() == *contract);
            rooms.push(match most {
                Some((_, most)) => most.saturating_sub(running(contract, tx).await?),
                None => usize::MAX,
            });
        }
        if !tx.conn.is_postgres() {
            return self.first(contracts, &rooms, self.limit, claims, tx).await;
        }
        // Others may claim some of them at the same time. Where more tasks wait than are asked for, few rows do, in most cases.
        if claims.is_queue_long.load(Ordering::Relaxed) {
            let most = self.limit.saturating_add(64);
            let free = self.first(contracts, &rooms, most, claims, tx).await?;
            if free.len() >= self.limit {
                return Ok(free);
            }
        }
        let most = self.limit.saturating_mul(8).saturating_add(64);
        let free = self.first(contracts, &rooms, most, claims, tx).await?;
        claims.is_queue_long.store(free.len() >= self.limit, Ordering::Relaxed);
        Ok(free)
    }

    /// The first free tasks, where at most so many rows of each contract are read.
    async fn first(
        &self,
        contracts: &[String],
        rooms: &[usize],
        most: usize,
        claims: &Claims,
        tx: &mut Tx<'_>,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let mut free = Vec::new();
        for (contracts, rooms) in contracts.chunks(TOGETHER).zip(rooms.chunks(TOGETHER)) {
            let mut parameters: Vec<Value> = vec![self.limit.into()];
            for (contract, room) in contracts.iter().zip(rooms) {
                parameters.push(contract.as_str().into());
                parameters.push(most.min(*room).into());
            }
            free.extend(tx.conn.fetch(&claims.of(contracts.len()), parameters).await?);
        }
        if contracts.len() > TOGETHER {
            let mut sorted = Vec::with_capacity(free.len());
            for row in free {
                sorted.push((Reverse(row.int(PRIORITY)?), row.text(1)?, row));
            }
            sorted.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
            free = sorted.into_iter().map(|(.., row)| row).take(self.limit).collect();
        }
        Ok(free)
    }

    /// Starts a run of each of these tasks, which are locked.
    async fn start(
        &self,
        found: Vec<Found>,
        (tasks, created): Tasks<'_>,
        flush: &mut Flush,
        tx: &mut Tx<'_>,
    ) -> Result<Vec<(Arc<TaskRecord>, Duration)>, sqlx::Error> {
        let stored = found.iter().filter(|(id, ..)| !created.contains_key(id)).map(|(_, task, _)| task.no);
        let mut records = self.records(stored, tx).await?;
        let claim = Claim::new(&self.holder, &self.contracts, self.lease, self.limit, &self.source);
        let mut claimed = Vec::with_capacity(found.len());
        for (id, task, at) in found {
            let record = created.get(&id).map(|record| TaskRecord::clone(record));
            let Some(mut record) = record.or_else(|| records.remove(&task.no)) else { continue };
            let now = time(at);
            // The statement has found it free at this time.
            let effects = claim.start(&mut record, now).map_err(unreadable)?;
            record.set_revision(record.revision() + 1);
            let task = tasks.entry(id).or_insert(task);
            flush.counts.change(Some(task.status), PROCESSING, task.size);
            task.claim(&record, at, at.saturating_add(microseconds(self.lease)));
            Effects::of(effects).map_err(unreadable)?.apply(task, flush);
            tx.changed(record.id().as_str().into());
            let left = record.deadline_at().map(|at| at.duration_since(now));
            let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
            claimed.push((Arc::new(record), left));
        }
        Ok(claimed)
    }

    /// Reads the records of tasks that are locked. In the statement that locks them, a record could be older than its task.
    async fn records(
        &self,
        free: impl Iterator<Item = i64>,
        tx: &mut Tx<'_>,
    ) -> Result<HashMap<i64, TaskRecord>, sqlx::Error> {
        static RECORDS: Sql = Sql::new(concat!(
            "SELECT r.task, r.format, r.record, ",
            columns!(),
            " FROM {rows:no int} {lite:CROSS} JOIN octollm_tasks AS t ON t.no = rows.no \
             {lite:CROSS} JOIN octollm_records AS r ON r.task = t.no"
        ));
        let mut rows = Rows::new();
        free.for_each(|no| rows.push([no.into()]));
        let mut records = HashMap::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(records);
        }
        let mut unreadable = Rows::new();
        for row in tx.conn.fetch_rows(&RECORDS, [], rows).await? {
            let (no, columns) = (row.int(0)?, Columns::of(&row, 3)?);
            match columns.apply(row.int(1)?, &row.text(2)?) {
                Ok(record) => drop(records.insert(no, record)),
                Err(error) => {
                    tracing::error!(no, %error, "record of a task not readable; it is passed over for a minute");
                    unreadable.push([no.into()]);
                }
            }
        }
        if !unreadable.is_empty() {
            pass_over(unreadable, tx).await?;
        }
        Ok(records)
    }
}

/// A free task: its id, its columns, and the time at which it was found.
type Found = (String, Task, i64);

/// The tasks of these rows that the transaction has not changed: others are not free as they are stored.
fn unchanged(free: &[Row], (tasks, created): &Tasks<'_>) -> Result<Vec<Found>, sqlx::Error> {
    let mut found = Vec::with_capacity(free.len());
    for row in free {
        let (id, task) = Task::of(row)?;
        if created.contains_key(&id) || !tasks.contains_key(&id) {
            found.push((id, task, row.int(NOW)?));
        }
    }
    Ok(found)
}

/// The columns of the time and the priority in the statement that finds free tasks: after those of [`Task`].
const NOW: usize = 13;
const PRIORITY: usize = 14;

/// Most contracts of one statement: SQLite has 500 queries in one, and Postgres plans each of them.
const TOGETHER: usize = 100;

impl Task {
    fn claim(&mut self, record: &TaskRecord, at: i64, leased_until: i64) {
        (self.status, self.run, self.revision) = (PROCESSING, record.run(), record.revision());
        self.holder = record.holder().map(|holder| escaped(holder).into_owned());
        (self.claimed, self.leased_until, self.lease) = (Some(at), Some(leased_until), None);
        self.changed.status = true;
    }
}

/// How long a task that cannot be read is passed over, in microseconds: others of its contract are claimed meanwhile.
const UNREADABLE: i64 = 60_000_000;

/// Makes tasks free later, and leaves their records as they are.
async fn pass_over(tasks: Rows, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static PASS_OVER: Sql = Sql::new(
        "UPDATE octollm_tasks SET waits_until = CASE WHEN status = 0 THEN {now} + $1 END, \
         leased_until = CASE WHEN status = 1 THEN {now} + $1 ELSE leased_until END \
         FROM {rows:no int} WHERE octollm_tasks.no = rows.no",
    );
    tx.conn.execute_rows(&PASS_OVER, [UNREADABLE.into()], tasks).await.map(drop)
}

/// The delayed tasks of these contracts whose time has come take their places among those that are ready.
async fn promote(contracts: &[String], tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static PROMOTE: Sql = Sql::new(
        "UPDATE octollm_tasks SET waits_until = NULL WHERE no IN (SELECT t.no FROM {rows:contract text} \
         {lite:CROSS} JOIN octollm_tasks AS t ON t.contract = rows.contract AND t.status = 0 \
         AND t.waits_until IS NOT NULL AND t.waits_until <= {now} LIMIT 10000 {pg:FOR UPDATE OF t SKIP LOCKED})",
    );
    tx.conn.execute_rows(&PROMOTE, [], of(contracts)).await.map(drop)
}

fn of(contracts: &[String]) -> Rows {
    let mut rows = Rows::new();
    contracts.iter().for_each(|contract| rows.push([contract.as_str().into()]));
    rows
}

/// The number of tasks of a contract that are processing with a lease.
async fn running(contract: &str, tx: &mut Tx<'_>) -> Result<usize, sqlx::Error> {
    static RUNNING: Sql = Sql::new(
        "SELECT count(*) FROM octollm_tasks WHERE status = 1 AND contract = $1 AND leased_until > {now}",
    );
    let rows = tx.conn.fetch(&RUNNING, [contract.into()]).await?;
    let count = rows.first().map(|row| row.count(0)).transpose()?.unwrap_or(0);
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// The time until the first delayed task of these contracts is free: zero where one is free that is not promoted.
async fn free_in(contracts: &[String], tx: &mut Tx<'_>) -> Result<Option<Duration>, sqlx::Error> {
    // The least of each contract is the first of its part of the index.
    static FREE_IN: Sql = Sql::new(
        "SELECT (SELECT min(t.waits_until) FROM octollm_tasks AS t WHERE t.contract = rows.contract AND t.status = 0 \
         AND t.waits_until IS NOT NULL), {now} FROM {rows:contract text}",
    );
    let mut first: Option<Duration> = None;
    for row in tx.conn.fetch_rows(&FREE_IN, [], of(contracts)).await? {
        if let Some(at) = row.int_or_null(0)? {
            let left = u64::try_from(at.saturating_sub(row.int(1)?)).unwrap_or(0);
            let left = Duration::from_micros(left);
            first = Some(first.map_or(left, |first| first.min(left)));
        }
    }
    Ok(first)
}

/// The statements that find free tasks, by the number of contracts.
#[derive(Debug, Default)]
pub(super) struct Claims {
    statements: Mutex<HashMap<usize, Arc<Sql>>>,
    /// Whether the last search found as many as it was asked for.
    is_queue_long: AtomicBool,
}

impl Claims {
    fn of(&self, contracts: usize) -> Arc<Sql> {
        let mut claims = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        claims.entry(contracts).or_insert_with(|| Arc::new(Sql::of(free(contracts).into()))).clone()
    }
}

/// The statement for so many contracts. Parameter 1 is the limit; each contract follows, with the most rows that are read of it.
///
/// Each contract is searched by its own index: however many tasks wait, few rows are read. Of those that another transaction has
/// locked, Postgres takes the next ones instead.
fn free(contracts: usize) -> String {
    let branch = |at: usize| {
        let (contract, most) = (2 * at + 2, 2 * at + 3);
        let first = |condition: &str| {
            format!(
                "SELECT no, priority, id FROM (SELECT no, priority, id FROM octollm_tasks WHERE {condition} \
                 AND contract = ${contract} ORDER BY priority DESC, id LIMIT ${most}) AS first"
            )
        };
        let ready = first("status = 0 AND waits_until IS NULL");
        let expired = first("status = 1 AND leased_until <= {now}");
        format!(
            "SELECT no, priority, id FROM ({ready} UNION ALL {expired} ORDER BY 2 DESC, 3 LIMIT ${most}) AS of_contract"
        )
    };
    format!(
        "SELECT {}, {{now}}, free.priority FROM ({}) AS free {{lite:CROSS}} JOIN octollm_tasks AS t ON t.no = free.no \
         WHERE (t.status = 0 AND t.waits_until IS NULL) OR (t.status = 1 AND t.leased_until <= {{now}}) \
         ORDER BY free.priority DESC, free.id LIMIT $1 {{pg:FOR UPDATE OF t SKIP LOCKED}}",
        locked!(),
        (0..contracts).map(branch).collect::<Vec<_>>().join(" UNION ALL "),
    )
}
