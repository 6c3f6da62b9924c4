//! The trait that users implement, and arms made of closures.

use std::{future::Future, marker::PhantomData, sync::Arc};

use async_trait::async_trait;

use crate::{context::Context, contract::TaskContract, error::ArmError};

/// Serves a contract: returns an output for an input. A type implements it for each contract that it serves.
///
/// # Cancel safety
/// The future is dropped when the caller goes away or the deadline passes. What must not be left half done belongs
/// in a transaction, or in a spawned task that watches [`Context::cancelled`].
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not serve `{C}`",
    note = "implement it: `#[async_trait] impl Arm<{C}> for {Self} {{ async fn execute(..) }}`"
)]
pub trait Arm<C: TaskContract>: Send + Sync + 'static {
    /// Returns the output of one input.
    ///
    /// # Errors
    /// An [`ArmError`]; any other error becomes one with `?`, and its text is then logged and not sent to the caller.
    ///
    /// # Cancel safety
    /// As for the trait.
    async fn execute(&self, input: C, cx: &Context) -> Result<C::Output, ArmError>;
}

#[async_trait]
impl<C: TaskContract, A: Arm<C> + ?Sized> Arm<C> for Arc<A> {
    async fn execute(&self, input: C, cx: &Context) -> Result<C::Output, ArmError> {
        (**self).execute(input, cx).await
    }
}

/// An arm that is a closure over an input and a context.
///
/// ```
/// # use octollm_core::{Arm, Context, arm::arm_fn, contract::{ContractSpec, TaskContract}};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, JsonSchema)]
/// # struct ListFiles { folder: String }
/// # impl TaskContract for ListFiles {
/// #     type Output = Vec<String>;
/// #     type Chunk = ();
/// #     const SPEC: ContractSpec = ContractSpec::new("files.list", "/list", "files:list");
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let lister = arm_fn(|input: ListFiles, _| async move { Ok(vec![format!("{}/a.rs", input.folder)]) });
/// let files = lister.execute(ListFiles { folder: "src".into() }, &Context::detached()).await;
/// assert_eq!(files.unwrap(), ["src/a.rs"]);
/// # }
/// ```
pub fn arm_fn<C, F, R>(function: F) -> impl Arm<C>
where
    C: TaskContract,
    F: Fn(C, Context) -> R + Send + Sync + 'static,
    R: Future<Output = Result<C::Output, ArmError>> + Send,
{
    ArmFn { function, contract: PhantomData }
}

/// See [`arm_fn`].
struct ArmFn<C, F> {
    function: F,
    contract: PhantomData<fn(C)>,
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
