//! Contracts that do as their input says, and the arm that serves them.

use std::time::Duration;

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    budget::{Budget, Usage},
    deadline::Deadline,
    error::{ArmError, ErrorKind},
    mesh::{Mesh, MeshBuilder},
    parts::ContextParts,
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Takes a while, spends tokens, and returns its number. Running it twice does no harm.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "work.measure", output = Seen, idempotent, timeout = "100s")]
pub(crate) struct Measure {
    pub(crate) number: u64,
    pub(crate) ms: u64,
    pub(crate) spends: Spends,
}

/// How many tokens are spent.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Spends {
    #[default]
    Nothing,
    Tokens(u64),
    /// All that the call was given.
    Everything,
}

/// What a call came with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Seen {
    pub(crate) number: u64,
    pub(crate) tokens: Option<u64>,
    pub(crate) attempt: u32,
}

/// The same work, which must not be done twice.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "work.charge", output = u64, timeout = "100s")]
pub(crate) struct Charge {
    pub(crate) number: u64,
}

/// Measures so many times in a batch of its own, and returns what each was given.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "work.batch", output = Vec<Option<u64>>, timeout = "100s")]
pub(crate) struct MeasureMany {
    pub(crate) times: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Worker;

#[async_trait]
impl Arm<Measure> for Worker {
    async fn execute(&self, input: Measure, cx: &Context) -> Result<Seen, ArmError> {
        let seen = Seen { number: input.number, tokens: cx.budget().tokens, attempt: cx.attempt() };
        tokio::time::sleep(Duration::from_millis(input.ms)).await;
        match input.spends {
            Spends::Nothing => {}
            Spends::Tokens(tokens) => cx.spend(Usage::tokens(tokens))?,
            Spends::Everything => cx.spend(Usage::tokens(seen.tokens.unwrap_or(0)))?,
        }
        Ok(seen)
    }
}

#[async_trait]
impl Arm<Charge> for Worker {
    async fn execute(&self, input: Charge, _: &Context) -> Result<u64, ArmError> {
        Ok(input.number)
    }
}

#[async_trait]
impl Arm<MeasureMany> for Worker {
    async fn execute(&self, input: MeasureMany, cx: &Context) -> Result<Vec<Option<u64>>, ArmError> {
        let calls = (0..input.times).map(|number| measure(number).spending(Spends::Everything));
        Ok(cx.call_all(calls).await?.into_iter().map(|seen| seen.tokens).collect())
    }
}

/// Fails a given number of times, each time having spent 40 tokens.
pub(crate) struct Flaky(pub(crate) std::sync::atomic::AtomicU32);

#[async_trait]
impl Arm<Measure> for Flaky {
    async fn execute(&self, input: Measure, cx: &Context) -> Result<Seen, ArmError> {
        use std::sync::atomic::Ordering::Relaxed;
        let seen = Seen { number: input.number, tokens: cx.budget().tokens, attempt: cx.attempt() };
        cx.spend(Usage::tokens(40))?;
        match self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err(ArmError::new(ErrorKind::Unavailable, "not now")),
            Err(_) => Ok(seen),
        }
    }
}

pub(crate) fn measure(number: u64) -> Measure {
    Measure { number, ..Measure::default() }
}

impl Measure {
    pub(crate) fn taking(self, ms: u64) -> Self {
        Self { ms, ..self }
    }

    pub(crate) fn spending(self, spends: Spends) -> Self {
        Self { spends, ..self }
    }
}

pub(crate) fn builder() -> MeshBuilder {
    Mesh::builder()
        .arm::<Measure>("worker", Worker)
        .arm::<Charge>("worker", Worker)
        .arm::<MeasureMany>("worker", Worker)
}

pub(crate) async fn mesh() -> Mesh {
    builder().start().await
}

/// A context of the mesh with limits.
pub(crate) fn limited(mesh: &Mesh, budget: Budget, time: Option<Duration>) -> Context {
    let mut parts = ContextParts::new();
    (parts.budget, parts.deadline) = (budget, time.map(Deadline::after));
    Context::from_parts(parts, mesh.transport())
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The steps of the calls that the mesh has seen, in their order.
pub(crate) fn steps(mesh: &Mesh) -> Vec<String> {
    mesh.calls().iter().map(|call| call.step.to_string()).collect()
}
