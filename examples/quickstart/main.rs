//! Reviews a Rust crate: `cargo run --example quickstart [PATH] [--json]`.

mod finding;
mod judge;
mod lexer;
mod report;
mod secrets;
mod source;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use report::Report;

/// The largest source that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

fn main() -> ExitCode {
    let (options, paths): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument == "--json");
    let path = paths.first().map_or_else(|| PathBuf::from("."), PathBuf::from);
    match review(&path).and_then(|report| show(&report, !options.is_empty())) {
        Ok(page) => {
            print!("{page}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(report: &Report, json: bool) -> Result<String, Box<dyn Error>> {
    Ok(if json { serde_json::to_string_pretty(report)? + "\n" } else { report::render(report, false) })
}

fn review(root: &std::path::Path) -> Result<Report, Box<dyn Error>> {
    let listing = source::list(root, MAX_BYTES)?;
    let (mut judged, mut scanned) = (Vec::new(), Vec::new());
    for file in &listing.files {
        let text = source::read(root, &file.path, MAX_BYTES)?;
        judged.push(judge::judge(&file.path, &text));
        scanned.push(secrets::scan(&file.path, &text));
    }
    Ok(Report::new(judged, scanned, listing.skipped))
}
