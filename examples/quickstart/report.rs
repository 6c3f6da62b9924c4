//! What the review of a crate comes to, as data and as a page.

use std::{cmp::Reverse, collections::BTreeMap};

use octollm::prelude::*;

use crate::contracts::{FileReport, Finding, Rule};

/// Each rule with its name, and what counts: a finding is true by this definition.
const RULES: [(Rule, &str, &str); 8] = [
    (Rule::Secret, "secret", "texts in the form of a private key or of a well-known token"),
    (
        Rule::Unreadable,
        "unreadable",
        "files that are not UTF-8, or larger than 256 KiB; nothing is counted in them",
    ),
    (
        Rule::DoesNotParse,
        "does-not-parse",
        "files that are Rust of neither edition 2021 nor 2015, or nest too deeply; only their lines are counted",
    ),
    (
        Rule::UnsafeWithoutSafety,
        "unsafe-without-safety",
        "`unsafe` blocks and implementations without `SAFETY:` in a comment before them, within their statement or item or \
         directly above it, outside macros",
    ),
    (
        Rule::MayPanic,
        "may-panic",
        "`.unwrap(`, `.expect(` and `panic!`, but not below `#[test]`, `#[…::test]` or `#[cfg(test)]` in the same \
         file, nor in files and folders named `tests` or `benches`",
    ),
    (Rule::LongFunction, "long-function", "functions of more than 60 lines, from `fn` to the closing brace"),
    (Rule::MissingDocs, "missing-docs", "public items with neither a doc comment nor an attribute `doc`"),
    (Rule::Todo, "todo", "`TODO` and `FIXME` in comments"),
];

/// All figures, and all findings by path and line.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    /// At most five files with the most findings, the worst first.
    pub(crate) worst: Vec<(String, usize)>,
    pub(crate) figures: Vec<Figure>,
}

/// A number, and what it counts.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: usize,
    pub(crate) counts: String,
}

impl Report {
    /// Joins what was found. Of what was not looked for there is no figure.
    pub(crate) fn new(
        files: usize,
        judged: Option<Vec<FileReport>>,
        secrets: Option<Vec<Vec<Finding>>>,
    ) -> Self {
        let mut figures = Vec::new();
        let mut figure = |name: &str, value, counts: &str| {
            figures.push(Figure { name: name.into(), value, counts: counts.into() });
        };
        figure("files", files, "named `*.rs`, and not excluded by a `.gitignore`");
        if let Some(judged) = &judged {
            let sum = |count: fn(&FileReport) -> usize| judged.iter().map(count).sum();
            figure("lines", sum(|file| file.lines), "of these files");
            figure("functions", sum(|file| file.functions), "with a body, outside macros");
            let counts = "functions, types, traits, constants and statics that say `pub`, outside macros";
            figure("public-items", sum(|file| file.public_items), counts);
        }
        let looked_for = |rule| if rule == Rule::Secret { secrets.is_some() } else { judged.is_some() };
        let rules = RULES.iter().filter(|(rule, ..)| looked_for(*rule)).collect::<Vec<_>>();
        let judged = judged.into_iter().flatten().flat_map(|file| file.findings);
        let mut findings: Vec<_> = judged.chain(secrets.into_iter().flatten().flatten()).collect();
        findings.sort_by(|a, b| (&a.path, a.line, a.column).cmp(&(&b.path, b.line, b.column)));
        for (rule, name, counts) in rules {
            figure(name, findings.iter().filter(|finding| finding.rule == *rule).count(), counts);
        }
        let mut by_file = BTreeMap::new();
        findings.iter().for_each(|finding| *by_file.entry(finding.path.clone()).or_default() += 1);
        let mut worst: Vec<_> = by_file.into_iter().collect();
        worst.sort_by_key(|(_, findings)| Reverse(*findings)); // stable: by path where equal
        worst.truncate(5);
        Self { findings, worst, figures }
    }

    /// The report as a page. The figures come last, where a terminal leaves them in sight.
    pub(crate) fn page(&self) -> String {
        let name = |rule| RULES.iter().find(|(other, ..)| *other == rule).map_or("", |(_, name, _)| name);
        let findings = self.findings.iter().map(|Finding { path, line, column, rule, message }| {
            format!("{path}:{line}:{column}: {}: {message}", name(*rule))
        });
        let worst = self.worst.iter().map(|(path, findings)| format!("{findings:>6}  {path}"));
        let figures =
            self.figures.iter().map(|Figure { name, value, counts }| format!("{value:>6}  {name}: {counts}"));
        section("Findings", findings) + &section("Worst files", worst) + &section("Figures", figures)
    }
}

/// Rows below a heading; nothing if there are none.
fn section(heading: &str, rows: impl Iterator<Item = String>) -> String {
    // A path may contain what a terminal would obey.
    let rows: String = rows.map(|row| format!("  {}\n", row.replace(char::is_control, "\u{fffd}"))).collect();
    if rows.is_empty() { rows } else { format!("{heading}\n{rows}\n") }
}
