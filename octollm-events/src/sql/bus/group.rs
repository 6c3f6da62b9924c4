//! Groups: who joins, what is due, and what leaves the dead letters.

use std::{collections::BTreeSet, time::Duration};

use octollm_core::{
    bus::{BusError, FailedAttempt, Gap},
    event::Pattern,
};

use super::{
    publish::{Deliveries, key_of},
    state::{Dead, Delivered, Limit, State, Stored, bury, count_dead, group_topic, micros, remove},
};
use crate::{
    Encoding,
    sql::{
        statement::{Rows, Sql},
        writer::{Operation, Tx},
    },
};

/// How long a member counts without a sign of life.
const MEMBER: Duration = Duration::from_secs(60);

/// Joins a group, which is created if there is none.
#[derive(Clone)]
pub(super) struct Join {
    pub(super) name: String,
    pub(super) pattern: Pattern,
    pub(super) from_start: bool,
}

/// The numbers of a group, of a member of it, and of the database that they are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) group: i64,
    pub(super) member: i64,
    pub(super) epoch: i64,
}

impl Operation for Join {
    type Output = Result<(Place, Option<Gap>), BusError>;
    const ORDER: u8 = 126;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        static FIND: Sql = Sql::new("SELECT id, pattern FROM octollm_bus_group WHERE name = $1");
        static INSERT: Sql = Sql::new(
            "INSERT INTO octollm_bus_group (id, name, pattern, events, bytes, dead, dead_bytes, expired, discarded) \
             VALUES ($1, $2, $3, 0, 0, 0, 0, 0, 0)",
        );
        static MEMBERS: Sql =
            Sql::new("INSERT INTO octollm_bus_member (id, group_id, until) VALUES ($1, $2, {now} + $3)");
        let mut state = State::lock(tx).await?;
        let mut results = Vec::with_capacity(batch.len());
        for join in batch {
            let found = tx.conn.fetch(&FIND, [join.name.as_str().into()]).await?;
            let (group, gap) = match found.first() {
                Some(row) if row.text(1)? != join.pattern.to_string() => {
                    let (group, pattern) = (join.name.clone(), row.text(1)?);
                    results.push(Err(BusError::OtherPattern { group, pattern }));
                    continue;
                }
                Some(row) => (row.int(0)?, None),
                None => {
                    let group = state.number().cast_signed();
                    let pattern = join.pattern.to_string();
                    tx.conn
                        .execute(&INSERT, [group.into(), join.name.as_str().into(), pattern.into()])
                        .await?;
                    if join.from_start {
                        read_history(group, &join.pattern, tx).await?;
                    }
                    let trimmed = join.from_start && state.trimmed > 0;
                    (group, trimmed.then(|| Gap::Trimmed { event_ids: Vec::new() }))
                }
            };
            let member = state.number().cast_signed();
            tx.conn.execute(&MEMBERS, [member.into(), group.into(), micros(MEMBER)]).await?;
            results.push(Ok((Place { group, member, epoch: state.epoch }, gap)));
        }
        state.store(tx).await?;
        Ok(results)
    }
}

/// Delivers the log to a new group.
async fn read_history(group: i64, pattern: &Pattern, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static READ: Sql = Sql::new(
        "SELECT seq, channel, key, size, expires FROM octollm_bus_log WHERE seq > $1 ORDER BY seq LIMIT 4096",
    );
    static COUNT: Sql = Sql::new("UPDATE octollm_bus_group SET events = $2, bytes = $3 WHERE id = $1");
    let (mut after, mut events, mut bytes) = (0, 0_i64, 0_i64);
    loop {
        let rows = tx.conn.fetch(&READ, [after.into()]).await?;
        let Some(last) = rows.last() else { break };
        after = last.int(0)?;
        let mut deliveries = Deliveries::default();
        for row in &rows {
            let matches = row.text(1)?.parse().is_ok_and(|channel| pattern.matches(&channel));
            if matches {
                (events, bytes) = (events + 1, bytes + row.int(3)?);
                deliveries.push(group, row.int(0)?, (row.int(2)?, row.int(3)?, row.int(4)?));
            }
        }
        deliveries.insert(tx).await?;
    }
    tx.conn.execute(&COUNT, [group.into(), events.into(), bytes.into()]).await.map(drop)
}

