//! Building a brain.

use std::{fmt, sync::Arc};

use super::{Brain, BrainConfig, Inner};
use crate::{
    arm::Arm,
    bus::{EventBus, MemoryBus},
    clock::Clock,
    contract::TaskContract,
    dispatcher::Dispatcher,
    error::ConfigError,
    store::{MemoryStore, TaskStore},
    transport::Transport,
};

/// Builds a brain: see [`Brain::builder`]. Bus and store are in memory by default.
#[must_use = "a builder does nothing until it builds"]
pub struct BrainBuilder {
    pub(super) dispatcher: Dispatcher,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) bus: Arc<dyn EventBus>,
    pub(super) store: Arc<dyn TaskStore>,
    pub(super) clock: Clock,
    pub(super) config: BrainConfig,
}

impl Default for BrainBuilder {
    fn default() -> Self {
        Self {
            dispatcher: Dispatcher::new("orchestrator"),
            transport: Arc::new(()),
            bus: Arc::new(MemoryBus::new()),
            store: Arc::new(MemoryStore::new()),
            clock: Clock::system(),
            config: BrainConfig::default(),
        }
    }
}

impl BrainBuilder {
    /// Sets the brain's name (default `orchestrator`): the source of its events, and its id as an arm.
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

    /// Sets the store of its tasks.
    pub fn store(mut self, store: impl TaskStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// Sets the clock of its records. Leases and deadlines follow the store's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the limits. They are checked by [`build`](Self::build).
    pub fn config(mut self, config: BrainConfig) -> Self {
        self.config = config;
        self
    }

    /// Builds the brain.
    ///
    /// # Errors
    /// A [`ConfigError`] for a limit that no brain can work with, or a contract that cannot be run.
    pub fn build(self) -> Result<Brain, ConfigError> {
        self.config.check()?;
        match self.dispatcher.refused().first() {
            Some(invalid) => Err(invalid.clone()),
            None => Ok(self.assemble()),
        }
    }

    /// Without a check: for the default limits.
    pub(crate) fn assemble(self) -> Brain {
        Brain(Arc::new(Inner::new(self)))
    }
}

impl fmt::Debug for BrainBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrainBuilder")
            .field("arm", &self.dispatcher)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
