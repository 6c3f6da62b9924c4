//! A report for a terminal.

use std::fmt::Write;

use super::Report;
use crate::finding::Rule;

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const DIM: &str = "\x1b[2m";

/// Renders a report, in colour if asked: the findings, the secrets and what was skipped first, the figures
/// last, where a terminal leaves them in sight.
pub(crate) fn render(report: &Report, color: bool) -> String {
    let mut page = Page { text: String::new(), color };
    let findings = report.findings.iter().map(|at| {
        let place = format!("{}:{}:{}", at.path, at.finding.line, at.finding.column);
        [place, at.finding.rule.to_string(), at.finding.message.clone()]
    });
    let secrets = report.secrets.iter().map(|at| {
        let place = format!("{}:{}:{}", at.path, at.secret.line, at.secret.column);
        [place, at.secret.kind.name().to_owned(), at.secret.masked.clone()]
    });
    let skipped = report.skipped.iter().map(|file| [file.path.clone(), file.reason.clone()]);
    page.table("Findings", YELLOW, &findings.collect::<Vec<_>>());
    page.table("Secrets", RED, &secrets.collect::<Vec<_>>());
    page.table("Skipped", DIM, &skipped.collect::<Vec<_>>());
    let worst = report.worst.iter().map(|file| [file.path.clone(), plural(file.findings, "finding")]);
    page.table("Worst files", DIM, &worst.collect::<Vec<_>>());
    let totals = Rule::ALL.map(|rule| {
        let total = report.totals.get(&rule).copied().unwrap_or_default();
        [rule.to_string(), number(total)]
    });
    page.table("Rules", YELLOW, &totals);
    page.heading(&summary(report));
    page.text
}

/// The figures, in one line.
fn summary(report: &Report) -> String {
    let read = [
        plural(report.files, "file"),
        plural(report.lines, "line"),
        plural(report.functions, "function"),
        plural(report.public_items, "public item"),
    ];
    let found = [
        plural(report.findings.len(), "finding"),
        plural(report.secrets.len(), "secret"),
        format!("{} skipped", plural(report.skipped.len(), "file")),
    ];
    format!("{}: {}", read.join(", "), found.join(", "))
}

struct Page {
    text: String,
    color: bool,
}

impl Page {
    fn paint(&self, style: &str, text: &str) -> String {
        if self.color { format!("{style}{text}\x1b[0m") } else { text.to_owned() }
    }

    fn heading(&mut self, heading: &str) {
        let heading = self.paint(BOLD, heading);
        self.line(&heading);
    }

    fn line(&mut self, line: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{}", line.trim_end());
    }

    /// Rows under a heading, in columns, the second one in `style`; nothing if there are none.
    fn table<const N: usize>(&mut self, heading: &str, style: &str, rows: &[[String; N]]) {
        if rows.is_empty() {
            return;
        }
        self.heading(heading);
        let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
        let width =
            |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let padded =
                    if is_number(cell) { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line.push_str("  ");
                line.push_str(&if column == 1 { self.paint(style, &padded) } else { padded });
            }
            self.line(&line);
        }
        self.line("");
    }
}

/// Without what a terminal would obey: a path may hold anything.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|first: char| first.is_ascii_digit())
        && cell.chars().all(|c| c.is_ascii_digit() || c == ',')
}

/// A number with its thousands apart.
fn number(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

fn plural(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", number(count))
}

#[cfg(test)]
mod tests {
    use super::{number, plain, plural};

    #[test]
    fn numbers_are_read_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|count| plural(count, "file")), ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn a_terminal_is_told_nothing() {
        assert_eq!(plain("a\x1b[2J\n"), "a\u{fffd}[2J\u{fffd}");
    }
}
