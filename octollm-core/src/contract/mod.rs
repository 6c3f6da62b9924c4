//! Task contracts: the inputs, outputs and properties of what an arm serves.
//!
//! One annotated type is the single source of truth. Its [`ContractSpec`] has the route, the required scope, the time
//! limit and whether a retry is safe. The arm's [`ContractCard`] has its schemas and their fingerprint.

mod card;
mod patterns;
mod reference;
mod rules;
mod schema;
mod spec;
mod unruled;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{
    card::{ContractCard, Keys, fingerprint},
    reference::ContractRef,
    spec::{ContractSpec, Effects, Spec},
};
pub(crate) use self::{
    card::{hex, lenient},
    schema::{has_chunks, input_of, referred},
};
#[doc(hidden)]
pub use self::{
    rules::{RangeEnd, SchemaRules},
    schema::{input_schema, output_schema},
};

/// A type that can be asked of an arm. Derive it with `#[derive(TaskContract)]`.
///
/// The type is the input, [`Output`](Self::Output) is what the arm returns, and [`Chunk`](Self::Chunk) is what it may stream
/// before that.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task contract",
    note = "derive it: `#[derive(Serialize, Deserialize, JsonSchema, TaskContract)]`"
)]
pub trait TaskContract: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// What the arm returns.
    type Output: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// What the arm may stream before its output; `()` where it streams nothing.
    type Chunk: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// The facts of the contract that are not in its types.
    const SPEC: ContractSpec;

    /// Checks the rules of the input, such as lengths and ranges.
    ///
    /// # Errors
    /// Every broken rule, each with the path of its field.
    fn check(&self) -> Result<(), Vec<Violation>> {
        Ok(())
    }

    /// Adds the rules that [`check`](Self::check) runs to the schema of the input. The derive macro writes it.
    #[doc(hidden)]
    fn schema_rules(rules: &mut SchemaRules) {
        // Written by hand, as the check is.
        rules.skip();
    }
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The field, such as `items[2].name`; empty for the whole value.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl Violation {
    /// The most that are reported for one input.
    pub(crate) const MOST: usize = 100;
    /// No further ones are reported once their paths have so many bytes: a path has a copy of each key on the way.
    pub(crate) const MOST_PATH_BYTES: usize = 64 * 1024;

    /// A broken rule of the field at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// The broken rules of a report by garde.
    pub(crate) fn all_of(report: &garde::Report) -> Vec<Self> {
        report.iter().map(|(path, error)| Self::new(path.to_string(), error.message())).collect()
    }
}

/// `code: length is lower than 1`
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.path {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}
