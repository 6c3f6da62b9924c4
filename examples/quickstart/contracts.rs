//! What the arms of the review can be asked, and what they return.

use octollm::{plan::Plan, prelude::*};

/// Turns a goal into steps.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "review.plan", output = Plan, idempotent)]
pub(crate) struct PlanReview {
    /// What is wanted, in words.
    #[garde(length(min = 1, max = 10_000))]
    pub(crate) goal: String,
}

/// Lists the Rust sources of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.list", output = Listing, idempotent, timeout = "60s")]
pub(crate) struct ListSources {}

/// Reads one source of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.read", output = String, idempotent)]
pub(crate) struct ReadSource {
    /// Relative to the crate, as listed.
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
#[task(name = "source.scan", output = Vec<Secret>, idempotent, timeout = "60s")]
pub(crate) struct ScanSource {
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// The sources of a crate, by path: relative to the crate, with `/`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Listing {
    pub(crate) files: Vec<String>,
    pub(crate) skipped: Vec<Skipped>,
}

/// A source that cannot be read.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Skipped {
    pub(crate) path: String,
    /// Why, in one clause.
    pub(crate) reason: String,
}

/// What one source contains, and which rules it breaks. The counts are 0 if it does not parse.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileReport {
    pub(crate) path: String,
    pub(crate) lines: usize,
    /// Functions that have a body.
    pub(crate) functions: usize,
    /// Items that need documentation.
    pub(crate) public_items: usize,
    /// Modules in other files that only tests compile: their paths without `.rs`.
    pub(crate) test_modules: Vec<String>,
    /// Modules in other files that the documentation hides: their paths without `.rs`.
    pub(crate) hidden_modules: Vec<String>,
    /// By line.
    pub(crate) findings: Vec<Finding>,
}

/// A place where a rule does not hold. Lines and columns are counted from 1, columns in characters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) rule: Rule,
    pub(crate) line: usize,
    pub(crate) column: usize,
    /// What is wrong, in one clause.
    pub(crate) message: String,
}

/// What a source is judged by, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rule {
    /// The file is not Rust, or nests too deeply to be parsed safely.
    DoesNotParse,
    /// An `unsafe` block or `unsafe impl` without a `SAFETY:` comment.
    UnsafeWithoutSafety,
    /// `.unwrap()`, `.expect(…)` or `panic!` outside tests.
    MayPanic,
    /// A function has more than sixty lines.
    LongFunction,
    /// A public item has no documentation.
    MissingDocs,
    /// A comment that leaves work for later.
    Todo,
}

/// A credential in a source.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Secret {
    pub(crate) path: String,
    /// What it gives access to: `github-token`.
    pub(crate) kind: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
    /// At most its first four characters, and its length.
    pub(crate) masked: String,
}
