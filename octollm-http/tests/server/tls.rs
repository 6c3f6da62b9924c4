//! The server over TLS: its certificates and their reload, protocols, clients that are slow or unknown.

use std::{fs, io::ErrorKind, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Version, request::Parts};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use octollm_core::{error::Failure, parts::Caller};
use octollm_http::{
    Arms, Server,
    io::{
        Connector, Io, Peer, Pipes, TlsAcceptor,
        rustls::{ClientConfig, pki_types::CertificateDer},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    arms::{Echo, worker},
    certificates::Authority,
    peer::post,
};

/// Serves with the certificate in these files as the host `worker` of a network in memory.
fn start(authority: &Authority, server: Server) -> Pipes {
    let pipes = Pipes::new();
    let (certificate, key) = (authority.file("tls.crt"), authority.file("tls.key"));
    let acceptor = TlsAcceptor::new(pipes.listen("worker:443").unwrap(), certificate, key).unwrap();
    tokio::spawn(server.listen(acceptor).unwrap().run());
    pipes
}

async fn connect(pipes: &Pipes, config: ClientConfig) -> TlsStream<Box<dyn Io>> {
    let io = pipes.connect(&"https://worker".parse().unwrap()).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect("worker".try_into().unwrap(), io).await.unwrap()
}

fn certificate(stream: &TlsStream<Box<dyn Io>>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

async fn calls(pipes: &Pipes, authority: &Authority) {
    let builder = Arms::builder().connector(pipes.clone()).tls(authority.trusted());
    let arms = builder.endpoint("worker", "https://worker").build().unwrap();
    let said = arms.call(Echo { text: "hi".into(), data: 0.into(), number: 0.0 }).await.unwrap();
    assert_eq!(said.text, "hi");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_end_is_closed_at_the_limit_and_delays_nobody() {
    let authority = Authority::new();
    authority.write(&["worker"]);
    let pipes = start(&authority, worker());
    let begun = Instant::now();
    let mut silent = pipes.connect(&"https://worker".parse().unwrap()).await.unwrap();
    let mut slow = pipes.connect(&"https://worker".parse().unwrap()).await.unwrap();
    // The head of a record.
    slow.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    calls(&pipes, &authority).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    for io in [&mut silent, &mut slow] {
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_end_delays_the_end_by_a_second_at_most() {
    let authority = Authority::new();
    authority.write(&["worker"]);
    let pipes = Pipes::new();
    let (certificate, key) = (authority.file("tls.crt"), authority.file("tls.key"));
    let acceptor = TlsAcceptor::new(pipes.listen("worker:443").unwrap(), certificate, key).unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(worker().listen(acceptor).unwrap().run_until(async {
        let _ = stopped.await;
    }));
    let _silent = pipes.connect(&"https://worker".parse().unwrap()).await.unwrap();
    let mut slow = pipes.connect(&"https://worker".parse().unwrap()).await.unwrap();
    slow.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    calls(&pipes, &authority).await;
    // One that is under way is completed, and its request answered.
    let late = pipes.connect(&"https://worker".parse().unwrap()).await.unwrap();
    let begun = Instant::now();
    stop.send(()).unwrap();
    sleep(Duration::from_millis(500)).await;
    let connector = TlsConnector::from(Arc::new(authority.trusted()));
    let mut late = connector.connect("worker".try_into().unwrap(), late).await.unwrap();
    late.write_all(b"GET /health HTTP/1.1\r\nHost: worker\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    late.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    drop(late);
    server.await.unwrap();
    assert!(begun.elapsed() <= Duration::from_millis(1_100), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_in_the_clear_is_not_served() {
    let authority = Authority::new();
    authority.write(&["worker"]);
    let pipes = start(&authority, worker());
    let mut plain = pipes.connect(&"https://worker".parse().unwrap()).await.unwrap();
    plain.write_all(&post("/echo", "", r#"{"text":"hi"}"#)).await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.unwrap();
    // An alert of TLS at most.
    assert!(answer.len() < 16, "{:?}", String::from_utf8_lossy(&answer));
    calls(&pipes, &authority).await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_under_load_loses_no_call_and_bad_files_change_nothing() {
    let authority = Authority::new();
    let (chain, key) = authority.write(&["worker"]);
    let pipes = start(&authority, worker());
    let first = certificate(&connect(&pipes, authority.trusted()).await);
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let (pipes, builder) = (pipes.clone(), Arms::builder().tls(authority.trusted()));
        let arms = builder.connector(pipes).max_idle(0).endpoint("worker", "https://worker").build().unwrap();
        load.spawn(async move {
            for _ in 0..60 {
                arms.call(Echo { text: "hi".into(), data: 0.into(), number: 0.0 }).await.unwrap();
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let now = async || {
        sleep(Duration::from_millis(1100)).await;
        certificate(&connect(&pipes, authority.trusted()).await)
    };
    // The key of another certificate, a text that is no certificate, no file.
    let (_, other) = authority.sign(&["worker"], -1..1);
    fs::write(&key, other.serialize_pem()).unwrap();
    assert_eq!(now().await, first);
    fs::write(&chain, "none").unwrap();
    assert_eq!(now().await, first);
    fs::remove_file(&chain).unwrap();
    assert_eq!(now().await, first);
    authority.write(&["worker"]);
    let second = now().await;
    assert_ne!(second, first);
    while let Some(calls) = load.join_next().await {
        calls.unwrap();
    }
    assert_eq!(now().await, second);
}

#[tokio::test]
async fn http2_is_chosen_by_alpn() {
    let authority = Authority::new();
    authority.write(&["worker"]);
    let pipes = start(&authority, worker());
    for (offered, chosen) in
        [(&["h2", "http/1.1"][..], Some(&b"h2"[..])), (&["http/1.1"], Some(b"http/1.1")), (&[], None)]
    {
        let mut config = authority.trusted();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = connect(&pipes, config).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
        if chosen != Some(b"h2") {
            continue;
        }
        let (mut calls, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let card = Request::get("https://worker/capabilities").body(Full::<Bytes>::default()).unwrap();
        let answer = calls.send_request(card).await.unwrap();
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
        let card: serde_json::Value =
            serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(card["arm_id"], "worker");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_its_answer_is_closed_at_the_limit() {
    let authority = Authority::new();
    authority.write(&["worker"]);
    let pipes = start(&authority, worker());
    // The end of the first answer waits in the buffer of TLS alone, that of the second one does not fit.
    for length in [70_000, 200_000] {
        let mut stream = connect(&pipes, authority.trusted()).await;
        let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(length));
        stream.write_all(&post("/echo", "", body)).await.unwrap();
        stream.flush().await.unwrap();
        sleep(Duration::from_secs(31)).await;
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer).await;
        assert_eq!(end.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() < length, "{}", answer.len());
    }
    calls(&pipes, &authority).await;
}

/// Serves as the host `worker`, and verifies the certificates of clients by the file `clients.pem`.
fn start_for_clients(authority: &Authority, is_optional: bool) -> Pipes {
    let (chain, key) = authority.write(&["worker"]);
    let pipes = Pipes::new();
    let acceptor = TlsAcceptor::new(pipes.listen("worker:443").unwrap(), chain, key).unwrap();
    let clients = authority.file("clients.pem");
    let acceptor = match is_optional {
        true => acceptor.optional_client_ca(clients),
        false => acceptor.client_ca(clients),
    };
    let by_certificate = |head: &Parts| -> Result<Caller, Failure> {
        let peer = head.extensions.get::<Peer>().unwrap();
        assert!(peer.is_encrypted);
        match &peer.certificate {
            Some(certificate) => assert!(certificate.len() > 100),
            None => return Ok(Caller::Anonymous),
        }
        Ok(Caller::known("brain", ["text:*"]))
    };
    tokio::spawn(worker().authenticate(by_certificate).listen(acceptor.unwrap()).unwrap().run());
    pipes
}

/// The status of the answer to an echo, if there is one.
async fn ask(pipes: &Pipes, config: ClientConfig) -> Result<String, std::io::Error> {
    let mut stream = connect(pipes, config).await;
    stream.write_all(&post("/echo", "Connection: close\r\n", r#"{"text":"hi"}"#)).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer[9..12].to_owned())
}

#[tokio::test(start_paused = true)]
async fn the_certificate_of_a_client_is_required_and_identifies_it() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    fs::copy(authority.file("ca.pem"), authority.file("clients.pem")).unwrap();
    let pipes = start_for_clients(&authority, false);
    assert_eq!(ask(&pipes, authority.known("brain", &authority)).await.unwrap(), "200");
    assert!(ask(&pipes, authority.trusted()).await.is_err());
    assert!(ask(&pipes, authority.known("brain", &stranger)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_certificate_of_a_client_can_be_optional() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    fs::copy(authority.file("ca.pem"), authority.file("clients.pem")).unwrap();
    let pipes = start_for_clients(&authority, true);
    assert_eq!(ask(&pipes, authority.known("brain", &authority)).await.unwrap(), "200");
    // Without one it is accepted, and is nobody.
    assert_eq!(ask(&pipes, authority.trusted()).await.unwrap(), "401");
    assert!(ask(&pipes, authority.known("brain", &stranger)).await.is_err(), "no certificate is better");
}

#[tokio::test(start_paused = true)]
async fn the_authority_of_clients_is_reloaded_and_a_bad_file_changes_nothing() {
    for is_optional in [false, true] {
        let (authority, first, second) = (Authority::new(), Authority::new(), Authority::new());
        let clients = authority.file("clients.pem");
        fs::copy(first.file("ca.pem"), &clients).unwrap();
        let pipes = start_for_clients(&authority, is_optional);
        let by = |signer: &Authority| ask(&pipes, authority.known("brain", signer));
        assert_eq!(by(&first).await.unwrap(), "200");
        assert!(by(&second).await.is_err());
        // No file, no certificate, and a certificate that is not whole.
        let half = fs::read(second.file("ca.pem")).unwrap();
        for bad in [None, Some(&b"none"[..]), Some(&half[..half.len() / 2])] {
            match bad {
                None => fs::remove_file(&clients).unwrap(),
                Some(bytes) => fs::write(&clients, bytes).unwrap(),
            }
            sleep(Duration::from_millis(1100)).await;
            assert_eq!(by(&first).await.unwrap(), "200");
            assert!(by(&second).await.is_err());
        }
        fs::copy(second.file("ca.pem"), &clients).unwrap();
        sleep(Duration::from_millis(1100)).await;
        assert_eq!(by(&second).await.unwrap(), "200");
        assert!(by(&first).await.is_err());
        // A client that has none is still refused or accepted as before.
        assert_eq!(ask(&pipes, authority.trusted()).await.is_ok(), is_optional);
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let (chain, key) = authority.write(&["worker"]);
    let (leaf, _) = authority.sign(&["worker"], -1..1);
    let file = |name: &str, text: &str| {
        fs::write(authority.file(name), text).unwrap();
        authority.file(name)
    };
    let (other, none) = (file("other.crt", &leaf.pem()), file("none", "no PEM"));
    let broken = file("broken", "-----BEGIN CERTIFICATE-----\n@\n-----END CERTIFICATE-----\n");
    let missing = authority.file("missing");
    for (chain, key, ca, named, problem) in [
        (&missing, &key, None, &missing, "cannot be read"),
        (&chain, &missing, None, &missing, "cannot be read"),
        (&none, &key, None, &none, "holds no certificate"),
        (&broken, &key, None, &broken, "is not PEM"),
        (&chain, &none, None, &none, "holds no private key"),
        (&other, &key, None, &other, "cannot be used with its key"),
        (&chain, &key, Some(&missing), &missing, "cannot be read"),
        (&chain, &key, Some(&none), &none, "holds no certificate"),
    ] {
        let acceptor = TlsAcceptor::new(Pipes::new().listen("worker").unwrap(), chain, key);
        let acceptor = acceptor.and_then(|tls| ca.map_or_else(|| Ok(()), |ca| tls.client_ca(ca).map(drop)));
        let error = acceptor.unwrap_err();
        assert_eq!(error.setting(), named.display().to_string());
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn beyond_loopback_a_server_over_tls_must_know_its_callers_too() {
    let authority = Authority::new();
    let (chain, key) = authority.write(&["worker"]);
    let acceptor = async |address: &str| {
        let tcp = TcpListener::bind(address).await.unwrap();
        TlsAcceptor::new(tcp, &chain, &key).unwrap()
    };
    let error = worker().listen(acceptor("0.0.0.0:0").await).unwrap_err();
    assert_eq!(error.setting(), "authenticate");
    worker().open_to_all().listen(acceptor("0.0.0.0:0").await).unwrap();
    worker().listen(acceptor("127.0.0.1:0").await).unwrap();
}
