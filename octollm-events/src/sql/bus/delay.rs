//! Events that are published later.

use std::time::Duration;

use octollm_core::bus::BusError;

use super::{
    publish::{Entry, Limits, Publisher},
    state::{DELAYED, Limit, State, micros},
};
use crate::sql::{
    statement::{Rows, Sql, Value},
    writer::{Operation, Tx},
};

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
