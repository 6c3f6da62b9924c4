//! Publishing: the log, and its fan-out to the groups.

use std::collections::{BTreeMap, HashSet};

use octollm_core::{
    bus::BusError,
    event::{Channel, Event, Pattern},
};

use super::state::{LOG, Limit, State, group_topic};
use crate::{
    Encoding,
    sql::{
        connection::Row,
        outbox::hash,
        statement::{Rows, Sql, Value},
        writer::{Operation, Tx},
    },
};

/// An event as it is stored.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) channel: Channel,
    pub(super) key: i64,
    pub(super) size: usize,
    /// When it expires, in microseconds since 1970; 0 for never.
    pub(super) expires: i64,
    pub(super) event: Value,
}

impl Entry {
    pub(super) fn of(event: &Event, size: usize) -> Result<Self, BusError> {
        let unreadable = |error| BusError::Unavailable { source: Some(std::sync::Arc::new(error)) };
        let text = Encoding::Native.encode(event).map_err(unreadable)?;
        let expires = event.expires_at().map_or(0, |at| at.as_microsecond().max(1));
        let (channel, event_) = (event.channel().clone(), text.to_vec().into());
        Ok(Self { channel, key: key_of(event), size, expires, event: event_ })
    }

    pub(super) fn read(row: &Row, first: usize) -> Result<Option<Self>, sqlx::Error> {
        let Ok(channel) = row.text(first)?.parse() else { return Ok(None) };
        let (key, size) = (row.int(first + 1)?, usize::try_from(row.int(first + 2)?).unwrap_or(0));
        Ok(Some(Self {
            channel,
            key,
            size,
            expires: row.int(first + 3)?,
            event: row.bytes(first + 4)?.into(),
        }))
    }
}

/// A key as it is stored. Two keys with one number are in one order, which does no harm.
pub(super) fn key_of(event: &Event) -> i64 {
    event.partition_key().map_or(0, |key| hash(key).cast_signed().max(i64::MIN + 1) | 1)
}

/// The limits of publishing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) history: Limit,
    pub(super) backlog: Limit,
}

/// Publishes events, and returns a result for each.
pub(super) struct Publish {
    pub(super) entries: Vec<Entry>,
    pub(super) limits: Limits,
}

impl Operation for Publish {
    type Output = Vec<Result<(), BusError>>;
    const ORDER: u8 = 123;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        let mut publisher = Publisher::begin(tx).await?;
        let mut results = Vec::with_capacity(batch.len());
        for publish in batch {
            let add = |entry: &Entry| publisher.add(entry, Some(publish.limits.backlog));
            results.push(publish.entries.iter().map(add).collect());
        }
        let limits = batch.first().map(|publish| publish.limits);
        publisher.end(limits.map(|limits| limits.history), tx).await?;
        Ok(results)
    }
}

struct Group {
    pattern: Pattern,
    events: u64,
    bytes: u64,
    added: (u64, u64),
}

/// Collects what is published by one transaction.
pub(super) struct Publisher {
    state: State,
    groups: BTreeMap<i64, Group>,
    /// The rows of the log.
    log: Vec<[Value; 6]>,
    deliveries: Deliveries,
}

/// The rows of new deliveries.
#[derive(Default)]
pub(super) struct Deliveries {
    rows: Vec<[Value; 6]>,
    keys: HashSet<(i64, i64)>,
}

impl Deliveries {
    pub(super) fn push(&mut self, group: i64, seq: i64, (key, size, expires): (i64, i64, i64)) {
        // One after another one of its key within these rows.
        let later = i64::from(key != 0 && !self.keys.insert((group, key)));
        self.rows.push([group.into(), seq.into(), key.into(), size.into(), expires.into(), later.into()]);
    }

    pub(super) async fn insert(self, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
        static INSERT: Sql = Sql::new(
            "INSERT INTO octollm_bus_delivery (group_id, seq, key, size, expires, due) \
             SELECT rows.group_id, rows.seq, rows.key, rows.size, rows.expires, CASE WHEN rows.later = 1 OR rows.key <> 0 AND EXISTS ( \
             SELECT 1 FROM octollm_bus_delivery AS d WHERE d.group_id = rows.group_id AND d.key = rows.key AND d.key <> 0) \
             THEN NULL ELSE 0 END \
             FROM {rows:group_id int, seq int, key int, size int, expires int, later int} WHERE true",
        );
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut rows = Rows::new();
        self.rows.into_iter().for_each(|row| rows.push(row));
        tx.conn.execute_rows(&INSERT, [], rows).await.map(drop)
    }
}

