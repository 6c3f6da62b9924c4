//! The operations on tasks that only read.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use octollm_core::{
    id::TaskId,
    parts::Caller,
    store::JournalEntry,
    task::{TaskQuery, TaskRecord, TaskUpdate},
};

use super::stored::{Columns, columns, entry, owner_key, status_number, unreadable, update};
use crate::sql::{
    SqlDatabase, SqlError,
    connection::Row,
    statement::{Rows, Sql, Value},
    writer::{Operation, Tx},
};

/// The columns of a record in a statement, and how they are read.
macro_rules! record {
    () => {
        concat!("r.format, r.record, ", columns!())
    };
}

fn record(row: &Row) -> Result<Arc<TaskRecord>, sqlx::Error> {
    Ok(Arc::new(Columns::of(row, 2)?.apply(row.int(0)?, &row.text(1)?)?))
}

/// Looks up a task.
pub(super) struct Get(pub(super) TaskId);

impl Operation for Get {
    type Output = Option<Arc<TaskRecord>>;
    const ORDER: u8 = 10;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        static GET: Sql = Sql::new(concat!(
            "SELECT ",
            record!(),
            ", t.id FROM {rows:id text} {lite:CROSS} JOIN octollm_tasks AS t ON t.id = rows.id \
             {lite:CROSS} JOIN octollm_records AS r ON r.task = t.no"
        ));
        let ids: BTreeSet<&str> = batch.iter().map(|get| get.0.as_str()).collect();
        let mut rows = Rows::new();
        ids.iter().for_each(|id| rows.push([Value::from(*id)]));
        let mut found = HashMap::with_capacity(ids.len());
        for row in tx.conn.fetch_rows(&GET, [], rows).await? {
            found.insert(row.text(9)?, record(&row));
        }
        let of = |get: &Self| match found.get(get.0.as_str()) {
            Some(Ok(record)) => Ok(Some(record.clone())),
            Some(Err(error)) => Err(unreadable(error.to_string())),
            None => Ok(None),
        };
        batch.iter().map(of).collect()
    }
}

/// After all ids.
const LAST: &str = "~";

/// A page of tasks. A record that cannot be read is left out, and the page has the next ones.
pub(super) async fn list(
    database: &SqlDatabase,
    query: &TaskQuery,
    owner: Option<&Caller>,
) -> Result<Vec<Arc<TaskRecord>>, SqlError> {
    let (mut query, limit) = (query.clone(), query.limit.unwrap_or(20));
    let mut records = Vec::new();
    loop {
        query.limit = Some(limit - records.len());
        let rows = page(database, &query, owner).await?;
        let last = rows.last().map(|row| row.text(9)).transpose()?;
        let is_last = rows.len() < limit - records.len();
        for row in rows {
            match record(&row) {
                Ok(record) => records.push(record),
                Err(error) => {
                    let task = row.text(9)?;
                    tracing::error!(task, %error, "record of a task not readable; it is left out of a list");
                }
            }
        }
        match last.and_then(|last| last.parse().ok()) {
            Some(last) if !is_last && records.len() < limit => query.after = Some(last),
            _ => return Ok(records),
        }
    }
}

async fn page(
    database: &SqlDatabase,
    query: &TaskQuery,
    owner: Option<&Caller>,
) -> Result<Vec<Row>, SqlError> {
    macro_rules! list {
        ($condition:literal) => {
            Sql::new(concat!(
                "SELECT ",
                record!(),
                ", t.id FROM octollm_tasks AS t {lite:CROSS} JOIN octollm_records AS r ON r.task = t.no WHERE t.id < $1 AND ",
                $condition,
                " ORDER BY t.id DESC LIMIT $2"
            ))
        };
    }
    // An owner's tasks of all statuses are those of each status, merged.
    static ALL: Sql = list!("true");
    static OF_STATUS: Sql = list!("t.status = $3");
    static OF_OWNER: Sql = Sql::new(concat!(
        "SELECT ",
        record!(),
        ", t.id FROM (SELECT no, id FROM (SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 0 AND id < $1 ORDER BY id DESC LIMIT $2) AS s0 \
         UNION ALL SELECT no, id FROM (SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 1 AND id < $1 ORDER BY id DESC LIMIT $2) AS s1 \
         UNION ALL SELECT no, id FROM (SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 2 AND id < $1 ORDER BY id DESC LIMIT $2) AS s2 \
         UNION ALL SELECT no, id FROM (SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 3 AND id < $1 ORDER BY id DESC LIMIT $2) AS s3 \
         UNION ALL SELECT no, id FROM (SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 4 AND id < $1 ORDER BY id DESC LIMIT $2) AS s4 ORDER BY 2 DESC) AS owned \
         {lite:CROSS} JOIN octollm_tasks AS t ON t.no = owned.no {lite:CROSS} JOIN octollm_records AS r ON r.task = t.no \
         ORDER BY owned.id DESC LIMIT $2"
    ));
    static OF_BOTH: Sql = list!("t.owner = $3 AND t.status = $4");
    let after = query.after.as_ref().map_or(LAST, TaskId::as_str);
    let mut parameters: Vec<Value> = vec![after.into(), query.limit.unwrap_or(20).into()];
    parameters.extend(owner.map(|owner| Value::from(owner_key(owner))));
    parameters.extend(query.status.map(|status| Value::from(status_number(status))));
    let sql = match (owner, query.status) {
        (None, None) => &ALL,
        (None, Some(_)) => &OF_STATUS,
        (Some(_), None) => &OF_OWNER,
        (Some(_), Some(_)) => &OF_BOTH,
    };
    database.fetch(sql, parameters).await
}

