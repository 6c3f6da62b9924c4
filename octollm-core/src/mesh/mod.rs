//! A whole system in one process, for tests: arms, a brain and a bus, without a network, and with faults on demand.
//!
//! Calls are JSON, and the same [`Dispatcher`] as in a server runs them. All waiting follows
//! tokio's clock: with `#[tokio::test(start_paused = true)]` a test of minutes takes no time.
//!
//! ```
//! use async_trait::async_trait;
//! use octollm_core::{
//!     Arm, Context,
//!     arm::arm_fn,
//!     error::{ArmError, ErrorKind},
//!     mesh::{Fault, Mesh},
//!     task::{TaskRequest, TaskResult, TaskStatus},
//! };
//! # use octollm_core::contract::{ContractSpec, TaskContract};
//! # use schemars::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Serialize, Deserialize, JsonSchema)]
//! # struct ListFiles { folder: String }
//! # impl TaskContract for ListFiles {
//! #     type Output = Vec<String>;
//! #     type Chunk = ();
//! #     const SPEC: ContractSpec = ContractSpec::new("files.list", "/list", "files:list").idempotent();
//! # }
//! # #[derive(Serialize, Deserialize, JsonSchema)]
//! # struct ValidateCode { file: String }
//! # impl TaskContract for ValidateCode {
//! #     type Output = bool;
//! #     type Chunk = ();
//! #     const SPEC: ContractSpec = ContractSpec::new("code.validate", "/validate", "code:validate").idempotent();
//! # }
//! # struct Judge;
//! # #[async_trait]
//! # impl Arm<ValidateCode> for Judge {
//! #     async fn execute(&self, input: ValidateCode, _: &Context) -> Result<bool, ArmError> {
//! #         Ok(input.file.ends_with(".rs"))
//! #     }
//! # }
//! # struct Review;
//! # #[async_trait]
//! # impl Arm<TaskRequest> for Review {
//! #     async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
//! #         let files = cx.call(ListFiles { folder: request.goal }).await?;
//! #         let calls = files.into_iter().map(|file| ValidateCode { file });
//! #         Ok(TaskResult::of(&cx.call_all(calls).retry(1).await?)?)
//! #     }
//! # }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mesh = Mesh::builder()
//!     .arm("judge", Judge)
//!     .arm("lister", arm_fn(|input: ListFiles, cx| async move { Ok(vec!["a.rs".into()]) }))
//!     .brain(Review)
//!     .start()
//!     .await;
//! mesh.fault("judge", Fault::Crash.once());
//!
//! let task = mesh.run(TaskRequest::new("src")).await?;
//! assert_eq!(task.status, TaskStatus::Completed);
//! assert_eq!(mesh.calls_to("judge").len(), 2);
//!
//! mesh.fault("judge", Fault::Hang.once().when(|input: &ValidateCode| input.file == "b.rs"));
//! let error = mesh.call(ValidateCode { file: "b.rs".into() }).await.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
//! # Ok(())
//! # }
//! ```

mod calls;
mod fault;
mod transport;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tower::{Layer, Service};

pub use self::{
    calls::RecordedCall,
    fault::{Fault, FaultPlan},
};
use self::{
    fault::Faults,
    transport::{CallLayer, MeshTransport},
};
use crate::{
    arm::Arm,
    brain::{Brain, BrainBuilder},
    bus::EventBus,
    context::{CallFuture, Context},
    contract::TaskContract,
    dispatcher::Dispatcher,
    error::{CallError, Failure},
    id::TaskId,
    orchestrator::{Orchestrator, finished},
    store::TaskStore,
    task::{Submission, Task},
    transport::{Call, CallService, Reply, Transport},
};

/// Arms, a brain and a bus in one process: see [`Mesh::builder`].
///
/// A call goes to the first arm that was added for its contract, and a further attempt of it to the next one. It runs within the
/// future of its caller: dropping that drops all calls below it.
pub struct Mesh {
    transport: MeshTransport,
    brain: Mutex<Brain>,
}

impl Mesh {
    /// A builder of a mesh.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// Calls an arm, as a program outside of the mesh does: see [`Context::call`].
    pub fn call<C: TaskContract>(&self, input: C) -> CallFuture<C::Output> {
        self.context().call(input)
    }

    /// A new context, whose calls go to the arms of the mesh.
    pub fn context(&self) -> Context {
        Context::root(self.transport())
    }

