//! The stock orchestrator, which runs arms as tasks.
//!
//! What a brain runs is an [`Arm`] like any other, whose calls are journaled. If the process dies, another
//! brain on the same store claims the task and runs the arm again; calls that were answered return from the journal. An arm is
//! therefore written as plain code, and becomes durable by running under a brain.

mod arm;
mod grants;
mod meters;
mod journal;
mod relay;
mod replay;
mod run;
mod scheduler;
mod tasks;
mod updates;

use std::{
    fmt,
    future::Future,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use self::{
    meters::Meters,
    relay::Relay,
    scheduler::{Running, Stop},
};
use crate::{
    arm::Arm,
    bus::{EventBus, MemoryBus},
    clock::{self, Clock},
    contract::{ContractRef, TaskContract},
    deadline::Deadline,
    dispatcher::Dispatcher,
    error::{ConfigError, Failure},
    id::{RequestId, is_arm_id},
    panics::{Panicked, caught},
    store::{MemoryStore, SideEffects, StoreError, TaskStore},
    task::TaskRecord,
    transport::Transport,
};

/// Accepts tasks, runs an arm for each, journals its calls, publishes events, and stores the tasks. A clone is the same
/// brain.
///
/// Tasks run in the background, on the tokio runtime of the first submission. While that runtime is alive and nobody drives it, a task
/// that is submitted from another runtime waits. A brain whose last clone is dropped runs its tasks to their end;
/// [`close`](Self::close) hands them back, for another brain to claim.
#[derive(Clone)]
pub struct Brain(Arc<Inner>);

struct Inner {
    /// The name of this brain among those on the same store.
    holder: String,
    dispatcher: Arc<Dispatcher>,
    contracts: Vec<ContractRef>,
    transport: Arc<dyn Transport>,
    bus: Arc<dyn EventBus>,
    store: Arc<dyn TaskStore>,
    clock: Clock,
    limits: Limits,
    /// Whether no other brain can have the store.
    is_alone: bool,
    meters: Meters,
    running: Running,
    relay: Arc<Relay>,
    claiming: tokio::sync::Mutex<()>,
    /// Whether the loops run.
    started: AtomicBool,
}

/// How long a brain that closes waits for the bus.
const LAST_EVENTS: Duration = Duration::from_secs(2);

impl Inner {
    fn new(
        dispatcher: Arc<Dispatcher>,
        transport: Arc<dyn Transport>,
        bus: Arc<dyn EventBus>,
        store: Arc<dyn TaskStore>,
        clock: Clock,
        limits: Limits,
        is_alone: bool,
    ) -> Self {
        let holder = format!("{}-{}", dispatcher.card().arm_id, RequestId::new());
        let relay = Relay::new(holder.clone(), store.clone(), bus.clone());
        Self {
            holder,
            contracts: dispatcher.specs().map(crate::contract::ContractSpec::reference).collect(),
            meters: Meters::new(&dispatcher.card().arm_id),
            running: Running::new(limits.max_running),
            relay: Arc::new(relay),
            claiming: tokio::sync::Mutex::default(),
            started: AtomicBool::new(false),
            dispatcher,
            transport,
            bus,
            store,
            clock,
            limits,
            is_alone,
        }
    }

    /// Stores a change of a task together with its effects. The relay publishes the events, also where the future is dropped.
    async fn commit(&self, record: TaskRecord, effects: SideEffects) -> Result<(), StoreError> {
        let _wakes = self.relay.wakes();
        limited(self.store.commit(record, effects)).await
    }

    /// The source of its events.
    fn source(&self) -> &str {
        &self.dispatcher.card().arm_id
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.relay.ended.cancel();
    }
}

/// The store is asked at this interval also without a change.
const STORE_INTERVAL: Duration = Duration::from_secs(5);
/// The time limit of an operation of the store.
const STORE_LIMIT: Duration = Duration::from_secs(10);

/// Ends an operation of the store that hangs or panics as one that failed.
async fn limited<T>(operation: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match caught(Deadline::after(STORE_LIMIT).run(operation)).await {
        Ok(Some(answer)) => answer,
        Ok(None) => Err(StoreError::Unavailable(format!("no answer came within {STORE_LIMIT:?}").into())),
        Err(Panicked) => Err(StoreError::Unavailable("it panicked".into())),
    }
}

/// Pause before an operation of the store is tried again, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// After this pause it is not tried again.
const LAST_PAUSE: Duration = Duration::from_millis(1_600);

/// Tries an operation again while the store is not available, for about three seconds.
async fn repeated<T, W>(operation: impl Fn() -> W) -> Result<T, StoreError>
where
    W: Future<Output = Result<T, StoreError>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match limited(operation()).await {
            Err(StoreError::Unavailable(_)) if pause <= LAST_PAUSE => {}
            answer => return answer,
        }
        sleep(pause).await;
        pause *= 2;
    }
}

