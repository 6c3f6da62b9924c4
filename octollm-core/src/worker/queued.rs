//! Calls that are queued on a durable bus.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use uuid::Uuid;

use super::{
    authority::AuthorizeJob,
    group, invalid,
    job::{self, Ended, action},
    replies::{Received, Waiting, listen, subscribe},
    send::{Cancel, Inner, Offer},
};
use crate::{
    bus::{BusError, ConsumeOptions, DurableBus},
    card::ArmCard,
    contract::{ContractCard, ContractRef, Keys, TaskContract},
    dropped::report,
    error::{CallError, ConfigError, Failure},
    event::Event,
    id::is_arm_id,
    idempotency::KeyedRun,
    transport::{Call, Reply, Transport, sent_until},
};

/// Cancellations that wait to be published.
const CANCELLATIONS: usize = 1024;
/// Time limit on publishing one.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// Calls arms by a queue: each call is a job on a durable bus, for the [`Worker`](super::Worker)s of its contract. It is a [`Transport`] for
/// brains, servers, workers and [contexts](crate::Context::root). A clone is of the same queue.
///
/// A call waits for its result until its deadline. The time limit of the contract includes the time for which the job waits: set it accordingly, or
/// [`Worker::time_limit`](super::Worker::time_limit) for a single run. A job that has not begun by then is not run.
///
/// # After a restart
///
/// A call with a key, such as each call of a brain's program, is the same job whenever it is made. A program that was restarted queues
/// it again, and a worker answers from the record of the key, if the job has run, or else runs it. The same happens within a call where
/// the bus reports that results may be lost. Contracts that are idempotent have no record, and run again.
///
/// # Cancel safety
/// If the future of a call is dropped, the job is cancelled: it is not begun, or its arm is dropped. A cancellation is published at most
/// once, and is lost with the process. With [`detached`](QueuedArmsBuilder::detached), the job goes on.
#[derive(Clone)]
pub struct QueuedArms(Arc<Inner>);

/// Builds [`QueuedArms`].
#[must_use = "a builder does nothing until `connect`"]
pub struct QueuedArmsBuilder {
    name: String,
    bus: Arc<dyn DurableBus>,
    contracts: Vec<(String, Result<ContractCard, ConfigError>)>,
    otherwise: Arc<dyn Transport>,
    authorizer: Option<Arc<dyn AuthorizeJob>>,
    shared_keys: Option<Duration>,
    detached: bool,
}

impl QueuedArms {
    /// Returns a builder. Results are published for this name, which several instances of a program can share: 1 to 64 of `a-z`, `0-9`,
    /// `_` and `-`.
    pub fn builder(name: impl Into<String>, bus: impl DurableBus) -> QueuedArmsBuilder {
        QueuedArmsBuilder {
            name: name.into(),
            bus: Arc::new(bus),
            contracts: Vec::new(),
            otherwise: Arc::new(()),
            authorizer: None,
            shared_keys: None,
            detached: false,
        }
    }
}

impl QueuedArmsBuilder {
    /// Queues the calls of a contract, for the workers of this id.
    pub fn contract<C: TaskContract>(mut self, arm: impl Into<String>) -> Self {
        self.contracts.push((arm.into(), ContractCard::checked::<C>()));
        self
    }

    /// Sets what carries the calls of all other contracts, such as a client over HTTP. By default they fail.
    pub fn otherwise(mut self, arms: impl Transport) -> Self {
        self.otherwise = Arc::new(arms);
        self
    }

    /// Sets the issuer of the tokens that jobs carry. Without it they carry none.
    pub fn tokens(mut self, authorizer: impl AuthorizeJob) -> Self {
        self.authorizer = Some(Arc::new(authorizer));
        self
    }

    /// Declares that the workers share their [records of keys](super::Worker::idempotency), which they retain for this time. Then a brain
    /// makes a call again within that time after a crash, also where the contract is not idempotent.
    pub fn shared_keys(mut self, retention: Duration) -> Self {
        self.shared_keys = Some(retention);
        self
    }

