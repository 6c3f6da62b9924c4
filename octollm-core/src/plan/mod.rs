//! The stock arm `PlanRunner`: runs steps that are data, such as the plan of a model.
//!
//! ```
//! use octollm_core::plan::{PlanRunner, Plan};
//!
//! let plan: Plan = serde_json::from_str(
//!     r#"{ "steps": [
//!         { "id": "list",  "contract": "crate.list_sources", "input": { "path": "." } },
//!         { "id": "judge", "contract": "code.judge",
//!           "each": { "$output": "list", "pointer": "/files" },
//!           "input": { "root": ".", "file": { "$item": "/path" } } },
//!         { "id": "join",  "contract": "report.join", "input": { "reports": { "$output": "judge" } } } ] }"#,
//! )?;
//! // Nobody serves these contracts here, and so the plan is refused before the first call.
//! let refused = PlanRunner::new().check(&plan, &[]).unwrap_err();
//! assert_eq!(refused.iter().next().unwrap().path, "steps[0].contract");
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! Wherever an input takes a value, one of these objects may stand for it:
//!
//! | object | stands for |
//! |---|---|
//! | `{"$output": "list"}` | the output of the step `list`; of a step with `each`, the array of its outputs |
//! | `{"$output": "list", "pointer": "/files/0"}` | a part of it, by a JSON pointer (RFC 6901) |
//! | `{"$item": "/path"}` | a part of the item that the step runs for; `""` is the whole item |
//! | `{"$literal": …}` | what it holds, as it is: for data that looks like one of these |

mod check;
mod run;
mod template;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
    time::Duration,
};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::{Map, Value};

use crate::{
    arm::Arm,
    card::ArmCard,
    context::{CALLS_AT_ONCE, Context},
    contract::{ContractCard, ContractRef, ContractSpec, Spec, TaskContract, Violation},
    error::{ArmError, ConfigError, Failure},
    json::{RawJson, read_output, read_value},
};

/// The contract `plan.run`: runs a plan and answers what its steps answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The steps, in any order: what a step needs decides when it runs.
    pub steps: Vec<PlanStep>,
}

/// One step of a plan: a call, or one call for each item of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanStep {
    /// Names it within the plan: 1 to 64 of `[A-Za-z0-9_.-]`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_.-]{1,64}$"))]
    pub id: String,
    /// What is called, such as `code.validate`.
    pub contract: ContractRef,
    /// What it is called with: JSON in which `{"$output": step, "pointer": "/.."}` and `{"$item": "/.."}` stand for
    /// parts of earlier outputs and of the item. An integer beyond `u64` and `i64`, which a [`Value`] would round, is
    /// refused where a plan is read.
    #[serde(default = "no_fields", deserialize_with = "exact")]
    pub input: Value,
    /// A list, or what stands for one: the step then runs once for each item, and its output is the list of outputs.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact_or_none")]
    pub each: Option<Value>,
    /// Steps that must be done before, beside those that the input refers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

fn no_fields() -> Value {
    Value::Object(Map::new())
}

fn exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let json = RawJson::deserialize(deserializer)?;
    read_value(json.as_str().as_bytes()).map_err(D::Error::custom)
}

fn exact_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    exact(deserializer).map(|value| Some(value).filter(|value| !value.is_null()))
}

impl Plan {
    /// A plan of these steps.
    pub fn new(steps: impl IntoIterator<Item = PlanStep>) -> Self {
        Self { steps: steps.into_iter().collect() }
    }
}

/// Reads a plan from JSON.
impl FromStr for Plan {
    type Err = serde_json::Error;

    fn from_str(json: &str) -> Result<Self, Self::Err> {
        read_output(json.as_bytes())
    }
}

impl PlanStep {
    /// A call that needs nothing from other steps, unless its input refers to them.
    pub fn new(id: impl Into<String>, contract: ContractRef, input: Value) -> Self {
        Self { id: id.into(), contract, input, each: None, after: Vec::new() }
    }

    /// Runs it once for each item.
    #[must_use]
    pub fn each(mut self, items: Value) -> Self {
        self.each = Some(items);
        self
    }

    /// Runs it only when another step is done.
    #[must_use]
    pub fn after(mut self, step: impl Into<String>) -> Self {
        self.after.push(step.into());
        self
    }
}

/// What came of a plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanOutput {
    /// The output of each step by its id; of a step with `each`, the list of its outputs in the order of the items.
    pub outputs: BTreeMap<String, Value>,
    /// The steps that ran, in the order of the plan.
    pub ran: Vec<String>,
}

