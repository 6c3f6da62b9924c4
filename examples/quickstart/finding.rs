//! What the judge reports: a rule that does not hold, and where.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a file is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rule {
    /// The file is not Rust, or nests too deeply to be read safely.
    DoesNotParse,
    /// A public item has no documentation.
    MissingDocs,
    /// A function is longer than sixty lines.
    LongFunction,
    /// `.unwrap()`, `.expect(…)` or `panic!` outside tests.
    MayPanic,
    /// An `unsafe` block or implementation without a `SAFETY:` comment.
    UnsafeWithoutSafety,
    /// A comment that leaves work for later.
    Todo,
}

impl Rule {
    /// Every rule, the gravest first.
    pub(crate) const ALL: [Self; 6] = [
        Self::DoesNotParse,
        Self::UnsafeWithoutSafety,
        Self::MayPanic,
        Self::LongFunction,
        Self::MissingDocs,
        Self::Todo,
    ];

    /// Its name, in reports as in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DoesNotParse => "does-not-parse",
            Self::MissingDocs => "missing-docs",
            Self::LongFunction => "long-function",
            Self::MayPanic => "may-panic",
            Self::UnsafeWithoutSafety => "unsafe-without-safety",
            Self::Todo => "todo",
        }
    }

    /// Whether tests are free of it.
    pub(crate) fn spares_tests(self) -> bool {
        matches!(self, Self::MissingDocs | Self::MayPanic)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One place where a rule does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Finding {
    /// The rule.
    pub(crate) rule: Rule,
    /// The line, from one.
    pub(crate) line: usize,
    /// The column in characters, from one.
    pub(crate) column: usize,
    /// What is wrong, in one clause.
    pub(crate) message: String,
}

#[cfg(test)]
mod tests {
    use super::Rule;

    #[test]
    fn every_rule_is_named_in_json_as_in_reports() {
        for rule in Rule::ALL {
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.name());
            assert_eq!(rule.to_string(), rule.name());
        }
    }
}
