//! The arms that can be called.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use octollm_core::{
    Context,
    card::ArmCard,
    context::CallFuture,
    contract::{ContractRef, TaskContract},
    deadline::Deadline,
    error::CallError,
    parts::ContextParts,
    transport::{Call, Reply, Transport},
};
use serde_json::Value;

use super::{directory::Directory, stack::Calling, stack::Carrier};

/// The arms of a system, called over HTTP. Cheap to clone; clones share their connections.
///
/// ```no_run
/// # use octollm_http::client::Arms;
/// # fn main() -> Result<(), octollm_core::error::ConfigError> {
/// let arms = Arms::from_env()?; // OCTOLLM_ARM_JUDGE=http://judge-arm:8103
/// let same = Arms::builder().endpoint("judge", "http://judge-arm:8103").build()?;
/// # Ok(()) }
/// ```
///
/// Which arm offers a contract is learned from the arms themselves, at the first call and whenever it changes. Where
/// several do, or an arm has several URLs, they are called in turn, and the next one is tried where no connection
/// comes about.
#[derive(Clone)]
pub struct Arms(Arc<Shared>);

struct Shared {
    carrier: Carrier,
    directory: Arc<Directory>,
}

impl Arms {
    pub(super) fn new(carrier: Carrier, directory: Arc<Directory>) -> Self {
        Self(Arc::new(Shared { carrier, directory }))
    }

    /// Calls the arm that serves `C`, in a context of its own: see [`Context::call`].
    ///
    /// # Errors
    /// As [`CallFuture`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the call up: its connection is closed, and the arm sees that.
    pub fn call<C: TaskContract>(&self, input: C) -> CallFuture<C::Output> {
        self.context().call(input)
    }

    /// Calls an arm by a contract's name, with JSON in and JSON out: see [`Context::call_json`].
    ///
    /// # Errors
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    /// As [`call`](Self::call).
    pub fn call_json(&self, contract: &ContractRef, input: &Value) -> CallFuture<Value> {
        self.context().call_json(contract, input)
    }

    /// The beginning of a piece of work: its calls share a correlation id, and what they use up is summed.
    pub fn context(&self) -> Context {
        self.context_of(ContextParts::new())
    }

    /// A piece of work that may take so long, all its calls together.
    pub fn within(&self, time: Duration) -> Context {
        let mut parts = ContextParts::new();
        parts.deadline = Some(Deadline::after(time));
        self.context_of(parts)
    }

    /// A piece of work with ids, a deadline and a budget that are given.
    pub fn context_of(&self, parts: ContextParts) -> Context {
        Context::from_parts(parts, Arc::clone(&self.0) as Arc<dyn Transport>)
    }

    /// The cards of the arms that can be reached now: they are asked, unless that was done within the last second.
    pub async fn cards(&self) -> Vec<ArmCard> {
        self.0.cards().await
    }
}

#[async_trait]
impl Transport for Arms {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        Transport::call(&*self.0, call).await
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.0.cards().await
    }
}

#[async_trait]
impl Transport for Shared {
    // What `async fn` would stand for, without a future around the one that is boxed already.
    fn call<'a, 'async_trait>(&'a self, call: Call) -> Calling<'async_trait>
    where
        'a: 'async_trait,
        Self: 'async_trait,
    {
        self.carrier.call(call)
    }

    async fn cards(&self) -> Vec<ArmCard> {
        self.directory.refresh().await;
        self.directory.cards()
    }
}

impl fmt::Debug for Arms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arms").field("directory", &self.0.directory).finish()
    }
}
