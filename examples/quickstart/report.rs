//! What the review of a crate comes to.

mod render;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::finding::{Finding, Rule};
use crate::judge::FileReport;
use crate::secrets::{FileSecrets, Secret};
use crate::source::Skipped;
pub(crate) use render::render;

/// How many of the worst files are named.
const WORST: usize = 5;

/// All figures, and all findings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Report {
    /// The files that were read.
    pub(crate) files: usize,
    /// Their lines.
    pub(crate) lines: usize,
    /// Their functions that have a body.
    pub(crate) functions: usize,
    /// Their items that should be documented.
    pub(crate) public_items: usize,
    /// How often each rule is broken; every rule is there.
    pub(crate) totals: BTreeMap<Rule, usize>,
    /// The files with the most findings, the worst first.
    pub(crate) worst: Vec<WorstFile>,
    /// The findings, by file and line.
    pub(crate) findings: Vec<FileFinding>,
    /// The secrets, by file and line.
    pub(crate) secrets: Vec<FileSecret>,
    /// The files that were not read, by path.
    pub(crate) skipped: Vec<Skipped>,
}

/// A file and how much is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorstFile {
    /// The file.
    pub(crate) path: String,
    /// Its findings.
    pub(crate) findings: usize,
}

/// A finding and its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileFinding {
    /// The file.
    pub(crate) path: String,
    /// The finding.
    #[serde(flatten)]
    pub(crate) finding: Finding,
}

/// A secret and its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct FileSecret {
    /// The file.
    pub(crate) path: String,
    /// The secret.
    #[serde(flatten)]
    pub(crate) secret: Secret,
}

impl Report {
    /// Puts together what was found in each file; the order in which the files come does not matter.
    ///
    /// A file that another one declares as a module of tests is judged as the test it is; one that another
    /// one hides needs no documentation.
    pub(crate) fn new(
        mut files: Vec<FileReport>,
        mut secrets: Vec<FileSecrets>,
        mut skipped: Vec<Skipped>,
    ) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        secrets.sort_by(|a, b| a.path.cmp(&b.path));
        skipped.sort_by(|a, b| a.path.cmp(&b.path));
        spare_modules(&mut files);
        let mut totals: BTreeMap<Rule, usize> = Rule::ALL.into_iter().map(|rule| (rule, 0)).collect();
        for finding in files.iter().flat_map(|file| &file.findings) {
            *totals.entry(finding.rule).or_default() += 1;
        }
        Self {
            files: files.len(),
            lines: files.iter().map(|file| file.lines).sum(),
            functions: files.iter().map(|file| file.functions).sum(),
            public_items: files.iter().map(|file| file.public_items).sum(),
            totals,
            worst: worst(&files),
            findings: files.into_iter().flat_map(findings).collect(),
            secrets: secrets.into_iter().flat_map(leaks).collect(),
            skipped,
        }
    }
}

/// Takes back what is no finding in a module that another file declares as one of tests, or hides.
fn spare_modules(files: &mut [FileReport]) {
    let tests: Vec<String> = files.iter().flat_map(|file| file.test_modules.iter().cloned()).collect();
    let hidden: Vec<String> = files.iter().flat_map(|file| file.hidden_modules.iter().cloned()).collect();
    for file in files {
        if tests.iter().any(|module| is_in(&file.path, module)) {
            file.spare();
        }
        if hidden.iter().any(|module| is_in(&file.path, module)) {
            file.hide();
        }
    }
}

/// A module is the file of its name, and all of the folder of its name.
fn is_in(path: &str, module: &str) -> bool {
    let rest = path.trim_end_matches(".rs").strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn worst(files: &[FileReport]) -> Vec<WorstFile> {
    let bad = files.iter().filter(|file| !file.findings.is_empty());
    let mut worst: Vec<_> =
        bad.map(|file| WorstFile { path: file.path.clone(), findings: file.findings.len() }).collect();
    // The sort is stable: of two that are as bad, the first by path stays first.
    worst.sort_by_key(|file| std::cmp::Reverse(file.findings));
    worst.truncate(WORST);
    worst
}

fn findings(file: FileReport) -> impl Iterator<Item = FileFinding> {
    let FileReport { path, findings, .. } = file;
    findings.into_iter().map(move |finding| FileFinding { path: path.clone(), finding })
}

fn leaks(file: FileSecrets) -> impl Iterator<Item = FileSecret> {
    let FileSecrets { path, secrets } = file;
    secrets.into_iter().map(move |secret| FileSecret { path: path.clone(), secret })
}
