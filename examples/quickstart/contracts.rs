//! What the arms of the review can be asked.

use octollm::{plan::Plan, prelude::*};

use crate::{judge::FileReport, secrets::FileSecrets, source::Listing};

/// Lists the Rust sources of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.list", output = Listing, idempotent, timeout = "60s")]
pub(crate) struct ListSources {}

/// Reads one source of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.read", output = String, idempotent)]
pub(crate) struct ReadSource {
    /// Below the crate, as it was listed.
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// Judges one source of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.judge", output = FileReport, idempotent, timeout = "60s")]
pub(crate) struct JudgeSource {
    /// Below the crate, as it was listed.
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// Looks for secrets in one source of the crate.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "source.scan", output = FileSecrets, idempotent, timeout = "60s")]
pub(crate) struct ScanSource {
    /// Below the crate, as it was listed.
    #[garde(length(min = 1, max = 4_096))]
    pub(crate) path: String,
}

/// Turns a goal into steps.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "review.plan", output = Plan, idempotent)]
pub(crate) struct PlanReview {
    /// What is wanted, in words.
    #[garde(length(min = 1, max = 10_000))]
    pub(crate) goal: String,
}
