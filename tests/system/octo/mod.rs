//! The command line, as a user runs it.

pub(crate) mod world;
mod terminal;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use octollm::{
    card::ArmCard,
    context::Grant,
    http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
    prelude::*,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
};

use self::world::{World, ended, octo_at, ran, read_until, task_in};

fn interrupt(child: &Child) {
    let id = i32::try_from(child.id().expect("it runs")).expect("an id");
    kill(Pid::from_raw(id), Signal::SIGINT).expect("it is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_submitted_listed_watched_and_cancelled() {
    let world = World::start().await;
    let done = world.run(&["submit", "story.tell", r#"{"about":"an octopus"}"#]).await;
    assert_eq!((done.code, done.out.as_str()), (Some(0), "Once an octopus\n"), "{done:?}");
    let id = task_in(&done.err);
    assert!(done.err.starts_with(&format!("{id} is submitted\n")), "{done:?}");
    // Where the output is no terminal, there are no chunks before it.
    let goal = world.run(&["submit", "-q", "a crab"]).await;
    assert_eq!((goal.out.as_str(), goal.err.as_str()), ("{\n  \"story\": \"Once a crab\"\n}\n", ""));

    let watched = world.run(&["watch", &id]).await;
    assert_eq!((watched.code, watched.out.as_str()), (Some(0), "Once an octopus\n"), "{watched:?}");
    assert!(watched.err.starts_with(&format!("{id} is completed: story.tell\n")), "{watched:?}");
    let listed = world.run(&["list", "--limit", "2"]).await;
    let (goal, story) = listed.out.split_once('\n').unwrap();
    assert!(goal.contains("  completed  100%  ") && goal.ends_with("s  task.run    a crab"), "{listed:?}");
    assert!(story.starts_with(&id) && story.ends_with("s  story.tell  telling\n"), "{listed:?}");
    assert_eq!(world.run(&["list", "--status", "failed"]).await.out, "");

    let detached = world.run(&["submit", "--detach", "story.tell", r#"{"about":"gate"}"#]).await;
    let id = detached.out.trim();
    assert_eq!(task_in(id), id);
    let cancelled = world.run(&["cancel", id]).await;
    assert!(cancelled.out.starts_with(&format!("{id}  cancelled ")), "{cancelled:?}");
    let watched = world.run(&["watch", id]).await;
    assert_eq!((watched.code, watched.err.contains("octo: the task was cancelled")), (Some(1), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_task_is_run_again_and_only_its_new_updates_are_printed() {
    let world = World::start().await;
    let failed = world.run(&["submit", "story.tell", r#"{"about":"failure"}"#]).await;
    assert_eq!((failed.code, failed.out.as_str()), (Some(1), ""), "{failed:?}");
    let id = task_in(&failed.err);
    assert!(failed.err.contains(&format!(
        "octo: no story today\n      to go on from the step that failed: octo rerun {id}"
    )));
    let again = world.run(&["rerun", &id, "--json"]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    let lines = again.lines();
    assert_eq!((&lines[0]["task_id"], &lines[0]["status"]), (&json!(id), &json!("queued")));
    assert!(lines[1..].iter().all(|update| update["seq"].as_u64() > Some(2)), "{lines:?}");
    assert_eq!(lines.last().unwrap()["result"]["output"], "Once failure");
    let refused = world.run(&["rerun", &id, "--json"]).await;
    assert_eq!((refused.code, &refused.problem()["code"]), (Some(4), &json!("conflict")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_each_line_is_an_object() {
    let world = World::start().await;
    let done = world.run(&["--json", "submit", "story.tell", r#"{"about":"an octopus"}"#]).await;
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    let lines = done.lines();
    let id = lines[0]["task_id"].as_str().unwrap();
    let chunks: Vec<_> =
        lines.iter().filter(|line| line["type"] == "chunk").map(|line| &line["data"]).collect();
    assert_eq!(chunks, ["Once ", "an octopus"]);
    assert_eq!(lines.last().unwrap()["status"], "completed");
    // Watched from the middle, each number comes once.
    let after = world.run(&["watch", id, "--after", "3", "--json"]).await.lines();
    assert_eq!(after[..], lines[4..]);
    for arguments in [&["list", "--json"][..], &["cancel", id, "--json"], &["arms", "--json"]] {
        let ran = world.run(arguments).await;
        assert_eq!((ran.code, ran.lines().len()), (Some(0), 1), "{ran:?}");
    }
    let called = world.run(&["call", "story.tell", r#"{"about":"a crab"}"#, "--json"]).await.lines();
    assert_eq!(called.last().unwrap(), &json!({ "type": "output", "output": "Once a crab" }));
    assert!(called.contains(&json!({ "type": "chunk", "data": "a crab" })), "{called:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn arms_are_listed_and_called_by_the_url_of_the_brain_or_their_own() {
    let world = World::start().await;
    for url in [&world.url, &world.arm] {
        let listed = ran(octo_at(url, &["arms"])).await;
        assert!(listed.out.starts_with("teller ") && listed.out.ends_with(" story.tell\n"), "{listed:?}");
        let mut command = octo_at(url, &["call", "story.tell", "-"]);
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(br#"{"about":"a crab"}"#).await.unwrap();
        let called = ended(child).await;
        assert_eq!((called.code, called.out.as_str()), (Some(0), "Once a crab\n"), "{called:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_printed_as_they_are_published() {
    let world = World::start().await;
    let mut printed = Vec::new();
    for arguments in [&["events", "events:task:*", "--json"][..], &["events", "events:task:completed"]] {
        let mut child = world.octo(arguments).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        // An event is of no use to one that has not subscribed yet.
        let submitting = async {
            loop {
                world.run(&["submit", "-q", "a crab"]).await;
            }
        };
        printed.push(tokio::select! {
            text = async { read_until(&mut out, "task.completed").await + &read_until(&mut out, "\n").await } => text,
            never = submitting => never,
        });
        interrupt(&child);
        assert_eq!(ended(child).await.code, Some(130));
    }
    for line in printed[0].lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["event_type"].as_str().unwrap().starts_with("task."), "{event}");
    }
    let words: Vec<_> = printed[1].split_whitespace().collect();
    assert_eq!(words[1], "task.completed", "{printed:?}");
    assert!(words[0].ends_with('Z') && words[3].starts_with('{'), "{printed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_exit_code_is_the_one_that_help_lists() {
    let world = World::start().await;
    let help = world.run(&["--help"]).await;
    for code in [0, 1, 2, 3, 4, 5, 130] {
        assert!(help.out.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{code}");
    }
    let unknown = "task_0000000000000000";
    for (arguments, code, kind) in [
        (&["submit"][..], 2, "usage"),
        (&["submit", ""], 2, "usage"),
        (&["submit", "story.tell", "{"], 2, "usage"),
        (&["watch", "no-id"], 2, "usage"),
        (&["events", "nonsense"], 2, "usage"),
        (&["events", "--count", "0"], 2, "usage"),
        (&["list", "--limit", "0"], 2, "usage"),
        (&["call", "story.tell", "{}", "--within", "0"], 2, "usage"),
        (&["submit", "a crab", "--run-in", "-1"], 2, "usage"),
        (&["--token-file", "/nowhere", "list"], 2, "usage"),
        (&["--url", "nonsense", "list"], 2, "usage"),
        // A token is not sent in cleartext to another machine.
        (&["--url", "http://192.0.2.1", "--token", "x", "list"], 2, "usage"),
        (&["--url", "http://127.0.0.1:1", "list"], 3, "unreachable"),
        (&["--url", "http://127.0.0.1:1", "arms"], 3, "unreachable"),
        (&["--url", "http://127.0.0.1:1", "submit", "a crab"], 3, "unreachable"),
        (&["submit", "story.tell", r#"{"about":1}"#], 4, "validation_failed"),
        (&["watch", unknown], 5, "task_not_found"),
        (&["cancel", unknown], 5, "task_not_found"),
        (&["rerun", unknown], 5, "task_not_found"),
        (&["submit", "story.sing", "{}"], 5, "contract_not_offered"),
        (&["call", "story.sing", "{}"], 5, "contract_not_offered"),
        (&["call", "story.tell", r#"{"about":"gate"}"#, "--within", "0.2"], 3, "deadline_exceeded"),
        (&["call", "story.tell", r#"{"about":"failure"}"#], 1, "arm_failed"),
    ] {
        let done = world.run(&[&["--json"], arguments].concat()).await;
        let problem = done.problem();
        assert_eq!(done.code, Some(code), "{arguments:?} {done:?}");
        assert_eq!((&problem["code"], &problem["exit"]), (&json!(kind), &json!(code)), "{arguments:?}");
        assert!(done.out.is_empty() || kind == "deadline_exceeded", "{done:?}");
        let words = world.run(arguments).await;
        // A story fails once.
        assert!(words.code == Some(code) || code == 1, "{arguments:?} {words:?}");
        assert!(
            words.err.starts_with("octo: ") || words.err.starts_with("error: ") || code == 1,
            "{words:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_named_as_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "two\nlines\n").unwrap();
    let (file, url) = (file.to_str().unwrap(), "http://127.0.0.1:1");
    for command in [&["list"][..], &["arms"], &["call", "story.tell", "{}"]] {
        for (options, named) in [
            (&["--token", "two\nlines"][..], "--token is no token"),
            (&["--token-file", file], &*format!("--token-file {file} is no token")),
            (&[], "OCTOLLM_TOKEN is no token"),
        ] {
            let mut octo = octo_at(url, &[options, command].concat());
            octo.env("OCTOLLM_TOKEN", if options.is_empty() { "two\nlines" } else { "" });
            let refused = ran(octo).await;
            assert_eq!(refused.code, Some(2), "{refused:?}");
            assert!(refused.err.starts_with(&format!("octo: {named}: it has a line break")), "{refused:?}");
            assert!(!refused.err.contains("two") && !refused.err.contains("bearer"), "{refused:?}");
        }
        let refused = ran(octo_at("nonsense", command)).await;
        assert!(refused.err.starts_with("octo: --url has no scheme"), "{refused:?}");
        let exposed = ran(octo_at("http://192.0.2.1", &[command, &["--token", "x"]].concat())).await;
        assert!(exposed.err.starts_with("octo: --url is on another machine, "), "{exposed:?}");
        assert!(exposed.err.contains("set --cleartext\n") && !exposed.err.contains('`'), "{exposed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn control_characters_of_a_server_are_escaped() {
    let world = World::start().await;
    let hostile = "\u{1b}[31mred\u{7}\u{9b}2J\u{202e}";
    let input = json!({ "about": hostile }).to_string();
    for arguments in [
        &["submit", "story.tell", &input][..],
        &["submit", hostile],
        &["call", "story.tell", &input],
        &["list"],
        &["watch", &format!("task_{hostile}")],
    ] {
        for json in [&[][..], &["--json"]] {
            let done = world.run(&[arguments, json].concat()).await;
            let is_safe = |c: char| !c.is_control() || c == '\n';
            assert!(format!("{}{}", done.out, done.err).chars().all(is_safe), "{done:?}");
            assert!(!done.out.contains('\u{202e}') && !done.err.contains('\u{202e}'), "{done:?}");
            assert!(done.out.contains("[31mred") || done.err.contains("[31mred"), "{arguments:?} {done:?}");
        }
    }
    // JSON has the same text.
    let done = world.run(&["submit", "story.tell", &input, "--json"]).await.lines();
    assert_eq!(done.last().unwrap()["result"]["output"], format!("Once {hostile}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_closes_the_pipe_ends_it_quietly() {
    let world = World::start().await;
    let mut child = world.octo(&["-q", "submit", "story.tell", r#"{"about":"gate"}"#]).spawn().unwrap();
    drop(child.stdout.take());
    world.open_gate();
    let ran = ended(child).await;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_says_how_to_go_on_or_cancels() {
    let world = World::start().await;
    for (option, status) in [(None, "processing"), (Some("--cancel-on-interrupt"), "cancelled")] {
        let arguments = ["submit", "story.tell", r#"{"about":"gate"}"#];
        let arguments: Vec<_> = arguments.into_iter().chain(option).collect();
        let mut child = world.octo(&arguments).spawn().unwrap();
        let begun = read_until(child.stderr.as_mut().unwrap(), " 50% telling\n").await;
        interrupt(&child);
        let ran = ended(child).await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(130), ""), "{ran:?}");
        let id = task_in(&begun);
        // The chunk may have arrived.
        let says: Vec<_> = match option {
            Some(_) => vec![" is cancelled\n".into()],
            None => [2, 3].iter().map(|seq| format!("octo watch {id} --after {seq}\n")).collect(),
        };
        assert!(says.iter().any(|says| ran.err.ends_with(says)), "{ran:?}");
        let listed = world.run(&["list", "--json", "--limit", "1"]).await.lines();
        assert_eq!((&listed[0]["task_id"], &listed[0]["status"]), (&json!(id), &json!(status)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_ctrl_c_says_after_which_update() {
    let world = World::start().await;
    let mut child = world.octo(&["--json", "submit", "story.tell", r#"{"about":"gate"}"#]).spawn().unwrap();
    let begun = read_until(child.stdout.as_mut().unwrap(), "\"data\":\"Once \"}\n").await;
    interrupt(&child);
    let problem = ended(child).await.problem();
    assert_eq!(
        (&problem["code"], &problem["after"]),
        (&json!("interrupted"), &json!(3)),
        "{begun} {problem}"
    );
    assert_eq!(problem["task_id"], task_in(&begun));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_every_command_at_a_server_that_is_silent() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let id = "task_0000000000000000";
    for (command, says) in [
        (&["list"][..], "interrupted\n"),
        (&["arms"], "interrupted\n"),
        (&["events"], "interrupted\n"),
        (&["call", "story.tell", "{}"], "interrupted\n"),
        (&["watch", id], &format!("octo watch {id}\n")),
        (&["rerun", id], "interrupted\n"),
        (&["cancel", id], "the server may do it all the same\n"),
        (&["submit", "a crab"], "the task may have been submitted\n"),
    ] {
        let child = octo_at(&url, command).spawn().unwrap();
        let (mut asked, _) = silent.accept().await.unwrap();
        asked.read_u8().await.unwrap();
        interrupt(&child);
        let ended = ended(child).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(130), ""), "{command:?} {ended:?}");
        assert!(
            ended.err.starts_with("octo: interrupted") && ended.err.contains(says),
            "{command:?} {ended:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_that_of_the_option_the_file_or_the_environment() {
    let key = SigningKey::generate().unwrap();
    let roots = KeySet::new("portal").with_key(&key).unwrap();
    let brain = Brain::builder()
        .arm(arm_fn(async |request: TaskRequest, _| Ok(octollm::task::TaskResult::new(request.goal))));
    let verifier = TokenVerifier::builder().root(roots);
    let server = Server::new("brain").orchestrator(brain.build().unwrap()).tokens(verifier);
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let url = server.url();
    tokio::spawn(server.run());
    let issuer = TokenIssuer::root("portal", key).build().unwrap();
    let token = |scope| {
        issuer.issue(&Grant::new("ali", ["task:*", "x:y"]), &[scope], &ArmCard::new("brain")).unwrap()
    };
    let (good, other) = (token("task:run"), token("x:y"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{}\n", good.expose_secret())).unwrap();
    let file = file.to_str().unwrap();

    let none = ran(octo_at(&url, &["submit", "a crab"])).await;
    assert_eq!((none.code, none.err.contains("set OCTOLLM_TOKEN, --token-file or --token")), (Some(4), true));
    for options in [&["--token", good.expose_secret()][..], &["--token-file", file]] {
        let done = ran(octo_at(&url, &[options, &["submit", "a crab"]].concat())).await;
        assert_eq!((done.code, done.out.as_str()), (Some(0), "a crab\n"), "{done:?}");
    }
    let mut command = octo_at(&url, &["submit", "a crab"]);
    assert_eq!(
        ran({
            command.env("OCTOLLM_TOKEN", good.expose_secret());
            command
        })
        .await
        .code,
        Some(0)
    );
    let scope = ran(octo_at(&url, &["--json", "--token", other.expose_secret(), "submit", "a crab"])).await;
    assert_eq!((scope.code, &scope.problem()["code"]), (Some(4), &json!("insufficient_scope")));
    assert!(!scope.err.contains(other.expose_secret()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_followed_over_a_restart_of_its_server() {
    let mut world = World::start().await;
    let mut child = world.octo(&["submit", "story.tell", r#"{"about":"gate"}"#]).spawn().unwrap();
    read_until(child.stderr.as_mut().unwrap(), " 50% telling\n").await;
    world.stop().await;
    read_until(child.stderr.as_mut().unwrap(), "trying again for 60 s").await;
    world.start_again().await;
    world.open_gate();
    let ran = ended(child).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "Once gate\n"), "{ran:?}");
}
