//! A server as its environment configures it: what takes effect, what replaces what, and what is refused.

use std::{ffi::OsString, time::Duration};

use octollm_http::Server;
use serde_json::json;

use crate::{
    arms::{start, worker},
    peer::{Peer, post},
};

/// A port that is free now.
fn free() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn refused(variables: &[(&str, &str)]) -> (String, String) {
    let error = worker().vars(variables.iter().copied()).expect_err("a variable is refused");
    (error.setting().to_owned(), error.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_variable_sets_what_its_setter_sets() {
    let server = worker().vars([
        ("OCTOLLM_SERVER_MAX_BODY", "1KiB"),
        ("OCTOLLM_SERVER_BODY_TIMEOUT", "300ms"),
        ("OCTOLLM_BRAIN_LEASE", "10s"),
        ("PATH", "/bin"),
    ]);
    let peer = start(server.unwrap());
    let largest = json!({ "text": "x".repeat(1024 - r#"{"text":""}"#.len()) }).to_string();
    assert_eq!(peer.post("/echo", "", &largest).await.status, 200);
    peer.post("/echo", "", &format!("{largest} ")).await.is_problem(413, "payload_too_large");

    let mut line = peer.connect().await;
    let whole = post("/echo", "", r#"{"text":"hi"}"#);
    let begun = tokio::time::Instant::now();
    line.write(&whole[..whole.len() - 1]).await;
    line.answer().await.is_problem(408, "request_timeout");
    assert_eq!(begun.elapsed(), Duration::from_millis(300));
}

#[tokio::test(start_paused = true)]
async fn of_a_setter_and_a_variable_the_last_one_holds() {
    let tiny = [("OCTOLLM_SERVER_MAX_URI", "16")];
    let default = start(worker().max_uri(1024).vars(tiny).unwrap());
    let fixed = start(worker().vars(tiny).unwrap().max_uri(1024));
    assert_eq!(default.get("/a-path-that-is-longer").await.status, 414);
    assert_eq!(fixed.get("/a-path-that-is-longer").await.status, 404);
    // What is not set is left as it was.
    let other = start(worker().max_uri(16).vars([("OCTOLLM_SERVER_MAX_BODY", "1")]).unwrap());
    assert_eq!(other.get("/a-path-that-is-longer").await.status, 414);
}

#[test]
fn an_error_names_the_variable_and_never_its_value() {
    for (name, value, problem) in [
        ("OCTOLLM_SERVER_DRAIN_NOTICE", "swordfish", "is not a time"),
        ("OCTOLLM_SERVER_DRAIN_NOTICE", "5", "is not a time"),
        ("OCTOLLM_SERVER_DRAIN_NOTICE", "", "is not a time"),
        ("OCTOLLM_SERVER_MAX_BODY", "2MB", "is not a number of bytes"),
        ("OCTOLLM_SERVER_MAX_STREAMS", "4294967296", "is not a whole number"),
        ("OCTOLLM_SERVER_MAX_HEAD", "16", "is 16: set it to a value from 256 to 1048576"),
        ("OCTOLLM_SERVER_LISTEN", "swordfish", "is not an address with a port"),
        ("OCTOLLM_SERVER_LISTEN", ":80", "is not an address with a port"),
        ("OCTOLLM_SERVER_OPEN_TO_ALL", "yes", "is neither `true` nor `false`"),
        ("OCTOLLM_SERVER_MAX_BDY", "1", "is no setting of octollm"),
        ("OCTOLLM_SERVER_max_body", "1", "is no setting of octollm"),
        ("OCTOLLM_SEVER_MAX_BODY", "1", "is no setting of octollm"),
        ("OCTOLLM_SERVER_PORT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
    ] {
        let (setting, text) = refused(&[(name, value)]);
        assert_eq!(setting, name);
        assert!(text.contains(problem) && !text.contains("swordfish"), "{text}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        let value = OsString::from_vec(vec![0xff]);
        let error = worker().vars([(OsString::from("OCTOLLM_SERVER_MAX_BODY"), value)]).err().unwrap();
        assert_eq!(error.to_string(), "`OCTOLLM_SERVER_MAX_BODY` is not UTF-8");
    }
}

#[tokio::test]
async fn a_server_listens_where_its_environment_has_it_and_needs_a_caller_there_too() {
    let (address, other) = (free(), free());
    let server = worker().vars([("OCTOLLM_SERVER_LISTEN", &address)]).unwrap().bind(&other).await.unwrap();
    assert_eq!(
        (server.local_addr().to_string(), server.url()),
        (address.clone(), format!("http://{address}"))
    );
    let peer = Peer::Tcp(server.local_addr());
    tokio::spawn(server.run());
    assert_eq!(peer.get("/health").await.status, 200);

    let everywhere = [("OCTOLLM_SERVER_LISTEN", "0.0.0.0:0")];
    let error = worker().vars(everywhere).unwrap().bind(&other).await.unwrap_err();
    assert_eq!(error.setting(), "authenticate");
    // What an operator can do about it is a variable, and what the program can do a setter.
    let has_variables =
        |error: octollm_core::error::ConfigError| error.to_string().contains("OCTOLLM_SERVER_OPEN_TO_ALL");
    assert!(has_variables(error));
    assert!(!has_variables(worker().bind("0.0.0.0:0").await.unwrap_err()));
    let open = [everywhere[0], ("OCTOLLM_SERVER_OPEN_TO_ALL", "true")];
    assert!(worker().vars(open).unwrap().bind(&other).await.is_ok());
    let closed = [everywhere[0], ("OCTOLLM_SERVER_OPEN_TO_ALL", "false")];
    assert!(worker().open_to_all().vars(closed).unwrap().bind(&other).await.is_err());

    let nowhere = [("OCTOLLM_SERVER_LISTEN", "no.such.host.invalid:80")];
    let error = worker().vars(nowhere).unwrap().bind(&other).await.unwrap_err();
    assert_eq!(error.setting(), "OCTOLLM_SERVER_LISTEN");
    let taken = [("OCTOLLM_SERVER_LISTEN", &address)];
    let error = worker().vars(taken).unwrap().bind(&other).await.unwrap_err();
    assert_eq!(error.to_string(), "`OCTOLLM_SERVER_LISTEN` cannot be listened on");
}

#[test]
fn a_server_that_checks_its_callers_is_not_open_to_all() {
    let open = [("OCTOLLM_SERVER_OPEN_TO_ALL", "true")];
    let known = |_: &http::request::Parts| Ok(octollm_core::parts::Caller::Anonymous);
    for server in [worker().authenticate(known), worker().identity_from_extensions()] {
        assert_eq!(server.vars(open).unwrap_err().setting(), open[0].0);
    }
    // A default of the program is replaced.
    assert!(
        worker().open_to_all().vars([("PATH", "/bin")]).unwrap().authenticate(known).into_service().is_ok()
    );
}

/// Such a request would be answered 503 for ever.
#[test]
fn a_server_has_room_for_its_largest_request() {
    for alone in [("OCTOLLM_SERVER_MAX_BODY", "300MiB"), ("OCTOLLM_SERVER_MAX_ARRIVING", "1MiB")] {
        let error = worker().vars([alone]).unwrap().open_to_all().into_service().unwrap_err();
        assert_eq!(error.setting(), "max_arriving");
    }
}

#[test]
fn a_server_that_listens_elsewhere_is_not_built_with_an_address() {
    let set = |server: Server| server.vars([("OCTOLLM_SERVER_LISTEN", "127.0.0.1:80")]).unwrap();
    let mounted = set(worker()).open_to_all().into_service().unwrap_err();
    assert_eq!(mounted.setting(), "OCTOLLM_SERVER_LISTEN");
    let pipes = octollm_http::io::Pipes::new();
    let listening = set(worker()).listen(pipes.listen("worker").unwrap()).unwrap_err();
    assert_eq!(listening.setting(), "OCTOLLM_SERVER_LISTEN");
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn certificates_from_the_environment_mean_tls_and_nothing_else() {
    use octollm_http::Arms;

    use crate::{arms::Echo, certificates::Authority};

    let authority = Authority::new();
    authority.write(&["localhost"]);
    let file = |name: &str| authority.file(name).to_str().unwrap().to_owned();
    let files = [
        ("OCTOLLM_SERVER_TLS_CERT_FILE", file("tls.crt")),
        ("OCTOLLM_SERVER_TLS_KEY_FILE", file("tls.key")),
        ("OCTOLLM_SERVER_TLS_CLIENT_CA_FILE", file("ca.pem")),
    ];
    let variables = |count: usize| files[..count].to_vec();
    let echo = || Echo { text: "hi".into(), data: 0.into(), number: 0.0 };

    let server = worker().vars(variables(2)).unwrap().bind("127.0.0.1:0").await.unwrap();
    assert!(server.url().starts_with("https://127.0.0.1:"));
    let port = server.local_addr().port();
    tokio::spawn(server.run());
    let client = |scheme: &str, port: u16| {
        let builder = Arms::builder().endpoint("worker", format!("{scheme}://localhost:{port}"));
        builder.tls(authority.trusted()).build().unwrap()
    };
    assert_eq!(client("https", port).call(echo()).await.unwrap().text, "hi");
    assert!(client("http", port).call(echo()).await.is_err());

    let server = worker().vars(variables(3)).unwrap().bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().port();
    tokio::spawn(server.run());
    assert!(client("https", port).call(echo()).await.is_err(), "a client without a certificate");

    for (present, missing) in [(0, "OCTOLLM_SERVER_TLS_KEY_FILE"), (1, "OCTOLLM_SERVER_TLS_CERT_FILE")] {
        assert_eq!(refused(&[(files[present].0, &files[present].1)]).0, missing);
    }
    assert_eq!(refused(&[(files[2].0, &files[2].1)]).0, "OCTOLLM_SERVER_TLS_CERT_FILE");
    for (wrong, (name, _)) in files.iter().enumerate() {
        let mut files = files.clone();
        files[wrong].1 = "/no/such/file".into();
        let error = worker().vars(files).unwrap().bind("127.0.0.1:0").await.unwrap_err();
        assert_eq!(error.to_string(), format!("`{name}` cannot be read"));
    }
    let mounted = worker().vars(variables(2)).unwrap().open_to_all().into_service().unwrap_err();
    assert_eq!(mounted.setting(), "OCTOLLM_SERVER_TLS_CERT_FILE");
    let gone = [(files[0].0, file("no.crt")), (files[1].0, file("tls.key"))];
    assert!(worker().vars(gone).unwrap().bind("127.0.0.1:0").await.is_err());
}
