//! The tables of an outbox, and what writes to them.

use std::time::Duration;

use octollm_core::event::Event;

use super::{PARTITIONS, topic};
use crate::{
    Encoding,
    sql::{
        error::SqlError,
        migration::{Part, Version},
        statement::{Rows, Sql, Value},
        writer::{Operation, Tx},
    },
};

pub(super) static TABLES: Part = Part { name: "outbox", versions: &[FIRST] };

const FIRST: Version = Version {
    sqlite: "
        CREATE TABLE octollm_outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            part INTEGER NOT NULL,
            size INTEGER NOT NULL,
            event BLOB NOT NULL,
            refused TEXT
        );
        CREATE INDEX octollm_outbox_waiting ON octollm_outbox (part, id) WHERE refused IS NULL;
        CREATE TABLE octollm_outbox_part (part INTEGER PRIMARY KEY, holder TEXT NOT NULL, until INTEGER NOT NULL);
        WITH RECURSIVE numbers (part) AS (SELECT 0 UNION ALL SELECT part + 1 FROM numbers WHERE part < 15)
        INSERT INTO octollm_outbox_part (part, holder, until) SELECT part, '', 0 FROM numbers;
    ",
    postgres: "
        CREATE TABLE octollm_outbox (
            id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            part BIGINT NOT NULL,
            size BIGINT NOT NULL,
            event BYTEA NOT NULL,
            refused TEXT
        );
        CREATE INDEX octollm_outbox_waiting ON octollm_outbox (part, id) WHERE refused IS NULL;
        CREATE TABLE octollm_outbox_part (part BIGINT PRIMARY KEY, holder TEXT NOT NULL, until BIGINT NOT NULL);
        INSERT INTO octollm_outbox_part (part, holder, until) SELECT part, '', 0 FROM generate_series(0, 15) AS part;
    ",
};

pub(super) static INSERT: Sql =
    Sql::new("INSERT INTO octollm_outbox (part, size, event) VALUES ($1, $2, $3)");

/// The row of an event, for [`INSERT`].
pub(in crate::sql) fn row(event: &Event, size: usize) -> Result<[Value; 3], SqlError> {
    let text = Encoding::Native.encode(event).map_err(SqlError::unreadable)?;
    Ok([part(event).into(), size.into(), text.to_vec().into()])
}

/// The partition of an event: that of its key, or any one.
fn part(event: &Event) -> u64 {
    hash(event.partition_key().unwrap_or(event.id())) % PARTITIONS
}

/// FNV-1a: the same in all releases, because several of them write to one table.
pub(in crate::sql) fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Leases a partition that has events, the one that was leased longest ago.
pub(super) struct Lease {
    pub(super) holder: String,
    pub(super) time: Duration,
}

impl Operation for Lease {
    type Output = Option<i64>;
    const ORDER: u8 = 100;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Option<i64>>, sqlx::Error> {
        static LEASE: Sql = Sql::new(
            "UPDATE octollm_outbox_part SET holder = $1, until = {now} + $2 WHERE part = ( \
             SELECT p.part FROM octollm_outbox_part AS p WHERE p.until <= {now} AND EXISTS ( \
             SELECT 1 FROM octollm_outbox AS o WHERE o.part = p.part AND o.refused IS NULL) \
             ORDER BY p.until, p.part LIMIT 1 {pg:FOR UPDATE SKIP LOCKED}) RETURNING part",
        );
        let mut leased = Vec::with_capacity(batch.len());
        for lease in batch {
            let rows = tx.conn.fetch(&LEASE, [lease.holder.as_str().into(), micros(lease.time)]).await?;
            leased.push(rows.first().map(|row| row.int(0)).transpose()?);
        }
        Ok(leased)
    }
}

/// Renews the lease of a partition, or ends it where the time is zero. Returns whether it was not lost.
pub(super) struct Renew {
    pub(super) part: i64,
    pub(super) holder: String,
    pub(super) time: Duration,
}

impl Operation for Renew {
    type Output = bool;
    const ORDER: u8 = 101;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<bool>, sqlx::Error> {
        static RENEW: Sql = Sql::new(
            "UPDATE octollm_outbox_part SET until = {now} + $3 WHERE part = $1 AND holder = $2 AND until > {now}",
        );
        let mut renewed = Vec::with_capacity(batch.len());
        for Self { part, holder, time } in batch {
            let parameters = [(*part).into(), holder.as_str().into(), micros(*time)];
            renewed.push(tx.conn.execute(&RENEW, parameters).await? > 0);
            if time.is_zero() {
                tx.changed(topic());
            }
        }
        Ok(renewed)
    }
}

fn micros(time: Duration) -> Value {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(i64::MAX as u64 / 4).into()
}

/// Removes events that are published, and sets aside those that the bus refused.
#[derive(Default)]
pub(super) struct Settle {
    pub(super) published: Vec<i64>,
    pub(super) refused: Vec<(i64, String)>,
}

impl Operation for Settle {
    type Output = ();
    const ORDER: u8 = 102;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        static DELETE: Sql = Sql::new(
            "DELETE FROM octollm_outbox WHERE id IN (SELECT rows.id FROM {rows:id int} ORDER BY rows.id)",
        );
        static REFUSE: Sql = Sql::new(
            "UPDATE octollm_outbox SET refused = rows.reason FROM {rows:id int, reason text} WHERE octollm_outbox.id = rows.id",
        );
        let (mut published, mut refused) = (Rows::new(), Rows::new());
        for settled in batch {
            settled.published.iter().for_each(|id| published.push([(*id).into()]));
            settled.refused.iter().for_each(|(id, reason)| {
                refused.push([(*id).into(), reason.replace('\0', "\u{fffd}").into()])
            });
        }
        if !published.is_empty() {
            tx.conn.execute_rows(&DELETE, [], published).await?;
        }
        if !refused.is_empty() {
            tx.conn.execute_rows(&REFUSE, [], refused).await?;
        }
        Ok(vec![(); batch.len()])
    }
}

/// Makes a dead letter an event that waits.
pub(super) struct Retry(pub(super) i64);

impl Operation for Retry {
    type Output = bool;
    const ORDER: u8 = 103;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<bool>, sqlx::Error> {
        static RETRY: Sql =
            Sql::new("UPDATE octollm_outbox SET refused = NULL WHERE id = $1 AND refused IS NOT NULL");
        let mut found = Vec::with_capacity(batch.len());
        for Self(id) in batch {
            found.push(tx.conn.execute(&RETRY, [(*id).into()]).await? > 0);
        }
        tx.changed(topic());
        Ok(found)
    }
}