impl PlanOutput {
    /// The output of a step, read as a type. A step that did not run reads as null.
    ///
    /// # Errors
    /// When the output has another shape.
    pub fn read<T: DeserializeOwned>(&self, step: &str) -> Result<T, serde_json::Error> {
        T::deserialize(self.outputs.get(step).unwrap_or(&Value::Null))
    }
}

impl TaskContract for Plan {
    type Output = PlanOutput;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("plan.run", "/plan", "plan:run")
        .timeout(Duration::from_secs(600))
        .summary("Runs steps given as data: independent ones in parallel, each when what it needs is done.")
        .fingerprint(ContractCard::fingerprint_of::<Self>);
}

/// Runs plans: steps that need nothing from each other in parallel, each as soon as what it needs is done.
///
/// A plan is refused as a whole, and every fault of it told, before the first call. The first step that fails fails
/// the plan; calls that still run are given up. Under a brain each call is journaled by the id of its step, `judge`
/// or `judge[3]`, so that a plan that is taken up again goes on where it was.
#[derive(Debug, Clone, Default)]
pub struct PlanRunner {
    config: PlanConfig,
    specs: HashMap<ContractRef, Spec>,
}

/// The limits of a [`PlanRunner`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanConfig {
    /// How many calls of one plan run at a time, over all its steps.
    pub calls_at_once: usize,
    /// How many steps a plan may have.
    pub max_steps: usize,
}

impl Default for PlanConfig {
    /// 16 calls at once, 256 steps.
    fn default() -> Self {
        Self { calls_at_once: CALLS_AT_ONCE, max_steps: 256 }
    }
}

impl PlanRunner {
    /// With the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// With limits of its own.
    ///
    /// # Errors
    /// A [`ConfigError`] when one of them lets nothing run.
    pub fn with_config(config: PlanConfig) -> Result<Self, ConfigError> {
        let zero = [("calls_at_once", config.calls_at_once), ("max_steps", config.max_steps)]
            .into_iter()
            .find(|(_, limit)| *limit == 0);
        match zero {
            Some((setting, _)) => Err(ConfigError::new(setting, "is 0")),
            None => Ok(Self { config, specs: HashMap::new() }),
        }
    }

    /// Adds what the program knows of the contract `C`: whether a step that calls it may be made twice, and its time limit.
    ///
    /// A plan is data, and names its contracts alone. Without their facts no step is idempotent: it is not retried once it
    /// may have run, and where a brain crashed in the middle of it, it fails as
    /// [`OutcomeUnknown`](crate::error::ErrorKind::OutcomeUnknown) in place of running twice.
    #[must_use]
    pub fn contract<C: TaskContract>(mut self) -> Self {
        self.specs.insert(C::SPEC.reference(), Spec::of::<C>());
        self
    }

    /// Adds what the program's user knows of a contract: see [`contract`](Self::contract).
    #[must_use]
    pub fn spec(mut self, spec: Spec) -> Self {
        self.specs.insert(spec.reference(), spec);
        self
    }

    /// Looks for everything that would keep a plan from running with the arms of these cards.
    ///
    /// # Errors
    /// Every fault, with paths such as `steps[2].input.file`: an empty or too long plan, ids that are malformed or
    /// taken, references to steps that are not there or that go in a circle, `$item` without `each`, malformed
    /// pointers, contracts that nobody offers, and fields that a contract requires and the input lacks.
    pub fn check(&self, plan: &Plan, cards: &[ArmCard]) -> Result<(), Vec<Violation>> {
        check::check(plan, cards, self.config.max_steps).map(drop)
    }

    /// Runs a plan from within another arm. The ids of its steps name its calls in the journal: where one task runs
    /// several plans, they must differ over all of them.
    ///
    /// # Errors
    /// [`ErrorKind::ValidationFailed`] as [`check`](Self::check), before the first call; the failure of the first
    /// step that fails; [`ErrorKind::BadResponse`] when an output lacks what another step takes from it.
    ///
    /// # Cancel safety
    /// Dropping the future gives up all calls that run.
    ///
    /// [`ErrorKind::ValidationFailed`]: crate::error::ErrorKind::ValidationFailed
    /// [`ErrorKind::BadResponse`]: crate::error::ErrorKind::BadResponse
    pub async fn run(&self, plan: &Plan, cx: &Context) -> Result<PlanOutput, ArmError> {
        let cards = cx.cards().await;
        let checked = check::check(plan, &cards, self.config.max_steps).map_err(Failure::invalid)?;
        run::run(checked, &self.specs, self.config.calls_at_once, cx).await
    }
}

#[async_trait]
impl Arm<Plan> for PlanRunner {
    async fn execute(&self, plan: Plan, cx: &Context) -> Result<PlanOutput, ArmError> {
        self.run(&plan, cx).await
    }
}
