//! Arms served from a durable bus, and calls that are queued there.
//!
//! A [`Worker`] serves arms as a server does over HTTP: with the same ids, trace, deadline, budget, caller, keys and progress. Its
//! requests are *jobs*, events on a [`DurableBus`], so that work can be queued for arms that are away. [`QueuedArms`] calls the arms of workers:
//! it publishes jobs and waits for their results.
//!
//! ```
//! use async_trait::async_trait;
//! use octollm_core::{Arm, Context, bus::MemoryDurableBus, error::ArmError, worker::{QueuedArms, Worker}};
//! use octollm_macros::TaskContract;
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//! use std::sync::Arc;
//!
//! /// Counts the words of a text.
//! #[derive(Serialize, Deserialize, JsonSchema, TaskContract)]
//! #[task(name = "text.count", output = usize, idempotent, timeout = "1h")]
//! struct CountWords {
//!     text: String,
//! }
//!
//! struct Scribe;
//!
//! #[async_trait]
//! impl Arm<CountWords> for Scribe {
//!     async fn execute(&self, input: CountWords, _: &Context) -> Result<usize, ArmError> {
//!         Ok(input.text.split_whitespace().count())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), octollm_core::error::Error> {
//! let bus = MemoryDurableBus::new(); // or a bus over Redis, SQLite or Postgres
//! // In one process:
//! let worker = Worker::new(bus.clone()).arm(Scribe);
//! tokio::spawn(worker.run());
//! // In another one:
//! let arms = QueuedArms::builder("desk", bus).contract::<CountWords>("scribe").connect().await?;
//! let cx = Context::root(Arc::new(arms));
//! assert_eq!(cx.call(CountWords { text: "ten arms".into() }).await?, 2);
//! # Ok(())
//! # }
//! ```
//!
//! # Delivery
//!
//! Each contract has one queue, the consumer group [`group`], which all workers share. The first worker or caller creates it, and it has
//! the jobs that are published after that. A job is delivered at least once. Each has a key, so that an arm whose contract is not idempotent runs once, as long as the
//! [records](Worker::idempotency) of its workers are shared.

mod authority;
mod job;
mod records;
mod cancellations;
mod serve;
mod replies;
mod send;
mod queued;

