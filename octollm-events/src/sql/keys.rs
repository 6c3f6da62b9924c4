//! Records of calls with an idempotency key, in a database.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use octollm_core::{
    contract::Keys,
    error::{ErrorKind, Failure},
    idempotency::{Begun, IdempotencyStore, KeyedAnswer, KeyedRun},
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    SqlDatabase, SqlError,
    connection::Row,
    migration::{Part, Version},
    statement::{Rows, Sql, Value},
    store::microseconds,
    writer::{Operation, Tx},
};

/// The records of calls with an idempotency key, in a database that all instances of an arm share.
///
/// Times are judged by the database's clock. Records that have ended are deleted each minute.
///
/// ```no_run
/// use octollm_events::sql::{SqlDatabase, SqlIdempotencyStore};
///
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// let database = SqlDatabase::open("postgres://arm@db.internal/arm").await?;
/// let keys = SqlIdempotencyStore::open(&database).await?;
/// # let _ = keys; Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqlIdempotencyStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: SqlDatabase,
    retention: Duration,
}

impl SqlIdempotencyStore {
    /// Opens the store, which retains an answer for a day, and creates or updates its tables.
    ///
    /// # Errors
    /// A [`SqlError`] that names the reason.
    ///
    /// # Cancel safety
    /// The tables are created as a whole or not at all.
    pub async fn open(database: &SqlDatabase) -> Result<Self, SqlError> {
        database.migrate(&KEYS).await?;
        let shared =
            Arc::new(Shared { database: database.clone(), retention: Duration::from_secs(24 * 3600) });
        tokio::spawn(clean(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// Sets how long an answer is retained (default one day).
    #[must_use]
    pub fn retained_for(self, time: Duration) -> Self {
        let shared = Arc::new(Shared { database: self.0.database.clone(), retention: time });
        tokio::spawn(clean(Arc::downgrade(&shared)));
        Self(shared)
    }

    fn change(&self, run: &KeyedRun, what: What) -> Change {
        let retention = microseconds(self.0.retention);
        Change { run: run.clone(), retention, what }
    }
}

static KEYS: Part = Part { name: "keys", versions: &[FIRST] };

/// Columns of `octollm_keys`: `until` is the end of a lease, and `ends` the time at which the record is deleted, in microseconds since 1970.
/// An answer is the output, or the failure as JSON.
const FIRST: Version = Version {
    sqlite: "
CREATE TABLE octollm_keys (
    record TEXT PRIMARY KEY,
    input TEXT NOT NULL,
    run TEXT NOT NULL,
    state INTEGER NOT NULL,
    until INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    is_output INTEGER,
    answer BLOB,
    usage TEXT,
    began INTEGER,
    took INTEGER
) STRICT;
CREATE INDEX octollm_keys_ends ON octollm_keys (ends);
",
    postgres: "
CREATE TABLE octollm_keys (
    record TEXT COLLATE \"C\" PRIMARY KEY,
    input TEXT NOT NULL,
    run TEXT NOT NULL,
    state BIGINT NOT NULL,
    until BIGINT NOT NULL,
    ends BIGINT NOT NULL,
    is_output BIGINT,
    answer BYTEA,
    usage TEXT,
    began BIGINT,
    took BIGINT
);
CREATE INDEX octollm_keys_ends ON octollm_keys (ends);
",
};

#[async_trait]
impl IdempotencyStore for SqlIdempotencyStore {
    fn keys(&self) -> Keys {
        Keys::Shared
    }

    fn retention(&self) -> Duration {
        self.0.retention
    }

    async fn begin(&self, run: &KeyedRun, lease: Duration, must_exist: bool) -> Result<Begun, Failure> {
        let begin = self.change(run, What::Begin { lease: microseconds(lease), must_exist });
        Ok(self.0.database.write(begin).await?)
    }

    async fn finish(&self, run: &KeyedRun, answer: KeyedAnswer) -> Result<(), Failure> {
        let answer = Answer::of(answer).map_err(|_| Failure::of(ErrorKind::Internal))?;
        self.0.database.write(self.change(run, What::End(State::Answered(answer)))).await?;
        Ok(())
    }

    async fn release(&self, run: &KeyedRun, may_have_executed: bool) -> Result<(), Failure> {
        let what = if may_have_executed { What::End(State::Released) } else { What::Delete };
        self.0.database.write(self.change(run, what)).await?;
        Ok(())
    }

    fn abandon(&self, run: &KeyedRun) {
        self.0.database.submit(self.change(run, What::End(State::Unknown)));
    }

    fn withdraw(&self, run: &KeyedRun) {
        self.0.database.submit(self.change(run, What::Delete));
    }
}

/// A change of a record by a run.
struct Change {
    run: KeyedRun,
    retention: i64,
    what: What,
}

enum What {
    Begin {
        lease: i64,
        must_exist: bool,
    },
    End(State),
    /// Releases a run that has done nothing.
    Delete,
}

#[derive(Clone)]
enum State {
    Running { is_over: bool },
    Answered(Answer),
    Released,
    Unknown,
}

impl State {
    fn number(&self) -> i64 {
        match self {
            Self::Running { .. } => 0,
            Self::Answered(_) => 1,
            Self::Released => 2,
            Self::Unknown => 3,
        }
    }
}

/// An answer as it is stored.
#[derive(Clone)]
struct Answer {
    is_output: bool,
    bytes: Arc<Vec<u8>>,
    usage: Arc<str>,
    began: i64,
    /// In nanoseconds.
    took: u64,
}

impl Answer {
    fn of(answer: KeyedAnswer) -> Result<Self, serde_json::Error> {
        let KeyedAnswer { result, usage, began, took, .. } = answer;
        let (is_output, bytes) = match result {
            Ok(output) => (true, output.to_vec()),
            Err(failure) => (false, serde_json::to_vec(&failure)?),
        };
        Ok(Self {
            is_output,
            bytes: Arc::new(bytes),
            usage: serde_json::to_string(&usage)?.into(),
            began: began.as_microsecond(),
            took: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    fn into_answer(self) -> Result<KeyedAnswer, sqlx::Error> {
        let read = |error| sqlx::Error::Decode(Box::new(error));
        let bytes = Arc::unwrap_or_clone(self.bytes);
        let result = if self.is_output {
            Ok(Bytes::from(bytes))
        } else {
            Err(serde_json::from_slice(&bytes).map_err(read)?)
        };
        let usage = serde_json::from_str(&self.usage).map_err(read)?;
        let began = Timestamp::from_microsecond(self.began).unwrap_or(Timestamp::MIN);
        Ok(KeyedAnswer::new(result, usage, began, Duration::from_nanos(self.took)))
    }
}

/// A record as it is stored.
struct Record {
    input: String,
    run: String,
    state: State,
}

impl Record {
    /// Reads a record and its id.
    fn of(row: &Row) -> Result<(String, Self), sqlx::Error> {
        let state = match row.int(3)? {
            0 => State::Running { is_over: row.flag(4)? },
            1 => State::Answered(Answer {
                is_output: row.int(5)? == 1,
                bytes: Arc::new(row.bytes(6)?),
                usage: row.text(7)?.into(),
                began: row.int(8)?,
                took: row.count(9)?,
            }),
            2 => State::Released,
            _ => State::Unknown,
        };
        Ok((row.text(0)?, Self { input: row.text(1)?, run: row.text(2)?, state }))
    }
}

/// The rows that are written.
macro_rules! written {
    () => {
        "SELECT rows.record, rows.input, rows.run, rows.state, {now} + rows.lease, {now} + rows.ends, rows.is_output, \
         rows.answer, rows.usage, rows.began, rows.took FROM {rows:record text, input text, run text, state int, lease int, \
         ends int, is_output int, answer bytes, usage text, began int, took int}"
    };
}
/// What is known of the records of a transaction, and what is written.
#[derive(Default)]
struct Records {
    known: HashMap<String, Record>,
    /// Lease and retention of each that is to be written.
    written: HashMap<String, (Option<i64>, i64)>,
    deleted: BTreeSet<String>,
}

impl Operation for Change {
    type Output = Begun;
    const ORDER: u8 = 60;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Begun>, sqlx::Error> {
        // A record that another process is creating is not seen before it is committed: then it is looked at again.
        loop {
            let mut records = Records { known: lock(batch, tx).await?, ..Records::default() };
            let existing: BTreeSet<String> = records.known.keys().cloned().collect();
            let begun = batch.iter().map(|change| records.apply(change)).collect::<Result<Vec<_>, _>>()?;
            let (old, new): (Vec<_>, Vec<_>) =
                records.written.keys().cloned().partition(|record| existing.contains(record));
            let inserted = records.insert(&new, tx).await?;
            if inserted.len() == new.len() {
                records.update(&old, tx).await?;
                return Ok(begun);
            }
            delete(&inserted, tx).await?;
        }
    }
}

async fn lock(batch: &[Change], tx: &mut Tx<'_>) -> Result<HashMap<String, Record>, sqlx::Error> {
    static LOCK: Sql = Sql::new(
        "SELECT k.record, k.input, k.run, k.state, k.until <= {now}, k.is_output, k.answer, k.usage, k.began, k.took, \
         k.ends <= {now} FROM {rows:record text} {lite:CROSS} JOIN octollm_keys AS k ON k.record = rows.record \
         ORDER BY k.record {pg:FOR UPDATE OF k}",
    );
    let ids: BTreeSet<&str> = batch.iter().map(|change| &*change.run.record).collect();
    let mut rows = Rows::new();
    ids.iter().for_each(|id| rows.push([Value::from(*id)]));
    let mut known = HashMap::new();
    for row in tx.conn.fetch_rows(&LOCK, [], rows).await? {
        let (id, mut record) = Record::of(&row)?;
        if row.flag(10)? {
            // It has ended, and any run may begin.
            (record.input, record.state) = (String::new(), State::Released);
        }
        known.insert(id, record);
    }
    Ok(known)
}

impl Records {
    fn apply(&mut self, change: &Change) -> Result<Begun, sqlx::Error> {
        let KeyedRun { record: id, input, run, .. } = &change.run;
        let run = run.to_string();
        match &change.what {
            What::Begin { lease, must_exist } => {
                match self.known.get(id) {
                    Some(record) if record.input.is_empty() && *must_exist => return Ok(Begun::Unknown),
                    Some(record) if !record.input.is_empty() && record.input != *input => {
                        return Ok(Begun::OtherInput);
                    }
                    Some(record) => match &record.state {
                        State::Running { is_over: false } => return Ok(Begun::Running),
                        State::Running { .. } | State::Unknown => return Ok(Begun::Unknown),
                        State::Answered(answer) => return answer.clone().into_answer().map(Begun::Answered),
                        State::Released => {}
                    },
                    None if *must_exist => return Ok(Begun::Unknown),
                    None => {}
                }
                self.write(change, State::Running { is_over: false }, Some(*lease), run);
                Ok(Begun::Run)
            }
            What::End(_) | What::Delete => {
                let is_running = self
                    .known
                    .get(id)
                    .is_some_and(|record| record.run == run && matches!(record.state, State::Running { .. }));
                if is_running {
                    match &change.what {
                        What::End(state) => self.write(change, state.clone(), None, run),
                        _ => {
                            // A run that begins in the same transaction finds no record.
                            self.write(change, State::Released, None, run);
                            if let Some(record) = self.known.get_mut(id) {
                                record.input.clear();
                            }
                            self.deleted.insert(id.clone());
                        }
                    }
                }
                // Only a run that begins has an answer.
                Ok(Begun::Run)
            }
        }
    }

    fn write(&mut self, change: &Change, state: State, lease: Option<i64>, run: String) {
        let id = &change.run.record;
        self.deleted.remove(id);
        self.known.insert(id.clone(), Record { input: change.run.input.clone(), run, state });
        self.written.insert(id.clone(), (lease, change.retention));
    }

    /// The rows of these records.
    fn rows(&self, ids: &[String]) -> Rows {
        let mut rows = Rows::new();
        for id in ids {
            let (Some(record), Some((lease, retention))) = (self.known.get(id), self.written.get(id)) else {
                continue;
            };
            let answer = match &record.state {
                State::Answered(answer) => Some(answer),
                _ => None,
            };
            let lease = lease.unwrap_or(0);
            rows.push([
                id.as_str().into(),
                record.input.as_str().into(),
                record.run.as_str().into(),
                record.state.number().into(),
                lease.into(),
                lease.saturating_add(*retention).into(),
                answer.map(|answer| i64::from(answer.is_output)).into(),
                answer.map(|answer| Value::Bytes(answer.bytes.clone())).into(),
                answer.map(|answer| &answer.usage).into(),
                answer.map(|answer| answer.began).into(),
                answer.map(|answer| answer.took).into(),
            ]);
        }
        rows
    }

    /// Inserts new records, and returns those that did not exist.
    async fn insert(&self, ids: &[String], tx: &mut Tx<'_>) -> Result<Vec<String>, sqlx::Error> {
        static INSERT: Sql = Sql::new(concat!(
            "INSERT INTO octollm_keys (record, input, run, state, until, ends, is_output, answer, usage, began, took) ",
            written!(),
            " WHERE true ORDER BY rows.record ON CONFLICT (record) DO NOTHING RETURNING record"
        ));
        let rows = self.rows(ids);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        tx.conn.fetch_rows(&INSERT, [], rows).await?.iter().map(|row| row.text(0)).collect()
    }

    async fn update(&self, ids: &[String], tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
        static UPDATE: Sql = Sql::new(concat!(
            "INSERT INTO octollm_keys (record, input, run, state, until, ends, is_output, answer, usage, began, took) ",
            written!(),
            " WHERE true ON CONFLICT (record) DO UPDATE SET input = excluded.input, run = excluded.run, state = excluded.state, \
             until = excluded.until, ends = excluded.ends, is_output = excluded.is_output, answer = excluded.answer, \
             usage = excluded.usage, began = excluded.began, took = excluded.took"
        ));
        let rows = self.rows(ids);
        if !rows.is_empty() {
            tx.conn.execute_rows(&UPDATE, [], rows).await?;
        }
        delete(&self.deleted, tx).await
    }
}

async fn delete(ids: impl IntoIterator<Item = &String>, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static DELETE: Sql =
        Sql::new("DELETE FROM octollm_keys WHERE record IN (SELECT rows.record FROM {rows:record text})");
    let mut rows = Rows::new();
    ids.into_iter().for_each(|id| rows.push([Value::from(id.as_str())]));
    if rows.is_empty() { Ok(()) } else { tx.conn.execute_rows(&DELETE, [], rows).await.map(drop) }
}

/// Deletes records that have ended, until the store is dropped.
async fn clean(store: Weak<Shared>) {
    let mut ticks = interval(Duration::from_secs(60));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loop {
            let Some(store) = store.upgrade() else { return };
            match store.database.write(Clean).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(SqlError::Closed) => return,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "records of keys not deleted");
                    break;
                }
            }
        }
    }
}

/// Most records that are deleted in one transaction.
const MOST: usize = 512;

/// Deletes some records that have ended. Returns whether there may be more.
struct Clean;

impl Operation for Clean {
    type Output = bool;
    // Its rows are those that no other transaction has locked: it waits for none.
    const ORDER: u8 = 61;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<bool>, sqlx::Error> {
        static DELETE: Sql = Sql::new(
            "DELETE FROM octollm_keys WHERE record IN \
             (SELECT record FROM octollm_keys WHERE ends <= {now} LIMIT $1 {pg:FOR UPDATE SKIP LOCKED})",
        );
        let deleted = tx.conn.execute(&DELETE, [MOST.into()]).await?;
        Ok(vec![deleted == MOST as u64; batch.len()])
    }
}
