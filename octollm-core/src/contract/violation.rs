//! The rules of a contract that an input breaks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The field, such as `items[2].name`; empty for the whole value.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl Violation {
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
