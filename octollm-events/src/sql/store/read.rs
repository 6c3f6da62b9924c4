//! The operations on tasks that only read.

use std::sync::Arc;

use octollm_core::{
    id::TaskId,
    parts::Caller,
    store::JournalEntry,
    task::{TaskQuery, TaskRecord, TaskUpdate},
};

use super::stored::{Columns, columns, entry, owner_key, status_number, update};
use crate::sql::{
    SqlDatabase, SqlError,
    connection::Row,
    statement::{Sql, Value},
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

pub(super) async fn get(database: &SqlDatabase, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, SqlError> {
    static GET: Sql = Sql::new(concat!(
        "SELECT ",
        record!(),
        " FROM octollm_tasks AS t JOIN octollm_records AS r ON r.task = t.no WHERE t.id = $1"
    ));
    let rows = database.fetch(&GET, [id.as_str().into()]).await?;
    Ok(rows.first().map(record).transpose()?)
}

/// After all ids.
const LAST: &str = "~";

pub(super) async fn list(
    database: &SqlDatabase,
    query: &TaskQuery,
    owner: Option<&Caller>,
) -> Result<Vec<Arc<TaskRecord>>, SqlError> {
    macro_rules! list {
        ($condition:literal) => {
            Sql::new(concat!(
                "SELECT ",
                record!(),
                " FROM octollm_tasks AS t {lite:CROSS} JOIN octollm_records AS r ON r.task = t.no WHERE t.id < $1 AND ",
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
        " FROM (SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 0 AND id < $1 \
         UNION ALL SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 1 AND id < $1 \
         UNION ALL SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 2 AND id < $1 \
         UNION ALL SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 3 AND id < $1 \
         UNION ALL SELECT no, id FROM octollm_tasks WHERE owner = $3 AND status = 4 AND id < $1 ORDER BY 2 DESC) AS owned \
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
    Ok(database.fetch(sql, parameters).await?.iter().map(record).collect::<Result<_, _>>()?)
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

pub(super) async fn updates_after(
    database: &SqlDatabase,
    id: &TaskId,
    after: u64,
    limit: usize,
) -> Result<Vec<TaskUpdate>, SqlError> {
    // A number that no update has yet is read as 0.
    static UPDATES: Sql = Sql::new(
        "SELECT t.oldest, t.latest, u.seq, u.format, u.body FROM octollm_tasks AS t LEFT JOIN octollm_updates AS u \
         ON u.task = t.no AND u.seq > CASE WHEN $2 > t.latest THEN 0 ELSE $2 END WHERE t.id = $1 ORDER BY u.seq LIMIT $3",
    );
    let rows = database.fetch(&UPDATES, [id.as_str().into(), after.into(), limit.max(1).into()]).await?;
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    let (oldest, latest) = (first.count(0)?, first.count(1)?);
    let after = if after > latest { 0 } else { after };
    let missed = oldest.saturating_sub(1).saturating_sub(after);
    let mut updates = Vec::with_capacity(rows.len() + 1);
    if missed > 0 {
        updates.push(TaskUpdate::Gap { task_id: id.clone(), seq: oldest - 1, missed });
    }
    for row in &rows {
        if row.int_or_null(2)?.is_some() {
            updates.push(update(row.int(3)?, &row.text(4)?, row.count(2)?)?);
        }
    }
    updates.truncate(limit);
    Ok(updates)
}
