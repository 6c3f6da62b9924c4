//! The events that wait to be published.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use octollm_core::event::Event;

use super::{
    Shared,
    stored::{event, key},
};
use crate::sql::{
    SqlDatabase, SqlError,
    connection::{Conn, Row},
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

/// A relay that asks for no events for so long has lost its turn, in microseconds.
const TURN: i64 = 10_000_000;

/// Takes the turn of a relay, and returns the first events. There are none where another relay has its turn. Those that cannot be
/// read are set aside, so that they hold up no other.
///
/// The turn ends when all events that were there at its last call are published, or by the time.
pub(super) async fn take(store: &Shared, relay: &str, limit: usize) -> Result<Vec<Event>, SqlError> {
    let relay: Arc<str> = key(relay).into();
    loop {
        let (mut events, mut dead) = (Vec::new(), Rows::new());
        for row in first(&store.database, &relay, limit).await? {
            let (seq, id) = (row.int(0)?, row.text(1)?);
            match event(row.int(2)?, &row.text(3)?) {
                Ok(event) => events.push((seq, event)),
                Err(error) => {
                    tracing::error!(id, %error, "event of a task not readable; it is set aside");
                    dead.push([seq.into()]);
                }
            }
        }
        let was_readable = dead.is_empty();
        if !was_readable {
            store.database.write(SetAside(dead)).await?;
        }
        if was_readable || !events.is_empty() {
            store.taken.add(&events);
            return Ok(events.into_iter().map(|(_, event)| event).collect());
        }
    }
}

/// On Postgres this is one statement of its own: transactions of tasks do not wait for the relays of other processes, and a turn, whose
/// table is not logged, waits for no disk.
async fn first(database: &SqlDatabase, relay: &Arc<str>, limit: usize) -> Result<Vec<Row>, SqlError> {
    static TAKE: Sql = Sql::new(
        "WITH first AS (SELECT seq, id, format, body FROM octollm_events ORDER BY seq LIMIT $3), \
         turn AS (INSERT INTO octollm_relay AS r (one, name, until, last) \
         SELECT 1, $1, {now} + $2, (SELECT max(seq) FROM octollm_events) WHERE EXISTS (SELECT 1 FROM first) \
         ON CONFLICT (one) DO UPDATE SET name = excluded.name, until = excluded.until, last = excluded.last \
         WHERE r.name = excluded.name OR r.until <= {now} \
         OR NOT EXISTS (SELECT 1 FROM octollm_events AS e WHERE e.seq <= r.last) RETURNING 1) \
         SELECT seq, id, format, body FROM first WHERE EXISTS (SELECT 1 FROM turn) ORDER BY seq",
    );
    if !database.is_postgres() {
        return database.write(Pending { relay: relay.clone(), limit }).await;
    }
    database.fetch(&TAKE, [relay.into(), TURN.into(), limit.into()]).await
}

/// A relay that asks for its turn on SQLite.
struct Pending {
    relay: Arc<str>,
    limit: usize,
}

impl Operation for Pending {
    type Output = Vec<Row>;
    const ORDER: u8 = 30;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Vec<Row>>, sqlx::Error> {
        let mut taken = Vec::with_capacity(batch.len());
        for pending in batch {
            taken.push(pending.take(&mut tx.conn).await?);
        }
        Ok(taken)
    }
}

impl Pending {
    async fn take(&self, conn: &mut Conn<'_>) -> Result<Vec<Row>, sqlx::Error> {
        static FIRST: Sql =
            Sql::new("SELECT seq, id, format, body FROM octollm_events ORDER BY seq LIMIT $1");
        static TURN_OF: Sql = Sql::new(
            "SELECT 1 FROM octollm_relay AS r WHERE r.one = 1 AND r.name <> $1 AND r.until > {now} \
             AND EXISTS (SELECT 1 FROM octollm_events AS e WHERE e.seq <= r.last)",
        );
        static TAKE: Sql = Sql::new(
            "INSERT INTO octollm_relay (one, name, until, last) SELECT 1, $1, {now} + $2, max(seq) FROM octollm_events WHERE true \
             ON CONFLICT (one) DO UPDATE SET name = excluded.name, until = excluded.until, last = excluded.last",
        );
        let rows = conn.fetch(&FIRST, [self.limit.into()]).await?;
        if rows.is_empty() || !conn.fetch(&TURN_OF, [(&self.relay).into()]).await?.is_empty() {
            return Ok(Vec::new());
        }
        conn.execute(&TAKE, [(&self.relay).into(), TURN.into()]).await?;
        Ok(rows)
    }
}

/// Moves events to those that are never published.
struct SetAside(Rows);

impl Operation for SetAside {
    type Output = ();
    const ORDER: u8 = 35;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        static COPY: Sql = Sql::new(
            "INSERT INTO octollm_dead_events (seq, id, format, body, at) SELECT e.seq, e.id, e.format, e.body, {now} \
             FROM {rows:seq int} {lite:CROSS} JOIN octollm_events AS e ON e.seq = rows.seq WHERE true ON CONFLICT (seq) DO NOTHING",
        );
        for Self(rows) in batch {
            tx.conn.execute_rows(&COPY, [], rows.clone()).await?;
            tx.conn.execute_rows(&DELETE, [], rows.clone()).await?;
        }
        Ok(vec![(); batch.len()])
    }
}

static DELETE: Sql =
    Sql::new("DELETE FROM octollm_events WHERE seq IN (SELECT rows.seq FROM {rows:seq int})");

/// Deletes published events.
pub(super) struct Published {
    seqs: Rows,
    /// The keys of those whose numbers are not known: they are searched.
    others: Rows,
}

impl Operation for Published {
    type Output = ();
    const ORDER: u8 = 40;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        // Without the function this would be a join, which reads all events for each id.
        static SEARCH: Sql = Sql::new(
            "DELETE FROM octollm_events WHERE COALESCE(id IN (SELECT rows.id FROM {rows:id text}), false)",
        );
        for Self { seqs, others } in batch {
            for (sql, rows) in [(&DELETE, seqs), (&SEARCH, others)] {
                if !rows.is_empty() {
                    tx.conn.execute_rows(sql, [], rows.clone()).await?;
                }
            }
        }
        Ok(vec![(); batch.len()])
    }
}

/// The numbers of events that relays of this process have taken, by id.
#[derive(Debug, Default)]
pub(super) struct Taken(Mutex<HashMap<String, i64>>);

/// Most numbers that are known. A relay that ends leaves those behind that it has not published.
const MOST_TAKEN: usize = 8_192;

impl Taken {
    fn add(&self, events: &[(i64, Event)]) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() > MOST_TAKEN {
            taken.clear();
        }
        taken.extend(events.iter().map(|(seq, event)| (event.id().to_owned(), *seq)));
    }

    /// The deletion of these events.
    pub(super) fn published(&self, ids: &[String]) -> Published {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut seqs, mut others) = (Rows::new(), Rows::new());
        for id in ids {
            match taken.remove(id) {
                Some(seq) => seqs.push([seq.into()]),
                None => others.push([key(id).into()]),
            }
        }
        Published { seqs, others }
    }
}
