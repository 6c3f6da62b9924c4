//! One consumer of a group.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    bus::{BusError, ConsumeOptions, Gap, Nack, engine::ConsumerEngine},
    event::{Event, Pattern},
};
use redis::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Joined, Shared,
    entry::{fields, items, number, text},
    scripts::{CLAIM_SCRIPT, SETTLE_SCRIPT, STATUS_SCRIPT, of_group},
};
use crate::redis::error::RedisError;

/// A consumer asks the server this often without a notification.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a failure of the server.
const FAILURE: Duration = Duration::from_millis(200);
/// Most events that are claimed at once.
const BATCH: usize = 256;
/// A consumer that asks again within this time is given several events at once.
const QUICK: Duration = Duration::from_millis(10);
/// Events that were claimed and are not asked for are given back after this time, or a third of the lease.
const HOLD: Duration = Duration::from_millis(500);
/// A consumer gives a sign of life this often, and counts without one for [`LIFE`].
const SIGN: Duration = Duration::from_secs(20);
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// Deliveries that are settled in one step at the server.
pub(super) const SETTLED: usize = 512;

/// Identifies a delivery. The token changes with each.
#[derive(Debug, Clone)]
pub(super) struct Receipt {
    id: Arc<str>,
    token: Arc<str>,
    event_id: Arc<str>,
    attempt: u32,
}

type Item = (Event, u32, Receipt);

pub(super) struct Member {
    inner: Arc<Inner>,
    changed: tokio::sync::Mutex<watch::Receiver<()>>,
    closed: watch::Receiver<bool>,
}

struct Inner {
    shared: Arc<Shared>,
    group: String,
    pattern: Pattern,
    name: String,
    options: ConsumeOptions,
    state: Mutex<State>,
    /// Notified when a claim has ended or a delivery was settled.
    wake: Notify,
}

struct State {
    gaps: VecDeque<Gap>,
    /// Claimed, and not asked for yet; with the number of their claim.
    ready: VecDeque<(u64, Item)>,
    /// When the leases of what is not settled expire.
    held: HashMap<Arc<str>, Instant>,
    claims: u64,
    is_claiming: bool,
    /// A claim whose answer was lost.
    unanswered: String,
    /// Whether the last claim found something.
    is_busy: bool,
    idle: Option<Duration>,
    batch: usize,
    returned: Instant,
    lived: Instant,
    ended: Option<BusError>,
    has_left: bool,
}

/// What `next` does.
enum Step {
    Return(Result<Result<Item, Gap>, BusError>),
    Claim(Claim),
    Wait,
    Idle(Instant),
}

struct Claim {
    number: u64,
    most: usize,
    lives: bool,
    unanswered: String,
}

