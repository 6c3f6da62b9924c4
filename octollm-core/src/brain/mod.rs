//! The stock orchestrator, which runs arms as tasks.
//!
//! What a brain runs is an [`Arm`] like any other, whose calls are journaled. If the process dies, another
//! brain on the same store claims the task and runs the arm again; calls that were answered return from the journal. An arm is
//! therefore written as plain code, and becomes durable by running under a brain.

mod arm;
mod audited;
mod grants;
mod meters;
mod journal;
mod relay;
mod replay;
mod run;
mod running;
mod scheduler;
mod tasks;
mod updates;

use std::{
    any::Any,
    ffi::OsStr,
    fmt,
    future::Future,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use self::{
    arm::Callers,
    meters::Meters,
    relay::Relay,
    running::{Running, Stop},
};
use crate::{
    __limits_setters, __limits_struct,
    arm::Arm,
    audit::{AuditLog, optional::Audit},
    bus::{EventBus, MemoryBus},
    clock::{self, Clock},
    contract::{ContractRef, TaskContract},
    deadline::run_within,
    dispatcher::Dispatcher,
    error::{ConfigError, Failure},
    id::{RequestId, is_arm_id},
    panics::{Panicked, caught},
    settings::Vars,
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
    /// Limits of contracts over all brains on the store.
    max_running_of: Vec<(ContractRef, usize)>,
    audit: Audit,
    /// Whether no other brain can have the store.
    is_alone: bool,
    meters: Meters,
    running: Arc<Running>,
    callers: Callers,
    relay: Arc<Relay>,
    claiming: tokio::sync::Mutex<()>,
    /// Whether the loops run.
    started: AtomicBool,
}

/// How long a brain that closes waits for its last claim.
const LAST_CLAIM: Duration = Duration::from_secs(2);
/// How long a brain that closes waits for the bus.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// What a brain is made of.
struct Parts {
    dispatcher: Arc<Dispatcher>,
    transport: Arc<dyn Transport>,
    bus: Arc<dyn EventBus>,
    store: Arc<dyn TaskStore>,
    clock: Clock,
    limits: Limits,
    max_running_of: Vec<(ContractRef, usize)>,
    audit: Audit,
    is_alone: bool,
}

impl Inner {
    fn new(parts: Parts) -> Self {
        let Parts { dispatcher, transport, bus, store, clock, limits, max_running_of, audit, is_alone } =
            parts;
        let holder = format!("{}-{}", dispatcher.card().arm_id, RequestId::new());
        let relay = Relay::new(holder.clone(), store.clone(), bus.clone());
        Self {
            holder,
            contracts: dispatcher.specs().map(crate::contract::ContractSpec::reference).collect(),
            meters: Meters::new(&dispatcher.card().arm_id),
            running: Arc::new(Running::new(limits.max_running)),
            callers: Callers::default(),
            relay: Arc::new(relay),
            claiming: tokio::sync::Mutex::default(),
            started: AtomicBool::new(false),
            dispatcher,
            transport,
            bus,
            store,
            clock,
            limits,
            max_running_of,
            audit,
            is_alone,
        }
    }

    /// Stores a change of a task together with its effects. The relay publishes the events, also where the future is dropped.
    async fn commit(&self, record: TaskRecord, mut effects: SideEffects) -> Result<(), StoreError> {
        let _wakes = self.relay.wakes();
        // A run has ended, or none was to end.
        effects.makes_room |= record.run() > 0 && self.is_limited(record.contract());
        limited((*self.store).commit(record, effects)).await
    }

    /// Whether a contract has a limit of its own.
    fn is_limited(&self, contract: &ContractRef) -> bool {
        self.max_running_of.iter().any(|(limited, _)| limited == contract)
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
    match caught(run_within(STORE_LIMIT, operation)).await {
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
        Ok(scheduler::claim(&self.0).await?.started)
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
        // What is being claimed meanwhile is released again.
        if timeout(LAST_CLAIM, self.0.claiming.lock()).await.is_err() {
            tracing::warn!(
                brain = self.0.holder,
                "a claim is not answered; what it claims is free when its lease expires"
            );
        }
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
        let inner = &*self.0;
        Self::of(Inner::new(Parts {
            dispatcher: inner.dispatcher.clone(),
            transport: inner.transport.clone(),
            bus: inner.bus.clone(),
            store: inner.store.clone(),
            clock: inner.clock.clone(),
            limits: inner.limits.clone(),
            max_running_of: inner.max_running_of.clone(),
            audit: inner.audit.clone(),
            is_alone: inner.is_alone,
        }))
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
    max_running_of: Vec<(ContractRef, usize)>,
    audit: Audit,
}

/// Shares a value. One that is shared already gets no `Arc` around it, which would box each of its futures twice.
fn shared<T: 'static, S: ?Sized + 'static>(value: T, share: impl FnOnce(T) -> Arc<S>) -> Arc<S> {
    let known = (&value as &dyn Any).downcast_ref::<Arc<S>>();
    known.cloned().unwrap_or_else(|| share(value))
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Hands the limits of a brain to another macro.
macro_rules! brain_limits {
    ($then:ident $($arguments:tt)*) => {
        $then! { $($arguments)* {
            /// Sets the most tasks that run at a time. Default 256.
            max_running: usize as count = 256, 1 => usize::MAX;
            /// Sets the most tasks that may be queued in the store. Further submissions are refused as overloaded; reruns are not.
            /// Default 10,000.
            max_queued: usize as count = 10_000, 1 => usize::MAX;
            /// Sets the most bytes that the submissions of queued tasks may have. Further ones are refused as overloaded. Default
            /// 64 MiB.
            max_queued_bytes: usize as bytes = 64 << 20, 1 => usize::MAX;
            /// Sets the longest time limit of a task. A submission that asks for more has this one. A submission without a time limit
            /// has that of its contract. Default 24 h, at least 1 ns.
            max_task_time: Duration as time = DAY, Duration::from_nanos(1) => Duration::MAX;
            /// Sets the lease of a task. Another brain may claim the task when its lease expires. A brain renews a lease after a third
            /// of it, and an operation of the store has to take less than that. Default 30 s, 100 ms to a day.
            lease: Duration as time = Duration::from_secs(30), Duration::from_millis(100) => DAY;
            /// Sets how long a task may act for the caller that submitted it, or that has run it again. A task that an arm submits on
            /// behalf of a caller ends with the grant of the task in which the arm works. Default 24 h, 1 s to 10 years.
            grant_life: Duration as time = DAY, Duration::from_secs(1) => DAY * 3_650;
            /// Sets the longest wait before the second attempt of a task with several [attempts](crate::task::Submission::attempts).
            /// It is doubled before each further one. The wait is a random part of it, and at least what the failure asks for.
            /// Default 1 s, 1 ms to a day.
            retry_wait: Duration as time = Duration::from_secs(1), Duration::from_millis(1) => DAY;
            /// Sets the longest wait before any attempt. Default 10 min, 1 ms to a day. A [`retry_wait`](Self::retry_wait) that is longer
            /// is shortened to it.
            max_retry_wait: Duration as time = Duration::from_secs(600), Duration::from_millis(1) => DAY;
        } }
    };
}

brain_limits!(__limits_struct Limits);

impl Default for BrainBuilder {
    fn default() -> Self {
        Self {
            dispatcher: Dispatcher::new("orchestrator"),
            transport: Arc::new(()),
            bus: Arc::new(MemoryBus::new()),
            store: None,
            clock: Clock::new(clock::now),
            limits: Limits::default(),
            max_running_of: Vec::new(),
            audit: Audit::default(),
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

    /// Sets the most tasks of a contract that run at a time, over all brains on the store. Tasks above it wait, and hold up none of
    /// other contracts. Give all brains the same limit: each applies its own when it claims. A run whose brain is gone counts until
    /// its lease has expired. At least 1, no limit by default.
    pub fn max_running_of<C: TaskContract>(mut self, tasks: usize) -> Self {
        let contract = C::SPEC.reference();
        self.max_running_of.retain(|(limited, _)| *limited != contract);
        self.max_running_of.push((contract, tasks));
        self
    }

    /// Sets the arms that its tasks may call.
    pub fn arms(mut self, transport: impl Transport) -> Self {
        self.transport = shared::<_, dyn Transport>(transport, |arms| Arc::new(arms));
        self
    }

    /// Sets the bus to which it publishes the events of its tasks. Events that the bus does not take wait in the store.
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.bus = shared::<_, dyn EventBus>(bus, |bus| Arc::new(bus));
        self
    }

    /// Sets the store of its tasks, which other brains may have as well.
    pub fn store(mut self, store: impl TaskStore) -> Self {
        self.store = Some(shared::<_, dyn TaskStore>(store, |store| Arc::new(store)));
        self
    }

    /// Sets the audit log. The brain writes to it who submits, cancels and reruns tasks, before it does so, and which of these it
    /// refuses for lack of authority. While the log is not available, all of these fail as
    /// [`Unavailable`](crate::error::ErrorKind::Unavailable) and have no effect, unless the log is a
    /// [best effort](crate::audit::best_effort).
    pub fn audit(mut self, log: impl AuditLog) -> Self {
        self.audit = Audit::new(log);
        self
    }

    /// Sets the clock of its records. The default is the system's, or tokio's where a test has paused that. Leases and deadlines
    /// follow the clock of the store.
    pub fn clock(mut self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(now);
        self
    }

    /// Sets the limits that the environment has: `OCTOLLM_BRAIN_LEASE=10s` is [`lease`](Self::lease) of 10 s, and so on for each setter
    /// below. As with any setter, the last one holds: a limit that is set before this is a default, which a variable replaces, and one
    /// that is set after it is fixed.
    ///
    /// # Errors
    /// A variable that begins with `OCTOLLM_` is unknown, or its value cannot be read or is out of range. The setting of the error is
    /// its name.
    pub fn env(self) -> Result<Self, ConfigError> {
        self.vars(std::env::vars_os())
    }

    /// Sets the limits that these variables have, as [`env`](Self::env) does.
    ///
    /// # Errors
    /// Those of [`env`](Self::env).
    pub fn vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let mut vars = Vars::read("OCTOLLM_BRAIN_", variables)?;
        self.limits.take(&mut vars)?;
        vars.finish()?;
        Ok(self)
    }

    /// Builds the brain.
    ///
    /// # Errors
    /// A [`ConfigError`] for a name that is no arm id, a limit that is out of its range or of a contract that has no arm, or a
    /// contract that cannot be run.
    pub fn build(self) -> Result<Brain, ConfigError> {
        if !is_arm_id(&self.dispatcher.card().arm_id) {
            return Err(ConfigError::new(
                "name",
                "is not an arm id of lower-case letters, digits and dashes",
            ));
        }
        self.limits.check()?;
        for (contract, most) in &self.max_running_of {
            if *most == 0 {
                return Err(ConfigError::new(
                    "max_running_of",
                    format!("is 0 for {contract}: set it to at least 1"),
                ));
            }
            if self.dispatcher.spec(contract).is_err() {
                return Err(ConfigError::new(
                    "max_running_of",
                    format!("is set for {contract}, which has no arm here"),
                ));
            }
        }
        match self.dispatcher.refused().first() {
            Some(invalid) => Err(invalid.clone()),
            None => Ok(self.assemble()),
        }
    }

    /// Without a check: for the default limits.
    pub(crate) fn assemble(self) -> Brain {
        let Self { dispatcher, transport, bus, store, clock, limits, max_running_of, audit } = self;
        let is_alone = store.is_none();
        let store = store.unwrap_or_else(|| Arc::new(MemoryStore::new()));
        let dispatcher = Arc::new(dispatcher);
        Brain::of(Inner::new(Parts {
            dispatcher,
            transport,
            bus,
            store,
            clock,
            limits,
            max_running_of,
            audit,
            is_alone,
        }))
    }

    fn config_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }
}

brain_limits!(__limits_setters BrainBuilder);

impl fmt::Debug for BrainBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrainBuilder")
            .field("arm", &self.dispatcher)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_for_operators_has_each_limit_with_its_default() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let document = std::fs::read_to_string(file).unwrap();
        assert_eq!(Limits::undocumented("OCTOLLM_BRAIN_", &document), [""; 0]);
    }
}
