//! Putting a mesh together.

use std::{fmt, sync::Mutex};

use tower::{Layer, Service};

use super::{
    Mesh,
    wires::{self, CallLayer, Wires},
};
use crate::{
    arm::Arm,
    brain::{Brain, BrainBuilder},
    bus::EventBus,
    clock::Clock,
    contract::TaskContract,
    dispatcher::Dispatcher,
    error::CallError,
    store::TaskStore,
    transport::{Call, CallService, Reply},
};

/// Puts a mesh together. Bus and store are in memory unless given.
#[must_use = "a mesh does nothing until it is started"]
pub struct MeshBuilder {
    arms: Vec<Dispatcher>,
    layers: Vec<CallLayer>,
    brain: BrainBuilder,
}

impl Default for MeshBuilder {
    fn default() -> Self {
        Self { arms: Vec::new(), layers: Vec::new(), brain: Brain::builder() }
    }
}

impl MeshBuilder {
    /// Adds an arm under an id, or one more contract to the arm of that id.
    pub fn arm<C: TaskContract>(mut self, id: impl Into<String>, arm: impl Arm<C>) -> Self {
        let id = id.into();
        if let Some(known) = self.arms.iter_mut().find(|known| known.card().arm_id == id) {
            known.serve::<C>(arm);
            return self;
        }
        let endpoint = wires::endpoint(&id);
        let mut dispatcher = Dispatcher::new(id);
        dispatcher.card_mut().endpoint = Some(endpoint);
        dispatcher.serve::<C>(arm);
        self.arms.push(dispatcher);
        self
    }

    /// Adds a contract that the brain takes as a task, and the arm that runs it. A further call adds a further contract.
    pub fn brain<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.brain = self.brain.arm::<C>(arm);
        self
    }

    /// Sets the bus that the brain tells what becomes of tasks.
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.brain = self.brain.bus(bus);
        self
    }

    /// Sets where the brain keeps its tasks.
    pub fn store(mut self, store: impl TaskStore) -> Self {
        self.brain = self.brain.store(store);
        self
    }

    /// Puts a layer around every call, above its retry and the choice of an arm: the one added last is the outermost.
    ///
    /// Each call ends at its deadline all the same.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<CallService> + Send + 'static,
        L::Service: Service<Call, Response = Reply, Error = CallError> + Clone + Send + Sync + 'static,
        <L::Service as Service<Call>>::Future: Send + 'static,
    {
        self.layers.push(Box::new(move |service| CallService::new(layer.layer(service))));
        self
    }

    /// Starts the mesh on the runtime that this is awaited on.
    pub async fn start(self) -> Mesh {
        let wires = Wires::new(self.arms, self.layers);
        // The clock of the brain begins here: made earlier, it could be that of another runtime.
        let brain = self.brain.clock(Clock::runtime()).arms(wires.of_brain()).assemble();
        Mesh { wires, brain: Mutex::new(brain) }
    }
}

impl fmt::Debug for MeshBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshBuilder")
            .field("arms", &self.arms)
            .field("layers", &self.layers.len())
            .field("brain", &self.brain)
            .finish()
    }
}
