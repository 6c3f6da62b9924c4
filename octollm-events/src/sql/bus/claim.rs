//! What the members of a group claim.

use std::{collections::BTreeMap, sync::Arc};

use octollm_core::bus::{ConsumeOptions, Gap};

use super::{
    group::{Place, advance},
    state::{Limit, State, Stored, micros, remove},
};
use crate::sql::{
    connection::Row,
    statement::{Rows, Sql},
    writer::{Operation, Tx},
};

/// Leases events for a member, as many as it may have.
pub(super) struct Claim {
    pub(super) name: Arc<str>,
    pub(super) place: Place,
    pub(super) most: usize,
    pub(super) options: ConsumeOptions,
    pub(super) dead_letters: Limit,
}

/// A leased event.
pub(super) struct Claimed {
    pub(super) seq: i64,
    pub(super) token: i64,
    pub(super) attempt: u32,
    pub(super) event: Vec<u8>,
}

/// What a member gets.
pub(super) enum Claims {
    Events(Vec<Claimed>, Option<Gap>),
    /// The group was removed.
    Removed,
    /// The group is gone with the data of the bus.
    Gone,
}

impl Operation for Claim {
    type Output = Claims;
    const ORDER: u8 = 128;

    async fn run(batch: &[Self], tx: &mut Tx<'_>) -> Result<Vec<Claims>, sqlx::Error> {
        let state = State::lock(tx).await?;
        let mut results: Vec<Claims> = batch.iter().map(|_| Claims::Gone).collect();
        let mut groups = BTreeMap::<i64, Vec<usize>>::new();
        for (at, claim) in batch.iter().enumerate().filter(|(_, claim)| claim.place.epoch == state.epoch) {
            groups.entry(claim.place.group).or_default().push(at);
        }
        for (group, claims) in groups {
            serve(group, state, batch, &claims, &mut results, tx).await?;
        }
        Ok(results)
    }
}

/// Serves the claims of one group.
async fn serve(
    group: i64,
    state: State,
    batch: &[Claim],
    claims: &[usize],
    results: &mut [Claims],
    tx: &mut Tx<'_>,
) -> Result<(), sqlx::Error> {
    static GROUP: Sql = Sql::new(
        "SELECT g.name, EXISTS (SELECT 1 FROM octollm_bus_delivery AS d WHERE d.group_id = g.id AND d.due > 0 AND d.due <= {now}), \
         EXISTS (SELECT 1 FROM octollm_bus_delivery AS d WHERE d.group_id = g.id AND d.expires > 0 AND d.expires <= {now} \
         AND d.leased = 0) FROM octollm_bus_group AS g WHERE g.id = $1",
    );
    let found = tx.conn.fetch(&GROUP, [group.into()]).await?;
    let Some(row) = found.first() else {
        // Numbers only grow: one that is greater than the last one was of data that are gone.
        if u64::try_from(group).is_ok_and(|group| group <= state.last) {
            claims.iter().for_each(|at| results[*at] = Claims::Removed);
        }
        return Ok(());
    };
    let name = row.text(0)?;
    if row.flag(1)? || row.flag(2)? {
        let limit = claims.first().map_or(Limit { events: 0, bytes: 0 }, |at| batch[*at].dead_letters);
        advance(group, limit, tx).await?;
    }
    // Another group can have the number in data that were restored.
    let claims: Vec<usize> = claims.iter().copied().filter(|at| *batch[*at].name == *name).collect();
    claims.iter().for_each(|at| results[*at] = Claims::Events(Vec::new(), None));
    let (leases, owners) = share(group, batch, &claims, tx).await?;
    if owners.is_empty() {
        return Ok(());
    }
    let mut lost = Vec::new();
    for row in lease(group, leases, tx).await? {
        let stored = Stored::read(&row)?;
        let result = owners.get(&stored.seq).map(|at| &mut results[*at]);
        let Some(Claims::Events(events, gap)) = result else { continue };
        match row.bytes_or_null(6)? {
            Some(event) => {
                let attempt = u32::try_from(stored.attempts).unwrap_or(u32::MAX);
                events.push(Claimed { seq: stored.seq, token: row.int(5)?, attempt, event });
            }
            // Somebody deleted it from the log.
            None => {
                *gap = Some(Gap::Trimmed { event_ids: Vec::new() });
                lost.push(stored);
            }
        }
    }
    for at in claims {
        if let Claims::Events(events, _) = &mut results[at] {
            events.sort_by_key(|claimed| claimed.seq);
        }
    }
    remove(&lost, tx).await
}

