//! What holds of the repository itself.

#[test]
fn no_dependency_signs_with_the_rsa_crate() {
    let lock = include_str!("../../Cargo.lock");
    let has = |name: &str| lock.lines().any(|line| line == format!("name = \"{name}\""));
    assert!(has("jsonwebtoken") && has("aws-lc-rs"));
    // It has a timing attack without a patch (RUSTSEC-2023-0071). The feature `rust_crypto` of jsonwebtoken needs it.
    assert!(!has("rsa"));
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/reliability.md")).expect("it is there");
    let named: Vec<_> = document.split('`').filter_map(|code| code.split_once(".rs::")).collect();
    assert!(named.len() > 40, "{named:?}");
    for (path, test) in named {
        let path = format!("{path}.rs");
        let source =
            std::fs::read_to_string(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let declared = format!("fn {test}()");
        let is_test = source.lines().zip(source.lines().skip(1)).any(|(attribute, line)| {
            attribute.trim_start().starts_with("#[t")
                && attribute.contains("test")
                && line.ends_with(&format!("{declared} {{"))
        });
        // A case that a macro runs on both databases.
        let listed = source.split("on_both! {").skip(1).filter_map(|rest| rest.split('}').next());
        let is_case = source.contains(&format!("async fn {test}("))
            && listed.into_iter().any(|cases| cases.lines().any(|line| line.trim() == test));
        // A case of a public suite, which the module above lists.
        let suite = root.join(&path).with_file_name("mod.rs");
        let is_listed = || {
            let listed = std::fs::read_to_string(suite).unwrap_or_default();
            // Or the macro at the end of the same file.
            listed.lines().chain(source.lines()).any(|line| line.trim().trim_end_matches(';') == test)
        };
        let is_of_suite = source.contains(&format!("async fn {test}(")) && is_listed();
        assert!(is_test || is_case || is_of_suite, "{path} has no test {test}");
    }
}

#[test]
fn every_fault_has_a_row() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/reliability.md")).expect("it is there");
    let faults =
        document.split("## Faults").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a table");
    let rows: Vec<_> =
        faults.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).collect();
    let numbers: Vec<u32> =
        rows.iter().filter_map(|row| row.split('|').nth(1)?.trim().parse().ok()).collect();
    let mut distinct = numbers.clone();
    distinct.dedup();
    assert_eq!(distinct, (1..=43).collect::<Vec<_>>(), "in the order of the numbers");
    // A row names a test, or says that there is none yet.
    for row in document.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---")) {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        let is_head = matches!(last, "test");
        assert!(is_head || last.contains(".rs::") || last.starts_with("not "), "{row}");
    }
}

/// Tests cannot pause the clock of the standard library.
#[test]
fn libraries_read_the_clock_of_the_runtime() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<_> = ["src", "octollm-core/src", "octollm-http/src", "octollm-events/src"]
        .map(|folder| root.join(folder))
        .into();
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).expect("a text");
            read += 1;
            // The one place that compares the two.
            if path.ends_with("octollm-core/src/clock.rs") || path.ends_with("tests.rs") {
                continue;
            }
            assert!(!source.contains("std::time::Instant"), "{}", path.display());
            let from_std = source.split("use std::").skip(1).filter_map(|rest| rest.split(';').next());
            assert!(from_std.into_iter().all(|names| !names.contains("Instant")), "{}", path.display());
        }
    }
    assert!(read > 100, "{read}");
}

/// The sources of the crates that are published.
fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// The text up to the parenthesis that closes it.
fn arguments(text: &str) -> &str {
    let (mut depth, mut is_text, mut is_escaped) = (1, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_text => is_escaped = true,
            '"' => is_text = !is_text,
            '(' if !is_text => depth += 1,
            ')' if !is_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

#[test]
fn every_warning_and_error_is_on_the_page_for_operators() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/operations.md")).expect("it is there");
    let mut files = Vec::new();
    for part in ["octollm-core/src", "octollm-http/src", "octollm-events/src"] {
        sources(&root.join(part), &mut files);
    }
    let begin = regex::Regex::new(r"tracing::(warn|error)!\(").expect("a pattern");
    let text = regex::Regex::new(r#"(?s)"((?:[^"\\]|\\.)*)""#).expect("a pattern");
    let mut count = 0;
    for file in files {
        let source = std::fs::read_to_string(&file).expect("a source");
        for found in begin.captures_iter(&source) {
            let arguments = arguments(&source[found.get(0).expect("a match").end()..]);
            // The last text is the message. What is written as code in it, and values, are left out.
            let message = text.captures_iter(arguments).last().expect("a message");
            let first = message[1].split(['`', '{', '\\']).next().unwrap_or_default().trim_end();
            let row = format!("| {} | `{first}", &found[1]);
            assert!(document.contains(&row), "docs/operations.md has no row for {message:?} in {file:?}");
            count += 1;
        }
    }
    assert!(count >= 50, "{count}");
}
