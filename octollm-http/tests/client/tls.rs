//! Calls over TLS, and servers that the client must not trust.

use std::{
    error::Error,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm_core::{
    arm::arm_fn,
    error::{CallError, ErrorKind},
    resilience::RetryLayer,
};
use octollm_http::{
    Server,
    client::{Arms, Protocol},
    io::{Acceptor, TlsAcceptor},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tokio_rustls::{
    rustls::{self, pki_types::pem::PemObject},
    server::TlsStream,
};

use crate::{
    certificates::Authority,
    peer::{Answer, Peer, Socket, network, short, unused_host, usual},
};

/// Repeats a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.repeat", output = String)]
struct Repeat {
    text: String,
    times: usize,
}

fn repeat(text: &str, times: usize) -> Repeat {
    Repeat { text: text.into(), times }
}

fn parrot() -> Server {
    Server::new("parrot").arm(arm_fn(async |input: Repeat, _| Ok(input.text.repeat(input.times))))
}

/// Starts a server with a certificate for these hosts, and returns its port.
async fn serve(authority: &Authority, hosts: &[&str]) -> u16 {
    let (certificate, key) = authority.write(hosts);
    listen(parrot(), |tcp| TlsAcceptor::new(tcp, certificate, key).unwrap()).await
}

async fn listen<A: Acceptor>(server: Server, acceptor: impl FnOnce(TcpListener) -> A) -> u16 {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    tokio::spawn(server.listen(acceptor(tcp)).unwrap().run());
    port
}

/// A server that is not trusted: it is not asked for its card, so that the error is that of the call.
async fn refused(builder: octollm_http::client::ArmsBuilder, url: &str) -> CallError {
    let arms = builder.endpoint_serving::<Repeat>("parrot", url).build().unwrap();
    let error = arms.call(repeat("x", 1)).retry(3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(!error.may_have_executed() && !error.failure().retryable, "{error:?}");
    assert_eq!(error.attempts(), 1, "another attempt does not help");
    error
}

impl Socket for TlsStream<TcpStream> {
    fn reset_on_close(&self) -> std::io::Result<()> {
        self.get_ref().0.reset_on_close()
    }
}

/// The texts of the causes of an error.
fn causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.map(|cause| format!("{cause}; ")).collect()
}

#[tokio::test]
async fn calls_over_tls_need_no_wiring_but_trust() {
    let authority = Authority::new();
    let port = serve(&authority, &["localhost", "127.0.0.1"]).await;
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{port}");
        let arms = Arms::builder().tls(authority.trusted()).endpoint("parrot", &url).build().unwrap();
        assert_eq!(arms.call(repeat("ab", 2)).await.unwrap(), "abab");
        // Beyond every buffer of TLS, in both directions.
        let long = "0123456789abcdef".repeat(40_000);
        assert_eq!(arms.call(repeat(&long, 4)).await.unwrap().len(), 4 * long.len());
        let calls = (1..40).map(|times| repeat("x", times));
        let answers = arms.context().call_all(calls).at_once(20).await.unwrap();
        assert!(answers.iter().map(String::len).eq(1..40));
        assert_eq!(arms.cards().await[0].endpoint.as_ref(), Some(&url));
    }
}

/// Counts the connections that it accepts.
struct Counting<A>(A, Arc<AtomicUsize>);

impl<A: Acceptor> Acceptor for Counting<A> {
    type Io = A::Io;
    type Opening = A::Opening;

    async fn accept(&mut self) -> std::io::Result<Self::Opening> {
        let opening = self.0.accept().await?;
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(opening)
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn the_server_chooses_http2_where_the_client_offers_it() {
    let authority = Authority::new();
    for (protocol, most) in [(Protocol::Auto, 1), (Protocol::Http2, 1), (Protocol::Http1, 40)] {
        let (certificate, key) = authority.write(&["localhost"]);
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = accepted.clone();
        let slow = arm_fn(async |input: Repeat, _| {
            sleep(Duration::from_millis(50)).await;
            Ok(input.text.repeat(input.times))
        });
        let acceptor = |tcp| TlsAcceptor::new(Counting(tcp, counted), certificate, key).unwrap();
        let port = listen(Server::new("parrot").arm(slow), acceptor).await;
        let builder = Arms::builder().tls(authority.trusted()).protocol(protocol);
        let url = format!("https://localhost:{port}");
        let arms = builder.endpoint_serving::<Repeat>("parrot", url).build().unwrap();
        arms.context().call_all((0..40).map(|_| repeat("x", 1))).at_once(40).await.unwrap();
        assert_eq!(accepted.load(Ordering::SeqCst), most, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_tls_server_without_http2_is_called_over_http1_unless_that_is_not_allowed() {
    let authority = Authority::new();
    let (certificate, key) = authority.write(&["localhost"]);
    let read = |file| std::fs::read(file).unwrap();
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(&read(certificate))
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&read(key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", tcp.local_addr().unwrap().port());
    let peer =
        Peer::listen(Plain(tcp, tls), url.clone(), |_| async { Answer::Json(200, serde_json::json!("ab")) });
    for protocol in [Protocol::Auto, Protocol::Http1, Protocol::Http2] {
        let builder = Arms::builder().tls(authority.trusted()).protocol(protocol);
        let arms = builder.endpoint_serving::<Repeat>("parrot", &url).build().unwrap();
        let calls = (0..20).map(|_| repeat("ab", 1));
        for answer in arms.context().call_all(calls).at_once(20).each().await {
            match answer {
                Ok(text) => assert!(text == "ab" && protocol != Protocol::Http2),
                Err(error) => {
                    assert_eq!((error.kind(), protocol), (ErrorKind::Unreachable, Protocol::Http2));
                    assert!(!error.may_have_executed() && !error.failure().retryable, "{error:?}");
                }
            }
        }
    }
    assert_eq!(peer.calls().len(), 40);
}

/// TLS without ALPN.
struct Plain(TcpListener, tokio_rustls::TlsAcceptor);

impl Acceptor for Plain {
    type Io = TlsStream<TcpStream>;
    type Opening =
        std::pin::Pin<Box<dyn Future<Output = std::io::Result<(Self::Io, octollm_http::io::Peer)>> + Send>>;

    async fn accept(&mut self) -> std::io::Result<Self::Opening> {
        let (socket, _) = TcpListener::accept(&self.0).await?;
        let tls = self.1.clone();
        Ok(Box::pin(async move { Ok((tls.accept(socket).await?, octollm_http::io::Peer::default())) }))
    }
}

#[tokio::test(start_paused = true)]
async fn tls_works_over_any_connector() {
    let authority = Authority::new();
    let (certificate, key) = authority.write(&["parrot"]);
    let acceptor = TlsAcceptor::new(network().listen("parrot:443").unwrap(), certificate, key).unwrap();
    tokio::spawn(parrot().listen(acceptor).unwrap().run());
    let arms = usual().tls(authority.trusted()).endpoint("parrot", "https://parrot").build().unwrap();
    assert_eq!(arms.call(repeat("ab", 2)).await.unwrap(), "abab");
    assert_eq!(arms.cards().await[0].endpoint.as_deref(), Some("https://parrot"));
}

#[tokio::test]
async fn a_server_whose_certificate_does_not_verify_gets_no_request() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let hosts: &[&str] = &["localhost"];
    for (signer, hosts, hours, problem, cause) in [
        (&authority, &["elsewhere"][..], -1..1, "for another name", "not valid for name"),
        (&stranger, hosts, -1..1, "no authority that is trusted here", "UnknownIssuer"),
        (&authority, hosts, -2..-1, "has expired", "expired"),
        (&authority, hosts, 1..2, "is not valid yet", "not valid yet"),
    ] {
        let (certificate, key) = signer.write_valid(hosts, hours);
        let port = listen(parrot(), |tcp| TlsAcceptor::new(tcp, certificate, key).unwrap()).await;
        let url = format!("https://localhost:{port}");
        let error = refused(Arms::builder().tls(authority.trusted()), &url).await;
        assert!(error.to_string().contains(problem), "{error}");
        assert!(causes(&error).contains(cause), "{}", causes(&error));

        // A retry around the call does not help either, whether or not the card is known.
        let retried = Arms::builder().tls(authority.trusted()).layer(RetryLayer::default());
        let arms = retried.endpoint("parrot", &url).build().unwrap();
        let error = arms.call(repeat("x", 1)).await.unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.kind() == ErrorKind::Unreachable && !error.failure().retryable, "{error:?}");
    }
}

#[tokio::test]
async fn the_next_endpoint_is_tried_where_one_is_not_trusted() {
    let authority = Authority::new();
    let wrong = serve(&authority, &["elsewhere"]).await;
    let right = serve(&authority, &["localhost"]).await;
    let urls = format!("https://localhost:{wrong},https://localhost:{right}");
    let builder = Arms::builder().tls(authority.trusted());
    let arms = builder.endpoint_serving::<Repeat>("parrot", urls).build().unwrap();
    for _ in 0..4 {
        assert_eq!(arms.call(repeat("ab", 1)).await.unwrap(), "ab");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_such() {
    let authority = Authority::new();
    let plain = parrot().bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", plain.local_addr());
    tokio::spawn(plain.run());
    let error = refused(Arms::builder().tls(authority.trusted()), &url).await;
    assert!(error.to_string().contains("does not speak TLS"), "{error}");

    // The other way round: the alert of the server is no answer.
    let url = format!("http://localhost:{}", serve(&authority, &["localhost"]).await);
    let arms = Arms::builder().endpoint_serving::<Repeat>("parrot", url).build().unwrap();
    let error = arms.call(repeat("x", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadResponse, "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_connect_timeout_bounds_the_handshake() {
    let host = unused_host();
    let mut silent = network().listen(&format!("{host}:443")).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(silent.accept().await.unwrap().await);
        }
    });
    let builder = usual().tls(Authority::new().trusted());
    let arms = builder.endpoint_serving::<Repeat>("parrot", format!("https://{host}")).build().unwrap();
    let begun = Instant::now();
    let error = arms.call(repeat("x", 1)).retry(0).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(!error.may_have_executed() && error.failure().retryable, "{error:?}");
}

#[tokio::test]
async fn a_client_without_its_certificate_is_refused_before_its_call_runs() {
    let authority = Authority::new();
    let (certificate, key) = authority.write(&["localhost"]);
    let ca = authority.file("ca.pem");
    let acceptor = |tcp| TlsAcceptor::new(tcp, certificate, key).unwrap().client_ca(ca).unwrap();
    let port = listen(parrot(), acceptor).await;
    let url = format!("https://localhost:{port}");

    let known =
        Arms::builder().tls(authority.known("brain", &authority)).endpoint("parrot", &url).build().unwrap();
    assert_eq!(known.call(repeat("ab", 1)).await.unwrap(), "ab");
    let error = refused(Arms::builder().tls(authority.trusted()), &url).await;
    assert!(error.to_string().contains("refuses the certificate"), "{error}");
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_not_used_again() {
    let authority = Authority::new();
    let (certificate, key) = authority.write(&["localhost"]);
    let server = parrot().idle_timeout(Duration::from_millis(20));
    let port = listen(server, |tcp| TlsAcceptor::new(tcp, certificate, key).unwrap()).await;
    let builder = Arms::builder().tls(authority.trusted());
    let arms = builder.endpoint("parrot", format!("https://localhost:{port}")).build().unwrap();
    for rest in [0, 60, 0, 60] {
        sleep(Duration::from_millis(rest)).await;
        assert_eq!(arms.call(repeat("ab", 1)).await.unwrap(), "ab");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_its_arm() {
    struct Signal(Option<oneshot::Sender<()>>);
    impl Drop for Signal {
        fn drop(&mut self) {
            self.0.take().unwrap().send(()).unwrap();
        }
    }
    let authority = Authority::new();
    let (certificate, key) = authority.write(&["localhost"]);
    let (signal, dropped) = oneshot::channel();
    let signal = Arc::new(std::sync::Mutex::new(Some(Signal(Some(signal)))));
    let server = Server::new("parrot").arm(arm_fn(move |_: Repeat, _| {
        let signal = signal.lock().unwrap().take();
        async move {
            let _signal = signal;
            std::future::pending().await
        }
    }));
    let port = listen(server, |tcp| TlsAcceptor::new(tcp, certificate, key).unwrap()).await;
    let builder = Arms::builder().tls(authority.trusted());
    let arms = builder.endpoint("parrot", format!("https://localhost:{port}")).build().unwrap();
    let error = arms.call(repeat("x", 1)).within(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    dropped.await.unwrap();
}

#[tokio::test]
async fn a_silent_answer_and_a_lost_one_are_typed_over_tls_too() {
    let authority = Authority::new();
    let (certificate, key) = authority.write(&["localhost"]);
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", tcp.local_addr().unwrap().port());
    let acceptor = TlsAcceptor::new(tcp, certificate, key).unwrap();
    Peer::listen(acceptor, url.clone(), |request| async move {
        let text = String::from_utf8(request.body).unwrap();
        if text.contains("lost") {
            Answer::Last(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec())
        } else {
            Answer::Silence
        }
    });
    // The peer speaks HTTP/1.1, whatever is negotiated.
    let builder = short(Arms::builder()).tls(authority.trusted()).protocol(Protocol::Http1);
    let arms = builder.endpoint_serving::<Repeat>("parrot", url).build().unwrap();
    for (text, kind) in [("lost", ErrorKind::ConnectionLost), ("silent", ErrorKind::Timeout)] {
        let error = arms.call(repeat(text, 1)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.may_have_executed(), "{error:?}");
    }
}

const URL: &str = "OCTOLLM_TEST_TLS_URL";

/// Runs the test below in a process whose roots of the system are those of this file.
async fn with_roots(file: std::path::PathBuf, url: String) -> String {
    let run = move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "tls::called_in_a_child", "--nocapture"]).env(URL, url);
        command.env("SSL_CERT_FILE", file).env_remove("SSL_CERT_DIR");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    spawn_blocking(run).await.unwrap()
}

/// The child; in any other process it does nothing.
#[tokio::test]
async fn called_in_a_child() {
    let Ok(url) = std::env::var(URL) else { return };
    let arms = Arms::from_vars([("OCTOLLM_ARM_PARROT", url)]).unwrap();
    println!("called: {:?}", arms.call(repeat("ab", 2)).await.map_err(|error| error.to_string()));
}

#[tokio::test]
async fn the_roots_of_the_system_are_trusted_by_default() {
    let authority = Authority::new();
    let url = format!("https://localhost:{}", serve(&authority, &["localhost"]).await);
    for (file, answer) in [
        ("ca.pem", r#"called: Ok("abab")"#),
        ("tls.key", "the system has no root certificates"),
        ("nothing", "the system has no root certificates"),
    ] {
        let printed = with_roots(authority.file(file), url.clone()).await;
        assert!(printed.contains(answer), "{file}: {printed}");
    }
}
