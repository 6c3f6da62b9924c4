//! What a brain is asked for.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::TaskResult;
use crate::{
    budget::{Budget, Cost},
    contract::{ContractCard, ContractRef, ContractSpec, NoChunk, TaskContract, Violations},
    error::Failure,
    json,
};

/// A goal in words: the contract that `POST /tasks` takes by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// 1 to 10 000 characters.
    #[schemars(length(min = 1, max = 10_000))]
    pub goal: String,
    /// What must hold on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// What must hold at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acceptance_criteria: Vec<String>,
    /// Whatever else the work needs to know.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub context: Map<String, Value>,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// What it may use up.
    #[serde(default)]
    pub budget: TaskBudget,
    /// Kept with the task, and not read.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl TaskRequest {
    /// A goal, and nothing else said.
    pub fn new(goal: impl Into<String>) -> Self {
        Self { goal: goal.into(), ..Self::default() }
    }
}

impl TaskContract for TaskRequest {
    type Output = TaskResult;
    type Chunk = NoChunk;
    const SPEC: ContractSpec = ContractSpec::new("task.run", "/run", "task:run")
        .timeout(Duration::from_secs(600))
        .summary("Works towards a goal that is given in words.")
        .fingerprint(ContractCard::fingerprint_of::<Self>);

    fn check(&self) -> Result<(), Violations> {
        let mut violations = Violations::default();
        if self.goal.trim().is_empty() {
            violations.push("goal", "is empty");
        }
        if self.goal.chars().nth(10_000).is_some() {
            violations.push("goal", "is longer than 10000 characters");
        }
        if let Err(more) = self.budget.check() {
            violations.extend(more);
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }
}

/// How urgent a task is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// In its turn.
    #[default]
    Medium,
    /// Before the others.
    High,
    /// Before all others.
    Critical,
}

/// What a task may use up. What is left out is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskBudget {
    /// Tokens read and written by models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Seconds from the moment it starts to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_time_seconds: Option<f64>,
    /// US dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost_dollars: Option<f64>,
}

impl TaskBudget {
    /// Checks that the amounts are amounts.
    ///
    /// # Errors
    /// The fields that are negative, not finite or out of range.
    pub fn check(&self) -> Result<(), Violations> {
        let mut violations = Violations::default();
        if self.max_time_seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds <= 31_536_000.0)) {
            violations.push("budget.max_time_seconds", "is not between 0 and a year");
        }
        if self.max_cost_dollars.is_some_and(|dollars| Cost::from_dollars(dollars).is_err()) {
            violations.push("budget.max_cost_dollars", "is not an amount of money");
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    /// Tokens and money, as they travel.
    pub fn budget(&self) -> Budget {
        let cost = self.max_cost_dollars.and_then(|dollars| Cost::from_dollars(dollars).ok());
        Budget { tokens: self.max_tokens, cost }
    }

    /// No more tokens and money than `left`.
    #[must_use]
    pub fn within(self, left: Budget) -> Self {
        let Budget { tokens, cost } = self.budget().within(left);
        Self { max_tokens: tokens, max_cost_dollars: cost.map(Cost::dollars), ..self }
    }

    /// The time limit.
    pub fn time(&self) -> Option<Duration> {
        self.max_time_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}

/// A task that is to be queued: a contract, its input, and how to treat it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Submission {
    /// What is asked.
    pub contract: ContractRef,
    /// The contract's JSON.
    pub input: Value,
    /// The goal in words, where there is one.
    pub goal: Option<String>,
    /// How urgent it is.
    pub priority: Priority,
    /// What it may use up.
    pub budget: TaskBudget,
    /// Kept with the task, and not read.
    pub metadata: Map<String, Value>,
}

/// The body that names its contract.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    contract: ContractRef,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    budget: TaskBudget,
    #[serde(default)]
    metadata: Map<String, Value>,
}

impl Submission {
    /// A task that runs `task`.
    ///
    /// # Errors
    /// [`InvalidSubmission`] when it cannot be written as JSON.
    pub fn of<C: TaskContract>(task: &C) -> Result<Self, InvalidSubmission> {
        let input = serde_json::to_value(task).map_err(InvalidSubmission)?;
        if C::SPEC.reference() == TaskRequest::SPEC.reference()
            && let Ok(request) = serde_json::from_value::<TaskRequest>(input.clone())
        {
            return Ok(Self::from(request).with_input(input));
        }
        Ok(Self {
            contract: C::SPEC.reference(),
            input,
            goal: None,
            priority: Priority::default(),
            budget: TaskBudget::default(),
            metadata: Map::new(),
        })
    }

    /// Reads the body of `POST /tasks`: a goal, or a contract with its input.
    ///
    /// # Errors
    /// A [`Failure`] of kind bad request or validation failed.
    pub fn from_json(body: &[u8]) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Either {
            #[serde(default)]
            contract: Option<serde::de::IgnoredAny>,
        }
        let names_contract = serde_json::from_slice::<Either>(body).is_ok_and(|body| body.contract.is_some());
        if !names_contract {
            let request: TaskRequest = json::read_input(body)?;
            request.check().map_err(Failure::invalid)?;
            return Ok(request.into());
        }
        let Named { contract, input, priority, budget, metadata } = json::read_input(body)?;
        budget.check().map_err(Failure::invalid)?;
        Ok(Self { contract, input, goal: None, priority, budget, metadata })
    }

    /// The body of `POST /tasks` that asks for this.
    pub fn to_json(&self) -> Value {
        if self.contract == TaskRequest::SPEC.reference() {
            return self.input.clone();
        }
        serde_json::json!({
            "contract": self.contract, "input": self.input, "priority": self.priority,
            "budget": self.budget, "metadata": self.metadata,
        })
    }

    /// Replaces the contract's JSON; a goal follows it.
    #[must_use]
    pub fn with_input(mut self, input: Value) -> Self {
        if self.goal.is_some() {
            self.goal = input.get("goal").and_then(Value::as_str).map(str::to_owned);
        }
        self.input = input;
        self
    }

    /// Sets how urgent it is.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets what it may use up.
    #[must_use]
    pub fn with_budget(mut self, budget: TaskBudget) -> Self {
        self.budget = budget;
        self
    }
}

impl From<TaskRequest> for Submission {
    fn from(request: TaskRequest) -> Self {
        Self {
            contract: TaskRequest::SPEC.reference(),
            goal: Some(request.goal.clone()),
            priority: request.priority,
            budget: request.budget,
            metadata: request.metadata.clone(),
            input: serde_json::to_value(request).unwrap_or_default(),
        }
    }
}

/// A task that cannot be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("the task cannot be written as JSON")]
pub struct InvalidSubmission(#[source] serde_json::Error);
