//! One consumer of a group.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    bus::{BusError, ConsumeOptions, Gap, Nack, engine::ConsumerEngine},
    event::{Event, Pattern},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    Joined, Shared,
    claim::{self, Act, Claim},
    scripts::{SETTLE_SCRIPT, STATUS_SCRIPT, of_group},
};
use crate::redis::values::{items, number};

/// A consumer asks the server this often without a notification.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// Most events that are claimed at once.
const BATCH: usize = 256;
/// A consumer that asks again within this time is given several events at once.
const QUICK: Duration = Duration::from_millis(10);
/// A consumer gives a sign of life this often, and counts without one for [`LIFE`].
const SIGN: Duration = Duration::from_secs(20);
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// Deliveries that are settled in one step at the server.
pub(super) const SETTLED: usize = 512;

/// Identifies a delivery. The token changes with each.
#[derive(Debug, Clone)]
pub(super) struct Receipt {
    pub(super) id: Arc<str>,
    pub(super) token: Arc<str>,
    pub(super) event_id: Arc<str>,
    pub(super) attempt: u32,
}

pub(super) type Item = (Event, u32, Receipt);

pub(super) struct Member {
    inner: Arc<Inner>,
    changed: tokio::sync::Mutex<watch::Receiver<()>>,
    closed: watch::Receiver<bool>,
}

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) group: String,
    pub(super) pattern: Pattern,
    pub(super) name: String,
    pub(super) options: ConsumeOptions,
    state: Mutex<State>,
    /// Notified when a claim has ended or a delivery was settled.
    pub(super) wake: Notify,
}

pub(super) struct State {
    /// The data of the server in which the member is.
    pub(super) data: String,
    pub(super) gaps: VecDeque<Gap>,
    /// Claimed, and not asked for yet; with the number of their claim.
    pub(super) ready: VecDeque<(u64, Item)>,
    /// When the leases of what is not settled expire.
    pub(super) held: HashMap<Arc<str>, Instant>,
    pub(super) claims: u64,
    pub(super) is_claiming: bool,
    /// Claims that failed one after the other. Their answers may have been lost: the next one has the same token.
    pub(super) failures: u32,
    /// Whether the last claim found something.
    pub(super) is_busy: bool,
    /// Whether it found as much as it asked for.
    pub(super) has_more: bool,
    pub(super) idle: Option<Duration>,
    pub(super) batch: usize,
    pub(super) returned: Instant,
    pub(super) lived: Instant,
    pub(super) ended: Option<BusError>,
    pub(super) has_left: bool,
}

/// What `next` does.
enum Step {
    /// Returns, and claims what comes next meanwhile.
    Return(Result<Result<Item, Gap>, BusError>, Option<Claim>),
    Claim(Claim),
    Wait,
    Idle(Instant),
}

impl State {
    /// How many further deliveries there may be, and when the next lease expires.
    fn room(&mut self, most: usize, now: Instant) -> (usize, Option<Instant>) {
        self.held.retain(|_, until| *until > now);
        (most.saturating_sub(self.held.len()), self.held.values().min().copied())
    }

    fn claim(&mut self, room: usize, now: Instant) -> Claim {
        let lives = now - self.lived > SIGN;
        if lives {
            self.lived = now;
        }
        let is_repeated = self.failures > 0;
        (self.is_claiming, self.claims) = (true, self.claims + u64::from(!is_repeated));
        Claim { number: self.claims, most: self.batch.min(room), lives, is_repeated }
    }
}

impl Inner {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> Step {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(gap) = state.gaps.pop_front() {
            return Step::Return(Ok(Err(gap)), None);
        }
        if let Some((_, item)) = state.ready.pop_front() {
            let ahead = self.ahead(&mut state, now);
            state.returned = now;
            return Step::Return(Ok(Ok(item)), ahead);
        }
        if let Some(ended) = &state.ended {
            return Step::Return(Err(ended.clone()), None);
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
        Step::Claim(state.claim(room, now))
    }

    /// A claim of what comes next, while as many events as it asks for are still to be returned. One after a failure waits.
    fn ahead(&self, state: &mut State, now: Instant) -> Option<Claim> {
        let is_quick = now - state.returned < QUICK && state.has_more && state.failures == 0;
        if !is_quick || state.is_claiming || state.has_left || state.ready.len() > state.batch {
            return None;
        }
        let (room, _) = state.room(self.options.max_in_flight, now);
        let batch = (state.batch * 2).min(BATCH);
        if room < batch {
            return None;
        }
        state.batch = batch;
        Some(state.claim(room, now))
    }

    /// Gives back what was claimed and not asked for, of one claim or of all.
    pub(super) fn give_back(self: &Arc<Self>, claim: Option<u64>) {
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

    pub(super) async fn settle(&self, batch: Vec<(Receipt, Act)>) -> Vec<Result<(), BusError>> {
        let mut results = Vec::with_capacity(batch.len());
        for part in batch.chunks(SETTLED) {
            let mut call = of_group(&SETTLE_SCRIPT, &self.shared.keys, &self.group);
            call.number(self.shared.dead_letters);
            for alike in part.chunk_by(|(one, act), (next, other)| one.token == next.token && act == other) {
                let [(first, act), ..] = alike else { continue };
                let (name, with) = act.parts();
                call.arg(&*first.token).arg(name).arg(with).number(alike.len());
                for (receipt, _) in alike {
                    call.arg(&*receipt.id);
                }
            }
            let settled = self.shared.commands.invoke(&call).await;
            let numbers = |lost| items(lost).iter().map(number).collect::<HashSet<_>>();
            let settled = settled.map(numbers);
            let lost = |receipt: &Receipt| BusError::LeaseLost { event_id: receipt.event_id.to_string() };
            let mut state = self.state();
            for (number, (receipt, act)) in (1..).zip(part) {
                let result = match &settled {
                    Ok(numbers) if numbers.contains(&number) => Err(lost(receipt)),
                    Ok(_) => Ok(()),
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
            data: joined.data,
            gaps: joined.gap.into_iter().collect(),
            ready: VecDeque::new(),
            held: HashMap::new(),
            claims: 0,
            is_claiming: false,
            failures: 0,
            is_busy: false,
            has_more: false,
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
                Step::Return(result, ahead) => {
                    if let Some(claim) = ahead {
                        tokio::spawn(claim::run(self.inner.clone(), claim));
                    }
                    return result;
                }
                Step::Claim(claim) => {
                    changed.mark_unchanged();
                    tokio::spawn(claim::run(self.inner.clone(), claim));
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

    fn name(&self) -> String {
        self.inner.name.clone()
    }

    fn leave(&self) {
        self.inner.state().has_left = true;
        self.inner.give_back(None);
        let inner = self.inner.clone();
        spawn(async move {
            let mut call = of_group(&STATUS_SCRIPT, &inner.shared.keys, &inner.group);
            call.number(inner.shared.dead_letters).arg(&inner.name);
            drop(inner.shared.commands.invoke(&call).await);
        });
    }
}
