//! Putting a mesh together.

use std::sync::Mutex;

use super::{Mesh, wires::Wires};
use crate::{
    arm::Arm,
    brain::{Brain, BrainBuilder},
    bus::EventBus,
    clock::Clock,
    contract::TaskContract,
    dispatcher::Dispatcher,
    store::TaskStore,
};

/// Puts a mesh together. Bus and store are in memory unless given.
#[derive(Debug)]
#[must_use = "a mesh does nothing until it is started"]
pub struct MeshBuilder {
    arms: Vec<Dispatcher>,
    brain: BrainBuilder,
}

impl Default for MeshBuilder {
    fn default() -> Self {
        Self { arms: Vec::new(), brain: Brain::builder() }
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
        let mut dispatcher = Dispatcher::new(id);
        dispatcher.card_mut().endpoint = Some(super::wires::ENDPOINT.into());
        dispatcher.serve::<C>(arm);
        self.arms.push(dispatcher);
        self
    }

    /// Adds a contract that can be submitted to the brain as a task, and the arm that runs it.
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

    /// Starts the mesh on the runtime that this is awaited on.
    pub async fn start(self) -> Mesh {
        let wires = Wires::new(self.arms);
        // The clock of the brain begins here: made earlier, it could be that of another runtime.
        let brain = self.brain.clock(Clock::runtime()).arms(wires.of_brain()).assemble();
        Mesh { wires, brain: Mutex::new(brain) }
    }
}
