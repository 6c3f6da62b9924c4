//! One consumer of a group.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use octollm_core::{
    bus::{BusError, ConsumeOptions, Gap, Nack, engine::ConsumerEngine},
    event::Event,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::{
    Shared,
    claim::{Claim, Claimed, Claims},
    group::{self, Join, Place},
    settle::{Extend, Receipt, Settle},
    state::group_topic,
};
use crate::{
    Encoding,
    sql::{error::SqlError, statement::Sql},
};

/// A member asks the database this often without a notification.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a failure of the database.
const FAILURE: Duration = Duration::from_millis(200);
/// Most events that are claimed at once.
const BATCH: usize = 64;
/// A consumer that asks again within this time is given several events at once.
const QUICK: Duration = Duration::from_millis(10);
/// Events that were claimed and are not asked for are given back after this time, or a third of the lease.
const HOLD: Duration = Duration::from_millis(500);
/// A member gives a sign of life this often.
const LIFE: Duration = Duration::from_secs(20);

pub(super) struct Member {
    shared: Arc<Shared>,
    inner: Arc<Inner>,
    /// Changes of the group with this number.
    changed: tokio::sync::Mutex<(i64, watch::Receiver<()>)>,
    closed: watch::Receiver<bool>,
}

struct Inner {
    name: Arc<str>,
    /// Joins the group again.
    join: Join,
    options: ConsumeOptions,
    state: Mutex<State>,
    /// Notified when a claim has ended or a delivery was settled.
    wake: Notify,
}

struct State {
    place: Place,
    gap: Option<Gap>,
    /// Claimed, and not asked for yet; with the number of their claim.
    ready: VecDeque<(u64, Item)>,
    claims: u64,
    is_claiming: bool,
    /// Whether the last claim found something.
    is_busy: bool,
    /// The last claim found nothing: how long to wait for the next one.
    idle: Option<Duration>,
    batch: usize,
    returned: Instant,
    lived: Instant,
    ended: Option<BusError>,
    /// Whether what is claimed is given back.
    has_left: bool,
}

type Item = (Event, u32, Receipt);
type Outcomes = Vec<(Receipt, Result<(), Nack>)>;

/// What `next` does.
enum Step {
    Return(Result<Result<Item, Gap>, BusError>),
    Claim { number: u64, most: usize, checks: bool, lives: bool },
    Wait,
    Idle(Duration),
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> Step {
        let mut state = self.state();
        if let Some(gap) = state.gap.take() {
            return Step::Return(Ok(Err(gap)));
        }
        if let Some((_, item)) = state.ready.pop_front() {
            state.returned = Instant::now();
            return Step::Return(Ok(Ok(item)));
        }
        if let Some(ended) = &state.ended {
            return Step::Return(Err(ended.clone()));
        }
        if state.is_claiming {
            return Step::Wait;
        }
        if let Some(time) = state.idle.take() {
            return Step::Idle(time);
        }
        let is_quick = state.is_busy && state.returned.elapsed() < QUICK;
        state.batch = if is_quick { (state.batch * 2).min(BATCH) } else { 1 };
        let lives = state.lived.elapsed() > LIFE;
        if lives {
            state.lived = Instant::now();
        }
        (state.is_claiming, state.claims) = (true, state.claims + 1);
        Step::Claim { number: state.claims, most: state.batch, checks: !state.is_busy, lives }
    }
}

impl Member {
    pub(super) fn new(
        shared: Arc<Shared>,
        join: Join,
        options: ConsumeOptions,
        (place, gap): (Place, Option<Gap>),
    ) -> Self {
        let now = Instant::now();
        let state = State {
            place,
            gap,
            ready: VecDeque::new(),
            claims: 0,
            is_claiming: false,
            is_busy: false,
            idle: None,
            batch: 1,
            returned: now,
            lived: now,
            ended: None,
            has_left: false,
        };
        let changed = shared.database.changes().subscribe(group_topic(place.group));
        let closed = shared.closed.subscribe();
        let (state, wake, name) = (Mutex::new(state), Notify::new(), join.name.as_str().into());
        let inner = Arc::new(Inner { name, join, options, state, wake });
        Self { shared, inner, changed: tokio::sync::Mutex::new((place.group, changed)), closed }
    }

    /// Gives back what was claimed and not asked for, of one claim or of all.
    fn give_back(shared: &Shared, inner: &Inner, claim: Option<u64>) {
        let mut receipts = Vec::new();
        inner.state().ready.retain(|(number, (_, _, receipt))| {
            let stays = claim.is_some_and(|claim| claim != *number);
            if !stays {
                receipts.push((receipt.clone(), Err(Nack::Release)));
            }
            stays
        });
        if !receipts.is_empty() {
            let settle = Settle { receipts, dead_letters: shared.dead_letters };
            // An operation that was begun runs to its end.
            let _ = shared.database.write(settle).now_or_never();
        }
    }
}

