//! Reports of crates that are made up.

use super::{Report, render};
use crate::judge::judge;
use crate::secrets::scan;
use crate::source::Skipped;

fn report(files: &[(&str, &str)]) -> Report {
    let judged = files.iter().rev().map(|(path, text)| judge(path, text)).collect();
    let scanned = files.iter().rev().map(|(path, text)| scan(path, text)).collect();
    let skipped = vec![Skipped { path: "z.rs".to_owned(), reason: "it is not UTF-8".to_owned() }];
    Report::new(judged, scanned, skipped)
}

#[test]
fn figures_are_summed_and_every_rule_is_there() {
    let report =
        report(&[("a.rs", "// TODO\n/// a\npub fn a() {}\n"), ("b.rs", "fn b() { c.unwrap() }\n// FIXME\n")]);
    assert_eq!((report.files, report.lines, report.functions, report.public_items), (2, 5, 2, 1));
    assert_eq!(report.totals.values().copied().collect::<Vec<_>>(), [0, 0, 0, 1, 0, 2]);
    let places: Vec<_> = report.findings.iter().map(|at| (at.path.as_str(), at.finding.line)).collect();
    assert_eq!(places, [("a.rs", 1), ("b.rs", 1), ("b.rs", 2)]);
}

#[test]
fn the_worst_five_are_named() {
    let todo = "// TODO\n";
    let (two, three) = (todo.repeat(2), todo.repeat(3));
    let report =
        report(&[("a", todo), ("b", &two), ("c", ""), ("d", &three), ("e", &two), ("f", todo), ("g", todo)]);
    let worst: Vec<_> = report.worst.iter().map(|file| (file.path.as_str(), file.findings)).collect();
    assert_eq!(worst, [("d", 3), ("b", 2), ("e", 2), ("a", 1), ("f", 1)]);
}

#[test]
fn modules_of_tests_are_tests_once_all_is_known() {
    let test = "pub fn a() { b.unwrap() } // TODO";
    let files = [
        ("src/lib.rs", "#[cfg(test)] mod checks;"),
        ("src/checks.rs", test),
        ("src/checks/more.rs", test),
        ("src/checks_not.rs", test),
    ];
    let report = report(&files);
    assert_eq!(report.totals.values().copied().collect::<Vec<_>>(), [0, 1, 0, 1, 0, 3]);
    assert_eq!(report.public_items, 1);
}

#[test]
fn modules_that_are_hidden_need_no_documentation() {
    let files =
        [("src/lib.rs", "#[doc(hidden)] pub mod inner;"), ("src/inner.rs", "pub fn a() { b.unwrap() }")];
    let report = report(&files);
    assert_eq!((report.findings.len(), report.public_items), (1, 0));
}

#[test]
fn json_says_it_all_and_comes_back() {
    let report = report(&[("a.rs", "// TODO")]);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["totals"]["todo"], 1);
    assert_eq!(json["findings"][0]["path"], "a.rs");
    assert_eq!(json["findings"][0]["rule"], "todo");
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
}

#[test]
fn a_report_has_a_schema() {
    let schema = serde_json::to_value(schemars::schema_for!(Report)).unwrap();
    assert_eq!(schema["properties"]["findings"]["type"], "array");
}

#[test]
fn a_page_is_aligned() {
    let password = ["hunter", "22"].concat();
    let page =
        report(&[("a.rs", "// TODO\npub fn a() {}"), ("long.rs", &format!("// http://u:{password}@h"))]);
    let expected = "\
Findings
  a.rs:1:4  todo          a comment says TODO
  a.rs:2:8  missing-docs  the function `a` is not documented

Secrets
  long.rs:1:13  password in a URL  … (8 characters)

Skipped
  z.rs  it is not UTF-8

Worst files
  a.rs  2 findings

Rules
  does-not-parse         0
  unsafe-without-safety  0
  may-panic              0
  long-function          0
  missing-docs           1
  todo                   1

2 files, 3 lines, 1 function, 1 public item: 2 findings, 1 secret, 1 file skipped
";
    assert_eq!(render(&page, false), expected);
}

#[test]
fn colour_changes_no_word() {
    let report = report(&[("a.rs", "// TODO")]);
    let mut plain = render(&report, true);
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m"] {
        plain = plain.replace(code, "");
    }
    let trimmed = |page: &str| page.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(trimmed(&plain), trimmed(&render(&report, false)));
    assert!(!render(&report, false).contains('\x1b'));
}
