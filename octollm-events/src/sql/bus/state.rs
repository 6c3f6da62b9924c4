//! What all operations of the bus share: its lock, and deliveries that end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use octollm_core::bus::BusError;

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
}

impl State {
    pub(super) async fn lock(tx: &mut Tx<'_>) -> Result<Self, sqlx::Error> {
        static LOCK: Sql = Sql::new("SELECT last, events, bytes, trimmed FROM octollm_bus {pg:FOR UPDATE}");
        let rows = tx.conn.fetch(&LOCK, []).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (last, events) = (row.count(0)?, row.count(1)?);
        Ok(Self { last, events, bytes: row.count(2)?, trimmed: row.count(3)? })
    }

    /// A number greater than all before.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) async fn store(self, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
        static STORE: Sql =
            Sql::new("UPDATE octollm_bus SET last = $1, events = $2, bytes = $3, trimmed = $4");
        let Self { last, events, bytes, trimmed } = self;
        tx.conn.execute(&STORE, [last.into(), events.into(), bytes.into(), trimmed.into()]).await.map(drop)
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

pub(super) const NO_ATTEMPTS: &str = "no attempts left";

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

/// Ends deliveries: the next ones of their keys can be claimed.
pub(super) async fn remove(ended: &[Stored], tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static DELETE: Sql = Sql::new(
        "DELETE FROM octollm_bus_delivery WHERE (group_id, seq) IN (SELECT rows.group_id, rows.seq FROM {rows:group_id int, seq int})",
    );
    static UNBLOCK: Sql = Sql::new(
        "UPDATE octollm_bus_delivery SET due = 0 WHERE due IS NULL AND (group_id, seq) IN ( \
         SELECT rows.group_id, (SELECT min(d.seq) FROM octollm_bus_delivery AS d WHERE d.group_id = rows.group_id \
         AND d.key = rows.key AND d.key <> 0) FROM {rows:group_id int, key int})",
    );
    static COUNT: Sql = Sql::new(
        "UPDATE octollm_bus_group SET events = octollm_bus_group.events - rows.events, bytes = octollm_bus_group.bytes - rows.bytes \
         FROM {rows:id int, events int, bytes int} WHERE octollm_bus_group.id = rows.id",
    );
    if ended.is_empty() {
        return Ok(());
    }
    let (mut gone, mut keys, mut counts) = (Rows::new(), BTreeSet::new(), BTreeMap::<i64, (i64, i64)>::new());
    for delivery in ended {
        gone.push([delivery.group.into(), delivery.seq.into()]);
        if delivery.key != 0 {
            keys.insert((delivery.group, delivery.key));
        }
        let count = counts.entry(delivery.group).or_default();
        *count = (count.0 + 1, count.1 + delivery.size);
    }
    tx.conn.execute_rows(&DELETE, [], gone).await?;
    if !keys.is_empty() {
        let mut rows = Rows::new();
        for (group, key) in &keys {
            rows.push([(*group).into(), (*key).into()]);
            tx.changed(group_topic(*group));
        }
        tx.conn.execute_rows(&UNBLOCK, [], rows).await?;
    }
    let mut rows = Rows::new();
    counts
        .iter()
        .for_each(|(group, (events, bytes))| rows.push([(*group).into(), (*events).into(), (*bytes).into()]));
    tx.conn.execute_rows(&COUNT, [], rows).await.map(drop)
}

/// Makes deliveries dead letters, each with its reason, and deletes the oldest dead letters beyond the limit.
pub(super) async fn bury(
    dead: &[(Stored, String)],
    limit: Limit,
    tx: &mut Tx<'_>,
) -> Result<(), sqlx::Error> {
    static INSERT: Sql = Sql::new(
        "INSERT INTO octollm_bus_dead (group_id, seq, token, size, attempts, reason, event) \
         SELECT d.group_id, d.seq, d.token, rows.size, d.attempts, rows.reason, COALESCE(d.event, l.event) \
         FROM {rows:group_id int, seq int, size int, reason text} \
         JOIN octollm_bus_delivery AS d ON d.group_id = rows.group_id AND d.seq = rows.seq \
         LEFT JOIN octollm_bus_log AS l ON l.seq = d.seq WHERE COALESCE(d.event, l.event) IS NOT NULL",
    );
    if dead.is_empty() {
        return Ok(());
    }
    let (mut rows, mut counts) = (Rows::new(), BTreeMap::<i64, (i64, i64)>::new());
    for (delivery, reason) in dead {
        // A text of Postgres has no NUL.
        let reason = reason.replace('\0', "\u{fffd}");
        let size = delivery.size + i64::try_from(reason.len()).unwrap_or(0);
        rows.push([delivery.group.into(), delivery.seq.into(), size.into(), reason.into()]);
        let count = counts.entry(delivery.group).or_default();
        *count = (count.0 + 1, count.1 + size);
    }
    tx.conn.execute_rows(&INSERT, [], rows).await?;
    let ended: Vec<_> = dead.iter().map(|(delivery, _)| *delivery).collect();
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
