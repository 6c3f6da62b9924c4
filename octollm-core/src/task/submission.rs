//! A task as it is submitted: a contract, its input, and how to run it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Priority, TaskBudget, TaskRequest};
use crate::{
    contract::{ContractRef, TaskContract, Violation, input_schema},
    error::{ErrorKind, Failure},
    json::{self, RawJson},
};

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
    /// Time before which the task is not started, by the clock of the store. One that has passed does not delay it. At most
    /// [`MAX_DELAY`](Self::MAX_DELAY) ahead.
    pub run_at: Option<Timestamp>,
    /// The same as a time from the submission, by the clock of the store. Not together with `run_at`.
    pub run_in: Option<Duration>,
    /// Uniqueness key, 1 to 128 printable ASCII characters without spaces: see [`unique`](Self::unique).
    pub unique: Option<String>,
    /// Attempts of the whole task, 1 to [`MAX_ATTEMPTS`](Self::MAX_ATTEMPTS): see [`attempts`](Self::attempts).
    pub attempts: u32,
}

/// The form of the body with a contract.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("not" = serde_json::json!({
    "required": ["run_at", "run_in_seconds"],
    "properties": { "run_at": { "type": "string" }, "run_in_seconds": { "type": "number" } },
})))]
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
    /// The task is not started before this time. Not together with `run_in_seconds`.
    #[serde(default)]
    run_at: Option<Timestamp>,
    /// The task is not started before so many seconds have passed. Not together with `run_at`.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = MAX_DELAY_SECONDS))]
    run_in_seconds: Option<f64>,
    /// While a task of the caller and the contract with this key is not finished, the submission returns that task.
    #[serde(default)]
    #[schemars(regex(pattern = UNIQUE))]
    unique: Option<String>,
    /// Attempts of the whole task, which is run again after a failure that another attempt can help.
    #[serde(default = "once")]
    #[schemars(range(min = 1, max = Submission::MAX_ATTEMPTS))]
    attempts: u32,
}

const fn once() -> u32 {
    1
}

