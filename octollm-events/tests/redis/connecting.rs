//! What is wrong with a server is one error that names it, in time.

use std::fs;

use futures_util::FutureExt;
use octollm_core::bus::{BusError, ConsumeOptions, DelayBus, DurableBus, Nack};
use octollm_events::redis::{RedisBus, RedisError, RedisIdempotencyStore, RedisRateLimiter, RedisStreamBus};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    time::Instant,
};

use crate::*;

/// The error of all at this address.
async fn refused(url: &str) -> RedisError {
    let since = Instant::now();
    let error = RedisBus::connect(url).await.unwrap_err();
    let others = [
        RedisStreamBus::connect(url).await.unwrap_err(),
        RedisIdempotencyStore::connect(url).await.unwrap_err(),
        RedisRateLimiter::connect(url).await.unwrap_err(),
    ];
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    for other in others {
        assert_eq!(error.to_string(), other.to_string());
    }
    assert!(!format!("{error} {error:?}").contains("geheim"), "{error:?}");
    error
}

#[tokio::test]
async fn a_bad_configuration_is_one_error_that_names_it() {
    let server = Redis::start(&["--requirepass geheim1"]);
    let port = server.port();
    let cases = [
        format!("redis://127.0.0.1:{port}"),
        format!("redis://:geheim2@127.0.0.1:{port}"),
        format!("redis://nobody:geheim1@127.0.0.1:{port}"),
    ];
    for url in cases {
        let error = refused(&url).await;
        assert!(matches!(error, RedisError::Refused(_)), "{url}: {error:?}");
    }
    let replica = Redis::start(&["--replicaof 127.0.0.1 1"]);
    assert!(matches!(refused(&replica.url()).await, RedisError::ReadOnly(_)));
    let tls = refused(&format!("rediss://:geheim1@127.0.0.1:{port}")).await;
    assert!(matches!(tls, RedisError::Tls(_) | RedisError::TimedOut(_)), "a server without TLS: {tls:?}");
    for url in ["mysql://geheim@host", "redis://:geheim@host:99999"] {
        assert!(matches!(refused(url).await, RedisError::Setting(_)));
    }
    server.kill();
    let gone = refused(&format!("redis://:geheim1@127.0.0.1:{port}")).await;
    assert!(matches!(gone, RedisError::Unreachable(_)), "{gone:?}");
    let setting = RedisBus::builder("redis://host").heartbeat(Duration::ZERO).connect().await;
    assert!(matches!(setting, Err(RedisError::Setting(_))));
    let setting = RedisStreamBus::builder("redis://host").prefix("a}b").connect().await;
    assert!(matches!(setting, Err(RedisError::Setting(_))));
}

#[tokio::test]
async fn a_url_names_the_database() {
    let server = Redis::start(&[]);
    let bus = RedisStreamBus::connect(&format!("{}3", server.url())).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    let keyspace = server.execute("INFO keyspace");
    assert!(keyspace.contains("db3:keys=") && !keyspace.contains("db0:"), "{keyspace}");
    let beyond = RedisStreamBus::connect(&format!("{}99", server.url())).await.unwrap_err();
    assert!(matches!(beyond, RedisError::Failed(_)), "{beyond:?}");
}

