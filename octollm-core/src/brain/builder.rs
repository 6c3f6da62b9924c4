//! Putting a brain together.

use std::{fmt, sync::Arc};

use super::{
    Brain, Inner,
    announce::Announcer,
    config::{BrainConfig, InvalidConfig},
    desk::Desk,
};
use crate::{
    arm::Arm,
    bus::{EventBus, MemoryBus},
    clock::Clock,
    contract::TaskContract,
    dispatcher::Dispatcher,
    id::RequestId,
    store::{MemoryStore, TaskStore},
    transport::{NoArms, Transport},
};

/// Puts a brain together. What is left out is in memory.
pub struct BrainBuilder {
    dispatcher: Dispatcher,
    transport: Arc<dyn Transport>,
    bus: Arc<dyn EventBus>,
    store: Arc<dyn TaskStore>,
    clock: Clock,
    config: BrainConfig,
}

impl Default for BrainBuilder {
    fn default() -> Self {
        Self {
            dispatcher: Dispatcher::new("orchestrator"),
            transport: Arc::new(NoArms),
            bus: Arc::new(MemoryBus::new()),
            store: Arc::new(MemoryStore::new()),
            clock: Clock::system(),
            config: BrainConfig::default(),
        }
    }
}

impl BrainBuilder {
    /// Names the brain: the source of its events, and its id as an arm. `orchestrator` unless told.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.dispatcher.card_mut().arm_id = name.into();
        self
    }

    /// Adds a contract that it takes as a task, and the arm that runs it.
    #[must_use]
    pub fn task<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.dispatcher.serve::<C>(arm);
        self
    }

    /// Sets the arms that its tasks may call.
    #[must_use]
    pub fn arms(mut self, transport: impl Transport) -> Self {
        self.transport = Arc::new(transport);
        self
    }

    /// Sets the bus that is told what becomes of tasks. It is given a second for each event; then the task goes on, and
    /// whether the event is heard is open.
    #[must_use]
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.bus = Arc::new(bus);
        self
    }

    /// Sets where tasks are kept.
    #[must_use]
    pub fn store(mut self, store: impl TaskStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// Sets what tells the time of day.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// A brain with the default limits.
    pub fn build(mut self) -> Brain {
        self.config = BrainConfig::default();
        self.assemble()
    }

    /// A brain with limits of its own.
    ///
    /// # Errors
    /// [`InvalidConfig`] for limits that make no sense.
    pub fn build_with(mut self, config: BrainConfig) -> Result<Brain, InvalidConfig> {
        config.check()?;
        self.config = config;
        Ok(self.assemble())
    }

    fn assemble(self) -> Brain {
        let Self { dispatcher, transport, bus, store, clock, config } = self;
        let name = dispatcher.card().arm_id.clone();
        let announcer = Announcer { bus: bus.clone(), source: name.as_str().into() };
        let holder = format!("{name}-{}", RequestId::new());
        let (dispatcher, desk) = (Arc::new(dispatcher), Desk::new(&config));
        Brain(Arc::new(Inner { holder, dispatcher, transport, bus, announcer, store, clock, config, desk }))
    }
}

impl fmt::Debug for BrainBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrainBuilder")
            .field("tasks", &self.dispatcher)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