/// Removes members, or extends their lives.
pub(super) struct Member {
    pub(super) member: i64,
    pub(super) group: i64,
    pub(super) lives: bool,
}

impl Operation for Member {
    type Output = ();
    const ORDER: u8 = 129;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        static DELETE: Sql = Sql::new("DELETE FROM octollm_bus_member WHERE id = $1 OR until < {now}");
        static EXTEND: Sql = Sql::new(
            "INSERT INTO octollm_bus_member (id, group_id, until) SELECT $1, id, {now} + $3 FROM octollm_bus_group WHERE id = $2 \
             ON CONFLICT (id) DO UPDATE SET until = excluded.until",
        );
        State::lock(tx).await?;
        for Self { member, group, lives } in batch {
            if *lives {
                tx.conn.execute(&EXTEND, [(*member).into(), (*group).into(), micros(MEMBER)]).await?;
            } else {
                tx.conn.execute(&DELETE, [(*member).into()]).await?;
            }
        }
        Ok(vec![(); batch.len()])
    }
}

/// Removes a group. Returns whether there was one.
pub(super) struct Remove(pub(super) String);

impl Operation for Remove {
    type Output = bool;
    const ORDER: u8 = 127;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<bool>, sqlx::Error> {
        static FIND: Sql = Sql::new("SELECT id FROM octollm_bus_group WHERE name = $1");
        static DELETE: [Sql; 4] = [
            Sql::new("DELETE FROM octollm_bus_delivery WHERE group_id = $1"),
            Sql::new("DELETE FROM octollm_bus_dead WHERE group_id = $1"),
            Sql::new("DELETE FROM octollm_bus_member WHERE group_id = $1"),
            Sql::new("DELETE FROM octollm_bus_group WHERE id = $1"),
        ];
        State::lock(tx).await?;
        let mut removed = Vec::with_capacity(batch.len());
        for Self(name) in batch {
            let found = tx.conn.fetch(&FIND, [name.as_str().into()]).await?;
            let group = found.first().map(|row| row.int(0)).transpose()?;
            if let Some(group) = group {
                for delete in &DELETE {
                    tx.conn.execute(delete, [group.into()]).await?;
                }
                tx.changed(group_topic(group));
            }
            removed.push(group.is_some());
        }
        Ok(removed)
    }
}

/// Ends the leases and the delays of a group that are over, and removes expired events.
pub(super) async fn advance(group: i64, dead_letters: Limit, tx: &mut Tx<'_>) -> Result<(), sqlx::Error> {
    static LOST: Sql = Sql::new(
        "SELECT group_id, seq, key, size, attempts, since, member, history, max_attempts FROM octollm_bus_delivery \
         WHERE group_id = $1 AND leased = 1 AND due > 0 AND due <= {now}",
    );
    static AGAIN: Sql = Sql::new(
        "UPDATE octollm_bus_delivery SET due = 0, leased = 0, history = rows.history FROM {rows:seq int, history text} \
         WHERE octollm_bus_delivery.group_id = $1 AND octollm_bus_delivery.seq = rows.seq",
    );
    static FREE: Sql = Sql::new(
        "UPDATE octollm_bus_delivery SET due = 0 WHERE group_id = $1 AND due > 0 AND due <= {now} AND leased = 0",
    );
    static EXPIRED: Sql = Sql::new(
        "SELECT group_id, seq, key, size, attempts FROM octollm_bus_delivery \
         WHERE group_id = $1 AND expires > 0 AND expires <= {now} AND leased = 0",
    );
    static COUNT: Sql = Sql::new("UPDATE octollm_bus_group SET expired = expired + $2 WHERE id = $1");
    let (mut dead, mut again) = (Vec::new(), Rows::new());
    for row in tx.conn.fetch(&LOST, [group.into()]).await? {
        let delivered = Delivered::read(&row)?;
        if delivered.stored.attempts >= row.int(8)? {
            dead.push(Dead::after_all_attempts(&delivered, FailedAttempt::LEASE_EXPIRED));
        } else {
            let history = delivered.failed(FailedAttempt::LEASE_EXPIRED);
            again.push([delivered.stored.seq.into(), history.into()]);
        }
    }
    bury(&dead, dead_letters, tx).await?;
    if !again.is_empty() {
        tx.conn.execute_rows(&AGAIN, [group.into()], again).await?;
    }
    tx.conn.execute(&FREE, [group.into()]).await?;
    let expired = tx.conn.fetch(&EXPIRED, [group.into()]).await?;
    if !expired.is_empty() {
        let expired = expired.iter().map(Stored::read).collect::<Result<Vec<_>, _>>()?;
        remove(&expired, tx).await?;
        tx.conn.execute(&COUNT, [group.into(), expired.len().into()]).await?;
    }
    Ok(())
}

