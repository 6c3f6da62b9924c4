//! Systems whose tasks are in a database, and outlive the process of their brain.

use std::{path::Path, process::Output};

use crate::{examples::example, postgres::Postgres};

/// A review of the sources of the quickstart itself, as JSON.
fn quickstart(options: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let output = example("quickstart").arg(root).arg("--json").args(options).output().expect("it runs");
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn report(options: &[&str]) -> String {
    String::from_utf8(quickstart(options).stdout).expect("UTF-8")
}

/// The starts of the task, as `--explain` shows its events.
fn starts(output: &Output) -> usize {
    String::from_utf8_lossy(&output.stderr).matches("event task.started").count()
}

#[test]
fn the_quickstart_reports_the_same_where_its_brain_is_killed() {
    let plain = report(&[]);
    assert!(plain.contains("figures"), "{plain}");
    let killed = quickstart(&["--kill-brain", "--explain"]);
    assert_eq!(String::from_utf8_lossy(&killed.stdout), plain);
    assert_eq!(starts(&killed), 2, "{}", String::from_utf8_lossy(&killed.stderr));
}

#[test]
fn the_quickstart_reports_the_same_on_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite:{}", folder.path().join("tasks.db").display());
    let stored = quickstart(&["--database", &url, "--explain"]);
    assert_eq!((String::from_utf8_lossy(&stored.stdout).into_owned(), starts(&stored)), (report(&[]), 1));
    assert_eq!(report(&["--database", &url, "--kill-brain"]), report(&[]));
}

#[test]
fn the_quickstart_reports_the_same_on_postgres() {
    let server = Postgres::start(&[]);
    let url = server.database();
    assert_eq!(report(&["--database", &url]), report(&[]));
    assert_eq!(report(&["--database", &url, "--kill-brain"]), report(&[]));
    let tasks = "SELECT count(*), min(run), max(run) FROM octollm_tasks";
    assert_eq!(
        server.execute(url.rsplit('/').next().expect("a database"), tasks),
        "2|1|2",
        "one task of one run, and one of two"
    );
}

#[test]
fn the_quickstart_names_a_database_that_it_cannot_reach() {
    let output = example("quickstart").args(["--database", "postgres://127.0.0.1:1/none"]).output();
    let output = output.expect("it runs");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
}

/// The program of the storm, with its figures.
fn storm(words: &[&str]) -> Vec<String> {
    let output = example("storm").args(words).output().expect("it runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed.lines().map(str::to_owned).collect()
}

#[test]
fn a_database_that_goes_away_loses_nothing_and_servers_answer_503_meanwhile() {
    let lines = storm(&["outage", "--short"]);
    assert!(lines[0].starts_with("storm outage=stopped") && lines[1].starts_with("storm outage=killed"));
    assert!(lines.iter().all(|line| !line.contains("refused_503=0 ")), "{lines:?}");
}