impl State {
    /// How many further deliveries there may be, and when the next lease expires.
    fn room(&mut self, most: usize, now: Instant) -> (usize, Option<Instant>) {
        self.held.retain(|_, until| *until > now);
        (most.saturating_sub(self.held.len()), self.held.values().min().copied())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> Step {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(gap) = state.gaps.pop_front() {
            return Step::Return(Ok(Err(gap)));
        }
        if let Some((_, item)) = state.ready.pop_front() {
            state.returned = now;
            return Step::Return(Ok(Ok(item)));
        }
        if let Some(ended) = &state.ended {
            return Step::Return(Err(ended.clone()));
        }
        if state.is_claiming {
            return Step::Wait;
        }
        if let Some(time) = state.idle.take() {
            return Step::Idle(now + time);
        }
        let (room, expires) = state.room(self.options.max_in_flight, now);
        if room == 0 {
            return Step::Idle(expires.unwrap_or(now + INTERVAL));
        }
        let is_quick = state.is_busy && now - state.returned < QUICK;
        state.batch = if is_quick { (state.batch * 2).min(BATCH) } else { 1 };
        let lives = now - state.lived > SIGN;
        if lives {
            state.lived = now;
        }
        (state.is_claiming, state.claims) = (true, state.claims + 1);
        let unanswered = std::mem::take(&mut state.unanswered);
        Step::Claim(Claim { number: state.claims, most: state.batch.min(room), lives, unanswered })
    }

    fn token(&self, claim: u64) -> String {
        format!("{}:{claim}", self.name)
    }

    async fn claim(&self, claim: &Claim) -> Result<Value, RedisError> {
        let ConsumeOptions { lease, max_attempts, .. } = self.options;
        let mut call = of_group(&CLAIM_SCRIPT, &self.shared.keys, &self.group);
        call.arg(self.token(claim.number)).arg(claim.most).arg(millis(lease)).arg(max_attempts);
        call.arg(self.shared.dead_letters).arg(self.pattern.to_string()).arg(&self.name);
        call.arg(if claim.lives { millis(LIFE) } else { 0 }).arg(&claim.unanswered);
        self.shared.commands.invoke(&call).await
    }

    /// Gives back what was claimed and not asked for, of one claim or of all.
    fn give_back(self: &Arc<Self>, claim: Option<u64>) {
        let mut released = Vec::new();
        self.state().ready.retain(|(number, (_, _, receipt))| {
            let stays = claim.is_some_and(|claim| claim != *number);
            if !stays {
                released.push((receipt.clone(), Act::Release));
            }
            stays
        });
        if !released.is_empty() {
            let inner = self.clone();
            spawn(async move { drop(inner.settle(released).await) });
        }
    }

    async fn settle(&self, batch: Vec<(Receipt, Act)>) -> Vec<Result<(), BusError>> {
        let mut results = Vec::with_capacity(batch.len());
        for part in batch.chunks(SETTLED) {
            let mut call = of_group(&SETTLE_SCRIPT, &self.shared.keys, &self.group);
            call.arg(self.shared.dead_letters);
            for (receipt, act) in part {
                let (name, with) = act.parts();
                call.arg(&*receipt.id).arg(&*receipt.token).arg(name).arg(with);
            }
            let settled: Result<Vec<i64>, _> = self.shared.commands.invoke(&call).await;
            let lost = |receipt: &Receipt| BusError::LeaseLost { event_id: receipt.event_id.to_string() };
            let mut state = self.state();
            for (at, (receipt, act)) in part.iter().enumerate() {
                let result = match &settled {
                    Ok(settled) if settled.get(at) == Some(&1) => Ok(()),
                    Ok(_) => Err(lost(receipt)),
                    Err(error) => Err(error.clone().into()),
                };
                match act {
                    Act::Extend(time) if result.is_ok() => {
                        state.held.insert(receipt.id.clone(), Instant::now() + *time);
                    }
                    Act::Extend(_) => {}
                    _ => drop(state.held.remove(&receipt.id)),
                }
                results.push(result);
            }
        }
        self.wake.notify_waiters();
        results
    }

    /// What happens to a delivery.
    fn act(&self, receipt: &Receipt, outcome: Result<(), Nack>) -> Act {
        match outcome {
            Ok(()) | Err(Nack::Drop) => Act::Ack,
            Err(Nack::Release) => Act::Release,
            Err(Nack::DeadLetter { reason }) => Act::Dead(reason),
            Err(Nack::Retry { .. }) if receipt.attempt >= self.options.max_attempts => {
                Act::Dead("no attempts left".to_owned())
            }
            Err(Nack::Retry { after }) => {
                Act::Retry(after.unwrap_or_else(|| self.options.backoff(receipt.attempt)))
            }
            Err(_) => Act::Release,
        }
    }

    /// The events of a claim, and what is settled at once: expired events, and what cannot be read.
    fn items(&self, claim: u64, claimed: Value, until: Instant) -> (Vec<Item>, Vec<(Receipt, Act)>) {
        let token: Arc<str> = self.token(claim).into();
        let (mut found, mut settled) = (Vec::new(), Vec::new());
        for one in items(claimed) {
            let Ok([id, attempt, values]) = <[Value; 3]>::try_from(items(one)) else { continue };
            let (id, values): (Arc<str>, _) = (text(id).into(), fields(values));
            let attempt = u32::try_from(number(&attempt)).unwrap_or(u32::MAX);
            let receipt = |event: &str| Receipt {
                id: id.clone(),
                token: token.clone(),
                event_id: event.into(),
                attempt,
            };
            match self.shared.encoding.from_fields(values.iter().map(|(name, value)| (name, value))) {
                // A dead letter that somebody replays is delivered however old it is.
                Ok(event) if is_expired(&event) && !id.starts_with("r:") => {
                    settled.push((receipt(event.id()), Act::Expired));
                }
                Ok(event) => {
                    self.state().held.insert(id.clone(), until);
                    let receipt = receipt(event.id());
                    found.push((event, attempt, receipt));
                }
                Err(error) => settled.push((receipt(""), Act::Dead(error.to_string()))),
            }
        }
        (found, settled)
    }

    /// The group is not there: it was removed, or the server has lost it.
    async fn rejoin(&self) -> Result<Gap, BusError> {
        if !self.shared.has_lost_data().await? {
            return Err(BusError::UnknownGroup { group: self.group.clone() });
        }
        match self.shared.join(&self.group, &self.pattern, true, &self.name).await? {
            Joined { .. } => Ok(Gap::GroupRecreated),
        }
    }
}

/// Claims events for a member. It is a task of its own, so that no event is lost where nobody waits for it any more.
async fn run(inner: Arc<Inner>, claim: Claim) {
    let until = Instant::now() + inner.options.lease;
    let answer = inner.claim(&claim).await;
    let (mut gap, mut ended, mut idle, mut found, mut settled) = (None, None, None, Vec::new(), Vec::new());
    let mut unanswered = String::new();
    match answer {
        Ok(Value::Nil) => match inner.rejoin().await {
            Ok(recreated) => gap = Some(recreated),
            Err(error) if error.retryable() => idle = Some(FAILURE),
            Err(error) => ended = Some(error),
        },
        Ok(answer) => {
            if let Ok([claimed, gone, wait]) = <[Value; 3]>::try_from(items(answer)) {
                (found, settled) = inner.items(claim.number, claimed, until);
                let gone: Vec<_> = items(gone).into_iter().map(text).collect();
                if !gone.is_empty() {
                    gap = Some(Gap::Trimmed {
                        event_ids: gone.into_iter().filter(|id| !id.is_empty()).collect(),
                    });
                }
                if found.is_empty() && settled.is_empty() && gap.is_none() {
                    idle = match number(&wait) {
                        0 => None,
                        time => Some(
                            u64::try_from(time)
                                .map_or(INTERVAL, |time| Duration::from_millis(time).min(INTERVAL)),
                        ),
                    };
                }
            }
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                group = inner.group,
                "events not claimed from Redis"
            );
            unanswered = if claim.unanswered.is_empty() {
                inner.token(claim.number)
            } else {
                claim.unanswered.clone()
            };
            idle = Some(FAILURE);
        }
    }
    let has_found = !found.is_empty();
    let has_left = {
        let mut state = inner.state();
        state.ready.extend(found.into_iter().map(|item| (claim.number, item)));
        state.gaps.extend(gap);
        (state.is_claiming, state.is_busy, state.idle) = (false, has_found, idle);
        if !unanswered.is_empty() {
            state.unanswered = unanswered;
        }
        if let Some(ended) = ended {
            state.ended.get_or_insert(ended);
        }
        state.has_left
    };
    inner.wake.notify_waiters();
    if !settled.is_empty() {
        drop(inner.settle(settled).await);
    }
    if has_left {
        return inner.give_back(None);
    }
    if has_found {
        sleep(HOLD.min(inner.options.lease / 3)).await;
        inner.give_back(Some(claim.number));
    }
}

