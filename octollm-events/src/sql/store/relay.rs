//! The events that wait to be published.

use octollm_core::event::Event;
use sqlx::Connection;

use super::stored::{event, key};
use crate::sql::{
    SqlDatabase, SqlError,
    connection::Conn,
    database::Reading,
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

/// A relay that asks for no events for so long has lost its turn, in microseconds.
const TURN: i64 = 10_000_000;

/// Takes the turn of a relay, and returns the first events. There are none where another relay has its turn.
///
/// The turn ends when all events that were there at its last call are published, or by the time.
pub(super) async fn pending(
    conn: &mut Conn<'_>,
    relay: &str,
    limit: usize,
) -> Result<Vec<Event>, sqlx::Error> {
    static OTHER: Sql = Sql::new(
        "SELECT r.name, r.until > {now} AND EXISTS (SELECT 1 FROM octollm_events AS e WHERE e.seq <= r.last) \
         FROM octollm_relay AS r WHERE r.one = 1 {pg:FOR UPDATE}",
    );
    static FIRST: Sql = Sql::new("SELECT format, body FROM octollm_events ORDER BY seq LIMIT $1");
    static TAKE: Sql = Sql::new(
        "INSERT INTO octollm_relay (one, name, until, last) SELECT 1, $1, {now} + $2, max(seq) FROM octollm_events WHERE true \
         ON CONFLICT (one) DO UPDATE SET name = excluded.name, until = excluded.until, last = excluded.last",
    );
    let relay = key(relay);
    let rows = conn.fetch(&OTHER, []).await?;
    if let Some(row) = rows.first()
        && row.flag(1)?
        && row.text(0)? != relay
    {
        return Ok(Vec::new());
    }
    let rows = conn.fetch(&FIRST, [limit.into()]).await?;
    let events = rows.iter().map(|row| event(row.int(0)?, &row.text(1)?)).collect::<Result<_, _>>()?;
    if !rows.is_empty() {
        conn.execute(&TAKE, [relay.as_str().into(), TURN.into()]).await?;
    }
    Ok(events)
}

/// As [`pending`]. On Postgres outside of the transactions of tasks, which would wait for the relays of other processes. The turn is
/// in a table that is not logged, so that this transaction waits for no disk.
pub(super) async fn take(database: &SqlDatabase, relay: &str, limit: usize) -> Result<Vec<Event>, SqlError> {
    if !database.is_postgres() {
        return database.write(Pending { relay: relay.to_owned(), limit }).await;
    }
    database.read(&Pending { relay: relay.to_owned(), limit }).await
}

impl Reading for Pending {
    type Output = Vec<Event>;

    async fn run(&self, conn: &mut Conn<'_>) -> Result<Vec<Event>, sqlx::Error> {
        let Conn::Postgres(connection) = conn else { return pending(conn, &self.relay, self.limit).await };
        // It is rolled back when the future is dropped.
        let mut tx = connection.begin().await?;
        let events = pending(&mut Conn::Postgres(&mut tx), &self.relay, self.limit).await?;
        tx.commit().await?;
        Ok(events)
    }
}

/// A relay that asks for its turn.
struct Pending {
    relay: String,
    limit: usize,
}

impl Operation for Pending {
    type Output = Vec<Event>;
    const ORDER: u8 = 30;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Vec<Event>>, sqlx::Error> {
        let mut taken = Vec::with_capacity(batch.len());
        for Self { relay, limit } in batch {
            taken.push(pending(&mut tx.conn, relay, *limit).await?);
        }
        Ok(taken)
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