pub(super) async fn journal(
    database: &SqlDatabase,
    id: &TaskId,
    after: Option<u64>,
    limit: usize,
) -> Result<Vec<JournalEntry>, SqlError> {
    static JOURNAL: Sql = Sql::new(
        "SELECT j.format, j.entry, j.at FROM octollm_journal AS j \
         WHERE j.task = (SELECT no FROM octollm_tasks WHERE id = $1) AND j.seq > $2 ORDER BY j.seq, j.step LIMIT $3",
    );
    let after = after.map_or(-1, |after| i64::try_from(after).unwrap_or(i64::MAX));
    let rows = database.fetch(&JOURNAL, [id.as_str().into(), after.into(), limit.into()]).await?;
    Ok(rows.iter().map(|row| entry(row.int(0)?, &row.text(1)?, row.int(2)?)).collect::<Result<_, _>>()?)
}

/// Looks up the whole journal of a task.
pub(super) struct WholeJournal(pub(super) TaskId);

impl Operation for WholeJournal {
    type Output = Vec<JournalEntry>;
    const ORDER: u8 = 20;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        static JOURNALS: Sql = Sql::new(
            "SELECT rows.position, j.format, j.entry, j.at FROM {rows:position int, id text} \
             {lite:CROSS} JOIN octollm_tasks AS t ON t.id = rows.id {lite:CROSS} JOIN octollm_journal AS j ON j.task = t.no \
             ORDER BY rows.position, j.seq, j.step",
        );
        let mut rows = Rows::new();
        for (position, journal) in batch.iter().enumerate() {
            rows.push([position.into(), journal.0.as_str().into()]);
        }
        let mut journals = vec![Vec::new(); batch.len()];
        for row in tx.conn.fetch_rows(&JOURNALS, [], rows).await? {
            let entry = entry(row.int(1)?, &row.text(2)?, row.int(3)?)?;
            if let Some(journal) = journals.get_mut(position(&row)?) {
                journal.push(entry);
            }
        }
        Ok(journals)
    }
}

fn position(row: &Row) -> Result<usize, sqlx::Error> {
    Ok(usize::try_from(row.int(0)?).unwrap_or(usize::MAX))
}

/// Looks up the updates of a task after a number.
pub(super) struct UpdatesAfter {
    pub(super) id: TaskId,
    pub(super) after: u64,
    pub(super) limit: usize,
}

impl Operation for UpdatesAfter {
    type Output = Vec<TaskUpdate>;
    const ORDER: u8 = 30;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        // Those that are stored have consecutive numbers. A number that no update has yet is read as 0.
        static UPDATES: Sql = Sql::new(
            "SELECT rows.position, t.oldest, t.latest, u.seq, u.format, u.body FROM {rows:position int, id text, after int, count int} \
             {lite:CROSS} JOIN octollm_tasks AS t ON t.id = rows.id LEFT JOIN octollm_updates AS u ON u.task = t.no \
             AND u.seq > CASE WHEN rows.after > t.latest THEN 0 ELSE rows.after END \
             AND u.seq <= {pg:GREATEST}{lite:max}(t.oldest - 1, CASE WHEN rows.after > t.latest THEN 0 ELSE rows.after END) + rows.count \
             ORDER BY rows.position, u.seq",
        );
        // The sum with a number is a number.
        const MANY: usize = 1 << 40;
        let mut rows = Rows::new();
        for (position, asked) in batch.iter().enumerate() {
            let limit = asked.limit.min(MANY);
            rows.push([position.into(), asked.id.as_str().into(), asked.after.into(), limit.into()]);
        }
        let mut found = vec![Vec::new(); batch.len()];
        for row in tx.conn.fetch_rows(&UPDATES, [], rows).await? {
            let at = position(&row)?;
            let (Some(asked), Some(updates)) = (batch.get(at), found.get_mut(at)) else { continue };
            asked.add(&row, updates)?;
        }
        for (updates, asked) in found.iter_mut().zip(batch) {
            updates.truncate(asked.limit);
        }
        Ok(found)
    }
}

impl UpdatesAfter {
    fn add(&self, row: &Row, updates: &mut Vec<TaskUpdate>) -> Result<(), sqlx::Error> {
        let (oldest, latest) = (row.count(1)?, row.count(2)?);
        let after = if self.after > latest { 0 } else { self.after };
        let missed = oldest.saturating_sub(1).saturating_sub(after);
        if missed > 0 && updates.is_empty() {
            updates.push(TaskUpdate::Gap { task_id: self.id.clone(), seq: oldest - 1, missed });
        }
        if row.int_or_null(3)?.is_some() {
            updates.push(update(row.int(4)?, &row.text(5)?, row.count(3)?)?);
        }
        Ok(())
    }
}