use std::{fmt, future::pending, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

pub use self::{
    authority::{AuthenticateJob, AuthorizeJob},
    queued::{QueuedArms, QueuedArmsBuilder},
};
use self::{
    cancellations::{Cancellations, follow},
    job::action,
    records::Retained,
    serve::{Jobs, Shared},
};
use crate::{
    arm::Arm,
    bus::{BusError, ConsumeOptions, DurableBus},
    contract::{ContractRef, TaskContract},
    dispatcher::Dispatcher,
    error::{ConfigError, InvalidValue},
    id::is_arm_id,
    idempotency::{IdempotencyStore, MemoryIdempotencyStore},
    transport::Transport,
};

/// Returns the name of the consumer group that has the jobs of a contract. Its dead letters are the jobs that failed.
///
/// ```
/// # use octollm_core::worker::group;
/// assert_eq!(group(&"code.validate@2".parse()?), "jobs.code__validate__v2");
/// # Ok::<(), octollm_core::error::InvalidValue>(())
/// ```
pub fn group(contract: &ContractRef) -> String {
    format!("jobs.{}", contract.function_name())
}

/// Serves arms from a durable bus: see [the module](self).
///
/// An attempt ends in one of these ways:
///
/// | the arm | the job |
/// |---|---|
/// | returns an output | is acknowledged once the result is published |
/// | fails, and another attempt can help | is delivered again after the wait that the failure states, or the backoff of the bus, up to [`max_attempts`](Self::max_attempts) |
/// | fails otherwise, at the last attempt, or beyond the deadline | is a dead letter with code and message as its reason, and the failure is published |
/// | is cancelled by its caller | is acknowledged |
///
/// An event that is no job, and a job whose token is not valid, is a dead letter. A job whose deadline has passed is not begun.
///
/// # Who may send jobs
///
/// Whoever may publish on the channels `jobs:<contract>:queued` of the bus. Without [`authenticate`](Self::authenticate) the caller of a job is
/// [unchecked](crate::parts::Caller::Unchecked), and the access control of the bus decides alone.
#[must_use = "a worker does nothing until it runs"]
pub struct Worker {
    bus: Arc<dyn DurableBus>,
    id: String,
    arms: Vec<Serve>,
    keys: Arc<dyn IdempotencyStore>,
    transport: Arc<dyn Transport>,
    authenticator: Option<Arc<dyn AuthenticateJob>>,
    concurrency: usize,
    time_limit: Option<Duration>,
    grace: Duration,
    options: ConsumeOptions,
}

/// Adds an arm to a dispatcher.
type Serve = Box<dyn FnOnce(&mut Dispatcher) + Send>;

impl Worker {
    /// Creates a worker with the id `worker`, which serves nothing yet.
    pub fn new(bus: impl DurableBus) -> Self {
        Self {
            bus: Arc::new(bus),
            id: "worker".into(),
            arms: Vec::new(),
            keys: Arc::new(MemoryIdempotencyStore::new()),
            transport: Arc::new(()),
            authenticator: None,
            concurrency: 16,
            time_limit: None,
            grace: Duration::from_secs(30),
            options: ConsumeOptions::default(),
        }
    }

    /// Sets the id of the arm, such as `judge`, which results, metrics and tokens have.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Adds an arm for a contract, in place of one that was added for it before.
    ///
    /// The contract is inferred if the arm implements one; `arm::<C>(..)` names it if the arm implements several.
    pub fn arm<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.arms.push(Box::new(|dispatcher| dispatcher.serve::<C>(arm)));
        self
    }

    /// Sets the arms that the arms of this worker can call. By default there are none.
    pub fn arms(mut self, arms: impl Transport) -> Self {
        self.transport = Arc::new(arms);
        self
    }

    /// Sets the store of the records by which a job whose contract is not idempotent runs once. The default is a
    /// [`MemoryIdempotencyStore`] of this worker, for a contract that only one worker serves: a job that is delivered again to another
    /// worker then ends with [`OutcomeUnknown`](crate::error::ErrorKind::OutcomeUnknown). Workers of one contract need a shared store.
    pub fn idempotency(mut self, store: impl IdempotencyStore) -> Self {
        self.keys = Arc::new(store);
        self
    }

    /// Sets who establishes the callers of jobs, by the tokens that they carry. Without it, callers are not checked.
    ///
    /// A token has to be valid when an attempt begins. The life of tokens that the caller issues, and the maximum that the verifier allows, must
    /// therefore cover the time that a job waits.
    pub fn authenticate(mut self, authenticator: impl AuthenticateJob) -> Self {
        self.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Sets how many jobs run at a time, over all contracts (default 16). Further ones stay on the bus, for other workers.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs;
        self
    }

    /// Sets the time limit of one run. The default is that of the contract, which then also limits the time that the job waits.
    ///
    /// A job that exceeds it and has time left is tried again if its contract is idempotent.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Sets how often a job is tried (default 5).
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts;
        self
    }

    /// Sets the delay before the second attempt, which doubles with each attempt, and its maximum (defaults 100 ms and 30 s).
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        (self.options.min_backoff, self.options.max_backoff) = (min, max);
        self
    }

    /// Sets the lease of a job (default 30 s). It is extended while the job runs. After that time the jobs of a worker that was killed go
    /// to another one.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.options.lease = lease;
        self
    }

    /// Sets how long running jobs may take after the shutdown has begun (default 30 s). After that their arms are dropped, and the jobs are
    /// delivered again.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Serves jobs until the bus ends a consumer: see [`run_until`](Self::run_until).
    ///
    /// # Errors
    /// As [`run_until`](Self::run_until).
    ///
    /// # Cancel safety
    /// As [`run_until`](Self::run_until).
    pub async fn run(self) -> Result<(), BusError> {
        self.run_until(pending()).await
    }

    /// Serves jobs until `shutdown` completes. Then it takes no more, hands back those that it has not begun, and returns once the running
    /// ones have ended, within the [grace period](Self::grace).
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] if a setting or a contract is not valid, those of [`DurableBus::consume`] and
    /// [`EventBus::subscribe`](crate::bus::EventBus::subscribe), and the reason why a consumer ended before `shutdown` completed.
    ///
    /// # Cancel safety
    /// If the future is dropped, running arms are dropped too, and their jobs are delivered again when the leases expire.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), BusError> {
        let (concurrency, grace) = (self.concurrency, self.grace);
        let (shared, options) = self.shared()?;
        let contracts: Vec<_> = shared.dispatcher.specs().map(|spec| spec.reference()).collect();
        let mut consumers = JoinSet::new();
        let (stopping, permits) = (CancellationToken::new(), Arc::new(Semaphore::new(concurrency)));
        let mut cancellations = JoinSet::new();
        cancellations.spawn(follow(&contracts, &shared.bus, &shared.cancellations).await?);
        for contract in contracts {
            let queued = job::channel(&contract, action::QUEUED).map_err(invalid)?;
            let consumer = shared.bus.consume(&group(&contract), queued.into(), options).await?;
            let (jobs, stopped) = (Jobs { shared: shared.clone(), contract }, stopping.clone());
            let permits = Some(permits.clone());
            consumers.spawn(async move { consumer.run_with(permits, jobs, stopped.cancelled_owned()).await });
        }
        let ended = tokio::select! {
            biased;
            () = shutdown => Ok(()),
            Some(ended) = consumers.join_next() => outcome(ended),
        };
        stopping.cancel();
        let rest = async {
            let mut result = ended;
            while let Some(ended) = consumers.join_next().await {
                result = result.and(outcome(ended));
            }
            result
        };
        let mut rest = std::pin::pin!(rest);
        match timeout(grace, &mut rest).await {
            Ok(result) => result,
            Err(_elapsed) => {
                shared.stop.cancel();
                rest.await
            }
        }
    }

    /// Builds the arms, and checks the settings that a consumer does not check.
    fn shared(self) -> Result<(Arc<Shared>, ConsumeOptions), ConfigError> {
        let mut dispatcher = Dispatcher::new(self.id);
        dispatcher.idempotency(Retained(self.keys));
        dispatcher.card_mut().key = self.transport.public_key();
        self.arms.into_iter().for_each(|serve| serve(&mut dispatcher));
        if let Some(refused) = dispatcher.refused().first() {
            return Err(refused.clone());
        }
        let problems = [
            ("arm", "was not called: there is nothing to serve", dispatcher.specs().next().is_none()),
            ("id", "is not the id of an arm", !is_arm_id(&dispatcher.card().arm_id)),
            ("concurrency", "is too large", self.concurrency > Semaphore::MAX_PERMITS),
            ("time_limit", "is 0", self.time_limit.is_some_and(|limit| limit.is_zero())),
        ];
        if let Some((setting, problem, _)) = problems.into_iter().find(|(.., found)| *found) {
            return Err(ConfigError::new(setting, problem));
        }
        let options = ConsumeOptions { max_in_flight: self.concurrency, ..self.options };
        let shared = Shared {
            bus: self.bus,
            dispatcher,
            transport: self.transport,
            authenticator: self.authenticator,
            time_limit: self.time_limit,
            max_attempts: options.max_attempts,
            stop: CancellationToken::new(),
            cancellations: Arc::new(Cancellations::default()),
        };
        options.check().map_err(|error| match error.setting() {
            "max_in_flight" => error.for_setting("concurrency"),
            _ => error,
        })?;
        Ok((Arc::new(shared), options))
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("id", &self.id)
            .field("arms", &self.arms.len())
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

/// The end of the task of a consumer.
fn outcome(ended: Result<Result<(), BusError>, tokio::task::JoinError>) -> Result<(), BusError> {
    // It ends by a panic of the bus.
    ended.unwrap_or_else(|error| Err(BusError::Unavailable { source: Some(Arc::new(error)) }))
}

/// The error of a name that cannot be part of a channel.
fn invalid(error: InvalidValue) -> BusError {
    ConfigError::new("contract", "has a name that no channel can have").with_source(error).into()
}
