//! The statements that write what one transaction changes of tasks.

use std::{collections::HashMap, sync::Arc};

use super::{
    Limits, Shared,
    schema::STRIPES,
    stored::{FORMAT, escaped, key},
};
use crate::sql::{
    connection::{Conn, Row},
    statement::{Rows, Sql, Value},
    writer::Tx,
};

/// A task as a transaction changes it.
pub(super) struct Task {
    pub(super) no: i64,
    pub(super) status: i64,
    pub(super) run: u32,
    pub(super) revision: u64,
    pub(super) size: i64,
    /// The time before which it is not free, or microseconds from now on.
    pub(super) run_at: Option<i64>,
    pub(super) delay: Option<i64>,
    pub(super) holder: Option<String>,
    pub(super) leased_until: Option<i64>,
    /// Microseconds from now on, in place of the lease.
    pub(super) lease: Option<i64>,
    pub(super) oldest: u64,
    pub(super) latest: u64,
    pub(super) update_bytes: i64,
    pub(super) appended: (u32, u64),
    /// When it is claimed.
    pub(super) claimed: Option<i64>,
    pub(super) changed: Changed,
}

/// Which columns of a task are changed.
#[derive(Default)]
pub(super) struct Changed {
    pub(super) status: bool,
    pub(super) lease: bool,
    pub(super) updates: bool,
}

pub(super) const QUEUED: i64 = 0;
pub(super) const PROCESSING: i64 = 1;

/// Whether a status is final.
pub(super) fn is_finished(status: i64) -> bool {
    status > PROCESSING
}

/// The columns of [`Task`] in a statement with `octollm_tasks AS t`.
macro_rules! locked {
    () => {
        "t.no, t.id, t.status, t.run, t.revision, t.size, t.holder, t.leased_until, \
         t.oldest, t.latest, t.update_bytes, t.appended_run, t.appended"
    };
}
pub(super) use locked;

impl Task {
    /// Reads a task and its id.
    pub(super) fn of(row: &Row) -> Result<(String, Self), sqlx::Error> {
        let number = |at| Ok::<_, sqlx::Error>(u32::try_from(row.int(at)?).unwrap_or(u32::MAX));
        let task = Self {
            no: row.int(0)?,
            status: row.int(2)?,
            run: number(3)?,
            revision: row.count(4)?,
            size: row.int(5)?,
            run_at: None,
            delay: None,
            holder: row.text_or_null(6)?,
            leased_until: row.int_or_null(7)?,
            lease: None,
            oldest: row.count(8)?,
            latest: row.count(9)?,
            update_bytes: row.int(10)?,
            appended: (number(11)?, row.count(12)?),
            claimed: None,
            changed: Changed::default(),
        };
        Ok((row.text(1)?, task))
    }

    fn columns(&self) -> [Value; 15] {
        [
            self.no.into(),
            self.status.into(),
            self.run.into(),
            self.revision.into(),
            self.holder.as_deref().into(),
            self.run_at.into(),
            self.delay.into(),
            self.leased_until.into(),
            self.lease.into(),
            self.claimed.into(),
            self.oldest.into(),
            self.latest.into(),
            self.update_bytes.into(),
            self.appended.0.into(),
            self.appended.1.into(),
        ]
    }

    pub(super) fn is_held(&self, holder: &str, run: u32) -> bool {
        self.status == PROCESSING && self.run == run && self.holder.as_deref() == Some(&*escaped(holder))
    }

    /// Numbers updates, where the first is `first` of its run without those that were appended before.
    pub(super) fn add_updates(&mut self, first: Option<u64>, updates: &[Arc<str>], flush: &mut Flush) {
        let mut known = 0;
        if let Some(first) = first {
            let appended = if self.appended.0 == self.run { self.appended.1 } else { 0 };
            known = appended.saturating_sub(first);
            self.appended = (self.run, appended.max(first.saturating_add(updates.len() as u64)));
            self.changed.updates = true;
        }
        for body in updates.iter().skip(usize::try_from(known).unwrap_or(usize::MAX)) {
            self.latest += 1;
            self.update_bytes += i64::try_from(body.len()).unwrap_or(i64::MAX);
            self.changed.updates = true;
            flush.updates.push([
                self.no.into(),
                self.latest.into(),
                body.len().into(),
                FORMAT.into(),
                body.into(),
            ]);
        }
    }

