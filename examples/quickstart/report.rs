//! What the review of a crate comes to, as data and as a page.

use std::{cmp::Reverse, collections::BTreeMap};

use octollm::prelude::*;

use crate::contracts::{FileReport, Finding, Rule, Secret, Skipped};

const RULES: [(Rule, &str); 6] = [
    (Rule::DoesNotParse, "does-not-parse"),
    (Rule::UnsafeWithoutSafety, "unsafe-without-safety"),
    (Rule::MayPanic, "may-panic"),
    (Rule::LongFunction, "long-function"),
    (Rule::MissingDocs, "missing-docs"),
    (Rule::Todo, "todo"),
];

/// All figures, and all findings by path and line.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Report {
    /// The files that were read.
    pub(crate) files: usize,
    pub(crate) lines: usize,
    pub(crate) functions: usize,
    pub(crate) public_items: usize,
    /// How often each rule is broken; every rule is listed.
    pub(crate) totals: BTreeMap<Rule, usize>,
    /// The files with the most findings, the worst first.
    pub(crate) worst: Vec<WorstFile>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) secrets: Vec<Secret>,
    /// The files that were not read.
    pub(crate) skipped: Vec<Skipped>,
}

/// A file and the number of its findings.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorstFile {
    pub(crate) path: String,
    pub(crate) findings: usize,
}

impl Report {
    /// Joins what was found in each file, which are in the order of their paths. A file that another one declares as a
    /// module of tests is judged as a test; one that another one hides needs no documentation.
    pub(crate) fn new(mut files: Vec<FileReport>, secrets: Vec<Secret>, skipped: Vec<Skipped>) -> Self {
        let tests: Vec<String> = files.iter().flat_map(|file| file.test_modules.clone()).collect();
        let hidden: Vec<String> = files.iter().flat_map(|file| file.hidden_modules.clone()).collect();
        for file in &mut files {
            let is_test = tests.iter().any(|module| is_in(&file.path, module));
            if is_test || hidden.iter().any(|module| is_in(&file.path, module)) {
                file.spare(is_test);
            }
        }
        let mut totals = BTreeMap::from(RULES.map(|(rule, _)| (rule, 0)));
        files
            .iter()
            .flat_map(|file| &file.findings)
            .for_each(|found| *totals.entry(found.rule).or_default() += 1);
        let bad = files.iter().filter(|file| !file.findings.is_empty());
        let mut worst: Vec<_> =
            bad.map(|file| WorstFile { path: file.path.clone(), findings: file.findings.len() }).collect();
        worst.sort_by_key(|file| Reverse(file.findings)); // stable: by path where equal
        worst.truncate(5);
        Self {
            files: files.len(),
            lines: files.iter().map(|file| file.lines).sum(),
            functions: files.iter().map(|file| file.functions).sum(),
            public_items: files.iter().map(|file| file.public_items).sum(),
            totals,
            worst,
            findings: files.into_iter().flat_map(|file| file.findings).collect(),
            secrets,
            skipped,
        }
    }

    /// The report as a page. The figures come last, where a terminal leaves them in sight.
    pub(crate) fn page(&self) -> String {
        let name = |rule| RULES.iter().find(|(other, _)| *other == rule).map_or("", |(_, name)| name);
        let findings = self.findings.iter().map(|Finding { path, rule, line, column, message }| {
            format!("{path}:{line}:{column}: {}: {message}", name(*rule))
        });
        let secrets = self.secrets.iter().map(|Secret { path, kind, line, column, masked }| {
            format!("{path}:{line}:{column}: {kind}: {masked}")
        });
        let skipped = self.skipped.iter().map(|file| format!("{}: {}", file.path, file.reason));
        let worst = self.worst.iter().map(|file| format!("{:>6}  {}", file.findings, file.path));
        let totals = self.totals.iter().map(|(rule, total)| format!("{total:>6}  {}", name(*rule)));
        section("Findings", findings)
            + &section("Secrets", secrets)
            + &section("Skipped", skipped)
            + &section("Worst files", worst)
            + &section("Rules", totals)
            + &format!(
                "{} files, {} lines, {} functions, {} public items, {} findings, {} secrets\n",
                self.files,
                self.lines,
                self.functions,
                self.public_items,
                self.findings.len(),
                self.secrets.len(),
            )
    }
}

/// Whether a file is, or is below, a module: the file of its name, and all of the folder of its name.
fn is_in(path: &str, module: &str) -> bool {
    let rest = path.trim_end_matches(".rs").strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Rows below a heading; nothing if there are none.
fn section(heading: &str, rows: impl Iterator<Item = String>) -> String {
    // A path may contain what a terminal would obey.
    let rows: String = rows.map(|row| format!("  {}\n", row.replace(char::is_control, "\u{fffd}"))).collect();
    if rows.is_empty() { rows } else { format!("{heading}\n{rows}\n") }
}