    /// Lets jobs go on when their calls are dropped.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Creates the queues that are missing, so that they collect jobs before the first worker starts, and subscribes to the results.
    ///
    /// # Errors
    /// [`BusError::InvalidSetting`] if a name or a contract is not valid, and those of [`DurableBus::consume`] and
    /// [`EventBus::subscribe`](crate::bus::EventBus::subscribe).
    ///
    /// # Cancel safety
    /// If the future is dropped, some queues may have been created.
    pub async fn connect(self) -> Result<QueuedArms, BusError> {
        let bad_name = |error| ConfigError::new("name", "is not a segment of a channel").with_source(error);
        let pattern = job::replies(&self.name).map_err(bad_name)?;
        let (mut offers, mut cards) = (HashMap::new(), Vec::<ArmCard>::new());
        for (arm, card) in self.contracts {
            let mut card = card?;
            if !is_arm_id(&arm) {
                return Err(ConfigError::new(arm, "is not the id of an arm").into());
            }
            if !card.idempotent {
                card.keys = if self.shared_keys.is_some() { Keys::Shared } else { Keys::Instance };
                card.keys_retained_s = self.shared_keys.map(|retention| retention.as_secs());
            }
            // It was checked with the card.
            let Some(contract) = card.reference() else { continue };
            let at = cards.iter().position(|card| card.arm_id == arm).unwrap_or_else(|| {
                cards.push(ArmCard::new(&*arm));
                cards.len() - 1
            });
            offers.insert(contract.clone(), Offer::new(&arm, at, &card, &contract)?);
            let of_arm = &mut cards[at];
            of_arm.capabilities.push(card.name.clone());
            of_arm.contracts.push(card);
            create_queue(&*self.bus, &contract).await?;
        }
        let (waiting, mut tasks) = (Arc::new(Waiting::default()), JoinSet::new());
        let replies = subscribe(&*self.bus, &pattern).await?;
        tasks.spawn(listen(self.bus.clone(), pattern, replies, waiting.clone()));
        let cancellations = (!self.detached).then(|| {
            let (cancellations, received) = mpsc::channel(CANCELLATIONS);
            tasks.spawn(publish(self.bus.clone(), received));
            cancellations
        });
        Ok(QueuedArms(Arc::new(Inner {
            name: self.name,
            bus: self.bus,
            offers,
            cards,
            otherwise: self.otherwise,
            authorizer: self.authorizer,
            waiting,
            cancellations,
            _tasks: tasks,
        })))
    }
}

/// Creates the group of a contract, unless it exists.
async fn create_queue(bus: &dyn DurableBus, contract: &ContractRef) -> Result<(), BusError> {
    let queued = job::channel(contract, action::QUEUED).map_err(invalid)?;
    let mut consumer = bus.consume(&group(contract), queued.into(), ConsumeOptions::default()).await?;
    consumer.close().await
}

/// Publishes cancellations.
async fn publish(bus: Arc<dyn DurableBus>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        if !matches!(timeout(CANCEL_LIMIT, bus.publish(event)).await, Ok(Ok(()))) {
            tracing::warn!("a cancellation is not published: the job runs until its deadline");
        }
    }
}

#[async_trait]
impl Transport for QueuedArms {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let Some(offer) = self.0.offers.get(&call.contract) else {
            return self.0.otherwise.call(call).await;
        };
        let (contract, deadline) = (call.contract.clone(), call.parts.deadline);
        let work = async {
            let answer = self.0.queue(offer, call).await;
            answer.map_err(|error| error.with_arm(&*offer.arm).with_endpoint(&*offer.endpoint))
        };
        sent_until(deadline, &contract, work, report).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        let mut cards = self.0.otherwise.cards().await;
        cards.extend(self.0.cards.iter().cloned());
        cards
    }

    fn explain(&self, error: CallError) -> CallError {
        self.0.otherwise.explain(error)
    }

    fn configured_arms(&self) -> Vec<String> {
        let queued = self.0.cards.iter().map(|card| card.arm_id.clone());
        queued.chain(self.0.otherwise.configured_arms()).collect()
    }

    fn public_key(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        self.0.otherwise.public_key()
    }
}

impl Inner {
    /// Publishes the job of a call, and waits for its end.
    async fn queue(&self, offer: &Offer, mut call: Call) -> Result<Reply, CallError> {
        let refused = |failure: Failure| CallError::new(call.contract.clone(), failure.before_execution());
        call.parts.caller.may(&offer.scope).map_err(refused)?;
        // Workers honour keys.
        call.check_keys(true).map_err(refused)?;
        let id = KeyedRun::new(&call.parts, &call.contract, &call.input)
            .map_or_else(|| Uuid::now_v7().to_string(), |run| run.record);
        let mut waiter = self.waiting.wait(&id);
        let mut cancel = Cancel { inner: self, offer, jobs: Vec::new() };
        let input = job::value(&call.input, "the input").map_err(refused)?;
        self.publish(offer, &call, &input, &id, &mut cancel).await?;
        loop {
            match waiter.next().await {
                Received::Update(update) => {
                    let Some(to) = &call.updates else { continue };
                    match update {
                        crate::update::Update::Chunk(chunk) => to.chunk(chunk).await,
                        update => to.update(update),
                    }
                }
                Received::Ended(ended) => {
                    cancel.jobs.clear();
                    return self.answer(offer, &call, *ended);
                }
                Received::Lost => {
                    call.parts.repeated = true;
                    self.publish(offer, &call, &input, &id, &mut cancel).await?;
                }
            }
        }
    }

    fn answer(&self, offer: &Offer, call: &Call, ended: Ended) -> Result<Reply, CallError> {
        let Ended { result, arm, attempt, usage } = ended;
        match result {
            Ok(output) => {
                let mut reply = Reply::new(output.to_string().into(), arm, offer.endpoint.clone());
                reply.attempts = attempt.max(1);
                Ok(reply.with_usage(usage))
            }
            Err(failure) => {
                let error = CallError::new(call.contract.clone(), failure).with_usage(usage);
                Err(error.with_attempts(attempt.max(1)))
            }
        }
    }
}

impl fmt::Debug for QueuedArms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { name, offers, .. } = &*self.0;
        let contracts: Vec<_> = offers.keys().collect();
        f.debug_struct("QueuedArms")
            .field("name", name)
            .field("contracts", &contracts)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for QueuedArmsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedArmsBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}
