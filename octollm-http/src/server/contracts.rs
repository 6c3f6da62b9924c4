//! Running an arm: by its contract's own route, or in an envelope.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use octollm_core::{
    contract::ContractRef,
    dispatcher::{Dispatcher, Execution, Route},
    error::{ErrorKind, Failure},
    id::TaskId,
    json,
    transport::Transport,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    reply::{Refusal, Reply},
    routes::{Endpoint, Inbound, Takes},
};

/// `POST /{path}`: the contract's JSON in, its output's JSON out.
pub(crate) struct Contract {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) contract: ContractRef,
    /// Where the contract stands in the dispatcher's routes.
    pub(crate) position: usize,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Contract {
    fn route(&self) -> Result<&Route, Failure> {
        match self.dispatcher.routes().get(self.position) {
            Some(route) => Ok(route),
            None => self.dispatcher.find(&self.contract),
        }
    }
}

#[async_trait]
impl Endpoint for Contract {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let around = Execution::new(inbound.parts, self.transport.clone());
        let outcome = self.route()?.execute(&inbound.body, around).await;
        match outcome.result {
            Ok(output) => Ok(Reply::written(output).usage(outcome.usage)),
            Err(error) => Err(Refusal::from(error.into_failure()).usage(outcome.usage)),
        }
    }
}

/// `POST /execute`: the contract is picked by the body.
pub(crate) struct Execute {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) transport: Arc<dyn Transport>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    #[serde(default)]
    task_id: Option<TaskId>,
    contract: ContractRef,
    input: Box<RawValue>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Executed<'a> {
    task_id: TaskId,
    #[schemars(extend("const" = "completed"))]
    status: &'static str,
    #[schemars(with = "serde_json::Value")]
    output: &'a RawValue,
    provenance: Provenance<'a>,
}

#[derive(Serialize, JsonSchema)]
struct Provenance<'a> {
    arm_id: &'a str,
    timestamp: Timestamp,
    duration_ms: u64,
}

#[async_trait]
impl Endpoint for Execute {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Reply, Refusal> {
        let envelope: Envelope = json::read_input(&inbound.body)?;
        let mut parts = inbound.parts;
        let task = envelope.task_id.or_else(|| parts.task_id.take()).unwrap_or_default();
        parts.task_id = Some(task.clone());
        let found = self.dispatcher.find(&envelope.contract);
        let route = found.map_err(|failure| Refusal::from(failure).task(task.clone()))?;

        let (timestamp, begun) = (Timestamp::now(), Instant::now());
        let around = Execution::new(parts, self.transport.clone());
        let outcome = route.execute(envelope.input.get().as_bytes(), around).await;
        let output = match outcome.result {
            Ok(output) => output,
            Err(error) => {
                return Err(Refusal::from(error.into_failure()).usage(outcome.usage).task(task));
            }
        };
        let output = serde_json::from_slice(&output).map_err(|_| Failure::of(ErrorKind::Internal))?;
        let arm_id = &self.dispatcher.card().arm_id;
        let provenance = Provenance { arm_id, timestamp, duration_ms: milliseconds(begun.elapsed()) };
        let executed = Executed { task_id: task, status: "completed", output, provenance };
        Ok(Reply::json(&executed)?.usage(outcome.usage))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
