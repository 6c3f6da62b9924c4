//! The contracts of the arms: what each can be asked, and what it returns.

use octollm::{plan::Plan, prelude::*};

/// Turns a goal into steps.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "review.plan", output = Plan, idempotent)]
pub(crate) struct PlanReview {
    /// What is wanted, in words.
    #[garde(length(min = 1, max = 10_000))]
    pub(crate) goal: String,
}

/// Lists the Rust sources of the crate: their paths in the folder, with `/`, sorted.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.list", output = Vec<String>, idempotent, timeout = "60s")]
pub(crate) struct ListSources {}

/// Reads one source of the crate. One that is no text, or too large, is an invalid input.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.read", output = String, idempotent)]
pub(crate) struct ReadSource {
    /// As listed.
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// Judges one source of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.judge", output = FileReport, idempotent, timeout = "60s")]
pub(crate) struct JudgeSource {
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// Looks for secrets in one source of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.scan", output = Vec<Finding>, idempotent, timeout = "60s")]
pub(crate) struct ScanSource {
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// The figures and the findings of one source.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileReport {
    pub(crate) lines: usize,
    pub(crate) functions: usize,
    pub(crate) public_items: usize,
    pub(crate) findings: Vec<Finding>,
}

/// A place that a reviewer should see. Lines and columns are counted from 1, columns in characters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) rule: Rule,
    /// One clause, without secrets.
    pub(crate) message: String,
}

/// What is looked for, the gravest first. `RULES` in `report` defines each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rule {
    Secret,
    Unreadable,
    DoesNotParse,
    UnsafeWithoutSafety,
    MayPanic,
    LongFunction,
    MissingDocs,
    Todo,
}