impl Publisher {
    pub(super) async fn begin(tx: &mut Tx<'_>) -> Result<Self, sqlx::Error> {
        // The second statement sees what was committed while the first one waited. Nobody writes while SQLite is locked.
        static BEGIN: Sql = Sql::new(
            "{pg:SELECT * FROM octollm_bus_publish()}\
             {lite:SELECT b.last, b.events, b.bytes, b.trimmed, b.epoch, g.id, g.pattern, g.events, g.bytes \
             FROM octollm_bus AS b LEFT JOIN octollm_bus_group AS g ON true}",
        );
        let mut rows = tx.conn.fetch(&BEGIN, []).await?;
        if rows.is_empty() {
            State::lock(tx).await?;
            rows = tx.conn.fetch(&BEGIN, []).await?;
        }
        let state = State::read(rows.first().ok_or(sqlx::Error::RowNotFound)?)?;
        let mut groups = BTreeMap::new();
        for row in rows {
            let (Some(id), Some(pattern)) = (row.int_or_null(5)?, row.text_or_null(6)?) else { continue };
            let Ok(pattern) = pattern.parse() else { continue };
            let group = Group { pattern, events: row.count(7)?, bytes: row.count(8)?, added: (0, 0) };
            groups.insert(id, group);
        }
        Ok(Self { state, groups, log: Vec::new(), deliveries: Deliveries::default() })
    }

    pub(super) fn add(&mut self, entry: &Entry, backlog: Option<Limit>) -> Result<(), BusError> {
        let Entry { channel, key, size, expires, event } = entry;
        let size = *size as u64;
        if let Some(backlog) = backlog {
            for group in self.groups.values().filter(|group| group.pattern.matches(channel)) {
                backlog.check(group.events + 1, group.bytes + size)?;
            }
        }
        let seq = self.state.number().cast_signed();
        self.log.push([
            seq.into(),
            channel.as_str().into(),
            (*key).into(),
            size.into(),
            (*expires).into(),
            event.clone(),
        ]);
        (self.state.events, self.state.bytes) = (self.state.events + 1, self.state.bytes + size);
        for (id, group) in self.groups.iter_mut().filter(|(_, group)| group.pattern.matches(channel)) {
            (group.events, group.bytes) = (group.events + 1, group.bytes + size);
            group.added = (group.added.0 + 1, group.added.1 + size);
            self.deliveries.push(*id, seq, (*key, size.cast_signed(), *expires));
        }
        Ok(())
    }

    pub(super) async fn end(mut self, history: Option<Limit>, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
        if self.log.is_empty() {
            return Ok(());
        }
        let mut counts = Vec::new();
        for (id, group) in self.groups.iter().filter(|(_, group)| group.added.0 > 0) {
            counts.push([(*id).into(), group.added.0.into(), group.added.1.into()]);
            tx.changed(group_topic(*id));
        }
        if tx.conn.is_postgres() {
            write_at_once(self.state, self.log, self.deliveries, counts, tx).await?;
        } else {
            write_each(self.state, self.log, self.deliveries, counts, tx).await?;
        }
        if let Some(history) = history
            && trim(&mut self.state, history, tx).await?
        {
            self.state.store(tx).await?;
        }
        tx.changed(LOG.into());
        Ok(())
    }
}

