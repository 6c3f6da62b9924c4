//! A brain's whole outside: store, arms and bus, in front of which every operation is counted, and at one of which the brain
//! dies, stalls, or gets an error.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use tokio::{sync::watch, time::timeout};

use crate::{
    bus::{BusError, Capability, EventBus, MemoryBus, Overflow, Subscription},
    card::ArmCard,
    conformance::{
        store::layer::{Layer, Stores, layered},
        support::WAIT,
    },
    error::CallError,
    event::{Event, Pattern},
    id::{IdempotencyKey, StepKey},
    store::StoreError,
    transport::{Call, Reply, Transport},
};

/// What becomes of a brain at its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// No operation of it takes effect any more, and none returns, which is all that the outside sees of a process that died.
    Dies,
    /// The same until it is released.
    Stalls,
    /// One operation of the store returns an error. The brain lives.
    Fails,
}

/// When: before the n-th operation takes effect, or after that and before it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Before(u64),
    After(u64),
    Never,
}

/// The name of a call of an arm.
const CALL: &str = "call";

/// What happens to one brain.
pub(super) struct Fate {
    turn: Turn,
    moment: Moment,
    operations: AtomicU64,
    /// The names of the operations that may take effect.
    in_flight: watch::Sender<Vec<&'static str>>,
    halted: watch::Sender<bool>,
    met: watch::Sender<bool>,
}

/// An operation in flight, until it is dropped.
struct InFlight<'a>(&'a watch::Sender<Vec<&'static str>>, &'static str);

impl<'a> InFlight<'a> {
    fn new(all: &'a watch::Sender<Vec<&'static str>>, name: &'static str) -> Self {
        all.send_modify(|names| names.push(name));
        Self(all, name)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|names| {
            if let Some(own) = names.iter().position(|name| *name == self.1) {
                names.swap_remove(own);
            }
        });
    }
}

impl Fate {
    pub(super) fn new(turn: Turn, moment: Moment) -> Arc<Self> {
        let (halted, met) = (watch::Sender::new(false), watch::Sender::new(false));
        let (operations, in_flight) = (AtomicU64::new(0), watch::Sender::default());
        Arc::new(Self { turn, moment, operations, in_flight, halted, met })
    }

    /// Returns when no operation is in flight: a process that died may have sent some that take effect after its death. A call of an arm
    /// that does not answer may be in flight for longer.
    pub(super) async fn settled(&self) {
        let mut in_flight = self.in_flight.subscribe();
        // The sender is in `self`.
        if timeout(WAIT / 12, in_flight.wait_for(Vec::is_empty)).await.is_ok() {
            return;
        }
        let only_calls = |names: &Vec<&str>| names.iter().all(|name| *name == CALL);
        let settled = timeout(WAIT, in_flight.wait_for(only_calls)).await.is_ok();
        assert!(settled, "operations end within {WAIT:?}: {:?}", in_flight.borrow());
    }

    /// Whether the moment has come.
    pub(super) fn is_met(&self) -> bool {
        *self.met.borrow()
    }

    /// Whether the brain does nothing any more.
    pub(super) fn is_halted(&self) -> bool {
        *self.halted.borrow()
    }

    pub(super) fn release(&self) {
        self.halted.send_replace(false);
    }

    fn halt(&self) {
        self.met.send_replace(true);
        self.halted.send_replace(true);
    }

    async fn goes_on(&self) {
        // The sender is in `self`.
        let _ = self.halted.subscribe().wait_for(|halted| !halted).await;
    }

    /// An operation that may be the last.
    async fn meet<T>(&self, name: &'static str, operation: impl Future<Output = T>) -> T {
        if self.turn == Turn::Fails {
            return operation.await;
        }
        self.goes_on().await;
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        if self.moment == Moment::Before(number) {
            self.halt();
            self.goes_on().await;
        }
        let in_flight = InFlight::new(&self.in_flight, name);
        let answer = operation.await;
        drop(in_flight);
        if self.moment == Moment::After(number) {
            self.halt();
        }
        self.goes_on().await;
        answer
    }

    /// An operation that may be the last, or may fail.
    async fn meet_store<T>(
        &self,
        name: &'static str,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if self.turn != Turn::Fails {
            return self.meet(name, operation).await;
        }
        let fails = || {
            self.met.send_replace(true);
            Err(StoreError::Unavailable("by the suite".into()))
        };
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        if self.moment == Moment::Before(number) {
            return fails();
        }
        let answer = operation.await;
        if self.moment == Moment::After(number) { fails() } else { answer }
    }
}

/// What the outside has seen of a task's steps.
#[derive(Debug, Default)]
pub(super) struct Sight {
    answered: HashSet<StepKey>,
    keys: HashMap<StepKey, Option<IdempotencyKey>>,
    /// The first thing that must not happen.
    fault: Option<String>,
}

impl Sight {
    fn called(&mut self, step: &StepKey, key: &Option<IdempotencyKey>) {
        if self.answered.contains(step) {
            self.fault.get_or_insert(format!("step {step} was called after its answer was recorded"));
        }
        if self.keys.entry(step.clone()).or_insert_with(|| key.clone()) != key {
            self.fault.get_or_insert(format!("step {step} was called with another key"));
        }
    }

    /// A rerun makes the call of this step again.
    pub(super) fn forget(&mut self, step: &StepKey) {
        self.answered.remove(step);
        self.keys.remove(step);
    }

    pub(super) fn check(&self) {
        assert_eq!(self.fault, None);
    }
}

pub(super) struct Doomed<T> {
    pub(super) fate: Arc<Fate>,
    pub(super) inner: T,
    pub(super) sight: Arc<Mutex<Sight>>,
}

impl<T> Doomed<T> {
    fn sight(&self) -> std::sync::MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl<T: Transport> Transport for Doomed<T> {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let made = async {
            self.sight().called(&call.step, &call.parts.key);
            self.inner.call(call).await
        };
        self.fate.meet(CALL, made).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.fate.meet("cards", self.inner.cards()).await
    }
}

#[async_trait]
impl EventBus for Doomed<MemoryBus> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        self.fate.meet("publish", self.inner.publish(event)).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.inner.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        self.inner.capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        self.inner.max_event_bytes()
    }
}

type Shared = Arc<dyn crate::store::TaskStore>;

impl Layer for Doomed<Shared> {
    async fn around<T: Send>(
        &self,
        name: &'static str,
        _: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        self.fate.meet_store(name, work).await
    }

    async fn around_detached<T: Send + 'static>(
        &self,
        name: &'static str,
        stores: Stores<'_>,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let answered = match stores {
            Stores::Entry(entry) if entry.is_answered() => Some(entry.step.clone()),
            _ => None,
        };
        let (fate, sight) = (self.fate.clone(), self.sight.clone());
        let made = async move {
            let done = work.await?;
            sight.lock().unwrap_or_else(PoisonError::into_inner).answered.extend(answered);
            Ok(done)
        };
        // It arrives even when its caller has given it up by then.
        tokio::spawn(async move { fate.meet_store(name, made).await })
            .await
            .unwrap_or_else(|error| Err(StoreError::Unavailable(error.into())))
    }
}

layered!(Doomed<Shared>);
