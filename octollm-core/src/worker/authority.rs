//! Who has sent a job: the token that it carries.

use async_trait::async_trait;

use crate::{card::ArmCard, error::Failure, parts::Caller};

/// Establishes the caller of a job from the token that the job carries. A verifier of tokens implements it, and so does a function
/// of the token.
#[async_trait]
pub trait AuthenticateJob: Send + Sync + 'static {
    /// Returns the caller of a job with this token.
    ///
    /// # Errors
    /// The failure of the job, such as [`Unauthenticated`](crate::error::ErrorKind::Unauthenticated) for a token that is not valid. A
    /// job without a token is no error: return [`Caller::Anonymous`].
    ///
    /// # Cancel safety
    /// The future is dropped when the worker loses the job, which is delivered again.
    async fn authenticate(&self, token: Option<&str>) -> Result<Caller, Failure>;
}

#[async_trait]
impl<F> AuthenticateJob for F
where
    F: Fn(Option<&str>) -> Result<Caller, Failure> + Send + Sync + 'static,
{
    async fn authenticate(&self, token: Option<&str>) -> Result<Caller, Failure> {
        self(token)
    }
}

/// Issues the tokens that jobs carry. An issuer of tokens implements it, and so does a function.
pub trait AuthorizeJob: Send + Sync + 'static {
    /// Returns a token by which `caller` may call the arm of this card: with these scopes, or with all that it can pass on. `None` for a
    /// job without a token.
    ///
    /// # Errors
    /// The failure of the call, where the caller has a right that this program cannot pass on.
    fn authorize(
        &self,
        caller: &Caller,
        scopes: Option<&[&str]>,
        callee: &ArmCard,
    ) -> Result<Option<String>, Failure>;
}

impl<F> AuthorizeJob for F
where
    F: Fn(&Caller, Option<&[&str]>, &ArmCard) -> Result<Option<String>, Failure> + Send + Sync + 'static,
{
    fn authorize(
        &self,
        caller: &Caller,
        scopes: Option<&[&str]>,
        callee: &ArmCard,
    ) -> Result<Option<String>, Failure> {
        self(caller, scopes, callee)
    }
}