/// Writes what is published in one round trip. Its rows have a kind: 0 for the log, 1 for a delivery, 2 for the numbers of a group.
async fn write_at_once(
    state: State,
    log: Vec<[Value; 6]>,
    deliveries: Deliveries,
    counts: Vec<[Value; 3]>,
    tx: &mut Tx<'_>,
) -> Result<(), sqlx::Error> {
    static WRITE: Sql = Sql::new(
        "WITH input AS MATERIALIZED (SELECT * FROM \
         {rows:kind int, a int, b int, c int, d int, e int, later int, channel text, event bytes}), \
         log AS (INSERT INTO octollm_bus_log (seq, channel, key, size, expires, event) \
         SELECT a, channel, b, c, d, event FROM input WHERE kind = 0), \
         deliveries AS (INSERT INTO octollm_bus_delivery (group_id, seq, key, size, expires, due) \
         SELECT i.a, i.b, i.c, i.d, i.e, CASE WHEN i.later = 1 OR i.c <> 0 AND EXISTS ( \
         SELECT 1 FROM octollm_bus_delivery AS d WHERE d.group_id = i.a AND d.key = i.c AND d.key <> 0) \
         THEN NULL ELSE 0 END FROM input AS i WHERE i.kind = 1), \
         groups AS (UPDATE octollm_bus_group AS g SET events = g.events + i.b, bytes = g.bytes + i.c \
         FROM input AS i WHERE i.kind = 2 AND g.id = i.a) \
         UPDATE octollm_bus SET last = $1, events = $2, bytes = $3, trimmed = $4",
    );
    const NULL: Value = Value::Null;
    let mut rows = Rows::new();
    for [seq, channel, key, size, expires, event] in log {
        rows.push([0_i64.into(), seq, key, size, expires, NULL, NULL, channel, event]);
    }
    for [group, seq, key, size, expires, later] in deliveries.rows {
        rows.push([1_i64.into(), group, seq, key, size, expires, later, NULL, NULL]);
    }
    for [group, events, bytes] in counts {
        rows.push([2_i64.into(), group, events, bytes, NULL, NULL, NULL, NULL, NULL]);
    }
    tx.conn.execute_rows(&WRITE, state.values(), rows).await.map(drop)
}

/// Writes what is published. SQLite has one statement for each table, and no round trips.
async fn write_each(
    state: State,
    log: Vec<[Value; 6]>,
    deliveries: Deliveries,
    counts: Vec<[Value; 3]>,
    tx: &mut Tx<'_>,
) -> Result<(), sqlx::Error> {
    static LOG_ROWS: Sql = Sql::new(
        "INSERT INTO octollm_bus_log (seq, channel, key, size, expires, event) \
         SELECT rows.seq, rows.channel, rows.key, rows.size, rows.expires, rows.event FROM \
         {rows:seq int, channel text, key int, size int, expires int, event bytes} WHERE true",
    );
    static COUNT: Sql = Sql::new(
        "UPDATE octollm_bus_group SET events = octollm_bus_group.events + rows.events, bytes = octollm_bus_group.bytes + rows.bytes \
         FROM {rows:id int, events int, bytes int} WHERE octollm_bus_group.id = rows.id",
    );
    let (mut rows, mut groups) = (Rows::new(), Rows::new());
    log.into_iter().for_each(|row| rows.push(row));
    tx.conn.execute_rows(&LOG_ROWS, [], rows).await?;
    deliveries.insert(tx).await?;
    counts.into_iter().for_each(|row| groups.push(row));
    if !groups.is_empty() {
        tx.conn.execute_rows(&COUNT, [], groups).await?;
    }
    state.store(tx).await
}

/// Events that the log may have above its limit before it is trimmed.
const SLACK: u64 = 256;

/// Deletes the oldest events beyond the limit that no group needs. Returns whether it did.
async fn trim(state: &mut State, limit: Limit, tx: &mut Tx<'_>) -> Result<bool, sqlx::Error> {
    static OLDEST: Sql = Sql::new(
        "SELECT l.seq, l.size FROM (SELECT seq, size FROM octollm_bus_log ORDER BY seq LIMIT $1) AS l \
         WHERE NOT EXISTS (SELECT 1 FROM octollm_bus_delivery AS d WHERE d.seq = l.seq) ORDER BY l.seq",
    );
    static DELETE: Sql =
        Sql::new("DELETE FROM octollm_bus_log WHERE seq IN (SELECT rows.seq FROM {rows:seq int})");
    let above = state.events.saturating_sub(limit.events as u64);
    let slack_bytes = limit.bytes as u64 / 8;
    if above < SLACK.min(limit.events as u64 + 1) && state.bytes <= limit.bytes as u64 + slack_bytes {
        return Ok(false);
    }
    let mut gone = Rows::new();
    for row in tx.conn.fetch(&OLDEST, [(above + SLACK).into()]).await? {
        if limit.allows(state.events, state.bytes) {
            break;
        }
        state.events = state.events.saturating_sub(1);
        state.bytes = state.bytes.saturating_sub(row.count(1)?);
        state.trimmed = state.trimmed.max(row.count(0)?);
        gone.push([row.int(0)?.into()]);
    }
    if gone.is_empty() {
        return Ok(false);
    }
    tx.conn.execute_rows(&DELETE, [], gone).await?;
    Ok(true)
}
