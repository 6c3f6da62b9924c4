//! Publishing: the log, its fan-out to the groups, and events that are published later.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use octollm_core::{
    bus::BusError,
    event::{Channel, Event, Pattern},
};

use super::state::{DELAYED, LOG, Limit, State, group_topic, micros};
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
    channel: Channel,
    key: i64,
    pub(super) size: usize,
    /// When it expires, in microseconds since 1970; 0 for never.
    expires: i64,
    event: Value,
}

impl Entry {
    pub(super) fn of(event: &Event, size: usize) -> Result<Self, BusError> {
        let unreadable = |error| BusError::Unavailable { source: Some(std::sync::Arc::new(error)) };
        let text = Encoding::Native.encode(event).map_err(unreadable)?;
        let expires = event.expires_at().map_or(0, |at| at.as_microsecond().max(1));
        let (channel, event_) = (event.channel().clone(), text.to_vec().into());
        Ok(Self { channel, key: key_of(event), size, expires, event: event_ })
    }

    fn read(row: &Row, first: usize) -> Result<Option<Self>, sqlx::Error> {
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
struct Publisher {
    state: State,
    groups: BTreeMap<i64, Group>,
    log: Rows,
    deliveries: Deliveries,
}

/// The rows of new deliveries.
#[derive(Default)]
pub(super) struct Deliveries {
    rows: Rows,
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
        tx.conn.execute_rows(&INSERT, [], self.rows).await.map(drop)
    }
}

impl Publisher {
    async fn begin(tx: &mut Tx<'_>) -> Result<Self, sqlx::Error> {
        static GROUPS: Sql = Sql::new("SELECT id, pattern, events, bytes FROM octollm_bus_group");
        let state = State::lock(tx).await?;
        let mut groups = BTreeMap::new();
        for row in tx.conn.fetch(&GROUPS, []).await? {
            let Ok(pattern) = row.text(1)?.parse() else { continue };
            let group = Group { pattern, events: row.count(2)?, bytes: row.count(3)?, added: (0, 0) };
            groups.insert(row.int(0)?, group);
        }
        Ok(Self { state, groups, log: Rows::new(), deliveries: Deliveries::default() })
    }

