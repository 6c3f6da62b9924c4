//! What the attacks on brains share: a program, its arms, and the invariants.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use octollm::{
    brain::Brain,
    bus::{Overflow, Signal, Subscription},
    card::ArmCard,
    dispatcher::Dispatcher,
    id::TaskId,
    orchestrator::TaskUpdates,
    prelude::*,
    store::{MemoryStore, TaskStore},
    task::TaskQuery,
    task::{TaskRecord, TaskUpdate},
    transport::{Call, Reply, Transport},
};
use tokio::time::{Instant, sleep, timeout};

use super::faulty::Dice;
use crate::frame::{Broken, counted, ensure};

/// Doubles a number.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "ledger.double", output = u64, idempotent)]
pub(super) struct Double {
    pub(super) number: u64,
}

/// Charges for a step of a task, which must not happen twice.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "ledger.charge", output = u64)]
struct Charge {
    task: String,
    step: u64,
}

/// Calls both, one by one and in a batch.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "attack.journey", output = u64, timeout = "60s")]
pub(super) struct Journey {
    pub(super) number: u64,
}

impl Journey {
    /// What its arm returns.
    fn result(&self) -> u64 {
        2 * (3 * self.number + 3) + 6 + 12
    }
}

pub(super) struct Traveller;

#[async_trait]
impl Arm<Journey> for Traveller {
    async fn execute(&self, input: Journey, cx: &Context) -> Result<u64, ArmError> {
        let task = cx.task_id().map(ToString::to_string).unwrap_or_default();
        let mut sum = 0;
        for step in 0..3 {
            sum += cx.call(Double { number: input.number + step }).await?;
            sum += cx.call(Charge { task: task.clone(), step }).await?;
            cx.progress_steps(step, 3);
        }
        let doubled = cx.call_all((0..4).map(|number| Double { number })).at_once(2).await?;
        Ok(sum + doubled.into_iter().sum::<u64>())
    }
}

/// The arms: they outlive every brain.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Books>);

struct Books {
    arm: Dispatcher,
    dice: Dice,
    /// Calls of these fail, in percent.
    failures: AtomicU64,
    charges: Charges,
    running: AtomicU64,
}

/// How often each step of a task was charged.
type Charges = Arc<Mutex<HashMap<(String, u64), u64>>>;

struct Clerk(Charges);

#[async_trait]
impl Arm<Double> for Clerk {
    async fn execute(&self, input: Double, _: &Context) -> Result<u64, ArmError> {
        Ok(input.number * 2)
    }
}

#[async_trait]
impl Arm<Charge> for Clerk {
    async fn execute(&self, input: Charge, _: &Context) -> Result<u64, ArmError> {
        let mut charges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *charges.entry((input.task, input.step)).or_default() += 1;
        Ok(input.step + 1)
    }
}

impl Ledger {
    pub(super) fn new(dice: &Dice, failures: u64) -> Self {
        let (mut arm, charges) = (Dispatcher::new("ledger"), Charges::default());
        arm.serve::<Double>(Clerk(charges.clone()));
        arm.serve::<Charge>(Clerk(charges.clone()));
        Self::with(arm, charges, dice, failures)
    }

    /// Any arm, with random pauses before its calls.
    pub(super) fn of(arm: Dispatcher, dice: &Dice, failures: u64) -> Self {
        Self::with(arm, Charges::default(), dice, failures)
    }

    fn with(arm: Dispatcher, charges: Charges, dice: &Dice, failures: u64) -> Self {
        let (running, dice) = (AtomicU64::new(0), dice.clone());
        Self(Arc::new(Books { arm, dice, failures: AtomicU64::new(failures), charges, running }))
    }

    pub(super) fn heal(&self) {
        self.0.failures.store(0, Ordering::Relaxed);
    }

    /// Calls that run now.
    pub(super) fn running(&self) -> u64 {
        self.0.running.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Transport for Ledger {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        struct Running<'a>(&'a AtomicU64);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.0.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&self.0.running);
        self.0.dice.pause(4).await;
        let fails = |failure| CallError::new(call.contract.clone(), failure);
        if call.contract.name() != "ledger.charge"
            && self.0.dice.below(100) < self.0.failures.load(Ordering::Relaxed)
        {
            return Err(fails(octollm::error::Failure::new(ErrorKind::Unavailable, "the attack")));
        }
        let mut cx = Context::from_parts(call.parts, Arc::new(()));
        let result = self.0.arm.execute(&call.contract, &call.input, &mut cx).await;
        self.0.dice.pause(4).await;
        match result {
            Ok(output) => Ok(Reply::new(output, "ledger", "in-process")),
            Err(error) => Err(CallError::new(call.contract, error.into_failure()).with_arm("ledger")),
        }
    }

    async fn cards(&self) -> Vec<ArmCard> {
        vec![self.0.arm.card().clone()]
    }
}

/// A store and arms that outlive brains, and what was done to the tasks.
pub(super) struct Scene {
    pub(super) ledger: Ledger,
    pub(super) store: Arc<MemoryStore>,
    events: Subscription,
    rerun: Mutex<HashSet<TaskId>>,
}

/// How long all tasks together may take to end once nothing fails any more.
const END: Duration = Duration::from_secs(60);

