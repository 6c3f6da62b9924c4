//! Each example, run as its comment says.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// An example program that `cargo test` has built.
pub(crate) fn example(name: &str) -> Command {
    let tests = std::env::current_exe().expect("this program has a path");
    let target = tests.parent().and_then(|deps| deps.parent()).expect("it lies in target/PROFILE/deps");
    let program: PathBuf = target.join("examples").join(name);
    assert!(program.exists(), "{} is not built: run all of `cargo test`", program.display());
    Command::new(program)
}

/// A program that is ended with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server example on a free port and waits until it takes connections.
fn serve(name: &str) -> (Running, SocketAddr) {
    serve_with(name, |command| command.stdout(Stdio::null()))
}

/// The same, with what is added to its command.
pub(crate) fn serve_with(
    name: &str,
    set: impl FnOnce(&mut Command) -> &mut Command,
) -> (Running, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("a free port");
    let child = set(example(name).arg(address.to_string())).spawn().expect("it starts");
    let running = Running(child);
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until, "{name} does not listen on {address}");
        std::thread::yield_now();
    }
    (running, address)
}

/// What curl would do: one request, the status line and the body of the answer.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).expect("it listens");
    let length = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers in UTF-8");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    let body = answer.split_once("\r\n\r\n").expect("a head").1.to_owned();
    (status, body)
}

fn text(output: &Output) -> (String, String) {
    let read = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (read(&output.stdout), read(&output.stderr))
}