impl Brain {
    fn of(inner: Inner) -> Self {
        let inner = Arc::new(inner);
        meters::read(&inner);
        Self(inner)
    }

    /// A builder of a brain.
    pub fn builder() -> BrainBuilder {
        BrainBuilder::default()
    }

    /// The bus to which it publishes the events of its tasks.
    pub fn bus(&self) -> &Arc<dyn EventBus> {
        &self.0.bus
    }

    /// The contracts that it runs as tasks. It is an arm of the same contracts.
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.0.dispatcher
    }

    /// The arms that its tasks call.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }

    /// Starts the brain: claims free tasks of its contracts in the store, as many as may run at a time, and publishes events that
    /// wait there. It continues with both in the background. Returns how many tasks it claimed.
    ///
    /// A brain starts by itself at its first submission. Call this for one that continues the tasks of another.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::error::ErrorKind::Unavailable) when the store is not available. The brain tries again in
    /// the background.
    ///
    /// # Cancel safety
    /// Dropping the future loses no task.
    pub async fn recover(&self) -> Result<usize, Failure> {
        scheduler::start(&self.0);
        Ok(scheduler::claim(&self.0).await?)
    }

    /// Stops the brain: accepts no more tasks and no reruns, stops the tasks that run and hands them back to the store, so that
    /// another brain continues them, and publishes the events that wait (for at most 2 s). A second call has no effect.
    ///
    /// Callers that wait for it as an arm receive [`ErrorKind::Unavailable`](crate::error::ErrorKind::Unavailable), and their tasks
    /// are cancelled, except for tasks that were started and may be continued by another brain: those of a
    /// [store](BrainBuilder::store) that was given.
    ///
    /// # Cancel safety
    /// The brain closes also when the future is dropped, and hands its tasks back.
    pub async fn close(&self) {
        self.0.running.close(Stop::Close);
        let ended = self.0.relay.ended.clone().drop_guard();
        self.0.running.idle().await;
        drop(ended);
        if !matches!(timeout(LAST_EVENTS, self.0.relay.drain()).await, Ok(Ok(()))) {
            tracing::warn!(brain = self.0.holder, "events are left in the store");
        }
    }

    /// Stops as a crash would: what runs is dropped and nothing is written.
    #[cfg(feature = "mesh")]
    pub(crate) async fn crash(&self) {
        self.0.relay.crashed.cancel();
        self.0.running.close(Stop::Lost);
        self.0.running.idle().await;
    }

    /// Another brain for the same tasks, on the same store.
    #[cfg(feature = "mesh")]
    pub(crate) fn successor(&self) -> Self {
        let Inner { dispatcher, transport, bus, store, clock, limits, is_alone, .. } = &*self.0;
        let (transport, bus, store) = (transport.clone(), bus.clone(), store.clone());
        let (dispatcher, clock, limits) = (dispatcher.clone(), clock.clone(), limits.clone());
        Self::of(Inner::new(dispatcher, transport, bus, store, clock, limits, *is_alone))
    }
}

impl fmt::Debug for Brain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brain").field("holder", &self.0.holder).field("arm", &self.0.dispatcher).finish()
    }
}

/// Builds a brain: see [`Brain::builder`]. Bus and store are in memory by default.
#[must_use = "a builder does nothing until it builds"]
pub struct BrainBuilder {
    dispatcher: Dispatcher,
    transport: Arc<dyn Transport>,
    bus: Arc<dyn EventBus>,
    /// `None` for one in memory.
    store: Option<Arc<dyn TaskStore>>,
    clock: Clock,
    limits: Limits,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
struct Limits {
    max_running: usize,
    max_queued: usize,
    max_queued_bytes: usize,
    max_task_time: Duration,
    lease: Duration,
    grant_life: Duration,
}

impl Default for BrainBuilder {
    fn default() -> Self {
        Self {
            dispatcher: Dispatcher::new("orchestrator"),
            transport: Arc::new(()),
            bus: Arc::new(MemoryBus::new()),
            store: None,
            clock: Clock::new(clock::now),
            limits: Limits {
                max_running: 256,
                max_queued: 10_000,
                max_queued_bytes: 64 * 1024 * 1024,
                max_task_time: DAY,
                lease: Duration::from_secs(30),
                grant_life: DAY,
            },
        }
    }
}

impl BrainBuilder {
    /// Sets the name of the brain (default `orchestrator`): the source of its events, and its id as an arm, of at most 128
    /// lower-case letters, digits and dashes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.dispatcher.card_mut().arm_id = name.into();
        self
    }