    /// Whether the oldest updates are to be deleted. They are a fifth too many then, so that this is seldom.
    fn has_surplus(&self, limits: &Limits) -> bool {
        let count = (self.latest + 1).saturating_sub(self.oldest);
        let bytes = u64::try_from(self.update_bytes).unwrap_or(0);
        let exceeds = |value: u64, limit: usize| value > (limit as u64).saturating_add(limit as u64 / 4);
        count > 1 && (exceeds(count, limits.updates) || exceeds(bytes, limits.update_bytes))
    }
}

/// What a transaction writes beside the columns of tasks.
#[derive(Default)]
pub(super) struct Flush {
    /// The records of new tasks, and those that replace others, by task.
    pub(super) created: HashMap<i64, Arc<str>>,
    pub(super) records: HashMap<i64, Arc<str>>,
    /// By task and step: the entry and its time, or that it is discarded. No time is that of the database.
    pub(super) journal: HashMap<(i64, String), Option<Entry>>,
    pub(super) updates: Rows,
    pub(super) events: Rows,
    pub(super) counts: Counts,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) at: Option<i64>,
    pub(super) text: Arc<str>,
}

/// By how much the counters change.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) queued: i64,
    pub(super) queued_bytes: i64,
    pub(super) finished: i64,
}

impl Counts {
    /// Counts a task that had one status, or did not exist, and has another one.
    pub(super) fn change(&mut self, from: Option<i64>, to: i64, size: i64) {
        if from == Some(QUEUED) {
            self.queued -= 1;
            self.queued_bytes -= size;
        }
        if to == QUEUED {
            self.queued += 1;
            self.queued_bytes += size;
        }
        self.finished += i64::from(is_finished(to)) - i64::from(from.is_some_and(is_finished));
    }
}

impl Flush {
    pub(super) fn record(&mut self, no: i64, text: &Arc<str>) {
        match self.created.get_mut(&no) {
            Some(created) => created.clone_from(text),
            None => drop(self.records.insert(no, text.clone())),
        }
    }

    pub(super) fn event(&mut self, id: &str, body: &Arc<str>) {
        let position = self.events.len();
        self.events.push([key(id).into(), position.into(), FORMAT.into(), body.into()]);
    }

    /// Writes everything that has changed.
    pub(super) async fn write(
        &mut self,
        tx: &mut Tx<'_>,
        tasks: &mut HashMap<String, Task>,
        store: &Shared,
    ) -> Result<(), sqlx::Error> {
        let Self { created, records, journal, mut updates, events, counts } = std::mem::take(self);
        write_journal(&mut tx.conn, journal).await?;
        let (created, records) = (texts(created), texts(records));
        if !events.is_empty() {
            tx.changed(super::EVENTS.into());
        }
        let is_trimmed = tasks.values().any(|task| task.has_surplus(&store.limits));
        if is_trimmed {
            tx.conn.execute_rows(&UPDATES, [], std::mem::take(&mut updates)).await?;
            for task in tasks.values_mut().filter(|task| task.has_surplus(&store.limits)) {
                trim(&mut tx.conn, task, &store.limits).await?;
            }
        }
        let whole = write_parts(&mut tx.conn, tasks).await?;
        let stripe = if tx.conn.is_postgres() { store.stripe % STRIPES } else { 0 };
        let is_counted = (counts.queued, counts.queued_bytes, counts.finished) != (0, 0, 0);
        let counts =
            [stripe.into(), counts.queued.into(), counts.queued_bytes.into(), counts.finished.into()];
        if tx.conn.is_postgres() {
            let sets = [created, records, updates, whole, events];
            if is_counted || sets.iter().any(|rows| !rows.is_empty()) {
                tx.conn.execute_sets(&ALL, counts, sets).await?;
            }
            return Ok(());
        }
        let sets = [
            (&CREATED, created),
            (&RECORDS, records),
            (&UPDATES, updates),
            (&TASKS, whole),
            (&EVENTS, events),
        ];
        for (sql, rows) in sets {
            if !rows.is_empty() {
                tx.conn.execute_rows(sql, [], rows).await?;
            }
        }
        if is_counted {
            tx.conn.execute(&COUNTS, counts).await?;
        }
        Ok(())
    }
}

