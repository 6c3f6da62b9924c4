//! What all operations of the bus share: its lock, and deliveries that end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use octollm_core::bus::{BusError, DeadLetter, FailedAttempt};

use crate::sql::{
    changes::Topic,
    connection::Row,
    statement::{Rows, Sql, Value},
    writer::Tx,
};

/// A number of events, and the sum of their sizes in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Limit {
    pub(super) fn allows(self, events: u64, bytes: u64) -> bool {
        events <= self.events as u64 && bytes <= self.bytes as u64
    }

    /// # Errors
    /// [`BusError::Full`].
    pub(super) fn check(self, events: u64, bytes: u64) -> Result<(), BusError> {
        if self.allows(events, bytes) {
            return Ok(());
        }
        Err(BusError::Full { events: self.events, bytes: self.bytes })
    }
}

/// The row of the bus. It is locked until the transaction ends: all that writes to the bus is in one order, so that the numbers of
/// events are in the order of their commits.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) last: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) trimmed: u64,
    /// Another number in each database that was set up.
    pub(super) epoch: i64,
}

impl State {
    pub(super) async fn lock(tx: &mut Tx<'_>) -> Result<Self, sqlx::Error> {
        static LOCK: Sql =
            Sql::new("SELECT last, events, bytes, trimmed, epoch FROM octollm_bus {pg:FOR UPDATE}");
        // Somebody emptied the tables.
        static AGAIN: Sql = Sql::new(
            "INSERT INTO octollm_bus (id, last, events, bytes, trimmed, epoch) \
             VALUES (1, 0, 0, 0, 0, {pg:floor(random() * 9007199254740992)::bigint}{lite:random()}) ON CONFLICT DO NOTHING",
        );
        loop {
            match tx.conn.fetch(&LOCK, []).await?.first() {
                Some(row) => return Self::read(row),
                None => tx.conn.execute(&AGAIN, []).await?,
            };
        }
    }

    /// Of the first five columns.
    pub(super) fn read(row: &Row) -> Result<Self, sqlx::Error> {
        let (last, events) = (row.count(0)?, row.count(1)?);
        Ok(Self { last, events, bytes: row.count(2)?, trimmed: row.count(3)?, epoch: row.int(4)? })
    }

    /// A number greater than all before.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) async fn store(self, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
        static STORE: Sql =
            Sql::new("UPDATE octollm_bus SET last = $1, events = $2, bytes = $3, trimmed = $4");
        tx.conn.execute(&STORE, self.values()).await.map(drop)
    }

    /// The values of the columns, except for the epoch.
    pub(super) fn values(self) -> [Value; 4] {
        [self.last.into(), self.events.into(), self.bytes.into(), self.trimmed.into()]
    }
}

/// Wakes subscriptions.
pub(super) const LOG: &str = "bus";
/// Wakes what publishes delayed events.
pub(super) const DELAYED: &str = "bus:delayed";

/// Wakes the consumers of a group.
pub(super) fn group_topic(group: i64) -> Topic {
    format!("bus:{group}").into()
}

pub(super) fn micros(time: Duration) -> Value {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(i64::MAX as u64 / 4).into()
}

const NO_ATTEMPTS: &str = "no attempts left";

/// A delivery in the database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) group: i64,
    pub(super) seq: i64,
    pub(super) key: i64,
    pub(super) size: i64,
    pub(super) attempts: i64,
}

impl Stored {
    /// Of the first five columns.
    pub(super) fn read(row: &Row) -> Result<Self, sqlx::Error> {
        let (group, seq) = (row.int(0)?, row.int(1)?);
        Ok(Self { group, seq, key: row.int(2)?, size: row.int(3)?, attempts: row.int(4)? })
    }
}

/// A delivery that failed, or may fail.
#[derive(Debug, Clone)]
pub(super) struct Delivered {
    pub(super) stored: Stored,
    since: i64,
    member: i64,
    history: Vec<FailedAttempt>,
}

impl Delivered {
    /// Of the first eight columns: those of [`Stored`], `since`, `member` and `history`.
    pub(super) fn read(row: &Row) -> Result<Self, sqlx::Error> {
        let history = read_history(row, 7)?;
        Ok(Self { stored: Stored::read(row)?, since: row.int(5)?, member: row.int(6)?, history })
    }