    /// Adds a contract that can be submitted as a task, and the arm that runs it.
    pub fn arm<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.dispatcher.serve::<C>(arm);
        self
    }

    /// Sets the arms that its tasks may call.
    pub fn arms(mut self, transport: impl Transport) -> Self {
        self.transport = Arc::new(transport);
        self
    }

    /// Sets the bus to which it publishes the events of its tasks. Events that the bus does not take wait in the store.
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.bus = Arc::new(bus);
        self
    }

    /// Sets the store of its tasks, which other brains may have as well.
    pub fn store(mut self, store: impl TaskStore) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Sets the clock of its records. The default is the system's, or tokio's where a test has paused that. Leases and deadlines
    /// follow the clock of the store.
    pub fn clock(mut self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(now);
        self
    }

    /// Sets how many tasks run at a time (at least 1, default 256).
    pub fn max_running(mut self, tasks: usize) -> Self {
        self.limits.max_running = tasks;
        self
    }

    /// Sets how many tasks may be queued in the store (at least 1, default 10 000). Further submissions are refused as overloaded; reruns
    /// are not.
    pub fn max_queued(mut self, tasks: usize) -> Self {
        self.limits.max_queued = tasks;
        self
    }

    /// Sets how many bytes the submissions of queued tasks may have (at least 1, default 64 MiB). Further ones are refused as
    /// overloaded.
    pub fn max_queued_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_queued_bytes = bytes;
        self
    }

    /// Sets the longest time limit of a task (more than 0, default 24 hours). A submission that asks for more has this one. A
    /// submission without a time limit has that of its contract.
    pub fn max_task_time(mut self, time: Duration) -> Self {
        self.limits.max_task_time = time;
        self
    }

    /// Sets the lease of a task (100 ms to a day, default 30 s). Another brain may claim the task when its lease expires. A brain
    /// renews a lease after a third of it, and an operation of the store has to take less than that.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.limits.lease = lease;
        self
    }

    /// Sets how long a task may act for the caller that submitted it, or that has run it again (1 s to 10 years, default 24 hours).
    /// A task that an arm submits on behalf of a caller ends with the grant of the task in which the arm works.
    pub fn grant_life(mut self, life: Duration) -> Self {
        self.limits.grant_life = life;
        self
    }

    /// Builds the brain.
    ///
    /// # Errors
    /// A [`ConfigError`] for a name that is no arm id, a limit that is out of its range, or a contract that cannot be run.
    pub fn build(self) -> Result<Brain, ConfigError> {
        if !is_arm_id(&self.dispatcher.card().arm_id) {
            return Err(ConfigError::new(
                "name",
                "is not an arm id of lower-case letters, digits and dashes",
            ));
        }
        self.limits.check()?;
        match self.dispatcher.refused().first() {
            Some(invalid) => Err(invalid.clone()),
            None => Ok(self.assemble()),
        }
    }

    /// Without a check: for the default limits.
    pub(crate) fn assemble(self) -> Brain {
        let Self { dispatcher, transport, bus, store, clock, limits } = self;
        let is_alone = store.is_none();
        let store = store.unwrap_or_else(|| Arc::new(MemoryStore::new()));
        Brain::of(Inner::new(Arc::new(dispatcher), transport, bus, store, clock, limits, is_alone))
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let counts = [
            ("max_running", self.max_running),
            ("max_queued", self.max_queued),
            ("max_queued_bytes", self.max_queued_bytes),
        ];
        if let Some((setting, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::new(setting, "is 0"));
        }
        if self.max_task_time.is_zero() {
            return Err(ConfigError::new("max_task_time", "is 0"));
        }
        if self.lease < Duration::from_millis(100) || self.lease > Duration::from_secs(86_400) {
            return Err(ConfigError::new("lease", "is not between 100 ms and a day"));
        }
        if self.grant_life < Duration::from_secs(1) || self.grant_life > DAY * 3_650 {
            return Err(ConfigError::new("grant_life", "is not between 1 s and 10 years"));
        }
        Ok(())
    }
}

impl fmt::Debug for BrainBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrainBuilder")
            .field("arm", &self.dispatcher)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