#[tokio::test]
async fn replies_reach_their_callers_where_others_give_up() {
    let bus = RedisStreamBus::builder(&Redis::shared().url()).prefix("given-up").connect().await.unwrap();
    let hour = Duration::from_secs(3600);
    for number in 0..200 {
        // One poll sends the command.
        assert!(bus.publish(event(number)).now_or_never().is_none());
        let later = event(number);
        bus.publish_after(later.clone(), hour).await.unwrap();
        assert!(bus.dead_letters("nobody", None, 1).now_or_never().is_none());
        assert!(bus.cancel_publish(later.id()).await.unwrap(), "{number}");
    }
    let options = ConsumeOptions { from_start: true, ..ConsumeOptions::default() };
    let mut history = bus.consume("given-up", Pattern::all(), options).await.unwrap();
    for expected in 0..200 {
        let delivery = delivered(&mut history).await;
        assert_eq!(number(delivery.event()), expected, "what was sent is executed");
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_an_error_in_time() {
    let server = Redis::start(&[]);
    server.stop();
    let since = Instant::now();
    let error = RedisBus::connect(&server.url()).await.unwrap_err();
    assert!(matches!(error, RedisError::TimedOut(_)), "{error:?}");
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    server.resume();
}

/// The URL of a server that answers HELLO like this, and all else with OK.
async fn answering(hello: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let hello = hello.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut count = String::new();
                    if stream.read_line(&mut count).await? == 0 {
                        return std::io::Result::Ok(());
                    }
                    let mut words = Vec::new();
                    for _ in 0..count.trim()[1..].parse().unwrap() {
                        let mut length = String::new();
                        stream.read_line(&mut length).await?;
                        let mut word = vec![0; length.trim()[1..].parse::<usize>().unwrap() + 2];
                        stream.read_exact(&mut word).await?;
                        words.push(word);
                    }
                    let answer = if words[0].starts_with(b"HELLO") { hello.as_str() } else { "+OK\r\n" };
                    stream.get_mut().write_all(answer.as_bytes()).await?;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn an_old_server_is_named_with_its_version() {
    let hello = |version: &str| {
        let pairs = [("server", "redis"), ("version", version), ("mode", "standalone"), ("role", "master")];
        let pairs = pairs.map(|(name, value)| format!("+{name}\r\n+{value}\r\n")).concat();
        format!("%5\r\n{pairs}+proto\r\n:3\r\n")
    };
    let error = refused(&answering(hello("6.0.16")).await).await;
    assert!(matches!(&error, RedisError::OldServer { found, .. } if found == "6.0.16"), "{error:?}");
    // Before version 6 there is no HELLO.
    let unknown = "-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n".to_owned();
    let error = refused(&answering(unknown).await).await;
    assert!(matches!(error, RedisError::OldServer { .. }), "{error:?}");
    let error =
        refused(&answering("-LOADING Redis is loading the dataset in memory\r\n".to_owned()).await).await;
    assert!(matches!(error, RedisError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn a_user_publishes_and_subscribes_where_it_may() {
    let server = Redis::start(&[]);
    server.execute("ACL SETUSER ann on >geheim -@all +hello +ping +publish +subscribe +psubscribe +unsubscribe &events:order:*");
    let url = format!("redis://ann:geheim@127.0.0.1:{}", server.port());
    let bus = RedisBus::connect(&url).await.unwrap();
    let mut events = bus.subscribe("events:order:paid".parse().unwrap(), Overflow::Block).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    assert_eq!(number(&received(&mut events).await), 1);
    let other = Event::new("task.completed", "shop", 1).unwrap();
    let error = bus.publish(other.clone()).await.unwrap_err();
    assert!(matches!(error, BusError::Denied { .. }) && !error.retryable(), "{error:?}");
    let results = bus.publish_all(vec![event(2), other, event(3)]).await;
    assert!(matches!(results[..], [Ok(()), Err(BusError::Denied { .. }), Ok(())]), "{results:?}");
    let denied = bus.subscribe("events:task:*,events:order:paid".parse().unwrap(), Overflow::Block).await;
    assert!(matches!(denied, Err(BusError::Denied { .. })), "{denied:?}");
    for expected in [2, 3] {
        assert_eq!(number(&received(&mut events).await), expected);
    }
    // The server closes the connection of a user whose rights are taken, and refuses the next one.
    server.execute("ACL SETUSER ann resetchannels");
    assert!(timeout(LIMIT, events.next()).await.unwrap().is_none(), "it ends");
    assert!(matches!(events.ended(), Some(BusError::Denied { .. })), "{:?}", events.ended());
}

#[tokio::test]
async fn a_durable_bus_works_with_the_rights_that_the_operators_page_names() {
    let server = Redis::start(&[]);
    server.execute(
        "ACL SETUSER bob on >geheim ~{octollm}:* -@all +@read +@write +@stream +@scripting +@connection +time",
    );
    let bus =
        RedisStreamBus::connect(&format!("redis://bob:geheim@127.0.0.1:{}", server.port())).await.unwrap();
    let mut events = subscribed(&bus).await;
    let mut consumer = bus.consume("workers", Pattern::all(), ConsumeOptions::default()).await.unwrap();
    bus.publish(event(1)).await.unwrap();
    bus.publish_after(event(2), Duration::from_millis(100)).await.unwrap();
    for expected in [1, 2] {
        assert_eq!(number(&received(&mut events).await), expected);
        delivered(&mut consumer).await.nack(Nack::dead_letter("bad")).await.unwrap();
    }
    let dead = bus.dead_letters("workers", None, 10).await.unwrap();
    bus.replay("workers", &dead[0].entry).await.unwrap();
    delivered(&mut consumer).await.ack().await.unwrap();
    assert_eq!(bus.group("workers").await.unwrap().dead_letters, 1);
    let other =
        RedisStreamBus::builder(&format!("redis://bob:geheim@127.0.0.1:{}", server.port())).prefix("other");
    let error = other.connect().await.unwrap_err();
    assert!(matches!(error, RedisError::NotPermitted(_)), "{error:?}");
}

/// An authority, and a certificate of it for 127.0.0.1, as PEM.
fn certificates() -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (authority, params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

#[tokio::test]
async fn tls_is_verified_and_clients_have_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, chain, key) = certificates();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (authority_file, chain_file, key_file) =
        (file("ca.pem", &authority), file("chain.pem", &chain), file("key.pem", &key));
    let port = redis_server::free_port();
    let server = Redis::start(&[
        &format!("--tls-port {port}"),
        &format!("--tls-cert-file {chain_file}"),
        &format!("--tls-key-file {key_file}"),
        &format!("--tls-ca-cert-file {authority_file}"),
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    let builder = || RedisBus::builder(&url).root_certificates(authority.clone());
    let bus = builder().client_certificate(chain.clone(), key.clone()).connect().await.unwrap();
    let mut events = subscribed(&bus).await;
    bus.publish(event(1)).await.unwrap();
    assert_eq!(number(&received(&mut events).await), 1);
    // The server requires a certificate, which TLS 1.3 says after the handshake of the client.
    let error = builder().connect().await.unwrap_err();
    assert!(matches!(error, RedisError::Tls(_) | RedisError::Unreachable(_)), "{error:?}");
    server.execute("CONFIG SET tls-auth-clients no");
    builder().connect().await.unwrap();
    let (other, ..) = certificates();
    for error in [RedisBus::builder(&url).root_certificates(other), RedisBus::builder(&url)] {
        let error = error.connect().await.unwrap_err();
        assert!(matches!(error, RedisError::Tls(_)), "{error:?}");
    }
    for pem in ["", "no certificate"] {
        let error = RedisBus::builder(&url).root_certificates(pem).connect().await.unwrap_err();
        assert!(matches!(error, RedisError::Setting(_)), "{error:?}");
    }
}
