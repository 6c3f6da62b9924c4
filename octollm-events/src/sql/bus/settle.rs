//! Settling deliveries, and extending leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use octollm_core::bus::{BusError, ConsumeOptions, FailedAttempt, Nack};

use super::{
    group::wake,
    state::{Dead, Delivered, Limit, State, bury, count_dead, micros, read_history, remove},
};
use crate::sql::{
    statement::{Rows, Sql, Value},
    writer::{Operation, Tx},
};

/// Identifies a delivery. The token changes with each.
#[derive(Debug, Clone)]
pub(super) struct Receipt {
    pub(super) group: i64,
    pub(super) seq: i64,
    pub(super) token: i64,
    /// That of the database in which it was delivered.
    pub(super) epoch: i64,
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
type Held = BTreeMap<(i64, i64, i64), Delivered>;

async fn held(receipts: Rows, tx: &mut Tx<'_>) -> Result<Held, sqlx::Error> {
    static READ: Sql = Sql::new(
        "SELECT d.group_id, d.seq, d.key, d.size, d.attempts, d.since, d.member, d.history, d.token FROM {rows:group_id int, seq int, token int} \
         {lite:CROSS} JOIN octollm_bus_delivery AS d ON d.group_id = rows.group_id AND d.seq = rows.seq AND d.token = rows.token",
    );
    let mut held = Held::new();
    if !receipts.is_empty() {
        for row in tx.conn.fetch_rows(&READ, [], receipts).await? {
            let delivered = Delivered::read(&row)?;
            held.insert((delivered.stored.group, delivered.stored.seq, row.int(8)?), delivered);
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
             history = rows.history, due = CASE WHEN rows.delay = 0 THEN 0 ELSE {now} + rows.delay END \
             FROM {rows:group_id int, seq int, attempts int, delay int, history text} \
             WHERE octollm_bus_delivery.group_id = rows.group_id AND octollm_bus_delivery.seq = rows.seq",
        );
        let epoch = State::lock(tx).await?.epoch;
        let mut receipts = Rows::new();
        for (receipt, _) in batch.iter().flat_map(|settle| &settle.receipts) {
            if receipt.epoch == epoch {
                receipts.push([receipt.group.into(), receipt.seq.into(), receipt.token.into()]);
            }
        }
        let mut held = held(receipts, tx).await?;
        let (mut removed, mut dead, mut again) = (Vec::new(), Vec::new(), Rows::new());
        let mut woken = BTreeSet::new();
        let mut results = Vec::with_capacity(batch.len());
        for settle in batch {
            let mut settled = Vec::with_capacity(settle.receipts.len());
            for (receipt, outcome) in &settle.receipts {
                if receipt.epoch != epoch {
                    settled.push(Err(receipt.lost()));
                    continue;
                }
                let Some(delivered) = held.remove(&receipt.place()) else {
                    settled.push(settle_dead(receipt, outcome, tx).await?);
                    continue;
                };
                let stored = delivered.stored;
                let attempts = u32::try_from(stored.attempts).unwrap_or(u32::MAX);
                let mut retry = |attempts: i64, delay: Duration, history: Value| {
                    woken.insert(stored.group);
                    let (group, seq) = (stored.group.into(), stored.seq.into());
                    again.push([group, seq, attempts.into(), micros(delay), history]);
                };
                match outcome {
                    Err(Nack::DeadLetter { reason }) => dead.push(Dead::new(&delivered, reason)),
                    Err(Nack::Retry { after, reason }) => {
                        let reason = reason.as_deref().unwrap_or(FailedAttempt::REFUSED);
                        if attempts >= receipt.options.max_attempts {
                            dead.push(Dead::after_all_attempts(&delivered, reason));
                        } else {
                            let delay = after.unwrap_or_else(|| receipt.options.backoff(attempts));
                            retry(stored.attempts, delay, delivered.failed(reason).into());
                        }
                    }
                    Err(Nack::Release) => retry(stored.attempts - 1, Duration::ZERO, delivered.released()),
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
    static READ: Sql = Sql::new(
        "SELECT size, reason, history FROM octollm_bus_dead WHERE group_id = $1 AND seq = $2 AND token = $3",
    );
    static DELETE: Sql = Sql::new("DELETE FROM octollm_bus_dead WHERE group_id = $1 AND seq = $2");
    static CHANGE: Sql = Sql::new(
        "UPDATE octollm_bus_dead SET size = size + $3, reason = $4, history = $5 WHERE group_id = $1 AND seq = $2",
    );
    let (group, seq, token) = receipt.place();
    let rows = tx.conn.fetch(&READ, [group.into(), seq.into(), token.into()]).await?;
    let Some(row) = rows.first() else { return Ok(Err(receipt.lost())) };
    let before = row.text(1)?;
    let (attempt, reason) = match outcome {
        Ok(()) | Err(Nack::Drop) => {
            tx.conn.execute(&DELETE, [group.into(), seq.into()]).await?;
            count_dead(group, -1, -row.int(0)?, tx).await?;
            return Ok(Ok(()));
        }
        Err(Nack::DeadLetter { reason }) => (reason.as_str(), reason.replace('\0', "\u{fffd}")),
        // No attempts are left.
        Err(Nack::Retry { reason, .. }) => {
            (reason.as_deref().unwrap_or(FailedAttempt::REFUSED), before.clone())
        }
        Err(_) => return Ok(Err(receipt.lost())),
    };
    let mut history = read_history(row, 2)?;
    if let Some(last) = history.last_mut() {
        *last = FailedAttempt::new(last.at, last.consumer.as_str(), attempt);
    }
    let history = serde_json::to_string(&history).unwrap_or_default();
    let length = |reason: &str, history: &str| i64::try_from(reason.len() + history.len()).unwrap_or(0);
    let more = length(&reason, &history) - length(&before, &row.text_or_null(2)?.unwrap_or_default());
    tx.conn.execute(&CHANGE, [group.into(), seq.into(), more.into(), reason.into(), history.into()]).await?;
    count_dead(group, 0, more, tx).await?;
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
        let epoch = State::lock(tx).await?.epoch;
        let mut woken = BTreeSet::new();
        let mut results = Vec::with_capacity(batch.len());
        for Self(extensions) in batch {
            let mut extended = Vec::with_capacity(extensions.len());
            for (receipt, time) in extensions {
                if receipt.epoch != epoch {
                    extended.push(Err(receipt.lost()));
                    continue;
                }
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