/// Claims events for a member. It is a task of its own, so that no event is lost where nobody waits for it any more.
async fn claim(shared: Arc<Shared>, inner: Arc<Inner>, number: u64, most: usize, checks: bool, lives: bool) {
    let (place, options) = (inner.state().place, inner.options);
    if lives {
        let Place { group, member, .. } = place;
        let _ = shared.database.write(group::Member { member, group, lives }).now_or_never();
    }
    let claimed = async {
        if checks && let Some(time) = idle(&shared, place).await? {
            return Ok((Claims::Events(Vec::new(), None), Some(time)));
        }
        let (name, dead_letters) = (inner.name.clone(), shared.dead_letters);
        let claimed = shared.database.write(Claim { name, place, most, options, dead_letters }).await?;
        Ok::<_, SqlError>((claimed, None))
    };
    let (claimed, gap, ended, time) = match claimed.await {
        Ok((Claims::Events(claimed, gap), time)) => (claimed, gap, None, time),
        Ok((Claims::Removed, _)) => {
            (Vec::new(), None, Some(BusError::UnknownGroup { group: inner.name.to_string() }), None)
        }
        Ok((Claims::Gone, _)) => {
            let (gap, ended) = rejoin(&shared, &inner).await;
            (Vec::new(), gap, ended, None)
        }
        Err(SqlError::Closed) => (Vec::new(), None, Some(BusError::Closed), None),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                group = &*inner.name,
                "events not claimed"
            );
            shared.unavailable(error);
            (Vec::new(), None, None, Some(FAILURE))
        }
    };
    let found = !claimed.is_empty();
    let (items, garbage) = items(claimed, &inner, place.group, place.epoch);
    if !garbage.is_empty() {
        let settle = Settle { receipts: garbage, dead_letters: shared.dead_letters };
        let _ = shared.database.write(settle).now_or_never();
    }
    let has_left = {
        let mut state = inner.state();
        state.ready.extend(items.into_iter().map(|item| (number, item)));
        (state.is_claiming, state.is_busy) = (false, found);
        if !found {
            // The next claim looks when something is due.
            state.idle = time;
        }
        if gap.is_some() {
            state.gap = gap;
        }
        if let Some(ended) = ended {
            state.ended.get_or_insert(ended);
        }
        state.has_left
    };
    inner.wake.notify_waiters();
    if has_left {
        return Member::give_back(&shared, &inner, None);
    }
    if found {
        sleep(HOLD.min(options.lease / 3)).await;
        Member::give_back(&shared, &inner, Some(number));
    }
}

/// Joins the group again, whose data are gone: from the oldest event that is stored since. Returns the gap, or why the consumer ends.
async fn rejoin(shared: &Shared, inner: &Inner) -> (Option<Gap>, Option<BusError>) {
    match shared.database.write(Join { from_start: true, ..inner.join.clone() }).await {
        Ok(Ok((place, _))) => {
            tracing::warn!(group = &*inner.name, "group created again");
            inner.state().place = place;
            (Some(Gap::GroupRecreated), None)
        }
        Ok(Err(error)) => (None, Some(error)),
        // It is tried again with the next claim.
        Err(error) => {
            shared.unavailable(error);
            (None, None)
        }
    }
}

/// The events of claims, and what cannot be read.
fn items(claimed: Vec<Claimed>, inner: &Inner, group: i64, epoch: i64) -> (Vec<Item>, Outcomes) {
    let (mut items, mut garbage) = (Vec::new(), Vec::new());
    for Claimed { seq, token, attempt, event } in claimed {
        let receipt =
            |id: &str| Receipt { group, seq, token, epoch, event_id: id.into(), options: inner.options };
        match Encoding::Native.decode(&event) {
            Ok(event) => {
                let receipt = receipt(event.id());
                items.push((event, attempt, receipt));
            }
            Err(error) => garbage.push((receipt(""), Err(Nack::dead_letter(error.to_string())))),
        }
    }
    (items, garbage)
}

