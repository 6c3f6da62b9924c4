//! What does the work: the trait that users implement, and arms made of closures.

use std::{fmt, future::Future, marker::PhantomData, sync::Arc};

use async_trait::async_trait;

use crate::{context::Context, contract::TaskContract, error::ArmError};

/// Does what a contract asks for. A type implements it for each contract it serves.
///
/// # Cancel safety
/// The future is dropped when the caller goes away or the deadline passes. What must not be left half done belongs
/// behind a transaction, or in a spawned task that watches [`Context::cancelled`].
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not serve `{C}`",
    note = "implement it: `#[async_trait] impl Arm<{C}> for {Self} {{ async fn execute(..) }}`"
)]
pub trait Arm<C: TaskContract>: Send + Sync + 'static {
    /// Does one task.
    ///
    /// # Errors
    /// An [`ArmError`]; any other error becomes one with `?`, and its text is then kept from the caller.
    async fn execute(&self, task: C, cx: &Context) -> Result<C::Output, ArmError>;
}

#[async_trait]
impl<C: TaskContract, A: Arm<C> + ?Sized> Arm<C> for Arc<A> {
    async fn execute(&self, task: C, cx: &Context) -> Result<C::Output, ArmError> {
        (**self).execute(task, cx).await
    }
}

/// An arm that is a function of an input and a context: see [`arm_fn`].
pub struct ArmFn<C, F> {
    function: F,
    contract: PhantomData<fn(C)>,
}

/// Makes an arm of a closure.
///
/// ```
/// # use octollm_core::{Arm, Context, arm::arm_fn, contract::{ContractSpec, NoChunk, TaskContract}};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, JsonSchema)]
/// # struct ListFiles { folder: String }
/// # impl TaskContract for ListFiles {
/// #     type Output = Vec<String>;
/// #     type Chunk = NoChunk;
/// #     const SPEC: ContractSpec = ContractSpec::new("files.list", "/list", "files:list");
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let lister = arm_fn(|input: ListFiles, _| async move { Ok(vec![format!("{}/a.rs", input.folder)]) });
/// let files = lister.execute(ListFiles { folder: "src".into() }, &Context::detached()).await;
/// assert_eq!(files.unwrap(), ["src/a.rs"]);
/// # }
/// ```
pub fn arm_fn<C, F, R>(function: F) -> ArmFn<C, F>
where
    C: TaskContract,
    F: Fn(C, Context) -> R + Send + Sync + 'static,
    R: Future<Output = Result<C::Output, ArmError>> + Send,
{
    ArmFn { function, contract: PhantomData }
}

#[async_trait]
impl<C, F, R> Arm<C> for ArmFn<C, F>
where
    C: TaskContract,
    F: Fn(C, Context) -> R + Send + Sync + 'static,
    R: Future<Output = Result<C::Output, ArmError>> + Send,
{
    async fn execute(&self, input: C, cx: &Context) -> Result<C::Output, ArmError> {
        (self.function)(input, cx.clone()).await
    }
}

impl<C, F> fmt::Debug for ArmFn<C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArmFn")
    }
}