#[test]
fn hello_arm_answers_curl() {
    let (_server, address) = serve("hello_arm");
    let (status, body) =
        request(address, "POST", "/validate", r#"{"code":"fn main() {}","language":"rust"}"#);
    assert_eq!((status, body.as_str()), (200, r#"{"is_valid":true,"issues":[]}"#));
    let (status, body) = request(address, "POST", "/validate", r#"{"code":"","language":"rust"}"#);
    assert_eq!(status, 422);
    assert!(body.contains(r#""path":"code""#), "{body}");
}

#[test]
fn call_arm_calls_hello_arm() {
    let (_server, address) = serve("hello_arm");
    let run = |code: &str| {
        let output =
            example("call_arm").arg(code).env("OCTOLLM_ARM_JUDGE", format!("http://{address}")).output();
        text(&output.expect("it runs"))
    };
    assert_eq!(run("fn main() {}"), ("it parses\n".into(), String::new()));
    let (told, _) = run("fn main() {");
    assert!(told.starts_with("1:"), "{told}");
    let alone = example("call_arm").env_remove("OCTOLLM_ARM_JUDGE").output().expect("it runs");
    assert!(!alone.status.success());
    assert!(text(&alone).1.contains("code.validate"), "{}", text(&alone).1);
}

#[test]
fn orchestrate_runs_a_task() {
    let (_server, address) = serve("orchestrate");
    let (status, body) = request(address, "POST", "/tasks", r#"{"goal":"ten arms, one brain"}"#);
    assert_eq!(status, 202, "{body}");
    let task: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let path = format!("/tasks/{}", task["task_id"].as_str().expect("an id"));
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, body) = request(address, "GET", &path, "");
        assert_eq!(status, 200, "{body}");
        let task: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        if task["status"] == "completed" {
            assert_eq!(task["result"]["output"], "TEN ARMS, ONE BRAIN");
            assert_eq!(task["metadata"]["arms_used"], serde_json::json!(["splitter", "shouter"]));
            return;
        }
        assert!(Instant::now() < until, "{task}");
        std::thread::yield_now();
    }
}

#[test]
fn dead_letters_are_listed_inspected_and_replayed() {
    let (printed, _) = text(&example("dead_letters").output().expect("it runs"));
    assert_eq!(printed.matches("\t1 attempts\tthe account has no address").count(), 3, "{printed}");
    assert!(printed.contains("\"event_type\": \"order.paid\""), "{printed}");
    assert!(printed.ends_with("billed: order 2\nbilled: order 4\nbilled: order 6\n"), "{printed}");
}

#[test]
fn events_are_printed_with_what_is_missing() {
    let (printed, _) = text(&example("events_tail").output().expect("it runs"));
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, "-- 1 events are missing here: too slow"), "{printed}");
    assert!(lines[3].ends_with("events:task:completed brain \"one\""), "{printed}");
}

#[test]
fn jobs_are_queued_once_and_run_until_they_succeed() {
    let (printed, log) = text(&example("jobs").output().expect("it runs"));
    assert!(printed.contains("existing: true"), "{printed}{log}");
    assert!(printed.contains("queued, because text.deliver: "), "{printed}{log}");
    assert_eq!(printed.matches("is written").count(), 1, "{printed}");
    assert!(printed.contains("2 readers have it after"), "{printed}{log}");
}

#[test]
fn embed_in_axum_serves_beside_what_was_there() {
    let (_server, address) = serve("embed_in_axum");
    assert_eq!(request(address, "GET", "/", "").1, "the existing service");
    let count = request(address, "POST", "/arms/scribe/count", r#"{"text":"Ten arms, one brain."}"#);
    assert_eq!(count, (200, r#"{"words":4}"#.into()));
    let (status, card) = request(address, "GET", "/arms/scribe/capabilities", "");
    assert_eq!(status, 200);
    assert!(card.contains(r#""arm_id":"scribe""#), "{card}");
}

#[test]
fn secure_arm_answers_401_and_403() {
    let output = example("secure_arm").output().expect("it runs");
    let (shown, errors) = text(&output);
    assert!(output.status.success(), "{errors}");
    for line in [
        r#"www-authenticate: Bearer error="invalid_token""#,
        r#"www-authenticate: Bearer error="insufficient_scope", scope="text:count""#,
        r#"{"words":1,"caller":"bob"}"#,
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in {shown}");
    }
}

#[test]
fn discover_follows_an_arm_that_moves() {
    let output = example("discover").output().expect("it runs");
    let (printed, errors) = text(&output);
    assert!(output.status.success(), "{errors}");
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 7, "{printed}");
    for (line, only) in [(0, "Oslo 100"), (2, "Rome 100"), (3, "Rome 100"), (4, "Rome 100"), (6, "Bern 100")]
    {
        assert!(lines[line].ends_with(&format!("  {only}")), "{printed}");
    }
    assert!(!lines[1].contains("failed"), "{printed}");
    assert!(lines[5].ends_with("  failed (unavailable) 100"), "{printed}");
}

#[test]
fn resilient_call_survives_the_ends_of_its_arm() {
    let output = example("resilient_call").output().expect("it runs");
    let (printed, errors) = text(&output);
    assert!(output.status.success(), "{errors}");
    let calls: Vec<_> = printed.lines().filter(|line| !line.starts_with(' ')).collect();
    let (first, last) = (calls.first().expect("a call"), calls.last().expect("a call"));
    assert!([first, last].into_iter().all(|line| line.starts_with("the arm is well: 4 words")), "{printed}");
    let ended = |what: &str, how: &str| calls.iter().any(|line| line.starts_with(&format!("{what}: {how}")));
    assert!(ended("the arm is killed half-way, and is back at once", "4 words"), "{printed}");
    assert!(ended("the arm is gone", "circuit_open"), "{printed}");
    assert!(ended("the arm is back", "4 words"), "{printed}");
    for line in [
        "it fails: connection_lost",
        r#"octollm_breaker_endpoints{arm="scribe",state="open"} 1"#,
        r#"octollm_breaker_endpoints{arm="scribe",state="closed"} 1"#,
    ] {
        assert!(printed.lines().any(|printed| printed.ends_with(line)), "{line} is not in {printed}");
    }
}

#[test]
fn a_storm_on_a_leaf_reaches_no_caller() {
    let output = example("storm").args(["hops", "--short"]).output().expect("it runs");
    let (printed, errors) = text(&output);
    assert!(output.status.success(), "{printed}{errors}");
    assert_eq!(printed.lines().filter(|line| line.starts_with("storm hops=3 ")).count(), 5, "{printed}");
}

#[test]
fn rest_api_survives_what_a_service_does() {
    let output = example("rest_api").output().expect("it runs");
    let (printed, errors) = text(&output);
    assert!(output.status.success(), "{errors}");
    assert!(printed.contains("the note was made once, with 2 requests"), "{printed}");
    assert!(printed.contains("the model, after the wait that it has asked for: Nine."), "{printed}");
    assert!(printed.contains("not sent: model.post: the service allows the next request in"), "{printed}");
    assert!(printed.contains("the model streams: Octopuses  … model.post: "), "{printed}");
    assert!(printed.contains("the model streams: Octopuses have nine brains.\n"), "{printed}");
    assert!(!printed.contains("secret-key") && !errors.contains("secret-key"), "{printed}{errors}");
}

#[test]
fn delegation_is_narrower_at_each_hop() {
    let output = example("delegation").output().expect("it runs");
    let (shown, errors) = text(&output);
    assert!(output.status.success(), "{errors}");
    assert!(shown.contains("archive: called by checker on behalf of ali, with data:read"), "{shown}");
    assert!(shown.contains("the scope data:delete is not granted to checker"), "{shown}");
    assert!(shown.contains("its issuer is not trusted"), "{shown}");
}

#[test]
fn a_deployed_system_is_configured_by_its_environment() {
    let start = |role: &str, variables: &[(&str, String)]| {
        let probe = TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr());
        let address = probe.expect("a free port");
        let mut program = example("deployed");
        program.arg(role).env("OCTOLLM_SERVER_LISTEN", address.to_string()).stdout(Stdio::null());
        let child = program.envs(variables.iter().map(|(name, value)| (name, value))).spawn();
        let running = Running(child.expect("it starts"));
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "{role} does not listen on {address}");
            std::thread::yield_now();
        }
        (running, address)
    };
    let (_judge, judge) = start("judge", &[("OCTOLLM_SERVER_MAX_BODY", "1KiB".into())]);
    let (_brain, brain) = start("brain", &[("OCTOLLM_ARM_JUDGE", format!("http://{judge}"))]);
    let url = ("OCTOLLM_CLIENT_ORCHESTRATOR_URL", format!("http://{brain}"));
    let (_reflex, reflex) = start("reflex", &[url]);
    assert_eq!(request(judge, "POST", "/count", &" ".repeat(1025)).0, 413);
    assert_eq!(request(reflex, "POST", "/tasks", r#"{"goal":"my password"}"#).0, 403);
    let (status, submitted) = request(reflex, "POST", "/tasks", r#"{"goal":"ten arms, one brain"}"#);
    assert_eq!(status, 202, "{submitted}");
    let submitted: serde_json::Value = serde_json::from_str(&submitted).expect("JSON");
    let path = format!("/tasks/{}", submitted["task_id"].as_str().expect("an id"));
    let until = Instant::now() + Duration::from_secs(20);
    while !request(brain, "GET", &path, "").1.contains("4 words") {
        assert!(Instant::now() < until, "the task does not end");
    }
    assert!(request(brain, "GET", "/ready", "").1.contains(r#""store":true"#));

    for (role, name) in [
        ("judge", "OCTOLLM_SERVER_MAX_BDY"),
        ("brain", "OCTOLLM_BRAIN_LEASES"),
        ("reflex", "OCTOLLM_CLIENT_X"),
    ] {
        let output = example("deployed").arg(role).env(name, "swordfish").output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(name) && !error.contains("swordfish"), "{error}");
    }
}

/// Runs the example `token` in a folder, with this as its input. Returns its output, or its error.
fn token(folder: &Path, command: &str, options: &[(&str, &str)], input: &str) -> Result<String, String> {
    let options = options.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]);
    let mut program = example("token");
    program.current_dir(folder).args(command.split(' ')).args(options);
    let program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("it starts");
    // A command that reads no input may have ended.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let (shown, error) = text(&output);
    if output.status.success() { Ok(shown.trim().to_owned()) } else { Err(error) }
}

#[test]
fn token_makes_delegates_and_verifies_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for name in ["brain", "coder"] {
        let jwks = token(folder, &format!("keygen {name}.pem"), &[], "").expect("a key");
        assert!(!jwks.contains("\"d\""), "no private part: {jwks}");
        assert_eq!(token(folder, &format!("keygen {name}.pem"), &[], ""), Ok(jwks.clone()), "the same key");
        std::fs::write(folder.join(format!("{name}.jwks")), jwks).expect("a file");
    }

    let issued = [
        ("key", "brain.pem"),
        ("issuer", "brain"),
        ("subject", "ali"),
        ("audience", "coder"),
        ("scope", "code:review"),
        ("grant", "code:review code:validate"),
        ("callee-key", "coder.jwks"),
        ("needs", "code:validate data:read"),
    ];
    let first = token(folder, "issue", &issued, "").expect("a token");
    let shown = token(folder, "inspect", &[], &first).expect("its claims");
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&shown["head"]["typ"], &shown["claims"]["sub"]), (&"at+jwt".into(), &"ali".into()));
    assert_eq!(shown["claims"]["dlg"]["claims"]["scope"], "code:validate", "what is granted and needed");

    let keys = [("keys", "brain.jwks"), ("issuer", "brain")];
    let coder = [("key", "coder.pem"), ("as", "coder"), ("audience", "judge")];
    let with = |parts: &[&[(&'static str, &'static str)]]| parts.concat();
    let second = with(&[&keys, &coder, &[("scope", "code:validate")]]);
    let second = token(folder, "delegate", &second, &first).expect("a token of the coder");
    let wider = token(folder, "delegate", &with(&[&keys, &coder, &[("scope", "code:review")]]), &first);
    assert!(wider.unwrap_err().contains("the scope code:review is not granted to coder"));

    for (audience, given, subject, actor, links) in
        [("coder", &first, "ali", serde_json::Value::Null, 1), ("judge", &second, "ali", "coder".into(), 0)]
    {
        let said = token(folder, "verify", &with(&[&keys, &[("audience", audience)]]), given).expect("valid");
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!((&said["issuer"], &said["subject"]), (&"brain".into(), &subject.into()), "{said}");
        assert_eq!((&said["actor"], &said["links"]), (&actor, &links.into()), "{said}");
    }
    let elsewhere = token(folder, "verify", &with(&[&keys, &[("audience", "judge")]]), &first);
    assert!(elsewhere.unwrap_err().contains("it is for another audience"));
    let stranger = [("keys", "coder.jwks"), ("issuer", "brain"), ("audience", "coder")];
    assert!(token(folder, "verify", &stranger, &first).unwrap_err().contains("no key of this id"));
    assert!(token(folder, "sign", &[], "").unwrap_err().contains("usage: token keygen FILE"));
}