/// Brings a group up to the present time.
pub(super) struct Advance {
    pub(super) group: i64,
    pub(super) dead_letters: Limit,
}

impl Operation for Advance {
    type Output = ();
    const ORDER: u8 = 125;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<()>, sqlx::Error> {
        State::lock(tx).await?;
        for Self { group, dead_letters } in batch {
            advance(*group, *dead_letters, tx).await?;
        }
        Ok(vec![(); batch.len()])
    }
}

/// Delivers a dead letter again.
pub(super) struct Replay {
    pub(super) group: i64,
    pub(super) entry: String,
    pub(super) backlog: Limit,
}

impl Operation for Replay {
    type Output = Result<(), BusError>;
    const ORDER: u8 = 124;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Self::Output>, sqlx::Error> {
        let mut state = State::lock(tx).await?;
        let mut results = Vec::with_capacity(batch.len());
        for replay in batch {
            results.push(replay_one(replay, &mut state, tx).await?);
        }
        state.store(tx).await?;
        Ok(results)
    }
}

async fn replay_one(
    Replay { group, entry, backlog }: &Replay,
    state: &mut State,
    tx: &mut Tx<'_>,
) -> Result<Result<(), BusError>, sqlx::Error> {
    static READ: Sql = Sql::new(
        "SELECT d.size, d.event, g.events, g.bytes FROM octollm_bus_dead AS d JOIN octollm_bus_group AS g ON g.id = d.group_id \
         WHERE d.group_id = $1 AND d.seq = $2",
    );
    static DELETE: Sql = Sql::new("DELETE FROM octollm_bus_dead WHERE group_id = $1 AND seq = $2");
    static EVENT: Sql =
        Sql::new("UPDATE octollm_bus_delivery SET event = $3 WHERE group_id = $1 AND seq = $2");
    static COUNT: Sql =
        Sql::new("UPDATE octollm_bus_group SET events = events + 1, bytes = bytes + $2 WHERE id = $1");
    let unknown = || Ok(Err(BusError::UnknownDeadLetter { entry: entry.clone() }));
    let Ok(seq) = entry.parse::<i64>() else { return unknown() };
    let rows = tx.conn.fetch(&READ, [(*group).into(), seq.into()]).await?;
    let Some(row) = rows.first() else { return unknown() };
    let bytes = row.bytes(1)?;
    let Ok(event) = Encoding::Native.decode(&bytes) else { return unknown() };
    // It does not expire: somebody wants it delivered.
    let event = event.without_expiry();
    let Ok(bytes) = Encoding::Native.encode(&event) else { return unknown() };
    let size = event.size();
    if let Err(full) = backlog.check(row.count(2)? + 1, row.count(3)? + size as u64) {
        return Ok(Err(full));
    }
    tx.conn.execute(&DELETE, [(*group).into(), seq.into()]).await?;
    count_dead(*group, -1, -row.int(0)?, tx).await?;
    let number = state.number().cast_signed();
    let mut deliveries = Deliveries::default();
    deliveries.push(*group, number, (key_of(&event), i64::try_from(size).unwrap_or(i64::MAX), 0));
    deliveries.insert(tx).await?;
    tx.conn.execute(&EVENT, [(*group).into(), number.into(), bytes.to_vec().into()]).await?;
    tx.conn.execute(&COUNT, [(*group).into(), size.into()]).await?;
    tx.changed(group_topic(*group));
    Ok(Ok(()))
}

/// The groups of receipts, to wake their consumers.
pub(super) fn wake(groups: &BTreeSet<i64>, tx: &mut Tx<'_>) {
    groups.iter().for_each(|group| tx.changed(group_topic(*group)));
}