    /// The transport to the arms, for a [`Context`], a brain, or a transport around this one.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.transport.clone())
    }

    /// Injects a fault into calls to an arm. Several faults of an arm apply in the order in which they were added: a call that one
    /// lets pass reaches the next.
    ///
    /// A fault for an arm that the mesh does not have never applies. It is logged, and [`unfired`](Self::unfired) returns it.
    pub fn fault(&self, arm: impl Into<String>, fault: FaultPlan) {
        let arm = arm.into();
        if !self.transport.has_arm(&arm) {
            tracing::error!(arm, "a fault is for an arm that the mesh does not have");
        }
        self.faults().plan(arm, fault);
    }

    /// Removes all faults of an arm.
    pub fn heal(&self, arm: &str) {
        self.faults().heal(arm);
    }

    /// The faults that have never applied, each as `judge: crash`.
    pub fn unfired(&self) -> Vec<String> {
        self.faults().unfired()
    }

    /// Every call so far, also those that still run, in the order in which they were made.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.transport.recorder().calls(|_| true)
    }

    /// The [calls](Self::calls) to one arm.
    pub fn calls_to(&self, arm: &str) -> Vec<RecordedCall> {
        self.transport.recorder().calls(|call| call.arm == arm)
    }

    /// The [calls](Self::calls) of one contract.
    pub fn calls_of<C: TaskContract>(&self) -> Vec<RecordedCall> {
        let contract = C::SPEC.reference();
        self.transport.recorder().calls(|call| call.contract == contract)
    }

    /// Deletes the record of calls that have ended. In a long test it grows without this.
    pub fn forget_calls(&self) {
        self.transport.recorder().forget();
    }

    /// Submits a task to the brain and waits for its end.
    ///
    /// # Errors
    /// As [`submit`](Self::submit). A task that fails is not an error: see its status.
    ///
    /// # Cancel safety
    /// Dropping the future does not change the task.
    pub async fn run<C: TaskContract>(&self, input: C) -> Result<Task, Failure> {
        let queued = self.submit(input).await?;
        finished(&self.brain(), &queued.task_id, &self.context()).await
    }

    /// Runs a failed task again, from the step that failed, and waits for its end. To discard steps, call
    /// [`rerun`](Orchestrator::rerun) of the [`brain`](Self::brain).
    ///
    /// # Errors
    /// As [`Orchestrator::rerun`]. A task that fails again is not an error: see its status.
    ///
    /// # Cancel safety
    /// Dropping the future does not change the task.
    pub async fn rerun(&self, id: &TaskId) -> Result<Task, Failure> {
        let (brain, cx) = (self.brain(), self.context());
        brain.rerun(id, None, &cx).await?;
        finished(&brain, id, &cx).await
    }

    /// Submits a task to the brain.
    ///
    /// # Errors
    /// As [`Submission::of`] and [`Orchestrator::submit`].
    ///
    /// # Cancel safety
    /// The task may or may not be queued when the future is dropped.
    pub async fn submit<C: TaskContract>(&self, input: C) -> Result<Task, Failure> {
        self.brain().submit(Submission::of(&input)?, &self.context()).await
    }

    /// The brain of the mesh.
    pub fn brain(&self) -> Brain {
        self.current().clone()
    }

    /// The bus to which the brain publishes the events of its tasks.
    pub fn bus(&self) -> Arc<dyn EventBus> {
        self.current().bus().clone()
    }

    /// Stops the brain as a crash does, and starts another one on the same store. That continues the tasks that were running when
    /// their leases expire.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::error::ErrorKind::Unavailable) when the store is not available.
    ///
    /// # Cancel safety
    /// The brain has stopped when the future is dropped; another one may not have started.
    pub async fn crash_brain(&self) -> Result<(), Failure> {
        let crashed = self.brain();
        crashed.crash().await;
        let successor = crashed.successor();
        *self.current() = successor.clone();
        successor.recover().await.map(drop)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.transport.faults()
    }

    fn current(&self) -> MutexGuard<'_, Brain> {
        self.brain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("arms", &self.transport).field("brain", &self.brain()).finish()
    }
}

/// Builds a mesh: see [`Mesh::builder`]. Bus and store are in memory by default.
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
    /// Adds an arm with this id, or a further contract to the arm with this id.
    pub fn arm<C: TaskContract>(mut self, id: impl Into<String>, arm: impl Arm<C>) -> Self {
        let id = id.into();
        if let Some(known) = self.arms.iter_mut().find(|known| known.card().arm_id == id) {
            known.serve::<C>(arm);
            return self;
        }
        let endpoint = transport::endpoint(&id);
        let mut dispatcher = Dispatcher::new(id);
        dispatcher.card_mut().endpoint = Some(endpoint);
        dispatcher.serve::<C>(arm);
        self.arms.push(dispatcher);
        self
    }

    /// Adds a contract that the brain accepts as a task, and the arm that runs it. A further call adds a further contract.
    pub fn brain<C: TaskContract>(mut self, arm: impl Arm<C>) -> Self {
        self.brain = self.brain.arm::<C>(arm);
        self
    }

    /// Sets the bus to which the brain publishes the events of its tasks.
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.brain = self.brain.bus(bus);
        self
    }

    /// Sets the store of the brain.
    pub fn store(mut self, store: impl TaskStore) -> Self {
        self.brain = self.brain.store(store);
        self
    }

    /// Adds a layer around every call, above its retry and the choice of an arm. The last one is the outermost.
    ///
    /// Each call ends at its deadline also there.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<CallService> + Send + 'static,
        L::Service: Service<Call, Response = Reply, Error = CallError> + Clone + Send + Sync + 'static,
        <L::Service as Service<Call>>::Future: Send + 'static,
    {
        self.layers.push(Box::new(move |service| CallService::new(layer.layer(service))));
        self
    }

    /// Starts the mesh on the current runtime.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(self) -> Mesh {
        let transport = MeshTransport::new(self.arms, self.layers);
        let brain = self.brain.arms(transport.of_brain()).assemble();
        Mesh { transport, brain: Mutex::new(brain) }
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