    fn add(&mut self, entry: &Entry, backlog: Option<Limit>) -> Result<(), BusError> {
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

    async fn end(mut self, history: Option<Limit>, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
        static LOG_ROWS: Sql = Sql::new(
            "INSERT INTO octollm_bus_log (seq, channel, key, size, expires, event) \
             SELECT rows.seq, rows.channel, rows.key, rows.size, rows.expires, rows.event FROM \
             {rows:seq int, channel text, key int, size int, expires int, event bytes} WHERE true",
        );
        static COUNT: Sql = Sql::new(
            "UPDATE octollm_bus_group SET events = octollm_bus_group.events + rows.events, bytes = octollm_bus_group.bytes + rows.bytes \
             FROM {rows:id int, events int, bytes int} WHERE octollm_bus_group.id = rows.id",
        );
        if self.log.is_empty() {
            return Ok(());
        }
        tx.conn.execute_rows(&LOG_ROWS, [], self.log).await?;
        self.deliveries.insert(tx).await?;
        let mut counts = Rows::new();
        for (id, group) in self.groups.iter().filter(|(_, group)| group.added.0 > 0) {
            counts.push([(*id).into(), group.added.0.into(), group.added.1.into()]);
            tx.changed(group_topic(*id));
        }
        if !counts.is_empty() {
            tx.conn.execute_rows(&COUNT, [], counts).await?;
        }
        if let Some(history) = history {
            trim(&mut self.state, history, tx).await?;
        }
        self.state.store(tx).await?;
        tx.changed(LOG.into());
        Ok(())
    }
}

/// Events that the log may have above its limit before it is trimmed.
const SLACK: u64 = 256;

/// Deletes the oldest events beyond the limit that no group needs.
async fn trim(state: &mut State, limit: Limit, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static OLDEST: Sql = Sql::new(
        "SELECT l.seq, l.size FROM (SELECT seq, size FROM octollm_bus_log ORDER BY seq LIMIT $1) AS l \
         WHERE NOT EXISTS (SELECT 1 FROM octollm_bus_delivery AS d WHERE d.seq = l.seq) ORDER BY l.seq",
    );
    static DELETE: Sql =
        Sql::new("DELETE FROM octollm_bus_log WHERE seq IN (SELECT rows.seq FROM {rows:seq int})");
    let above = state.events.saturating_sub(limit.events as u64);
    let slack_bytes = limit.bytes as u64 / 8;
    if above < SLACK.min(limit.events as u64 + 1) && state.bytes <= limit.bytes as u64 + slack_bytes {
        return Ok(());
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
    if !gone.is_empty() {
        tx.conn.execute_rows(&DELETE, [], gone).await?;
    }
    Ok(())
}

/// Stores an event that is published later.
pub(super) struct Delay {
    pub(super) event_id: String,
    pub(super) entry: Entry,
    pub(super) delay: Duration,
    pub(super) limit: Limit,
}

impl Operation for Delay {
    type Output = Result<(), BusError>;
    const ORDER: u8 = 121;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        static COUNT: Sql = Sql::new(
            "SELECT count(*), CAST(COALESCE(sum(size), 0) AS {pg:bigint}{lite:integer}) FROM octollm_bus_delayed",
        );
        static INSERT: Sql = Sql::new(
            "INSERT INTO octollm_bus_delayed (id, event_id, due, channel, key, size, expires, event) \
             VALUES ($1, $2, {now} + $3, $4, $5, $6, $7, $8)",
        );
        let mut state = State::lock(tx).await?;
        let rows = tx.conn.fetch(&COUNT, []).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (mut events, mut bytes) = (row.count(0)?, row.count(1)?);
        let mut results = Vec::with_capacity(batch.len());
        for Self { event_id, entry, delay, limit } in batch {
            let size = entry.size as u64;
            let room = limit.check(events + 1, bytes + size);
            if room.is_ok() {
                (events, bytes) = (events + 1, bytes + size);
                let Entry { channel, key, expires, event, .. } = entry;
                let id: Value = event_id.clone().into_bytes().into();
                let parameters = [
                    state.number().into(),
                    id,
                    micros(*delay),
                    channel.as_str().into(),
                    (*key).into(),
                    size.into(),
                    (*expires).into(),
                    event.clone(),
                ];
                tx.conn.execute(&INSERT, parameters).await?;
            }
            results.push(room);
        }
        state.store(tx).await?;
        tx.changed(DELAYED.into());
        Ok(results)
    }
}

/// Removes the delayed events with an id. Returns whether there was one.
pub(super) struct Cancel(pub(super) String);

impl Operation for Cancel {
    type Output = bool;
    const ORDER: u8 = 120;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<bool>, sqlx::Error> {
        static DELETE: Sql = Sql::new("DELETE FROM octollm_bus_delayed WHERE event_id = $1");
        State::lock(tx).await?;
        let mut found = Vec::with_capacity(batch.len());
        for Self(id) in batch {
            found.push(tx.conn.execute(&DELETE, [id.clone().into_bytes().into()]).await? > 0);
        }
        Ok(found)
    }
}

/// Publishes the delayed events whose time has come. They were accepted before, so that a group that is full takes them too.
pub(super) struct Due(pub(super) Limits);

impl Operation for Due {
    type Output = ();
    const ORDER: u8 = 122;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        static DUE: Sql = Sql::new(
            "SELECT id, channel, key, size, expires, event FROM octollm_bus_delayed WHERE due <= {now} ORDER BY due, id LIMIT 256",
        );
        static DELETE: Sql =
            Sql::new("DELETE FROM octollm_bus_delayed WHERE id IN (SELECT rows.id FROM {rows:id int})");
        let mut publisher = Publisher::begin(tx).await?;
        let mut gone = Rows::new();
        for row in tx.conn.fetch(&DUE, []).await? {
            gone.push([row.int(0)?.into()]);
            if let Some(entry) = Entry::read(&row, 1)? {
                // Without a limit there is room.
                let _ = publisher.add(&entry, None);
            }
        }
        if !gone.is_empty() {
            tx.conn.execute_rows(&DELETE, [], gone).await?;
        }
        publisher.end(batch.first().map(|due| due.0.history), tx).await?;
        Ok(vec![(); batch.len()])
    }
}