/// What is done to a delivery.
#[derive(Debug, Clone)]
enum Act {
    Ack,
    Expired,
    Release,
    Retry(Duration),
    Dead(String),
    Extend(Duration),
}

impl Act {
    fn parts(&self) -> (&'static str, String) {
        match self {
            Self::Ack => ("ack", String::new()),
            Self::Expired => ("expired", String::new()),
            Self::Release => ("release", String::new()),
            Self::Retry(delay) => ("retry", millis(*delay).to_string()),
            Self::Dead(reason) => ("dead", reason.clone()),
            Self::Extend(time) => ("extend", millis(*time).to_string()),
        }
    }
}

fn is_expired(event: &Event) -> bool {
    event.expires_at().is_some_and(|at| at <= jiff::Timestamp::now())
}

/// Rounded up: nothing is early.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX).min(1 << 52)
}

/// Starts what nobody waits for. Without a runtime, leases expire.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}

impl Member {
    pub(super) fn new(
        shared: Arc<Shared>,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
        name: String,
        joined: Joined,
    ) -> Self {
        let now = Instant::now();
        let state = State {
            gaps: joined.gap.into_iter().collect(),
            ready: VecDeque::new(),
            held: HashMap::new(),
            claims: 0,
            is_claiming: false,
            unanswered: String::new(),
            is_busy: false,
            idle: None,
            batch: 1,
            returned: now,
            lived: now,
            ended: None,
            has_left: false,
        };
        let (changed, closed) = (shared.changed.subscribe(), shared.closed.subscribe());
        let (state, wake, group) = (Mutex::new(state), Notify::new(), group.to_owned());
        let inner = Arc::new(Inner { shared, group, pattern, name, options, state, wake });
        Self { inner, changed: tokio::sync::Mutex::new(changed), closed }
    }
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
            match self.inner.step() {
                Step::Return(result) => return result,
                Step::Claim(claim) => {
                    changed.mark_unchanged();
                    tokio::spawn(run(self.inner.clone(), claim));
                }
                Step::Wait => tokio::select! {
                    () = wake => {}
                    _ = closed.changed() => {}
                },
                Step::Idle(until) => tokio::select! {
                    () = wake => {}
                    _ = closed.changed() => {}
                    _ = changed.changed() => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    async fn settle(&self, batch: Vec<(Receipt, Result<(), Nack>)>) -> Vec<Result<(), BusError>> {
        let acts = batch.into_iter().map(|(receipt, outcome)| {
            let act = self.inner.act(&receipt, outcome);
            (receipt, act)
        });
        self.inner.settle(acts.collect()).await
    }

    async fn extend(&self, batch: Vec<(Receipt, Duration)>) -> Vec<Result<(), BusError>> {
        self.inner
            .settle(batch.into_iter().map(|(receipt, time)| (receipt, Act::Extend(time))).collect())
            .await
    }

    async fn close(&self) -> Result<(), BusError> {
        self.inner.state().has_left = true;
        self.inner.give_back(None);
        loop {
            let mut wake = std::pin::pin!(self.inner.wake.notified());
            wake.as_mut().enable();
            let (is_claiming, expires) = {
                let mut state = self.inner.state();
                let (_, expires) = state.room(usize::MAX, Instant::now());
                (state.is_claiming, expires)
            };
            match expires {
                None if !is_claiming => return Ok(()),
                None => wake.await,
                Some(until) => tokio::select! {
                    () = wake => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    fn leave(&self) {
        self.inner.state().has_left = true;
        self.inner.give_back(None);
        let inner = self.inner.clone();
        spawn(async move {
            let mut call = of_group(&STATUS_SCRIPT, &inner.shared.keys, &inner.group);
            call.arg(inner.shared.dead_letters).arg(&inner.name);
            let _: Result<Value, _> = inner.shared.commands.invoke(&call).await;
        });
    }
}
