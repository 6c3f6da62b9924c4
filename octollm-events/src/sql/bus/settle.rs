//! Settling deliveries, and extending leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use octollm_core::bus::{BusError, ConsumeOptions, Nack};

use super::{
    group::wake,
    state::{Limit, NO_ATTEMPTS, State, Stored, bury, count_dead, micros, remove},
};
use crate::sql::{
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

/// Identifies a delivery. The token changes with each.
#[derive(Debug, Clone)]
pub(super) struct Receipt {
    pub(super) group: i64,
    pub(super) seq: i64,
    pub(super) token: i64,
    pub(super) event_id: Arc<str>,
    pub(super) options: ConsumeOptions,
}

impl Receipt {
    fn lost(&self) -> BusError {
        BusError::LeaseLost { event_id: self.event_id.to_string() }
    }

    fn place(&self) -> (i64, i64, i64) {
        (self.group, self.seq, self.token)
    }
}

pub(super) struct Settle {
    pub(super) receipts: Vec<(Receipt, Result<(), Nack>)>,
    pub(super) dead_letters: Limit,
}

/// Deliveries by their receipts, each until it is settled.
type Held = BTreeMap<(i64, i64, i64), Stored>;

async fn held(receipts: Rows, tx: &mut Tx<'_>) -> Result<Held, sqlx::Error> {
    static READ: Sql = Sql::new(
        "SELECT d.group_id, d.seq, d.key, d.size, d.attempts, d.token FROM {rows:group_id int, seq int, token int} \
         {lite:CROSS} JOIN octollm_bus_delivery AS d ON d.group_id = rows.group_id AND d.seq = rows.seq AND d.token = rows.token",
    );
    let mut held = Held::new();
    if !receipts.is_empty() {
        for row in tx.conn.fetch_rows(&READ, [], receipts).await? {
            let stored = Stored::read(&row)?;
            held.insert((stored.group, stored.seq, row.int(5)?), stored);
        }
    }
    Ok(held)
}

impl Operation for Settle {
    type Output = Vec<Result<(), BusError>>;
    const ORDER: u8 = 118;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        static AGAIN: Sql = Sql::new(
            "UPDATE octollm_bus_delivery SET leased = 0, token = octollm_bus_delivery.token + 1, attempts = rows.attempts, \
             due = CASE WHEN rows.delay = 0 THEN 0 ELSE {now} + rows.delay END \
             FROM {rows:group_id int, seq int, attempts int, delay int} \
             WHERE octollm_bus_delivery.group_id = rows.group_id AND octollm_bus_delivery.seq = rows.seq",
        );
        State::lock(tx).await?;
        let mut receipts = Rows::new();
        for (receipt, _) in batch.iter().flat_map(|settle| &settle.receipts) {
            receipts.push([receipt.group.into(), receipt.seq.into(), receipt.token.into()]);
        }
        let mut held = held(receipts, tx).await?;
        let (mut removed, mut dead, mut again) = (Vec::new(), Vec::new(), Rows::new());
        let mut woken = BTreeSet::new();
        let mut results = Vec::with_capacity(batch.len());
        for settle in batch {
            let mut settled = Vec::with_capacity(settle.receipts.len());
            for (receipt, outcome) in &settle.receipts {
                let Some(stored) = held.remove(&receipt.place()) else {
                    settled.push(settle_dead(receipt, outcome, tx).await?);
                    continue;
                };
                let attempts = u32::try_from(stored.attempts).unwrap_or(u32::MAX);
                let mut retry = |attempts: i64, delay: Duration| {
                    woken.insert(stored.group);
                    again.push([stored.group.into(), stored.seq.into(), attempts.into(), micros(delay)]);
                };
                match outcome {
                    Err(Nack::DeadLetter { reason }) => dead.push((stored, reason.clone())),
                    Err(Nack::Retry { .. }) if attempts >= receipt.options.max_attempts => {
                        dead.push((stored, NO_ATTEMPTS.to_owned()));
                    }
                    Err(Nack::Retry { after }) => {
                        retry(stored.attempts, after.unwrap_or_else(|| receipt.options.backoff(attempts)));
                    }
                    Err(Nack::Release) => retry(stored.attempts - 1, Duration::ZERO),
                    // `Ok`, `Drop`, and what a later version may have.
                    _ => removed.push(stored),
                }
                settled.push(Ok(()));
            }
            results.push(settled);
        }
        let dead_letters = batch.first().map_or(Limit { events: 0, bytes: 0 }, |settle| settle.dead_letters);
        remove(&removed, tx).await?;
        bury(&dead, dead_letters, tx).await?;
        if !again.is_empty() {
            tx.conn.execute_rows(&AGAIN, [], again).await?;
        }
        wake(&woken, tx);
        Ok(results)
    }
}

