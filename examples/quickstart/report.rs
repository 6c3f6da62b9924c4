//! What the review of a crate comes to, as data and as a page.

use std::collections::BTreeMap;

use octollm::prelude::*;

use crate::contracts::{FileReport, FileSecrets, Finding, Rule, Secret, Skipped};

/// Every rule, the gravest first.
const RULES: [(Rule, &str); 6] = [
    (Rule::DoesNotParse, "does-not-parse"),
    (Rule::UnsafeWithoutSafety, "unsafe-without-safety"),
    (Rule::MayPanic, "may-panic"),
    (Rule::LongFunction, "long-function"),
    (Rule::MissingDocs, "missing-docs"),
    (Rule::Todo, "todo"),
];

/// All figures, and all findings.
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
    /// By file and line.
    pub(crate) findings: Vec<In<Finding>>,
    /// By file and line.
    pub(crate) secrets: Vec<In<Secret>>,
    /// The files that were not read, by path.
    pub(crate) skipped: Vec<Skipped>,
}

/// A file and the number of its findings.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorstFile {
    pub(crate) path: String,
    pub(crate) findings: usize,
}

/// What was found, and in which file.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct In<T> {
    pub(crate) path: String,
    #[serde(flatten)]
    pub(crate) found: T,
}

impl Report {
    /// Joins what was found in each file, in whatever order the files come.
    ///
    /// A file that another one declares as a module of tests is judged as a test; one that another one hides needs no
    /// documentation.
    pub(crate) fn new(
        mut files: Vec<FileReport>,
        mut leaks: Vec<FileSecrets>,
        skipped: Vec<Skipped>,
    ) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        leaks.sort_by(|a, b| a.path.cmp(&b.path));
        let tests: Vec<String> = files.iter().flat_map(|file| file.test_modules.clone()).collect();
        let hidden: Vec<String> = files.iter().flat_map(|file| file.hidden_modules.clone()).collect();
        for file in &mut files {
            if tests.iter().any(|module| is_in(&file.path, module)) {
                file.spare();
            }
            if hidden.iter().any(|module| is_in(&file.path, module)) {
                file.hide();
            }
        }
        let mut totals: BTreeMap<Rule, usize> = RULES.iter().map(|(rule, _)| (*rule, 0)).collect();
        for finding in files.iter().flat_map(|file| &file.findings) {
            *totals.entry(finding.rule).or_default() += 1;
        }
        let bad = files.iter().filter(|file| !file.findings.is_empty());
        let mut worst: Vec<_> =
            bad.map(|file| WorstFile { path: file.path.clone(), findings: file.findings.len() }).collect();
        worst.sort_by_key(|file| std::cmp::Reverse(file.findings)); // stable: by path where equal
        worst.truncate(5);
        Self {
            files: files.len(),
            lines: files.iter().map(|file| file.lines).sum(),
            functions: files.iter().map(|file| file.functions).sum(),
            public_items: files.iter().map(|file| file.public_items).sum(),
            totals,
            worst,
            findings: files.into_iter().flat_map(|file| all_in(file.path, file.findings)).collect(),
            secrets: leaks.into_iter().flat_map(|file| all_in(file.path, file.secrets)).collect(),
            skipped,
        }
    }
}

/// Whether a file is, or is below, a module: the file of its name, and all of the folder of its name.
fn is_in(path: &str, module: &str) -> bool {
    let rest = path.trim_end_matches(".rs").strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn all_in<T>(path: String, found: Vec<T>) -> impl Iterator<Item = In<T>> {
    found.into_iter().map(move |found| In { path: path.clone(), found })
}

/// Renders a report as a page: what was found and skipped first, the figures last, where a terminal leaves
/// them in sight.
pub(crate) fn render(report: &Report) -> String {
    let name = |rule: Rule| RULES.iter().find(|(other, _)| *other == rule).map_or("", |(_, name)| name);
    let findings = report.findings.iter().map(|In { path, found }| {
        [format!("{path}:{}:{}", found.line, found.column), name(found.rule).into(), found.message.clone()]
    });
    let secrets = report.secrets.iter().map(|In { path, found }| {
        [format!("{path}:{}:{}", found.line, found.column), found.kind.clone(), found.masked.clone()]
    });
    let skipped = report.skipped.iter().map(|file| [file.path.clone(), file.reason.clone()]);
    let worst = report.worst.iter().map(|file| [file.path.clone(), plural(file.findings, "finding")]);
    let totals = RULES.iter().map(|(rule, name)| {
        [(*name).to_owned(), format!("{:>6}", number(report.totals.get(rule).copied().unwrap_or_default()))]
    });
    let summary = format!(
        "{}, {}, {}, {}: {}, {}, {} skipped\n",
        plural(report.files, "file"),
        plural(report.lines, "line"),
        plural(report.functions, "function"),
        plural(report.public_items, "public item"),
        plural(report.findings.len(), "finding"),
        plural(report.secrets.len(), "secret"),
        plural(report.skipped.len(), "file"),
    );
    table("Findings", findings.collect())
        + &table("Secrets", secrets.collect())
        + &table("Skipped", skipped.collect())
        + &table("Worst files", worst.collect())
        + &table("Rules", totals.collect())
        + &summary
}

/// Rows below a heading, in columns; nothing if there are none.
fn table<const N: usize>(heading: &str, rows: Vec<[String; N]>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut widths = [0; N];
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = cell.chars().count().max(*width));
    }
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("  {cell:<width$}"));
        // A path may contain what a terminal would obey.
        cells.collect::<String>().trim_end().replace(char::is_control, "\u{fffd}")
    });
    format!("{heading}\n{}\n\n", lines.collect::<Vec<_>>().join("\n"))
}

/// A number with its thousands apart.
fn number(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

fn plural(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", number(count), if count == 1 { "" } else { "s" })
}
