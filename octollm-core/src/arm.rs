//! The trait that users implement.

use std::sync::Arc;

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
