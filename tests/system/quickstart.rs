//! The main job, as a user runs it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::examples::example;

fn write(root: &Path, path: &str, text: impl AsRef<[u8]>) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
    std::fs::write(path, text).expect("it can be written");
}

/// A crate with one of each.
fn sample() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let token = format!("ghp_{}", "a1B2".repeat(9));
    write(
        root.path(),
        "src/lib.rs",
        "pub fn bare() {}\n// TODO: more\nfn risky() { None::<u8>.unwrap(); }\n",
    );
    write(root.path(), "src/leak.rs", format!("const TOKEN: &str = \"{token}\";\n"));
    write(root.path(), "src/broken.rs", "fn broken( {\n");
    write(root.path(), "src/latin.rs", b"// caf\xe9\n");
    write(root.path(), "target/ignored.rs", "fn x() { y.unwrap() }\n");
    write(root.path(), ".gitignore", "/target\n");
    root
}

#[test]
fn the_report_is_true() {
    let root = sample();
    let output = example("quickstart").arg(root.path()).arg("--json").output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(report["files"], 3);
    assert_eq!(report["totals"]["missing-docs"], 1);
    assert_eq!(report["totals"]["may-panic"], 1);
    assert_eq!(report["totals"]["todo"], 1);
    assert_eq!(report["totals"]["does-not-parse"], 1);
    assert_eq!(report["secrets"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["skipped"].as_array().map(Vec::len), Some(1));
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(!page.contains("a1B2a1B2a1B2"), "a secret is never printed whole");
    assert!(!page.contains("ignored.rs"));
}

#[test]
fn the_page_names_places_and_explains_its_calls() {
    let root = sample();
    let output = example("quickstart").arg(root.path()).arg("--explain").output().expect("it runs");
    let page = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(page.contains("src/lib.rs:3"), "{page}");
    for arm in ["planner", "retriever", "judge", "guardian"] {
        assert!(page.contains(arm), "{page}");
    }
    assert!(page.contains("http://127.0.0.1:") && page.contains("tokens=10000"), "{page}");
}

#[test]
fn what_cannot_be_reviewed_is_told_in_one_line() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let missing = empty.path().join("not-there");
    for path in [empty.path(), &missing] {
        let output = example("quickstart").arg(path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let root = sample();
    let mut child = example("quickstart")
        .arg(root.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take()); // as `head` does
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn help_is_no_mistake() {
    let output = example("quickstart").arg("--help").output().expect("it runs");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("usage: quickstart"));
}

/// Whether a process handles SIGINT itself: the quickstart does once its task is submitted.
fn takes_interrupts(process: u32) -> bool {
    const SIGINT: u64 = 1 << 1;
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & SIGINT != 0)
}

#[test]
fn ctrl_c_ends_it_within_a_second() {
    let root = tempfile::tempdir().expect("a temporary folder");
    // More than can be judged before it is interrupted.
    for number in 0..400 {
        write(root.path(), &format!("src/f{number}.rs"), "/// Docs.\npub fn f() { 1 + 1; }\n".repeat(3_000));
    }
    let mut child = example("quickstart")
        .arg(root.path())
        .arg("--json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let until = Instant::now() + Duration::from_secs(20);
    while !takes_interrupts(child.id()) {
        assert!(Instant::now() < until, "it does not follow its task");
        std::thread::yield_now();
    }
    assert!(child.try_wait().expect("it can be asked").is_none(), "it ended before it was interrupted");
    let interrupted = Instant::now();
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    let status = child.wait().expect("it ends");
    // It takes some hundredths of a second; a machine that is busy with other tests is given more than one.
    assert!(interrupted.elapsed() < Duration::from_secs(3), "{:?}", interrupted.elapsed());
    assert_eq!(status.code(), Some(130));
}
