//! `docs/wire.md` says what the code does.

use std::{collections::BTreeSet, fs, path::PathBuf};

use octollm::{
    brain::BrainConfig,
    error::{ErrorKind, Failure},
    http::{ClientConfig, ServerConfig},
};

use crate::golden::folder;

fn page() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/wire.md");
    fs::read_to_string(path).unwrap()
}

fn golden_files() -> BTreeSet<String> {
    let files = fs::read_dir(folder()).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn it_lists_every_kind_of_error_as_it_is() {
    let page = page();
    let codes = page.split("\n### Codes\n").nth(1).expect("a section of codes").split("\n#").next().unwrap();
    let rows: Vec<Vec<_>> = codes
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let yes = |word: &bool| if *word { "yes" } else { "no" };
    let listed: Vec<_> = rows.iter().map(|row| (row[0].trim_matches('`'), row[1], row[3], row[4])).collect();
    let kinds: Vec<_> = ErrorKind::ALL.iter().map(|kind| (kind, Failure::of(*kind))).collect();
    let statuses: Vec<_> = kinds.iter().map(|(kind, _)| kind.status().to_string()).collect();
    let expected: Vec<_> = kinds
        .iter()
        .zip(&statuses)
        .map(|((kind, of), status)| (kind.code(), &**status, yes(&of.retryable), yes(&of.may_have_executed)))
        .collect();
    assert_eq!(listed, expected);
    assert!(rows.iter().all(|row| !row[2].is_empty()), "each has a meaning");
}

#[test]
fn its_limits_are_the_defaults() {
    let (page, server) = (page(), ServerConfig::default());
    let (brain, client) = (BrainConfig::default(), ClientConfig::default());
    let (head, body) = (server.head_timeout, server.body_timeout);
    for row in [
        format!("| body of a request | {} MiB |", server.max_body >> 20),
        format!("| head; fields in it | {} KiB; {} |", server.max_head >> 10, server.max_headers),
        format!("| path and query | {} KiB |", server.max_uri >> 10),
        format!("| a head, a body to arrive | {} s, {} s |", head.as_secs(), body.as_secs()),
        format!(
            "| a connection at rest, over HTTP/2 without streams | {} s |",
            server.idle_timeout.as_secs()
        ),
        format!(
            "| a write of which less than 16 KiB, or than the rest, are taken | {} s |",
            server.write_timeout.as_secs()
        ),
        format!("| all bodies that are still arriving | {} MiB |", server.max_arriving >> 20),
        format!("| establishing who calls | {} s |", server.authenticate_timeout.as_secs()),
        format!("| requests running in one server | {} |", server.max_in_flight),
        format!("| connections to one server | {} |", server.max_connections),
        format!("| tasks running, waiting in a brain | {}, {} |", brain.max_running, brain.max_queued),
        format!("| an answer that the client reads | {} MiB |", client.max_answer >> 20),
    ] {
        assert!(page.contains(&row), "{row}");
    }
}

#[test]
fn it_shows_every_golden_file_and_no_other() {
    let page = page();
    let linked: BTreeSet<String> = page
        .split("](../tests/wire/golden/")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(linked, golden_files());
}

#[test]
fn every_golden_file_is_held() {
    let sources: String = fs::read_dir(folder().join(".."))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    for name in golden_files() {
        assert!(sources.contains(&format!("\"{name}\"")), "no test reads {name}");
    }
}
