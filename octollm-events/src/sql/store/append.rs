//! The journal entries of running tasks: writes that calls wait for.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{flush::Entry, stored::FORMAT, write::Refused};
use crate::sql::{
    statement::{Rows, Sql, Value},
    writer::{Operation, Tx},
};

/// An entry of a run.
///
/// One statement locks the tasks of all entries, checks that their runs have not ended, and stores the entries. On Postgres it is a
/// transaction by itself, which takes one round trip.
pub(super) struct Append {
    pub(super) id: Arc<str>,
    pub(super) run: u32,
    pub(super) step: String,
    pub(super) entry: Entry,
}

impl Operation for Append {
    type Output = Result<(), Refused>;
    const ORDER: u8 = 5;
    const STATEMENT: bool = true;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        let latest = latest(batch);
        let stored = if tx.conn.is_postgres() {
            on_postgres(batch, latest.values(), tx).await?
        } else {
            on_sqlite(batch, latest.values(), tx).await?
        };
        let Some(stored) = stored else { return Ok(vec![Ok(()); batch.len()]) };
        let known = known(batch, tx).await?;
        let result = |append: &Self| match latest.get(&append.key()) {
            Some(position) if stored.contains(position) => Ok(()),
            _ if known.contains(&*append.id) => Err(Refused::Conflict),
            _ => Err(Refused::NotFound),
        };
        Ok(batch.iter().map(result).collect())
    }
}

type Key<'a> = (&'a str, u32, &'a str);

impl Append {
    fn key(&self) -> Key<'_> {
        (&*self.id, self.run, &*self.step)
    }

    fn columns(&self, position: usize) -> [Value; 7] {
        [
            (&self.id).into(),
            position.into(),
            self.run.into(),
            self.step.as_str().into(),
            self.entry.seq.into(),
            FORMAT.into(),
            (&self.entry.text).into(),
        ]
    }
}

/// The positions of the entries that no later one of their step replaces.
fn latest(batch: &[Append]) -> HashMap<Key<'_>, usize> {
    batch.iter().enumerate().map(|(position, append)| (append.key(), position)).collect()
}

fn rows<'a>(batch: &[Append], positions: impl Iterator<Item = &'a usize>) -> Rows {
    let mut rows = Rows::new();
    for position in positions {
        if let Some(append) = batch.get(*position) {
            rows.push(append.columns(*position));
        }
    }
    rows
}

/// The positions of the entries that are stored. `None` stands for all.
type Stored = Option<HashSet<usize>>;

async fn on_postgres<'a>(
    batch: &[Append],
    positions: impl ExactSizeIterator<Item = &'a usize>,
    tx: &mut Tx<'_>,
) -> Result<Stored, sqlx::Error> {
    // Each task is looked up by its id. The sum keeps Postgres from reading all that are processing instead.
    static APPEND: Sql = Sql::new(
        "WITH held AS (SELECT t.no, rows.* FROM {rows:id text, position int, run int, step text, seq int, format int, entry text} \
         JOIN octollm_tasks AS t ON t.id = rows.id AND t.run = rows.run AND t.status + 0 = 1 ORDER BY t.no FOR NO KEY UPDATE OF t), \
         stored AS (INSERT INTO octollm_journal (task, step, seq, at, format, entry) \
         SELECT no, step, seq, {now}, format, entry FROM held \
         ON CONFLICT (task, step) DO UPDATE SET seq = excluded.seq, at = excluded.at, format = excluded.format, \
         entry = excluded.entry) SELECT position FROM held",
    );
    let count = positions.len();
    let found = tx.conn.fetch_rows(&APPEND, [], rows(batch, positions)).await?;
    if found.len() == count { Ok(None) } else { positions_of(&found).map(Some) }
}

async fn on_sqlite<'a>(
    batch: &[Append],
    positions: impl ExactSizeIterator<Item = &'a usize> + Clone,
    tx: &mut Tx<'_>,
) -> Result<Stored, sqlx::Error> {
    static APPEND: Sql = Sql::new(
        "INSERT INTO octollm_journal (task, step, seq, at, format, entry) \
         SELECT t.no, rows.step, rows.seq, {now}, rows.format, rows.entry \
         FROM {rows:id text, position int, run int, step text, seq int, format int, entry text} \
         CROSS JOIN octollm_tasks AS t ON t.id = rows.id AND t.run = rows.run AND t.status = 1 WHERE true \
         ON CONFLICT (task, step) DO UPDATE SET seq = excluded.seq, at = excluded.at, format = excluded.format, \
         entry = excluded.entry",
    );
    static HELD: Sql = Sql::new(
        "SELECT rows.position FROM {rows:id text, position int, run int, step text, seq int, format int, entry text} \
         CROSS JOIN octollm_tasks AS t ON t.id = rows.id AND t.run = rows.run AND t.status = 1",
    );
    let stored = tx.conn.execute_rows(&APPEND, [], rows(batch, positions.clone())).await?;
    if stored == positions.len() as u64 {
        return Ok(None);
    }
    // Rows of the driver cost more than those of the statement: they are read where an entry was refused.
    let found = tx.conn.fetch_rows(&HELD, [], rows(batch, positions)).await?;
    positions_of(&found).map(Some)
}

fn positions_of(rows: &[crate::sql::connection::Row]) -> Result<HashSet<usize>, sqlx::Error> {
    rows.iter().map(|row| Ok(usize::try_from(row.int(0)?).unwrap_or(usize::MAX))).collect()
}

/// The ids of the tasks that exist.
async fn known(batch: &[Append], tx: &mut Tx<'_>) -> Result<HashSet<String>, sqlx::Error> {
    static KNOWN: Sql =
        Sql::new("SELECT t.id FROM {rows:id text} {lite:CROSS} JOIN octollm_tasks AS t ON t.id = rows.id");
    let ids: HashSet<&str> = batch.iter().map(|append| &*append.id).collect();
    let mut rows = Rows::new();
    ids.iter().for_each(|id| rows.push([Value::from(*id)]));
    tx.conn.fetch_rows(&KNOWN, [], rows).await?.iter().map(|row| row.text(0)).collect()
}
