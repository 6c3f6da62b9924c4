//! The contracts of the examples, and who serves them.

use async_trait::async_trait;
use octollm::{
    Context,
    budget::{Cost, Usage},
    prelude::*,
};

/// Checks that a piece of code parses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Validate, TaskContract)]
#[task(name = "code.validate", output = Verdict, idempotent, timeout = "10s")]
pub(crate) struct ValidateCode {
    /// The code.
    #[garde(length(min = 1, max = 65_536))]
    pub(crate) code: String,
    /// What it is written in.
    #[garde(skip)]
    pub(crate) language: String,
}

/// What the judge thinks of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Verdict {
    pub(crate) is_valid: bool,
    pub(crate) issues: Vec<String>,
}

/// Writes a text, piece by piece.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.write", version = 2, output = String, chunk = Piece)]
pub(crate) struct WriteText {
    pub(crate) about: String,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Piece {
    pub(crate) text: String,
}

pub(crate) fn code(code: &str) -> ValidateCode {
    ValidateCode { code: code.into(), language: "rust".into() }
}

/// Finds everything valid, at 120 tokens. It does not begin with what is `busy`, and fails at what is `broken`.
pub(crate) struct Judge;

#[async_trait]
impl Arm<ValidateCode> for Judge {
    async fn execute(&self, task: ValidateCode, cx: &Context) -> Result<Verdict, ArmError> {
        if task.code == "busy" {
            let wait = std::time::Duration::from_secs(30);
            return Err(ArmError::unavailable("the parser is being updated").retry_after(wait));
        }
        cx.spend(Usage::tokens(120).with_cost(Cost::from_nano_dollars(2_500_000)))?;
        if task.code == "broken" {
            return Err(std::io::Error::other("/secret/path: not found").into());
        }
        Ok(Verdict { is_valid: true, issues: Vec::new() })
    }
}
