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
    /// Relative to the crate, as listed.
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// Looks for secrets in one source of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.scan", output = FileSecrets, idempotent, timeout = "60s")]
pub(crate) struct ScanSource {
    /// Relative to the crate, as listed.
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// The sources of a crate.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Listing {
    /// Those that can be read, by path.
    pub(crate) files: Vec<SourceFile>,
    /// Those that cannot, by path.
    pub(crate) skipped: Vec<Skipped>,
}

/// A source that can be read.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SourceFile {
    /// Relative to the crate, with `/`.
    pub(crate) path: String,
}

/// A source that cannot be read.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Skipped {
    /// Relative to the crate, with `/`.
    pub(crate) path: String,
    /// Why, in one clause.
    pub(crate) reason: String,
}

/// What one source contains, and which rules it breaks.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileReport {
    /// Relative to the crate, with `/`.
    pub(crate) path: String,
    pub(crate) lines: usize,
    /// Functions that have a body; 0 if the file does not parse.
    pub(crate) functions: usize,
    /// Items that need documentation; 0 if the file does not parse.
    pub(crate) public_items: usize,
    /// Modules in other files that only tests compile: their paths without `.rs`.
    pub(crate) test_modules: Vec<String>,
    /// Modules in other files that the documentation hides: their paths without `.rs`.
    pub(crate) hidden_modules: Vec<String>,
    /// By line.
    pub(crate) findings: Vec<Finding>,
}

/// A place where a rule does not hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Finding {
    pub(crate) rule: Rule,
    pub(crate) line: usize,
    /// In characters.
    pub(crate) column: usize,
    /// What is wrong, in one clause.
    pub(crate) message: String,
}

/// What a source is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rule {
    /// The file is not Rust, or nests too deeply to be parsed safely.
    DoesNotParse,
    /// A public item has no documentation.
    MissingDocs,
    /// A function has more than sixty lines.
    LongFunction,
    /// `.unwrap()`, `.expect(…)` or `panic!` outside tests.
    MayPanic,
    /// An `unsafe` block or `unsafe impl` without a `SAFETY:` comment.
    UnsafeWithoutSafety,
    /// A comment that leaves work for later.
    Todo,
}

/// The secrets of one source.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileSecrets {
    /// Relative to the crate, with `/`.
    pub(crate) path: String,
    /// By line.
    pub(crate) secrets: Vec<Secret>,
}

/// A credential in a source.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Secret {
    /// What it gives access to: `github-token`.
    pub(crate) kind: String,
    pub(crate) line: usize,
    /// In characters.
    pub(crate) column: usize,
    /// At most its first four characters, and its length.
    pub(crate) masked: String,
}
