//! The events that wait to be published.

use octollm_core::event::Event;

use super::stored::{event, key};
use crate::sql::{
    SqlDatabase, SqlError,
    connection::Conn,
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

/// A relay that asks for no events for so long has lost its turn, in microseconds.
const TURN: i64 = 10_000_000;

/// Takes the turn of a relay, and returns the first events. There are none where another relay has its turn.
///
/// The turn ends when all events that were there at its last call are published, or by the time.
///
/// On Postgres this is one statement of its own: transactions of tasks do not wait for the relays of other processes, and a turn, whose
/// table is not logged, waits for no disk.
pub(super) async fn take(database: &SqlDatabase, relay: &str, limit: usize) -> Result<Vec<Event>, SqlError> {
    static TAKE: Sql = Sql::new(
        "WITH first AS (SELECT seq, format, body FROM octollm_events ORDER BY seq LIMIT $3), \
         turn AS (INSERT INTO octollm_relay AS r (one, name, until, last) \
         SELECT 1, $1, {now} + $2, (SELECT max(seq) FROM octollm_events) WHERE EXISTS (SELECT 1 FROM first) \
         ON CONFLICT (one) DO UPDATE SET name = excluded.name, until = excluded.until, last = excluded.last \
         WHERE r.name = excluded.name OR r.until <= {now} \
         OR NOT EXISTS (SELECT 1 FROM octollm_events AS e WHERE e.seq <= r.last) RETURNING 1) \
         SELECT format, body FROM first WHERE EXISTS (SELECT 1 FROM turn) ORDER BY seq",
    );
    let relay = key(relay);
    if !database.is_postgres() {
        return database.write(Pending { relay, limit }).await;
    }
    let rows = database.fetch(&TAKE, [relay.into(), TURN.into(), limit.into()]).await?;
    Ok(rows.iter().map(|row| event(row.int(0)?, &row.text(1)?)).collect::<Result<_, _>>()?)
}

/// A relay that asks for its turn on SQLite.
struct Pending {
    relay: String,
    limit: usize,
}

impl Operation for Pending {
    type Output = Vec<Event>;
    const ORDER: u8 = 30;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Vec<Event>>, sqlx::Error> {
        let mut taken = Vec::with_capacity(batch.len());
        for pending in batch {
            taken.push(pending.take(&mut tx.conn).await?);
        }
        Ok(taken)
    }
}

impl Pending {
    async fn take(&self, conn: &mut Conn<'_>) -> Result<Vec<Event>, sqlx::Error> {
        static FIRST: Sql = Sql::new("SELECT format, body FROM octollm_events ORDER BY seq LIMIT $1");
        static TURN_OF: Sql = Sql::new(
            "SELECT 1 FROM octollm_relay AS r WHERE r.one = 1 AND r.name <> $1 AND r.until > {now} \
             AND EXISTS (SELECT 1 FROM octollm_events AS e WHERE e.seq <= r.last)",
        );
        static TAKE: Sql = Sql::new(
            "INSERT INTO octollm_relay (one, name, until, last) SELECT 1, $1, {now} + $2, max(seq) FROM octollm_events WHERE true \
             ON CONFLICT (one) DO UPDATE SET name = excluded.name, until = excluded.until, last = excluded.last",
        );
        let rows = conn.fetch(&FIRST, [self.limit.into()]).await?;
        if rows.is_empty() || !conn.fetch(&TURN_OF, [self.relay.as_str().into()]).await?.is_empty() {
            return Ok(Vec::new());
        }
        conn.execute(&TAKE, [self.relay.as_str().into(), TURN.into()]).await?;
        rows.iter().map(|row| event(row.int(0)?, &row.text(1)?)).collect()
    }
}

/// Deletes published events.
pub(super) struct Published(pub(super) Vec<String>);

impl Operation for Published {
    type Output = ();
    const ORDER: u8 = 40;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        static DELETE: Sql = Sql::new(
            "DELETE FROM octollm_events WHERE seq IN (SELECT e.seq FROM {rows:id text} \
             {lite:CROSS} JOIN octollm_events AS e ON e.id = rows.id)",
        );
        let mut rows = Rows::new();
        for id in batch.iter().flat_map(|published| &published.0) {
            rows.push([key(id).into()]);
        }
        if !rows.is_empty() {
            tx.conn.execute_rows(&DELETE, [], rows).await?;
        }
        Ok(vec![(); batch.len()])
    }
}
