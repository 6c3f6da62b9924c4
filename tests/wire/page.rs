//! `docs/wire.md` says what the code does.

use std::{collections::BTreeSet, fs, path::PathBuf};

use octollm::{
    brain::Brain,
    error::{ErrorKind, Failure},
    http::{Arms, Server},
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

/// The limits of a builder are not public: it prints them.
fn limits(builder: impl std::fmt::Debug) -> String {
    format!("{builder:?}")
}

/// The number after `name: `, and its unit.
fn number<'l>(limits: &'l str, name: &str) -> (u64, &'l str) {
    let (_, rest) = limits.split_once(&format!(" {name}: ")).expect(name);
    let value = rest.split([',', ' ', '}']).next().unwrap_or_default();
    let (digits, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
    (digits.parse().expect(name), unit)
}

#[test]
fn its_limits_are_the_defaults() {
    let (page, server, client) = (page(), limits(Server::new("any")), limits(Arms::builder()));
    let brain = limits(Brain::builder());
    let count = |limits: &str, name| number(limits, name).0;
    let mib = |limits: &str, name| count(limits, name) >> 20;
    let kib = |limits: &str, name| count(limits, name) >> 10;
    let seconds = |name| match number(&server, name) {
        (seconds, "s") => seconds,
        (other, unit) => panic!("{name} is {other} {unit}"),
    };
    for row in [
        format!("| body of a request | {} MiB |", mib(&server, "max_body")),
        format!(
            "| head; fields in it | {} KiB; {} |",
            kib(&server, "max_head"),
            count(&server, "max_headers")
        ),
        format!("| path and query | {} KiB |", kib(&server, "max_uri")),
        format!(
            "| a head, a body to arrive | {} s, {} s |",
            seconds("head_timeout"),
            seconds("body_timeout")
        ),
        format!("| a connection at rest, over HTTP/2 without streams | {} s |", seconds("idle_timeout")),
        format!(
            "| a write of which less than 16 KiB, or than the rest, are taken | {} s |",
            seconds("write_timeout")
        ),
        format!(
            "| all bodies that are still arriving, and the heads of requests that wait for one or for authentication | {} MiB |",
            mib(&server, "max_arriving")
        ),
        format!("| establishing who calls | {} s |", seconds("authenticate_timeout")),
        format!("| requests running in one server | {} |", count(&server, "max_in_flight")),
        format!(
            "| streams of updates that are open in one server | {} |",
            count(&server, "max_live_streams")
        ),
        format!("| a stream of events without an event | {} s |", seconds("event_ping")),
        format!(
            "| pings over a WebSocket; the answer to one | {} s; {} s |",
            seconds("event_ping"),
            seconds("pong_timeout")
        ),
        format!(
            "| messages that a WebSocket receives in each second, over 10 s | {} |",
            count(&server, "max_socket_messages")
        ),
        format!("| tasks that a WebSocket follows | {} |", count(&server, "max_subscriptions")),
        format!("| connections to one server | {} |", count(&server, "max_connections")),
        format!(
            "| tasks running, waiting in a brain | {}, {} |",
            count(&brain, "max_running"),
            count(&brain, "max_queued")
        ),
        format!("| an answer that the client reads | {} MiB |", mib(&client, "max_answer")),
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