/// Which of the ready events go to which claims, one for each in turn. Returns the rows of the leases, and the claim of each event.
async fn share(
    group: i64,
    batch: &[Claim],
    claims: &[usize],
    tx: &mut Tx<'_>,
) -> Result<(Rows, BTreeMap<i64, usize>), sqlx::Error> {
    // The events that members hold, and those that are ready.
    static READ: Sql = Sql::new(
        "SELECT CAST(0 AS BIGINT) AS kind, member, count(*) AS held FROM octollm_bus_delivery WHERE group_id = $1 AND leased = 1 GROUP BY member \
         UNION ALL SELECT 1, seq, 0 FROM (SELECT seq FROM octollm_bus_delivery WHERE group_id = $1 AND due = 0 \
         ORDER BY seq LIMIT $2) AS ready",
    );
    let (mut held, mut ready) = (BTreeMap::new(), Vec::new());
    let most: usize = claims.iter().map(|at| batch[*at].most).sum();
    for row in tx.conn.fetch(&READ, [group.into(), most.into()]).await? {
        match row.int(0)? {
            0 => drop(held.insert(row.int(1)?, usize::try_from(row.int(2)?).unwrap_or(0))),
            _ => ready.push(row.int(1)?),
        }
    }
    ready.sort_unstable();
    let mut wanted: Vec<(usize, usize)> = Vec::new();
    for at in claims {
        let Claim { place, most, options, .. } = &batch[*at];
        let room = options.max_in_flight.saturating_sub(held.get(&place.member).copied().unwrap_or(0));
        wanted.push((*at, room.min(*most)));
    }
    let (mut leases, mut owners, mut ready) = (Rows::new(), BTreeMap::new(), ready.into_iter());
    while wanted.iter().any(|(_, most)| *most > 0) && ready.len() > 0 {
        for (at, most) in wanted.iter_mut().filter(|(_, most)| *most > 0) {
            let Some(seq) = ready.next() else { break };
            let Claim { place, options, .. } = &batch[*at];
            let (lease, attempts) = (micros(options.lease), options.max_attempts.into());
            leases.push([seq.into(), place.member.into(), lease, attempts]);
            owners.insert(seq, *at);
            *most -= 1;
        }
    }
    Ok((leases, owners))
}

/// Leases events. Returns the columns of [`Stored`], the token and the event of each.
async fn lease(group: i64, leases: Rows, tx: &mut Tx<'_>) -> Result<Vec<Row>, sqlx::Error> {
    static AT_ONCE: Sql = Sql::new(
        "UPDATE octollm_bus_delivery AS d SET leased = 1, token = d.token + 1, attempts = d.attempts + 1, member = rows.member, \
         since = {now}, due = {now} + rows.lease, max_attempts = rows.most \
         FROM {rows:seq int, member int, lease int, most int} LEFT JOIN octollm_bus_log AS l ON l.seq = rows.seq \
         WHERE d.group_id = $1 AND d.seq = rows.seq \
         RETURNING d.group_id, d.seq, d.key, d.size, d.attempts, d.token, COALESCE(d.event, l.event)",
    );
    static LEASE: Sql = Sql::new(
        "UPDATE octollm_bus_delivery SET leased = 1, token = octollm_bus_delivery.token + 1, \
         attempts = octollm_bus_delivery.attempts + 1, member = rows.member, since = {now}, \
         due = {now} + rows.lease, max_attempts = rows.most FROM {rows:seq int, member int, lease int, most int} \
         WHERE group_id = $1 AND octollm_bus_delivery.seq = rows.seq",
    );
    static READ: Sql = Sql::new(
        "SELECT d.group_id, d.seq, d.key, d.size, d.attempts, d.token, COALESCE(d.event, l.event) \
         FROM {rows:seq int, member int, lease int, most int} \
         {lite:CROSS} JOIN octollm_bus_delivery AS d ON d.group_id = $1 AND d.seq = rows.seq \
         LEFT JOIN octollm_bus_log AS l ON l.seq = d.seq",
    );
    if tx.conn.is_postgres() {
        return tx.conn.fetch_rows(&AT_ONCE, [group.into()], leases).await;
    }
    tx.conn.execute_rows(&LEASE, [group.into()], leases.clone()).await?;
    tx.conn.fetch_rows(&READ, [group.into()], leases).await
}
