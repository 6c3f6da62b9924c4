//! A goal in words, and the priority and the budget of a task.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::TaskResult;
use crate::{
    budget::{Budget, Cost, narrower},
    contract::{ContractCard, ContractSpec, TaskContract, Violation},
    json::RawJson,
};

/// A goal in words: the contract that `POST /tasks` takes by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskRequest {
    /// 1 to 10 000 characters.
    #[schemars(length(min = 1, max = 10_000), regex(pattern = NOT_BLANK))]
    pub goal: String,
    /// Rules for the work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Conditions that the result has to meet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acceptance_criteria: Vec<String>,
    /// Further facts for the work: an object.
    #[serde(default = "RawJson::object", skip_serializing_if = "RawJson::is_empty_object")]
    #[schemars(with = "Map<String, Value>")]
    pub context: RawJson,
    /// Priority of the task.
    #[serde(default)]
    pub priority: Priority,
    /// Budget of the task.
    #[serde(default)]
    pub budget: TaskBudget,
    /// Metadata that is stored with the task and not read: an object.
    #[serde(default = "RawJson::object", skip_serializing_if = "RawJson::is_empty_object")]
    #[schemars(with = "Map<String, Value>")]
    pub metadata: RawJson,
}

/// A pattern for texts that have a character other than white space, as `str::trim` reads it.
const NOT_BLANK: &str = r"[^\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]";

impl TaskRequest {
    /// A request for this goal.
    pub fn new(goal: impl Into<String>) -> Self {
        Self {
            goal: goal.into(),
            constraints: Vec::new(),
            acceptance_criteria: Vec::new(),
            context: RawJson::object(),
            priority: Priority::default(),
            budget: TaskBudget::default(),
            metadata: RawJson::object(),
        }
    }
}

impl TaskContract for TaskRequest {
    type Output = TaskResult;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("task.run", "/run", "task:run")
        .timeout(Duration::from_secs(600))
        .summary("Works towards a goal that is given in words.")
        .fingerprint(ContractCard::fingerprint_of::<Self>);

    fn check(&self) -> Result<(), Vec<Violation>> {
        let mut violations = Vec::new();
        if self.goal.trim().is_empty() {
            violations.push(Violation::new("goal", "is empty"));
        }
        if self.goal.chars().nth(10_000).is_some() {
            violations.push(Violation::new("goal", "is longer than 10000 characters"));
        }
        for (field, json) in [("context", &self.context), ("metadata", &self.metadata)] {
            if !json.is_object() {
                violations.push(Violation::new(field, "is not an object"));
            }
        }
        if let Err(more) = self.budget.check() {
            violations.extend(more);
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }
}

/// The priority of a task.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After all others.
    Low,
    /// The default.
    #[default]
    Medium,
    /// Before medium and low.
    High,
    /// Before all others.
    Critical,
}

/// The budget of a task. A member that is absent does not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskBudget {
    /// Tokens read and written by models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Seconds from the first start of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = MAX_SECONDS))]
    pub max_time_seconds: Option<f64>,
    /// US dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = MAX_DOLLARS))]
    pub max_cost_dollars: Option<f64>,
}

/// A year.
const MAX_SECONDS: f64 = 31_536_000.0;
/// The largest [`Cost`].
pub(super) const MAX_DOLLARS: f64 = 18_446_744_073.709_55;

impl TaskBudget {
    /// Checks every member.
    ///
    /// # Errors
    /// The members that are negative, not finite or out of range.
    pub fn check(&self) -> Result<(), Vec<Violation>> {
        let mut violations = Vec::new();
        if self.max_time_seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds <= MAX_SECONDS)) {
            violations.push(Violation::new("budget.max_time_seconds", "is not between 0 and a year"));
        }
        if self.max_cost_dollars.is_some_and(|dollars| Cost::from_dollars(dollars).is_err()) {
            violations.push(Violation::new("budget.max_cost_dollars", "is not an amount of money"));
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    /// The tokens and the cost, in the form of a call.
    pub fn budget(&self) -> Budget {
        let cost = self.max_cost_dollars.and_then(|dollars| Cost::from_dollars(dollars).ok());
        Budget { tokens: self.max_tokens, cost }
    }

    /// Limits tokens and cost to `left`.
    #[must_use]
    pub fn within(self, left: Budget) -> Self {
        let Budget { tokens, cost } = self.budget().within(left);
        Self { max_tokens: tokens, max_cost_dollars: cost.map(Cost::dollars), ..self }
    }

    /// The smaller of both, member by member. A value that is no number stays, for [`check`](Self::check) to refuse.
    pub(super) fn narrowed(self, other: Self) -> Self {
        let both = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(if a < b || a.is_nan() { a } else { b }),
            (a, b) => a.or(b),
        };
        Self {
            max_tokens: narrower(self.max_tokens, other.max_tokens),
            max_time_seconds: both(self.max_time_seconds, other.max_time_seconds),
            max_cost_dollars: both(self.max_cost_dollars, other.max_cost_dollars),
        }
    }

    /// The time limit.
    pub fn time(&self) -> Option<Duration> {
        self.max_time_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}
