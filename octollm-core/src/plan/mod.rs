//! Plans: steps as data, such as the plan of a model, and the stock arm that runs them.
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
//! // No arm serves these contracts, so that the plan is refused before the first call.
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
//! | `{"$literal": …}` | its value as it is, for data that looks like one of these |

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

/// A plan, and the contract `plan.run` that returns the outputs of its steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Steps in any order. A step runs when the steps that it needs are done.
    pub steps: Vec<PlanStep>,
}

/// One step of a plan: a call, or one call for each item of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanStep {
    /// Id of the step within the plan: 1 to 64 of `[A-Za-z0-9_.-]`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_.-]{1,64}$"))]
    pub id: String,
    /// Contract of the call, such as `code.validate`.
    pub contract: ContractRef,
    /// Input of the call: JSON in which `{"$output": step, "pointer": "/.."}` and `{"$item": "/.."}` stand for
    /// parts of earlier outputs and of the item. An integer beyond `u64` and `i64`, which a [`Value`] would round, is
    /// an error where a plan is read.
    #[serde(default = "no_fields", deserialize_with = "exact")]
    pub input: Value,
    /// A list, or an object that stands for one. The step runs once for each item, and its output is the list of outputs.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact_or_none")]
    pub each: Option<Value>,
    /// Further steps that have to be done before this one.
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
    /// A step that calls this contract with this input.
    pub fn new(id: impl Into<String>, contract: ContractRef, input: Value) -> Self {
        Self { id: id.into(), contract, input, each: None, after: Vec::new() }
    }

    /// Runs the step once for each item.
    #[must_use]
    pub fn each(mut self, items: Value) -> Self {
        self.each = Some(items);
        self
    }

    /// Runs the step after another one.
    #[must_use]
    pub fn after(mut self, step: impl Into<String>) -> Self {
        self.after.push(step.into());
        self
    }
}

/// The outputs of a plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanOutput {
    /// Outputs by the ids of the steps. That of a step with `each` is the list of its outputs, in the order of the items.
    pub outputs: BTreeMap<String, Value>,
    /// Ids of the steps that ran, in the order of the plan.
    pub ran: Vec<String>,
}

impl PlanOutput {
    /// The output of a step, read as a type. A step that did not run reads as null.
    ///
    /// # Errors
    /// When the output has another form.
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

    /// Checks what does not depend on arms: the ids of the steps, and what they take from each other.
    fn check(&self) -> Result<(), Vec<Violation>> {
        check::check(self, None, usize::MAX, usize::MAX).map(drop)
    }
}

/// The stock arm that runs plans: independent steps in parallel, each as soon as the steps that it needs are done.
///
/// A plan with mistakes is refused before the first call, with all of them. The first step that fails ends the plan: no call is
/// sent after it, and calls in flight are dropped if their contracts are idempotent, and awaited if not. Under a brain each call is journaled by the id of its step, `judge` or `judge[3]`, so that a
/// recovered plan continues where it was.
#[derive(Debug, Clone)]
pub struct PlanRunner {
    calls_at_once: usize,
    max_steps: usize,
    max_calls: usize,
    specs: HashMap<ContractRef, Spec>,
}

/// The highest `max_calls`.
const MOST_CALLS: usize = 100_000;

impl Default for PlanRunner {
    fn default() -> Self {
        Self { calls_at_once: CALLS_AT_ONCE, max_steps: 256, max_calls: 1_000, specs: HashMap::new() }
    }
}

impl PlanRunner {
    /// A runner with the default limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many calls of a plan run at a time, over all its steps (at least 1, default 16).
    ///
    /// # Errors
    /// A [`ConfigError`] for 0.
    pub fn calls_at_once(self, calls: usize) -> Result<Self, ConfigError> {
        Ok(Self { calls_at_once: at_least_one("calls_at_once", calls)?, ..self })
    }

    /// Sets how many steps a plan may have (at least 1, default 256).
    ///
    /// # Errors
    /// A [`ConfigError`] for 0.
    pub fn max_steps(self, steps: usize) -> Result<Self, ConfigError> {
        Ok(Self { max_steps: at_least_one("max_steps", steps)?, ..self })
    }

    /// Sets how many calls a plan may make, over all items of all its steps (at least 1, at most 100 000, default 1 000).
    ///
    /// # Errors
    /// A [`ConfigError`] for 0, or for more than 100 000.
    pub fn max_calls(self, calls: usize) -> Result<Self, ConfigError> {
        if calls > MOST_CALLS {
            return Err(ConfigError::new(
                "max_calls",
                format!("is {calls}; at most {MOST_CALLS} are allowed"),
            ));
        }
        Ok(Self { max_calls: at_least_one("max_calls", calls)?, ..self })
    }

    /// Adds the facts of the contract `C`: whether it is idempotent, and its time limit.
    ///
    /// A plan names its contracts alone. A step of a contract without facts is not idempotent: it is not retried once it may
    /// have run, and fails as [`OutcomeUnknown`](crate::error::ErrorKind::OutcomeUnknown) where a brain crashed during the call.
    #[must_use]
    pub fn contract<C: TaskContract>(mut self) -> Self {
        self.specs.insert(C::SPEC.reference(), Spec::of::<C>());
        self
    }

    /// Adds the facts of a contract that is known at run time: see [`contract`](Self::contract).
    #[must_use]
    pub fn spec(mut self, spec: Spec) -> Self {
        self.specs.insert(spec.reference(), spec);
        self
    }

    /// Checks whether a plan can run with the arms of these cards.
    ///
    /// # Errors
    /// Every mistake, with paths such as `steps[2].input.file`: an empty or too long plan, more calls than are allowed, ids that are malformed or repeated,
    /// references to steps that do not exist or that form a cycle, `$item` without `each`, malformed pointers, contracts that no
    /// arm offers, and required fields that the input lacks.
    pub fn check(&self, plan: &Plan, cards: &[ArmCard]) -> Result<(), Vec<Violation>> {
        check::check(plan, Some(cards), self.max_steps, self.max_calls).map(drop)
    }

    /// Runs a plan within another arm. The ids of its steps name its calls in the journal: where a task runs several plans, the ids
    /// have to differ over all of them.
    ///
    /// # Errors
    /// [`ErrorKind::ValidationFailed`] as [`check`](Self::check), before the first call; the failure of the first
    /// step that fails; [`ErrorKind::BadResponse`] when an output lacks what another step takes from it, or
    /// has more items than calls are left.
    ///
    /// # Cancel safety
    /// Dropping the future drops all calls that run.
    ///
    /// [`ErrorKind::ValidationFailed`]: crate::error::ErrorKind::ValidationFailed
    /// [`ErrorKind::BadResponse`]: crate::error::ErrorKind::BadResponse
    pub async fn run(&self, plan: &Plan, cx: &Context) -> Result<PlanOutput, ArmError> {
        let cards = cx.cards().await;
        let checked =
            check::check(plan, Some(&cards), self.max_steps, self.max_calls).map_err(Failure::invalid)?;
        run::run(checked, &self.specs, self.calls_at_once, cx).await
    }
}

fn at_least_one(setting: &'static str, count: usize) -> Result<usize, ConfigError> {
    if count == 0 { Err(ConfigError::new(setting, "is 0")) } else { Ok(count) }
}

#[async_trait]
impl Arm<Plan> for PlanRunner {
    async fn execute(&self, plan: Plan, cx: &Context) -> Result<PlanOutput, ArmError> {
        self.run(&plan, cx).await
    }
}