/// The rows of records, in the order of their tasks.
fn texts(records: HashMap<i64, Arc<str>>) -> Rows {
    let mut records: Vec<_> = records.into_iter().collect();
    records.sort_unstable_by_key(|(no, _)| *no);
    let mut rows = Rows::new();
    for (no, text) in &records {
        rows.push([(*no).into(), FORMAT.into(), text.into()]);
    }
    rows
}

/// The statements that write most of what changes. `ALL` has them as one statement for Postgres, which takes one round trip.
macro_rules! statements {
    ($($name:ident = $sql:literal;)*) => {
        $(static $name: Sql = Sql::new($sql);)*
        static ALL: Sql = Sql::new(concat!("WITH ", statements!(@joined $($sql,)*)));
    };
    (@joined $first:literal, $second:literal, $third:literal, $fourth:literal, $fifth:literal, $last:literal,) => {
        concat!(
            "a AS (", $first, "), b AS (", $second, "), c AS (", $third, "), d AS (", $fourth, "), e AS (", $fifth, ") ", $last
        )
    };
}

statements! {
    CREATED = "INSERT INTO octollm_records (task, format, record) SELECT rows.task, rows.format, rows.record \
        FROM {rows:task int, format int, record text} WHERE true";
    RECORDS = "UPDATE octollm_records SET format = rows.format, record = rows.record \
        FROM {rows:task int, format int, record text} WHERE octollm_records.task = rows.task";
    UPDATES = "INSERT INTO octollm_updates (task, seq, bytes, format, body) \
        SELECT rows.task, rows.seq, rows.bytes, rows.format, rows.body \
        FROM {rows:task int, seq int, bytes int, format int, body text} WHERE true";
    TASKS = "UPDATE octollm_tasks SET status = rows.status, run = rows.run, revision = rows.revision, holder = rows.holder, \
        run_at = CASE WHEN rows.claimed IS NOT NULL THEN octollm_tasks.run_at WHEN rows.delay IS NULL THEN rows.run_at \
        ELSE {now} + rows.delay END, \
        waits_until = CASE WHEN rows.status > 0 THEN NULL WHEN rows.delay IS NULL THEN rows.run_at ELSE {now} + rows.delay END, \
        leased_until = CASE WHEN rows.lease IS NULL THEN rows.leased_until ELSE {now} + rows.lease END, \
        first_claim = CASE WHEN rows.claimed IS NOT NULL THEN COALESCE(first_claim, rows.claimed) END, \
        last_claim = rows.claimed, finished_at = CASE WHEN rows.status > 1 THEN {now} END, \
        oldest = rows.oldest, latest = rows.latest, update_bytes = rows.bytes, \
        appended_run = rows.appended_run, appended = rows.appended \
        FROM {rows:no int, status int, run int, revision int, holder text, run_at int, delay int, leased_until int, lease int, claimed int, oldest int, latest int, bytes int, appended_run int, appended int} \
        WHERE octollm_tasks.no = rows.no";
    EVENTS = "INSERT INTO octollm_events (id, format, body) SELECT rows.id, rows.format, rows.body \
        FROM {rows:id text, position int, format int, body text} WHERE true ORDER BY rows.position";
    COUNTS = "UPDATE octollm_counts SET queued = queued + $2, queued_bytes = queued_bytes + $3, finished = finished + $4 \
        WHERE stripe = $1 AND ($2 <> 0 OR $3 <> 0 OR $4 <> 0)";
}

/// Writes the tasks of which few columns change, and returns the rows of the others.
async fn write_parts(conn: &mut Conn<'_>, tasks: &mut HashMap<String, Task>) -> Result<Rows, sqlx::Error> {
    static LEASES: Sql = Sql::new(
        "UPDATE octollm_tasks SET leased_until = {now} + rows.lease FROM {rows:no int, lease int} \
         WHERE octollm_tasks.no = rows.no",
    );
    static UPDATED: Sql = Sql::new(
        "UPDATE octollm_tasks SET oldest = rows.oldest, latest = rows.latest, update_bytes = rows.bytes, \
         appended_run = rows.run, appended = rows.appended \
         FROM {rows:no int, oldest int, latest int, bytes int, run int, appended int} WHERE octollm_tasks.no = rows.no",
    );
    let (mut whole, mut leases, mut updated) = (Rows::new(), Rows::new(), Rows::new());
    let mut tasks: Vec<&mut Task> = tasks.values_mut().collect();
    tasks.sort_by_key(|task| task.no);
    for task in tasks {
        let changed = std::mem::take(&mut task.changed);
        if changed.status {
            whole.push(task.columns());
            continue;
        }
        if changed.lease {
            leases.push([task.no.into(), task.lease.unwrap_or(0).into()]);
        }
        if changed.updates {
            updated.push([
                task.no.into(),
                task.oldest.into(),
                task.latest.into(),
                task.update_bytes.into(),
                task.appended.0.into(),
                task.appended.1.into(),
            ]);
        }
    }
    for (sql, rows) in [(&LEASES, leases), (&UPDATED, updated)] {
        if !rows.is_empty() {
            conn.execute_rows(sql, [], rows).await?;
        }
    }
    Ok(whole)
}

