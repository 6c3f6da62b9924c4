//! How finished tasks are deleted.

use std::sync::{Arc, Weak};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    Shared,
    flush::{Counts, counts},
    schema::STRIPES,
    write::microseconds,
};
use crate::sql::{
    SqlError,
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

/// Most tasks that are deleted in one transaction.
const MOST: usize = 256;

/// Deletes what is too old or too much at intervals, until the store is dropped.
pub(super) async fn run(store: Weak<Shared>) {
    let Some(every) = store.upgrade().map(|store| store.limits.cleaning) else { return };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = clean(&store).await {
            if matches!(error, SqlError::Closed) {
                return;
            }
            tracing::warn!(error = &error as &dyn std::error::Error, "finished tasks not deleted");
        }
    }
}

pub(super) async fn clean(store: &Arc<Shared>) -> Result<(), SqlError> {
    while store.database.write(Clean(store.clone())).await? {}
    Ok(())
}

/// Deletes some finished tasks. Returns whether there may be more.
pub(super) struct Clean(Arc<Shared>);

impl Operation for Clean {
    type Output = bool;
    // Its rows are those that no other transaction has locked: it waits for none.
    const ORDER: u8 = 50;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<bool>, sqlx::Error> {
        let mut more = Vec::with_capacity(batch.len());
        for Self(store) in batch {
            more.push(clean_some(store, tx).await?);
        }
        Ok(more)
    }
}

async fn clean_some(store: &Shared, tx: &mut Tx<'_>) -> Result<bool, sqlx::Error> {
    static TURN: Sql = Sql::new("SELECT pg_try_advisory_xact_lock(7164102844)");
    static OLDEST: Sql = Sql::new(
        "SELECT no FROM octollm_tasks WHERE finished_at IS NOT NULL AND finished_at <= {now} - $1 \
         ORDER BY finished_at LIMIT $2 {pg:FOR UPDATE SKIP LOCKED}",
    );
    // One process at a time: two would delete the same surplus, each by other tasks.
    if tx.conn.is_postgres() {
        let turn = tx.conn.fetch(&TURN, []).await?;
        if !turn.first().map(|row| row.flag(0)).transpose()?.unwrap_or(false) {
            return Ok(false);
        }
    }
    let (Counts { finished, .. }, ..) = counts(&mut tx.conn).await?;
    let surplus = usize::try_from(finished).unwrap_or(0).saturating_sub(store.limits.finished);
    let age = microseconds(store.limits.finished_for);
    let mut rows = tx.conn.fetch(&OLDEST, [age.into(), MOST.into()]).await?;
    if rows.is_empty() && surplus > 0 {
        rows = tx.conn.fetch(&OLDEST, [0_i64.into(), surplus.min(MOST).into()]).await?;
    }
    if rows.is_empty() {
        return Ok(false);
    }
    let count = rows.len();
    for sql in [&DELETE_UPDATES, &DELETE_JOURNAL, &DELETE_RECORDS, &DELETE_TASKS] {
        let mut tasks = Rows::new();
        for row in &rows {
            tasks.push([row.int(0)?.into()]);
        }
        tx.conn.execute_rows(sql, [], tasks).await?;
    }
    let stripe = if tx.conn.is_postgres() { store.stripe % STRIPES } else { 0 };
    tx.conn.execute(&COUNT, [stripe.into(), count.into()]).await?;
    Ok(count == MOST || count == surplus)
}

static DELETE_UPDATES: Sql =
    Sql::new("DELETE FROM octollm_updates WHERE task IN (SELECT rows.no FROM {rows:no int})");
static DELETE_JOURNAL: Sql =
    Sql::new("DELETE FROM octollm_journal WHERE task IN (SELECT rows.no FROM {rows:no int})");
static DELETE_RECORDS: Sql =
    Sql::new("DELETE FROM octollm_records WHERE task IN (SELECT rows.no FROM {rows:no int})");
static DELETE_TASKS: Sql =
    Sql::new("DELETE FROM octollm_tasks WHERE no IN (SELECT rows.no FROM {rows:no int})");
static COUNT: Sql = Sql::new("UPDATE octollm_counts SET finished = finished - $2 WHERE stripe = $1");
