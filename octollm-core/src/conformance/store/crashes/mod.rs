//! One program, whose brain meets its fate at every operation on the outside.

mod doomed;
mod program;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use tower::Layer;

use self::{
    doomed::{Doomed, Fate, Moment, Sight, Turn},
    program::{Accountant, Audit, Bookkeeping, Settle},
};
use super::{
    Stores,
    fixture::{Store, pair},
};
use crate::{
    Context,
    brain::Brain,
    bus::{EventBus, MemoryBus, Overflow, Signal},
    conformance::support::WAIT,
    contract::{Keys, TaskContract},
    orchestrator::Orchestrator,
    parts::{Caller, ContextParts},
    resilience::RetryLayer,
    store::TaskStore,
    task::{Submission, TaskQuery, TaskRecord, TaskStatus},
    transport::from_service,
};

/// So many tasks live at a time, each with a contract of its own.
const LANES: u64 = 12;
/// Long enough for a slow machine to renew it.
const LEASE: Duration = Duration::from_secs(2);
/// The program and its brain have more operations than `FEWEST`. Those after `MOST` are repeated ones of the brain alone.
const FEWEST: u64 = 40;
const MOST: u64 = 96;

pub(super) async fn a_brain_that_dies_at_any_operation_loses_nothing_and_repeats_nothing(subject: &Stores) {
    let ends = every_moment(&World::new(subject).await, Turn::Dies, |_| Moment::Never, Keys::None).await;
    // It fails between the record that the booking begins and that of its answer.
    let of = |status: &str| ends.get(status).copied().unwrap_or_default();
    assert!(of("failed") > 0 && of("completed") > of("failed"), "{ends:?}");
}

pub(super) async fn a_brain_that_dies_at_any_operation_completes_where_arms_honour_keys(subject: &Stores) {
    let ends = every_moment(&World::new(subject).await, Turn::Dies, |_| Moment::Never, Keys::Shared).await;
    assert!(!ends.contains_key("failed"), "{ends:?}");
}

pub(super) async fn two_brains_that_die_one_after_the_other_lose_nothing_and_repeat_nothing(
    subject: &Stores,
) {
    // One world: relays of the first pass may publish events of the second one.
    let world = World::new(subject).await;
    every_moment(&world, Turn::Dies, |number| Moment::After(number * 3 % 50), Keys::None).await;
    every_moment(&world, Turn::Dies, |number| Moment::Before(number * 7 % 50), Keys::Shared).await;
}

pub(super) async fn a_brain_that_stalls_at_any_operation_and_goes_on_later_changes_nothing(subject: &Stores) {
    every_moment(&World::new(subject).await, Turn::Stalls, |_| Moment::Never, Keys::None).await;
}

pub(super) async fn a_brain_survives_the_failure_of_any_operation(subject: &Stores) {
    let ends = every_moment(&World::new(subject).await, Turn::Fails, |_| Moment::Never, Keys::Shared).await;
    assert!(!ends.contains_key("failed"), "a brain repeats what failed: {ends:?}");
}

/// The ids of the events of each type, by their task.
type Published = Arc<Mutex<HashMap<String, BTreeMap<String, BTreeSet<String>>>>>;

/// What is left when brains die.
#[derive(Clone)]
struct World {
    store: Store,
    other: Store,
    bus: MemoryBus,
    published: Published,
}

impl World {
    async fn new(subject: &Stores) -> Self {
        let (store, other) = pair(subject).await;
        let (bus, published) = (MemoryBus::new(), Published::default());
        let all = "events:task:*".parse().expect("a valid pattern");
        let mut events =
            bus.subscribe(all, Overflow::DropOldest(1 << 20)).await.expect("the bus is in memory");
        let world = Self { store, other, bus, published };
        let seen = world.published.clone();
        tokio::spawn(async move {
            while let Some(signal) = events.next().await {
                let Signal::Event(event) = signal else { continue };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                let of_task = seen.entry(event.subject().unwrap_or_default().to_owned()).or_default();
                of_task.entry(event.event_type().to_owned()).or_default().insert(event.id().to_owned());
            }
        });
        world
    }

    /// The number of different events of each type of a task.
    fn events(&self, record: &TaskRecord) -> BTreeMap<String, usize> {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let of_task = published.get(record.id().as_str());
        let mut events: BTreeMap<_, _> =
            of_task.into_iter().flatten().map(|(name, ids)| (name.clone(), ids.len())).collect();
        events.remove("task.progress");
        events
    }
}