/// How long nothing of a group can be claimed, or `None` where something can.
async fn idle(shared: &Shared, place: Place) -> Result<Option<Duration>, SqlError> {
    // The indexes find the first of each.
    static NEXT: Sql = Sql::new(
        "SELECT EXISTS (SELECT 1 FROM octollm_bus_group WHERE id = $1), \
         EXISTS (SELECT 1 FROM octollm_bus_delivery WHERE group_id = $1 AND due = 0), \
         (SELECT min(due) FROM octollm_bus_delivery WHERE group_id = $1 AND due > 0) - {now}, \
         (SELECT epoch FROM octollm_bus)",
    );
    let rows = shared.database.fetch(&NEXT, [place.group.into()]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if !row.flag(0)? || row.flag(1)? || row.int_or_null(3)? != Some(place.epoch) {
        return Ok(None);
    }
    Ok(match row.int_or_null(2)? {
        None => Some(INTERVAL),
        Some(time) => match u64::try_from(time) {
            Ok(0) | Err(_) => None,
            // The clock of SQLite has milliseconds.
            Ok(time) => Some(Duration::from_micros(time + 1_000).min(INTERVAL)),
        },
    })
}

#[async_trait]
impl ConsumerEngine for Member {
    type Receipt = Receipt;

    async fn next(&self) -> Result<Result<Item, Gap>, BusError> {
        tokio::task::coop::consume_budget().await;
        let (mut changed, mut closed) = (self.changed.lock().await, self.closed.clone());
        loop {
            let mut wake = std::pin::pin!(self.inner.wake.notified());
            // Before the state is read, so that no change in between is missed.
            wake.as_mut().enable();
            if *closed.borrow_and_update() {
                return Err(BusError::Closed);
            }
            let group = self.inner.state().place.group;
            if changed.0 != group {
                *changed = (group, self.shared.database.changes().subscribe(group_topic(group)));
            }
            match self.inner.step() {
                Step::Return(result) => return result,
                Step::Claim { number, most, checks, lives } => {
                    changed.1.mark_unchanged();
                    let (shared, inner) = (self.shared.clone(), self.inner.clone());
                    tokio::spawn(claim(shared, inner, number, most, checks, lives));
                }
                Step::Wait => tokio::select! {
                    () = wake => {}
                    _ = closed.changed() => {}
                },
                Step::Idle(time) => tokio::select! {
                    () = wake => {}
                    _ = closed.changed() => {}
                    _ = changed.1.changed() => {}
                    () = sleep(time) => {}
                },
            }
        }
    }

    async fn settle(&self, batch: Vec<(Receipt, Result<(), Nack>)>) -> Vec<Result<(), BusError>> {
        let count = batch.len();
        let settle = Settle { receipts: batch, dead_letters: self.shared.dead_letters };
        let results = self.shared.database.write(settle).await;
        self.inner.wake.notify_waiters();
        results.unwrap_or_else(|error| vec![Err(self.shared.unavailable(error)); count])
    }

    async fn extend(&self, batch: Vec<(Receipt, Duration)>) -> Vec<Result<(), BusError>> {
        let count = batch.len();
        let results = self.shared.database.write(Extend(batch)).await;
        results.unwrap_or_else(|error| vec![Err(self.shared.unavailable(error)); count])
    }

    async fn close(&self) -> Result<(), BusError> {
        static HELD: Sql = Sql::new(
            "SELECT max(due) - {now} FROM octollm_bus_delivery \
             WHERE group_id = $1 AND member = $2 AND leased = 1 AND due > {now}",
        );
        self.inner.state().has_left = true;
        Self::give_back(&self.shared, &self.inner, None);
        loop {
            let mut wake = std::pin::pin!(self.inner.wake.notified());
            wake.as_mut().enable();
            if self.inner.state().is_claiming {
                wake.await;
                continue;
            }
            let place = self.inner.state().place;
            let parameters = [place.group.into(), place.member.into()];
            let rows = match self.shared.database.fetch(&HELD, parameters).await {
                Ok(rows) => rows,
                Err(SqlError::Closed) => return Ok(()),
                Err(error) => return Err(self.shared.unavailable(error)),
            };
            let left = rows.first().map(|row| row.int_or_null(0)).transpose();
            let Some(left) = left.map_err(|error| self.shared.unavailable(error.into()))?.flatten() else {
                return Ok(());
            };
            let left = Duration::from_micros(u64::try_from(left).unwrap_or(0) + 1_000);
            tokio::select! {
                () = wake => {}
                // What was given back just now is not settled by this member.
                () = sleep(left.min(FAILURE)) => {}
            }
        }
    }

    fn name(&self) -> String {
        self.inner.state().place.member.to_string()
    }

    fn leave(&self) {
        self.inner.state().has_left = true;
        Self::give_back(&self.shared, &self.inner, None);
        let Place { group, member, .. } = self.inner.state().place;
        // An operation that was begun runs to its end.
        let _ = self.shared.database.write(group::Member { member, group, lives: false }).now_or_never();
    }
}
