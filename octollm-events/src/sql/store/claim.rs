//! How a brain claims tasks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use octollm_core::{
    contract::ContractRef,
    store::Claim,
    task::{TaskRecord, TaskStatus},
};

use super::{
    Shared,
    flush::{Flush, PROCESSING, Task, locked},
    stored::{Columns, columns, escaped, time, unreadable},
    write::{Effects, microseconds},
};
use crate::sql::{
    connection::Row,
    statement::{Rows, Sql, Value},
    writer::{Operation, Tx},
};

/// The claim of a brain.
pub(super) struct Claiming {
    pub(super) store: Arc<Shared>,
    pub(super) holder: String,
    pub(super) contracts: Vec<ContractRef>,
    pub(super) lease: Duration,
    pub(super) limit: usize,
    pub(super) source: String,
}

/// Each task, and the time to its deadline.
pub(super) type Claimed = Vec<(Arc<TaskRecord>, Duration)>;

impl Operation for Claiming {
    type Output = Claimed;
    // Its rows are those that no other transaction has locked: it waits for none.
    const ORDER: u8 = 20;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Claimed>, sqlx::Error> {
        let mut claimed = Vec::with_capacity(batch.len());
        for claiming in batch {
            claimed.push(claiming.claim(tx).await?);
        }
        Ok(claimed)
    }
}

impl Claiming {
    async fn claim(&self, tx: &mut Tx<'_>) -> Result<Claimed, sqlx::Error> {
        if self.contracts.is_empty() || self.limit == 0 {
            return Ok(Vec::new());
        }
        let sql = self.store.claims.of(self.contracts.len());
        let contracts = self.contracts.iter().map(|contract| Value::from(contract.to_string()));
        let parameters = std::iter::once(self.limit.into()).chain(contracts).collect::<Vec<_>>();
        let free = tx.conn.fetch(&sql, parameters).await?;
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let mut records = self.records(&free, tx).await?;
        let claim = Claim::new(&self.holder, &self.contracts, self.lease, self.limit, &self.source);
        let (mut claimed, mut flush, mut rows) = (Vec::new(), Flush::default(), Rows::new());
        let mut tasks = Vec::with_capacity(free.len());
        for row in &free {
            let (_, mut task) = Task::of(row)?;
            let Some(mut record) = records.remove(&task.no) else { continue };
            let now = time(row.int(NOW)?);
            // The statement has found it free at this time.
            let effects = claim.start(&mut record, now).map_err(unreadable)?;
            record.set_revision(record.revision() + 1);
            rows.push([
                task.no.into(),
                record.run().into(),
                record.revision().into(),
                now.as_microsecond().into(),
            ]);
            flush.counts.change(Some(task.status), PROCESSING, task.size);
            (task.status, task.run) = (PROCESSING, record.run());
            let id: Arc<str> = record.id().as_str().into();
            Effects::of(effects).map_err(unreadable)?.apply(&mut task, &mut flush);
            tx.changed(id);
            tasks.push(task);
            let left = record.deadline_at().map(|at| at.duration_since(now));
            let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
            claimed.push((Arc::new(record), left));
        }
        let parameters = [(*escaped(&self.holder)).into(), microseconds(self.lease).into()];
        tx.conn.execute_rows(&CLAIM, parameters, rows).await?;
        let mut tasks: Vec<&mut Task> = tasks.iter_mut().collect();
        flush.write(tx, &mut tasks, &self.store.limits, self.store.stripe).await?;
        Ok(claimed)
    }

    /// Reads the records of tasks that are locked. In the statement that locks them, a record could be older than its task.
    async fn records(&self, free: &[Row], tx: &mut Tx<'_>) -> Result<HashMap<i64, TaskRecord>, sqlx::Error> {
        static RECORDS: Sql = Sql::new(concat!(
            "SELECT r.task, r.format, r.record, ",
            columns!(),
            " FROM {rows:no int} {lite:CROSS} JOIN octollm_tasks AS t ON t.no = rows.no \
             {lite:CROSS} JOIN octollm_records AS r ON r.task = t.no"
        ));
        let mut rows = Rows::new();
        for row in free {
            rows.push([row.int(0)?.into()]);
        }
        let mut records = HashMap::with_capacity(free.len());
        for row in tx.conn.fetch_rows(&RECORDS, [], rows).await? {
            let record = Columns::of(&row, 3)?.apply(row.int(1)?, &row.text(2)?)?;
            let status = record.status();
            debug_assert!(matches!(status, TaskStatus::Queued | TaskStatus::Processing), "{status}");
            records.insert(row.int(0)?, record);
        }
        Ok(records)
    }
}

/// The column of the time in the statement that finds free tasks: after those of [`Task`].
const NOW: usize = 13;

static CLAIM: Sql = Sql::new(
    "UPDATE octollm_tasks SET status = 1, run = rows.run, revision = rows.revision, holder = $1, \
     leased_until = rows.now + $2, first_claim = COALESCE(first_claim, rows.now), last_claim = rows.now \
     FROM {rows:no int, run int, revision int, now int} WHERE octollm_tasks.no = rows.no",
);

/// The statements that find free tasks, by the number of contracts.
#[derive(Debug, Default)]
pub(super) struct Claims(std::sync::Mutex<HashMap<usize, Arc<Sql>>>);

impl Claims {
    pub(super) fn of(&self, contracts: usize) -> Arc<Sql> {
        let mut claims = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        claims.entry(contracts).or_insert_with(|| Arc::new(Sql::of(free(contracts).into()))).clone()
    }
}

/// The statement for so many contracts. Parameter 1 is the limit; the contracts follow.
///
/// Each contract is searched by its own index, and both databases merge the results as far as the limit: however many tasks wait,
/// as many rows are read as are claimed. Of the rows that another transaction has locked, Postgres reads the next ones instead.
fn free(contracts: usize) -> String {
    let numbers = (0..contracts).map(|at| format!("${}", at + 2)).collect::<Vec<_>>();
    let queued = numbers.iter().map(|number| {
        format!(
            "SELECT no, priority, id FROM octollm_tasks WHERE status = 0 AND contract = {number} UNION ALL "
        )
    });
    format!(
        "SELECT {}, {{now}} FROM ({}SELECT no, priority, id FROM octollm_tasks \
         WHERE status = 1 AND leased_until <= {{now}} AND contract IN ({}) ORDER BY 2 DESC, 3) AS free \
         {{lite:CROSS}} JOIN octollm_tasks AS t ON t.no = free.no \
         WHERE t.status = 0 OR (t.status = 1 AND t.leased_until <= {{now}}) \
         ORDER BY free.priority DESC, free.id LIMIT $1 {{pg:FOR UPDATE OF t SKIP LOCKED}}",
        locked!(),
        queued.collect::<String>(),
        numbers.join(", "),
    )
}