/// The events that a finished task must have had: one for each change.
fn expected_events(record: &TaskRecord) -> BTreeMap<String, usize> {
    let attempts = record.attempt() as usize;
    let failed = attempts - usize::from(record.status() == TaskStatus::Completed);
    let all = [
        ("task.queued", attempts),
        ("task.started", record.run() as usize),
        ("task.failed", failed),
        ("task.completed", attempts - failed),
    ];
    all.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
}

/// Lives one life for each moment, until one ends before its moment has come. Returns how many ended with which status.
async fn every_moment(
    world: &World,
    turn: Turn,
    next: fn(u64) -> Moment,
    keys: Keys,
) -> BTreeMap<String, usize> {
    let lanes = (0..LANES).map(|lane| {
        let world = world.clone();
        async move {
            match lane {
                0 => in_lane::<1>(world, turn, next, keys).await,
                1 => in_lane::<2>(world, turn, next, keys).await,
                2 => in_lane::<3>(world, turn, next, keys).await,
                3 => in_lane::<4>(world, turn, next, keys).await,
                4 => in_lane::<5>(world, turn, next, keys).await,
                5 => in_lane::<6>(world, turn, next, keys).await,
                6 => in_lane::<7>(world, turn, next, keys).await,
                7 => in_lane::<8>(world, turn, next, keys).await,
                8 => in_lane::<9>(world, turn, next, keys).await,
                9 => in_lane::<10>(world, turn, next, keys).await,
                10 => in_lane::<11>(world, turn, next, keys).await,
                _ => in_lane::<12>(world, turn, next, keys).await,
            }
        }
    });
    let mut lanes: tokio::task::JoinSet<_> = lanes.collect();
    // The auditors live on, and publish what waits.
    let (mut records, mut auditors) = (Vec::new(), Vec::new());
    while let Some(lane) = lanes.join_next().await {
        let (of_lane, auditor) = lane.unwrap_or_else(|_| panic!("{turn:?}, with keys {keys:?}"));
        records.extend(of_lane);
        auditors.push(auditor);
    }
    let mut ends = BTreeMap::new();
    for record in &records {
        *ends.entry(record.status().to_string()).or_default() += 1;
        let (end, expected) = (Instant::now() + WAIT, expected_events(record));
        while world.events(record) != expected && Instant::now() < end {
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(
            world.events(record),
            expected,
            "each change has one event, which is published: {record:?}"
        );
    }
    ends
}

/// The lives of a lane, one after the other. Returns the tasks at their ends, and the auditor.
async fn in_lane<const LANE: u32>(
    world: World,
    turn: Turn,
    next: fn(u64) -> Moment,
    keys: Keys,
) -> (Vec<TaskRecord>, Brain) {
    let auditor = Brain::builder().arm::<Audit<LANE>>(Accountant).arms(Bookkeeping::of_auditor());
    let auditor = auditor.store(world.other.clone()).bus(world.bus.clone()).lease(LEASE);
    let auditor = auditor.build().expect("its settings are valid");
    recovered(&auditor).await;
    let mut records = Vec::new();
    for number in (u64::from(LANE) - 1..).step_by(LANES as usize) {
        let mut met = false;
        for moment in [Moment::Before(number), Moment::After(number)] {
            let life = Life::<LANE> {
                world: world.clone(),
                arms: Bookkeeping::new::<LANE>(keys, auditor.clone()),
                sight: Arc::default(),
                turn,
                owner: Caller::known(format!("{moment:?} {keys:?}"), ["ledger:*"]),
            };
            let lived = AssertUnwindSafe(life.live(moment, next(number))).catch_unwind().await;
            let (record, came) =
                lived.unwrap_or_else(|_| panic!("{turn:?} {moment:?}, then {:?}", next(number)));
            records.extend(record);
            met |= came;
        }
        assert!(met || number > FEWEST, "the program has only {number} operations");
        if !met || number > MOST {
            break;
        }
    }
    (records, auditor)
}

/// Has a brain claim what is free. A brain gives a claim a third of its short lease, which a store on a busy machine may exceed.
async fn recovered(brain: &Brain) {
    let end = Instant::now() + WAIT;
    while let Err(failure) = brain.recover().await {
        assert!(Instant::now() < end, "the store is not available: {failure:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The life of one task.
struct Life<const LANE: u32> {
    world: World,
    arms: Bookkeeping,
    sight: Arc<Mutex<Sight>>,
    turn: Turn,
    owner: Caller,
}

impl<const LANE: u32> Life<LANE> {
    fn doomed<T>(&self, fate: &Arc<Fate>, inner: T) -> Doomed<T> {
        Doomed { fate: fate.clone(), inner, sight: self.sight.clone() }
    }

    fn brain(&self, fate: &Arc<Fate>, store: &Store) -> Brain {
        let arms = Arc::new(self.doomed(fate, self.arms.clone()));
        // Each attempt of a call is an operation.
        let service = RetryLayer::new().retries(0).layer(arms.clone());
        let builder = Brain::builder().arm::<Settle<LANE>>(Accountant).arms(from_service(service, arms));
        let builder = builder.store(self.doomed(fate, store.clone())).lease(LEASE);
        builder.bus(self.doomed(fate, self.world.bus.clone())).build().expect("its settings are valid")
    }

    fn context(&self) -> Context {
        let mut parts = ContextParts::new();
        parts.caller = self.owner.clone();
        Context::from_parts(parts, Arc::new(()))
    }

    async fn record(&self) -> Option<Arc<TaskRecord>> {
        let query = TaskQuery::default().limit(100);
        let of_owner = self.world.store.list(&query, Some(&self.owner)).await.expect("tasks are listed");
        of_owner.into_iter().find(|record| *record.contract() == Settle::<LANE>::SPEC.reference())
    }

    /// The task once it has ended, if it does before `gone` is true. Repairs it and has it run again at this brain.
    async fn end(&self, brain: &Brain, gone: impl Fn() -> bool) -> Option<TaskRecord> {
        let limit = Instant::now() + WAIT;
        loop {
            let record = self.record().await;
            if let Some(record) = record.filter(|record| record.status().is_finished()) {
                let Some(step) = self.arms.repair(record.task()) else {
                    return Some(TaskRecord::clone(&record));
                };
                self.sight.lock().unwrap_or_else(PoisonError::into_inner).forget(&step);
                let (brain, id, cx) = (brain.clone(), record.id().clone(), self.context());
                // It may not return, and may fail after it took effect.
                let rerun = tokio::spawn(async move { brain.rerun(&id, None, &cx).await });
                while !rerun.is_finished() && !gone() {
                    assert!(Instant::now() < limit, "a rerun returns within {WAIT:?}");
                    sleep(Duration::from_millis(20)).await;
                }
            }
            if gone() {
                return None;
            }
            assert!(Instant::now() < limit, "the task ends within {WAIT:?}: {:?}", self.record().await);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the program by a brain that meets its fate at this moment, by another one that dies at a moment of its own, and by
    /// one that lives. Returns the task, and whether the first moment came; no task where none was stored.
    async fn live(&self, moment: Moment, next: Moment) -> (Option<TaskRecord>, bool) {
        let (fate, refused) = (Fate::new(self.turn, moment), Arc::new(AtomicBool::new(false)));
        let first = self.brain(&fate, &self.world.store);
        let mut brains = vec![(first.clone(), fate.clone())];
        let submitted = tokio::spawn({
            let (first, cx, refused) = (first.clone(), self.context(), refused.clone());
            async move {
                let submission = Submission::of(&Settle::<LANE> { number: 5 }).expect("a valid input");
                refused.store(first.submit(submission, &cx).await.is_err(), Ordering::SeqCst);
            }
        });
        let mut record = self.end(&first, || fate.is_halted() || refused.load(Ordering::SeqCst)).await;
        if fate.is_halted() {
            fate.settled().await;
        }
        if next != Moment::Never && self.record().await.is_some() {
            let fate = Fate::new(Turn::Dies, next);
            let second = self.brain(&fate, &self.world.other);
            brains.push((second.clone(), fate.clone()));
            tokio::spawn({
                let second = second.clone();
                async move { second.recover().await }
            });
            record = self.end(&second, || fate.is_halted()).await;
        }
        let lives = Fate::new(Turn::Dies, Moment::Never);
        let last = self.brain(&lives, &self.world.other);
        brains.push((last.clone(), lives));
        recovered(&last).await;
        if self.record().await.is_some() {
            record = self.end(&last, || false).await;
        }
        if self.turn == Turn::Stalls {
            // Its lease expired before another brain had the task.
            fate.release();
            sleep(LEASE).await;
            let later = self.record().await;
            assert!(record.is_none() || later.as_deref() == record.as_ref(), "{record:?} became {later:?}");
            if later.is_some() {
                record = self.end(&last, || false).await;
            }
        }
        submitted.abort();
        self.sight.lock().unwrap_or_else(PoisonError::into_inner).check();
        if let Some(record) = &record {
            self.arms.check(record.task());
        }
        let came = fate.is_met();
        for (brain, fate) in brains {
            // One that lives would take tasks of the lane's next life.
            if !fate.is_halted() {
                let _ = timeout(WAIT / 6, brain.close()).await;
            }
        }
        (record, came)
    }
}