impl Scene {
    /// On this bus, with so many percent of calls that fail.
    pub(super) async fn new(dice: &Dice, bus: &impl EventBus, failures: u64) -> Result<Self, Broken> {
        let events = bus.subscribe("events:task:*".parse()?, Overflow::DropNewest(1 << 20)).await?;
        let (store, rerun) = Default::default();
        Ok(Self { ledger: Ledger::new(dice, failures), store, events, rerun })
    }

    /// One of the brains of the scene.
    pub(super) fn brain(
        &self,
        store: impl TaskStore,
        bus: impl EventBus,
        lease: Duration,
    ) -> Result<Brain, Broken> {
        let brain =
            Brain::builder().arm::<Journey>(Traveller).arms(self.ledger.clone()).store(store).bus(bus);
        Ok(brain.lease(lease).build()?)
    }

    /// Notes that this task may end more than once.
    pub(super) fn note_rerun(&self, id: &TaskId) {
        self.rerun.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
    }

    pub(super) async fn rerun(&self, brain: &Brain, id: &TaskId) {
        self.note_rerun(id);
        let _ = brain.rerun(id, None, &Context::detached()).await;
    }

    /// Waits until every task has ended, and checks them all: what a store says of each is what its events say, none was
    /// charged twice, and no call runs on. Returns how they ended.
    pub(super) async fn ended(&mut self, ids: &[TaskId]) -> Result<String, Broken> {
        let begun = Instant::now();
        let mut statuses = HashMap::new();
        for id in ids {
            let record = loop {
                match self.store.get(id).await?.filter(|record| record.status().is_finished()) {
                    Some(record) => break record,
                    None if begun.elapsed() < END => sleep(Duration::from_millis(10)).await,
                    None => {
                        return Err(format!("task {id} does not end: {:?}", self.store.get(id).await?).into());
                    }
                }
            };
            statuses.insert(id.clone(), record);
        }
        self.check_events(&statuses).await?;
        // A submission that failed may have stored its task all the same: it ends too.
        for status in [TaskStatus::Queued, TaskStatus::Processing] {
            let query = TaskQuery::default().status(status).limit(10);
            loop {
                let left = self.store.list(&query, None).await?;
                let Some(first) = left.first() else { break };
                ensure!(begun.elapsed() < END, "{} tasks are left: {first:?}", left.len());
                sleep(Duration::from_millis(10)).await;
            }
        }
        while self.ledger.running() > 0 {
            ensure!(begun.elapsed() < END, "{} calls run on", self.ledger.running());
            sleep(Duration::from_millis(10)).await;
        }
        let charges = self.ledger.0.charges.lock().unwrap_or_else(PoisonError::into_inner);
        let twice: Vec<_> = charges.iter().filter(|(_, count)| **count > 1).collect();
        ensure!(twice.is_empty(), "charged twice: {twice:?}");
        Ok(counted(statuses.values().map(|record| record.status())))
    }

    /// The events of the ends: each at least once, the last of a task that of its status, and no other unless it was run again.
    async fn check_events(&mut self, statuses: &HashMap<TaskId, Arc<TaskRecord>>) -> Result<(), Broken> {
        let (mut ends, mut ids) = (HashMap::<String, Vec<String>>::new(), HashSet::new());
        let is_there = |ends: &HashMap<String, Vec<String>>| {
            statuses.iter().all(|(id, record)| {
                let last = ends.get(&id.to_string()).and_then(|ends| ends.last());
                last.is_some_and(|last| *last == format!("task.{}", record.status()))
            })
        };
        let begun = Instant::now();
        while !is_there(&ends) {
            ensure!(begun.elapsed() < END, "events are missing, or others than the store has: {ends:?}");
            let Ok(Some(signal)) = timeout(Duration::from_millis(100), self.events.next()).await else {
                continue;
            };
            let Signal::Event(event) = signal else { return Err(format!("{signal:?}").into()) };
            let is_end = ["task.completed", "task.failed", "task.cancelled"].contains(&event.event_type());
            if is_end && ids.insert(event.id().to_owned()) {
                let task = event.subject().unwrap_or_default().to_owned();
                ends.entry(task).or_default().push(event.event_type().to_owned());
            }
        }
        let rerun = self.rerun.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, record) in statuses {
            let found = ends.get(&id.to_string()).map_or(0, Vec::len);
            ensure!(found == 1 || rerun.contains(id), "{found} ends of task {id}");
            let task = record.task();
            if let Some(result) = &task.result {
                let input: Journey = record.input().read()?;
                ensure!(
                    result.output.read::<u64>()? == input.result(),
                    "task {id} returned {:?}",
                    result.output
                );
            }
        }
        Ok(())
    }

    pub(super) fn was_rerun(&self, id: &TaskId) -> bool {
        self.rerun.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// Follows a task to its last update, and returns the status in it; `None` where its brain ended before.
pub(super) async fn last_status(mut updates: TaskUpdates) -> Option<TaskStatus> {
    let (mut last, mut seq) = (None, 0);
    while let Some(update) = updates.next().await {
        // A number twice or backwards would show as no status at all.
        if update.seq() <= seq {
            return Some(TaskStatus::Unknown);
        }
        seq = update.seq();
        if let TaskUpdate::Status { status, .. } = update {
            last = Some(status);
        }
    }
    last.filter(|status| status.is_finished())
}