async fn write_journal(
    conn: &mut Conn<'_>,
    journal: HashMap<(i64, String), Option<Entry>>,
) -> Result<(), sqlx::Error> {
    static DISCARD: Sql = Sql::new(
        "DELETE FROM octollm_journal WHERE {pg:(task, step) IN (SELECT rows.task, rows.step FROM }\
         {lite:rowid IN (SELECT j.rowid FROM }{rows:task int, step text}\
         {lite: CROSS JOIN octollm_journal AS j ON j.task = rows.task AND j.step = rows.step})",
    );
    static WRITE: Sql = Sql::new(
        "INSERT INTO octollm_journal (task, step, seq, at, format, entry) \
         SELECT rows.task, rows.step, rows.seq, COALESCE(rows.at, {now}), rows.format, rows.entry \
         FROM {rows:task int, step text, seq int, at int, format int, entry text} WHERE true \
         ON CONFLICT (task, step) DO UPDATE SET seq = excluded.seq, at = excluded.at, format = excluded.format, \
         entry = excluded.entry",
    );
    let (mut discarded, mut written) = (Rows::new(), Rows::new());
    for ((task, step), entry) in journal {
        match entry {
            None => discarded.push([task.into(), step.into()]),
            Some(Entry { seq, at, text }) => {
                written.push([
                    task.into(),
                    step.into(),
                    seq.into(),
                    at.into(),
                    FORMAT.into(),
                    (&text).into(),
                ]);
            }
        }
    }
    if !discarded.is_empty() {
        conn.execute_rows(&DISCARD, [], discarded).await?;
    }
    if !written.is_empty() {
        conn.execute_rows(&WRITE, [], written).await?;
    }
    Ok(())
}

/// Deletes the oldest updates of a task. The latest one is always stored.
async fn trim(conn: &mut Conn<'_>, task: &mut Task, limits: &Limits) -> Result<(), sqlx::Error> {
    static SIZES: Sql =
        Sql::new("SELECT seq, bytes FROM octollm_updates WHERE task = $1 AND seq < $2 ORDER BY seq");
    static DELETE: Sql = Sql::new("DELETE FROM octollm_updates WHERE task = $1 AND seq < $2");
    let mut count = (task.latest + 1).saturating_sub(task.oldest);
    for row in conn.fetch(&SIZES, [task.no.into(), task.latest.into()]).await? {
        let fits = |value: u64, limit: usize| value <= limit as u64;
        let bytes = u64::try_from(task.update_bytes).unwrap_or(0);
        if fits(count, limits.updates) && fits(bytes, limits.update_bytes) {
            break;
        }
        count -= 1;
        task.oldest = row.count(0)? + 1;
        task.update_bytes -= row.int(1)?;
    }
    task.changed.updates = true;
    conn.execute(&DELETE, [task.no.into(), task.oldest.into()]).await.map(drop)
}

/// The sums of the counters, a bound of the number of events that wait, and the time.
pub(super) async fn counts(conn: &mut Conn<'_>) -> Result<(Counts, u64, i64), sqlx::Error> {
    static READ: Sql = Sql::new(
        "SELECT CAST(sum(queued) AS BIGINT), CAST(sum(queued_bytes) AS BIGINT), CAST(sum(finished) AS BIGINT), \
         COALESCE((SELECT max(seq) FROM octollm_events) - (SELECT min(seq) FROM octollm_events) + 1, 0), {now} \
         FROM octollm_counts",
    );
    let rows = conn.fetch(&READ, []).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let counts = Counts { queued: row.int(0)?, queued_bytes: row.int(1)?, finished: row.int(2)? };
    Ok((counts, row.count(3)?, row.int(4)?))
}
