//! A whole system in one process, for tests: arms, brain and bus, with no network, and faults on demand.
//!
//! Calls are JSON and go through the same [`Dispatcher`](crate::dispatcher::Dispatcher) as on a server, so that what
//! holds here holds there. All waiting follows tokio's clock: with `#[tokio::test(start_paused = true)]` a test of
//! minutes takes none.
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
//! assert_eq!(mesh.calls().to("judge").count(), 2);
//!
//! mesh.fault("judge", Fault::Hang.once().when(|input: &ValidateCode| input.file == "b.rs"));
//! let error = mesh.call(ValidateCode { file: "b.rs".into() }).await.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
//! # Ok(())
//! # }
//! ```

mod builder;
mod calls;
mod fault;
mod wires;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use self::{
    builder::MeshBuilder,
    calls::{Calls, Ending, RecordedCall},
    fault::{Fault, FaultPlan},
};
use self::{fault::Faults, wires::Wires};
use crate::{
    brain::Brain,
    bus::EventBus,
    context::{CallFuture, Context},
    contract::TaskContract,
    error::Failure,
    id::TaskId,
    orchestrator::{Orchestrator, finished},
    task::{Submission, Task},
    transport::Transport,
};

/// Arms, a brain and a bus in one process. Made by [`Mesh::builder`].
///
/// A call is sent to the first arm that was added for its contract, a further attempt of it to the next one. It runs within its
/// caller's own future: dropped there, it is dropped all the way down.
pub struct Mesh {
    wires: Wires,
    brain: Mutex<Brain>,
}

impl Mesh {
    /// A mesh to be put together.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// Calls an arm, as a program outside of the mesh would: see [`Context::call`].
    pub fn call<C: TaskContract>(&self, input: C) -> CallFuture<C::Output> {
        self.context().call(input)
    }

    /// The beginning of a piece of work that calls the arms of the mesh.
    pub fn context(&self) -> Context {
        Context::root(self.transport())
    }

    /// The way to the arms, for a [`Context`], a brain, or a transport around this one.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.wires.clone())
    }

    /// Has calls to an arm go wrong. Several plans for one arm hold in the order in which they were given: a call that
    /// one lets pass comes to the next.
    ///
    /// A plan for an arm that the mesh does not have never comes true: that is logged, and [`unfired`](Self::unfired)
    /// tells it.
    pub fn fault(&self, arm: impl Into<String>, fault: FaultPlan) {
        let arm = arm.into();
        if !self.wires.has_arm(&arm) {
            tracing::error!(arm, "a fault is planned for an arm that the mesh does not have");
        }
        self.faults().plan(arm, fault);
    }

    /// Takes back all faults that were planned for an arm.
    pub fn heal(&self, arm: &str) {
        self.faults().heal(arm);
    }

    /// The faults that were planned and have not come true, not even once: each as `judge: crash`.
    pub fn unfired(&self) -> Vec<String> {
        self.faults().unfired()
    }

    /// Every call so far, also those that still run, in the order in which they were made.
    pub fn calls(&self) -> Calls {
        self.wires.calls()
    }

    /// Forgets the calls that have ended: the record of a long test grows without it.
    pub fn forget_calls(&self) {
        self.wires.forget_calls();
    }

    /// Submits a task to the brain and waits for its end, whatever that is.
    ///
    /// # Errors
    /// As [`submit`](Self::submit). A task that fails is no error here: see its status.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the task as it is.
    pub async fn run<C: TaskContract>(&self, task: C) -> Result<Task, Failure> {
        let queued = self.submit(task).await?;
        finished(&self.brain(), &queued.task_id, &self.context()).await
    }

    /// Runs a failed task once more, from the step that failed, and waits for its end. To discard steps, call
    /// [`rerun`](Orchestrator::rerun) of the [`brain`](Self::brain).
    ///
    /// # Errors
    /// As [`Orchestrator::rerun`]. A task that fails again is no error here: see its status.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the task as it is.
    pub async fn rerun(&self, id: &TaskId) -> Result<Task, Failure> {
        let (brain, cx) = (self.brain(), self.context());
        brain.rerun(id, None, &cx).await?;
        finished(&brain, id, &cx).await
    }

    /// Submits a task to the brain.
    ///
    /// # Errors
    /// [`ContractNotOffered`](crate::error::ErrorKind::ContractNotOffered) and [`ValidationFailed`](crate::error::ErrorKind::ValidationFailed), as [`Orchestrator::submit`].
    pub async fn submit<C: TaskContract>(&self, task: C) -> Result<Task, Failure> {
        self.brain().submit(Submission::of(&task)?, &self.context()).await
    }

    /// The brain: the orchestrator of the mesh.
    pub fn brain(&self) -> Brain {
        self.current().clone()
    }

    /// The bus that the brain tells what becomes of tasks.
    pub fn bus(&self) -> Arc<dyn EventBus> {
        self.current().bus().clone()
    }

    /// Has the brain die as in a crash, in the middle of whatever it does, and puts another in its place, on the same
    /// store. What was running goes on there once its lease has run out.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the store is.
    pub async fn crash_brain(&self) -> Result<(), Failure> {
        let crashed = self.brain();
        crashed.crash().await;
        let successor = crashed.successor();
        *self.current() = successor.clone();
        successor.recover().await.map(drop)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.wires.faults()
    }

    fn current(&self) -> MutexGuard<'_, Brain> {
        self.brain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("arms", &self.wires).field("brain", &self.brain()).finish()
    }
}