/// Settles an event that became a dead letter because its last lease expired.
async fn settle_dead(
    receipt: &Receipt,
    outcome: &Result<(), Nack>,
    tx: &mut Tx<'_>,
) -> Result<Result<(), BusError>, sqlx::Error> {
    static READ: Sql =
        Sql::new("SELECT size FROM octollm_bus_dead WHERE group_id = $1 AND seq = $2 AND token = $3");
    static DELETE: Sql = Sql::new("DELETE FROM octollm_bus_dead WHERE group_id = $1 AND seq = $2");
    static REASON: Sql = Sql::new("UPDATE octollm_bus_dead SET reason = $3 WHERE group_id = $1 AND seq = $2");
    let (group, seq, token) = receipt.place();
    let rows = tx.conn.fetch(&READ, [group.into(), seq.into(), token.into()]).await?;
    let Some(row) = rows.first() else { return Ok(Err(receipt.lost())) };
    match outcome {
        Ok(()) | Err(Nack::Drop) => {
            tx.conn.execute(&DELETE, [group.into(), seq.into()]).await?;
            count_dead(group, -1, -row.int(0)?, tx).await?;
        }
        Err(Nack::DeadLetter { reason }) => {
            let reason = reason.replace('\0', "\u{fffd}");
            tx.conn.execute(&REASON, [group.into(), seq.into(), reason.into()]).await?;
        }
        // No attempts are left.
        Err(Nack::Retry { .. }) => {}
        Err(_) => return Ok(Err(receipt.lost())),
    }
    Ok(Ok(()))
}

/// Extends leases. One that has expired is renewed if its member has room.
pub(super) struct Extend(pub(super) Vec<(Receipt, Duration)>);

impl Operation for Extend {
    type Output = Vec<Result<(), BusError>>;
    const ORDER: u8 = 117;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        static EXTEND: Sql = Sql::new(
            "UPDATE octollm_bus_delivery SET leased = 1, due = {now} + $4 WHERE group_id = $1 AND seq = $2 AND token = $3 \
             AND (leased = 1 AND due > {now} OR $5 > (SELECT count(*) FROM octollm_bus_delivery AS held \
             WHERE held.group_id = $1 AND held.member = octollm_bus_delivery.member AND held.leased = 1 AND held.due > {now}))",
        );
        State::lock(tx).await?;
        let mut woken = BTreeSet::new();
        let mut results = Vec::with_capacity(batch.len());
        for Self(extensions) in batch {
            let mut extended = Vec::with_capacity(extensions.len());
            for (receipt, time) in extensions {
                let (group, seq, token) = receipt.place();
                let most = receipt.options.max_in_flight.into();
                let parameters = [group.into(), seq.into(), token.into(), micros(*time), most];
                let found = tx.conn.execute(&EXTEND, parameters).await? > 0;
                woken.insert(group);
                extended.push(if found { Ok(()) } else { Err(receipt.lost()) });
            }
            results.push(extended);
        }
        // A lease may be shorter now.
        wake(&woken, tx);
        Ok(results)
    }
}
