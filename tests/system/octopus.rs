//! The live system, as a user runs it.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, response::IntoResponse, routing::post};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::{
    examples::example,
    octo::world::{Ran, ended, octo_at, ran, read_until},
    postgres::Postgres,
    redis::Redis,
};

fn octopus(arguments: &[&str]) -> Command {
    let mut command = Command::from(example("octopus"));
    command.args(arguments).env_remove("OPENAI_API_KEY").env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The addresses that it has printed.
fn addresses(out: &str) -> Vec<SocketAddr> {
    let of_part = out.lines().map_while(|line| line.split_once("http://"));
    let of_part = of_part.filter(|(name, _)| name.trim() != "dashboard");
    let addresses: Vec<_> = of_part.map(|(_, address)| address.parse().expect("an address")).collect();
    assert_eq!(addresses.len(), 9, "{out}");
    addresses
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

fn assert_nothing_is_left(ran: &Ran) {
    for address in addresses(&ran.out) {
        assert!(TcpStream::connect(address).is_err(), "{address} of {ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_is_lost_or_done_twice_while_parts_are_killed() {
    let ran = ran(octopus(&["--tasks", "30", "--chaos", "--seed", "1"])).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("\ntasks 30: completed "), "{ran:?}");
    assert!(ran.out.ends_with(", tasks lost 0, done twice 0\n"), "{ran:?}");
    assert!(ran.out.contains(" refused 2, not submitted 0\n"), "{ran:?}");
    let kills = ran.out.lines().filter(|line| line.contains(" is killed, ")).count();
    assert!(kills >= 3 && ran.out.contains(&format!("parts killed {kills},")), "{ran:?}");
    assert_nothing_is_left(&ran);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_with_all_of_its_parts_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = octopus(&["--at-once", "2"]).env("TMPDIR", folder.path()).spawn().unwrap();
    let begun = read_until(child.stdout.as_mut().unwrap(), "  completed\n").await;
    let reflex = format!("http://{}", addresses(&begun)[8]);
    // What it tells its user to do.
    assert!(begun.contains(&format!("octo --url {reflex} submit \"a story about a crab\"\n")), "{begun}");
    let done = ran(octo_at(&reflex, &["submit", "a story about a crab", "--json"])).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let lines = done.lines();
    assert!(lines.iter().filter(|line| line["type"] == "chunk").count() > 20, "{done:?}");
    let result = &lines.last().unwrap()["result"];
    assert!(
        result["output"].as_str().unwrap().starts_with("Once upon a time there was a crab. "),
        "{result}"
    );
    assert_eq!(result["confidence"], 1.0);
    // What the guide shows.
    let story = ran(octo_at(&reflex, &["submit", "--json", "story.write", r#"{"about":"a crab"}"#])).await;
    assert_eq!(story.code, Some(0), "{story:?}");
    let lines = story.lines();
    let output = &lines.last().unwrap()["result"]["output"];
    assert!(output.as_str().unwrap().starts_with("Once upon a time there was a crab. "), "{story:?}");
    let graded =
        ran(octo_at(&reflex, &["call", "story.review", r#"{"story":"Once there was a crab."}"#])).await;
    assert_eq!(graded.out, "{\n  \"stars\": 3,\n  \"words\": 5\n}\n", "{graded:?}");
    // The figures of a page are of its process, and brains run the tasks.
    let parts = addresses(&begun);
    let brains = parts[6..8].iter().map(|brain| format!("dashboard   http://{brain}/dashboard"));
    let pages: Vec<_> = begun.lines().filter(|line| line.starts_with("dashboard ")).collect();
    assert_eq!(pages, brains.collect::<Vec<_>>());
    let arms = ran(octo_at(&reflex, &["arms", "--json"])).await.lines();
    let mut ids: Vec<_> = arms.iter().map(|card| card["arm_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, ["critic", "publisher", "writer"]);
    let events = ran(octo_at(&reflex, &["events", "events:task:completed", "--count", "2", "--json"])).await;
    assert_eq!((events.code, events.lines().len()), (Some(0), 2), "{events:?}");

    signal(&child, Signal::SIGINT);
    let ended = ended(child).await;
    let ended = Ran { out: begun + &ended.out, ..ended };
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.ends_with("parts killed 0, tasks lost 0, done twice 0\n"), "{ended:?}");
    assert_nothing_is_left(&ended);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_that_is_published_twice_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = octopus(&["--at-once", "1"]).env("TMPDIR", folder.path()).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "  completed\n").await;
    let run = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    let ledger = run.path().join("ledger");
    let published = std::fs::read_to_string(&ledger).unwrap();
    let again = format!("{}\n", published.lines().next().unwrap());
    let mut file = std::fs::OpenOptions::new().append(true).open(&ledger).unwrap();
    file.write_all(again.as_bytes()).unwrap();
    signal(&child, Signal::SIGINT);
    let ended = ended(child).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let says = ", tasks lost 0, done twice 1\n  the story of task 1 was published 2 times\n";
    assert!(ended.out.ends_with(says), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_closes_its_output_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = octopus(&["--at-once", "1"]).env("TMPDIR", folder.path()).spawn().unwrap();
    read_until(child.stdout.as_mut().unwrap(), "  completed\n").await;
    drop(child.stdout.take());
    let ended = ended(child).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_parts_end_where_it_is_killed() {
    let mut child = octopus(&[]).spawn().unwrap();
    let begun = read_until(child.stdout.as_mut().unwrap(), "  completed\n").await;
    signal(&child, Signal::SIGKILL);
    assert_eq!(ended(child).await.code, None);
    let until = Instant::now() + Duration::from_secs(30);
    for address in addresses(&begun) {
        while TcpStream::connect(address).is_ok() {
            assert!(Instant::now() < until, "{address}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_on_given_servers() {
    let (postgres, redis) = (Postgres::start(&[]), Redis::start(&[]));
    let (database, events) = (postgres.database(), redis.url());
    let given = ["--postgres", &database, "--redis", &events];
    let ran = ran(octopus(&[&["--tasks", "12", "--chaos", "--seed", "2"], &given[..]].concat())).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.ends_with(", tasks lost 0, done twice 0\n"), "{ran:?}");
    let tasks = postgres.execute(database.rsplit('/').next().unwrap(), "SELECT count(*) FROM octollm_tasks");
    assert_eq!(tasks, "12", "{ran:?}");
    assert_ne!(redis.execute("INFO commandstats").matches("cmdstat_publish:").count(), 0);
}

/// What the model was asked: the `authorization`, and the body.
type Asked = Arc<Mutex<Vec<(Option<String>, Value)>>>;

/// What a model answers to a prompt.
type Answers = fn(&str) -> String;

/// A server with `/v1/chat/completions`, which answers with these events for each subject.
async fn model(answer: Answers) -> (String, Asked) {
    let asked = Asked::default();
    let answering = move |State(asked): State<Asked>, headers: HeaderMap, body: Bytes| async move {
        let body: Value = serde_json::from_slice(&body).unwrap();
        let prompt = body["messages"][1]["content"].as_str().unwrap_or_default().to_owned();
        let authorization = headers.get("authorization").and_then(|value| value.to_str().ok());
        asked.lock().unwrap().push((authorization.map(str::to_owned), body));
        ([("content-type", "text/event-stream")], answer(&prompt)).into_response()
    };
    let app = Router::new().route("/v1/chat/completions", post(answering)).with_state(asked.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, asked)
}

fn frames(frames: &[Value]) -> String {
    frames.iter().map(|frame| format!("data: {frame}\n\n")).collect()
}

fn word(word: &str) -> Value {
    json!({ "choices": [{ "index": 0, "delta": { "content": word }, "finish_reason": null }] })
}

fn end(reason: &str) -> Value {
    json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_of_a_model_are_streamed() {
    let (url, asked) = model(|_| {
        let used = json!({ "choices": [], "usage": { "total_tokens": 42 } });
        // Another answer beside the first.
        let other = json!({ "choices": [{ "index": 1, "delta": { "content": "Nine " }, "finish_reason": "length" }] });
        let role = json!({ "choices": [{ "index": 0, "delta": { "role": "assistant" } }] });
        format!(
            ": a comment\n\n{}data: [DONE]\n\n",
            frames(&[role, word("Eight "), other, word("arms."), end("stop"), used])
        )
    })
    .await;
    let v1 = format!("{url}/v1");
    let arguments = ["--llm", &v1, "--model", "small", "--at-once", "1"];
    let mut child = octopus(&arguments).env("OPENAI_API_KEY", "sk-test").spawn().unwrap();
    let begun = read_until(child.stdout.as_mut().unwrap(), "  completed\n").await;
    let reflex = format!("http://{}", addresses(&begun)[8]);
    let lines = ran(octo_at(&reflex, &["submit", "a story about a crab", "--json"])).await.lines();
    let chunks: Vec<_> =
        lines.iter().filter(|line| line["type"] == "chunk").map(|line| &line["data"]).collect();
    assert_eq!(chunks, ["Eight ", "arms."]);
    assert_eq!(lines.last().unwrap()["result"]["output"], "Eight arms.");
    let id = lines[0]["task_id"].as_str().unwrap();
    let listed = ran(octo_at(&reflex, &["list", "--json", "--limit", "100"])).await.lines();
    let task = listed.iter().find(|task| task["task_id"] == id).unwrap();
    assert_eq!(task["metadata"]["tokens_used"], 42);
    let (authorization, body) = asked.lock().unwrap()[0].clone();
    assert_eq!(authorization.as_deref(), Some("Bearer sk-test"));
    assert_eq!((&body["model"], &body["stream"]), (&json!("small"), &json!(true)));
    assert_eq!(body["messages"][1]["content"], "Tell a story about a crab.");
    signal(&child, Signal::SIGTERM);
    assert_eq!(timeout(Duration::from_secs(60), child.wait()).await.unwrap().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_does_not_finish_fails_the_task() {
    // One task for each: with a few failures in a row, a circuit breaker would open.
    let cases: [(Answers, &str); 8] = [
        (|_| frames(&[word("Eight ")]) + "data: {\"choices\":\n\n", "the model has sent a malformed frame: "),
        (
            |_| frames(&[json!({ "error": { "message": "out of memory" } })]),
            "the model has failed: out of memory\n",
        ),
        (|_| frames(&[json!({ "error": "no such model" })]), "the model has failed: no such model\n"),
        (
            |_| frames(&[word("Eight ")]) + "event: error\ndata: {\"message\":\"overloaded\"}\n\n",
            "the model has failed: overloaded\n",
        ),
        (
            |_| frames(&[word("Eight "), end("length")]) + "data: [DONE]\n\n",
            "the model has stopped at its limit of tokens, before the end of the story (finish_reason `length`)\n",
        ),
        (
            |_| frames(&[word("Eight "), end("content_filter")]) + "data: [DONE]\n\n",
            "a filter has withheld words of the model (finish_reason `content_filter`)\n",
        ),
        (|_| frames(&[word("Eight ")]), "the model has stopped before the end of the story\n"),
        (|_| frames(&[end("stop")]) + "data: [DONE]\n\n", "the model has sent no words\n"),
    ];
    for (answer, reason) in cases {
        let (url, _) = model(answer).await;
        let ran = ran(octopus(&["--tasks", "1", "--llm", &url])).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.out.contains(&format!("  failed: story.write: {reason}")), "{ran:?}");
        assert!(ran.out.contains("\n  upstream_failed 1, as in: "), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_asked_is_an_error_of_usage() {
    for (url, key, says) in [
        ("nonsense", "", "it has no scheme"),
        ("http://192.0.2.1", "sk-test", "it is on another machine"),
        ("http://127.0.0.1:1", "two\nlines", "OPENAI_API_KEY has a malformed value"),
    ] {
        let mut command = octopus(&["--llm", url]);
        if !key.is_empty() {
            command.env("OPENAI_API_KEY", key);
        }
        let ran = ran(command).await;
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
        assert!(
            ran.err.starts_with(&format!("error: invalid value '{url}' for '--llm <URL>': {says}")),
            "{ran:?}"
        );
        assert_eq!(ran.err.matches(says).count(), 1, "{ran:?}");
    }
}
