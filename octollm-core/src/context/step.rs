//! Calls with names of their own.

use std::future::Future;

use serde_json::Value;

use super::{Context, in_order};
use crate::{
    contract::{ContractRef, TaskContract},
    error::CallError,
    transport::StepKey,
};

/// One call, or one batch of calls, with a name in the journal: see [`Context::step`].
#[derive(Debug)]
#[must_use = "a step does nothing until it calls"]
pub struct Step {
    cx: Context,
    name: String,
}

impl Step {
    pub(super) fn new(cx: Context, name: String) -> Self {
        Self { cx, name }
    }

    /// As [`Context::call`].
    ///
    /// # Errors
    /// As [`Context::call`].
    pub fn call<C: TaskContract>(
        self,
        task: C,
    ) -> impl Future<Output = Result<C::Output, CallError>> + Send + use<C> {
        self.cx.typed_call(StepKey::Name(self.name), task)
    }

    /// As [`Context::call_all`]; the calls are named `name[0]`, `name[1]`, ….
    ///
    /// # Errors
    /// As [`Context::call_all`].
    pub async fn call_all<C: TaskContract>(
        self,
        tasks: impl IntoIterator<Item = C>,
    ) -> Result<Vec<C::Output>, CallError> {
        let named = |(position, task)| {
            self.cx.typed_call::<C>(StepKey::Name(format!("{}[{position}]", self.name)), task)
        };
        let calls: Vec<_> = tasks.into_iter().enumerate().map(named).collect();
        in_order(calls).await
    }

    /// As [`Context::call_json`].
    ///
    /// # Errors
    /// As [`Context::call_json`].
    pub fn call_json(
        self,
        contract: &ContractRef,
        input: &Value,
    ) -> impl Future<Output = Result<Value, CallError>> + Send + use<> {
        self.cx.json_call(StepKey::Name(self.name), contract, input)
    }
}
