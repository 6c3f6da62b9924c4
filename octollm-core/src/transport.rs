//! The seam between contracts and whatever carries calls.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    budget::Usage,
    card::ArmCard,
    contract::ContractRef,
    error::{CallError, ErrorKind, Failure},
    parts::ContextParts,
};

/// Names one call among those that a task makes: its order, or a name the user gave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StepKey {
    /// The how-manieth call it is, from 0.
    Order(u32),
    /// The name it was given.
    Name(String),
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(order) => write!(f, "{order}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// One call on its way to an arm.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Call {
    /// What is asked.
    pub contract: ContractRef,
    /// Which call of its maker this is.
    pub step: StepKey,
    /// The contract's JSON.
    pub input: Bytes,
    /// What travels with it. The deadline is always set.
    pub parts: ContextParts,
    /// Digest of the caller's own schemas, to tell drift; empty where the caller has only JSON.
    pub fingerprint: fn() -> Option<String>,
}

/// What came back.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reply {
    /// The output's JSON.
    pub output: Bytes,
    /// What the arm used up, and all that it called.
    pub usage: Usage,
    /// How the call travelled.
    pub trip: Trip,
}

impl Reply {
    /// An output that used up nothing.
    pub fn new(output: Bytes, trip: Trip) -> Self {
        Self { output, usage: Usage::default(), trip }
    }

    /// Sets what was used up.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = usage;
        self
    }
}

/// How a call travelled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Trip {
    /// The arm that answered.
    pub arm: String,
    /// Where it is; `in-process` for a mesh.
    pub endpoint: String,
    /// How often it was tried.
    pub attempts: u32,
}

impl Trip {
    /// A trip of one attempt.
    pub fn new(arm: impl Into<String>, endpoint: impl Into<String>) -> Self {
        Self { arm: arm.into(), endpoint: endpoint.into(), attempts: 1 }
    }
}

/// Carries calls to arms. The HTTP client is one, the mesh another; the brain's journal wraps one.
///
/// # Cancel safety
/// Dropping the future of a call gives the call up: the arm's own work ends, as far as the transport reaches.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Carries one call and brings back its answer.
    ///
    /// # Errors
    /// A [`CallError`] that says what is known of the failure.
    async fn call(&self, call: Call) -> Result<Reply, CallError>;

    /// The cards of the arms that can be reached now.
    async fn cards(&self) -> Vec<ArmCard>;

    /// Whether it ends a call at the deadline itself, and may have something left to do then, such as writing down that
    /// it passed. Where it does not, as is usual, the caller's [`Context`](crate::Context) ends the call by dropping it.
    fn keeps_deadlines(&self) -> bool {
        false
    }
}

#[async_trait]
impl<T: Transport + ?Sized> Transport for std::sync::Arc<T> {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        (**self).call(call).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        (**self).cards().await
    }

    fn keeps_deadlines(&self) -> bool {
        (**self).keeps_deadlines()
    }
}

/// Knows no arms: every call fails with [`ErrorKind::ContractNotOffered`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NoArms;

#[async_trait]
impl Transport for NoArms {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let failure = Failure::new(ErrorKind::ContractNotOffered, "no arms were given to call");
        Err(CallError::new(call.contract, failure))
    }

    async fn cards(&self) -> Vec<ArmCard> {
        Vec::new()
    }
}