    /// The history with this delivery. The last reason of a delivery is the one that counts.
    pub(super) fn failed(&self, reason: &str) -> String {
        let at = Timestamp::from_microsecond(self.since).unwrap_or_default();
        let failed = FailedAttempt::new(at, self.member.to_string(), reason);
        let before = self.before();
        let from = before.len().saturating_sub(DeadLetter::MAX_HISTORY - 1);
        let history: Vec<_> = before[from..].iter().chain([&failed]).collect();
        serde_json::to_string(&history).unwrap_or_default()
    }

    /// The history without this delivery, which does not count.
    pub(super) fn released(&self) -> Value {
        let before = self.before();
        if before.is_empty() {
            return Value::Null;
        }
        serde_json::to_string(before).map_or(Value::Null, Value::from)
    }

    /// The deliveries before this one, which is among those that failed where its lease expired.
    fn before(&self) -> &[FailedAttempt] {
        let member = self.member.to_string();
        match self.history.split_last() {
            Some((last, before)) if last.at.as_microsecond() == self.since && last.consumer == member => {
                before
            }
            _ => &self.history,
        }
    }
}

/// The deliveries that failed. A history that cannot be read is none.
pub(super) fn read_history(row: &Row, column: usize) -> Result<Vec<FailedAttempt>, sqlx::Error> {
    let text = row.text_or_null(column)?.unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

/// Ends deliveries: the next ones of their keys can be claimed.
pub(super) async fn remove(ended: &[Stored], tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static DELETE: Sql = Sql::new(
        "DELETE FROM octollm_bus_delivery WHERE (group_id, seq) IN (SELECT rows.group_id, rows.seq FROM {rows:group_id int, seq int})",
    );
    static COUNT: Sql = Sql::new(
        "UPDATE octollm_bus_group SET events = octollm_bus_group.events - rows.events, bytes = octollm_bus_group.bytes - rows.bytes \
         FROM {rows:id int, events int, bytes int} WHERE octollm_bus_group.id = rows.id",
    );
    // Both, in one round trip.
    static AT_ONCE: Sql = Sql::new(
        "WITH input AS MATERIALIZED (SELECT * FROM {rows:what int, a int, b int, c int}), \
         gone AS (DELETE FROM octollm_bus_delivery AS d USING input AS i WHERE i.what = 0 AND d.group_id = i.a AND d.seq = i.b) \
         UPDATE octollm_bus_group AS g SET events = g.events - i.b, bytes = g.bytes - i.c FROM input AS i \
         WHERE i.what = 1 AND g.id = i.a",
    );
    static UNBLOCK: Sql = Sql::new(
        "UPDATE octollm_bus_delivery SET due = 0 WHERE due IS NULL AND (group_id, seq) IN ( \
         SELECT rows.group_id, (SELECT min(d.seq) FROM octollm_bus_delivery AS d WHERE d.group_id = rows.group_id \
         AND d.key = rows.key AND d.key <> 0) FROM {rows:group_id int, key int})",
    );
    if ended.is_empty() {
        return Ok(());
    }
    let (mut keys, mut counts) = (BTreeSet::new(), BTreeMap::<i64, (i64, i64)>::new());
    for delivery in ended {
        if delivery.key != 0 {
            keys.insert((delivery.group, delivery.key));
        }
        let count = counts.entry(delivery.group).or_default();
        *count = (count.0 + 1, count.1 + delivery.size);
    }
    if tx.conn.is_postgres() {
        let mut rows = Rows::new();
        ended
            .iter()
            .for_each(|ended| rows.push([0_i64.into(), ended.group.into(), ended.seq.into(), Value::Null]));
        for (group, (events, bytes)) in counts {
            rows.push([1_i64.into(), group.into(), events.into(), bytes.into()]);
        }
        tx.conn.execute_rows(&AT_ONCE, [], rows).await?;
    } else {
        let (mut gone, mut rows) = (Rows::new(), Rows::new());
        ended.iter().for_each(|ended| gone.push([ended.group.into(), ended.seq.into()]));
        tx.conn.execute_rows(&DELETE, [], gone).await?;
        for (group, (events, bytes)) in counts {
            rows.push([group.into(), events.into(), bytes.into()]);
        }
        tx.conn.execute_rows(&COUNT, [], rows).await?;
    }
    if !keys.is_empty() {
        let mut rows = Rows::new();
        for (group, key) in &keys {
            rows.push([(*group).into(), (*key).into()]);
            tx.changed(group_topic(*group));
        }
        tx.conn.execute_rows(&UNBLOCK, [], rows).await?;
    }
    Ok(())
}

/// A delivery that is a dead letter from now on.
pub(super) struct Dead {
    stored: Stored,
    reason: String,
    history: String,
}

impl Dead {
    /// For a reason that is also the one of the last attempt.
    pub(super) fn new(delivered: &Delivered, reason: &str) -> Self {
        Self { stored: delivered.stored, reason: reason.to_owned(), history: delivered.failed(reason) }
    }

    /// After the last attempt, which failed for this reason.
    pub(super) fn after_all_attempts(delivered: &Delivered, reason: &str) -> Self {
        Self { reason: NO_ATTEMPTS.to_owned(), ..Self::new(delivered, reason) }
    }
}

/// Makes deliveries dead letters, and deletes the oldest dead letters beyond the limit.
pub(super) async fn bury(dead: &[Dead], limit: Limit, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    // One whose event was deleted from the log is a dead letter without bytes.
    static INSERT: Sql = Sql::new(
        "INSERT INTO octollm_bus_dead (group_id, seq, token, size, attempts, reason, history, event) \
         SELECT d.group_id, d.seq, d.token, rows.size, d.attempts, rows.reason, rows.history, \
         COALESCE(d.event, l.event, {pg:''::bytea}{lite:x''}) \
         FROM {rows:group_id int, seq int, size int, reason text, history text} \
         JOIN octollm_bus_delivery AS d ON d.group_id = rows.group_id AND d.seq = rows.seq \
         LEFT JOIN octollm_bus_log AS l ON l.seq = d.seq",
    );
    if dead.is_empty() {
        return Ok(());
    }
    let (mut rows, mut counts) = (Rows::new(), BTreeMap::<i64, (i64, i64)>::new());
    for Dead { stored, reason, history } in dead {
        // A text of Postgres has no NUL. In JSON it is escaped.
        let reason = reason.replace('\0', "\u{fffd}");
        let size = stored.size + i64::try_from(reason.len() + history.len()).unwrap_or(0);
        let history = history.as_str().into();
        rows.push([stored.group.into(), stored.seq.into(), size.into(), reason.into(), history]);
        let count = counts.entry(stored.group).or_default();
        *count = (count.0 + 1, count.1 + size);
    }
    tx.conn.execute_rows(&INSERT, [], rows).await?;
    let ended: Vec<_> = dead.iter().map(|dead| dead.stored).collect();
    remove(&ended, tx).await?;
    for (group, (events, bytes)) in counts {
        count_dead(group, events, bytes, tx).await?;
        limit_dead(group, limit, tx).await?;
    }
    Ok(())
}

pub(super) async fn count_dead(
    group: i64,
    events: i64,
    bytes: i64,
    tx: &mut Tx<'_>,
) -> Result<(), sqlx::Error> {
    static COUNT: Sql =
        Sql::new("UPDATE octollm_bus_group SET dead = dead + $2, dead_bytes = dead_bytes + $3 WHERE id = $1");
    tx.conn.execute(&COUNT, [group.into(), events.into(), bytes.into()]).await.map(drop)
}

async fn limit_dead(group: i64, limit: Limit, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static READ: Sql = Sql::new("SELECT dead, dead_bytes FROM octollm_bus_group WHERE id = $1");
    static OLDEST: Sql =
        Sql::new("SELECT seq, size FROM octollm_bus_dead WHERE group_id = $1 ORDER BY seq LIMIT 100");
    static DELETE: Sql = Sql::new("DELETE FROM octollm_bus_dead WHERE group_id = $1 AND seq <= $2");
    static DISCARD: Sql = Sql::new("UPDATE octollm_bus_group SET discarded = discarded + $2 WHERE id = $1");
    loop {
        let rows = tx.conn.fetch(&READ, [group.into()]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let (mut events, mut bytes) = (row.count(0)?, row.count(1)?);
        if limit.allows(events, bytes) {
            return Ok(());
        }
        let (mut gone, mut gone_bytes, mut until) = (0_i64, 0_i64, 0_i64);
        for row in tx.conn.fetch(&OLDEST, [group.into()]).await? {
            if limit.allows(events, bytes) {
                break;
            }
            (until, gone, gone_bytes) = (row.int(0)?, gone + 1, gone_bytes + row.int(1)?);
            (events, bytes) = (events.saturating_sub(1), bytes.saturating_sub(row.count(1)?));
        }
        if gone == 0 {
            return Ok(());
        }
        tx.conn.execute(&DELETE, [group.into(), until.into()]).await?;
        count_dead(group, -gone, -gone_bytes, tx).await?;
        tx.conn.execute(&DISCARD, [group.into(), gone.into()]).await?;
    }
}
