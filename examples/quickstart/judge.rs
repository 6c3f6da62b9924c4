//! The judge: reads one Rust source and says which rules it breaks.
//!
//! The figures count what is written, in the arguments of macros and in the bodies of `macro_rules!` as
//! anywhere else; strings and comments are never code. Only where tests and public items are is asked of the
//! syntax tree.
//!
//! One file does not say whether another declares it under `#[cfg(test)]` or `#[doc(hidden)]`: a
//! [`FileReport`] names the modules that it declares so, and the findings of these are taken back once all
//! files are known.

mod comments;
mod docs;
mod functions;
mod nesting;
mod panics;
mod safety;
mod syntax;
mod test_code;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::finding::{Finding, Rule};
use crate::lexer::{self, Lexed, Position};
use syntax::Syntax;

/// What one file holds, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileReport {
    /// The file, relative to the folder under review.
    pub(crate) path: String,
    /// Its lines.
    pub(crate) lines: usize,
    /// Its functions that have a body. None if it does not parse.
    pub(crate) functions: usize,
    /// Its items that should be documented. None if it does not parse.
    pub(crate) public_items: usize,
    /// The modules of tests that it declares and other files hold: their paths without `.rs`.
    pub(crate) test_modules: Vec<String>,
    /// The modules that it hides from the documentation and other files hold: their paths without `.rs`.
    pub(crate) hidden_modules: Vec<String>,
    /// What is wrong, by line.
    pub(crate) findings: Vec<Finding>,
}

impl FileReport {
    /// Takes back what is no finding in a test.
    pub(crate) fn spare(&mut self) {
        self.findings.retain(|finding| !finding.rule.spares_tests());
        self.public_items = 0;
    }

    /// Takes back what is no finding where nobody reads the documentation.
    pub(crate) fn hide(&mut self) {
        self.findings.retain(|finding| finding.rule != Rule::MissingDocs);
        self.public_items = 0;
    }
}

/// Judges a file. `path` is relative, with `/`; it tells tests and benchmarks from the rest.
///
/// Any text can be judged, however hostile: one that is not Rust gets the finding that says so, and the rules
/// that need no syntax.
pub(crate) fn judge(path: &str, text: &str) -> FileReport {
    let lexed = lexer::lex(text);
    let mut report = FileReport {
        path: path.to_owned(),
        lines: text.lines().count(),
        functions: 0,
        public_items: 0,
        test_modules: Vec::new(),
        hidden_modules: Vec::new(),
        findings: comments::check(&lexed),
    };
    match nesting::check(&lexed).and_then(|()| syntax::read(path, text, &lexed)) {
        Ok(syntax) => judge_code(&mut report, &lexed, syntax),
        Err(finding) => report.findings.push(finding),
    }
    if test_code::is_test_path(path) {
        report.spare();
    }
    report.findings.sort_by_key(|finding| (finding.line, finding.column, finding.rule));
    report
}

/// Applies the rules that hold for Rust only.
fn judge_code(report: &mut FileReport, lexed: &Lexed<'_>, syntax: Syntax) {
    let functions = functions::find(lexed);
    report.functions = functions.len();
    report.public_items = syntax.public_items;
    report.test_modules = syntax.modules.tests;
    report.hidden_modules = syntax.modules.hidden;
    report.findings.extend(syntax.undocumented);
    report.findings.extend(functions.iter().filter_map(functions::Function::check));
    report.findings.extend(panics::check(lexed, &syntax.tests));
    report.findings.extend(safety::check(lexed));
}

/// A finding at a place.
fn finding(rule: Rule, at: Position, message: impl Into<String>) -> Finding {
    Finding { rule, line: at.line, column: at.column, message: message.into() }
}
