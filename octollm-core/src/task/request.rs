//! What is submitted to a brain.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::TaskResult;
use crate::{
    budget::{Budget, Cost, narrower},
    contract::{ContractCard, ContractRef, ContractSpec, TaskContract, Violation, input_schema},
    error::{ErrorKind, Failure},
    json::{self, RawJson},
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
const MAX_DOLLARS: f64 = 18_446_744_073.709_55;

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
    fn narrowed(self, other: Self) -> Self {
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

/// A task to be queued: a contract, its input, and how to run it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Submission {
    /// Contract of the task.
    pub contract: ContractRef,
    /// Input of the contract as JSON.
    pub input: RawJson,
    /// Goal in words. `None` for another contract than [`TaskRequest`].
    pub goal: Option<String>,
    /// Priority of the task.
    pub priority: Priority,
    /// Budget of the task.
    pub budget: TaskBudget,
    /// Metadata that is stored with the task and not read: an object.
    pub metadata: RawJson,
}

/// The form of the body with a contract.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    contract: ContractRef,
    #[serde(default = "RawJson::object")]
    input: RawJson,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    budget: TaskBudget,
    #[serde(default = "RawJson::object")]
    #[schemars(with = "Map<String, Value>")]
    metadata: RawJson,
}

/// The two forms of the body of `POST /tasks`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Submission")]
#[expect(dead_code, reason = "only its schema is used")]
enum Body {
    Goal(TaskRequest),
    Contract(Named),
}

impl Submission {
    /// The JSON Schema of what [`from_json`](Self::from_json) reads. Its definitions are in `$defs`.
    pub fn json_schema() -> Value {
        input_schema::<Body>()
    }

    /// A submission of this input.
    ///
    /// # Errors
    /// A [`Failure`] of kind bad request when the input cannot be written as JSON, as with a number that is infinite or NaN.
    pub fn of<C: TaskContract>(input: &C) -> Result<Self, Failure> {
        let written = json::write_input(input).map_err(unwritable)?;
        let input = RawJson::from_slice(&written).map_err(unwritable)?;
        if C::SPEC.reference() == TaskRequest::SPEC.reference()
            && let Ok(request) = input.read::<TaskRequest>()
        {
            return Ok(Self::of_request(&request, input));
        }
        Ok(Self {
            contract: C::SPEC.reference(),
            input,
            goal: None,
            priority: Priority::default(),
            budget: TaskBudget::default(),
            metadata: RawJson::object(),
        })
    }

    fn of_request(request: &TaskRequest, input: RawJson) -> Self {
        Self {
            contract: TaskRequest::SPEC.reference(),
            goal: Some(request.goal.clone()),
            priority: request.priority,
            budget: request.budget,
            metadata: request.metadata.clone(),
            input,
        }
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
        if !metadata.is_object() {
            return Err(Failure::invalid(vec![Violation::new("metadata", "is not an object")]));
        }
        let named = Self { contract, input, goal: None, priority, budget, metadata };
        Ok(if named.contract == TaskRequest::SPEC.reference() { named.with_its_goal() } else { named })
    }

    /// A goal in words that is submitted by its contract, whose input has a priority, a budget and metadata too. The smaller
    /// budget applies; of priority and metadata the outer one applies unless it is the default.
    fn with_its_goal(self) -> Self {
        // An input of another form is refused by the dispatcher.
        let Ok(request) = self.input.read::<TaskRequest>() else { return self };
        let said = Self::of_request(&request, self.input);
        Self {
            priority: if self.priority == Priority::default() { said.priority } else { self.priority },
            budget: said.budget.narrowed(self.budget),
            metadata: if self.metadata.is_empty_object() { said.metadata } else { self.metadata },
            ..said
        }
    }

    /// The body of `POST /tasks` for this submission.
    pub fn to_json(&self) -> RawJson {
        #[derive(Serialize)]
        struct Body<'a> {
            contract: &'a ContractRef,
            input: &'a RawJson,
            priority: Priority,
            budget: &'a TaskBudget,
            metadata: &'a RawJson,
        }
        if self.contract == TaskRequest::SPEC.reference() {
            return self.to_request();
        }
        let Self { contract, input, priority, budget, metadata, .. } = self;
        let body = Body { contract, input, priority: *priority, budget, metadata };
        // Its members are JSON already, or have derived serializers.
        RawJson::of(&body).unwrap_or_default()
    }

    /// A goal in words with the priority, the budget and the metadata of the submission.
    fn to_request(&self) -> RawJson {
        let said = self.input.read::<TaskRequest>();
        if said.is_ok_and(|said| {
            (said.priority, said.budget, &said.metadata) == (self.priority, self.budget, &self.metadata)
        }) {
            return self.input.clone();
        }
        let mut sent = self.clone().with_priority(self.priority).with_budget(self.budget);
        sent.in_request("metadata", Ok(self.metadata.clone()));
        sent.input
    }

    /// Sets the priority.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self.in_request("priority", RawJson::of(&priority));
        self
    }

    /// Sets the budget.
    #[must_use]
    pub fn with_budget(mut self, budget: TaskBudget) -> Self {
        self.budget = budget;
        self.in_request("budget", RawJson::of(&budget));
        self
    }

    /// A goal in words has priority, budget and metadata within its own JSON.
    fn in_request(&mut self, field: &str, value: Result<RawJson, serde_json::Error>) {
        if self.contract != TaskRequest::SPEC.reference() {
            return;
        }
        if let (Ok(mut fields), Ok(value)) = (self.input.read::<BTreeMap<String, RawJson>>(), value) {
            fields.insert(field.to_owned(), value);
            if let Ok(input) = RawJson::of(&fields) {
                self.input = input;
            }
        }
    }
}

impl From<TaskRequest> for Submission {
    fn from(request: TaskRequest) -> Self {
        // It has texts, numbers and raw JSON alone, which can always be written.
        let input = RawJson::of(&request).unwrap_or_default();
        Self::of_request(&request, input)
    }
}

fn unwritable(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::BadRequest, format!("the input cannot be written as JSON: {error}"))
        .before_execution()
}

#[cfg(test)]
mod tests;
