//! A durable bus without capabilities, built on `bus::engine` as by an author outside the crate.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use octollm_core::bus::engine::ConsumerEngine;
use octollm_core::bus::{
    BusError, Capability, ConsumeOptions, Consumer, DeadLetter, DurableBus, EventBus, Gap, GroupStatus,
    MemoryBus, Nack, Overflow, Subscription,
};
use octollm_core::event::{Event, Pattern};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Delivers an event again that was not acknowledged within the lease. Settles in batches, and has no capabilities.
#[derive(Clone, Default)]
pub(crate) struct PlainBus {
    live: MemoryBus,
    groups: Arc<Mutex<HashMap<String, Arc<Group>>>>,
}

struct Group {
    pattern: Pattern,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    last: u64,
    ready: VecDeque<(u64, Queued)>,
    out: BTreeMap<u64, Out>,
    members: u64,
    expired: u64,
    dead: Vec<DeadLetter>,
    /// Sizes of the batches settled.
    batches: Vec<usize>,
    removed: bool,
}

#[derive(Clone)]
struct Queued {
    event: Event,
    expires: Option<Instant>,
}

/// A delivery that is not settled.
struct Out {
    until: Instant,
    member: u64,
    queued: Queued,
}

impl PlainBus {
    fn slot(&self, group: &str) -> Result<Arc<Group>, BusError> {
        let groups = self.groups.lock().unwrap();
        groups.get(group).cloned().ok_or_else(|| BusError::UnknownGroup { group: group.to_owned() })
    }

    /// Sizes of the batches in which deliveries were settled.
    #[allow(dead_code, reason = "one of the test programs with this bus reads them")]
    pub(crate) fn batches(&self, group: &str) -> Vec<usize> {
        self.slot(group).unwrap().state().batches.clone()
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn push(&self, event: Event, expires: Option<Instant>) {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.ready.push_back((number, Queued { event, expires }));
        self.changed.notify_waiters();
    }
}

#[async_trait]
impl EventBus for PlainBus {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        let limit = self.max_event_bytes();
        if event.size() > limit {
            return Err(BusError::TooLarge { size: event.size(), limit });
        }
        for group in self.groups.lock().unwrap().values() {
            if group.pattern.matches(event.channel()) {
                let left = event.expires_at().map(|at| at.duration_since(jiff::Timestamp::now()));
                let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
                // A time that is too far away never comes.
                let expires = left.and_then(|left| Instant::now().checked_add(left));
                group.push(event.clone(), expires);
            }
        }
        self.live.publish(event).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.live.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        &[]
    }

    fn max_event_bytes(&self) -> usize {
        self.live.max_event_bytes()
    }
}

#[async_trait]
impl DurableBus for PlainBus {
    async fn consume(
        &self,
        group: &str,
        pattern: Pattern,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        options.check()?;
        if options.from_start {
            return Err(BusError::Unsupported { capability: Capability::History });
        }
        let make = || Arc::new(Group { pattern, state: Mutex::default(), changed: Notify::new() });
        let group = Arc::clone(self.groups.lock().unwrap().entry(group.to_owned()).or_insert_with(make));
        let id = {
            let mut state = group.state();
            state.members += 1;
            state.members
        };
        Consumer::batched(Member { group, options, id }, options.lease, 64)
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        let slot = self.slot(group)?;
        let (state, mut status) = (slot.state(), GroupStatus::default());
        (status.pending, status.waiting) = (state.out.len(), state.ready.len());
        (status.dead_letters, status.expired) = (state.dead.len(), state.expired);
        Ok(status)
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        let Some(slot) = self.groups.lock().unwrap().remove(group) else { return Ok(false) };
        slot.state().removed = true;
        slot.changed.notify_waiters();
        Ok(true)
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        let dead = self.slot(group)?.state().dead.clone();
        let from = after.and_then(|after| dead.iter().position(|letter| letter.entry == after));
        Ok(dead.into_iter().skip(from.map_or(0, |from| from + 1)).take(limit).collect())
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        let slot = self.slot(group)?;
        let found = slot.state().dead.iter().position(|letter| letter.entry == entry);
        let unknown = || BusError::UnknownDeadLetter { entry: entry.to_owned() };
        let letter = slot.state().dead.remove(found.ok_or_else(unknown)?);
        slot.push(letter.event.unwrap().without_expiry(), None);
        Ok(())
    }
}

struct Member {
    group: Arc<Group>,
    options: ConsumeOptions,
    id: u64,
}

impl Member {
    /// The next event, or the time until which to wait for one.
    fn take(&self) -> Result<Result<(u64, Event), Option<Instant>>, BusError> {
        let (mut state, now) = (self.group.state(), Instant::now());
        if state.removed {
            return Err(BusError::UnknownGroup { group: "removed".to_owned() });
        }
        let expired: Vec<u64> =
            state.out.iter().filter(|(_, out)| out.until <= now).map(|(number, _)| *number).collect();
        for number in expired {
            let out = state.out.remove(&number).unwrap();
            state.ready.push_back((number, out.queued));
        }
        let next_expiry = state.out.values().map(|out| out.until).min();
        let held = state.out.values().filter(|out| out.member == self.id).count();
        if held >= self.options.max_in_flight {
            return Ok(Err(next_expiry));
        }
        let (number, queued) = loop {
            let Some((number, queued)) = state.ready.pop_front() else { return Ok(Err(next_expiry)) };
            if queued.expires.is_none_or(|at| at > now) {
                break (number, queued);
            }
            state.expired += 1;
        };
        let event = queued.event.clone();
        state.out.insert(number, Out { until: now + self.options.lease, member: self.id, queued });
        Ok(Ok((number, event)))
    }
}

#[async_trait]
impl ConsumerEngine for Member {
    type Receipt = u64;

    async fn next(&self) -> Result<Result<(Event, u32, u64), Gap>, BusError> {
        loop {
            let changed = self.group.changed.notified();
            match self.take()? {
                Ok((number, event)) => return Ok(Ok((event, 1, number))),
                Err(None) => changed.await,
                Err(Some(until)) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    async fn settle(&self, batch: Vec<(u64, Result<(), Nack>)>) -> Vec<Result<(), BusError>> {
        // As with a broker, a call takes a while, and meanwhile more is settled.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut state = self.group.state();
        state.batches.push(batch.len());
        let results = batch.into_iter().map(|(number, outcome)| {
            if let Err(Nack::Retry { after: Some(_), .. }) = outcome {
                return Err(BusError::Unsupported { capability: Capability::DelayedNack });
            }
            // Not fenced: a stale delivery can settle the event too.
            let Some(Out { queued, .. }) = state.out.remove(&number) else { return Ok(()) };
            match outcome {
                Err(Nack::DeadLetter { reason }) => {
                    state.dead.push(DeadLetter::new(number.to_string(), Ok(queued.event), reason, 1));
                }
                Err(Nack::Retry { .. } | Nack::Release) => state.ready.push_back((number, queued)),
                _ => {}
            }
            Ok(())
        });
        let results = results.collect();
        self.group.changed.notify_waiters();
        results
    }

    async fn extend(&self, batch: Vec<(u64, Duration)>) -> Vec<Result<(), BusError>> {
        let denied = |_| Err(BusError::Unsupported { capability: Capability::LeaseExtension });
        batch.into_iter().map(denied).collect()
    }

    async fn close(&self) -> Result<(), BusError> {
        loop {
            let changed = self.group.changed.notified();
            let Some(until) = self.group.state().out.values().map(|out| out.until).max() else {
                return Ok(());
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(until) => return Ok(()),
            }
        }
    }

    fn leave(&self) {}
}