/// The longest uniqueness key.
const MAX_UNIQUE: usize = 128;
/// The form of a uniqueness key.
const UNIQUE: &str = "^[!-~]{1,128}$";
/// Ten years.
const MAX_DELAY_SECONDS: f64 = 315_360_000.0;

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
    /// The most attempts of a task.
    pub const MAX_ATTEMPTS: u32 = 100;
    /// The longest time before the start of a task: ten years of 365 days.
    pub const MAX_DELAY: Duration = Duration::from_secs(MAX_DELAY_SECONDS as u64);

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
        Ok(Self::new(C::SPEC.reference(), input))
    }

    fn new(contract: ContractRef, input: RawJson) -> Self {
        Self {
            contract,
            input,
            goal: None,
            priority: Priority::default(),
            budget: TaskBudget::default(),
            metadata: RawJson::object(),
            run_at: None,
            run_in: None,
            unique: None,
            attempts: 1,
        }
    }

    fn of_request(request: &TaskRequest, input: RawJson) -> Self {
        Self {
            goal: Some(request.goal.clone()),
            priority: request.priority,
            budget: request.budget,
            metadata: request.metadata.clone(),
            ..Self::new(TaskRequest::SPEC.reference(), input)
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
        let Named { contract, input, priority, budget, metadata, run_at, run_in_seconds, unique, attempts } =
            json::read_input(body)?;
        let run_in = run_in_seconds.map(delay).transpose().map_err(Failure::invalid)?;
        let options = Self { run_at, run_in, unique, attempts, ..Self::new(contract, input) };
        let named = Self { priority, budget, metadata, ..options };
        named.check().map_err(Failure::invalid)?;
        Ok(if named.contract == TaskRequest::SPEC.reference() { named.with_its_goal() } else { named })
    }

    /// Checks everything but the input.
    ///
    /// # Errors
    /// The members that are out of range, named as in the body of `POST /tasks`.
    pub fn check(&self) -> Result<(), Vec<Violation>> {
        let mut violations = self.budget.check().err().unwrap_or_default();
        let mut refuse = |refused: bool, path: &str, message: &str| {
            if refused {
                violations.push(Violation::new(path, message));
            }
        };
        refuse(!self.metadata.is_object(), "metadata", "is not an object");
        refuse(
            self.run_at.is_some() && self.run_in.is_some(),
            "run_at",
            "is set together with run_in_seconds",
        );
        refuse(
            self.run_in.is_some_and(|time| time > Self::MAX_DELAY),
            "run_in_seconds",
            "is not between 0 and ten years",
        );
        let is_key =
            |key: &str| (1..=MAX_UNIQUE).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        let unique = self.unique.as_deref().is_some_and(|key| !is_key(key));
        refuse(unique, "unique", "is not 1 to 128 printable ASCII characters without spaces");
        let attempts = (1..=Self::MAX_ATTEMPTS).contains(&self.attempts);
        refuse(!attempts, "attempts", "is not between 1 and 100");
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    /// A goal in words that is submitted by its contract, whose input has a priority, a budget and metadata too. The smaller
    /// budget applies; of priority and metadata the outer one applies unless it is the default.
    fn with_its_goal(self) -> Self {
        // An input of another form is refused by the dispatcher.
        let Ok(request) = self.input.read::<TaskRequest>() else { return self };
        let priority = if self.priority == Priority::default() { request.priority } else { self.priority };
        let budget = request.budget.narrowed(self.budget);
        let metadata =
            if self.metadata.is_empty_object() { request.metadata.clone() } else { self.metadata.clone() };
        Self { goal: Some(request.goal), priority, budget, metadata, ..self }
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
            #[serde(skip_serializing_if = "Option::is_none")]
            run_at: Option<Timestamp>,
            #[serde(skip_serializing_if = "Option::is_none")]
            run_in_seconds: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            unique: Option<&'a str>,
            #[serde(skip_serializing_if = "is_once")]
            attempts: u32,
        }
        let is_goal = self.contract == TaskRequest::SPEC.reference();
        let request = is_goal.then(|| self.to_request());
        if let Some(request) = &request
            && self.is_immediate()
        {
            return request.clone();
        }
        let Self { contract, input, priority, budget, metadata, run_at, run_in, unique, attempts, .. } = self;
        let body = Body {
            contract,
            input: request.as_ref().unwrap_or(input),
            priority: *priority,
            budget,
            metadata,
            run_at: *run_at,
            run_in_seconds: run_in.map(|time| time.as_secs_f64()),
            unique: unique.as_deref(),
            attempts: *attempts,
        };
        // Its members are JSON already, or have derived serializers.
        RawJson::of(&body).unwrap_or_default()
    }

    /// Whether it has no member that a goal in words does not have.
    fn is_immediate(&self) -> bool {
        self.run_at.is_none() && self.run_in.is_none() && self.unique.is_none() && self.attempts == 1
    }

    /// A goal in words with the priority, the budget and the metadata of the submission.
    fn to_request(&self) -> RawJson {
        let said = self.input.read::<TaskRequest>();
        if said.is_ok_and(|said| {
            (said.priority, said.budget, &said.metadata) == (self.priority, self.budget, &self.metadata)
        }) {
            return self.input.clone();
        }
        let mut sent = self.clone().priority(self.priority).budget(self.budget);
        sent.in_request("metadata", || Ok(self.metadata.clone()));
        sent.input
    }

    /// The submission with another goal in words and other metadata.
    pub(crate) fn with_request(self, request: TaskRequest, metadata: RawJson) -> Self {
        let Self { goal, input, .. } = request.into();
        Self { goal, input, metadata, ..self }
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self.in_request("priority", || RawJson::of(&priority));
        self
    }

    /// Sets the budget.
    #[must_use]
    pub fn budget(mut self, budget: TaskBudget) -> Self {
        self.budget = budget;
        self.in_request("budget", || RawJson::of(&budget));
        self
    }

    /// Sets the time before which the task is not started, by the clock of the store.
    #[must_use]
    pub fn run_at(mut self, at: Timestamp) -> Self {
        (self.run_at, self.run_in) = (Some(at), None);
        self
    }

    /// Sets the time after the submission before which the task is not started, by the clock of the store.
    #[must_use]
    pub fn run_in(mut self, time: Duration) -> Self {
        (self.run_at, self.run_in) = (None, Some(time));
        self
    }

    /// Sets a uniqueness key. While a task of the same caller and contract with this key is not finished, a submission queues
    /// nothing and returns that task, with [`Task::existing`](super::Task::existing), whatever its input.
    #[must_use]
    pub fn unique(mut self, key: impl Into<String>) -> Self {
        self.unique = Some(key.into());
        self
    }

    /// Sets how often the whole task may be run, 1 to [`MAX_ATTEMPTS`](Self::MAX_ATTEMPTS) times (default 1): it is run again after
    /// a failure that another attempt can help, and calls that were answered are not made again. A rerun has as many attempts.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// A goal in words has priority, budget and metadata within its own JSON.
    fn in_request(&mut self, field: &str, value: impl FnOnce() -> Result<RawJson, serde_json::Error>) {
        if self.contract != TaskRequest::SPEC.reference() {
            return;
        }
        if let (Ok(mut fields), Ok(value)) = (self.input.read::<BTreeMap<String, RawJson>>(), value()) {
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

/// # Errors
/// The seconds are negative or too many.
fn delay(seconds: f64) -> Result<Duration, Vec<Violation>> {
    let time = Duration::try_from_secs_f64(seconds);
    time.map_err(|_| vec![Violation::new("run_in_seconds", "is not between 0 and ten years")])
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_once(attempts: &u32) -> bool {
    *attempts == 1
}

fn unwritable(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::BadRequest, format!("the input cannot be written as JSON: {error}"))
        .before_execution()
}

#[cfg(test)]
mod tests;
